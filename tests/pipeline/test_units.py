"""A run by units: guests with the base's tokenizer equal resident experts, those with their own go end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from colm_jax import CoLM
from colm_jax.calibration.threshold import calibrate, source_of
from colm_jax.checkpoints.outline import outline_team
from colm_jax.data.records import Examples
from colm_jax.data.tokens import counts, open_tokens, tokenise
from colm_jax.data.units import TextView, encode_units
from colm_jax.decoding.requests import Generation
from colm_jax.errors import UserError
from colm_jax.evaluation.mixture import bits_per_byte, fit_mixture, mixture_of
from colm_jax.objectives import marginal_nll
from colm_jax.pipeline.files import write_answers
from colm_jax.pipeline.run import run_pipeline
from colm_jax.scoring import NEVER
from colm_jax.settings.calibration import Calibration
from colm_jax.settings.generation import GenerationSettings
from colm_jax.settings.run import RunConfig
from colm_jax.settings.training import Training
from tests.tiny import write_team

RECORDS = [
    {"text": "One day, Tom had a red car. He said, “Wow!”"},
    {"prompt": "Once upon a time", "completion": ", there was a little girl named Lily."},
    {"prompt": "Tim saw", "completion": " a big dog.", "expert_prompt": "A story. Tim saw"},
    {"text": "They went to the park and played."},
]


@pytest.fixture(scope="module")
def models(shared):
    names = ("babyllama-105", "babyllama-361", "stories260k")
    return [str(shared / "models" / name) for name in names]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def places(records):
    return [(f"record {i}", record) for i, record in enumerate(records)]


@pytest.fixture(scope="module")
def guest_team(models, tmp_path_factory):
    base, _, other = models
    return CoLM.from_pretrained(write_team(tmp_path_factory.mktemp("team") / "team", Path(base), Path(other)), [other])


def test_a_pair_with_one_tokenizer_scores_as_guests_as_it_does_resident(models, tmp_path):
    base, expert, _ = models
    base = write_team(tmp_path / "team", Path(base), Path(expert))
    resident = CoLM.from_pretrained(base, [expert]).score(RECORDS)
    guests = CoLM.from_pretrained(base, [expert], spans="tokens")
    assert guests.kinds == ("guest",)
    losses = []
    for one, other in zip(resident, guests.score(RECORDS), strict=True):
        assert one.spans is None and other.spans is None
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.is_argmax[one.mask], other.is_argmax[one.mask])
        np.testing.assert_allclose(one.unit_log_probs, other.unit_log_probs, atol=1e-5)
        np.testing.assert_allclose(one.gate_logits, other.gate_logits, atol=1e-5)
        arguments = [(s.gate_logits, s.base_log_prob, s.expert_log_probs, s.mask) for s in (one, other)]
        losses.append([float(marginal_nll(*(x[None] for x in a))[0]) for a in arguments])
    np.testing.assert_allclose(*np.array(losses).T, rtol=1e-5)


def test_experts_score_behind_their_own_view_of_the_prompt(models):
    base, expert, _ = models
    plain = {"prompt": "A story. Tim saw", "completion": " a big dog."}
    for spans in ("auto", "tokens"):
        team = CoLM.from_pretrained(base, [expert], spans=spans)
        own, alike, other = team.score([RECORDS[2], plain, {**plain, "prompt": "Tim saw"}])
        np.testing.assert_allclose(own.unit_log_probs[:, 1], alike.unit_log_probs[:, 1], atol=1e-5)
        np.testing.assert_allclose(own.unit_log_probs[:, 0], other.unit_log_probs[:, 0], atol=1e-5)
        assert np.abs(own.unit_log_probs[:, 1] - other.unit_log_probs[:, 1]).max() > 0.1


def test_a_span_team_scores_by_spans(guest_team):
    text, pair, viewed, _ = guest_team.score(RECORDS)
    for scored in (text, pair, viewed):
        count = len(scored.spans)
        assert scored.mask[scored.spans].all()
        assert scored.expert_log_probs.shape == (count, 1) and scored.is_argmax.shape == (count, 2)
        assert scored.base_log_prob.shape == scored.mask.shape
        assert (scored.unit_log_probs[scored.unit_has_text] < 0.01).all()
    assert not pair.has_text[-1] and pair.has_text[:-1].all()  # the end of text, which the base alone writes
    assert pair.expert_log_probs[-1, 0] == NEVER and pair.unit_log_probs[-1, 0] > NEVER
    assert text.bytes == len(RECORDS[0]["text"].encode())
    # The base's sums telescope: what S adds to one span it takes from the next, but for the ends.
    end = len(pair.spans) - 1
    total = pair.base_log_prob[pair.mask].sum()
    assert abs(pair.unit_log_probs[: end + 1, 0].sum() - total) < 1e-3


def test_texts_on_disk_are_those_in_memory_for_every_model(models, tmp_path):
    data = write(tmp_path / "d.jsonl", RECORDS)
    for spans, experts in (("auto", models[1:2]), ("auto", models[2:]), ("text", models[1:])):
        outline = outline_team(models[0], experts, spans=spans)
        folder = tmp_path / f"{spans}-{len(experts)}-{outline.kinds[0]}"
        tokenise(data, outline.tokenizer, 128, folder, outline.allowed, units=outline.units)
        stored = open_tokens(folder)
        held = encode_units(places(RECORDS), outline.units.cut_at(128), "d")
        assert len(stored.views) == len(held.views) == len(experts)
        for one, other in zip((stored, *stored.views), (held, *held.views)):
            assert isinstance(one, Examples)
            assert [item.stored for item in one.items] == [item.stored for item in other.items]
            for name in ("length", "targets", "sha256"):
                np.testing.assert_array_equal(one.index[name], other.index[name])
            assert one.digest([0, 2]) == other.digest([0, 2])
        assert ("boundaries merged" in counts(folder)) == (outline.kinds[0] == "guest")


def test_texts_for_an_unknown_tokenizer_are_stored_as_spans(models, tmp_path):
    data = write(tmp_path / "d.jsonl", RECORDS[:3])
    outline = outline_team(models[0], ["http://localhost:1/v1#m"])
    tokenise(data, outline.tokenizer, 128, tmp_path / "tokens", outline.allowed, units=outline.units)
    (view,) = open_tokens(tmp_path / "tokens").views
    held = encode_units(places(RECORDS[:3]), outline.units, "d")
    assert list(view) == list(held.views[0]) and isinstance(view[2], TextView)
    assert view[2].prompt == {"prompt": "A story. Tim saw"} and "".join(view[2].spans) == " a big dog."


def test_the_best_constant_mixture_is_the_best_of_a_grid():
    rng = np.random.default_rng(0)
    models = np.log(rng.random((500, 2)) ** [[1.0, 2.0]])
    weights = fit_mixture(models)
    grid = [
        np.logaddexp(np.log(w) + models[:, 0], np.log1p(-w) + models[:, 1]).sum() for w in np.arange(0.005, 1, 0.005)
    ]
    assert abs(weights[0] - (0.005 * (1 + int(np.argmax(grid))))) < 0.01
    assert weights.sum() == pytest.approx(1)


def test_bits_per_byte_leave_out_ends_of_text_and_order_the_models(guest_team):
    scored = guest_team.score(RECORDS)
    found = bits_per_byte(scored, mixture_of(scored))
    base = sum(s.unit_log_probs[s.has_text, 0].astype(np.float64).sum() for s in scored)
    size = sum(len(r.get("text", r.get("completion")).encode()) for r in RECORDS)
    assert found["base"] == pytest.approx(-base / np.log(2) / size, rel=1e-6)
    assert found["oracle"] <= found["mixture"] <= min(found["base"], found["expert-1"])
    assert found["oracle"] <= found["team"]
    assert bits_per_byte(scored, None)["mixture"] is None


def run(models, tmp_path, name, spans, **settings):
    train, dev = write(tmp_path / "train.jsonl", RECORDS * 3), write(tmp_path / "dev.jsonl", RECORDS)
    until, experts = settings.pop("until", "train"), settings.pop("experts", (models[1],))
    config = RunConfig(base=models[0], experts=experts, data=str(train), dev=str(dev), spans=spans, **settings)
    return run_pipeline(config, tmp_path / name, until=until)


def test_a_run_with_guests_of_one_tokenizer_has_the_resident_runs_gate(models, tmp_path):
    kernels, facts = [], []
    for spans in ("auto", "tokens"):
        run(models, tmp_path, spans, spans, training=Training(trainable="gate"), until="calibrate")
        kernels.append(load_file(tmp_path / spans / "team/gate.safetensors")["gate.weight"])
        facts.append(json.loads((tmp_path / spans / "team/colm.json").read_text()))
    assert np.abs(kernels[0]).max() > 0
    np.testing.assert_allclose(*kernels, rtol=1e-2, atol=1e-2 * np.abs(kernels[0]).max())
    assert [f["spans"] for f in facts] == ["auto", "tokens"]
    assert [f["experts"][0]["kind"] for f in facts] == ["resident", "guest"]
    assert facts[0]["calibration"]["mixture"] == pytest.approx(facts[1]["calibration"]["mixture"], abs=1e-4)
    again = outline_team(tmp_path / "tokens/team")
    assert again.kinds == ("guest",) and again.shares_tokenizer


def test_experts_with_one_tokenizer_read_one_view_which_is_stored_once(models, tmp_path):
    """One that joins another reads the same, and no text is tokenised again."""
    run(models, tmp_path, "run", "auto", until="score")
    manifest, scores = (tmp_path / "run" / name for name in ("tokens/manifest.json", "scores"))
    before, alone = manifest.stat().st_mtime_ns, dict(np.load(scores / "expert-1/shard-00000.npz"))
    run(models, tmp_path, "run", "auto", experts=(models[0], models[1]), until="score")
    assert manifest.stat().st_mtime_ns == before
    with np.load(scores / "expert-2/shard-00000.npz") as second, np.load(scores / "base/shard-00000.npz") as base:
        assert all(np.array_equal(second[name], alone[name]) for name in alone)
        with np.load(scores / "expert-1/shard-00000.npz") as first:
            assert any(not np.array_equal(first[name], base[name]) for name in alone)  # it reads the view


def test_a_run_with_another_tokenizer_reports_bits_per_byte(models, tmp_path):
    settings = {"training": Training(trainable="gate"), "strategies": ("base",), "max_new_tokens": 8}
    finished = run([models[0], models[2]], tmp_path, "run", "auto", until="report", **settings)
    found = finished.evaluation["bits_per_byte"]
    assert list(found) == ["base", "expert-1", "mixture", "oracle", "team"]
    assert all(np.isfinite(value) and value > 0 for value in found.values())
    report = (tmp_path / "run/report/report.md").read_text()
    assert "bits per byte" in report and "best constant mixture" in report and "per-span oracle" in report
    assert "nats per span" in report and "boundaries merged" in report
    facts = json.loads((tmp_path / "run/team/colm.json").read_text())
    assert facts["spans"] == "text" and facts["experts"][0]["kind"] == "guest"
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("manifest.json")}
    run([models[0], models[2]], tmp_path, "run", "auto", until="report", **settings)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("manifest.json")}


def test_lora_trains_with_another_tokenizer(models, tmp_path):
    training = Training(trainable="lora", batch_size=8, epochs=1, learning_rate=1e-3)
    run([models[0], models[2]], tmp_path, "run", "auto", training=training)
    lines = [json.loads(line) for line in (tmp_path / "run/train/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(np.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in lines)


def test_online_scores_need_resident_experts_without_views(models, tmp_path):
    with pytest.raises(UserError, match="'online' needs resident experts, these are guest"):
        run([models[0], models[2]], tmp_path, "a", "auto", expert_scores="online", until="tokens")
    with pytest.raises(UserError, match=r"lines with views for the experts; Run\.expert_scores must be 'cached'"):
        run(models, tmp_path, "b", "auto", expert_scores="online", until="tokens")


def test_calibration_reads_decoded_answers_as_texts(guest_team, monkeypatch):
    records, settings = places(RECORDS[1:3]), Calibration()
    assert source_of(records, settings, resident=False) == "generations"
    assert source_of(records, settings, resident=True) == source_of(places(RECORDS), settings, False) == "texts"
    examples = encode_units(records, guest_team.units, "dev")
    texts = [(", there was a dog.", "eos"), (" a cat and", "length")]

    def generate(prompts, **settings):
        assert [set(prompt) for prompt in prompts] == [{"prompt"}, {"prompt", "expert_prompt"}]
        return [Generation([1], text, [3], [0], [0.5], [1.0], reason, 0) for text, reason in texts]

    monkeypatch.setattr(guest_team, "generate", generate)
    found = calibrate(guest_team, records, examples, None, settings)
    assert found["source"] == "generations"
    whole, part = guest_team.score([{**record, "completion": text} for (_, record), (text, _) in zip(records, texts)])
    logits = np.concatenate([whole.unit_gate_logits, part.unit_gate_logits[part.has_text]])[:, 0]
    rates = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert found["thresholds"]["0.3"] == pytest.approx(np.quantile(rates, 0.7), abs=1e-5)
    assert found["roc"]["positives"] + found["roc"]["negatives"] == len(rates)


def test_calibration_on_texts_knows_where_one_of_two_models_is_right(guest_team):
    records = places(RECORDS)
    examples = encode_units(records, guest_team.units, "dev")
    found = calibrate(guest_team, records, examples, None, Calibration())
    scored = guest_team.score_examples(examples)
    right = np.concatenate([s.is_argmax for s in scored])
    assert found["source"] == "texts"
    assert found["roc"]["positives"] == (right[:, 0] != right[:, 1]).sum()
    assert found["roc"]["negatives"] == right.all(axis=1).sum()
    assert found["curve"][0]["score"] == pytest.approx(right[:, 0].mean())  # η = 1: the base alone


@pytest.mark.parametrize("expert", ["babyllama-361", "stories260k"])
def test_experts_views_of_prompts_reach_the_file_of_answers(shared, tmp_path, expert):
    """Resident or guest."""
    team = CoLM.from_pretrained(shared / "models/babyllama-105", [shared / "models" / expert])
    record = {"prompt": "One day, Tom saw a", "expert_prompt": "Lily and her mom went to the"}
    settings = GenerationSettings(strategy="expert", max_new_tokens=12)
    places = ["f:1", "f:2"]
    lines = write_answers(
        tmp_path / "a.jsonl", team, [record, {"prompt": record["prompt"]}], [0, 1], settings, "", places
    )
    own, alike = team.generate([record, {"prompt": record["prompt"]}], settings=settings)
    assert [line["text"] for line in lines] == [own.text, alike.text]
    (shown,) = team.generate([{"prompt": record["expert_prompt"]}], settings=settings)
    assert own.text == shown.text != alike.text
