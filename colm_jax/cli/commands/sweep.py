"""`colm sweep`: many runs that differ in a few settings."""

import shlex
from pathlib import Path
from typing import Any

from colm_jax.cli.configuration import make_run
from colm_jax.cli.flags import Flags, Parser, given, out_flag, setting_flags
from colm_jax.errors import UserError
from colm_jax.settings.sweep import Sweep

DESCRIPTION = (
    "Many runs that differ in a few settings (Sweep.grid, points, random): stages in common are computed once, "
    "finished trials are not run again, results go to DIR/results.csv and DIR/report."
)
EXAMPLE = (
    "colm sweep --gin_file configs/sweeps/demo_methods.gin --out SWEEP --parallel 2\n"
    "         colm sweep --gin_file configs/sweeps/demo_methods.gin --out SWEEP --commands > trials.txt"
)


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    out_flag(parser, text="of results, trials and their stages")
    setting_flags(parser, Sweep, "parallel")
    text = "print the command of each trial, to be run as a job of a cluster; afterwards, this command collects"
    parser.add_argument("--commands", action="store_true", help=text)
    parser.add_argument("--trial", metavar="NAME", help="run this trial alone, and write no results but its own")


def run(flags: Flags) -> dict[str, Any] | None:
    """Run the trials, after all of them have been validated."""
    from colm_jax.storage import path_of
    from colm_jax.sweep.runner import InputHashes
    from colm_jax.sweep.sweep import run_sweep, run_trial
    from colm_jax.sweep.trials import make_trials

    files, bindings = flags.gin
    flags.bindings.bind("Sweep", **given(vars(flags), Sweep))
    settings, out = flags.bindings.make(Sweep), Path(flags.out)
    trials = make_trials(settings, [path_of(file).parent for file in files])
    if flags.trial is not None:
        trials = [trial for trial in trials if trial.name == flags.trial]
        if not trials:
            raise UserError(f"--trial {flags.trial}: no such trial; --commands lists them")
    if flags.commands:
        gin = [*(f"--gin_file={file}" for file in files), *(f"--gin.{binding}" for binding in bindings)]
        for trial in trials:
            print(shlex.join(["colm", "sweep", *gin, "--out", flags.out, "--trial", trial.name]))
        return None
    hashes = InputHashes()
    states = [_state_of(trial, files, bindings, out, hashes) for trial in trials]
    if flags.trial is not None:
        return run_trial(states[0], settings)
    return run_sweep(states, settings, out, " ".join(Path(file).stem for file in files) or "sweep")


def _state_of(trial: Any, files: list[str], bindings: list[str], out: Path, hashes: Any) -> Any:
    """Return the state of a trial, validated, with the hash of its settings and of what it reads.

    Raises:
      UserError: naming the trial: settings that no run could have.
    """
    from colm_jax.settings.gin_edge import read
    from colm_jax.sweep.runner import TrialState, trial_command, trial_key

    try:
        held = read([*files, *map(str, trial.files)], [*bindings, *trial.bindings])
        config = make_run(held)
    except UserError as error:
        raise UserError(f"trial {trial.name}: {error}") from None
    command = trial_command(trial, files, bindings, out)
    return TrialState(trial, out / "trials" / trial.name, trial_key(held.text(), hashes.of(config)), command)
