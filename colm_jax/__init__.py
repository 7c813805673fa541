"""Co-LLM in JAX: a small base model writes and calls a frozen expert for single tokens (arXiv 2403.03870).

The names below are imported on first use, so that `colm --help` and the data tools start without JAX. What is public,
and for how long, is written in CONTRIBUTING.md.
"""

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "Calibration",
    "CoLM",
    "Correction",
    "ExpertBatching",
    "FinishedRun",
    "GateInit",
    "Generation",
    "GenerationSettings",
    "Lora",
    "RemoteSettings",
    "RunConfig",
    "Scored",
    "ScoredTexts",
    "SpanRule",
    "Token",
    "Training",
    "UserError",
    "__version__",
    "make_mesh",
    "objectives",
    "register_family",
    "register_strategy",
    "run_pipeline",
    "scoring",
]

if TYPE_CHECKING:
    from colm_jax import objectives as objectives
    from colm_jax import scoring as scoring
    from colm_jax.checkpoints.families import register_family as register_family
    from colm_jax.decoding.requests import Generation as Generation
    from colm_jax.decoding.requests import Token as Token
    from colm_jax.decoding.strategies import register_strategy as register_strategy
    from colm_jax.errors import UserError as UserError
    from colm_jax.parallel import make_mesh as make_mesh
    from colm_jax.pipeline.run import FinishedRun as FinishedRun
    from colm_jax.pipeline.run import run_pipeline as run_pipeline
    from colm_jax.scoring.texts import Scored as Scored
    from colm_jax.scoring.texts import ScoredTexts as ScoredTexts
    from colm_jax.settings import Calibration as Calibration
    from colm_jax.settings import Correction as Correction
    from colm_jax.settings import ExpertBatching as ExpertBatching
    from colm_jax.settings import GateInit as GateInit
    from colm_jax.settings import GenerationSettings as GenerationSettings
    from colm_jax.settings import Lora as Lora
    from colm_jax.settings import RemoteSettings as RemoteSettings
    from colm_jax.settings import RunConfig as RunConfig
    from colm_jax.settings import Training as Training
    from colm_jax.team import CoLM as CoLM
    from colm_jax.text.spans import SpanRule as SpanRule

    __version__: str
else:
    # Where each name is; tests/test_api.py compares this with what type checkers see above.
    _HOMES = {
        "colm_jax": ("objectives", "scoring"),
        "colm_jax.checkpoints.families": ("register_family",),
        "colm_jax.decoding.requests": ("Generation", "Token"),
        "colm_jax.decoding.strategies": ("register_strategy",),
        "colm_jax.errors": ("UserError",),
        "colm_jax.parallel": ("make_mesh",),
        "colm_jax.pipeline.run": ("FinishedRun", "run_pipeline"),
        "colm_jax.scoring.texts": ("Scored", "ScoredTexts"),
        "colm_jax.settings": (
            *("Calibration", "Correction", "ExpertBatching", "GateInit", "GenerationSettings", "Lora"),
            *("RemoteSettings", "RunConfig", "Training"),
        ),
        "colm_jax.team": ("CoLM",),
        "colm_jax.text.spans": ("SpanRule",),
    }
    _HOME = {name: module for module, names in _HOMES.items() for name in names}

    def __getattr__(name: str) -> Any:
        """Return a public name, imported now."""
        if name == "__version__":
            return _version()
        if name not in _HOME:
            raise AttributeError(f"module 'colm_jax' has no attribute {name!r}")
        if _HOME[name] == __name__:
            return importlib.import_module(f"{__name__}.{name}")
        found = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return found

    def __dir__() -> list[str]:
        """Return all names, those that are not imported yet included."""
        return sorted({*globals(), *__all__})


def _version() -> str:
    """Return the version of the installed package, which follows from git's tags; "0+unknown" if it is none."""
    from importlib import metadata  # here, since it takes a while and few ask

    try:
        return metadata.version("colm-jax")
    except metadata.PackageNotFoundError:
        return "0+unknown"
