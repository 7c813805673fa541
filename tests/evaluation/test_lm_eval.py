"""lm-evaluation-harness with our engine, offline: likelihoods equal `CoLM.score`, GSM8K equals `colm evaluate`."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from colm_jax import CoLM
from colm_jax.cli.main import main
from colm_jax.errors import UserError
from colm_jax.evaluation.files import evaluate_files
from colm_jax.objectives import marginal_nll
from colm_jax.text.tokenizer import load_tokenizer
from tests.tiny import SPECIAL, edit_json, write_model, write_team, write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and its dependencies

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'colm-jax[eval]'")
from lm_eval.api.model import LM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from colm_jax.evaluation.lm_eval import ColmLM, _generation  # noqa: E402

WORDS = (*SPECIAL, *"0123456789abcdefghijklmnopqrs")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """Save a team of digits and letters, and its expert."""
    directory = tmp_path_factory.mktemp("models")
    base = write_model(directory / "base", words=WORDS)
    expert = write_model(directory / "expert", words=WORDS, seed=1)
    return write_team(directory / "team", base, expert, spread=0.2), expert


@pytest.fixture(scope="module")
def team(models) -> CoLM:
    return CoLM.from_pretrained(models[0], [models[1]])


def request(*arguments):
    return SimpleNamespace(args=arguments, task_name="test")


def marginal(team, ids, context: int, threshold: float | None = None):
    """Return the team's marginal log-probability of the ids after `context` tokens, computed directly."""
    (scored,) = team.score([{"input_ids": ids, "labels": [-100] * context + ids[context:]}])
    arguments = scored.gate_logits, scored.base_log_prob, scored.expert_log_probs, scored.mask
    total, count = marginal_nll(*(np.asarray(a)[None] for a in arguments))
    assert count == len(ids) - context
    return -float(total)


def test_likelihoods_equal_the_teams_scores(team):
    pairs = [("abc12", "de"), ("q", "0123456789"), ("", "ab"), ("ab ", "cd")]
    found = ColmLM(team=team).loglikelihood([request(*pair) for pair in pairs])
    encode = team.tokenizer.encode
    for (context, text), (log_prob, _) in zip(pairs[:3], found):
        prompt = encode(context)
        assert log_prob == pytest.approx(marginal(team, [*prompt, *encode(text)[1:]], len(prompt)), abs=1e-4)
    # The last space of a context belongs to the continuation.
    ids = encode("ab cd")
    assert found[3][0] == pytest.approx(marginal(team, ids, 3), abs=1e-4)
    (scored,) = team.score([{"input_ids": encode("abc12de"), "labels": [-100] * 6 + encode("abc12de")[6:]}])
    for strategy, values in (("base", scored.base_log_prob), ("expert", scored.expert_log_probs[:, 0])):
        ((log_prob, _),) = ColmLM(team=team, strategy=strategy).loglikelihood([request("abc12", "de")])
        assert log_prob == pytest.approx(float(values[scored.mask].sum()), abs=1e-4)
    with pytest.raises(UserError, match="strategy=confidence: has no likelihood"):
        ColmLM(team=team, strategy="confidence").loglikelihood([request("a", "b")])
    with pytest.raises(UserError, match="exceed the context of 128"):
        ColmLM(team=team).loglikelihood([request("a" * 100, "b" * 40)])


@pytest.fixture(scope="module")
def merging(tmp_path_factory) -> ColmLM:
    """Make a base whose tokenizer has the tokens "ab" and "abc"."""
    directory = write_model(tmp_path_factory.mktemp("models") / "merging", words=(*SPECIAL, *" abcdq", "ab", "abc"))
    split = {"type": "Split", "pattern": {"Regex": "abc|ab|."}, "behavior": "Isolated", "invert": False}
    edit_json(directory / "tokenizer.json", pre_tokenizer=split)
    return ColmLM(team=CoLM.from_pretrained(directory, []))


@pytest.mark.parametrize(
    "context, continuation, read, scored",
    [
        ("qa", "d", "<s> q a", "d"),  # no token spans the boundary: as in the harness
        ("qa", "b", "<s> q", "ab"),
        ("qa", "bc", "<s> q", "abc"),
        ("qa", "bd", "<s> q", "ab d"),
        ("qab", "cq", "<s> q", "abc q"),
        ("a", "b", "<s>", "ab"),
        ("", "ab", "<s>", "ab"),
        ("q ", "ab", "<s> q", "_ ab"),
        (" ", "ab", "<s>", "_ ab"),
        ("<s>q", "d", "<s> q", "d"),
        ("", "<s>d", "<s>", "d"),
    ],
)
def test_token_across_the_boundary_belongs_to_the_continuation(merging, context, continuation, read, scored):
    ids = merging.team.tokenizer.backend.get_vocab()
    wanted = [[ids[token.replace("_", " ")] for token in tokens.split()] for tokens in (read, scored)]
    assert list(merging._encode_pair(context, continuation)) == wanted


def test_choice_merged_with_the_context_has_a_probability_below_one(merging):
    asked = [("qa", "b"), ("qa", "bd"), ("qa", "d")]
    for (context, continuation), (log_prob, _) in zip(
        asked, merging.loglikelihood([request(*pair) for pair in asked]), strict=True
    ):
        read, scored = merging._encode_pair(context, continuation)
        (score,) = merging.team.score([{"input_ids": read + scored, "labels": [-100] * len(read) + scored}])
        assert log_prob == pytest.approx(float(score.base_log_prob[-len(scored) :].sum()), abs=1e-4)
        assert log_prob < -0.01


@pytest.mark.parametrize("context", ["qa", "qa ", ""])
def test_continuation_without_a_token_is_an_error(merging, context):
    with pytest.raises(UserError, match="test: request 2: the continuation '' has no token of its own"):
        merging.loglikelihood([request("q", "a"), request(context, "")])


@pytest.mark.parametrize("text", ["", "<s>"])
def test_empty_text_is_an_error(merging, text):
    with pytest.raises(UserError, match="test: request 1: an empty text has no likelihood"):
        merging.loglikelihood_rolling([request(text)])


def test_text_that_begins_with_bos_has_a_single_bos(merging):
    plain, marked = merging.loglikelihood_rolling([request("qad"), request("<s>qad")])
    assert plain == pytest.approx(marked)


@pytest.mark.parametrize("strategy", ["defer", "base", "expert"])
def test_only_the_strategys_own_continuation_is_greedy(team, strategy):
    (answer,) = team.generate(["abc1"], threshold=0.5, strategy=strategy, max_new_tokens=12)
    if strategy == "defer":
        assert {0, 1} == set(answer.sources)
    model = ColmLM(team=team, strategy=strategy, threshold=0.5)
    other = [*answer.tokens[:-1], 5 if answer.tokens[-1] != 5 else 6]
    found = model._loglikelihood_tokens([(None, answer.prompt_ids, tokens) for tokens in (answer.tokens, other)])
    assert [greedy for _, greedy in found] == [True, False]


def test_contexts_have_one_bos_and_no_eos(team, tmp_path, monkeypatch):
    monkeypatch.setattr(team, "tokenizer", load_tokenizer(write_tokenizer(tmp_path, eos=True)))
    model = ColmLM(team=team)
    assert model.tok_encode("ab") == model.tok_encode("<s>ab") == model.tok_encode("ab", add_special_tokens=True)
    assert model.tok_encode("ab") == [1, 4, 5]
    assert model.tok_encode("ab", add_special_tokens=False) == [4, 5]
    monkeypatch.setattr(team.tokenizer.backend, "chat_template", "{{ 1 + 'a' }}")
    with pytest.raises(UserError, match="rejects these messages: TypeError"):
        model.apply_chat_template([{"role": "user", "content": "a"}])


def test_long_text_is_scored_in_windows(team):
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(list("abcdef0123"), 300))
    (found,) = ColmLM(team=team).loglikelihood_rolling([request(text)])
    ids = team.tokenizer.encode(text)  # BOS and 300 more; a window holds 128 and predicts 127 of them
    total = marginal(team, ids[:128], 1) + marginal(team, ids[127:255], 1)
    total += marginal(team, ids[-128:], 128 - 46)  # the last window has full context
    assert found == pytest.approx(total, abs=1e-3)


def test_generation_settings_are_used(team):
    model = ColmLM(team=team, threshold=0.5)
    settings = [
        {"until": ["zz"], "max_gen_toks": 9, "do_sample": False, "temperature": 0.7},
        {"until": "a", "max_gen_toks": 9},
        {"do_sample": True, "temperature": 1.5, "top_k": 5, "max_new_tokens": 9},
    ]
    found = model.generate_until([request("abc1", kind) for kind in settings])
    options = {"threshold": 0.5, "max_new_tokens": 9}
    for text, kind in zip(found, ({"stop": ["zz"]}, {"stop": ["a"]}, {"temperature": 1.5, "top_k": 5})):
        assert text == team.generate(["abc1"], **options, **kind)[0].text
    assert found[2] != found[0]
    assert "a" not in found[1]
    with pytest.raises(UserError, match="generation_kwargs: colm_jax has no setting num_beams"):
        model.generate_until([request("abc1", {"num_beams": 4})])


@pytest.mark.parametrize(
    "given, settings",
    [
        ({"until": None, "top_p": None}, {"stop": [], "max_new_tokens": 256, "top_p": 1.0}),
        ({"until": []}, {"stop": []}),
        ({"until": ""}, {"stop": []}),
        ({"until": ["a", "", "b"]}, {"stop": ["a", "b"]}),
        ({"until": ("a",), "max_gen_toks": "24"}, {"stop": ["a"], "max_new_tokens": 24}),
        ({"max_gen_toks": 9, "max_new_tokens": 9.0, "temperature": "0.5"}, {"max_new_tokens": 9, "temperature": 0.5}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
    ],
)
def test_generation_settings_of_the_harness_are_parsed(given, settings):
    assert settings.items() <= _generation(given, 256).items()


@pytest.mark.parametrize(
    "given, said",
    [
        ({"until": 3}, "until must be a string or a list of strings, got 3"),
        ({"until": ["a", None]}, "until must be"),
        ({"max_gen_toks": "many"}, "max_gen_toks must be a whole number, got 'many'"),
        ({"max_gen_toks": 2.5}, "max_gen_toks must be a whole number"),
        ({"max_gen_toks": 9, "max_tokens": 8}, "set different lengths"),
        ({"temperature": [1]}, "temperature must be a number"),
        ({"top_k": float("inf")}, "top_k must be a whole number"),
    ],
)
def test_invalid_generation_setting_is_an_error(given, said):
    with pytest.raises(UserError, match=f"generation_kwargs: .*{said}"):
        _generation(given, 256)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({}, "needs base=MODEL"),
        ({"base": "x", "temprature": 1}, "has no argument temprature"),
        ({"base": "x", "device": "cuda:1"}, "--device cuda:1"),
        ({"base": "x", "batch_size": "many"}, "--batch_size many"),
        ({"base": "x", "mesh": "1,2"}, "mesh=1,2: must be three whole numbers"),
    ],
)
def test_invalid_model_argument_is_an_error(arguments, said):
    with pytest.raises(UserError, match=re.escape(said)):
        ColmLM(**arguments)


def gsm8k(directory: Path, lines) -> TaskManager:
    """Return the harness's gsm8k task with its prompts and filters, on a local file, without examples."""
    theirs = Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml"
    data = directory / "test.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "local.yaml").write_text(
        f"include: {theirs}\ntask: local_gsm8k\ntag: null\ndataset_path: json\ndataset_name: null\nnum_fewshot: 0\n"
        f"training_split: null\nfewshot_split: null\ntest_split: test\n"
        f"dataset_kwargs:\n  data_files:\n    test: {data}\n  cache_dir: {directory / 'cache'}\n"
    )
    return TaskManager(include_path=str(directory), include_defaults=False)


class Replay(LM):
    """A model with given answers."""

    def __init__(self, texts):
        super().__init__()
        self.texts = texts

    def generate_until(self, requests, disable_tqdm=False):
        return [self.texts[request.doc["question"]] for request in requests]

    def loglikelihood(self, requests):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


def test_gsm8k_grades_equal_those_of_the_harness(shared, tmp_path):
    lines = [json.loads(line) for line in (shared / "data/gsm8k/test.jsonl").read_text().splitlines()][:300]
    lines += [{"question": f"more {i}", "answer": f"so\n#### {n}"} for i, n in enumerate(("-10", "0", "1,450,000"))]
    texts = {}
    for i, line in enumerate(lines):
        reasoning, _, number = line["answer"].rpartition("#### ")
        value = int(number.replace(",", ""))
        changed = (number, str(value), str(-value), f"{value:,}", str(value + 1), str(value * 10), number + ".")
        texts[line["question"]] = f"{reasoning}#### {changed[i % 7]}"
    manager = gsm8k(tmp_path, lines)
    found = lm_eval.simple_evaluate(Replay(texts), tasks=["local_gsm8k"], task_manager=manager, bootstrap_iters=0)
    predictions = tmp_path / "p.jsonl"
    predictions.write_text("".join(json.dumps({"text": texts[line["question"]]}) + "\n" for line in lines))
    ours = evaluate_files("gsm8k", predictions, tmp_path / "test.jsonl")
    assert found["results"]["local_gsm8k"]["exact_match,strict-match"] == ours["accuracy"]
    assert 0.5 < ours["accuracy"] < 0.6
    samples = [s for s in found["samples"]["local_gsm8k"] if s["filter"] == "strict-match"]
    by_answer = {sample["doc"]["question"]: bool(sample["exact_match"]) for sample in samples}
    assert [by_answer[line["question"]] for line in lines] == ours["by_answer"]


def test_colm_lm_eval_equals_colm_generate_and_evaluate(models, team, tmp_path, capsys):
    questions = [f"{i}a{i}b{i * i}" for i in range(12)]
    prompts = [f"Question: {question}\nAnswer:" for question in questions]
    options = {"threshold": 0.5, "max_new_tokens": 24, "stop": ["Question:", "</s>", "<|im_end|>"]}
    texts = [answer.text for answer in team.generate(prompts, **options)]
    numbers = [re.findall("[0-9]+", text)[-1:] or ["0"] for text in texts]
    lines = [
        {"question": question, "answer": f"#### {number if i % 3 else '9' + number}"}
        for i, (question, (number,)) in enumerate(zip(questions, numbers))
    ]
    gsm8k(tmp_path, lines)
    arguments = ["--model", "colm_jax", "--model_args", f"base={models[0]},expert={models[1]},threshold=0.5"]
    arguments += ["--tasks", "local_gsm8k", "--include_path", str(tmp_path), "--batch_size", "4"]
    arguments += ["--gen_kwargs", "max_gen_toks=24", "--output_path", str(tmp_path / "out"), "--log_samples"]
    assert main(["lm_eval", *arguments]) == 0
    (result,) = (tmp_path / "out").rglob("results_*.json")
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    found = [sample for sample in found if sample["filter"] == "flexible-extract"]
    assert [sample["resps"][0][0] for sample in found] == texts
    grades = json.loads(result.read_text())["results"]["local_gsm8k"]
    assert json.loads(result.read_text())["config"]["likelihood"] == "the team's marginal"
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ours = evaluate_files("gsm8k", tmp_path / "p.jsonl", tmp_path / "test.jsonl")
    assert grades["exact_match,flexible-extract"] == ours["accuracy"]
    assert 0.3 < ours["accuracy"] < 1
