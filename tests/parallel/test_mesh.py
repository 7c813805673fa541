"""The mesh, and the one table from logical axes to mesh axes."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from colm_jax.errors import UserError
from colm_jax.models.cache import CACHE_AXES
from colm_jax.models.config import Latent, Mixture
from colm_jax.models.gate import Gate
from colm_jax.models.lora import add_lora
from colm_jax.parallel import RULES, make_mesh, replicated, shardings, spec_of
from colm_jax.parallel.mesh import MESH_AXES
from colm_jax.settings.training import Lora
from tests.tiny import tiny_decoder


def parameters():
    """Return every sharded parameter: (axes, shape)."""
    modules = [
        nnx.eval_shape(lambda: add_lora(tiny_decoder(), Lora(rank=2), 0)),
        nnx.eval_shape(lambda: tiny_decoder(mixture=Mixture(4, 2))),
        nnx.eval_shape(lambda: tiny_decoder(tied=False)),
        nnx.eval_shape(lambda: tiny_decoder(latent=Latent(8, 8, 4, 4, 8, 1e-6))),
        nnx.eval_shape(lambda: Gate(32, 2)),
    ]
    leaves = [variable for module in modules for _, variable in nnx.to_flat_state(nnx.state(module))]
    return [(leaf.get_metadata()["axes"], leaf.shape) for leaf in leaves]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 2, 3)], ids=str)
def test_mesh_has_the_given_sizes(sizes):
    mesh = make_mesh(*sizes)
    assert dict(mesh.shape) == dict(zip(MESH_AXES, sizes))
    assert list(mesh.devices.flat) == jax.devices()[: np.prod(sizes)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 3, 1), "data=3, fsdp=3, tensor=1 needs 9 devices .*there are 8"),
        ((0, 1, 1), "data=0.*at least 1"),
        ((-1, -1, 1), "data=-1.*at least 1"),
    ],
)
def test_invalid_mesh_is_an_error(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(*sizes)


def test_rules_cover_every_used_axis_and_name_only_mesh_axes():
    assert {axis for axes, _ in parameters() for axis in axes} | {"batch", *CACHE_AXES} == set(RULES)
    assert {axis for axes in RULES.values() for axis in axes} <= set(MESH_AXES)


def test_every_parameter_has_a_name_per_axis():
    for axes, shape in parameters():
        assert len(axes) == len(shape), axes


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2), (1, 1, 8), (1, 2, 4)], ids=str)
def test_no_parameter_is_sharded_twice_over_one_mesh_axis(sizes):
    mesh = make_mesh(*sizes)
    for axes, shape in parameters():
        NamedSharding(mesh, spec_of(mesh, axes, shape))
    with pytest.raises(Exception, match="at most one positional dimension"):  # as the above would raise
        NamedSharding(mesh, P("tensor", "tensor"))


def test_mesh_axis_goes_to_the_first_axis_that_can_use_it():
    mesh, axes = make_mesh(1, 2, 4), ("networks", "embed", "ff")
    assert spec_of(mesh, axes, (8, 32, 64)) == P(("tensor",), ("fsdp",), None)
    assert spec_of(mesh, axes, (6, 32, 64)) == P(None, ("fsdp",), ("tensor",))  # 4 does not divide 6
    assert spec_of(mesh, axes, (6, 32, 6)) == P(None, ("fsdp",), None)


def test_axes_are_sharded_by_the_table():
    mesh = make_mesh(2, 2, 2)
    assert spec_of(mesh, ("vocab", "embed"), (32, 16)) == P(("tensor",), ("fsdp",))
    assert spec_of(mesh, ("batch", "layers"), (8, 2)) == P(("data", "fsdp"), None)


def test_axis_not_divisible_by_the_mesh_is_replicated():
    mesh = make_mesh(2, 2, 2)
    assert spec_of(mesh, ("vocab", "embed"), (33, 16)) == P(None, ("fsdp",))
    assert spec_of(mesh, ("batch",), (6,)) == P(None)


def test_mesh_axis_of_size_one_shards_nothing():
    assert spec_of(make_mesh(8, 1, 1), ("vocab", "embed"), (32, 16)) == P(None, None)


def test_wrong_number_of_axes_is_an_error():
    with pytest.raises(ValueError, match="argument"):
        spec_of(make_mesh(), ("vocab",), (32, 16))


def test_shardings_follow_the_table():
    mesh, state = make_mesh(1, 2, 4), nnx.state(nnx.eval_shape(tiny_decoder))
    for (_, sharding), (_, leaf) in zip(*map(nnx.to_flat_state, (shardings(mesh, state), state)), strict=True):
        assert sharding.get_value().mesh == mesh
        assert sharding.get_value().spec == spec_of(mesh, leaf.get_metadata()["axes"], leaf.shape)


def test_replicated_array_is_whole_on_each_device():
    value = jax.device_put(np.arange(6), replicated(make_mesh(2, 2, 2)))
    assert [shard.data.shape for shard in value.addressable_shards] == [(6,)] * 8
