"""A model split over eight devices computes what one device computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colm_jax.models.gate import Gate
from colm_jax.objectives import marginal_nll
from colm_jax.parallel import make_mesh, shardings, spec_of
from tests.tiny import tiny_decoder

FIELDS = {"heads": 8, "kv_heads": 4, "head_dim": 4, "ff": 64}  # 4 kv heads: whole over 8 devices, split over 2
# Shape of one device's part.
PARTS = {
    (8, 1, 1): {
        "embedding": (32, 32),
        "head": (32, 32),
        "layers.attention.query.kernel": (2, 32, 8, 4),
        "layers.attention.key.kernel": (2, 32, 4, 4),
        "layers.attention.out.kernel": (2, 8, 4, 32),
        "layers.feed_forward.up.kernel": (2, 32, 64),
        "layers.feed_forward.down.kernel": (2, 64, 32),
        "norm.scale": (32,),
    },
    (1, 8, 1): {
        "embedding": (32, 4),
        "head": (4, 32),
        "layers.attention.query.kernel": (2, 4, 8, 4),
        "layers.attention.key.kernel": (2, 4, 4, 4),
        "layers.attention.out.kernel": (2, 8, 4, 4),
        "layers.feed_forward.up.kernel": (2, 4, 64),
        "layers.feed_forward.down.kernel": (2, 64, 4),
        "norm.scale": (4,),
    },
    (1, 1, 8): {
        "embedding": (4, 32),
        "head": (32, 4),
        "layers.attention.query.kernel": (2, 32, 1, 4),
        "layers.attention.key.kernel": (2, 32, 4, 4),
        "layers.attention.out.kernel": (2, 1, 4, 32),
        "layers.feed_forward.up.kernel": (2, 32, 8),
        "layers.feed_forward.down.kernel": (2, 8, 32),
        "norm.scale": (32,),
    },
    (2, 2, 2): {
        "embedding": (16, 16),
        "head": (16, 16),
        "layers.attention.query.kernel": (2, 16, 4, 4),
        "layers.attention.key.kernel": (2, 16, 2, 4),
        "layers.attention.out.kernel": (2, 4, 4, 16),
        "layers.feed_forward.up.kernel": (2, 16, 32),
        "layers.feed_forward.down.kernel": (2, 32, 16),
        "norm.scale": (16,),
    },
}


class Team(nnx.Module):
    """A base and its gate, together as the trainer has them."""

    def __init__(self):
        self.base = tiny_decoder(**FIELDS)
        self.gate = Gate(32, 2)
        self.gate.kernel[...] = jax.random.normal(jax.random.key(1), (32, 2))


@jax.jit(static_argnames="graph")
def logits_and_gradient(graph, state, batch):
    def loss(state):
        team = nnx.merge(graph, state)
        hidden, _ = team.base(batch["tokens"][:, :-1])
        logits = team.base.logits(hidden)
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["tokens"][:, 1:, None], axis=-1)[..., 0]
        total, count = marginal_nll(team.gate(hidden), own, batch["experts"], batch["mask"])
        return total / count, logits

    (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(state)
    return logits, gradient


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(3, 32, (8, 33)).astype(np.int32),
        "experts": -rng.exponential(1.0, (8, 32, 2)).astype(np.float32),
        "mask": rng.random((8, 32)) < 0.8,
    }
    graph, state = nnx.split(Team())
    return graph, state, batch, logits_and_gradient(graph, state, batch)


@pytest.mark.parametrize("sizes", PARTS, ids=str)
def test_sharded_equals_unsharded(sizes, problem):
    graph, state, batch, (logits, gradient) = problem
    mesh = make_mesh(*sizes)
    spread = jax.tree.map(jax.device_put, state, shardings(mesh, state))
    batch_sharding = jax.sharding.NamedSharding(mesh, spec_of(mesh, ("batch",), (8,)))
    got_logits, got_gradient = logits_and_gradient(graph, spread, jax.device_put(batch, batch_sharding))
    assert len(got_logits.sharding.device_set) == 8
    np.testing.assert_allclose(got_logits, logits, rtol=0, atol=1e-5)
    expected = nnx.to_flat_state(gradient)
    assert max(float(jnp.abs(value[...]).max()) for _, value in expected) > 1e-3
    for (path, want), (_, got) in zip(expected, nnx.to_flat_state(got_gradient), strict=True):
        np.testing.assert_allclose(got[...], want[...], rtol=0, atol=1e-5, err_msg=str(path))


@pytest.mark.parametrize("sizes", PARTS, ids=str)
def test_parameters_are_split(sizes, problem):
    _, state, _, _ = problem
    mesh = make_mesh(*sizes)
    spread = nnx.to_flat_state(jax.tree.map(jax.device_put, state, shardings(mesh, state))["base"])
    parts = {".".join(map(str, path)): value[...].addressable_shards[0].data.shape for path, value in spread}
    assert {path: parts[path] for path in PARTS[sizes]} == PARTS[sizes]
