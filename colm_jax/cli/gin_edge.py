"""gin at the edge: settings classes that gin may bind, and the parsing of files and bindings.

The library takes plain typed arguments; only this file knows gin. A flag wins over a binding.
"""

from pathlib import Path
from typing import Any, TypeVar

import gin

from colm_jax.bench.config import DecodeBench, TrainBench
from colm_jax.calibration.threshold import Calibration
from colm_jax.decoding.correction import Correction
from colm_jax.errors import UserError
from colm_jax.models.lora import Lora
from colm_jax.pipeline.config import RunConfig
from colm_jax.training.config import Training
from colm_jax.training.gate_fit import GateInit

T = TypeVar("T")

_NAMES: dict[type, str] = {
    Training: "Training",
    Lora: "Lora",
    GateInit: "GateInit",
    Calibration: "Calibration",
    Correction: "Correction",
    RunConfig: "Run",
    TrainBench: "TrainBench",
    DecodeBench: "DecodeBench",
}
_BOUND = {kind: gin.external_configurable(kind, name) for kind, name in _NAMES.items()}


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Takes --gin_file F, --gin_file=F and --gin.NAME=VALUE out: (the rest, files, bindings)."""
    rest, files, bindings = [], [], []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--gin_file":
            try:
                files.append(next(waiting))
            except StopIteration:
                raise UserError("--gin_file: needs a file") from None
        elif argument.startswith("--gin_file="):
            files.append(argument.removeprefix("--gin_file="))
        elif argument.startswith("--gin."):
            if "=" not in argument:
                raise UserError(f"{argument}: a binding looks like --gin.Training.learning_rate=1e-4")
            bindings.append(argument.removeprefix("--gin.").replace("=", " = ", 1))
        else:
            rest.append(argument)
    return rest, files, bindings


def parse(files: list[str], bindings: list[str]) -> None:
    """Reads gin files and bindings; the later wins.

    Raises:
      UserError: a file that is missing, or a name, parameter or value that gin does not take.
    """
    gin.clear_config()
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"--gin_file {file}: no such file")
    try:
        gin.parse_config_files_and_bindings(files, bindings, print_includes_and_imports=False)
    except (ValueError, SyntaxError, AttributeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"gin: {' '.join(lines)[:300]}") from None


def make(kind: type[T], **flags: Any) -> T:
    """A settings object: its defaults, then gin's bindings, then the flags that were given (not None).

    Raises:
      UserError: a setting of the wrong type or out of range, or a required one that neither flag nor gin gave.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return _BOUND[kind](**given)
    except UserError as error:
        raise UserError(str(error).splitlines()[0]) from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{_NAMES[kind]}: {str(error).splitlines()[0]}") from None


def operative() -> str:
    """The bindings that were used, as a gin file."""
    return gin.operative_config_str()
