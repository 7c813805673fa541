"""The decoder: one network for every family, as Flax NNX modules, base and expert alike.

Layers are stored stacked (leading axis = layer; one stack for each run of alike layers) and scanned, so that compile
time does not grow with depth; decoding uses `unstacked()`, since on some back ends a scan copies each layer's weights.
Every parameter names its logical axes in its metadata (`axes`); `colm_jax.parallel` maps them to a mesh.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from colm_jax.models.arrays import AnyArray
from colm_jax.models.attention import positions_in, temperatures
from colm_jax.models.block import Block
from colm_jax.models.cache import KVCache, KVRows
from colm_jax.models.causal import WindowChoice
from colm_jax.models.config import ModelConfig
from colm_jax.models.embedding import embed
from colm_jax.models.inputs import LayerInputs
from colm_jax.models.layers import Linear, Maker, RMSNorm, product, row_product
from colm_jax.models.ragged import Ragged
from colm_jax.models.rope import rope_angles
from colm_jax.models.transposed import transposed
from colm_jax.parallel import batch_sharding

Constraint = Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]]  # the residual stream, with a sharding

# What a layer keeps for its gradient; the rest is computed again. None: everything is kept.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # its input and the products with weights
    "full": jax.checkpoint_policies.nothing_saveable,  # its input alone
}


class Decoder(nnx.Module):
    """Token ids to final hidden states, and those to logits."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs | None, dtype: DTypeLike = jnp.float32):
        """Initialises the parameters; without `rngs` they are shapes and dtypes alone."""
        self.config = config
        make = Maker(rngs, dtype, layers=None)
        self.embedding = make((config.vocab_size, config.width), ("vocab", "embed"), 0.02)
        runs = [
            Block(config, Maker(rngs, dtype, layers=stop - start), mixture=config.mixtures[start])
            for start, stop in config.runs
        ]
        self.stacked = True
        self.layers: Block | nnx.List = runs[0] if len(runs) == 1 else nnx.List(runs)
        self.norm = RMSNorm((config.width,), ("embed",), config.rms_eps, config.zero_centred_norm, make)
        if not config.tied:
            self.head = make((config.width, config.vocab_size), ("embed", "vocab"), config.width**-0.5)

    @property
    def dtype(self) -> jnp.dtype:
        """The type of activations and cache, and of weights that are not quantised."""
        return self.embedding[...].dtype

    @property
    def batch_sharding(self) -> jax.sharding.NamedSharding | None:
        """How batches are sharded over the mesh that holds the weights; None on one device without a mesh."""
        where = self.embedding.get_value().sharding
        return batch_sharding(where.mesh) if isinstance(where, jax.sharding.NamedSharding) else None

    def __call__(
        self,
        tokens: Int[AnyArray, "B T"],
        cache: KVCache | None = None,
        remat: str = "none",
        segments: Int[AnyArray, "B T"] | None = None,
        spread: jax.sharding.Sharding | None = None,
        ragged: Ragged | None = None,
    ) -> tuple[Float[Array, "B T D"], KVRows | None]:
        """Read T tokens after what the cache holds (from position 0 without one).

        Args:
          tokens: to be read.
          cache: what was read before; needs `unstacked()` layers.
          remat: what each layer keeps for its gradient, a key of REMAT; of stacked layers only.
          segments: where rows hold several texts: which one each token belongs to. Without a cache only.
          spread: sharding of the residual stream by texts. Without it the compiler may split the stream as
            the weights are, along D, and then every product of the whole batch is summed over the devices.
          ragged: where the tokens [1,N] are those of several texts in one line: whose they are. With a cache only.

        Returns:
          The final hidden states (after the last norm: what head and gate read), and the tokens' keys and values for
          `KVCache.write` (None without a cache).
        """
        config = self.config
        start = 0 if cache is None or ragged is not None else cache.lengths[:, None]
        positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
        if ragged is not None and cache is not None:
            positions = (cache.lengths[ragged.text] + ragged.offset)[None]
        if segments is not None:
            positions = positions_in(segments)
        # Keys in a cache keep their rotation: it must not depend on how much a cache holds at the time.
        longest = max(tokens.shape[1], config.context) if cache is None else config.context
        layers = self._layer_inputs(positions, longest, segments, ragged)

        def kept(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
            return x if spread is None else jax.lax.with_sharding_constraint(x, spread)

        x = kept(embed(self.embedding[...], tokens, by_texts=spread is not None))
        if config.scaled_embedding:
            x *= jnp.asarray(config.width**0.5, x.dtype)
        if config.embedding_multiplier is not None:
            x *= config.embedding_multiplier
        if self.stacked:
            if cache is not None:
                raise ValueError("reading with a cache needs unstacked layers: decoder.unstacked()")
            for run, (start, stop) in zip(self.runs, config.runs):
                x = _scan(run, x, layers[start:stop], REMAT[remat], kept)
            return self.norm(x), None
        rows = []
        assert isinstance(self.layers, nnx.List)
        for i, (layer, inputs) in enumerate(zip(self.layers, layers)):
            if cache is not None:
                inputs = replace(inputs, past=(cache.keys[i], cache.values[i], cache.lengths))
            x, new = layer(x, inputs)
            x = kept(x)
            rows.append(new)
        return self.norm(x), None if cache is None else KVRows(*map(tuple, zip(*rows)))

    def _layer_inputs(
        self,
        positions: Int[Array, "R T"],
        longest: int,
        segments: Int[AnyArray, "R T"] | None,
        ragged: Ragged | None,
    ) -> list[LayerInputs]:
        """Return what each layer is given for tokens at these positions of texts of at most `longest` tokens."""
        config = self.config
        everywhere = rope_angles(positions, config.rotary_dim, config.rope, longest)
        local = everywhere
        if config.window_rope is not None:
            local = rope_angles(positions, config.rotary_dim, config.window_rope, longest)
        temperature = None if config.temperature is None else temperatures(positions, config.temperature)
        found = []
        for i in range(config.depth):
            rotated = config.rope_layers is None or config.rope_layers[i]
            window = None if config.windows is None else config.windows[i]
            hot = config.temperature is not None and not (rotated and config.temperature.unrotated_only)
            found.append(
                LayerInputs(
                    angles=everywhere if window is None else local,
                    rotated=rotated,
                    temperature=temperature if hot else None,
                    window=window,
                    segments=segments,
                    ragged=ragged,
                )
            )
        return found

    @property
    def runs(self) -> list[Block]:
        """The stacked layers, a block for each run of alike ones (see `ModelConfig.runs`)."""
        return [self.layers] if isinstance(self.layers, Block) else list(self.layers)

    def with_runs(self, runs: Sequence[Block]) -> "Decoder":
        """Return the same model with other stacked layers."""
        other = nnx.merge(*nnx.split(self))
        other.layers = runs[0] if len(runs) == 1 else nnx.List(runs)
        return other

    @property
    def head_kernel(self) -> Float[Array, "D V"]:
        """The head's kernel; of a tied one, the embedding table transposed."""
        return self.embedding[...].T if self.config.tied else self.head[...]

    def logits(
        self, hidden: Float[AnyArray, "*N D"], allowed: Bool[AnyArray, "A"] | None = None
    ) -> Float[Array, "*N _"]:
        """Return scores over the vocabulary, float32; given `allowed`, over its A ids, -inf where it is False."""
        hidden = jnp.asarray(hidden)
        if self.config.tied:
            scores = row_product(hidden, self.embedding[...])
        else:
            scores = product("...d,dv->...v", hidden, self.head.get_value(), jnp.float32)
        logits = self._capped(scores)
        return logits if allowed is None else jnp.where(allowed, logits[..., : allowed.shape[0]], -jnp.inf)

    def logits_by(self, kernel: Float[Array, "D v"], hidden: Float[AnyArray, "*N D"]) -> Float[Array, "*N v"]:
        """Return float32 scores over the ids whose columns of `head_kernel` are given."""
        return self._capped(product("...d,dv->...v", jnp.asarray(hidden), kernel, jnp.float32))

    def _capped(self, logits: Float[Array, "*N v"]) -> Float[Array, "*N v"]:
        """Return scores as the configuration divides and caps them."""
        if self.config.logit_divisor is not None:
            logits = logits / self.config.logit_divisor
        if self.config.logit_softcap is not None:
            logits = self.config.logit_softcap * jnp.tanh(logits / self.config.logit_softcap)
        return logits

    def unstacked(self) -> "Decoder":
        """Return the same model with a list of layers in place of the stacked ones. Copies weights."""
        if not self.stacked:
            return self
        layers = []
        for run, (start, stop) in zip(self.runs, self.config.runs):
            graph, stacked = nnx.split(run)
            layers += [nnx.merge(graph, _layer(stacked, i)) for i in range(stop - start)]
        other = copy.copy(self)
        other.stacked, other.layers = False, nnx.List(layers)
        return other.for_decoding()

    def for_decoding(self) -> "Decoder":
        """Return this model, with kernels stored by output where a CPU decodes faster so; changes it in place."""
        assert not self.stacked
        for path, module in nnx.iter_modules(self.layers):
            if type(module) is Linear and "key_value_up" not in path:  # which latent attention multiplies itself
                module.kernel = transposed(module.kernel, module.inputs)
        if not self.config.tied:
            self.head = transposed(self.head, 1)
        return self


def _scan(
    run: Block, x: Float[Array, "B T D"], layers: list[LayerInputs], policy: Callable | None, kept: Constraint
) -> Float[Array, "B T D"]:
    """Apply stacked layers in order with `lax.scan`; return the residual stream.

    What differs between the layers' inputs is scanned over; the rest is part of the program.
    """
    graph, stacked = nnx.split(run)
    first = layers[0]
    windows = [None if isinstance(inputs.window, WindowChoice) else inputs.window for inputs in layers]
    sizes = tuple(dict.fromkeys(windows))
    rotated = [inputs.rotated for inputs in layers]
    angles = {id(inputs.angles): inputs.angles for inputs in layers}
    temperature = next((inputs.temperature for inputs in layers if inputs.temperature is not None), None)
    hot = [inputs.temperature is not None for inputs in layers]
    varying = {
        "window": None if len(sizes) == 1 else jnp.array([sizes.index(window) for window in windows], jnp.int32),
        "rotated": None if len(set(rotated)) == 1 else jnp.array(rotated),
        "angles": None if len(angles) == 1 else jnp.array([list(angles).index(id(inputs.angles)) for inputs in layers]),
        "hot": None if len(set(hot)) == 1 else jnp.array(hot),
    }

    def step(
        x: Float[Array, "B T D"], layer: tuple[nnx.State, dict[str, Array | None]]
    ) -> tuple[Float[Array, "B T D"], None]:
        state, own = layer
        inputs = first
        if own["window"] is not None:
            inputs = replace(inputs, window=WindowChoice(sizes, own["window"]))
        if own["rotated"] is not None:
            inputs = replace(inputs, rotated=own["rotated"])
        if own["angles"] is not None:
            stacked_angles = jax.tree.map(lambda *leaves: jnp.stack(leaves), *angles.values())
            inputs = replace(inputs, angles=jax.tree.map(lambda leaf: leaf[own["angles"]], stacked_angles))
        if own["hot"] is not None and temperature is not None:
            inputs = replace(inputs, temperature=jnp.where(own["hot"], temperature, 1.0))
        return kept(nnx.merge(graph, state)(x, inputs)[0]), None

    if policy is not None:
        step = jax.checkpoint(step, policy=policy, prevent_cse=False)  # a scan's body needs no barrier
    return jax.lax.scan(step, x, (stacked, varying))[0]


def _layer(stacked: nnx.State, number: int) -> nnx.State:
    """Return one layer of stacked parameters."""

    def take(variable: nnx.Variable) -> nnx.Variable:
        value = jax.tree.map(partial(_item, number), variable.get_value())
        return type(variable)(value, axes=variable.get_metadata()["axes"][1:])

    return jax.tree.map(take, stacked, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _item(number: int, leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.Array | jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return leaf[number]
