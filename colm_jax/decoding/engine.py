"""The engine: a team's models ready to decode, with what is the same for all its sessions (`decoding.session`)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from colm_jax.data.units import Units
from colm_jax.decoding.calls import ExpertCalls
from colm_jax.decoding.requests import Request
from colm_jax.decoding.risk import Risk
from colm_jax.decoding.slots import (
    BatchShape,
    empty_state,
)
from colm_jax.decoding.speculation import Speculation
from colm_jax.decoding.state import (
    DecodingState,
    Graphs,
    LoopConfig,
    Models,
    PassSize,
)
from colm_jax.experts.guest import GuestExpert
from colm_jax.experts.protocol import Expert
from colm_jax.models.cache import KVCache
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import Gate
from colm_jax.parallel import beside
from colm_jax.settings.generation import (
    Correction,
    ExpertBatching,
    GenerationSettings,
)
from colm_jax.settings.strategies import STRATEGIES, Strategy
from colm_jax.text.detokenizer import TokenBytes

TURNS = 16  # of one scan, and base steps in it: how often the host looks


def pass_sizes(strategy: Strategy, batch: int, speculates: bool) -> tuple[PassSize, ...]:
    """Return the sizes of expert passes, smallest first; `speculates`: they may hold drafts.

    Weights are read once a pass, however many tokens it reads; what a token costs beyond that is little on a TPU or GPU
    and, after the fourth, a tenth of a pass on a CPU. So the smallest of a few that holds the unread tokens is run.
    """
    if strategy.calls != "deferred" and not speculates:
        return (PassSize(batch, 1),)  # an expert that reads every token has one to read
    first = (PassSize(1, 1), PassSize(4, 4)) if batch == 1 else (PassSize(batch, 1),)
    return (*first, *(PassSize(times * max(batch, 4), 4 * times) for times in (2, 4, 8)))


class Engine:
    """Base, gate and experts ready to decode: layers unstacked, vocabulary and end-of-text ids fixed."""

    def __init__(
        self,
        base: Decoder,
        gate: Gate | None,
        experts: Sequence[Decoder],
        allowed: np.ndarray,
        eos_ids: tuple[int, ...],
        context: int,
        token_bytes: TokenBytes | None = None,
        units: Units | None = None,
        unit_experts: Sequence[Expert] = (),
        risk: Risk | None = None,
    ):
        """Split the models.

        Args:
          base: the base.
          gate: its gate.
          experts: resident ones.
          allowed: the shared vocabulary.
          eos_ids: the base's ends of text.
          context: of the team, in tokens.
          token_bytes: of the base's tokenizer; without it generations have no text, and requests no stop strings.
          units: of the team; without them, experts see the base's prompts.
          unit_experts: in place of resident ones, experts that work on units.
          risk: what the team has learned of where its answers go wrong.
        """
        base_graph, base_state = nnx.split(base.unstacked())
        split = [nnx.split(expert.unstacked()) for expert in experts]
        gate_graph, gate_state = (None, None) if gate is None else nnx.split(gate)
        spreads = [decoder.batch_sharding for decoder in (base, *experts)]
        meshes = [None if spread is None else spread.mesh for spread in spreads]
        self._kinds = [(d.config, d.dtype, mesh) for d, mesh in zip((base, *experts), meshes)]
        self.graphs = Graphs(base_graph, tuple(graph for graph, _ in split), gate_graph)
        self.models = Models(base_state, tuple(state for _, state in split), gate_state, jnp.asarray(allowed))
        self.eos_ids, self.context, self.token_bytes = eos_ids, context, token_bytes
        self.units, self._decoders, self._unit_experts = units, tuple(experts), tuple(unit_experts)
        self.resident = not unit_experts  # all experts are part of the loop
        self.risk = risk
        self.base_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(base_state))
        self._passes = np.zeros(len(experts) + len(unit_experts), np.int64)  # [M] of resident experts
        self.base_steps = 0  # likewise, of whole batches
        # By strategy, of the latest finished request: weights of right drafts and of all (`Agreement`).
        self.agreement: dict[str, tuple[float, float]] = {}

    @property
    def expert_passes(self) -> Int[np.ndarray, "M"]:
        """Passes of each expert, or requests to it, since the engine was made."""
        own = [expert.passes for expert in self._unit_experts] or [0] * len(self._passes)
        return self._passes + np.array(own, np.int64)

    @property
    def unit_experts(self) -> tuple[Expert, ...]:
        """The experts as ones that work on units; resident ones share their weights with the loop's."""
        if not self._unit_experts and self._decoders and self.units is not None:
            named = [(f"expert {m}", decoder, m) for m, decoder in enumerate(self._decoders, start=1)]
            self._unit_experts = tuple(GuestExpert(*each, self.units) for each in named)
        return self._unit_experts

    @cached_property
    def calls(self) -> ExpertCalls:
        """The calls of sessions to these experts."""
        return ExpertCalls(self.unit_experts)

    def count(self, base_steps: int, expert_passes: Sequence[int] | np.ndarray) -> None:
        """Count base steps and passes of resident experts that were run."""
        self.base_steps += base_steps
        self._passes[: len(expert_passes)] += expert_passes

    def limit(self, request: Request) -> int:
        """Return the sequence length at which a request ends."""
        settings = request.settings
        assert isinstance(settings.max_new_tokens, int)
        return min(len(request.prompt) + settings.max_new_tokens, self.context)

    def loop_config(self, settings: GenerationSettings, batch: int) -> LoopConfig:
        """Return what a batch of so many slots compiles."""
        strategy = STRATEGIES[settings.strategy]
        sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(s)) for s in (self.models.base, *self.models.experts)]
        batching = settings.expert_batching or ExpertBatching(batch, round(max(sizes[1:], default=0) / sizes[0]))
        correction = (settings.correction or Correction()) if strategy.corrects else None
        speculation = Speculation.of(settings.speculate, strategy, sizes[0] / max(sizes[1:], default=sizes[0]))
        passes = pass_sizes(strategy, batch, speculation.on)
        return LoopConfig(strategy, batching, passes, self.eos_ids, TURNS, speculation, correction)

    def needed_by(self, strategy: Strategy) -> tuple[Graphs, Models]:
        """Return the models that a strategy may read."""
        if strategy.calls != "never":
            return self.graphs, self.models
        return replace(self.graphs, experts=()), replace(self.models, experts=())

    def empty_caches(self, slots: int, positions: int) -> tuple[KVCache, ...]:
        """Return empty caches of all models that are part of the loop, base first."""
        caches = tuple(
            KVCache.empty(config, slots, positions, dtype, None if mesh is None or mesh.size == 1 else mesh)
            for config, dtype, mesh in self._kinds
        )
        return beside(caches, self.models.base)

    def empty_state(self, loop: LoopConfig, shape: BatchShape) -> DecodingState:
        """Return a batch of empty slots for the models that the loop's strategy may read."""
        kinds = self._kinds[:1] if loop.strategy.calls == "never" else self._kinds
        return beside(empty_state(loop, kinds, self.models.allowed.shape[0], shape), self.models.base)
