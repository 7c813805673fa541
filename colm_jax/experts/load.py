"""Loading the experts of a team, each as its kind requires."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from colm_jax.checkpoints.outline import Outline
from colm_jax.checkpoints.team import load_expert
from colm_jax.data.span_units import SpanUnits
from colm_jax.errors import UserError
from colm_jax.experts.guest import GuestExpert
from colm_jax.experts.protocol import Expert
from colm_jax.experts.remote import RemoteExpert
from colm_jax.models.decoder import Decoder
from colm_jax.settings.remote import RemoteSettings

# The members of the protocol.
_MEMBERS = ("name", "kind", "passes", "bytes", "expect", "check", "start", "finished", "release", "score")


def load_experts(
    outline: Outline,
    dtype: str,
    expert_dtype: str | None,
    mesh: jax.sharding.Mesh,
    progress: Callable[[str, int, int], None] = lambda model, done, total: None,
    remote: RemoteSettings | None = None,
) -> list[Decoder | Expert]:
    """Load the experts of a team: resident ones as decoders, all others as experts that work on units.

    Args:
      outline: of the team.
      dtype: the base's type.
      expert_dtype: the experts', as in `load_expert`.
      mesh: where their weights live.
      progress: called with each model's name, the bytes read, and their total.
      remote: how endpoints are asked; None: the defaults.

    Raises:
      UserError: naming the file, tensor or token that is wrong.
    """
    found: list[Decoder | Expert] = []
    places = zip(outline.models[1:], outline.directories[1:], outline.expert_tokenizers, outline.kinds)
    makers = outline.makers or (None,) * outline.experts
    for number, ((model, directory, tokenizer, kind), maker) in enumerate(zip(places, makers), start=1):
        if directory is None or tokenizer is None:
            assert isinstance(outline.units, SpanUnits)
            remotes = RemoteExpert(str(model), outline.units, remote) if maker is None else maker(outline.units)
            found.append(_checked(remotes, str(model)))
            continue
        decoder = load_expert(directory, tokenizer, dtype, expert_dtype, mesh, partial(progress, str(model)))
        found.append(decoder if kind == "resident" else GuestExpert(str(model), decoder, number, outline.units))
    return found


def _checked(expert: Any, name: str) -> Expert:
    """Return an expert whose weights are elsewhere.

    Raises:
      UserError: it lacks a member of the protocol, or is of another kind.
    """
    missing = [member for member in _MEMBERS if not hasattr(expert, member)]
    if missing:
        raise UserError(
            f"expert {name}: {type(expert).__name__} has no {', '.join(missing)}; see experts.protocol.Expert"
        )
    if expert.kind != "remote":
        raise UserError(f"expert {name}: its kind must be 'remote', got {expert.kind!r:.60}")
    return expert
