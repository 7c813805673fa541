"""Teams of small models for the tests of decoding by units."""

from dataclasses import replace

import numpy as np

from colm_jax import CoLM
from colm_jax.checkpoints.outline import outline_team
from colm_jax.checkpoints.team import load_base, make_gate
from colm_jax.experts.load import load_experts
from colm_jax.models.gate import gate_width
from colm_jax.settings.generation import GenerationSettings
from tests.decoding.units_oracle import Oracle


def make_team(mesh, base, experts, spans="auto", spread=None, seed=0, inputs="hidden"):
    """A team with a random gate, of which `spread` says how far its p_defer lies from 1/2; None: that of the base."""
    outline = outline_team(base, experts, spans=spans)
    loaded = load_base(base, "float32", mesh, stacked=False)
    if spread is not None:
        width = gate_width(loaded.decoder.config.width, inputs)
        kernel = spread * np.random.default_rng(seed).normal(size=(width, len(experts))).astype(np.float32)
        loaded = replace(loaded, gate=make_gate(kernel, inputs))
    found = load_experts(outline, "float32", None, mesh)
    return CoLM(loaded, found, outline.expert_tokenizers, mesh, outline)


def assert_as_the_oracle(team, prompts, **settings):
    """Whether answers are the oracle's; return them, and the oracle."""
    oracle = Oracle(team)
    own = team.settings(GenerationSettings(**settings))
    answers = team.generate(prompts, settings=own)
    for key, (prompt, answer) in enumerate(zip(prompts, answers)):
        tokens, sources, rates, calls, reason = oracle.decode(team.units.prompts(prompt, "prompt"), own, key)
        assert (answer.tokens, answer.sources) == (tokens, sources)
        assert (answer.expert_calls, answer.finish_reason) == (calls, reason)
        if answer.p_defer is not None:
            np.testing.assert_allclose(answer.p_defer, rates, atol=1e-5)
    return answers, oracle
