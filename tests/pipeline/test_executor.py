"""The executor on toy stages: order, staleness by content, `until`, resuming, shared stages."""

import hashlib
from dataclasses import dataclass, field

import pytest

from colm_jax.errors import UserError
from colm_jax.pipeline.executor import Stage, StageContext, StageKey, run_stages, steps


@dataclass
class Toy:
    """What toy stages read."""

    text: str = "a"
    doubled: bool = True
    limit: int = 10
    worked: list[str] = field(default_factory=list)  # the stages that worked, in order


def hashed(text):
    return hashlib.sha256(text.encode()).hexdigest()


def write_letters(run: StageContext[Toy], directory):
    run.inputs.worked.append("letters")
    (directory / "letters").write_text(run.inputs.text.upper())


def write_copies(name):
    def write(run, directory):
        run.inputs.worked.append(name)
        (directory / "copy").write_text((run.directory("letters") / "letters").read_text() * 2)

    return write


def write_report(run, directory):
    run.inputs.worked.append("report")
    parts = [path.joinpath("copy").read_text() for path in (run.directory(n) for n in sorted(run.finished))]
    (directory / "report").write_text(" ".join(parts)[: run.inputs.limit])


STAGES = (
    Stage("letters", lambda run: StageKey({"text": hashed(run.inputs.text)}), write_letters),
    Stage("copies/one", lambda run: StageKey(run.digests("letters")), write_copies("one"), ("letters",), step="copy"),
    Stage(
        "copies/two",
        lambda run: StageKey(run.digests("letters")),
        write_copies("two"),
        needs=("letters",),
        applies=lambda inputs: inputs.doubled,
        step="copy",
    ),
    Stage(
        "report",
        lambda run: StageKey(run.digests("copies"), {"limit": run.inputs.limit}),
        write_report,
        needs=("copies",),
    ),
)


def test_stages_work_in_order_and_a_second_run_has_nothing_to_do(tmp_path, capsys):
    toy = Toy()
    finished = run_stages(STAGES, toy, tmp_path)
    assert toy.worked == ["letters", "one", "two", "report"]
    assert list(finished) == ["letters", "copies/one", "copies/two", "report"]
    assert (tmp_path / "report/report").read_text() == "AA AA"
    run_stages(STAGES, toy, tmp_path)
    assert toy.worked == ["letters", "one", "two", "report"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{name}: {what}" for what in ("done", "nothing to do") for name in finished]


def test_a_stage_is_redone_when_content_that_it_reads_differs(tmp_path):
    run_stages(STAGES, Toy(), tmp_path)
    limited = Toy(limit=4)
    run_stages(STAGES, limited, tmp_path)
    assert limited.worked == ["report"]
    assert (tmp_path / "report/report").read_text() == "AA A"
    changed = Toy(text="b", limit=4)
    run_stages(STAGES, changed, tmp_path)
    assert changed.worked == ["letters", "one", "two", "report"]
    same_letters = Toy(text="B", limit=4)  # another input, the same file: its manifest differs, so all is redone
    run_stages(STAGES, same_letters, tmp_path)
    assert same_letters.worked == ["letters", "one", "two", "report"]


def test_a_damaged_file_makes_its_stage_again_and_no_other(tmp_path):
    run_stages(STAGES, Toy(), tmp_path)
    (tmp_path / "copies/one/copy").write_text("damaged")
    toy = Toy()
    run_stages(STAGES, toy, tmp_path)
    assert toy.worked == ["one"]  # it writes what it wrote before, so that the report's input is the same
    assert (tmp_path / "copies/one/copy").read_text() == "AA"


def test_until_ends_after_the_last_stage_of_its_step(tmp_path):
    assert steps(STAGES) == ("letters", "copy", "report")
    toy = Toy()
    for step, stages in (("letters", ["letters"]), ("copy", ["letters", "one", "two"])):
        run_stages(STAGES, toy, tmp_path, until=step)
        assert toy.worked == stages
    with pytest.raises(UserError, match="until must be one of letters, copy, report, got 'copies/one'"):
        run_stages(STAGES, toy, tmp_path / "other", until="copies/one")
    assert not (tmp_path / "other").exists()


def test_a_stage_that_does_not_apply_is_missing_for_those_that_need_it(tmp_path):
    alone = Toy(doubled=False)
    finished = run_stages(STAGES, alone, tmp_path)
    assert alone.worked == ["letters", "one", "report"]
    assert "copies/two" not in finished and not (tmp_path / "copies/two").exists()
    assert (tmp_path / "report/report").read_text() == "AA"
    both = Toy()
    run_stages(STAGES, both, tmp_path)
    assert both.worked == ["two", "report"]


def test_an_interrupted_stage_resumes_with_its_files_and_no_earlier_stage_works_again(tmp_path):
    attempts = []

    def breaks_once(run, directory):
        attempts.append(sorted(path.name for path in directory.iterdir() if not path.name.startswith((".", "started"))))
        (directory / "first").write_text("1")
        if len(attempts) == 1:
            raise RuntimeError("power cut")
        (directory / "second").write_text("2")

    stages = (*STAGES[:3], Stage("report", lambda run: StageKey(run.digests("copies")), breaks_once, ("copies",)))
    toy = Toy()
    with pytest.raises(RuntimeError, match="power cut"):
        run_stages(stages, toy, tmp_path)
    run_stages(stages, toy, tmp_path)
    assert attempts == [[], ["first"]]
    assert toy.worked == ["letters", "one", "two"]
    assert not (tmp_path / "report/started.json").exists()


def test_runs_with_a_store_do_equal_stages_once(tmp_path):
    first, second = Toy(), Toy(limit=3)
    run_stages(STAGES, first, tmp_path / "a", store=tmp_path / "store")
    run_stages(STAGES, second, tmp_path / "b", store=tmp_path / "store")
    assert first.worked == ["letters", "one", "two", "report"]
    assert second.worked == ["report"]
    assert (tmp_path / "a/letters").is_symlink()
    assert (tmp_path / "a/letters").resolve() == (tmp_path / "b/letters").resolve()
    assert [(tmp_path / run / "report/report").read_text() for run in "ab"] == ["AA AA", "AA "]


def test_a_store_and_its_runs_are_on_disk(tmp_path):
    for out, store in (("gs://bucket/run", tmp_path), (tmp_path, "gs://bucket/store")):
        with pytest.raises(UserError, match="both must be on disk"):
            run_stages(STAGES, Toy(), out, store=store)


def test_a_stage_sees_the_stages_that_it_needs_and_no_others(tmp_path):
    seen = {}

    def look(run, directory):
        seen.update(finished=sorted(run.finished), has=run.has("report"))
        (directory / "x").write_text("x")

    last = Stage("last", lambda run: StageKey({}), look, needs=("copies", "letters"))
    run_stages((*STAGES, last), Toy(doubled=False), tmp_path)
    assert seen == {"finished": ["copies/one", "letters"], "has": False}


def test_on_finished_is_called_with_every_stage_done_or_not(tmp_path):
    for _ in range(2):
        seen = []
        run_stages(STAGES, Toy(), tmp_path, until="copy", on_finished=lambda stage, seen=seen: seen.append(stage.name))
        assert seen == ["letters", "copies/one", "copies/two"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (STAGES[1:], "copies/one needs letters, which no earlier stage is"),
        (STAGES[::-1], "report needs copies, which no earlier stage is"),
        ((*STAGES, STAGES[0]), "letters is declared twice"),
    ],
)
def test_declarations_out_of_order_are_an_error(tmp_path, stages, message):
    with pytest.raises(ValueError, match=message):
        run_stages(stages, Toy(), tmp_path)
    assert not list(tmp_path.iterdir())
