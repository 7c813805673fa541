"""Clients that others wrote: the openai package, and lm-eval's models for OpenAI's API."""

import asyncio

import numpy as np
import openai
import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and its dependencies

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'colm-jax[eval]'")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI  # noqa: E402

from colm_jax.evaluation.lm_eval import ColmLM  # noqa: E402

MESSAGES = [{"role": "user", "content": "hello"}]


def client(server, **options) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, **options)


# The openai package.


def test_openai_answers_and_streams(server):
    mine = client(server)
    assert [model.id for model in mine.models.list()] == ["tiny"]
    asked = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 15}
    extra = {"threshold": 0.4, "strategy": "defer"}
    whole = mine.chat.completions.create(**asked, extra_body=extra)
    (answer,) = server.team.generate([{"messages": MESSAGES}], max_new_tokens=15, threshold=0.4)
    assert whole.choices[0].message.content == answer.text
    assert whole.choices[0].colm["sources"] == answer.sources
    assert whole.choices[0].colm["threshold"] == pytest.approx([0.4] * len(answer.tokens))
    parts = list(mine.chat.completions.create(**asked, extra_body=extra, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == answer.text
    completion = mine.completions.create(model="tiny", prompt="ab", max_tokens=4, temperature=0, logprobs=2)
    assert len(completion.choices[0].logprobs.token_logprobs) == completion.usage.completion_tokens


def test_openai_async_clients_get_what_they_get_alone(server):
    prompts = [letter * 3 for letter in "abcdefghijklmnop"]

    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as mine:

            async def one(prompt):
                asked = {"model": "tiny", "prompt": prompt, "max_tokens": 24, "temperature": 0}
                if len(prompt) % 2:
                    return (await mine.completions.create(**asked)).choices[0].text
                return "".join(
                    [part.choices[0].text async for part in await mine.completions.create(**asked, stream=True)]
                )

            return await asyncio.gather(*map(one, prompts))

    expected = [answer.text for answer in server.team.generate(prompts, max_new_tokens=24)]
    assert asyncio.run(all_at_once()) == expected


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError),
        ({"temperature": -1}, openai.BadRequestError),
        ({"extra_body": {"nonsense": 1}}, openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "a" * 300}]}, openai.BadRequestError),
    ],
)
def test_openai_raises_its_own_errors(server, fields, kind):
    with pytest.raises(kind) as raised:
        client(server).chat.completions.create(**{"model": "tiny", "messages": MESSAGES, **fields})
    assert raised.value.body["message"]


def test_openai_retries_while_the_server_is_busy(server, monkeypatch):
    """The second try succeeds."""
    from colm_jax.serving.service import Busy, Service

    submit, tries = Service.submit, []

    def busy_once(self, *arguments):
        tries.append(1)
        if len(tries) == 1:
            raise Busy
        return submit(self, *arguments)

    monkeypatch.setattr(Service, "submit", busy_once)
    mine = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2)
    assert mine.completions.create(model="tiny", prompt="a", max_tokens=3).choices
    assert len(tries) == 2


# lm-eval.


def instances(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


@pytest.fixture(scope="module")
def models(server, team_directory):
    """The harness's model for completions, and ours in this process."""
    theirs = LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model="tiny",
        tokenizer_backend="huggingface",
        tokenizer=str(team_directory),
        add_bos_token=True,
        max_length=128,
        batch_size=4,
    )
    return theirs, ColmLM(team=server.team)


def test_lm_evals_likelihoods_are_those_of_the_adapter(server, models):
    theirs, ours = models
    pairs = [("the cat", " sat"), ("x", "abc def"), ("once upon a", " time."), ("ab ", "cd")]
    # What the team itself would write is greedy.
    contexts = [(f"{letter} cat", {"max_gen_toks": 4}) for letter in "abcdefghijklmnopqrstuvwxyz"]
    written = ours.generate_until(instances("generate_until", *contexts))
    # No special token is among these four, so that the text has them all.
    pairs.append(next((each[0], text) for each, text in zip(contexts, written) if len(text.strip()) == 4))
    # The team ends these right after the continuation; the harness drops the last entry all the same.
    texts = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrst"]
    ends = [answer.finish_reason == "eos" for answer in server.team.generate(texts, max_new_tokens=1)]
    pairs += [(text[0], text[1]) for text, end in zip(texts, ends) if end][:3]
    assert any(ends) and not all(ends)
    got = theirs.loglikelihood(instances("loglikelihood", *pairs))
    want = ours.loglikelihood(instances("loglikelihood", *pairs))
    np.testing.assert_allclose([value for value, _ in got], [value for value, _ in want], rtol=2e-6)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in want]
    assert want[4][1] and not want[0][1]


def test_lm_eval_finds_the_tokenizer_at_the_server(server):
    theirs = LocalCompletionsAPI(base_url=f"{server.url}/v1/completions", model="tiny")
    assert theirs.tokenizer_backend == "remote"
    assert theirs.tok_encode("hello") == server.team.tokenizer.encode_plain("hello")
    assert theirs.decode_batch([theirs.tok_encode("hello")]) == ["hello"]


def test_lm_evals_answers_are_those_of_the_adapter(models):
    theirs, ours = models
    asked = [
        ("hello", {"max_gen_toks": 20, "until": ["q"]}),
        ("the cat", {"max_gen_toks": 20, "until": ["z", "x"]}),
        ("a b", {"max_gen_toks": 7, "until": ["?"], "temperature": 0.0}),
    ]
    got = theirs.generate_until(instances("generate_until", *asked))
    assert got == ours.generate_until(instances("generate_until", *asked))
    assert any(got)


def test_lm_evals_chat_answers_are_those_of_generate(server):
    theirs = LocalChatCompletion(base_url=f"{server.url}/v1/chat/completions", model="tiny")
    text = theirs.apply_chat_template(MESSAGES)
    got = theirs.generate_until(instances("generate_until", (text, {"max_gen_toks": 12, "until": ["q"]})))
    (answer,) = server.team.generate([{"messages": MESSAGES}], max_new_tokens=12, stop=["q"])
    assert got == [answer.text]
