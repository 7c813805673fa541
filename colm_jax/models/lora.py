"""LoRA by qwix (Hu et al. 2021): small matrices beside the linear kernels of a frozen base, merged at the end.

qwix adds them to one layer; here they are stacked like the layer's other parameters, so that the decoder still scans.
"""

import math

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from jaxtyping import Array, Float

from colm_jax.errors import UserError
from colm_jax.models.block import Block
from colm_jax.models.decoder import Decoder
from colm_jax.models.inputs import LayerInputs
from colm_jax.models.rope import rope_angles
from colm_jax.seeds import random_key
from colm_jax.settings.training import Lora

_SUFFIXES = ("_lora_a", "_lora_b")


def add_lora(decoder: Decoder, settings: Lora, seed: int) -> Decoder:
    """Return the same model with LoRA matrices (`nnx.LoRAParam`) on its layers; it computes the same until they are
    trained.

    A kernel W becomes W + alpha / rank · A B, and B is initialised to 0. A mixture's networks get none.

    Raises:
      UserError: no linear map matches `settings.modules`.
    """
    provider = qwix.LoraProvider(module_path=settings.modules, rank=settings.rank, alpha=settings.alpha)
    runs = [_with_matrices(decoder, run, provider, settings, seed, i) for i, run in enumerate(decoder.runs)]
    if all(run is old for run, old in zip(runs, decoder.runs)):
        raise UserError(f"Lora.modules matches no linear map of the model: {settings.modules!r}")
    return decoder.with_runs(runs)


def _with_matrices(
    decoder: Decoder, run: Block, provider: qwix.LoraProvider, settings: Lora, seed: int, number: int
) -> Block:
    """Return a run of stacked layers with LoRA matrices; the same one if none of its linear maps matches."""
    config = decoder.config
    graph, stacked = nnx.split(run)
    one = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[0], stacked))
    x = jnp.zeros((1, 1, config.width), decoder.dtype)
    inputs = LayerInputs(rope_angles(jnp.zeros((1, 1), jnp.int32), config.rotary_dim, config.rope, config.context))
    key = random_key(seed) if number == 0 else jax.random.fold_in(random_key(seed), 2**31 - number)
    block = qwix.apply_lora_to_model(one, provider, x, inputs, rngs=nnx.Rngs(key))
    graph, lora, *_ = nnx.split(block, nnx.LoRAParam, ...)
    if not nnx.to_flat_state(lora):
        return run
    kernels = dict(nnx.to_flat_state(stacked))

    def spread(number: int, path: tuple, variable: nnx.Variable) -> nnx.Variable:
        """Return one layer's matrix, as a stack: A random in every layer, with variance 1 / inputs; B zero. Float32."""
        name, matrix = path[-1][: -len(_SUFFIXES[0])], path[-1][-1]
        axes = kernels[(*path[:-1], name)].get_metadata()["axes"]
        depth = kernels[(*path[:-1], name)].shape[0]
        shape, others = (depth, *variable.shape), len(variable.shape) - 1
        if matrix == "b":
            return nnx.LoRAParam(jnp.zeros(shape), axes=("layers", "rank", *axes[-others:]))
        bound = (3.0 * settings.rank / math.prod(variable.shape)) ** 0.5
        value = jax.random.uniform(jax.random.fold_in(key, number), shape, jnp.float32, -bound, bound)
        return nnx.LoRAParam(value, axes=(*axes[: 1 + others], "rank"))

    added = [(path, spread(i, path, variable)) for i, (path, variable) in enumerate(nnx.to_flat_state(lora))]
    return nnx.merge(graph, nnx.from_flat_state(added), stacked)


def merge_lora(decoder: Decoder, plain: Decoder, settings: Lora) -> Decoder:
    """Return `plain` (the model before `add_lora`, its graph) with W + alpha / rank · A B in place of each kernel."""
    return plain.with_runs([_merged(run, old, settings) for run, old in zip(decoder.runs, plain.runs)])


def _merged(run: Block, plain: Block, settings: Lora) -> Block:
    state = dict(nnx.to_flat_state(nnx.state(run)))
    graph, stacked = nnx.split(plain)
    merged = []
    for path, variable in nnx.to_flat_state(stacked):
        a, b = (state.get((*path[:-1], f"{path[-1]}{suffix}")) for suffix in _SUFFIXES)
        if a is not None and b is not None:
            delta = _product(a[...], b[...]) * (settings.alpha / settings.rank)
            variable = variable.replace((variable[...].astype(jnp.float32) + delta).astype(variable.dtype))
        merged.append((path, variable))
    return nnx.merge(graph, nnx.from_flat_state(merged))


@jax.jit
def _product(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return a B of every layer, float32."""

    def one(a: Float[Array, "*inputs R"], b: Float[Array, "R *outputs"]) -> Float[Array, "..."]:
        return jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)

    return jax.vmap(one)(a.astype(jnp.float32), b.astype(jnp.float32))
