"""Mixtures equal their definition in every family, gradients too, on one device and on eight; they do no more work."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx
from jax.sharding import NamedSharding

from colm_jax.errors import UserError
from colm_jax.models.config import Mixture
from colm_jax.models.quantize import QUANTIZED, quantize_kernel
from colm_jax.parallel import make_mesh, on_mesh, spec_of
from colm_jax.plan.plan import matrix_flops, topology_devices
from tests.models.mixtures import CLAMPED, MIXTURES, config_of, in_numpy, layer_of, slow
from tests.tiny import tiny_config


def tokens(batch=2, time=9, width=32):
    return jax.random.normal(jax.random.key(1), (batch, time, width))


def every_network(layer, x):
    """The layer with every network on every token and its own router, for gradients."""
    config = layer.config
    chosen, weights = layer.router.choose(x)
    shares = jnp.sum(jax.nn.one_hot(chosen, config.mixture.networks) * weights[..., None], axis=-2)
    read = x[:, :, None] * (shares[..., None] if config.mixture.on_input else 1.0)
    gate, up = (jnp.einsum("btnd,ndf->btnf", read, getattr(layer, name)[...]) for name in ("gate", "up"))
    if config.mixture.network_bias:
        gate, up = gate + layer.gate_bias[...], up + layer.up_bias[...]
    if config.activation == "clamped_swish":
        gate, up = (
            jnp.minimum(gate, config.activation_limit),
            jnp.clip(up, -config.activation_limit, config.activation_limit),
        )
        hidden = gate * jax.nn.sigmoid(config.activation_slope * gate) * (up + 1)
    else:
        hidden = (jax.nn.silu(gate) if config.activation == "silu" else jax.nn.gelu(gate)) * up
    out = jnp.einsum("btnf,nfd->btnd", hidden, layer.down[...])
    if config.mixture.network_bias:
        out += layer.down_bias[...]
    out = jnp.sum(out if config.mixture.on_input else out * shares[..., None], axis=-2)
    if config.mixture.shared_ff is not None:
        shared = layer.shared(x)
        out += shared * jax.nn.sigmoid(layer.shared_gate(x)) if config.mixture.shared_gate else shared
    return out


def output_and_gradients(graph, state, x, compute=lambda layer, x: layer(x)):
    def loss(state, x):
        out = compute(nnx.merge(graph, state), x)
        return jnp.sum(jnp.sin(out)), out

    (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(state, x)
    return out, gradients


jitted = jax.jit(output_and_gradients, static_argnums=0)


def assert_close(found, expected, error):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=error)


@pytest.mark.parametrize("name", MIXTURES)
def test_output_equals_the_definition(name):
    layer, x = layer_of(config_of(name)), tokens()
    expected = slow(in_numpy(layer), np.asarray(x, np.float64))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(layer(x), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", MIXTURES)
def test_gradients_equal_those_of_every_network_on_every_token(name):
    graph, state = nnx.split(layer_of(config_of(name)))
    found = jitted(graph, state, tokens())
    assert_close(found, output_and_gradients(graph, state, tokens(), every_network), 1e-5)
    for path, gradient in nnx.to_flat_state(found[1][0]):
        assert (np.abs(gradient[...]).max() > 1e-6) == (path[-1] != "correction"), path


@pytest.mark.parametrize("name", MIXTURES)
def test_every_field_of_a_mixture_changes_the_output(name):
    config = config_of(name)
    layer, x = layer_of(config), tokens()
    whole = {"networks", "ff", "shared_ff", "wide_router", "network_bias", "bias", "shared_gate"}  # of shapes, or types
    changes = {
        "active": config.mixture.active % 3 + 1,
        "scoring": {"softmax": "sigmoid", "sigmoid": "softmax"}[config.mixture.scoring],
        "normalised": not config.mixture.normalised,
        "scale": 1.3,
        "on_input": not config.mixture.on_input,
    }
    if config.mixture.groups > 1:
        changes |= {"groups": config.mixture.groups // 2, "active_groups": 3}
        changes["group_score"] = {"best": "two_best", "two_best": "best"}[config.mixture.group_score]
    assert set(changes) | whole | {"groups", "active_groups", "group_score"} == set(vars(config.mixture))
    for field, value in changes.items():
        try:
            mixture = dataclasses.replace(config.mixture, **{field: value})
        except UserError:
            continue  # no family has it
        other = layer_of(dataclasses.replace(config, mixture=mixture))
        assert float(jnp.abs(other(x) - layer(x)).max()) > 1e-3, field


def test_activation_limit_and_slope_change_the_output():
    config, x = config_of("gpt_oss"), tokens()
    for field in ("activation_limit", "activation_slope"):
        other = dataclasses.replace(config, **{field: 0.3})
        assert float(jnp.abs(layer_of(other)(x) - layer_of(config)(x)).max()) > 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"active": 9}, "of 8 networks 9 cannot be active"),
        ({"active": 0}, "mixture active must be a positive whole number, got 0"),
        ({"ff": 0}, "mixture ff must be a positive whole number, got 0"),
        ({"shared_ff": True}, "mixture shared_ff must be a positive whole number, got True"),
        ({"scale": 0.0, "normalised": False}, "mixture scale must be a positive number, got 0.0"),
        ({"scoring": "tanh"}, "mixture scoring must be one of .*'softmax', 'sigmoid'.*, got 'tanh'"),
        ({"bias": "up"}, "mixture bias must be one of"),
        ({"group_score": "all"}, "mixture group_score must be one of"),
        ({"groups": 3, "normalised": False}, "8 networks cannot be in 3 groups of equal size"),
        ({"groups": 4, "active_groups": 5, "normalised": False}, "2 active networks cannot be in 5 of 4 groups of 2"),
        ({"groups": 8, "normalised": False}, "2 active networks cannot be in 1 of 8 groups of 1"),
        ({"groups": 2}, "normalised softmax weights are not scaled, and have one group"),
        ({"scale": 2.0}, "normalised softmax weights are not scaled"),
        ({"bias": "choice"}, "a bias for the choice of networks needs sigmoid scores"),
        ({"bias": "router", "normalised": False}, "needs normalised softmax scores"),
        ({"scoring": "sigmoid"}, "one of the two"),
        ({"scoring": "sigmoid", "bias": "choice", "on_input": True, "normalised": False}, "one of the two"),
        ({"on_input": True}, "are sigmoids, not normalised"),
        ({"group_score": "two_best"}, "only with a bias for the choice"),
        ({"network_bias": True}, "networks have biases only if the router has one"),
        ({"shared_gate": True}, "a gate of the shared network needs one"),
    ],
    ids=str,
)
def test_what_no_family_has_is_an_error(fields, message):
    with pytest.raises(UserError, match=message):
        Mixture(**{"networks": 8, "active": 2, **fields})


@pytest.mark.parametrize("missing", ["activation_limit", "activation_slope"])
def test_activation_and_its_fields_belong_together(missing):
    with pytest.raises(UserError, match=f"{missing} belongs to activation 'clamped_swish'"):
        tiny_config(**{**CLAMPED, missing: None})
    with pytest.raises(UserError, match=f"{missing} belongs to activation 'clamped_swish'"):
        tiny_config(**{missing: 2.0})


def test_a_network_that_no_token_chose_is_not_read():
    mixture, x = layer_of(config_of("gpt_oss")), tokens(1, 1)
    expected = mixture(x)
    others = np.setdiff1d(np.arange(8), np.asarray(mixture.router.choose(x)[0]))
    for name in ("gate", "up", "down", "gate_bias", "up_bias", "down_bias"):
        kernel = getattr(mixture, name)
        kernel[...] = kernel[...].at[others].set(jnp.nan)
    np.testing.assert_array_equal(mixture(x), expected)


def test_equal_under_scan_and_remat():
    """Two layers, stacked; each policy of what a layer keeps gives the same gradients as none."""
    config = config_of("gpt_oss")
    graph, state = nnx.split(layer_of(config))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.9 * leaf]), state)

    def loss(stacked, x, wrap):
        def step(x, state):
            return x + nnx.merge(graph, state)(x), None

        return jnp.sum(jnp.sin(jax.lax.scan(wrap(step), x, stacked)[0]))

    def looped(stacked, x):
        for i in range(2):
            x = x + every_network(nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], stacked)), x)
        return jnp.sum(jnp.sin(x))

    expected = jax.grad(looped, argnums=(0, 1))(stacked, tokens())
    for policy in ("nothing_saveable", "dots_with_no_batch_dims_saveable"):
        keep = getattr(jax.checkpoint_policies, policy)
        found = jax.jit(
            jax.grad(lambda s, x, keep=keep: loss(s, x, lambda f: jax.checkpoint(f, policy=keep)), argnums=(0, 1))
        )(stacked, tokens())
        assert_close(found, expected, 2e-5)


# On a mesh.


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *[(name, (2, 2, 2)) for name in ("qwen2_moe", "gpt_oss", "llama4, top 2", "deepseek_v3")],
        *[("gpt_oss", sizes) for sizes in ((1, 1, 8), (1, 8, 1))],
        *[("mixtral", sizes) for sizes in ((1, 1, 8), (8, 1, 1), (1, 2, 4))],
    ],
    ids=str,
)
def test_sharded_equals_unsharded(name, sizes):
    """Networks divide the devices in some families, in others not; many texts, and a few tokens of one."""
    graph, state = nnx.split(layer_of(config_of(name)))
    mesh = make_mesh(*sizes)
    spread = on_mesh(state, mesh)
    for x in (tokens(8, 33), tokens(1, 3)):
        where = NamedSharding(mesh, spec_of(mesh, ("batch",), x.shape[:1]))
        found = jitted(graph, spread, jax.device_put(x, where))
        assert_close(found, jitted(graph, state, x), 1e-4)


def quantised(state, kind):
    """A layer's state with quantised kernels."""

    def of(path, variable):
        name = "layers.feed_forward." + ".".join(map(str, path))
        if not QUANTIZED.fullmatch(name):
            return variable
        one = jax.vmap(lambda kernel: quantize_kernel(kernel, 1, kind)) if variable[...].ndim == 3 else None
        return variable.replace(one(variable[...]) if one else quantize_kernel(variable[...], 1, kind))

    return nnx.from_flat_state([(path, of(path, variable)) for path, variable in nnx.to_flat_state(state)])


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_quantised_networks_equal_their_values_sharded_too(kind, sizes):
    """With scales for tiles of inputs too: 3 tiles of 96, which no mesh divides as it does the inputs."""
    config = dataclasses.replace(
        config_of("qwen2_moe"), width=96, mixture=dataclasses.replace(MIXTURES["qwen2_moe"][0], networks=6, ff=96)
    )
    graph, state = nnx.split(layer_of(config))
    small = quantised(state, kind)
    is_variable = {"is_leaf": lambda x: isinstance(x, nnx.Variable)}

    def plain(variable):
        value = variable.get_value()
        if not isinstance(value, qwix.QArray):
            return variable
        return variable.replace((jax.vmap(qwix.dequantize) if value.ndim == 3 else qwix.dequantize)(value))

    mesh = make_mesh(*sizes)

    def placed(variable):
        axes = variable.get_metadata()["axes"]
        put = lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec_of(mesh, axes, leaf.shape)))  # noqa: E731
        return variable.replace(jax.tree.map(put, variable.get_value()))

    spread = jax.tree.map(placed, small, **is_variable)
    for x in (tokens(8, 9, 96), tokens(1, 3, 96)):
        expected = nnx.merge(graph, jax.tree.map(plain, small, **is_variable))(x)
        found = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(spread, x)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def lowered(config, mesh, batch, time):
    """The layer, compiled with abstract weights on a mesh."""
    graph, state = nnx.split(nnx.eval_shape(lambda: layer_of(config)))
    x = jax.ShapeDtypeStruct((batch, time, config.width), jnp.float32)
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x)).trace(on_mesh(state, mesh), x)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("sizes", "networks"), [((1, 1, 8), 8), ((2, 1, 4), 8), ((1, 1, 8), 6), ((1, 8, 1), 8)], ids=str
)
def test_no_device_gathers_the_networks(sizes, networks):
    """Decoding: a few tokens. Split by networks, by ff or by D, the kernels stay where they are."""
    config = tiny_config(width=64, mixture=Mixture(networks, 2, ff=128))
    text = lowered(config, make_mesh(*sizes), 2, 3).lower().compile().as_text()
    gathered = [
        np.prod([int(n) for n in dims.split(",") if n])
        for dims in re.findall(r"= \(?\w+\[([\d,]*)\][^=]* all-gather(?:-start)?\(", text)
    ]
    assert all(size < 64 * 128 for size in gathered), gathered  # less than one network's kernel
    assert "all-reduce" in text


# What it costs.


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("networks", "active"), [(8, 2), (128, 8)])
def test_operations_of_a_text_are_the_active_share_of_all(networks, active):
    """2,048 tokens, compiled for TPU; dense: every network on every token."""
    config = tiny_config(width=256, mixture=Mixture(networks, active, ff=384))
    graph, state = nnx.split(nnx.eval_shape(lambda: layer_of(config, jnp.bfloat16)))
    where = jax.sharding.SingleDeviceSharding(topology_devices("v5e:2x2")[0])

    def put(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    x = put(jax.ShapeDtypeStruct((1, 2048, 256), jnp.bfloat16))
    traced = jax.jit(lambda state, x: nnx.merge(graph, state)(x)).trace(jax.tree.map(put, state), x)
    flops = traced.lower(lowering_platforms=("tpu",)).compile().cost_analysis()["flops"]
    dense = 2 * 2048 * 3 * 256 * 384 * networks
    assert active / networks * dense < flops < 1.15 * active / networks * dense
    assert matrix_flops(traced.jaxpr.jaxpr) == pytest.approx(
        active / networks * dense + 2 * 2048 * 256 * networks, rel=1e-6
    )


@pytest.mark.usefixtures("unchecked_types")
def test_planned_operations_do_not_depend_on_the_mesh():
    config = tiny_config(width=64, mixture=Mixture(8, 2, ff=128))
    found = {
        sizes: matrix_flops(lowered(config, make_mesh(*sizes), 8, 64).jaxpr.jaxpr)
        for sizes in ((1, 1, 1), (8, 1, 1), (1, 1, 8), (1, 8, 1), (2, 2, 2))
    }
    assert list(found.values()) == pytest.approx([found[1, 1, 1]] * 5, rel=1e-6)
