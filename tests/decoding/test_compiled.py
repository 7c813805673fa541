"""The loop as compiled, for this machine and for a TPU that is not there: nothing as large as a cache is copied."""

import math
import re

import jax
import pytest

from colm_jax.errors import UserError
from colm_jax.parallel import make_mesh
from colm_jax.plan.plan import topology_devices
from colm_jax.plan.programs import decoding_program
from tests.tiny import tiny_config

LENGTH = 448
BASE = tiny_config(width=256, heads=4, kv_heads=4, head_dim=64, ff=384, context=512)
EXPERT = tiny_config(width=384, heads=6, kv_heads=6, head_dim=64, ff=640, context=512)
RESULT = re.compile(r"= \(?\w+\[([\d,]+)\]\S* (?:copy|transpose|copy-start)\(")


def loop_text(platform: str, batch: int, dtype: str) -> str:
    if platform == "tpu":
        try:
            devices = topology_devices("v5e:2x2")[:1]
        except UserError as error:
            pytest.skip(f"no libtpu: {error}")
    else:
        devices = jax.devices()[:1]
    mesh = make_mesh(1, 1, 1, devices=devices)
    program = decoding_program(BASE, [(EXPERT, dtype, mesh)], dtype, LENGTH, batch, mesh)
    return program.traced.lower(lowering_platforms=(platform,)).compile().as_text()


def copies(text: str) -> list[tuple[str, int]]:
    """Computation and number of elements of every copy and transposition outside of the entry."""
    found, where = [], ""
    for line in text.splitlines():
        if opening := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{", line):
            where = "" if opening[1] else opening[2]
        elif where and (match := RESULT.search(line)):
            found.append((where, math.prod(int(n) for n in match[1].split(","))))
    return found


@pytest.mark.parametrize(
    ("platform", "batch", "dtype"), [("cpu", 1, "float32"), ("cpu", 4, "float32"), ("tpu", 4, "bfloat16")]
)
def test_the_loop_copies_no_cache_and_no_weights(platform, batch, dtype):
    """The smallest of a layer's caches, and of its kernels on CPU, is larger than any copy in the loop."""
    found = copies(loop_text(platform, batch, dtype))
    cache = batch * BASE.kv_heads * LENGTH * BASE.head_dim
    kernel = BASE.heads * BASE.head_dim * BASE.width
    bound = min(cache, kernel) if platform == "cpu" else cache
    assert found  # the text is read as it should be
    assert [copy for copy in found if copy[1] >= bound] == []
