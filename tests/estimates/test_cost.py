"""The cost of TPU programs, estimated without a TPU: loops are counted, nothing is left out."""

import jax
import jax.numpy as jnp
import pytest

from deberta_jax.errors import UserError
from deberta_jax.estimates.hlo import Program, shape_bytes
from deberta_jax.estimates.kernel_schedule import parse_schedule
from deberta_jax.parallel.chips import CHIPS, chip_named
from tests.tpu_compiler import compiled_for_tpu

WIDE = 2048

PROGRAM = """\
HloModule jit_f

%body.1 (carry.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %carry.1 = (s32[], f32[8]{0}) parameter(0)
  %count.1 = s32[] get-tuple-element(%carry.1), index=0
  %two.1 = s32[] constant(2)
  %next.1 = s32[] add(%count.1, %two.1)
  %value.1 = f32[8]{0} get-tuple-element(%carry.1), index=1
  %kernel.1 = f32[8]{0} custom-call(%value.1), custom_call_target="tpu_custom_call", metadata={
"note":"a } brace
}}, backend_config={"body":"AA"}
  ROOT %tuple.1 = (s32[], /*index=1*/f32[8]{0}) tuple(%next.1, %kernel.1)
}

%condition.1 (carry.2: (s32[], f32[8])) -> pred[] {
  %carry.2 = (s32[], f32[8]{0}) parameter(0)
  %count.2 = s32[] get-tuple-element(%carry.2), index=0
  %limit.2 = s32[] constant(%LIMIT%)
  ROOT %less.2 = pred[] compare(%count.2, %limit.2), direction=LT
}

ENTRY %main (x.1: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0:T(128)S(1)} parameter(0)
  %zero.3 = s32[] constant(3)
  %start.3 = s32[] copy(%zero.3)
  %carry.3 = (s32[], f32[8]{0}) tuple(%start.3, %x.1)
  %loop.3 = (s32[], f32[8]{0}) while(%carry.3), condition=%condition.1, body=%body.1%KNOWN%
  ROOT %y.3 = f32[8]{0} get-tuple-element(%loop.3), index=1
}
"""


def kernel_runs(limit="13", known=""):
    program = Program(PROGRAM.replace("%LIMIT%", limit).replace("%KNOWN%", known))
    (times,) = [n for op, _, n in program.runs if op.opcode == "tpu_custom_call"]
    return times, program.unknown_loops


def test_trips_are_read_from_the_loop_itself():
    assert kernel_runs() == (5, [])  # 3, 5, 7, 9, 11


def test_trips_that_the_compiler_states_win():
    stated = ', backend_config={"known_trip_count":{"n":"7"}}'
    assert kernel_runs(known=stated) == (7, [])


def test_a_loop_of_unknown_trips_is_counted_once_and_named():
    assert kernel_runs(limit="x") == (1, ["loop.3"])


@pytest.mark.parametrize(
    ("shape", "everywhere", "hbm"),
    [
        ("bf16[4,8]{1,0:T(8,128)(2,1)}", 64, 64),
        ("f32[4,8]{1,0:T(8,128)S(1)}", 128, 0),
        ("(s32[], pred[3]{0:S(1)}, s8[5]{0})", 12, 9),
    ],
)
def test_bytes_of_shapes(shape, everywhere, hbm):
    assert (shape_bytes(shape), shape_bytes(shape, hbm_only=True)) == (everywhere, hbm)


BUNDLES = """\
= control target key start

     0   :  { %s1 = smov 0 }
   0x1 LB: > { %s2 = sphi %s1 /* Start region 7 */ }
   0x2   : > { %v1 = vld [vmem:[%s2] sm:$0xff] } /* Start region 8 */
   0x3 LB: >> { %s3 = sphi %s1 } /* Start region 20 :: Start region 21 */
   0x4   :  {}
   0x5   : > { %p1 = scmp.ge.s32.totalorder %s3, 5 /* loop exit test */ }
   0x6   : >> { %v2 = vadd.f32 %v1, %v1 }
   0x7   : > { %s4 = sadd.s32 1, %s2%STAGES% }
   0x8   :  { %9 = vsyncpa [#allocation5], 1 }
"""
REGIONS = """\
  loop: start=0, step=1, limit=6
  $region3: #{k} parent=1 // loop_pre_header
  $region7: #{k} parent=1 // loop_body
    loop: start=1, step=2, limit=6
    $region9: #{k} parent=7 // loop_pre_header
    $region20: #{k} parent=7 // loop_body
"""


def test_a_bundle_counts_as_often_as_the_loops_around_it():
    schedule = parse_schedule(BUNDLES, REGIONS)
    assert schedule.loops == (6, 3)
    assert (schedule.cycles, schedule.bundles) == (2 + 6 * (3 + 3 * 4), 9)


def test_a_loop_of_a_kernel_whose_trips_are_unknown_is_counted_once():
    schedule = parse_schedule(BUNDLES, REGIONS.split("    loop")[0])
    assert schedule.loops == (6, None)
    assert schedule.cycles == 2 + 6 * (3 + 4)


def test_a_pipelined_grid_runs_two_steps_more_than_it_has():
    staged = BUNDLES.replace("%s1 /* Start region 7", "%s1 /* iteration index, stage = 1 */ /* S")
    staged = staged.replace("/* S */", "/* Start region 7 */")
    assert parse_schedule(staged, REGIONS).loops == (4, 3)


def test_a_chip_nobody_knows_is_an_error_that_names_the_known():
    with pytest.raises(UserError, match="v5e"):
        chip_named("v99")
    assert chip_named("v5e:16x16") is CHIPS["v5e"]


def wide(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


def layer(x, w):
    return jnp.tanh(x @ w)


def scanned(x, w, *lengths):
    """`layer`, as often as the product of the lengths: a scan in a scan."""
    if not lengths:
        return layer(x, w)
    return jax.lax.scan(lambda x, _: (scanned(x, w, *lengths[1:]), None), x, None, lengths[0])[0]


def pallas(grid, inner):
    from jax.experimental import pallas as pl

    def kernel(x_ref, y_ref):
        def square(_, x):
            return jnp.dot(x, x, preferred_element_type=jnp.float32).astype(x.dtype)

        y_ref[...] = jax.lax.fori_loop(0, inner, square, x_ref[...])

    block = pl.BlockSpec((256, 256), lambda step: (step, 0))
    call = pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[block],
        out_specs=block,
        out_shape=wide(256 * grid, 256),
    )
    return call, (wide(256 * grid, 256),)


def scattered(table, ids):
    rows = table[ids]
    return rows, jnp.zeros_like(table).at[ids].add(rows), jnp.sort(table, axis=0)


def until_small(x):
    return jax.lax.while_loop(lambda x: jnp.sum(x) > 1, lambda x: x * 0.5, x)


def programs():
    square = wide(WIDE, WIDE)
    yield "layer", layer, (square, square)
    yield "scan", lambda x, w: scanned(x, w, 8), (square, square)
    yield "nested", lambda x, w: scanned(x, w, 3, 4), (square, square)
    yield "scattered", scattered, (wide(1000, 256, dtype=jnp.float32), wide(64, dtype=jnp.int32))
    yield "until_small", until_small, (wide(256, 256, dtype=jnp.float32),)
    yield "kernel", *pallas(8, 4)
    yield "kernel, larger grid", *pallas(32, 4)
    yield "kernel, longer loop", *pallas(8, 8)


def all_estimates():
    """The estimate of every program."""
    from deberta_jax.estimates import cost as estimate

    made = {name: estimate.estimate_function(*program) for name, *program in programs()}
    summaries = {name: one.to_dict() for name, one in made.items()}
    ops = {name: [[op.kind, op.times, op.basis] for op in one.ops] for name, one in made.items()}
    return {"summaries": summaries, "ops": ops}


@pytest.fixture(scope="module")
def estimates():
    return compiled_for_tpu(all_estimates, schedules=True)


def quick_estimate():
    from deberta_jax.estimates import cost as estimate

    one = estimate.estimate_function(*pallas(8, 4))
    return one.quick, [[op.kind, op.basis, op.cycles] for op in one.ops]


def cycles(estimates, name, kind=None):
    summary = estimates["summaries"][name]
    return summary["cycles_by_kind"][kind] if kind else summary["cycles"]


def test_the_body_of_a_scan_counts_as_often_as_it_runs(estimates):
    one = cycles(estimates, "layer")
    peak = 2 * WIDE**3 / CHIPS["v5e"].peak_flops * CHIPS["v5e"].clock
    assert peak < one < 1.5 * peak
    assert cycles(estimates, "scan", "matmul") == pytest.approx(8 * one, rel=0.2)
    assert cycles(estimates, "nested", "matmul") == pytest.approx(12 * one, rel=0.2)
    assert ["matmul", 12, "compiler"] in estimates["ops"]["nested"]


def test_a_kernel_costs_what_its_schedule_takes_times_its_grid(estimates):
    small = cycles(estimates, "kernel", "kernel")
    assert cycles(estimates, "kernel, larger grid", "kernel") == pytest.approx(4 * small, rel=0.1)
    # The loop inside holds nearly all of the work.
    assert 1.7 * small < cycles(estimates, "kernel, longer loop", "kernel") < 2 * small
    assert ["kernel", 1, "schedule"] in estimates["ops"]["kernel"]


def test_without_schedules_a_kernel_costs_what_its_transfers_take():
    quick, ops = compiled_for_tpu(quick_estimate)
    chip, moved = CHIPS["v5e"], 2 * 8 * 256 * 256 * 2
    (cycles,) = (cycles for kind, basis, cycles in ops if (kind, basis) == ("kernel", "memory"))
    assert quick and cycles == pytest.approx(moved / chip.hbm_bandwidth * chip.clock)


def test_what_the_compiler_does_not_estimate_is_listed(estimates):
    summary = estimates["summaries"]["scattered"]
    assert summary["counts"] == {"gather": 1, "scatter": 1, "sort": 1}
    listed = summary["not_estimated"]
    assert {"gather", "scatter", "sort"} <= set(listed)
    assert listed["scatter"]["hbm_bytes"] > 0


def test_a_loop_without_known_trips_is_named(estimates):
    assert len(estimates["summaries"]["until_small"]["unknown_loops"]) == 1
    assert estimates["summaries"]["scan"]["unknown_loops"] == []
