"""Between parameters and flat spaces: every byte goes where the layout says, and comes back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from stepd import casts, wire
from stepd.buffers import Buffers, Picture
from stepd.casts import Half
from stepd.definitions import ParameterSpec
from stepd.errors import StepdError
from stepd.layout import lay_out, slices_of, to_proto
from stepd.limits import CHUNK_BYTES
from stepd.transfer import Plan
from stepd.v1 import run_pb2, shard_pb2

F4, F8, F2 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)
BLOCK = 8
SHAPES: tuple[tuple[int, ...], ...] = ((), (5, 3), (0, 4), (100,), (1,), (2, 3, 2), (37,), (0,))


def make_plan(
    shapes: Sequence[tuple[int, ...]] = SHAPES, shards: int = 3, dtypes: Sequence[Any] | None = None, block: int = BLOCK
) -> Plan:
    specs = [ParameterSpec(f"p{i}", shape, (dtypes or [F4] * len(shapes))[i]) for i, shape in enumerate(shapes)]
    master = F8 if F8 in (dtypes or ()) else F4
    pieces = lay_out([spec.size for spec in specs], [4] * len(specs), shards, block=block)
    number = run_pb2.D_TYPE_FLOAT64 if master == F8 else run_pb2.D_TYPE_FLOAT32
    return Plan(to_proto(pieces, [f"127.0.0.1:{i}" for i in range(shards)], number, block), specs)


def arrays_of(plan: Plan) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(1)
    return {i: np.asarray(rng.standard_normal(spec.shape), dtype=plan.dtype) for i, spec in enumerate(plan.parameters)}


def flat_spaces(plan: Plan, arrays: dict[int, np.ndarray]) -> list[np.ndarray]:
    """What each shard holds, by the definition in the contract."""
    return [
        np.concatenate([np.zeros(0, plan.dtype), *(arrays[s.parameter].reshape(-1)[s.start : s.stop] for s in slices)])
        for slices in plan.shards
    ]


def sent(plan: Plan, arrays: dict[int, np.ndarray], held: list[int] | None = None) -> list[np.ndarray]:
    """What the chunks of each shard add up to; checked to be in order and within the limit."""
    views = {i: array for i, array in arrays.items() if held is None or i in held}
    result = []
    for push in plan.pushes(held):
        got, at = [np.zeros(0, plan.dtype)], 0
        for chunk in push.chunks:
            message = shard_pb2.PushRequest.FromString(chunk.encode(views))
            assert message.chunk.offset == at
            assert len(message.chunk.data) == chunk.payload_bytes <= CHUNK_BYTES
            got.append(np.frombuffer(message.chunk.data, plan.dtype))
            at += got[-1].size
        result.append(np.concatenate(got))
    return result


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_a_whole_contribution_is_the_flat_space(shards: int) -> None:
    plan = make_plan(shards=shards)
    arrays = arrays_of(plan)
    for got, expected in zip(sent(plan, arrays), flat_spaces(plan, arrays), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_large_tensors_are_cut_into_chunks() -> None:
    plan = make_plan([(3, 300_000), (7,), (600_001,)], shards=2, block=1024)
    arrays = arrays_of(plan)
    assert [len(push.chunks) for push in plan.pushes()] == [3, 3]
    for got, expected in zip(sent(plan, arrays), flat_spaces(plan, arrays), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("seed", range(20))
def test_ranges_of_a_part_are_whole_slices_merged_where_they_touch(seed: int) -> None:
    plan = make_plan()
    arrays = arrays_of(plan)
    held = [i for i in range(len(SHAPES)) if random.Random(seed * 100 + i).random() < 0.6]
    spaces = flat_spaces(plan, arrays)
    for shard, (push, got) in enumerate(zip(plan.pushes(held), sent(plan, arrays, held), strict=True)):
        covered = np.concatenate([np.zeros(0, F4), *(spaces[shard][r.start : r.start + r.count] for r in push.ranges)])
        np.testing.assert_array_equal(got, covered)
        for left, right in zip(push.ranges, push.ranges[1:], strict=False):
            assert left.start + left.count < right.start, "ascending and not adjacent"
        assert sum(r.count for r in push.ranges) == sum(s.count for s in plan.shards[shard] if s.parameter in held)


def test_a_contribution_of_nothing_has_no_ranges_and_no_chunks() -> None:
    assert all(push.ranges == () and push.chunks == () for push in make_plan().pushes([]))


def test_ten_thousand_small_tensors_need_few_chunks() -> None:
    plan = make_plan([(16,)] * 10_000, shards=1)
    (push,) = plan.pushes()
    assert len(push.chunks) == 1
    assert len(push.ranges) == 1
    assert all(piece.part is None for piece in push.chunks[0].pieces), "whole tensors are not even sliced"


def test_a_layout_that_lacks_elements_is_refused() -> None:
    specs = [ParameterSpec("w", (10,), F4)]
    layout = run_pb2.Layout(
        shards=[run_pb2.ShardLayout(slices=[run_pb2.Slice(parameter=0, start=0, count=8)])],
        dtype=run_pb2.D_TYPE_FLOAT32,
    )
    with pytest.raises(StepdError, match=r"8 of the 10 elements of 'w'"):
        Plan(layout, specs)
    layout.shards[0].slices[0].count = 12
    with pytest.raises(StepdError, match="not in the run"):
        Plan(layout, specs)


# --- Pulls ----------------------------------------------------------------------------------------------------------


def pulled(
    picture: Picture, spaces: list[np.ndarray], chunk: int = 11, kind: Half | None = None
) -> dict[str, np.ndarray]:
    """As if shards had sent what the picture asks for, in chunks of an odd size; in 16 bits if they are to."""
    buffer = np.full(picture.bytes, 255, np.uint8)
    regions = picture.regions_in(buffer)
    for shard in picture.shards:
        receiver = picture.receiver(shard, regions)
        ranges = [(r.start, r.start + r.count) for r in picture.ranges(shard)] or [(0, spaces[shard].size)]
        for start, stop in ranges:
            for at in range(start, stop, chunk):
                data = spaces[shard][at : min(at + chunk, stop)]
                if kind is None:
                    receiver.take(wire.Chunk(at, memoryview(data.tobytes())))
                else:
                    halves = memoryview(casts.rounded(data, kind).tobytes())
                    receiver.take(wire.Halves(at, data.size, kind, halves))
        assert receiver.complete
    return picture.arrays_in(buffer)


@pytest.mark.parametrize("shards", [1, 3, 8])
@pytest.mark.parametrize("held", [None, [3], [0, 2, 5, 6], [1, 7]])
def test_parameters_come_back_with_their_shapes(shards: int, held: list[int] | None) -> None:
    plan = make_plan(shards=shards)
    arrays = arrays_of(plan)
    got = pulled(Picture(plan, held, None), flat_spaces(plan, arrays))
    assert list(got) == [f"p{i}" for i in (range(len(SHAPES)) if held is None else held)]
    for name, array in got.items():
        assert array.shape == SHAPES[int(name[1:])]
        assert array.flags.c_contiguous
        assert array.flags.writeable
        np.testing.assert_array_equal(array, arrays[int(name[1:])])


def test_each_parameter_has_its_own_dtype() -> None:
    dtypes = [F4, F8, F2, F2, F4, F8, F4, F2]
    plan = make_plan(dtypes=dtypes)
    arrays = arrays_of(plan)
    got = pulled(Picture(plan, None, None), flat_spaces(plan, arrays))
    for i, dtype in enumerate(dtypes):
        assert got[f"p{i}"].dtype == dtype
        np.testing.assert_array_equal(got[f"p{i}"], arrays[i].astype(dtype))
    assert all(array.dtype == F8 for array in pulled(Picture(plan, None, F8), flat_spaces(plan, arrays)).values())


def test_one_dtype_is_one_copy_for_each_chunk() -> None:
    picture = Picture(make_plan(), None, None)
    assert [len(picture._segments_of(shard)) for shard in picture.shards] == [1, 1, 1]


def test_a_master_beyond_sixteen_bits_becomes_infinite_without_a_warning() -> None:
    plan = make_plan([(4,)], shards=1, dtypes=[F2])
    got = pulled(Picture(plan, None, None), [np.array([1, 1e30, -1e30, 65504], F4)])
    np.testing.assert_array_equal(got["p0"], np.array([1, np.inf, -np.inf, 65504], F2))


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_what_comes_in_16_bits_is_put_where_the_same_values_would_be(kind: Half) -> None:
    plan = make_plan(shards=3)
    spaces = [casts.rounded(space, kind).astype(F4) for space in flat_spaces(plan, arrays_of(plan))]
    picture = Picture(plan, None, None)
    whole = pulled(picture, spaces)
    for name, array in pulled(picture, spaces, kind=kind).items():
        np.testing.assert_array_equal(array, whole[name])


@pytest.mark.parametrize(
    ("offset", "size", "message"),
    [(1, 8, "in place of 0"), (0, 7, "no whole elements"), (0, 44, "in place of")],
)
def test_a_chunk_that_is_not_the_next_is_refused(offset: int, size: int, message: str) -> None:
    plan = make_plan([(10,)], shards=1)
    picture = Picture(plan, None, None)
    receiver = picture.receiver(0, picture.regions_in(np.zeros(picture.bytes, np.uint8)))
    with pytest.raises(StepdError, match=message):
        receiver.take(wire.Chunk(offset, memoryview(bytes(size))))


# --- Buffers --------------------------------------------------------------------------------------------------------


def test_a_buffer_is_taken_again_only_when_nobody_holds_any_part_of_it() -> None:
    buffers = Buffers()
    picture = Picture(make_plan(), None, None)
    first = picture.arrays_in(buffers.take(picture.bytes))
    place = first["p3"].ctypes.data
    kept = first["p1"][1:2]  # a view of a view
    del first
    second = picture.arrays_in(buffers.take(picture.bytes))
    assert second["p3"].ctypes.data != place
    del kept
    third = picture.arrays_in(buffers.take(picture.bytes))
    assert third["p3"].ctypes.data == place


def test_a_memoryview_holds_a_buffer_as_well() -> None:
    buffers = Buffers()
    view = memoryview(buffers.take(1000)[10:20])
    assert buffers.take(1000)[10:20].ctypes.data != np.frombuffer(view, np.uint8).ctypes.data


def test_a_loop_that_keeps_its_last_result_alternates_between_two_buffers() -> None:
    buffers, places = Buffers(), set()
    held = None
    for _ in range(10):
        held = buffers.take(1000)
        places.add(held.ctypes.data)
    assert len(places) == 2


def test_more_results_than_buffers_are_all_different_memory() -> None:
    buffers = Buffers()
    held = [buffers.take(1000) for _ in range(10)]
    assert len({buffer.ctypes.data for buffer in held}) == 10


def test_slices_survive_the_wire() -> None:
    plan = make_plan()
    layout = to_proto(plan.shards, plan.targets, run_pb2.D_TYPE_FLOAT32, BLOCK)
    assert tuple(map(slices_of, layout.shards)) == plan.shards
