"""Defaults and fields of transformers' own configuration classes.

A class is imported only if a config.json lacks a field or has one that no family reads. It does not need PyTorch.
"""

import copy
import inspect
import os
from functools import lru_cache
from typing import Any

MISSING = object()  # the class has no such parameter, or no default


def _classes() -> Any:
    """Return transformers' configuration classes by model_type, those that the user registered included."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # about missing PyTorch
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.utils import logging

    logging.set_verbosity_error()
    return CONFIG_MAPPING


def is_known(model_type: str) -> bool:
    """Return whether there is a configuration class of a model_type."""
    return model_type in _classes()


@lru_cache
def reference_class(model_type: str) -> Any:
    """Return the configuration class of a model_type."""
    return _classes()[model_type]


def default_of(model_type: str, field: str) -> Any:
    """Return the class's default of a field, or MISSING."""
    parameter = inspect.signature(reference_class(model_type)).parameters.get(field)
    return MISSING if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def default_rope(model_type: str, **fields: Any) -> dict[str, Any]:
    """Return the class's default `rope_parameters` beside these fields: one description, or one for each layer type."""
    return reference_class(model_type)(**fields).rope_parameters


def known_rope_parameters() -> frozenset[str]:
    """Return the names of all rope parameters in transformers."""
    from transformers.modeling_rope_utils import RopeParameters

    return frozenset(RopeParameters.__annotations__)


def effect_of(model_type: str, field: str, value: Any) -> dict[str, Any] | None:
    """Return the attributes of the class that a field's value changes; None if it changes nothing.

    The class keeps an undeclared field under its own name, which no model reads: that is no change. A field may set
    others (an alias, an old spelling), so whole instances are compared, with and without it.

    Returns:
      The attributes that differ, with their values without the field.

    Raises:
      ValueError: the class rejects the value.
    """
    made = reference_class(model_type)
    try:
        given = vars(made(**{field: copy.deepcopy(value)}))
    except Exception as error:  # an unexpected value may raise anything
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    plain = vars(made())
    changed = {name for name in given.keys() | plain.keys() if given.get(name, MISSING) != plain.get(name, MISSING)}
    if changed == {field} and field not in plain:
        return None
    return {name: plain.get(name) for name in sorted(changed)} or None
