"""The parameters of Llama 3's rotary scaling, from the factors that a GGUF file stores in their place."""

import math
from typing import Any

import numpy as np

from colm_jax.checkpoints.gguf.header import Header

_PUBLISHED = (8192, 1.0, 4.0)  # original context, low and high frequency factors of every published Llama 3
_TOLERANCE = 1e-4  # relative; factors are stored as 32-bit floats


def llama3_parameters(factors: np.ndarray, theta: float, original: int | None, header: Header) -> dict[str, Any]:
    """Return `rope_parameters` that give these factors, by which the rotary frequencies are divided.

    Waves longer than original / low are slowed by the full factor, those shorter than original / high not at all, and
    between the two the inverse factor is linear in the frequency. Multiplying original, low and high by one number
    changes no factor; where they are not the published ones, low is 1.

    Args:
      factors: [head_dim / 2], fastest frequency first.
      theta: the base of the frequencies.
      original: the original context, where the file says it.
      header: names the file in errors.

    Raises:
      UserError: no such parameters.
    """
    if not np.isfinite(factors).all() or (factors < 1 - _TOLERANCE).any():
        raise header.error("tensor 'rope_freqs.weight' holds factors below 1, or that are not finite")
    if np.allclose(factors, 1.0, rtol=_TOLERANCE):
        return {"rope_type": "default", "rope_theta": theta}
    if theta <= 1:
        raise header.error(f"rope.freq_base is {theta}; with factors of frequencies it must exceed 1")
    waves = 2 * math.pi * theta ** (np.arange(len(factors)) / len(factors))
    factor = float(str(np.float32(factors.max())))
    candidates = [_PUBLISHED]
    if original is not None:
        candidates.insert(0, (original, *_PUBLISHED[1:]))
    # smooth = (original / wave - low) / (high - low), and 1 / factors = (1 - smooth) / factor + smooth
    smooth = (1 / factors.astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    between = (smooth > 1e-3) & (smooth < 1 - 1e-3)
    if between.sum() >= 2:
        slope, height = _line(1 / waves[between], smooth[between])
        if height < 0 < slope < math.inf:
            candidates.append((round(slope / -height), 1.0, 1.0 - 1 / height))
    for context, low, high in candidates:
        if np.allclose(_factors(waves, factor, context, low, high), factors, rtol=_TOLERANCE):
            return {
                "rope_type": "llama3",
                "rope_theta": theta,
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    raise header.error("tensor 'rope_freqs.weight' holds factors that no 'llama3' rope scaling has")


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return slope and height at 0 of the line through points, by least squares; NaN where no line is the best."""
    dx = (x - x.mean()) / x.max()  # theta may be of any size
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (dx * (y - y.mean())).sum() / (dx * dx).sum() / x.max()
    return float(slope), float(y.mean() - slope * x.mean())


def _factors(waves: np.ndarray, factor: float, context: int, low: float, high: float) -> np.ndarray:
    """Return the factors of a scaling, for each wave length."""
    smooth = np.clip((context / waves - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)
