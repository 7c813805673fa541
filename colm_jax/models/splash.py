"""Attention on TPU by JAX's Pallas kernel, splash attention: no score leaves the core.

The kernel takes soft caps, windows, texts in one row, sinks, and heads that share keys. Its masks are static: where
layers of one scan have different windows, the program has a kernel for each. Its forward and backward passes are called
apart, since a choice by platform must return the same arrays for all of them.
"""

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int, Shaped

from colm_jax.models.arrays import AnyArray
from colm_jax.models.blockwise import Scoring

_BLOCK = 512  # tokens of a block of queries, or of keys
_WIDEST = 256  # head dimensions of which blocks fit in a core's vector memory
_LANES = 128  # a head's dimensions fill a multiple of these


def applies(query: Float[Array, "B T H h"], value: Float[Array, "B T K v"]) -> bool:
    """Return whether the kernel takes these."""
    return query.dtype in (jnp.bfloat16, jnp.float32) and max(query.shape[-1], value.shape[-1]) <= _WIDEST


def forward(
    scoring: Scoring,
    query: Float[Array, "B T H h"],
    key: Float[Array, "B T K h"],
    value: Float[Array, "B T K v"],
    window: int | None,
    sinks: Float[Array, "H"] | None,
    segments: Int[AnyArray, "B T"] | None,
    interpret: bool = False,
) -> tuple[Float[Array, "B T H v"], Float[Array, "B T H"]]:
    """Return what `blockwise.forward` does."""
    time, width = query.shape[1], value.shape[-1]
    kernel = _kernel(scoring.softcap, time, window, query.shape[2], interpret)

    def of_text(query: Any, key: Any, value: Any, texts: Any) -> tuple[Any, Any]:
        out, (total,) = kernel(query, key, value, texts, sinks)
        return out, total

    with _traced_as_written(query.dtype):
        out, total = jax.vmap(of_text)(_by_head(query), _by_head(key), _by_head(value), _texts(segments))
    return out.swapaxes(1, 2)[:, :time, :, :width], total.swapaxes(1, 2)[:, :time]


def backward(
    scoring: Scoring,
    query: Float[Array, "B T H h"],
    key: Float[Array, "B T K h"],
    value: Float[Array, "B T K v"],
    window: int | None,
    segments: Int[AnyArray, "B T"] | None,
    out: Float[Array, "B T H v"],
    total: Float[Array, "B T H"],
    slope: Float[Array, "B T H v"],
    interpret: bool = False,
) -> tuple[Float[Array, "B T H h"], Float[Array, "B T K h"], Float[Array, "B T K v"]]:
    """Return what `blockwise.backward` does."""
    time = query.shape[1]
    kernel = _kernel(scoring.softcap, time, window, query.shape[2], interpret)
    ways = kernel.kwargs
    static = (
        *(False, ways["mask_value"], False, ways["block_sizes"], None),
        *(ways["mask_function"], scoring.softcap, interpret),
    )

    def of_text(query: Any, key: Any, value: Any, texts: Any, out: Any, total: Any, slope: Any) -> Any:
        kept = query, key, value, texts, None, out, total, kernel.dq_mask_info, kernel.dkv_mask_info
        return kernels._splash_attention_bwd(*static, kept, slope)[3:6]  # of query, key and value

    arrays = _by_head(query), _by_head(key), _by_head(value), _texts(segments), _by_head(out)
    sums, slopes = _padded(total).swapaxes(1, 2), _by_head(slope)
    with _traced_as_written(query.dtype):
        found = jax.vmap(of_text)(*arrays, sums, slopes)
    to_query, to_key, to_value = (x.swapaxes(1, 2)[:, :time] for x in found)
    width, wide = query.shape[-1], value.shape[-1]
    return to_query[..., :width], to_key[..., :width], to_value[..., :wide]


def _block(time: int) -> int:
    """Return the tokens of a block: a shorter text is padded to a multiple of fewer."""
    return _BLOCK if time > 2 * _BLOCK else _BLOCK // 2


def _padded(x: Shaped[AnyArray, "B T *N"]) -> Shaped[Array, "B T1 *N"]:
    """Return whole blocks of tokens; no earlier token sees those that are added."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _block(x.shape[1])), *((0, 0),) * (x.ndim - 2)))


def _by_head(x: Float[Array, "B T N d"]) -> Float[Array, "B N T1 d1"]:
    wide = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -x.shape[-1] % _LANES)))
    return _padded(wide).swapaxes(1, 2)


def _texts(segments: Int[AnyArray, "B T"] | None) -> kernels.SegmentIds | None:
    if segments is None:
        return None
    texts = _padded(segments.astype(jnp.int32))
    return kernels.SegmentIds(texts, texts)


@cache
def _kernel(
    softcap: float | None, time: int, window: int | None, heads: int, interpret: bool
) -> kernels.SplashAttentionKernel:
    """Return the kernel for texts of `time` tokens, of which each sees the earlier ones in its window."""
    block = _block(time)
    shape = 2 * (-(-time // block) * block,)
    mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    with jax.ensure_compile_time_eval():
        kernel = kernels.make_splash_mha(
            masks.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            save_residuals=True,
            attn_logits_soft_cap=softcap,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)  # constants of any program


@contextlib.contextmanager
def _traced_as_written(dtype: Any) -> Iterator[None]:
    """Trace the kernel with implicit promotion, and float32 in full precision, of which it says nothing."""
    with jax.numpy_dtype_promotion("standard"), contextlib.ExitStack() as stack:
        if dtype == jnp.float32:
            stack.enter_context(jax.default_matmul_precision("highest"))
        yield
