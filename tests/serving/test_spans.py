"""A team whose expert has another tokenizer, behind the API."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from colm_jax.parallel import make_mesh
from colm_jax.settings.serving import ServingSettings
from tests.decoding.units_team import make_team
from tests.experts.remote.conftest import WORDS
from tests.experts.remote.fake import serving
from tests.serving.client import choices_of, error, stream
from tests.serving.conftest import start
from tests.tiny import write_model

PROMPTS = ["Once upon a time", "Tom had a red ball. He", "The cat"]


@pytest.fixture(scope="module")
def spans(shared):
    """A server of a base and a guest, with a random gate."""
    models = shared / "models"
    team = make_team(make_mesh(), models / "babyllama-105", [models / "stories260k"], spread=0.5)
    return start(lambda: team, ServingSettings(slots=2, strategies=("defer",)))


def test_answers_are_those_of_generate_and_later_ones_compile_nothing(spans):
    expected = spans.team.generate(PROMPTS, max_new_tokens=30, threshold=0.5)
    assert any(source for answer in expected for source in answer.sources)
    compiled = spans.service.compilations
    body = spans.complete(PROMPTS, max_tokens=30, threshold=0.5)
    for choice, answer in zip(body["choices"], expected, strict=True):
        assert (choice["text"], choice["colm"]["sources"]) == (answer.text, answer.sources)
    events = stream(spans, "/v1/completions", {"prompt": PROMPTS[0], "max_tokens": 30, "temperature": 0})
    own = choices_of(events)
    assert "".join(choice["text"] for choice in own)[:20] == expected[0].text[:20]
    assert spans.service.compilations == compiled


def test_experts_see_their_own_prompt(spans):
    view = {"prompt": "The cat", "expert_prompt": "Once there was a dog. The"}
    (answer,) = spans.team.generate([view], max_new_tokens=20, threshold=0.0)
    fields = {"expert_prompt": view["expert_prompt"], "threshold": 0.0, "max_tokens": 20}
    assert spans.complete("The cat", **fields)["choices"][0]["text"] == answer.text


def test_what_spans_do_not_have_is_refused(spans):
    response = spans.post("/v1/completions", {"prompt": "a", "logprobs": 1})
    assert response.status_code == 400 and error(response)["param"] == "logprobs"


def test_a_remote_expert_that_takes_its_time_holds_up_nobody_else(tmp_path):
    """A request whose endpoint is silent waits; requests without an expert are answered meanwhile."""
    base = write_model(tmp_path / "base", words=WORDS, vocab_size=len(WORDS))
    with serving() as endpoint:
        team = make_team(make_mesh(), base, [endpoint.address], spread=0.5)
        served = start(lambda: team, ServingSettings(slots=2, strategies=("defer", "base")))
        prompts = [f"{letter} cat " for letter in "abcdefghij"]
        answers = team.generate(prompts, max_new_tokens=24, threshold=0.0)
        prompt, expected = next(pair for pair in zip(prompts, answers) if pair[1].expert_calls > 1)
        asked = len(endpoint.asked())
        endpoint.faults.append("silence")
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(served.complete, prompt, threshold=0.0, max_tokens=24)
            while len(endpoint.asked()) == asked:
                pass
            assert served.complete("the dog", strategy="base", max_tokens=4)["choices"] and not slow.done()
            (choice,) = slow.result()["choices"]
    assert (choice["text"], choice["colm"]["sources"]) == (expected.text, expected.sources)
    assert choice["colm"]["sent"]["requests"] > 0 and choice["colm"]["lost"] == []
