"""Contributions in parts, in any interleaving, give the same bits by compiled loops, by NumPy and by the definition."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from stepd.layout import lay_out, to_proto
from stepd.limits import BLOCK_ELEMENTS
from stepd.rules import SGD
from stepd.rules.base import Array
from stepd.specs import optimizer_to_proto
from stepd.v1 import round_pb2, run_pb2, shard_control_pb2, shard_pb2
from stepd_server.exact import ExactSum
from stepd_server.kernels.arriving import Loops, known_loops
from stepd_server.kernels.compiled import available
from stepd_server.kernels.gather import Form, emit_gather
from stepd_server.shard.gathering import Contribution, Gathering
from stepd_server.shard.lanes import LANES, block_squares, block_sums, fold
from stepd_server.shard.plan import Bools, Piece
from stepd_server.shard.scratch import aligned_empty

from .shard_bench import member

needs_compiler = pytest.mark.skipif(not available(), reason="llvmlite (stepd[fast]) is not installed")
BLOCK = 300
WAYS = ["numpy", *(pytest.param(way, marks=needs_compiler) for way in ("compiled", "on three threads"))]


def by_definition(terms: Sequence[float]) -> float:
    """The sum of a block as `lanes.py` says it."""
    lanes = [0.0] * LANES
    for i, term in enumerate(terms):
        lanes[i % LANES] += term
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
    return lanes[0]


@pytest.mark.parametrize("sizes", [[1], [63], [64], [1000], [5, 1, 64, 300, 129, 2], [3] * 2500], ids=str)
def test_the_order_of_sums(sizes: list[int]) -> None:
    terms = np.random.default_rng(len(sizes)).random(sum(sizes)) ** 9
    begins = np.cumsum([0, *sizes])
    expected = [by_definition(terms[a:b].tolist()) for a, b in pairwise(begins)]
    assert block_sums(terms, begins[:-1]).tolist() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["single", "double"])
@pytest.mark.parametrize("sizes", [[1], [63], [64], [65], [1000], [BLOCK_ELEMENTS], [5, 64, 129]], ids=str)
def test_the_order_of_sums_of_squares(sizes: list[int], dtype: Any) -> None:
    values = (np.random.default_rng(len(sizes)).standard_normal(sum(sizes)) ** 9).astype(dtype)
    begins = np.cumsum([0, *sizes])
    squares = values.astype(np.float64) ** 2
    expected = [by_definition(squares[a:b].tolist()) for a, b in pairwise(begins)]
    assert block_squares(values, begins[:-1], np.empty(values.size)).tolist() == expected


class World:
    """A gathering of random contributions."""

    def __init__(self, seed: int, dtype: Any, *, norm_type: float = 2.0) -> None:
        self.rng = random.Random(seed)
        values = np.random.default_rng(seed)
        rng, double = self.rng, np.dtype(dtype) == np.float64
        sizes = sorted(rng.choice([0, 1, 7, 64, 500, 5000]) for _ in range(rng.randint(1, 12)))
        rng.shuffle(sizes)
        if not any(sizes):
            sizes.append(100)
        number = run_pb2.D_TYPE_FLOAT64 if double else run_pb2.D_TYPE_FLOAT32
        cut = rng.randint(1, len(sizes))
        groups = [
            run_pb2.GroupSpec(optimizer=optimizer_to_proto(SGD(lr=1.0)), clip=clip)
            for clip in (run_pb2.ClipSpec(max_norm=1.0), run_pb2.ClipSpec(max_value=rng.choice([0.3, 1e9])))
        ]
        parameters = [
            run_pb2.ParameterSpec(name=f"p{i}", shape=(size,), dtype=number, group=int(i >= cut))
            for i, size in enumerate(sizes)
        ]
        missing = run_pb2.MISSING_POLICY_SKIP
        spec = run_pb2.RunSpec(name="run", parameters=parameters, groups=groups, missing=missing)
        layout = to_proto(lay_out(sizes, [16] * len(sizes), 1, block=BLOCK), ["x:1"], number, BLOCK)
        self.piece = Piece.of(spec, layout, 0)
        self.workers = rng.randint(1, 3)
        reduction = rng.choice([run_pb2.REDUCTION_MEAN, run_pb2.REDUCTION_SUM, run_pb2.REDUCTION_WEIGHTED])
        self.request = shard_control_pb2.RoundToGather(
            id=round_pb2.RoundId(round=0),
            members=[member(rank) for rank in range(self.workers)],
            clip=run_pb2.ClipSpec(max_norm=1.0, norm_type=norm_type),
            reduction=reduction,
            deterministic=rng.random() < 0.3,
        )
        self.headers = [self._header(rank) for rank in range(self.workers)]
        counts = [sum(r.count for r in header.ranges) for header in self.headers]
        self.data = [values.standard_normal(count).astype(dtype) for count in counts]

    def _header(self, rank: int) -> shard_pb2.PushHeader:
        held = [s for s in range(len(self.piece.slices)) if self.rng.random() < 0.8 and self.piece.slices[s].count]
        ranges = [shard_pb2.Range(start=self.piece.starts[s], count=self.piece.slices[s].count) for s in held]
        return shard_pb2.PushHeader(member=member(rank), ranges=ranges, weight=self.rng.choice([1.0, 0.75, 2.5]))

    def _add(self, gathering: Gathering, contribution: Contribution, data: Array, way: str) -> None:
        calls = gathering.adding(contribution, data, 3) if way == "on three threads" else None
        if calls is None:
            gathering.add(contribution, data)
            return
        bad = []
        for some in calls:
            # At the same time is in any order: they have nothing in common.
            random.Random(data.size).shuffle(some)
            bad += [call() for call in some]
        gathering.added(contribution, data, finite=not any(bad))

    def gather(self, way: str) -> tuple[Array, Gathering]:
        """What is in the accumulator at the end; of the same world the same, but for the order of what arrives."""
        accumulator = np.full(self.piece.size, 77, self.piece.dtype)
        updates = np.zeros(len(self.piece.slices), np.int64)
        gathering = Gathering(self.piece, accumulator, updates, self.request, loops(way, self.piece.dtype))
        rng = random.Random(self.rng.random())
        late = rng.random() < 0.5  # some begin when others have sent
        open_: list[Contribution] = []
        waiting = list(range(self.workers))
        while waiting or open_:
            if waiting and (not open_ or not late or rng.random() < 0.2):
                rank = waiting.pop(0)
                open_.append(gathering.begin(self.headers[rank]))
                continue
            contribution = rng.choice(open_)
            data = self.data[contribution.position]
            count = min(rng.randint(1, 700), data.size - contribution.added)
            if count and not gathering.turn(contribution, count):
                continue
            if count:
                self._add(gathering, contribution, data[contribution.added :][:count], way)
            if contribution.added == data.size:
                gathering.finish(contribution)
                open_.remove(contribution)
        assert gathering.complete
        while gathering.sum_some():
            pass
        return accumulator, gathering


def loops(way: str, dtype: Any) -> Loops | None:
    if way == "numpy":
        return None
    known = known_loops(np.dtype(dtype))
    known.wait()
    return known


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["single", "double"])
def test_sums_and_norms_are_those_of_the_definition(way: str, dtype: Any) -> None:
    for seed in range(40):
        world = World(seed, dtype)
        if world.workers > 1 and not world.request.deterministic:
            world.request.deterministic = True  # or the order of arrival would decide on the bits
        accumulator, gathering = world.gather(way)
        expected, touched = added(world)
        np.testing.assert_array_equal(accumulator[touched], expected[touched], err_msg=f"seed {seed}")
        sums = gathering.sums()
        for index, group in enumerate(world.piece.groups):
            got = ExactSum.from_proto(sums.run_norms[index].powers)
            assert got == squares(world, gathering, np.where(touched, expected, 0), index), f"seed {seed}"
            if index == 0 and group.start < group.stop:
                assert ExactSum.from_proto(sums.group_norms[index].powers) == got


def added(world: World) -> tuple[Array, Bools]:
    expected = np.zeros(world.piece.size, world.piece.dtype)
    touched = np.zeros(world.piece.size, np.bool_)
    weighted = world.request.reduction == run_pb2.REDUCTION_WEIGHTED
    for header, data in zip(world.headers, world.data, strict=True):
        at = 0
        for r in header.ranges:
            part = data[at : at + r.count] * (header.weight if weighted else 1.0)
            where = slice(r.start, r.start + r.count)
            expected[where] = np.where(touched[where], expected[where] + part, part)
            touched[where] = True
            at += r.count
    return expected, touched


def squares(world: World, gathering: Gathering, total: Array, index: int) -> ExactSum:
    group, shaping, terms = world.piece.groups[index], gathering.shaping, ExactSum()
    begins = world.piece.block_begins.tolist()
    for start, stop in pairwise(begins):
        if group.start <= start < group.stop:
            g = shaping.measured(total[start:stop], index, np.empty(stop - start, total.dtype)).astype(np.float64)
            terms.add(by_definition((g * g).tolist()) * shaping.unit(index) ** 2)
    return terms


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["single", "double"])
@pytest.mark.parametrize("before", [0, 1])
def test_what_is_stored_past_the_cache_is_there(dtype: Any, before: int) -> None:
    """Where blocks begin at cache lines, and where they do not."""
    (memory,) = aligned_empty(1, 2048, np.dtype(dtype))
    data, total = np.random.default_rng(0).standard_normal(1500).astype(dtype), memory[before : before + 1500]
    begins, lanes = np.array([0, 1024, 1500]), np.zeros((2, LANES))
    loop = loops("compiled", dtype)
    assert loop is not None
    constants = np.ones(4, dtype)
    addresses = [begins.ctypes.data, lanes.ctypes.data, constants.ctypes.data]
    assert not loop[True, False, False, True, False](data.ctypes.data, total.ctypes.data, 0, 1500, *addresses)
    np.testing.assert_array_equal(total, data)
    np.testing.assert_array_equal(fold(lanes), block_sums(data.astype(np.float64) ** 2, begins[:-1]))


@needs_compiler
@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
def test_both_ways_are_alike_whatever_the_norm_and_the_order(norm_type: float) -> None:
    for seed in range(30):
        found = []
        for way in ("numpy", "compiled", "on three threads"):
            accumulator, gathering = World(seed, np.float32, norm_type=norm_type).gather(way)
            found.append((accumulator.tobytes(), gathering.sums().SerializeToString()))
        assert found[0] == found[1] == found[2], f"seed {seed}"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_found_wherever_it_is(way: str, value: float) -> None:
    for seed in range(60):
        world = World(seed, np.float32)
        bad = [rank for rank, data in enumerate(world.data) if data.size]
        if not bad:
            continue
        rank = world.rng.choice(bad)
        at = world.rng.randrange(world.data[rank].size)
        world.data[rank][at] = value
        _, gathering = world.gather(way)
        (found,) = gathering.sums().nonfinite
        place = 0
        for r in world.headers[rank].ranges:
            if at < place + r.count:
                assert found.parameter == world.piece.parameter_at(r.start + at - place)
                break
            place += r.count
        assert found.member.rank == rank


@pytest.mark.parametrize("way", WAYS)
def test_a_sum_that_overflows_is_told_from_squares_that_do(way: str) -> None:
    for dtype, value, overflow, infinite in (
        (np.float32, 3e38, True, False),
        (np.float32, 1e38, False, False),
        (np.float64, 1e200, False, True),
    ):
        world = World(5, dtype)
        world.request.reduction = run_pb2.REDUCTION_SUM
        world.headers = [world.headers[0]]
        whole = shard_pb2.Range(start=0, count=world.piece.size)
        world.workers = 2
        world.headers = [shard_pb2.PushHeader(member=member(rank), ranges=[whole]) for rank in range(2)]
        world.data = [np.full(world.piece.size, value, dtype) for _ in range(2)]
        del world.request.members[:]
        world.request.members.extend([member(0), member(1)])
        for group in world.piece.spec.groups:
            group.clip.ClearField("max_value")
        _, gathering = world.gather(way)
        sums = gathering.sums()
        assert sums.overflow == overflow
        assert any(norm.powers.overflow for norm in sums.run_norms) == infinite


def test_nothing_may_be_approximated_or_fused() -> None:
    text = emit_gather(Form("float", weighted=True, reached=True, complete=True, limited=True))
    assert not {"fast", "contract", "reassoc", "nnan", "ninf", "nsz", "arcp", "afn"} & set(text.split())
    assert "fmuladd" not in text
    assert "llvm.fma" not in text
