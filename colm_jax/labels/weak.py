"""Weak labels from whether the text's token is each model's argmax, as stored by scoring (paper, appendix A)."""

import numpy as np
from jaxtyping import Bool

from colm_jax.errors import UserError
from colm_jax.settings.training import LABEL_METHODS


def weak_labels(
    base_is_argmax: Bool[np.ndarray, "*N"], expert_is_argmax: Bool[np.ndarray, "*N M"], method: str
) -> Bool[np.ndarray, "*N M"]:
    """Return whether each expert should write each token.

    Method `a`: the expert's argmax is the text's token and the base's is not. Method `b`: the base's is not.

    Raises:
      UserError: an unknown method.
    """
    if method not in LABEL_METHODS:
        raise UserError(f"label method must be one of {', '.join(LABEL_METHODS)}, got {method!r}")
    wrong = ~base_is_argmax[..., None]
    return wrong & expert_is_argmax if method == "a" else np.broadcast_to(wrong, expert_is_argmax.shape).copy()
