"""Programs small enough to count by hand, and lines as XLA writes them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.training.ahead_of_time import partitioned_hlo
from lm.training.hlo import Collective, Dot, Program, collectives, dots

MESH = jax.make_mesh((2, 4), ("data", "tensor"), (AxisType.Auto,) * 2)
WHOLE = P()


def on_mesh(*shape: int, spec: P, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(MESH, spec))


def partitioned(function, *arguments: jax.ShapeDtypeStruct, out: P = WHOLE) -> str:
    return partitioned_hlo(jax.jit(function, out_shardings=NamedSharding(MESH, out)).lower(*arguments))


def test_sum_over_devices_in_a_loop_counts_once_per_trip():
    @jax.shard_map(mesh=MESH, in_specs=P(None, "tensor"), out_specs=P(None))
    def add(x):
        def body(total, row):
            return total + jax.lax.psum(row, "tensor"), None

        return jax.lax.scan(body, jnp.zeros(6, x.dtype), x)[0]

    found = collectives(partitioned(add, on_mesh(5, 24, spec=P(None, "tensor"))))
    assert found == [Collective("all-reduce", "f32", (6,), bytes=24, count=5, group=4)]
    # Each device sends 3/4 of the array twice, in each of 5 trips.
    assert found[0].sent == 5 * 2 * 24 * 3 / 4


def test_nested_loops_multiply():
    def f(x, w):
        def inner(x, _):
            return jnp.tanh(x @ w), None

        def outer(x, _):
            return jax.lax.scan(inner, x, None, length=3)[0], None

        return jax.lax.scan(outer, x, None, length=7)[0]

    x, w = on_mesh(8, 16, spec=P("data")), on_mesh(16, 16, spec=P())
    assert dots(partitioned(f, x, w, out=P("data"))) == [
        Dot("f32", (4, 16), contracted=16, count=21, operand_bytes=4 * (4 * 16 + 16 * 16))
    ]


def test_gathered_matrix_has_its_whole_size_and_keeps_its_dtype():
    def f(w):
        return w * 2

    # The axis `tensor` has four devices; bfloat16 stays, although the CPU computes in float32.
    found = collectives(partitioned(f, on_mesh(12, 8, spec=P("tensor"), dtype=jnp.bfloat16)))
    assert found == [Collective("all-gather", "bf16", (12, 8), bytes=192, count=1, group=4)]
    assert found[0].sent == 192 * 3 / 4


def test_products_of_batches_count_every_operation():
    def f(q, k):
        return jnp.einsum("bnth,bnsh->bnts", q, k)

    q, k = (on_mesh(4, 2, length, 5, spec=P("data")) for length in (6, 7))
    (found,) = dots(partitioned(f, q, k, out=P("data")))
    assert found.flops == 2 * (4 // 2) * 2 * 6 * 7 * 5
    assert found.batched
    assert found.bytes == 4 * (4 // 2) * 2 * (6 * 5 + 7 * 5 + 6 * 7)


def test_all_reduce_of_which_only_a_slice_is_used_sends_half():
    def f(x, w):
        return x.T @ w  # contracts the sharded axis

    x, w = on_mesh(8, 16, spec=P("tensor")), on_mesh(8, 12, spec=P("tensor"))
    (found,) = collectives(partitioned(f, x, w, out=P("tensor")))
    assert (found.kind, found.shape, found.sliced) == ("all-reduce", (16, 12), True)
    assert found.sent == found.bytes * 3 / 4
    (whole,) = collectives(partitioned(f, x, w))
    assert not whole.sliced
    assert whole.sent == 2 * found.sent


def test_partitioner_runs_although_the_program_is_cached():
    least = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[least]
    jax.config.update(least, 0.0)
    try:
        argument = on_mesh(8, spec=P("data"))
        assert partitioned(jnp.cos, argument) == partitioned(jnp.cos, argument)
        assert jax.config.values["jax_enable_compilation_cache"]
    finally:
        jax.config.update(least, before)


HEAD = "HloModule test, num_partitions=8\n\n"


def program(*lines: str) -> Program:
    body = "\n".join(f"  {line}" for line in lines)
    return Program(f"{HEAD}ENTRY %main (p: f32[8,4]) -> f32[8,4] {{\n  %p = f32[8,4]{{1,0}} parameter(0)\n{body}\n}}\n")


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[4,2]<=[8]", 2),
        ("[2,4]<=[4,2]T(1,0)", 4),
        ("mesh['a'=2,'b'=4] {'b'}", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}", 4),
        ("mesh['a'=8] {'a':(2)4}", 4),
        ("{}", 8),
    ],
)
def test_groups_however_they_are_written(groups, size):
    line = f"ROOT %r = f32[8,4]{{1,0}} all-reduce(%p), channel_id=1, replica_groups={groups}, to_apply=%add"
    assert program(line).collectives()[0].group == size


def test_started_and_combined_collectives_count_once_for_each_array():
    found = program(
        "%s = (f32[8,4]{1,0:T(8,128)}, f32[64,4]{1,0:T(8,128)(2,1)}) all-gather-start(%p), replica_groups=[1,8]<=[8]",
        "%d = f32[64,4]{1,0} all-gather-done(%s)",
        "%two = (f32[8,4]{1,0}, /*index=1*/f32[8,4]{1,0}) all-reduce(%p, %p), replica_groups=[1,8]<=[8], to_apply=%add",
        "ROOT %r = f32[1,4]{1,0} reduce-scatter(f32[8,4]{1,0} %p), replica_groups=[1,8]<=[8], to_apply=%add",
    ).collectives()
    assert [(each.kind, each.shape, each.count) for each in found] == [
        ("all-gather", (64, 4), 1),
        ("all-reduce", (8, 4), 2),
        ("reduce-scatter", (8, 4), 1),
    ]


def test_loop_whose_length_is_unknown_counts_once_and_is_named():
    found = Program(
        HEAD + "%cond (a: (s32[], s32[])) -> pred[] {\n  %a = (s32[], s32[]) parameter(0)\n"
        "  %i = s32[] get-tuple-element(%a), index=0\n  %n = s32[] get-tuple-element(%a), index=1\n"
        "  ROOT %lt = pred[] compare(%i, %n), direction=LT\n}\n\n"
        "%body (b: (s32[], s32[])) -> (s32[], s32[]) {\n  ROOT %b = (s32[], s32[]) parameter(0)\n"
        '  %call = f32[] custom-call(%b), custom_call_target="kernel"\n}\n\n'
        "ENTRY %main (p: (s32[], s32[])) -> (s32[], s32[]) {\n  %p = (s32[], s32[]) parameter(0)\n"
        "  ROOT %loop = (s32[], s32[]) while(%p), condition=%cond, body=%body\n}\n"
    )
    assert found.custom_calls() == {"kernel": 1}
    assert found.unknown_loops == {"loop"}


def test_trip_count_that_xla_found_is_used():
    text = "%loop = f32[8,4]{1,0} while(%p), condition=%c, body=%b, backend_config="
    found = program(text + '{"known_trip_count":{"n":"22"},"known_init_step":{"init":"0","step":"1"}}')
    body = "%b (q: f32[8,4]) -> f32[8,4] {\n  ROOT %q = f32[8,4] parameter(0)\n}\n"
    found.computations |= Program(body + HEAD + "ENTRY %x () -> f32[] {\n}\n").computations
    assert [times for _, each, times in found.executed() if each.name == "q"] == [22]


def test_groups_written_in_an_unknown_way_are_refused():
    with pytest.raises(ValueError, match="replica_groups=everyone"):
        program("ROOT %r = f32[8,4]{1,0} all-reduce(%p), replica_groups=everyone, to_apply=%add").collectives()


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("module @jit_step {}")
