"""What transformers' own configuration class says of a field: its default, and whether it knows it.

The class is imported when a config.json leaves something out or holds a field that nobody here reads. It needs no
PyTorch.
"""

import copy
import inspect
import os
from functools import lru_cache
from typing import Any

MISSING = object()  # the class has no such parameter, or no default for it


@lru_cache
def reference_class(model_type: str) -> Any:
    """The configuration class of a model_type."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is not installed
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.utils import logging

    logging.set_verbosity_error()
    return CONFIG_MAPPING[model_type]


def default_of(model_type: str, field: str) -> Any:
    """The value that the class gives a field which a file leaves out, or MISSING."""
    parameter = inspect.signature(reference_class(model_type)).parameters.get(field)
    return MISSING if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def default_rope(model_type: str) -> dict[str, Any]:
    """`rope_parameters` of the class by default: one description, or one for each layer type."""
    return reference_class(model_type)().rope_parameters


def known_rope_parameters() -> frozenset[str]:
    """Every parameter that some kind of rope has."""
    from transformers.modeling_rope_utils import RopeParameters

    return frozenset(RopeParameters.__annotations__)


def effect_of(model_type: str, field: str, value: Any) -> dict[str, Any] | None:
    """What the class would hold otherwise if a file had this value of a field; None: the value changes nothing.

    A field that the class does not know is only kept under its own name, which nobody reads: that is no change. A field
    may set others (an alias, an old spelling), so whole instances are compared, with and without it.

    Returns:
      The attributes that differ, as they are without the field.

    Raises:
      ValueError: the class refuses the value.
    """
    made = reference_class(model_type)
    try:
        given = vars(made(**{field: copy.deepcopy(value)}))
    except Exception as error:  # the class checks little: a value that it does not expect may raise anything
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    plain = vars(made())
    changed = {name for name in given.keys() | plain.keys() if given.get(name, MISSING) != plain.get(name, MISSING)}
    if changed == {field} and field not in plain:
        return None
    return {name: plain.get(name) for name in sorted(changed)} or None
