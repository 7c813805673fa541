"""Times products with mixtures and with kernels in few bits on the first device, as ratios to plain products.

    python -m docs.tables.products [--small]

Mixtures have the sizes of Qwen3-30B-A3B (width 2048, 128 networks of 768, 8 active) and of Mixtral 8x7B (4096, 8 of
14336, 2 active), one layer in bfloat16; the kernel in few bits is [4096, 14336], with a scale for 128 inputs. Every
line is the median of rounds that interleave all that is compared. `--small` is for a CPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from colm_jax.models.config import Mixture, ModelConfig
from colm_jax.models.feed_forward import MixtureFeedForward
from colm_jax.models.layers import Maker, product
from colm_jax.models.quantize import quantize_kernel
from colm_jax.models.quantized import PackedKernel
from colm_jax.models.rope_config import Rope

ROUNDS = 9
Work = Callable[[], Any]


def medians(works: dict[str, Work]) -> dict[str, float]:
    """Return the median milliseconds of each, over interleaved rounds, compilation left out."""
    for work in works.values():
        jax.block_until_ready(work())
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            start = time.perf_counter()
            jax.block_until_ready([work() for _ in range(4)])
            times[name].append((time.perf_counter() - start) * 250)
    return {name: statistics.median(found) for name, found in times.items()}


def config_of(width: int, ff: int, networks: int, active: int) -> ModelConfig:
    """Return a configuration with one layer, of which only the mixture matters here."""
    return ModelConfig(
        family="mixtral",
        vocab_size=8,
        width=width,
        depth=1,
        heads=1,
        kv_heads=1,
        head_dim=64,
        ff=ff,
        context=8,
        rope=Rope(1e4),
        rms_eps=1e-6,
        tied=True,
        mixture=Mixture(networks, active),
    )


def mixture_works(config: ModelConfig, tokens: int) -> dict[str, Work]:
    """Return the layer as it is, and by two plain ways: every network on every token, and `lax.ragged_dot`."""
    layer = MixtureFeedForward(config, Maker(nnx.Rngs(0), jnp.bfloat16, layers=None))
    graph, state = nnx.split(layer)
    x = jax.random.normal(jax.random.key(1), (1, tokens, config.width), jnp.bfloat16)
    mixture = config.mixture
    assert mixture is not None

    def dense(state: nnx.State, x: Float[Array, "1 T D"]) -> Float[Array, "1 T D"]:
        layer = nnx.merge(graph, state)
        chosen, weights = layer.router.choose(x)
        share = jnp.sum(jax.nn.one_hot(chosen, mixture.networks) * weights[..., None], axis=-2)
        hidden = jax.nn.silu(jnp.einsum("btd,ndf->btnf", x, layer.gate[...]))
        hidden *= jnp.einsum("btd,ndf->btnf", x, layer.up[...])
        out = jnp.einsum("btnf,nfd->btnd", hidden, layer.down[...])
        return jnp.einsum("btnd,btn->btd", out, share.astype(out.dtype))

    def ragged(state: nnx.State, x: Float[Array, "1 T D"]) -> Float[Array, "1 T D"]:
        layer = nnx.merge(graph, state)
        chosen, weights = layer.router.choose(x)
        picks = chosen.reshape(-1)
        order = jnp.argsort(picks)
        sizes = jnp.bincount(picks, length=mixture.networks).astype(jnp.int32)
        rows = x.reshape(-1, config.width)[order // mixture.active]
        hidden = jax.nn.silu(jax.lax.ragged_dot(rows, layer.gate[...], sizes))
        hidden *= jax.lax.ragged_dot(rows, layer.up[...], sizes)
        out = jax.lax.ragged_dot(hidden, layer.down[...], sizes) * weights.reshape(-1, 1)[order].astype(x.dtype)
        back = jnp.argsort(order)
        return jnp.sum(out[back].reshape(1, tokens, mixture.active, -1), axis=2)

    own = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    works = {"grouped": own, "ragged_dot": jax.jit(ragged), "all networks": jax.jit(dense)}
    expected = np.asarray(works["all networks"](state, x), np.float32)
    for name, work in works.items():
        np.testing.assert_allclose(np.asarray(work(state, x), np.float32), expected, atol=0.05, err_msg=name)
    return {name: (lambda work=work: work(state, x)) for name, work in works.items()}


def packed(kind: str, inputs: int, outputs: int) -> PackedKernel:
    """Return a random kernel in few bits, with a scale for 128 inputs."""
    rows = inputs // 2 if kind in ("int4", "float4") else inputs
    codes = jax.random.randint(jax.random.key(2), (rows, outputs), -100, 100).astype(jnp.int8)
    if kind == "float8":
        codes = (codes / 50).astype(jnp.float8_e4m3fn)
    elif kind != "int8":
        codes = codes.view(jnp.uint8)
    scale = jnp.full((inputs // 128, outputs), 0.01, jnp.bfloat16)
    return PackedKernel(codes, scale, None, None, kind)


def kernel_works(inputs: int, outputs: int, tokens: int) -> dict[str, Work]:
    """Return the product with a plain kernel and with those in few bits."""
    x = jax.random.normal(jax.random.key(0), (1, tokens, inputs), jnp.bfloat16)
    plain = jax.random.normal(jax.random.key(1), (inputs, outputs), jnp.bfloat16)
    kernels: dict[str, Any] = {"bfloat16": plain}
    kernels |= {f"{kind}, stored so": packed(kind, inputs, outputs) for kind in ("int8", "float8", "int4", "float4")}
    kernels |= {f"--expert_dtype {kind}": quantize_kernel(plain, 1, kind) for kind in ("int8", "int4")}
    times = jax.jit(lambda x, kernel: product("btd,df->btf", x, kernel))
    return {name: (lambda kernel=kernel: times(x, kernel)) for name, kernel in kernels.items()}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="an eighth of every size")
    small = parser.parse_args().small
    part = 8 if small else 1
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; ms, and as a ratio to the last or first column")
    for name, sizes in {
        "128 networks, 8 active": (2048, 768, 128, 8),
        "8 networks, 2 active": (4096, 14336, 8, 2),
    }.items():
        config = config_of(sizes[0] // part, sizes[1] // part, *sizes[2:])
        for tokens in (1, 8, 64, 2048 // part):
            found = medians(mixture_works(config, tokens))
            last = found["all networks"]
            shown = ", ".join(f"{key} {value:.3f} ({value / last:.2f})" for key, value in found.items())
            print(f"{name}, {tokens} tokens: {shown}", flush=True)
    for tokens in (1, 8, 64, 512 // part):
        found = medians(kernel_works(4096 // part, 14336 // part, tokens))
        plain = found["bfloat16"]
        shown = ", ".join(f"{key} {value:.3f} ({value / plain:.2f})" for key, value in found.items())
        print(f"kernel, {tokens} tokens: {shown}", flush=True)


if __name__ == "__main__":
    main()
