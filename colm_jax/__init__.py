"""Co-LLM in JAX: a small base model writes and calls a frozen expert for single tokens (arXiv 2403.03870)."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from colm_jax.team import CoLM as CoLM

__all__ = ["CoLM", "__version__"]


def __getattr__(name: str):
    """Import `CoLM` on first use, so that `colm --help` and the data tools start without JAX."""
    if name == "CoLM":
        from colm_jax.team import CoLM

        return CoLM
    raise AttributeError(f"module 'colm_jax' has no attribute {name!r}")
