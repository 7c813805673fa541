"""Causal attention in long texts, with memory in proportion to T: a kernel for each platform, on one device or a mesh.

On TPU splash attention (`splash.py`), on GPU cuDNN where it applies (`cudnn.py`), elsewhere a loop over blocks
(`blockwise.py`). The platform is that for which a program is lowered, so that one compiled for TPU without hardware has
TPU's kernel. Each form returns the result and the log-sum-exp of the scores, from which the gradient is computed
without keeping a score. On a mesh each device has its own texts and heads under `shard_map`: the compiler partitions no
kernel.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from colm_jax.models import blockwise, cudnn, splash
from colm_jax.models.arrays import AnyArray
from colm_jax.models.blockwise import Scoring
from colm_jax.parallel import mesh_of, spec_of

_NO_WINDOW = np.iinfo(np.int32).max


@dataclass(frozen=True)
class WindowChoice:
    """One of several windows, where the layers of a scan have different ones."""

    sizes: tuple[int | None, ...]
    index: Int[Array, ""]

    @property
    def size(self) -> Int[Array, ""]:
        """The window, as a value in the program."""
        return jnp.array([_NO_WINDOW if size is None else size for size in self.sizes], jnp.int32)[self.index]


@dataclass(frozen=True)
class _Static:
    scoring: Scoring
    windows: tuple[int | None, ...]  # those to choose from; None: longer than any text

    def window(self, index: Int[Array, ""]) -> blockwise.Window:
        """Return the chosen window, a value in the program only where there are several."""
        return self.windows[0] if len(self.windows) == 1 else WindowChoice(self.windows, index).size


def causal_attention(
    query: Float[Array, "B T H h"],
    key: Float[Array, "B T K h"],
    value: Float[Array, "B T K v"],
    *,
    scoring: Scoring,
    window: int | WindowChoice | None,
    sinks: Float[Array, "H"] | None,
    segments: Int[AnyArray, "B T"] | None,
) -> Float[Array, "B T H v"]:
    """Attend from each token to earlier ones and to itself. Arguments as of `blockwise.forward`; differentiable."""
    return _on_devices(_attention, False, query, key, value, scoring, window, sinks, segments)


def causal_with_total(
    query: Float[Array, "B T H h"],
    key: Float[Array, "B T K h"],
    value: Float[Array, "B T K v"],
    *,
    scoring: Scoring,
    window: int | WindowChoice | None,
    sinks: Float[Array, "H"] | None,
    segments: Int[AnyArray, "B T"] | None,
) -> tuple[Float[Array, "B T H v"], Float[Array, "B T H"]]:
    """Return the result of `causal_attention`, not differentiable, and the log-sum-exp of the scores, float32."""
    return _on_devices(partial(attention_forward, True), True, query, key, value, scoring, window, sinks, segments)


def _on_devices(
    function: Callable[..., Any],
    with_total: bool,
    query: Float[Array, "B T H h"],
    key: Float[Array, "B T K h"],
    value: Float[Array, "B T K v"],
    scoring: Scoring,
    window: int | WindowChoice | None,
    sinks: Float[Array, "H"] | None,
    segments: Int[AnyArray, "B T"] | None,
) -> Any:
    """Call a function of this module with the part of each device."""
    choice = window if isinstance(window, WindowChoice) else WindowChoice((window,), jnp.int32(0))
    sizes = tuple(None if size is None or size >= query.shape[1] else size for size in choice.sizes)
    apart = tuple(dict.fromkeys(sizes))
    index = jnp.array([apart.index(size) for size in sizes], jnp.int32)[choice.index]
    work = partial(function, _Static(scoring, apart))
    segments = None if segments is None else jnp.asarray(segments)
    mesh = mesh_of(query)
    if mesh is None or mesh.size == 1:
        return work(query, key, value, index, sinks, segments)
    texts, _, heads, _ = rows = spec_of(mesh, ("batch", "cache", "heads", "head_dim"), query.shape)
    if heads is not None:  # each device's heads need theirs of keys and values, which may be fewer than the devices
        parts = math.prod(mesh.shape[axis] for axis in ((heads,) if isinstance(heads, str) else heads))
        copies = math.lcm(key.shape[2], parts) // key.shape[2]
        key, value = (x if copies == 1 else jnp.repeat(x, copies, axis=2) for x in (key, value))
    specs = rows, rows, rows, P(), None if sinks is None else P(heads), None if segments is None else P(texts)
    outs = (rows, P(texts, None, heads)) if with_total else rows
    return jax.shard_map(work, mesh=mesh, in_specs=specs, out_specs=outs, check_vma=False)(
        query, key, value, index, sinks, segments
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static: _Static, query: Any, key: Any, value: Any, index: Any, sinks: Any, segments: Any) -> Any:
    return attention_forward(False, static, query, key, value, index, sinks, segments)[0]


def _attention_forward(static: _Static, *arguments: Any) -> tuple[Any, Any]:
    out, total = attention_forward(False, static, *arguments)
    return out, (*arguments, out, total)


def _attention_backward(static: _Static, kept: Any, slope: Any) -> Any:
    *arguments, out, total = kept
    sinks = arguments[4]
    to_query, to_key, to_value = attention_backward(static, *arguments, out, total, slope)
    to_sinks = None
    if sinks is not None:
        share = jnp.sum(out.astype(jnp.float32) * slope.astype(jnp.float32), axis=-1)
        to_sinks = -jnp.sum(jnp.exp(sinks.astype(jnp.float32) - total) * share, axis=(0, 1)).astype(sinks.dtype)
    return to_query, to_key, to_value, None, to_sinks, None


_attention.defvjp(_attention_forward, _attention_backward)


@partial(jax.jit, static_argnums=(0, 1))
def attention_forward(
    needs_total: bool, static: _Static, query: Any, key: Any, value: Any, index: Any, sinks: Any, segments: Any
) -> tuple[Any, Any]:
    """Return result and log-sum-exp by the form for the platform; `attention_flops` knows this program by its name.

    The log-sum-exp is zero, unless `needs_total`, where the platform's gradient does not need it.
    """

    def by_blocks(
        scores: int, query: Any, key: Any, value: Any, index: Any, sinks: Any, segments: Any
    ) -> tuple[Any, Any]:
        return blockwise.forward(static.scoring, query, key, value, static.window(index), sinks, segments, scores)

    def on_tpu(query: Any, key: Any, value: Any, index: Any, sinks: Any, segments: Any) -> tuple[Any, Any]:
        def form(window: int | None) -> tuple[Any, Any]:
            return splash.forward(static.scoring, query, key, value, window, sinks, segments)

        return _by_window(static, index, form)

    def on_gpu(query: Any, key: Any, value: Any, index: Any, sinks: Any, segments: Any) -> tuple[Any, Any]:
        out = cudnn.forward(query, key, value, static.windows[0], segments)
        return out, jnp.zeros(query.shape[:3], jnp.float32)

    forms: dict[str, Callable[..., Any]] = {
        "cpu": partial(by_blocks, blockwise.FEW),
        "default": partial(by_blocks, blockwise.MANY),
    }
    if splash.applies(query, value):
        forms["tpu"] = on_tpu
    if not needs_total and sinks is None and cudnn.applies(static.scoring, static.windows, query, value, segments):
        forms["cuda"] = on_gpu
    return jax.lax.platform_dependent(query, key, value, index, sinks, segments, **forms)


@partial(jax.jit, static_argnums=0)
def attention_backward(
    static: _Static,
    query: Any,
    key: Any,
    value: Any,
    index: Any,
    sinks: Any,
    segments: Any,
    out: Any,
    total: Any,
    slope: Any,
) -> tuple[Any, Any, Any]:
    """Return gradients by the form for the platform; `attention_flops` knows this program by its name."""

    def by_blocks(
        scores: int, query: Any, key: Any, value: Any, index: Any, segments: Any, out: Any, total: Any, slope: Any
    ) -> tuple[Any, Any, Any]:
        window = static.window(index)
        return blockwise.backward(static.scoring, query, key, value, window, segments, out, total, slope, scores)

    def on_tpu(
        query: Any, key: Any, value: Any, index: Any, segments: Any, out: Any, total: Any, slope: Any
    ) -> tuple[Any, Any, Any]:
        def form(window: int | None) -> tuple[Any, Any, Any]:
            return splash.backward(static.scoring, query, key, value, window, segments, out, total, slope)

        return _by_window(static, index, form)

    def on_gpu(
        query: Any, key: Any, value: Any, index: Any, segments: Any, out: Any, total: Any, slope: Any
    ) -> tuple[Any, Any, Any]:
        return cudnn.backward(query, key, value, static.windows[0], segments, slope)

    forms: dict[str, Callable[..., Any]] = {
        "cpu": partial(by_blocks, blockwise.FEW),
        "default": partial(by_blocks, blockwise.MANY),
    }
    if splash.applies(query, value):
        forms["tpu"] = on_tpu
    if sinks is None and cudnn.applies(static.scoring, static.windows, query, value, segments):
        forms["cuda"] = on_gpu
    return jax.lax.platform_dependent(query, key, value, index, segments, out, total, slope, **forms)


def _by_window(static: _Static, index: Int[Array, ""], form: Callable[[int | None], Any]) -> Any:
    """Return what `form` makes with the chosen window, which it needs to know while it is traced."""
    if len(static.windows) == 1:
        return form(static.windows[0])
    return jax.lax.switch(index, [partial(form, window) for window in static.windows])


def attention_flops(equation: Any) -> float | None:
    """Return the operations of these kernels in a traced program, with all earlier tokens seen; None if it is none.

    The program itself does not determine them: grids and lengths of loops depend on values. The backward pass computes
    the scores again.
    """
    name = equation.params.get("name")
    if name not in ("attention_forward", "attention_backward"):
        return None
    shapes = [var.aval.shape for var in equation.invars if len(var.aval.shape) == 4]
    if not shapes:  # what partial evaluation leaves of a call whose results nothing needs
        return 0.0
    (batch, time, heads, width), _, value = shapes[:3]
    sums = width + value[3] if name == "attention_forward" else 3 * width + 2 * value[3]
    return 2.0 * batch * heads * sums * time * (time + 1) / 2
