"""Multiply each row by the kernel of its own network of a mixture (grouped matrix product).

Rows are sorted by network, so that each network's rows are a block. On TPU a Pallas kernel (megablox) multiplies them,
elsewhere a loop over tiles of rows, each tile of one network. On GPU, where an iteration is expensive, each one takes
many tiles. The work is in proportion to the rows, and only kernels of networks with rows are read, except by
`lax.ragged_dot`, which GPUs use for small products. Kernels may be split over devices by network: each device then
multiplies the rows of its own networks. Quantised kernels stay
quantised: the loops dequantise the networks of an iteration, on TPU too.
"""

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm
from jaxtyping import Array, Float, Int, Shaped

from colm_jax.models.arrays import AnyArray
from colm_jax.models.layers import precision_of, product
from colm_jax.models.quantized import kernel_shape, widened

_ROWS = 128  # of a tile, at most
_ROWS_GPU = 1024
_MASKS = 512 * 2**20  # bytes that `lax.ragged_dot` may take on GPU
_TURN = 64 * 2**20  # bytes of the kernels that a turn of the loop on GPU takes
_BLOCK = 4 * 2**20  # bytes of a kernel's block in a TPU core's vector memory, of which there are two at a time
_PALLAS = (jnp.bfloat16, jnp.float32)  # types that the TPU kernel takes


@jax.custom_vjp
def grouped(
    x: Float[Array, "R K"], kernel: Any, sizes: Int[Array, "networks"], first: Int[Array, ""]
) -> Float[Array, "R F"]:
    """Return each row times its network's kernel; zeros for rows of networks that `kernel` does not have.

    Args:
      x: rows, sorted by network.
      kernel: [local networks, K, F], those from `first` on; plain or quantised.
      sizes: how many rows each network has; their sum is R.
      first: the number of the first of the kernels' networks.
    """
    return grouped_rows(x, kernel, sizes, first)


def _forward(x: Any, kernel: Any, sizes: Any, first: Any) -> tuple[Any, Any]:
    return grouped_rows(x, kernel, sizes, first), (x, kernel, sizes, first)


def _backward(kept: Any, slope: Any) -> tuple[Any, Any, None, None]:
    x, kernel, sizes, first = kept
    to_x = grouped_rows(slope, kernel, sizes, first, True)
    to_kernel = None  # quantised kernels are not trained
    if isinstance(kernel, jax.Array):
        to_kernel = grouped_kernels(x, slope, sizes, first, kernel.shape[0], kernel.dtype)
    return to_x, to_kernel, None, None


grouped.defvjp(_forward, _backward)


def grouped_rows(
    x: Float[Array, "R _"],
    kernel: Any,
    sizes: Int[Array, "networks"],
    first: Int[AnyArray, ""],
    transposed: bool = False,
) -> Float[Array, "R _"]:
    """Return `grouped` of these; of the kernels' transposes, if so asked."""
    return rows_product(x, kernel, sizes, first, transposed)


def grouped_kernels(
    x: Float[Array, "R K"],
    slope: Float[Array, "R F"],
    sizes: Int[Array, "all"],
    first: Int[AnyArray, ""],
    networks: int,
    dtype: Any,
) -> Float[Array, "networks K F"]:
    """Return the gradient for the kernels: of each of `networks` networks from `first` on, the sum over its rows."""
    return kernels_product(x, slope, sizes, first, networks, dtype)


@partial(jax.jit, static_argnums=4)
def rows_product(x: Any, kernel: Any, sizes: Any, first: Any, transposed: bool) -> Any:
    """Return `grouped_rows`, by the form for the platform; `product_flops` knows this program by its name."""
    tiles, turns = partial(_rows_by_tiles, transposed=transposed), partial(_rows_by_turns, transposed=transposed)
    if not isinstance(kernel, jax.Array) or x.dtype not in _PALLAS or x.dtype != kernel.dtype:
        return jax.lax.platform_dependent(x, kernel, sizes, first, cuda=turns, default=tiles)
    pallas, gpu = (partial(form, transposed=transposed) for form in (_rows_by_pallas, _rows_on_gpu))
    return jax.lax.platform_dependent(x, kernel, sizes, first, tpu=pallas, cuda=gpu, default=tiles)


@partial(jax.jit, static_argnums=(4, 5))
def kernels_product(x: Any, slope: Any, sizes: Any, first: Any, networks: int, dtype: Any) -> Any:
    """Return `grouped_kernels`, by the form for the platform; `product_flops` knows this program by its name."""
    tiles = partial(_kernels_by_tiles, networks=networks, dtype=dtype)
    if x.dtype not in _PALLAS or x.dtype != slope.dtype:
        return tiles(x, slope, sizes, first)
    pallas = partial(_kernels_by_pallas, networks=networks, dtype=dtype)
    return jax.lax.platform_dependent(x, slope, sizes, first, tpu=pallas, default=tiles)


def product_flops(equation: Any) -> float | None:
    """Return the expected operations of a grouped product in a traced program, on one device; None if it is none.

    The program itself does not determine them: a kernel's grid and a loop's length depend on values. If networks are
    split over devices, each device is expected to have rows in proportion to its networks.
    """
    if equation.params.get("name") not in ("rows_product", "kernels_product"):
        return None
    shapes = [var.aval.shape for var in (*equation.invars, *equation.outvars)]
    lines, matrices, stacks = ([shape for shape in shapes if len(shape) == rank] for rank in (1, 2, 3))
    # Rows before and after the product, or on both sides of a kernel's gradient.
    return 2.0 * matrices[0][0] * matrices[0][1] * matrices[-1][1] * stacks[0][0] / lines[0][0]


# Tiles: what any back end can do.


def tile_rows(rows: int, networks: int) -> int:
    """Return the rows of a tile: a quarter of what a network has on average, within bounds, a power of two.

    A network's last tile is half empty on average, and each tile reads a kernel.
    """
    return max(min(8, rows), min(_ROWS, 1 << max(rows // (4 * networks), 1).bit_length() - 1))


class _Tiles:
    """Tiles of at most `height` sorted rows, each of one network, of the `count` networks from `first` on."""

    def __init__(
        self, rows: int, sizes: Int[Array, "networks"], first: Int[AnyArray, ""], count: int, height: int | None = None
    ):
        self.height, everyone = height or tile_rows(rows, sizes.shape[0]), jnp.arange(sizes.shape[0])
        self.ends = jnp.cumsum(sizes)
        tiles = jnp.where((everyone >= first) & (everyone < first + count), -(-sizes // self.height), 0)
        last = jnp.cumsum(tiles)
        self.number = last[-1]
        # Of all tiles at once: in the loop each small operation would cost as much as a small product.
        number = jnp.arange(min(rows, rows // self.height + sizes.shape[0]))
        network = jnp.minimum(jnp.sum(last <= number[:, None], axis=1), sizes.shape[0] - 1)
        self.starts = (self.ends - sizes)[network] + (number - (last - tiles)[network]) * self.height
        self.networks, self.ends = network - first, self.ends[network]

    def __getitem__(self, i: Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""], Shaped[Array, "height 1"]]:
        """Return a tile's network (counted from `first`), its first row, and which of its rows are the network's."""
        inside = (self.starts[i] + jnp.arange(self.height) < self.ends[i])[:, None]
        return self.networks[i], self.starts[i], inside


def _slice(x: Float[Array, "R K"], start: Int[Array, ""], height: int) -> Float[Array, "height K"]:
    return jax.lax.dynamic_slice_in_dim(x, start, height)


def _rows_by_tiles(x: Any, kernel: Any, sizes: Any, first: Any, transposed: bool) -> Any:
    shape = kernel.shape if isinstance(kernel, jax.Array) else kernel_shape(kernel, 2)
    tiles = _Tiles(x.shape[0], sizes, first, shape[0])
    padded = jnp.pad(x, ((0, tiles.height), (0, 0)))  # the last tile may reach beyond

    def times(rows: Any, network: Any) -> Any:
        one = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, network, keepdims=False), kernel)
        if not transposed:
            return product("rk,kf->rf", rows, one)
        if isinstance(one, jax.Array):
            return product("rf,kf->rk", rows, one)
        return jax.vjp(lambda inputs: product("rk,kf->rf", inputs, one), jnp.zeros((rows.shape[0], width), x.dtype))[1](
            rows
        )[0]

    width = shape[1 if transposed else 2]

    def one(i: Any, out: Any) -> Any:
        network, start, inside = tiles[i]
        done = times(_slice(padded, start, tiles.height), network).astype(x.dtype)
        # Rows beyond the network's belong to later ones, whose tiles follow, or to other devices.
        return jax.lax.dynamic_update_slice_in_dim(out, jnp.where(inside, done, jnp.zeros_like(done)), start, 0)

    start = jnp.zeros((padded.shape[0], width), x.dtype)
    return jax.lax.fori_loop(0, tiles.number, one, start)[: x.shape[0]]


def _kernels_by_tiles(x: Any, slope: Any, sizes: Any, first: Any, networks: int, dtype: Any) -> Any:
    tiles = _Tiles(x.shape[0], sizes, first, networks)
    x, slope = (jnp.pad(rows, ((0, tiles.height), (0, 0))) for rows in (x, slope))

    def one(i: Any, out: Any) -> Any:
        network, start, inside = tiles[i]
        rows = _slice(x, start, tiles.height)
        rows = jnp.where(inside, rows, jnp.zeros_like(rows))
        added = jnp.einsum(
            "rk,rf->kf",
            rows,
            _slice(slope, start, tiles.height),
            precision=precision_of(x.dtype),
            preferred_element_type=jnp.float32,
        )
        return out.at[network].add(added)

    start = jnp.zeros((networks, x.shape[1], slope.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, tiles.number, one, start).astype(dtype)


# Many tiles at once: GPU.


def _rows_on_gpu(x: Any, kernel: Any, sizes: Any, first: Any, transposed: bool) -> Any:
    """Return the product by `lax.ragged_dot` where that is the faster form: it reads every kernel, and multiplies by
    masks that grow with rows and networks.
    """
    networks, wide = sizes.shape[0], max(kernel.shape[1:])
    masks = networks * len(x) * wide * x.dtype.itemsize
    if len(kernel) != networks or 4 * len(x) <= networks or masks > _MASKS:
        return _rows_by_turns(x, kernel, sizes, first, transposed)
    kernel = kernel.swapaxes(1, 2) if transposed else kernel
    return jax.lax.ragged_dot(x, kernel, sizes, precision=precision_of(x.dtype))


def _rows_by_turns(x: Any, kernel: Any, sizes: Any, first: Any, transposed: bool) -> Any:
    count, *shape = kernel.shape if isinstance(kernel, jax.Array) else kernel_shape(kernel, 2)
    height = max(min(8, len(x)), min(_ROWS_GPU, 1 << max(len(x) // sizes.shape[0], 1).bit_length() - 1))
    tiles = _Tiles(len(x), sizes, first, count, height)
    most = len(tiles.starts)
    together = min(most, max(1, _TURN // (x.dtype.itemsize * math.prod(shape))))
    turns = -(-most // together)

    def by_turn(values: Shaped[Array, "tiles"]) -> Shaped[Array, "turns together"]:
        return jnp.pad(values, (0, turns * together - most)).reshape(turns, together)

    networks = by_turn(jnp.clip(tiles.networks, 0, count - 1))
    places = by_turn(tiles.starts)[..., None] + jnp.arange(height)  # [turns, together, height]
    inside = places < by_turn(jnp.where(jnp.arange(most) < tiles.number, tiles.ends, 0))[..., None]
    rows = jnp.where(inside[..., None], x[jnp.minimum(places, len(x) - 1)], jnp.zeros((), x.dtype))

    def turn(i: Any, out: Any) -> Any:
        kernels = jax.tree.map(lambda leaf: leaf[networks[i]], kernel)
        if not isinstance(kernels, jax.Array):
            kernels = jax.vmap(lambda one: widened(one, 1, x.dtype))(kernels)
        equation = "gro,gio->gri" if transposed else "gri,gio->gro"
        done = jnp.einsum(equation, rows[i], kernels, precision=precision_of(x.dtype))
        return out.at[i].set(done.astype(x.dtype))

    start = jnp.zeros((turns, together, height, shape[0 if transposed else 1]), x.dtype)
    done = jax.lax.fori_loop(0, -(-tiles.number // together), turn, start).reshape(-1, start.shape[-1])
    # Where each row's product is; nowhere for rows of other devices' networks.
    found = (
        jnp.full(len(x), len(done))
        .at[jnp.where(inside, places, len(x)).reshape(-1)]
        .set(jnp.arange(len(done)), mode="drop")
    )
    return done.at[found].get(mode="fill", fill_value=0)


# Pallas: TPU.


def _whole_tiles(*arrays: Any) -> tuple[int, list[Any]]:
    """Return the rows of a tile, and the arrays with rows of zeros that fill the last tile."""
    rows = arrays[0].shape[0]
    height = min(_ROWS, -(-rows // 16) * 16)
    return height, [jnp.pad(x, ((0, -rows % height), (0, 0))) for x in arrays]


def _block(inputs: int, outputs: int, itemsize: int) -> tuple[int, int]:
    """Return the sizes of a kernel's block: all inputs where they fit, so that it is read once for all tiles of rows.

    A block's sides are multiples of 128, or whole.
    """
    most = _BLOCK // itemsize
    tall = inputs if inputs <= most // 512 else 2048
    wide = max(most // tall // 128 * 128, 128)
    return tall, min(outputs, wide, 1024)


@contextlib.contextmanager
def _megablox(dtype: Any) -> Iterator[None]:
    """Trace the kernels with implicit promotion, as they are written, and float32 in full precision, of which they say
    nothing.
    """
    with jax.numpy_dtype_promotion("standard"), contextlib.ExitStack() as stack:
        if dtype == jnp.float32:
            stack.enter_context(jax.default_matmul_precision("highest"))
        yield


def _rows_by_pallas(x: Any, kernel: Any, sizes: Any, first: Any, transposed: bool, interpret: bool = False) -> Any:
    height, (rows,) = _whole_tiles(x)
    inputs, outputs = kernel.shape[:0:-1] if transposed else kernel.shape[1:]
    tiling = (height, *_block(inputs, outputs, x.dtype.itemsize))
    with _megablox(x.dtype):
        out = gmm(rows, kernel, sizes, x.dtype, tiling, first, transpose_rhs=transposed, interpret=interpret)
    return out[: x.shape[0]]


def _kernels_by_pallas(
    x: Any, slope: Any, sizes: Any, first: Any, networks: int, dtype: Any, interpret: bool = False
) -> Any:
    height, (x, slope) = _whole_tiles(x, slope)
    tiling = (height, min(x.shape[1], 512), min(slope.shape[1], 512))
    with _megablox(x.dtype):
        return tgmm(x.T, slope, sizes, dtype, tiling, first, networks, interpret=interpret)
