"""Rotary positions in config.json: `rope_parameters` of transformers 5, `rope_theta` and `rope_scaling` before it.

A file may have both spellings. If they disagree, transformers replaces one by the other, theta included, and which one
depends on family and version; such files are rejected.
"""

from typing import Any

from colm_jax.checkpoints.families.fields import LARGEST, Fields, Json
from colm_jax.checkpoints.families.reference import default_rope, known_rope_parameters
from colm_jax.errors import UserError
from colm_jax.models.config import Bands, Rope

_ORIGINAL = "original_max_position_embeddings"
_BANDS = ("low_freq_factor", "high_freq_factor", _ORIGINAL)
_USED = {"default": (), "linear": ("factor",), "llama3": ("factor", *_BANDS)}
_LAYERS = ("full_attention", "sliding_attention")


def read_rope(fields: Fields) -> Rope:
    """Read the rope of a family that has one for all layers."""
    found = {key: fields.given(key, dict) for key in ("rope_parameters", "rope_scaling")}
    ropes = {key: _read_one(fields, key, value, "rope_theta") for key, value in found.items() if value}
    if not ropes:
        return _read_one(fields, "rope_parameters", {}, "rope_theta")
    if len(set(ropes.values())) > 1:
        raise _disagree(fields, found)
    return next(iter(ropes.values()))


def read_ropes_by_layer(fields: Fields) -> tuple[Rope, Rope]:
    """Read the ropes of layers without and with a window, for a family that has two."""
    found, scaling = fields.given("rope_parameters", dict) or {}, fields.given("rope_scaling", dict) or {}
    for key in found:
        if key not in _LAYERS:
            raise fields.error(
                f"'rope_parameters' has {key!r}; in this family only {_LAYERS[0]!r} and {_LAYERS[1]!r} are allowed, "
                "each with the parameters of its layers (transformers ignores the rest)"
            )
    by_layer = {layers: found.get(layers) or {} for layers in _LAYERS}
    for layers, parameters in by_layer.items():
        if not isinstance(parameters, dict):
            raise fields.error(f"'rope_parameters.{layers}' has a wrong type: {parameters!r:.80}")
    if "type" in scaling and "rope_type" not in scaling:
        raise fields.error("'rope_scaling' has 'type', which transformers ignores in this family; name it 'rope_type'")
    full, windowed = (
        _read_one(fields, f"rope_parameters.{layers}", by_layer[layers], theta, layers)
        for layers, theta in zip(_LAYERS, ("rope_theta", "rope_local_base_freq"))
    )
    if scaling:  # transformers updates the parameters of full attention with it
        merged = _read_one(fields, "rope_scaling", {**by_layer[_LAYERS[0]], **scaling}, "rope_theta", _LAYERS[0])
        if found and merged != full:
            raise _disagree(fields, {"rope_parameters": found, "rope_scaling": scaling})
        full = merged
    return full, windowed


def _disagree(fields: Fields, found: Json) -> UserError:
    """Return the error for two descriptions of one rope that disagree."""
    both = " and ".join(f"{key!r} ({value!r:.200})" for key, value in found.items())
    return fields.error(f"{both} disagree; remove the wrong one")


def _read_one(fields: Fields, name: str, found: Json, theta_field: str, layers: str | None = None) -> Rope:
    """Read one description of a rope.

    Args:
      fields: the file.
      name: names the description in errors.
      found: the description.
      theta_field: the field of the file that may hold theta as well.
      layers: the kind of layers, if the family has a rope for each kind.
    """
    kinds = {found[key] if isinstance(found[key], str) else None for key in ("rope_type", "type") if key in found}
    if len(kinds) > 1:
        raise fields.error(
            f"{name}: 'rope_type' ({found['rope_type']!r:.80}) and 'type' ({found['type']!r:.80}) disagree; remove the "
            "wrong one"
        )
    kind = kinds.pop() if kinds else "default"
    if kind not in _USED:
        shown = found.get("rope_type", found.get("type"))
        raise fields.error(f"{name}: rope type {shown!r:.80} is not supported, only 'default', 'linear' and 'llama3'")
    used = _USED[kind]
    _check_unused(fields, name, kind, found)
    theta = _one_value(fields, name, found, "rope_theta", theta_field)
    if theta is None and "rope_theta" not in found:
        usual = default_rope(fields.model_type)
        theta = (usual if layers is None else usual[layers])["rope_theta"]
    values = {"rope_theta": theta, **{key: found.get(key) for key in used}}
    if kind == "llama3" and layers is None:
        values[_ORIGINAL] = _one_value(fields, name, found, _ORIGINAL, _ORIGINAL)
    for key, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise fields.error(f"{name}: field {key!r} is missing or no number: {value!r:.80}")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise fields.error(f"{name}: field {key!r} is out of range: {value!r:.80}")
    bands = None
    if kind == "llama3":
        low, high, original = (float(values[key]) for key in _BANDS)
        if not original.is_integer():
            raise fields.error(f"{name}: field {_ORIGINAL!r} must be a whole number, got {original}")
        bands = Bands(low=low, high=high, original_context=int(original))
    return Rope(float(values["rope_theta"]), float(values.get("factor", 1.0)), bands)


def _check_unused(fields: Fields, name: str, kind: str, found: Json) -> None:
    """Raise UserError for parameters that transformers knows and this kind of rope does not use."""
    rest = {key: value for key, value in found.items() if key not in ("rope_type", "type", "rope_theta", *_USED[kind])}
    if not rest:
        return
    known = (*known_rope_parameters(), *_LAYERS)
    for key, value in rest.items():
        neutral = value is None or (key == "partial_rotary_factor" and value == 1.0)
        if key in known and not neutral:
            raise fields.error(f"{name}: field {key!r} ({value!r:.80}) is not supported with rope type {kind!r}")


def _one_value(fields: Fields, name: str, found: Json, key: str, field: str) -> Any:
    """Return a parameter that a field of the file may hold as well; if both are set they must agree."""
    value = fields.given(field, float)
    if key not in found:
        return value
    if value is not None and found[key] != value:
        raise fields.error(
            f"{field!r} ({value:g}) and '{name}.{key}' ({found[key]!r:.80}) disagree; remove the wrong one"
        )
    return found[key]


def write_rope(rope: Rope) -> Json:
    """Return the description of a rope in transformers 5's spelling."""
    if rope.bands is not None:
        values = (rope.bands.low, rope.bands.high, rope.bands.original_context)
        return {"rope_type": "llama3", "rope_theta": rope.theta, "factor": rope.factor, **dict(zip(_BANDS, values))}
    if rope.factor != 1.0:
        return {"rope_type": "linear", "rope_theta": rope.theta, "factor": rope.factor}
    return {"rope_type": "default", "rope_theta": rope.theta}


def write_both_ropes(rope: Rope) -> Json:
    """Return the description of a rope in transformers 5's spelling and in that of earlier versions."""
    new = write_rope(rope)
    scaling = None if new["rope_type"] == "default" else {k: v for k, v in new.items() if k != "rope_theta"}
    return {"rope_parameters": new, "rope_theta": rope.theta, "rope_scaling": scaling}
