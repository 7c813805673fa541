"""Declared stages, and the executor that brings a directory up to date with a sequence of them.

A stage is declared once, as data: its name, the stages it needs, what decides its result and the function that does its
work. The executor owns the rest: order, staleness, locks, resuming, shared stages and the progress lines.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from colm_jax import console
from colm_jax.errors import UserError
from colm_jax.pipeline.stage import StageDirectory, run_in_store
from colm_jax.storage import in_bucket, path_of

R = TypeVar("R")


@dataclass(frozen=True)
class StageKey:
    """What decides a stage's result: a stage is redone when any of it differs from its manifest."""

    inputs: Mapping[str, str]  # content hash of each thing that the stage reads, by name
    settings: Any = field(default_factory=dict)  # a dataclass or JSON values


@dataclass(frozen=True)
class StageContext(Generic[R]):
    """What a stage may read: the inputs of the run and the stages that it needs, no others."""

    inputs: R
    finished: Mapping[str, StageDirectory]  # by name; a needed stage that does not apply is missing

    def has(self, name: str) -> bool:
        """Return whether a needed stage applies."""
        return name in self.finished

    def directory(self, name: str) -> Path:
        """Return the directory of a needed stage."""
        return self.finished[name].directory

    def digests(self, *needs: str) -> dict[str, str]:
        """Return the digest of each stage under these needs by its name; stages that do not apply are left out."""
        return {name: stage.digest for need in needs for name, stage in self.finished.items() if _meets(name, need)}


@dataclass(frozen=True)
class Stage(Generic[R]):
    """The declaration of a stage."""

    name: str  # also of its directory, below that of the run
    key: Callable[[StageContext[R]], StageKey]
    work: Callable[[StageContext[R], Path], None]  # writes the stage's files; see `StageDirectory.run`
    needs: tuple[str, ...] = ()  # earlier stages that it reads; "scores" means every "scores/NAME"
    applies: Callable[[R], bool] = lambda inputs: True  # whether these inputs have such a stage
    step: str = ""  # the step of `until` that it belongs to; "": one of its own name

    @property
    def until(self) -> str:
        """The value of `until` that includes this stage."""
        return self.step or self.name


def steps(stages: Sequence[Stage[R]]) -> tuple[str, ...]:
    """Return the values that `until` may have, in order."""
    return tuple(dict.fromkeys(stage.until for stage in stages))


def run_stages(
    stages: Sequence[Stage[R]],
    inputs: R,
    out: str | Path,
    *,
    store: str | Path | None = None,
    until: str | None = None,
    on_finished: Callable[[StageDirectory], None] = lambda stage: None,
) -> dict[str, StageDirectory]:
    """Bring a directory up to date: do every stage that applies and is not done, in order.

    Args:
      stages: in order; each one follows the stages that it needs.
      inputs: passed to the stages.
      out: the directory; each stage has its own below it.
      store: where the stages are kept, for runs with stages in common: stages with equal keys are done once, and
        `out` holds links to them. None: in `out`.
      until: the last step to do (see `steps`); None: all.
      on_finished: called with each stage when it is done, also when there was nothing to do.

    Returns:
      The stages that are done, by name.

    Raises:
      UserError: no such step; a store with a bucket; as `StageDirectory.run`.
      ValueError: the declarations are wrong.
    """
    _check_order(stages)
    if store is not None and (in_bucket(store) or in_bucket(out)):  # before a bucket is asked
        raise UserError(f"store {store}, out {out}: shared stages are linked and locked; both must be on disk")
    out, store, last = path_of(out), None if store is None else path_of(store), len(stages)
    if until is not None:
        if until not in steps(stages):
            raise UserError(f"until must be one of {', '.join(steps(stages))}, got {until!r}")
        last = max(i for i, stage in enumerate(stages, start=1) if stage.until == until)
    finished: dict[str, StageDirectory] = {}
    for stage in stages[:last]:
        if not stage.applies(inputs):
            continue
        needed = {name: done for name, done in finished.items() if any(_meets(name, need) for need in stage.needs)}
        context = StageContext(inputs, needed)
        directory, key, work = StageDirectory(stage.name, out / stage.name), stage.key(context), stage.work
        if store is None:
            worked = directory.run(key.inputs, key.settings, partial(work, context))
        else:
            worked = run_in_store(directory, store, key.inputs, key.settings, partial(work, context))
        console.errors.print(f"[bold]{stage.name}[/]: {'done' if worked else 'nothing to do'}")
        finished[stage.name] = directory
        on_finished(directory)
    return finished


def _meets(name: str, need: str) -> bool:
    """Return whether a stage is the needed one, or one of several in the needed folder."""
    return name == need or name.startswith(f"{need}/")


def _check_order(stages: Sequence[Stage[R]]) -> None:
    """Raise ValueError for a name that is declared twice, or a need that no earlier stage meets."""
    names = [stage.name for stage in stages]
    for i, stage in enumerate(stages):
        if stage.name in names[:i]:
            raise ValueError(f"stage {stage.name} is declared twice")
        for need in stage.needs:
            if not any(_meets(name, need) for name in names[:i]):
                raise ValueError(f"stage {stage.name} needs {need}, which no earlier stage is")
