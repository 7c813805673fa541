"""Bytes to and from HBM are counted from a program's text, each by a rule."""

import pytest

from colm_jax.bench.hbm import hbm_bytes

COMPUTATIONS = """HloModule made_by_hand

%first_of (p0: f32[10,4], p1: s32[]) -> f32[1,4] {
  %p1 = s32[]{:T(128)S(6)} parameter(1)
  %p0 = f32[10,4]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %taken = f32[1,4]{1,0:T(1,128)} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,4}
}

%stored (q0: bf16[100,8], q1: bf16[1,8], q2: s32[]) -> bf16[100,8] {
  %q0 = bf16[100,8]{1,0} parameter(0)
  %q1 = bf16[1,8]{1,0:S(1)} parameter(1)
  %q2 = s32[]{:S(6)} parameter(2)
  %none = s32[] constant(0)
  %same = bf16[100,8]{1,0} bitcast(%q0)
  ROOT %put = bf16[100,8]{1,0} dynamic-update-slice(%same, %q1, %q2, %none)
}

%renamed (r0: f32[10,4]) -> f32[40] {
  %r0 = f32[10,4]{1,0} parameter(0)
  ROOT %flat = f32[40]{0} bitcast(%r0)
}

%nested (s0: f32[10,4]) -> f32[40] {
  %s0 = f32[10,4]{1,0} parameter(0)
  %inner = f32[40]{0} fusion(%s0), kind=kLoop, calls=%renamed
  ROOT %twice = f32[40]{0} add(%inner, %inner)
}

%body (b: (s32[], f32[10,4], f32[1,4])) -> (s32[], f32[10,4], f32[1,4]) {
  %b = (s32[]{:S(6)}, f32[10,4]{1,0:T(8,128)}, /*index=2*/f32[1,4]{1,0:T(1,128)S(1)}) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%b), index=0
  %rows = f32[10,4]{1,0:T(8,128)} get-tuple-element(%b), index=1
  %one = s32[]{:S(6)} constant(1)
  %next = s32[]{:S(6)} add(%i, %one)
  %row = f32[1,4]{1,0:T(1,128)S(1)} fusion(%rows, %i), kind=kLoop, calls=%first_of, metadata={op_name="x (y)"}
  ROOT %out = (s32[]{:S(6)}, f32[10,4]{1,0}, f32[1,4]{1,0:S(1)}) tuple(%next, %rows, %row)
}

%until (c: (s32[], f32[10,4], f32[1,4])) -> pred[] {
  %c = (s32[]{:S(6)}, f32[10,4]{1,0:T(8,128)}, f32[1,4]{1,0:T(1,128)S(1)}) parameter(0)
  %seven = s32[]{:S(6)} constant(7)
  %j = s32[]{:S(6)} get-tuple-element(%c), index=0
  ROOT %less = pred[]{:S(6)} compare(%j, %seven), direction=LT
}

%unknown (u: (s32[], f32[10,4], f32[1,4])) -> pred[] {
  %u = (s32[]{:S(6)}, f32[10,4]{1,0:T(8,128)}, f32[1,4]{1,0:T(1,128)S(1)}) parameter(0)
  %k = s32[]{:S(6)} get-tuple-element(%u), index=0
  %end = s32[]{:S(6)} negate(%k)
  ROOT %below = pred[]{:S(6)} compare(%k, %end), direction=LT
}

%little (l: f32[10,4]) -> f32[10,4] {
  %l = f32[10,4]{1,0} parameter(0)
  ROOT %copied = f32[10,4]{1,0} copy(%l)
}

%much (m: f32[10,4]) -> f32[10,4] {
  %m = f32[10,4]{1,0} parameter(0)
  %once = f32[10,4]{1,0} copy(%m)
  ROOT %again = f32[10,4]{1,0} copy(%once)
}

ENTRY %main (x: f32[10,4], cache: bf16[100,8], new: bf16[1,8], n: s32[]) -> f32[10,4] {
  %x = f32[10,4]{1,0:T(8,128)} parameter(0)
  %cache = bf16[100,8]{1,0:T(8,128)(2,1)} parameter(1)
  %new = bf16[1,8]{1,0:T(1,128)(2,1)S(1)} parameter(2)
  %n = s32[]{:S(6)} parameter(3)
  %here = f32[1,4]{1,0:T(1,128)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %begin = (s32[]{:S(6)}, f32[10,4]{1,0:T(8,128)}, f32[1,4]{1,0:S(1)}) tuple(%n, %x, %here)
"""
ROW, ARRAY = 4 * 4, 4 * 40  # bytes


@pytest.mark.parametrize(
    ("line", "counted"),
    [
        ("%y = f32[10,4]{1,0} copy(%x)", 2 * ARRAY),
        ("%y = f32[10,4]{1,0:T(8,128)S(1)} copy(%x)", ARRAY),
        ("%y = bf16[10,4]{1,0} convert(%x)", ARRAY + ARRAY // 2),
        ("%y = f32[10,4]{1,0} add(%x, %x)", 2 * ARRAY),
        ("%y = f32[40]{0} bitcast(%x)", 0),
        ("%y = f32[2,4]{1,0} slice(%x), slice={[0:2], [0:4]}", 4 * ROW),
        ("%y = (f32[10,4]{1,0:S(1)}, f32[10,4]{1,0}, u32[]{:S(2)}) copy-start(%x)", ARRAY),
        ("%y = ((f32[10,4]{1,0}), f32[2,4]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:2], [0:4]}", 2 * ROW),
        ("%y = (f32[10,4]{1,0}, f32[40,4]{1,0}) all-gather-start(%x), dimensions={0}", 5 * ARRAY),
        ("%y = f32[10,4]{1,0} all-gather-done(%begin)", 0),
        ("%y = f32[1,4]{1,0:S(1)} fusion(%x, %n), kind=kLoop, calls=%first_of", ROW),
        ("%y = bf16[100,8]{1,0} fusion(%cache, %new, %n), kind=kLoop, calls=%stored", 16),
        ("%y = bf16[100,8]{1,0} dynamic-update-slice(%cache, %new, %n, %n)", 16),
        ("%y = f32[40]{0} fusion(%x), kind=kLoop, calls=%nested", 2 * ARRAY),
        ("%y = (s32[], f32[10,4]{1,0}, f32[1,4]{1,0}) while(%begin), condition=%until, body=%body", 7 * ROW),
        ("%y = (s32[], f32[10,4]{1,0}, f32[1,4]{1,0}) while(%begin), condition=%unknown, body=%body", ROW),
        (
            "%y = (s32[], f32[10,4]{1,0}, f32[1,4]{1,0}) while(%begin), condition=%unknown, body=%body, "
            'backend_config={"known_trip_count":{"n":"3"}}',
            3 * ROW,
        ),
        ("%y = f32[10,4]{1,0} conditional(%n, %x, %x), branch_computations={%little, %much}", 4 * ARRAY),
        ("%y = f32[10,4]{1,0} call(%x), to_apply=%little", 2 * ARRAY),
        ('%y = s4[10,4]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"', ARRAY + 20),
    ],
)
def test_each_instruction_is_counted_by_its_rule(line, counted):
    assert hbm_bytes(f"{COMPUTATIONS}  {line}\n  ROOT %end.1 = f32[10,4]{{1,0}} bitcast(%x)\n}}\n") == counted
