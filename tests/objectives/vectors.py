"""Losses and gradients of the original PyTorch implementation, and how its arrays become this package's arguments.

One array of logits [B,T,V+1] holds the words and, last, the deferral logit; position t predicts the label at t + 1.
"""

import jax
import jax.numpy as jnp
import numpy as np


def vectors(shared) -> dict[str, np.ndarray]:
    with np.load(shared / "vectors" / "objective_small.npz") as stored:
        return dict(stored)


def column_split(logits):
    """Word logits [B,T,V] and gate logits [B,T,1]."""
    return logits[..., :-1], logits[..., -1:]


def at_text(logits, labels):
    """Log-probability [B,T-1] of the label that follows each position; 0 where it is masked."""
    labels = labels[:, 1:]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(labels == -100, 0.0, chosen)


def assert_matches(loss, stored, version, dtype, tolerance):
    """Value and gradient of loss(logits, data), computed in `dtype`, against the stored ones."""
    with jax.enable_x64(dtype == "float64"):
        data = {key: value.astype(dtype) if value.dtype == np.float64 else value for key, value in stored.items()}
        value, gradient = jax.value_and_grad(loss)(jnp.asarray(data["logits"]), data)
        assert value.dtype == gradient.dtype == jnp.dtype(dtype)
        np.testing.assert_allclose(value, stored[f"{version}_loss"], rtol=0, atol=tolerance)
        np.testing.assert_allclose(gradient, stored[f"{version}_grad"], rtol=0, atol=tolerance)
