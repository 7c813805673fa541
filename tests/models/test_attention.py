"""Attention of long texts and over large caches equals the plain form, in every kernel and its gradient."""

import jax
import jax._src.cudnn.fused_attention_stablehlo as fused
import jax.numpy as jnp
import numpy as np
import pytest

from colm_jax.models import attention, blockwise, causal, splash
from colm_jax.models.attention import attend, plain
from colm_jax.models.causal import WindowChoice
from colm_jax.parallel import make_mesh
from colm_jax.plan.plan import matrix_flops

TIME = 300  # two blocks, the second not full
# What changes: heads, heads of keys, size of keys, size of values, and arguments of `attend`.
CASES = {
    "grouped heads": (4, 2, 16, 16, {}),
    "one head of keys, other values": (3, 1, 12, 8, {}),
    "window": (2, 2, 8, 8, {"window": 40}),
    "window of a scan": (2, 2, 8, 8, {"window": WindowChoice((None, 40, 270), jnp.int32(1))}),
    "chunks": (2, 1, 8, 8, {"window": 90, "chunked": True}),
    "soft cap": (2, 2, 8, 8, {"softcap": 2.0}),
    "sinks": (4, 2, 8, 8, {"sinks": jnp.array([0.5, -1.0, 2.0, 0.1]), "window": 100}),
    "texts": (4, 2, 8, 8, {"segments": True}),
    "texts, window, soft cap, sinks": (
        2,
        1,
        8,
        8,
        {"segments": True, "window": 30, "softcap": 3.0, "sinks": jnp.array([1.0, 0.0])},
    ),
    "texts, chunks": (2, 2, 8, 8, {"segments": True, "window": 50, "chunked": True}),
}


def inputs(case, time=TIME, batch=2):
    heads, kv_heads, width, wide, options = CASES[case]
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (heads, width), (kv_heads, width), (kv_heads, wide)
    arrays = [jax.random.normal(key, (batch, time, *shape)) for key, shape in zip(keys, shapes)]
    options = {"precision": "highest", **options}
    if options.get("segments"):
        borders = np.array([[70, 71, 260], [10, 150, 290]])
        options["segments"] = jnp.array((np.arange(time) >= borders[..., None]).sum(1), jnp.int32)
    return arrays, options


def oracle(query, key, value, sinks=None, window=None, **options):
    """The plain form of all texts."""
    size = window.size if isinstance(window, WindowChoice) else window
    return plain(query * 0.3, key, value, sinks=sinks, window=size, **options)


def with_gradients(function, arrays, sinks, **options):
    arguments = (*arrays, *(() if sinks is None else (sinks,)))

    @jax.jit
    def both(*arguments):
        out, pull = jax.vjp(lambda q, k, v, *s: function(q, k, v, sinks=s[0] if s else None, **options), *arguments)
        return out, *pull(jnp.cos(out + jnp.arange(float(out.shape[1]))[:, None, None]))

    return both(*arguments)


def assert_all_close(found, expected, atol=1e-5):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=atol * max(1.0, float(jnp.abs(other).max())))


@pytest.fixture
def blocks_of_64(monkeypatch):
    """Every text is long, and has several blocks."""
    monkeypatch.setattr(attention, "_SHORT", 1)
    monkeypatch.setattr(blockwise, "_MOST", 64)
    yield
    forget()


@pytest.fixture
def on_tpu(monkeypatch):
    """The kernel for TPU in the interpreter, as it would run there."""
    forward, backward = splash.forward, splash.backward
    monkeypatch.setattr(attention, "_SHORT", 1)
    monkeypatch.setattr(splash, "_BLOCK", 256)
    monkeypatch.setattr(splash, "forward", lambda *a: forward(*a, interpret=True))
    monkeypatch.setattr(splash, "backward", lambda *a: backward(*a, interpret=True))
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *a, tpu, **others: tpu(*a))
    forget()
    yield
    forget()


def forget():
    """No program that was traced with a test's sizes is used in another."""
    causal.attention_forward.clear_cache()
    causal.attention_backward.clear_cache()


def assert_equals_the_plain_form(case, **sizes):
    arrays, options = inputs(case, **sizes)
    sinks = options.pop("sinks", None)
    found = with_gradients(lambda *a, **o: attend(*a, scale=0.3, **o), arrays, sinks, **options)
    assert_all_close(found, with_gradients(oracle, arrays, sinks, **options))


@pytest.mark.parametrize("case", CASES)
def test_blocks_equal_the_plain_form(case, blocks_of_64):
    assert_equals_the_plain_form(case)


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_for_tpu_equals_the_plain_form(case, on_tpu):
    assert_equals_the_plain_form(case)


def test_long_texts_take_memory_in_proportion():
    """Four times the tokens, at most 4.4 times the memory, with gradient."""

    def temporary(time):
        shapes = [jax.ShapeDtypeStruct((1, time, heads, 16), jnp.float32) for heads in (4, 2, 2)]
        loss = jax.jit(jax.grad(lambda *a: jnp.sum(attend(*a, scale=1.0) ** 2), argnums=(0, 1, 2)))
        return loss.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporary(8192) <= 4.4 * temporary(2048)
    assert temporary(8192) < 8192**2  # a byte for each pair of tokens


PAST = {
    "grouped heads": (4, 2, 16, 16, {}),
    "one head of keys, other values": (3, 1, 12, 8, {}),
    "window": (2, 2, 8, 8, {"window": 40}),
    "chunks": (2, 1, 8, 8, {"window": 90, "chunked": True}),
    "soft cap, sinks": (4, 2, 8, 8, {"softcap": 2.0, "sinks": jnp.array([0.5, -1.0, 2.0, 0.1])}),
}


@pytest.mark.parametrize("case", PAST)
@pytest.mark.parametrize("time", [3, 80, 200])
def test_a_cache_read_by_blocks_equals_one_read_as_a_whole(case, time, monkeypatch, blocks_of_64):
    """Of every form: a decode step, a pass whose own tokens are short, and one whose tokens are long."""
    monkeypatch.setattr(attention, "_SMALL", 1)
    monkeypatch.setattr(attention, "_SHORT", 128)
    heads, kv_heads, width, wide, options = PAST[case]
    size, options = 500, {"precision": "highest", **options}  # no multiple of a block
    sinks = options.pop("sinks", None)
    shapes = [(time, heads, width), (time, kv_heads, width), (time, kv_heads, wide)]
    shapes += [(kv_heads, size, width), (kv_heads, size, wide)]
    arrays = [jax.random.normal(jax.random.key(i), (3, *shape)) for i, shape in enumerate(shapes)]

    @jax.jit
    def both(query, key, value, keys, values, lengths):
        past = (
            *(jnp.where((jnp.arange(size) < lengths[:, None])[:, None, :, None], x, 1e4) for x in (keys, values)),
            lengths,
        )
        found = attend(query, key, value, past, scale=0.3, sinks=sinks, **options)
        return found, plain(query * 0.3, key, value, past, sinks, **options)

    for lengths in ([0, 90, 240], [100, 130, 1], [130, 480, 499]):
        found, expected = both(*arrays, jnp.array(lengths, jnp.int32))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_decode_step_reads_no_more_blocks_than_are_filled():
    """What lies beyond the longest text's last block may be NaN, whose product with nothing would be NaN."""
    keys = jax.random.split(jax.random.key(0), 5)
    query, key, value = (jax.random.normal(k, (2, 1, n, 8)) for k, n in zip(keys, (4, 2, 2)))
    size, lengths = 4096, jnp.array([410, 3], jnp.int32)
    filled = jnp.arange(size) < size // blockwise._STEPS
    old = [jnp.where(filled[:, None], jax.random.normal(k, (2, 2, size, 8)), jnp.nan) for k in keys[3:]]
    found = attend(query, key, value, (*old, lengths), scale=0.3)
    expected = plain(query * 0.3, key, value, (*(x[:, :, :512] for x in old), lengths))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 1, 8), (8, 1, 1)], ids=str)
def test_on_a_mesh_each_device_has_its_texts_and_heads(sizes):
    """Also where there are fewer heads of keys than devices, and texts that do not divide."""
    mesh = make_mesh(*sizes)
    for batch in (8, 3):
        arrays = [jax.random.normal(jax.random.key(i), (batch, 200, n, 8)) for i, n in enumerate((8, 2, 2))]
        sinks, texts = jnp.linspace(-1.0, 1.0, 8), jnp.broadcast_to(jnp.arange(200) // 90, (batch, 200))
        spread = [jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P())) for x in arrays]

        options = {"scale": 0.3, "segments": texts.astype(jnp.int32), "precision": "highest"}
        found = with_gradients(attend, spread, sinks, **options)
        assert_all_close(found, with_gradients(attend, arrays, sinks, **options))


def test_the_form_follows_the_platform_of_lowering():
    shapes = [jax.ShapeDtypeStruct((1, 2048, heads, 64), jnp.bfloat16) for heads in (4, 2, 2)]
    traced = jax.jit(lambda *a: attend(*a, scale=1.0)).trace(*shapes)
    texts = {platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "tpu", "cuda")}
    assert {platform for platform, text in texts.items() if "tpu_custom_call" in text} == {"tpu"}
    assert {platform for platform, text in texts.items() if "stablehlo.while" in text} == {
        "cpu",
        "cuda",
    }  # no cuDNN here


@pytest.mark.parametrize(
    ("options", "takes"),
    [
        ({}, True),
        ({"window": 100}, True),
        ({"segments": True}, True),
        ({"softcap": 2.0}, False),
        ({"sinks": jnp.zeros(4)}, False),
        ({"window": WindowChoice((None, 40), jnp.int32(0))}, False),
        ({"dtype": jnp.float32}, False),
        ({"width": 12}, False),
        ({"width": 256}, False),
    ],
    ids=str,
)
def test_cudnn_is_called_where_it_applies(options, takes, monkeypatch):
    """Lowered for CUDA as on a host that has it, with gradients."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: False)
    options = dict(options)
    width, dtype = options.pop("width", 64), options.pop("dtype", jnp.bfloat16)
    shapes = [jax.ShapeDtypeStruct((1, 300, heads, width), dtype) for heads in (4, 2, 2)]
    if options.get("segments"):
        options["segments"] = jnp.zeros((1, 300), jnp.int32)
    forget()
    loss = jax.jit(
        jax.grad(lambda *a: jnp.sum(attend(*a, scale=1.0, **options).astype(jnp.float32)), argnums=(0, 1, 2))
    )
    text = loss.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    forget()
    assert ("__cudnn$fmha" in text, "stablehlo.while" in text) == (takes, not takes)


def test_flops_are_those_of_the_tokens_that_see_each_other():
    """Two products forward; backward the scores again and four more; a mesh's devices together."""
    time, heads, width, wide = 256, 4, 24, 16
    pairs = heads * time * (time + 1) / 2
    shapes = [jax.ShapeDtypeStruct((2, time, n, w), jnp.float32) for n, w in ((heads, width), (2, width), (2, wide))]
    forward, gradient = 2 * (width + wide), 2 * (3 * width + 2 * wide)
    attention_of = jax.jit(lambda *a: attend(*a, scale=1.0))
    assert matrix_flops(jax.make_jaxpr(attention_of)(*shapes).jaxpr) == 2 * pairs * forward
    loss = jax.grad(lambda *a: jnp.sum(attention_of(*a)), argnums=(0, 1, 2))
    assert matrix_flops(jax.make_jaxpr(loss)(*shapes).jaxpr) == 2 * pairs * (forward + gradient)
    where = jax.sharding.NamedSharding(make_mesh(2, 1, 2), jax.P())
    spread = [jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where) for shape in shapes]
    assert matrix_flops(attention_of.trace(*spread).jaxpr.jaxpr) == 2 * pairs * forward
