"""Rotary positions in config.json: `rope_parameters` of transformers 5, `rope_theta` and `rope_scaling` before it.

A file may have both spellings. If they disagree, transformers replaces one by the other, theta included, and which one
depends on family and version; such files are rejected. So are parameters that a kind of rope does not use.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from colm_jax.checkpoints.families.fields import LARGEST, Fields, Json
from colm_jax.checkpoints.families.reference import (
    MISSING,
    default_of,
    default_rope,
    known_rope_parameters,
    reference_class,
)
from colm_jax.errors import UserError
from colm_jax.models.rope_config import Bands, DynamicNTK, LongRope, Rope, Yarn

_ORIGINAL = "original_max_position_embeddings"
_PARTIAL = "partial_rotary_factor"
_BANDS = ("low_freq_factor", "high_freq_factor", _ORIGINAL)
_YARN = ("beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim")
# The kinds of ropes, each with the parameters that it uses.
_USED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", *_BANDS),
    "yarn": ("factor", _ORIGINAL, *_YARN),
    "longrope": ("short_factor", "long_factor", _ORIGINAL, "factor", "attention_factor"),
}
_BETA_FAST, _BETA_SLOW = 32.0, 1.0  # of transformers' yarn
_LAYERS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class RopeRules:
    """How a family reads its rope, where it differs from most."""

    kinds: Mapping[str, str] = field(default_factory=lambda: {kind: kind for kind in _USED})  # type in files -> kind
    partial: bool = False  # `partial_rotary_factor` is used
    interleaved: bool = False  # dimensions 2i and 2i + 1 turn together
    scales_scores: bool = False  # attention multiplies its scores by `models.rope.score_factor`
    head_dim: str = "head_dim"  # the field with the size of what turns


def read_rope(fields: Fields, rules: RopeRules | None = None) -> Rope:
    """Read the rope of a family that has one for all layers."""
    rules = RopeRules() if rules is None else rules
    found = {key: fields.given(key, dict) for key in ("rope_parameters", "rope_scaling")}
    ropes = {key: _Description(fields, rules, key, value).rope() for key, value in found.items() if value}
    if not ropes:
        usual = (default_rope(fields.model_type) or {}) if found["rope_parameters"] is None else {}
        theta = fields.given("rope_theta", float)
        if theta is not None and usual and default_rope(fields.model_type, rope_theta=theta)["rope_theta"] != theta:
            raise fields.error(
                f"'rope_theta' is {theta:g}, which transformers ignores in this family where 'rope_parameters' is "
                "missing; add it"
            )
        left = (_PARTIAL,) if theta is None else (_PARTIAL, "rope_theta")
        rest = {key: value for key, value in usual.items() if key not in left}
        return _Description(fields, rules, "rope_parameters", rest).rope()
    if len(set(ropes.values())) > 1:
        raise _disagree(fields, found)
    return next(iter(ropes.values()))


def read_ropes_by_layer(
    fields: Fields, thetas: tuple[str | None, str | None] = ("rope_theta", "rope_local_base_freq")
) -> tuple[Rope, Rope]:
    """Read the ropes of layers without and with a window, for a family that has two.

    Args:
      fields: the file.
      thetas: for each of the two, the field of the file that may hold its theta as well, or None.
    """
    rules = RopeRules()
    found, scaling = fields.given("rope_parameters", dict) or {}, fields.given("rope_scaling", dict) or {}
    for key in found:
        if key not in _LAYERS:
            raise fields.error(
                f"'rope_parameters' has {key!r:.80}; in this family only {_LAYERS[0]!r} and {_LAYERS[1]!r} are "
                "allowed, each with the parameters of its layers (transformers ignores the rest)"
            )
    by_layer = {layers: found.get(layers) or {} for layers in _LAYERS}
    for layers, parameters in by_layer.items():
        if not isinstance(parameters, dict):
            raise fields.error(f"'rope_parameters.{layers}' has a wrong type: {parameters!r:.80}")
    if "type" in scaling and "rope_type" not in scaling:
        raise fields.error("'rope_scaling' has 'type', which transformers ignores in this family; name it 'rope_type'")
    full, windowed = (
        _Description(fields, rules, f"rope_parameters.{layers}", by_layer[layers], theta, layers).rope()
        for layers, theta in zip(_LAYERS, thetas)
    )
    if scaling:  # transformers updates the parameters of full attention with it
        both = {**by_layer[_LAYERS[0]], **scaling}
        merged = _Description(fields, rules, "rope_scaling", both, thetas[0], _LAYERS[0]).rope()
        if found and merged != full:
            raise _disagree(fields, {"rope_parameters": found, "rope_scaling": scaling})
        full = merged
    return full, windowed


def _disagree(fields: Fields, found: Json) -> UserError:
    """Return the error for two descriptions of one rope that disagree."""
    both = " and ".join(f"{key!r} ({value!r:.200})" for key, value in found.items())
    return fields.error(f"{both} disagree; remove the wrong one")


@dataclass(frozen=True)
class _Description:
    """One description of a rope."""

    fields: Fields  # the file
    rules: RopeRules
    name: str  # names the description in errors
    found: Json  # the description
    theta_field: str | None = "rope_theta"  # the field of the file that may hold theta as well
    layers: str | None = None  # the kind of layers, if the family has a rope for each kind

    def error(self, text: str) -> UserError:
        """Return an error that names file and description."""
        return self.fields.error(f"{self.name}: {text}")

    def rope(self) -> Rope:
        """Return what it describes.

        Raises:
          UserError: it is incomplete, contradictory, not supported, or has parameters that are not used.
        """
        kind = self.kind()
        self.check_unused(kind)
        theta = self.theta()
        scaling: Bands | Yarn | DynamicNTK | LongRope | None = None
        factor = 1.0
        if kind in ("linear", "dynamic", "llama3"):
            factor = self.number("factor")
        if kind == "dynamic":
            scaling = DynamicNTK(self.fields.get("max_position_embeddings", int))
        elif kind == "llama3":
            low, high = (self.number(key) for key in _BANDS[:2])
            scaling = Bands(low=low, high=high, original_context=self.original_context())
        elif kind == "yarn":
            factor, scaling = self.yarn()
        elif kind == "longrope":
            factor, scaling = self.longrope()
        fields = self.fields
        heads = max(fields.get("num_attention_heads", int), 1)  # ModelConfig rejects 0 heads
        head_dim = fields.optional(self.rules.head_dim, int, fields.get("hidden_size", int) // heads)
        rope = Rope(theta, factor, scaling, self.dim(head_dim), self.rules.interleaved)
        rope.turning(head_dim)
        return rope

    def kind(self) -> str:
        """Return the kind of rope."""
        given = [self.found[key] for key in ("rope_type", "type") if key in self.found]
        known = self.rules.kinds
        kinds = {known.get(value, value) if isinstance(value, str) else None for value in given}
        if len(kinds) > 1:
            raise self.error(
                f"'rope_type' ({given[0]!r:.80}) and 'type' ({given[1]!r:.80}) disagree; remove the wrong one"
            )
        kind = kinds.pop() if kinds else "default"
        if kind is None or kind not in known.values():
            *others, last = map(repr, known)
            raise self.error(f"rope type {given[0]!r:.80} is not supported, only {', '.join(others)} and {last}")
        return kind

    def check_unused(self, kind: str) -> None:
        """Raise UserError for parameters that transformers knows and this kind of rope does not use."""
        used = ("rope_type", "type", "rope_theta", *_USED[kind], *([_PARTIAL] if self.rules.partial else []))
        rest = {key: value for key, value in self.found.items() if key not in used}
        if not rest:
            return
        known = (*known_rope_parameters(), *_LAYERS)
        for key, value in rest.items():
            neutral = value is None or (key == _PARTIAL and value == 1.0)
            if key in known and not neutral:
                raise self.error(f"field {key!r} ({value!r:.80}) is not supported with rope type {kind!r}")

    def theta(self) -> float:
        """Return the base of the frequencies."""
        theta = self.found.get("rope_theta")
        if self.theta_field is not None:
            theta = self.shared("rope_theta", self.theta_field)
        if theta is None and "rope_theta" not in self.found:
            model_type = self.fields.model_type
            if self.layers is None:  # the default description may have another
                theta = reference_class(model_type).default_theta
            else:
                theta = default_rope(model_type)[self.layers]["rope_theta"]
        return self.checked("rope_theta", theta)

    def original_context(self) -> int:
        """Return the context before the stretch, in tokens."""
        value = self.found.get(_ORIGINAL)
        if self.layers is None:
            value = self.shared(_ORIGINAL, _ORIGINAL)
            usual = default_of(self.fields.model_type, _ORIGINAL)  # Phi 3's class has one
            value = usual if value is None and usual is not MISSING else value
        original = self.checked(_ORIGINAL, value)
        if not original.is_integer():
            raise self.error(f"field {_ORIGINAL!r} must be a whole number, got {original}")
        return int(original)

    def yarn(self) -> tuple[float, Yarn]:
        """Return factor and scaling of a yarn rope, with the defaults of transformers."""
        original = self.original_context()
        factor = self.stretch(original) if self.found.get("factor", 0) is None else self.number("factor")
        truncate = self.found.get("truncate", True)
        if not isinstance(truncate, bool):
            raise self.error(f"field 'truncate' must be true or false, got {truncate!r:.80}")
        if self.layers is not None and not truncate:
            raise self.error("'truncate' is false, which transformers ignores in this family; remove it")
        fast, slow, attention, mscale, all_dim = (self.given(key) for key in _YARN if key != "truncate")
        mscale, all_dim = mscale or None, all_dim or None  # transformers: 0 is as none
        if attention is None and all_dim is None and mscale == 1:
            mscale = None  # the derived factor has this weight anyway
        if mscale is not None and (attention is not None or all_dim is None):
            beside = "without 'mscale_all_dim'" if attention is None else "beside 'attention_factor'"
            raise self.error(f"'mscale' ({mscale:g}) has no effect {beside}; remove it")
        if all_dim is not None and mscale is None and not self.rules.scales_scores:
            beside = "without 'mscale'" if attention is None else "beside 'attention_factor'"
            raise self.error(f"'mscale_all_dim' ({all_dim:g}) has no effect {beside}; remove it")
        fast, slow = (_BETA_FAST if fast is None else fast), (_BETA_SLOW if slow is None else slow)
        return factor, Yarn(original, fast, slow, truncate, attention, mscale, all_dim)

    def longrope(self) -> tuple[float, LongRope]:
        """Return factor and scaling of a longrope."""
        short, long = self.numbers("short_factor"), self.numbers("long_factor")
        original = self.original_context()
        if self.layers is None and self.fields.given(_ORIGINAL, float) is None:
            usual = default_of(self.fields.model_type, _ORIGINAL)  # Phi 3's class has one, which goes first
            if usual not in (MISSING, None, original):
                raise self.error(
                    f"field {_ORIGINAL!r} is {original}, but the file has none outside, where transformers' default "
                    f"of {usual} goes first; add it there"
                )
        factor, attention = self.given("factor"), self.given("attention_factor")
        if factor is not None and attention is not None:
            raise self.error(f"'factor' ({factor:g}) has no effect beside 'attention_factor'; remove it")
        if attention is not None:
            return 1.0, LongRope(short, long, original, attention)
        return self.stretch(original) if factor is None else factor, LongRope(short, long, original)

    def stretch(self, original: int) -> float:
        """Return the factor of a file that gives none: context by original context."""
        return self.fields.get("max_position_embeddings", int) / max(original, 1)  # Yarn and LongRope reject less

    def dim(self, head_dim: int) -> int | None:
        """Return how many dimensions of a head turn; None: all."""
        if not self.rules.partial:
            return None
        if _PARTIAL not in self.found and _PARTIAL not in self.fields.config:
            part = (default_rope(self.fields.model_type) or {}).get(_PARTIAL, 1.0)
        else:
            part = self.checked(_PARTIAL, self.shared(_PARTIAL, _PARTIAL))
        if not 0 < part <= 1:
            raise self.error(f"{_PARTIAL!r} must be above 0 and at most 1, got {part}")
        dim = int(head_dim * part)
        if dim < 2 or dim % 2:
            raise self.error(f"{_PARTIAL!r} ({part:g}) turns {dim} of {head_dim} dimensions, which makes no pairs")
        return None if dim == head_dim else dim

    def number(self, key: str) -> float:
        """Return a parameter that must be there."""
        return self.checked(key, self.found.get(key))

    def given(self, key: str) -> float | None:
        """Return a parameter; None if it is missing or null."""
        return None if self.found.get(key) is None else self.number(key)

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return a parameter that is a list of numbers."""
        values = self.found.get(key)
        if not isinstance(values, list):
            raise self.error(f"field {key!r} is missing or no list: {values!r:.80}")
        return tuple(self.checked(key, value) for value in values)

    def checked(self, key: str, value: Any) -> float:
        """Return a parameter's value if it is a number."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(f"field {key!r} is missing or no number: {value!r:.80}")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise self.error(f"field {key!r} is out of range: {value!r:.80}")
        return float(value)

    def shared(self, key: str, field: str) -> Any:
        """Return a parameter that a field of the file may hold as well; if both are set they must agree."""
        value = self.fields.given(field, float)
        if key not in self.found:
            return value
        if value is not None and self.found[key] != value:
            raise self.fields.error(
                f"{field!r} ({value:g}) and '{self.name}.{key}' ({self.found[key]!r:.80}) disagree; remove the "
                "wrong one"
            )
        return self.found[key]


def write_rope(rope: Rope, head_dim: int | None = None) -> Json:
    """Return the description of a rope in transformers 5's spelling.

    Args:
      rope: what is described.
      head_dim: dimensions of a head, for a family that reads `partial_rotary_factor`.
    """
    scaling = rope.scaling
    values: Json = {"rope_theta": rope.theta}
    if isinstance(scaling, Bands):
        bands = (scaling.low, scaling.high, scaling.original_context)
        values |= {"rope_type": "llama3", "factor": rope.factor, **dict(zip(_BANDS, bands))}
    elif isinstance(scaling, Yarn):
        values |= {"rope_type": "yarn", "factor": rope.factor, _ORIGINAL: scaling.original_context}
        values |= {key: getattr(scaling, key) for key in _YARN if getattr(scaling, key) is not None}
    elif isinstance(scaling, DynamicNTK):
        values |= {"rope_type": "dynamic", "factor": rope.factor}
    elif isinstance(scaling, LongRope):
        values |= {"rope_type": "longrope", "short_factor": list(scaling.short), "long_factor": list(scaling.long)}
        values[_ORIGINAL] = scaling.original_context
        attention = scaling.attention_factor
        values |= {"factor": rope.factor} if attention is None else {"attention_factor": attention}
    elif rope.factor != 1.0:
        values |= {"rope_type": "linear", "factor": rope.factor}
    else:
        values |= {"rope_type": "default"}
    if head_dim is not None:
        values[_PARTIAL] = _part(rope.turning(head_dim), head_dim)
    elif rope.dim is not None:
        raise ValueError("a rope for part of a head needs the head's size to be written")
    return values


def _part(dim: int, head_dim: int) -> float:
    """Return the `partial_rotary_factor` by which `dim` dimensions turn."""
    part = dim / head_dim
    return part if int(head_dim * part) == dim else math.nextafter(part, 1.0)


def write_both_ropes(rope: Rope, head_dim: int | None = None) -> Json:
    """Return the description of a rope in transformers 5's spelling and in that of earlier versions.

    Args:
      rope: what is described.
      head_dim: dimensions of a head, for a family that reads `partial_rotary_factor`.
    """
    new = write_rope(rope, head_dim)
    scaling = {key: value for key, value in new.items() if key not in ("rope_theta", _PARTIAL)}
    old: Json = {"rope_theta": rope.theta, "rope_scaling": None if new["rope_type"] == "default" else scaling}
    if head_dim is not None:
        old[_PARTIAL] = new[_PARTIAL]
    if isinstance(rope.scaling, LongRope):
        old[_ORIGINAL] = rope.scaling.original_context  # where Phi 3 reads it
    return {"rope_parameters": new, **old}
