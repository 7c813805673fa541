"""Models, data and whole runs in a bucket equal those on disk, also after an interruption."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from safetensors.numpy import load

from colm_jax import CoLM
from colm_jax.cli.main import main
from colm_jax.errors import UserError
from colm_jax.pipeline.files import write_answers
from colm_jax.pipeline.stage import StageDirectory
from colm_jax.settings.generation import GenerationSettings
from colm_jax.storage import files_below, read_lines, write_text
from tests.checkpoints.gguf.write import write_tiny
from tests.jobs import end, until
from tests.pipeline.test_run import write_lines
from tests.storage.conftest import by_others
from tests.tiny import write_team

pytestmark = pytest.mark.usefixtures("unchecked_types")  # a path in a bucket is no pathlib.Path

# These depend on the location of the run and on the bucket's own hashes of its models.
_OF_ITS_PLACE = {"manifest.json", "colm.json", "README.md", "operative_config.gin"}
_OF_ITS_TIME = {"checkpoints", "logs"}


def put(source, target):
    """Upload a file or directory as another program does."""
    for name in files_below(source) if source.is_dir() else [""]:
        by_others(target / name, (source / name).read_bytes())
    return str(target)


def kept(directory):
    """Return the files of a run by name."""
    names = [name for name in files_below(directory) if not _OF_ITS_TIME & set(name.split("/"))]
    return {name: (directory / name).read_bytes() for name in names}


def assert_same(disk, bucket, rounded=frozenset()):
    one, other = kept(disk), kept(bucket)
    assert set(one) == set(other)
    other = {name: content.replace(b"gs://bucket/", b"") for name, content in other.items()}
    different = {name for name in one if one[name] != other[name] and not name.startswith("report/")}
    assert {name.rpartition("/")[2] for name in different} <= _OF_ITS_PLACE | rounded


@pytest.fixture
def inputs(tmp_path, tiny_model):
    """Return models and data on disk as flags; paths are relative to the test's directory."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh "), rng.integers(8, 40))) for _ in range(160)]
    write_lines(tmp_path / "train.jsonl", [{"text": text} for text in texts])
    write_lines(tmp_path / "dev.jsonl", [{"prompt": text[:5], "completion": text[5:]} for text in texts[:6]])
    tiny_model("base")
    tiny_model("expert", seed=1)
    return {"--base": "base", "--expert": "expert", "--data": "train.jsonl"}


def flags(inputs, place):
    return [word for flag, name in inputs.items() for word in (flag, str(place / name))]


TRAINING = ["--gin.Training.batch_size=8", "--gin.Training.learning_rate=1e-3", "--gin.Training.checkpoint_every=10"]


def test_run_in_bucket_equals_run_on_disk(tmp_path, bucket, inputs, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs |= {"--dev": "dev.jsonl"}
    for name in inputs.values():
        put(tmp_path / name, bucket / name)
    rest = [*TRAINING, "--gin.Run.max_new_tokens=8", "--gin.Run.strategies=('defer',)", "--task", "exact"]
    assert main(["run", *flags(inputs, tmp_path), "--out", str(tmp_path / "run"), *rest]) == 0
    command = ["run", *flags(inputs, bucket), "--out", str(bucket / "run"), *rest]
    assert main(command) == 0
    assert_same(tmp_path / "run", bucket / "run")
    steps = {int(name.split("/")[0]) for name in files_below(bucket / "run/train/checkpoints")}
    assert steps == {30, 40}  # the last two
    assert any(name.startswith("events.") for name in files_below(bucket / "run/train/logs"))
    assert len(read_lines(bucket / "run/train/logs/speed.jsonl")) == 40
    # The run is complete: no stage is repeated, and no file is read again to find that out.
    capsys.readouterr()
    assert main(command) == 0
    assert "done" not in (said := capsys.readouterr().err) and said.count("nothing to do") == 14
    # The team finds its expert by its address; the run is shown, and exported in both formats.
    facts = json.loads((bucket / "run/team/colm.json").read_text())
    assert facts["experts"][0]["model"] == str(bucket / "expert")
    team, same = CoLM.from_pretrained(bucket / "run/team"), CoLM.from_pretrained(tmp_path / "run/team")
    assert team.generate(["abc"])[0] == same.generate(["abc"])[0]
    assert main(["show", str(bucket / "run")]) == 0
    for form, place in (("colm", bucket), ("reference", bucket), ("colm", tmp_path)):
        out = place / f"exported-{form}"
        assert main(["export", "--run", str(bucket / "run"), "--out", str(out), "--format", form]) == 0
        assert CoLM.from_pretrained(out, experts=[bucket / "expert"]).generate(["abc"], threshold=0.5)
    assert main(["export", "--run", str(bucket / "run"), "--out", str(bucket / "exported-colm")]) == 2
    assert not (tmp_path / "gs:").exists()  # no address was treated as a path


def test_gin_files_are_read_from_the_bucket(bucket, capsys):
    by_others(bucket / "team.gin", b"Run.base = 'B'\nRun.experts = ('E',)\nRun.data = 'F'\n")
    by_others(bucket / "run.gin", b"include 'team.gin'\nTraining.epochs = 3\n")
    assert main(["config", "--gin_file", str(bucket / "run.gin")]) == 0
    printed = capsys.readouterr().out
    assert f"{bucket}/run.gin:2" in printed and f"{bucket}/team.gin:1" in printed
    assert main(["config", "--gin_file", str(bucket / "none.gin")]) == 2
    assert "none.gin: no such file" in capsys.readouterr().err


def test_two_processes_share_a_bucket_and_resume_after_a_kill(tmp_path, bucket, inputs, jobs):
    """Preempted machines lose their disks; their replacements have only the bucket."""
    for name in inputs.values():
        put(tmp_path / name, bucket / name)
    disk, there = tmp_path / "run", bucket / "run"
    command = ["train", *flags(inputs, bucket), *TRAINING]
    processes = jobs(command, there, 2)
    until(lambda: (there / "train/checkpoints/10/commit_success.txt").exists(), processes)
    for process in processes:
        process.kill()
    assert end(processes)[0] == [-signal.SIGKILL] * 2
    assert 10 <= len(read_lines(there / "train/metrics.jsonl")) < 40
    codes, outputs = end(jobs(command, there, 2))
    assert codes == [0, 0], outputs
    assert "scores/base: nothing to do" in outputs[0]
    done = [line["step"] for line in read_lines(there / "train/logs/speed.jsonl")]  # of both starts
    assert done.count(1) == 1 and max(done) == 40
    assert main(["train", *flags(inputs, tmp_path), *TRAINING, "--out", str(disk), "--mesh", "1,4,2"]) == 0
    # Devices of two processes sum scores and gradients in another order; the gate is fitted to the scores.
    scores = {"shard-00000.npz", "shard-00001.npz", "kernel.npy", "summary.json"}
    assert_same(disk, there, rounded={"metrics.jsonl", "model.safetensors", "gate.safetensors", *scores})
    for one, other in zip(*(read_lines(run / "train/metrics.jsonl") for run in (disk, there)), strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    assert (there / "scores/base/shard-00001.npz").exists()  # so both processes have written shards


def test_interrupted_generation_resumes_from_the_bucket(tmp_path, bucket, tiny_model, monkeypatch):
    team = CoLM.from_pretrained(write_team(tmp_path / "team", tiny_model("base"), tiny_model("expert", seed=1)))
    prompts, out = [{"prompt": "abcdefgh"[i:]} for i in range(6)], bucket / "answers.jsonl"
    asked, real = [], team.answers

    def answers(chosen, *rest, **settings):
        asked.append(len(chosen))
        for answer in real(chosen, *rest, **settings):
            yield answer
            if len(asked) == 1:  # once, after the first answer
                raise KeyboardInterrupt

    monkeypatch.setattr(team, "answers", answers)
    settings = GenerationSettings("defer", 0.5, batch_size=2)
    write = partial(write_answers, out, team, prompts, list("abcdef"), settings, "key")
    with pytest.raises(KeyboardInterrupt):
        write()
    assert not out.exists() and len((bucket / "answers.jsonl.part").read_text().splitlines()) == 2
    assert [line["id"] for line in write()] == list("abcdef")
    assert asked == [6, 5]
    assert read_lines(out)[0]["tokens"] == team.generate(prompts[:1])[0].tokens
    assert files_below(bucket) == ["answers.jsonl"]


def test_run_copied_to_the_bucket_is_not_repeated(tmp_path, bucket):
    """Other programs do not store this package's hashes."""
    disk, there = StageDirectory("s", tmp_path / "s"), StageDirectory("s", bucket / "s")
    assert disk.run({"data": "1"}, {}, lambda directory: write_text(directory / "a.txt", "a"))
    put(disk.directory, there.directory)
    assert not there.run({"data": "1"}, {}, lambda _: pytest.fail("it is done"))
    by_others(there.directory / "a.txt", b"b")
    assert there.run({"data": "1"}, {}, lambda directory: write_text(directory / "a.txt", "a"))


def test_weights_are_read_by_ranges_and_errors_name_the_address(tmp_path, bucket, tiny_model):
    model = tiny_model("model")
    put(model, bucket / "model")
    before = set(os.listdir(os.environ["COLM_CACHE"]))
    team, same = (CoLM.from_pretrained(base=place, experts=[]) for place in (bucket / "model", model))
    assert team.generate(["abc"], strategy="base") == same.generate(["abc"], strategy="base")
    (copied,) = {name for name in set(os.listdir(os.environ["COLM_CACHE"])) - before if not name.endswith(".lock")}
    (folder,) = (Path(os.environ["COLM_CACHE"]) / copied).iterdir()
    assert files_below(folder) == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    whole = (model / "model.safetensors").read_bytes()
    assert load(whole)
    for content in (b"", whole[:5], whole[:8], whole[:200], whole[:-1], b"\xff" * 50):
        by_others(bucket / "model/model.safetensors", content)
        with pytest.raises(UserError, match=r"gs://bucket/.*/model.safetensors: not a readable safetensors file"):
            CoLM.from_pretrained(base=bucket / "model", experts=[])
    (bucket / "model/model.safetensors").unlink()
    with pytest.raises(UserError, match=r"gs://bucket/.*: weights file is missing"):
        CoLM.from_pretrained(base=bucket / "model", experts=[])
    with pytest.raises(UserError, match="nothing in the bucket begins with it"):
        CoLM.from_pretrained(base=bucket / "none", experts=[])


def test_gguf_file_stays_in_the_bucket(tmp_path, bucket):
    file = write_tiny(tmp_path / "tiny.gguf", "llama", GGMLQuantizationType.Q8_0)
    put(file, bucket / "tiny.gguf")
    team, same = (CoLM.from_pretrained(base=place, experts=[]) for place in (bucket / "tiny.gguf", file))
    assert team.generate(["abc"], strategy="base") == same.generate(["abc"], strategy="base")
    copies = [path for path in Path(os.environ["COLM_CACHE"]).rglob("*") if path.is_file()]
    assert not [path for path in copies if path.name == "tiny.gguf"]
    by_others(bucket / "tiny.gguf", file.read_bytes()[:-4096])
    with pytest.raises(UserError, match=r"gs://bucket/.*/tiny\.gguf: not a readable GGUF file: tensor .* ends at byte"):
        CoLM.from_pretrained(base=bucket / "tiny.gguf", experts=[])


def test_sweep_demo_and_store_in_a_bucket_are_errors(tmp_path, bucket, capsys):
    for words in (
        ["demo", "--out", str(bucket)],
        ["sweep", "--gin_file", "configs/sweeps/demo_methods.gin", "--out", str(bucket)],
        ["run", "--base", "B", "--expert", "E", "--data", "F", "--out", str(tmp_path / "run"), "--store", str(bucket)],
    ):
        assert main(words) == 2
        assert "needs links and locks, which a bucket has not; name a path on disk" in capsys.readouterr().err
