"""Training lowers its objective, resumes to the same bits, and says where it broke."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

from colm_jax.checkpoints.team import make_gate
from colm_jax.data.records import Example, Examples
from colm_jax.errors import Preempted, UserError
from colm_jax.models.gate import Gate
from colm_jax.parallel import make_mesh
from colm_jax.scoring import score_examples
from colm_jax.settings.training import Lora, Training
from colm_jax.training.step import ScoredBatch, batch_loss
from colm_jax.training.trainer import Input, _traced, train
from tests.models.mixed import mixed_decoder
from tests.scoring.test_scorer import texts
from tests.tiny import tiny_decoder

SETTINGS = Training(learning_rate=3e-3, batch_size=4, epochs=3, checkpoint_every=4)
SETTINGS_OF_ONE_EPOCH = dataclasses.replace(SETTINGS, epochs=1, objective="sft")


def run(
    directory,
    settings=SETTINGS,
    report=lambda *a: None,
    kernel=None,
    mesh=None,
    dtype="float32",
    online=False,
    alone=False,
):
    examples = texts(22)
    base, expert = tiny_decoder(dtype), tiny_decoder(seed=1)
    if alone:
        return train(base, Gate(32, 0), examples, None, [], settings, directory, report, mesh=mesh)
    inputs = settings.gate_inputs
    gate = Gate(32, 1, inputs) if kernel is None else make_gate(kernel, inputs)
    scores = (None, []) if online else (score_examples(base, examples), [score_examples(expert, examples)])
    experts = [expert] if online else []
    return train(base, gate, examples, *scores, settings, directory, report, mesh=mesh, experts=experts)


def run_until(step, directory, *settings, **options):
    """A run that is stopped behind a step."""

    class Stopped(Exception):
        pass

    def report(done, steps, values):
        if done == step:
            raise Stopped

    with pytest.raises(Stopped):
        run(directory, *settings, report=report, **options)


def leaves(team):
    return [np.asarray(leaf) for module in team for leaf in jax.tree.leaves(nnx.state(module))]


def metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", ["marginal", "em", "sft", "weak"])
def test_every_objective_falls(tmp_path, objective):
    run(tmp_path, dataclasses.replace(SETTINGS, objective=objective, epochs=8))
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert len(losses) == 44
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.05


def test_em_and_marginal_take_the_same_steps(tmp_path):
    one = run(tmp_path / "marginal", dataclasses.replace(SETTINGS, objective="marginal"))
    two = run(tmp_path / "em", dataclasses.replace(SETTINGS, objective="em"))
    for a, b in zip(leaves(one), leaves(two)):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_a_stopped_run_ends_in_the_same_bits(tmp_path):
    whole = leaves(run(tmp_path / "whole"))
    for at in (3, 4, 11):
        directory = tmp_path / f"stopped-{at}"
        run_until(at, directory)
        again = leaves(run(directory))
        assert all(np.array_equal(a, b) for a, b in zip(whole, again))
        assert metrics(directory) == metrics(tmp_path / "whole")


SCRIPT = (
    "import sys, pathlib, numpy as np; from tests.training.test_trainer import *\n"
    "out = pathlib.Path(sys.argv[1]); result = leaves(run(out, report=lambda s, n, m: print(s, flush=True)))\n"
    "np.savez(out / 'result.npz', *result)"
)


def in_a_process(directory, signals=()):
    """Trains in a process that is sent each (step, signal); its exit status."""
    waiting = list(signals)
    command, environment = [sys.executable, "-c", SCRIPT, str(directory)], {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if waiting and int(line) == waiting[0][0]:
                process.send_signal(waiting.pop(0)[1])
    assert not waiting
    return process.returncode


def assert_same_end(one, other):
    with np.load(one / "result.npz") as whole, np.load(other / "result.npz") as stopped:
        assert set(whole) == set(stopped)
        assert all(np.array_equal(whole[name], stopped[name]) for name in whole)
    assert metrics(one) == metrics(other)


def test_a_killed_process_ends_in_the_same_bits(tmp_path):
    """Killed before the first checkpoint, and while one may be under way: resume is exact each time."""
    assert in_a_process(tmp_path / "whole") == 0
    for at in (2, 9):
        assert in_a_process(tmp_path / "killed", [(at, signal.SIGKILL)]) == -signal.SIGKILL
    assert in_a_process(tmp_path / "killed") == 0
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_sigterm_saves_the_step_under_way_and_stops(tmp_path):
    whole, directory, reported = leaves(run(tmp_path / "whole")), tmp_path / "stopped", []

    def report(step, steps, values):
        reported.append(step)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="after step 7, which is saved; rerun the same command") as stopped:
        run(directory, report=report)
    assert stopped.value.step == reported[-1] == 7
    assert signal.getsignal(signal.SIGTERM) is before
    reported.clear()
    again = leaves(run(directory, report=lambda step, *_: reported.append(step)))
    assert reported[0] == 8
    assert all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))
    assert metrics(directory) == metrics(tmp_path / "whole")


def test_a_checkpoint_half_written_is_not_taken_for_whole(tmp_path):
    run_until(9, tmp_path)
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == ["4", "8"]
    # What a kill leaves while step 12 is being written: Orbax's temporary name.
    shutil.copytree(tmp_path / "checkpoints/8", tmp_path / "checkpoints/12.orbax-checkpoint-tmp")
    next((tmp_path / "checkpoints/12.orbax-checkpoint-tmp").rglob("_METADATA")).unlink()
    steps = []
    run(tmp_path, report=lambda step, *_: steps.append(step))
    assert steps[0] == 9


def test_packed_rows_make_the_step_of_padded_ones(tmp_path, monkeypatch):
    """The same loss, the same gradient, in fewer rows."""
    whole = dataclasses.replace(ONE_STEP, packing=True)
    assert_same_step(monkeypatch, tmp_path, ONE_STEP, whole)
    rows, batch = Input.of(texts(22), None, [], whole, make_mesh(), 128).batch(0)
    assert len(batch.tokens) == len(rows) < 22
    assert sorted(number for row in rows for number in row) == list(range(22))


def lognormal_texts(count):
    lengths = np.clip(np.random.default_rng(0).lognormal(5.2, 0.5, count).astype(int), 2, 700)
    return Examples(tuple(Example(np.ones(n, np.int32), np.arange(n) > 0) for n in lengths.tolist()), 0)


@pytest.mark.parametrize(("accumulate", "ways"), [(1, 1), (4, 1), (16, 8)])
def test_packed_steps_have_the_texts_of_padded_ones_and_little_padding(accumulate, ways):
    examples, mesh = lognormal_texts(2000), make_mesh()
    settings = Training(batch_size=128, accumulate=accumulate)
    packed = Input.of(examples, None, [], settings, mesh, 2048, ways)
    padded = Input.of(examples, None, [], dataclasses.replace(settings, packing=False), mesh, 2048, ways)
    assert len(packed.steps) == len(padded.steps) == 32
    positions, shapes = 0, set()
    for step in range(32):
        rows, batch = packed.batch(step)
        texts = [{number for row in rows for number in row} for rows in (rows, padded.batch(step)[0])]
        assert texts[0] == texts[1]
        assert len(rows) % (settings.parts(len(rows)) * ways) == 0
        assert len(rows) // settings.parts(len(rows)) <= 128 // accumulate
        positions += batch.mask.size
        shapes.add(batch.mask.shape)
    assert len(shapes) <= 3
    assert positions <= (1.10 if ways == 1 else 1.25) * 2 * examples.lengths.sum()


def test_training_of_a_text_a_row_resumes_to_the_same_bits(tmp_path):
    settings = dataclasses.replace(SETTINGS, packing=False, checkpoint_every=2)
    whole = leaves(run(tmp_path / "whole", settings))
    run_until(3, tmp_path / "half", settings)
    assert all(np.array_equal(a, b) for a, b in zip(whole, leaves(run(tmp_path / "half", settings)), strict=True))


@pytest.mark.parametrize("objective", ["marginal", "em"])
@pytest.mark.parametrize("packing", [False, True])
def test_experts_that_score_in_the_step_give_what_their_scores_give(tmp_path, monkeypatch, objective, packing):
    settings = dataclasses.replace(ONE_STEP, objective=objective, packing=packing)
    assert_same_step(monkeypatch, tmp_path, settings, settings, online=True)


def test_the_times_of_steps_stand_apart_from_what_is_exact(tmp_path):
    run(tmp_path)
    steps = [line["step"] for line in metrics(tmp_path)]
    speed = [json.loads(line) for line in (tmp_path / "logs/speed.jsonl").read_text().splitlines()]
    assert [line["step"] for line in speed] == steps == list(range(1, 18))
    assert set(speed[0]) == {"step", "seconds", "tokens_per_second", "data_share"}
    shown = {"step", "loss", "expected_deferral", "responsibility_entropy", "gradient_norm", "positions"}
    assert set(metrics(tmp_path)[0]) == shown
    assert all(0 < line["responsibility_entropy"] <= np.log(2) for line in metrics(tmp_path))
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))


def test_a_trace_of_chosen_steps(tmp_path):
    """In a process of its own: the profiler crashes where libtpu is loaded and no TPU is there (as by tests/plan)."""
    script = (
        "import pathlib, sys; from tests.training.test_trainer import *\n"
        "train(tiny_decoder(), Gate(32, 1), texts(22), None, [], SETTINGS_OF_ONE_EPOCH, pathlib.Path(sys.argv[1]),"
        " profile_steps=(2, 3))"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=True)
    assert list((tmp_path / "logs").rglob("*.xplane.pb"))


def test_a_loss_that_is_not_finite_names_step_and_examples(tmp_path):
    with pytest.raises(UserError, match=r"at step 1, examples \[.* lines in the data\); there is no checkpoint yet"):
        run(tmp_path, kernel=np.full((32, 1), np.nan, np.float32))


@pytest.mark.parametrize(
    "field, value",
    [("objective", "mle"), ("trainable", "head"), ("batch_size", 0), ("epochs", 1.5), ("learning_rate", -1.0)],
)
def test_bad_settings_name_themselves(field, value):
    with pytest.raises(UserError, match=field):
        Training(**{field: value})


def test_lora_moves_only_its_own_matrices_and_comes_back_merged(tmp_path):
    settings = dataclasses.replace(
        SETTINGS, trainable="lora", epochs=8, lora=Lora(rank=4, modules="attention/(query|value)")
    )
    trained, _ = run(tmp_path, settings)
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.05
    before, after = (dict(nnx.to_flat_state(nnx.state(d))) for d in (tiny_decoder(), trained))
    assert set(before) == set(after)
    moved = {path for path in before if not np.array_equal(before[path][...], after[path][...])}
    assert moved == {("layers", "attention", name, "kernel") for name in ("query", "value")}


@pytest.mark.parametrize("trainable, alone", [("lora", False), ("lora", True), ("all", True)])
def test_lora_and_a_base_alone_resume_to_the_same_bits(tmp_path, trainable, alone):
    settings = dataclasses.replace(SETTINGS, trainable=trainable, objective="sft" if alone else "marginal")
    whole = leaves(run(tmp_path / "whole", settings, alone=alone))
    run_until(7, tmp_path / "half", settings, alone=alone)  # past the checkpoint of step 4
    resumed = []
    again = run(tmp_path / "half", settings, lambda step, *_: resumed.append(step), alone=alone)
    assert resumed[0] == 5
    for one, two in zip(whole, leaves(again), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_mixtures_correction_is_not_trained(tmp_path):
    base, examples = mixed_decoder("latent attention, two runs"), texts(8)
    settings = dataclasses.replace(SETTINGS_OF_ONE_EPOCH, weight_decay=0.5)
    scores = score_examples(base, examples)
    trained, _ = train(base, Gate(32, 1), examples, scores, [scores], settings, tmp_path)
    before, after = (dict(nnx.to_flat_state(nnx.state(each))) for each in (base, trained))
    kept = [path for path in before if np.array_equal(before[path][...], after[path][...])]
    assert [path[-1] for path in kept] == ["correction"]


def plain_steps(monkeypatch, rate):
    """Gradient descent in place of AdamW, which divides rounding by rounding where a gradient is all but zero."""
    monkeypatch.setattr("colm_jax.training.step.make_optimizer", lambda settings, steps: optax.sgd(rate))


# Of 22 texts, a text a row, the plain way: two rows are empty.
ONE_STEP = dataclasses.replace(SETTINGS, batch_size=24, epochs=1, packing=False)


def assert_same_step(monkeypatch, directory, one, other, **changes):
    """Two ways to take one step have the same loss and gradient (at rate 1 it is what the weights move by)."""
    plain_steps(monkeypatch, rate=1.0)
    a, b = run(directory / "a", one), run(directory / "b", other, **changes)
    (first,), (second,) = metrics(directory / "a"), metrics(directory / "b")
    assert second == pytest.approx(first, rel=1e-5)
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("objective", ["marginal", "em", "sft", "weak"])
def test_parts_of_a_batch_make_the_step_of_the_whole(tmp_path, monkeypatch, objective):
    settings = dataclasses.replace(ONE_STEP, objective=objective)
    assert_same_step(monkeypatch, tmp_path, settings, dataclasses.replace(settings, accumulate=4))


def test_parts_of_packed_rows_make_the_step_of_the_whole(tmp_path, monkeypatch):
    parts = dataclasses.replace(ONE_STEP, accumulate=8, packing=True)
    assert 1 < parts.parts(len(Input.of(texts(22), None, [], parts, make_mesh(), 128).batch(0)[0])) < 8
    assert_same_step(monkeypatch, tmp_path, ONE_STEP, parts)


@pytest.mark.parametrize("sizes", [(4, 1, 1), (1, 4, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("objective", ["marginal", "em", "sft", "weak"])
def test_a_mesh_trains_as_one_device_does(tmp_path, monkeypatch, objective, sizes):
    settings = dataclasses.replace(ONE_STEP, objective=objective)
    spread = dataclasses.replace(settings, accumulate=6, packing=True)
    assert_same_step(monkeypatch, tmp_path, settings, spread, mesh=make_mesh(*sizes))


def test_lora_trains_on_a_mesh_too(tmp_path, monkeypatch):
    settings = dataclasses.replace(ONE_STEP, trainable="lora", lora=Lora(rank=4))
    spread = dataclasses.replace(settings, accumulate=2)
    assert_same_step(monkeypatch, tmp_path, settings, spread, mesh=make_mesh(1, 4, 2))


def test_each_device_reads_its_own_texts_of_a_part(tmp_path, monkeypatch):
    parts = []

    def look(decoder, gate, batch, *rest):
        jax.debug.inspect_array_sharding(
            batch.tokens, callback=lambda split: parts.append(split.shard_shape(batch.tokens.shape)[0])
        )
        return batch_loss(decoder, gate, batch, *rest)

    monkeypatch.setattr("colm_jax.training.step.batch_loss", look)
    run(tmp_path, dataclasses.replace(ONE_STEP, accumulate=2), mesh=make_mesh(2, 2, 2))
    assert set(parts) == {24 // 2 // 4}


def test_parameters_and_optimizer_are_split_over_the_mesh(tmp_path, monkeypatch):
    found, save = {}, ocp.training.Checkpointer.save_pytree_async

    def look(self, step, state):
        for part in ("params", "optimizer"):
            leaves = [leaf for leaf in jax.tree.leaves(state[part]) if leaf.ndim]
            assert all(leaf.dtype == jnp.float32 for leaf in leaves)
            found[part] = Counter((leaf.shape, leaf.addressable_shards[0].data.shape) for leaf in leaves)
        return save(self, step, state)

    monkeypatch.setattr(ocp.training.Checkpointer, "save_pytree_async", look)
    run(tmp_path, dataclasses.replace(SETTINGS, epochs=1), mesh=make_mesh(1, 4, 2), dtype="bfloat16")
    parts = found["params"]
    assert parts[(2, 32, 48), (2, 8, 24)] == 2  # gate and up of the feed-forward layers
    assert parts[(32, 1), (8, 1)] == 1  # the gate
    assert found["optimizer"] == parts + parts  # Adam's two moments


def test_a_checkpoint_goes_on_on_another_mesh(tmp_path, monkeypatch):
    plain_steps(monkeypatch, rate=0.01)
    settings = dataclasses.replace(SETTINGS, batch_size=8, checkpoint_every=3)
    whole = leaves(run(tmp_path / "whole", settings))
    run_until(4, tmp_path / "moved", settings, mesh=make_mesh(1, 4, 2))
    steps = []
    moved = leaves(run(tmp_path / "moved", settings, lambda step, *_: steps.append(step), mesh=make_mesh(2, 1, 1)))
    assert steps[0] == 4
    for x, y in zip(whole, moved, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_computed_again_changes_nothing(tmp_path, monkeypatch, remat):
    assert_same_step(monkeypatch, tmp_path, ONE_STEP, dataclasses.replace(ONE_STEP, remat=remat))


def test_layers_that_keep_less_need_less_memory():
    graph, state = nnx.split((tiny_decoder(depth=8), Gate(32, 1)))
    shape = (8, 64)
    experts, labels = np.zeros((*shape, 1), np.float32), np.zeros((*shape, 1), bool)
    batch = ScoredBatch(np.zeros((8, 65), np.int32), np.ones(shape, bool), experts, labels)

    def temporaries(remat):
        def loss(state):
            return batch_loss(*nnx.merge(graph, state), batch, Training(remat=remat))[0]

        return jax.jit(jax.grad(loss)).lower(state).compile().memory_analysis().temp_size_in_bytes

    everything, products, inputs = map(temporaries, ("none", "dots", "full"))
    assert inputs < products < everything
    assert inputs < 0.5 * everything


def test_steps_too_small_for_bfloat16_add_up(tmp_path):
    """At this rate no single step moves a bfloat16 weight of size 1, and 66 steps together do."""
    settings = dataclasses.replace(
        SETTINGS, objective="sft", learning_rate=2e-4, schedule="constant", epochs=11, checkpoint_every=100
    )
    decoder, _ = run(tmp_path, settings, dtype="bfloat16")
    scale = decoder.layers.feed_forward_norm.scale[...]
    assert scale.dtype == jnp.bfloat16
    spacing = 2.0**-8  # of bfloat16 below 1
    assert settings.learning_rate < spacing / 4  # half the spacing would be needed to move
    assert float(jnp.mean(scale != 1)) > 0.2


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_size": 6, "accumulate": 4}, "batch_size 6 must be a multiple of Training.accumulate 4"),
        ({"remat": "some"}, "remat must be one of none, dots, full"),
        ({"accumulate": 0}, "accumulate"),
    ],
)
def test_bad_parts_name_themselves(settings, message):
    with pytest.raises(UserError, match=message):
        Training(**settings)


def test_a_batch_that_the_mesh_cannot_split_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"batch_size 4 must be a multiple of .*accumulate 1 times .* 8"):
        run(tmp_path, mesh=make_mesh(2, 4, 1))


@pytest.mark.parametrize(
    ("window", "first", "traced"),
    [
        ((2, 3), 1, (2, 3)),
        ((2, 30), 1, (2, 20)),
        ((2, 9), 5, (5, 9)),
        ((2, 3), 5, None),
        ((21, 30), 1, None),
        (None, 1, None),
    ],
)
def test_only_steps_that_run_are_traced(window, first, traced):
    assert _traced(window, first, 20) == (traced or (None, None))
