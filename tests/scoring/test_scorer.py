"""Scores against a direct log-softmax, whole shards kept on restart, other data refused."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

import colm_jax.scoring.passes as passes
from colm_jax.checkpoints.team import make_gate
from colm_jax.data.batches import collate
from colm_jax.data.records import Example, Examples
from colm_jax.data.tokens import open_tokens, tokenise
from colm_jax.errors import UserError
from colm_jax.parallel import make_mesh, on_mesh
from colm_jax.scoring import hidden_to_directory, load_scores, open_hidden, score_examples, score_to_directory
from colm_jax.text.tokenizer import load_tokenizer
from tests.tiny import run, tiny_decoder, write_tokenizer


def texts(count: int, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(count):
        n = int(rng.integers(2, 40))
        items.append(Example(rng.integers(0, 30, n).astype(np.int32), np.array([False] + [True] * (n - 1))))
    return Examples(tuple(items), 0)


def test_scores_equal_a_plain_pass_over_each_text():
    decoder, examples = tiny_decoder(), texts(11)
    kernel = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
    scores = score_examples(decoder, examples, gate=make_gate(kernel))
    for i, example in enumerate(examples.items):
        hidden, logits = run(decoder, example.ids[None])
        log_p = np.asarray(jax.nn.log_softmax(logits[0, :-1]))
        target = example.ids[1:]
        np.testing.assert_allclose(scores.log_prob[i], log_p[np.arange(len(target)), target], atol=1e-5)
        np.testing.assert_array_equal(scores.is_argmax[i], log_p.argmax(1) == target)
        assert scores.gate_logits[i].dtype == np.float32
        np.testing.assert_allclose(scores.gate_logits[i], np.asarray(hidden[0, :-1]) @ kernel, atol=1e-5)


@pytest.mark.parametrize("sizes", [None, (1, 2, 4)], ids=str)
def test_stored_rows_of_uncertainty_are_what_scoring_gives_the_gate(tmp_path, sizes):
    examples, allowed = texts(9), np.arange(32) < 30
    graph, state = nnx.split(tiny_decoder())
    decoder = nnx.merge(graph, state if sizes is None else on_mesh(state, make_mesh(*sizes)))
    kernel = np.random.default_rng(0).normal(size=(35, 2)).astype(np.float32)
    scores = score_examples(decoder, examples, allowed, make_gate(kernel, "uncertainty"))
    hidden_to_directory(decoder, examples, tmp_path, inputs="uncertainty", allowed=allowed)
    rows = np.concatenate(open_hidden(tmp_path, examples))
    np.testing.assert_allclose(rows @ kernel, np.concatenate(scores.gate_logits), atol=1e-4)
    plain = [run(tiny_decoder(), example.ids[None]) for example in examples.items]
    logits = np.concatenate([np.asarray(found[1][0, :-1, :30]) for found in plain])
    np.testing.assert_allclose(rows[:, :32], np.concatenate([found[0][0, :-1] for found in plain]), atol=1e-5)
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    second, first = np.sort(log_p, axis=1)[:, -2:].T
    entropy = -(np.exp(log_p) * log_p).sum(1)
    np.testing.assert_allclose(rows[:, 32:], np.stack([entropy, first, first - second], 1), atol=1e-4)


def test_a_restart_keeps_whole_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "SHARD_TEXTS", 8)
    decoder, examples = tiny_decoder(), texts(20)
    whole = score_to_directory(decoder, examples, tmp_path / "a")
    computed = []
    real = passes.Passes.shard
    monkeypatch.setattr(passes.Passes, "shard", lambda self, numbers: computed.append(numbers) or real(self, numbers))
    score_to_directory(decoder, examples, tmp_path / "a")
    assert computed == []
    (tmp_path / "a/shard-00001.npz").unlink()
    again = score_to_directory(decoder, examples, tmp_path / "a")
    assert computed == [range(8, 16)]
    for one, two in zip(whole.log_prob, again.log_prob):
        np.testing.assert_array_equal(one, two)


def changed(examples: Examples, number: int, what: str) -> Examples:
    """The same texts, but for one token id or one bit of the mask in one of them; no length differs."""
    items = list(examples.items)
    ids, targets = items[number].ids.copy(), items[number].targets.copy()
    if what == "id":
        ids[-1] ^= 1
    else:
        targets[-1] = False
    items[number] = Example(ids, targets)
    return Examples(tuple(items), examples.cut)


def test_scores_of_other_data_are_refused(tmp_path):
    score_to_directory(tiny_decoder(), texts(5), tmp_path)
    with pytest.raises(UserError, match="other data"):
        load_scores(tmp_path, texts(5, seed=1))


@pytest.mark.parametrize("what", ["id", "mask"])
def test_shards_of_texts_of_the_same_lengths_are_refused_by_name(tmp_path, monkeypatch, what):
    monkeypatch.setattr(passes, "SHARD_TEXTS", 8)
    decoder, examples = tiny_decoder(), texts(20)
    score_to_directory(decoder, examples, tmp_path / "scores")
    hidden_to_directory(decoder, examples, tmp_path / "hidden")
    for number, shard in ((0, 0), (11, 1), (19, 2)):
        other = changed(examples, number, what)
        with pytest.raises(UserError, match=f"scores/shard-0000{shard}.npz: was made from other data"):
            load_scores(tmp_path / "scores", other)
        with pytest.raises(UserError, match=f"hidden/shard-0000{shard}.npy: was made from other data"):
            open_hidden(tmp_path / "hidden", other)
        with pytest.raises(UserError, match=f"shard-0000{shard}.npz: was made from other data"):
            score_to_directory(decoder, other, tmp_path / "scores")  # nor are they taken up


def test_shards_that_are_missing_or_too_many_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "SHARD_TEXTS", 8)
    decoder, examples = tiny_decoder(), texts(20)
    fewer = Examples(examples.items[:16], 0)
    score_to_directory(decoder, examples, tmp_path / "scores")
    hidden_to_directory(decoder, examples, tmp_path / "hidden")
    for read, kind in ((load_scores, "scores"), (open_hidden, "hidden")):
        with pytest.raises(UserError, match=r"shard-00002.np[yz]: was made from other data"):
            read(tmp_path / kind, fewer)
        (last,) = (tmp_path / kind).glob("shard-00002.np*")
        last.unlink()
        read(tmp_path / kind, fewer)
        with pytest.raises(UserError, match=f"{kind}: its shards hold 16 texts, the data has 20"):
            read(tmp_path / kind, examples)
    (tmp_path / "hidden/shard-00001.json").unlink()
    with pytest.raises(UserError, match=r"shard-00001.npy: was made from other data"):
        open_hidden(tmp_path / "hidden", examples)


def test_scores_are_the_same_from_disk(tmp_path):
    """Texts that lie on disk are scored as those in memory are, and to the same bytes."""
    held, rows = texts(11), []
    for item in held.items:
        labels = [int(i) if target else -100 for i, target in zip(item.ids, item.targets)]
        rows.append(json.dumps({"input_ids": item.ids.tolist(), "labels": labels}) + "\n")
    (tmp_path / "d.jsonl").write_text("".join(rows))
    tokenise(tmp_path / "d.jsonl", load_tokenizer(write_tokenizer(tmp_path / "tokenizer")), 64, tmp_path / "tokens")
    for name, examples in (("held", held), ("stored", open_tokens(tmp_path / "tokens"))):
        score_to_directory(tiny_decoder(), examples, tmp_path / name / "scores")
        hidden_to_directory(tiny_decoder(), examples, tmp_path / name / "hidden")
    for file in ("scores/shard-00000.npz", "hidden/shard-00000.npy", "hidden/shard-00000.json"):
        assert (tmp_path / "held" / file).read_bytes() == (tmp_path / "stored" / file).read_bytes()


def test_hidden_states_on_disk_are_those_that_predict_what_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "SHARD_TEXTS", 8)
    decoder, examples = tiny_decoder(), texts(20)
    items = tuple(Example(e.ids, e.targets & (i >= 8)) for i, e in enumerate(examples.items))  # none in the first shard
    items = (*items[:9], Example(items[9].ids, items[9].targets & (np.arange(len(items[9].ids)) % 2 == 0)), *items[10:])
    examples = Examples(items, 0)
    hidden_to_directory(decoder, examples, tmp_path)
    shards = open_hidden(tmp_path, examples)
    assert len(shards[0]) == 0
    assert len(shards) == 3
    states = [np.asarray(run(decoder, e.ids[None])[0][0, :-1]) for e in items]
    expected = np.concatenate([rows[e.targets[1:]] for rows, e in zip(states, items)])
    np.testing.assert_allclose(np.concatenate(shards), expected, atol=1e-5)
    before = (tmp_path / "shard-00001.npy").read_bytes()
    (tmp_path / "shard-00001.npy").unlink()
    kept = (tmp_path / "shard-00002.npy").stat().st_mtime_ns
    hidden_to_directory(decoder, examples, tmp_path)
    assert (tmp_path / "shard-00001.npy").read_bytes() == before
    assert (tmp_path / "shard-00002.npy").stat().st_mtime_ns == kept
    with pytest.raises(UserError, match="other data"):
        open_hidden(tmp_path, texts(20))


def test_scores_lie_where_the_tokens_of_their_text_lie():
    examples = texts(3)
    scores = score_examples(tiny_decoder(), examples)
    log_prob, is_argmax = scores.aligned([[2, 0], []], (2, 95))
    batch = collate(examples.items, [[2, 0], []], 2, 96)
    n, m = len(scores.log_prob[2]), len(scores.log_prob[0])
    np.testing.assert_array_equal(log_prob[0, :n], scores.log_prob[2])
    np.testing.assert_array_equal(log_prob[0, n + 1 : n + 1 + m], scores.log_prob[0])
    np.testing.assert_array_equal(log_prob != 0, batch.mask)
    assert not (is_argmax & ~batch.mask).any()


@pytest.mark.parametrize("sizes", [(2, 4, 1), (1, 2, 4)], ids=str)
def test_a_mesh_scores_as_one_device_does(tmp_path, sizes):
    mesh, plain, examples = make_mesh(*sizes), tiny_decoder(), texts(20)
    graph, state = nnx.split(tiny_decoder())
    gate = make_gate(np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32))
    models = plain, nnx.merge(graph, on_mesh(state, mesh))
    one, other = (score_examples(model, examples, gate=gate) for model in models)
    for a, b in zip((*one.log_prob, *one.gate_logits), (*other.log_prob, *other.gate_logits), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_damaged_shard_is_named_and_made_again_where_it_is_deleted(tmp_path):
    examples, decoder = texts(4), tiny_decoder()
    score_to_directory(decoder, examples, tmp_path / "s")
    hidden_to_directory(decoder, examples, tmp_path / "h")
    scores, hidden = tmp_path / "s/shard-00000.npz", tmp_path / "h/shard-00000.npy"
    for shard, read in (
        (scores, lambda: load_scores(tmp_path / "s", examples)),
        (hidden, lambda: open_hidden(tmp_path / "h", examples)),
    ):
        whole = shard.read_bytes()
        for size in (0, 4, 60, len(whole) - 30):
            shard.write_bytes(whole[:size])
            with pytest.raises(UserError, match=rf"{shard.name}: damaged .*; delete it and rerun the same command"):
                read()
        shard.unlink()
    score_to_directory(decoder, examples, tmp_path / "s")
    hidden_to_directory(decoder, examples, tmp_path / "h")
    assert len(load_scores(tmp_path / "s", examples).log_prob) == 4
    assert len(open_hidden(tmp_path / "h", examples)) == 1


def test_log_probabilities_that_are_nan_are_an_error_and_leave_no_shard(tmp_path):
    decoder, examples = tiny_decoder(), texts(3)
    decoder.head[...] = decoder.head[...] * np.float32(np.nan)
    for score in (lambda: score_examples(decoder, examples), lambda: score_to_directory(decoder, examples, tmp_path)):
        with pytest.raises(UserError, match=r"^text 0: .* NaN: its activations overflow in float32; use float32, and"):
            score()
    assert not list(tmp_path.glob("*.npz"))
