"""Contributions on shards become one gradient, once each, with an exact norm; what is wrong with one is attributed."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest

from stepd.errors import Aborted, InvalidArgument, MissingGradient
from stepd.layout import lay_out, to_proto
from stepd.rules import SGD, AdamW
from stepd.v1 import round_pb2, run_pb2, shard_control_pb2, shard_pb2
from stepd_server.shard.plan import Piece

from .shard_bench import SHAPES, Fleet, apply, arrays, chunks, member, norm, run, spec_of


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_step_takes_every_contribution_once(tmp_path: Path, shards: int, reduction: str) -> None:
    """Plain SGD at rate 1 subtracts the mean, or the sum, of what the workers sent."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), shards=shards)
        await fleet.start()
        grads = [arrays(seed) for seed in (1, 2, 3)]
        await fleet.step(*grads, reduction=getattr(run_pb2, f"REDUCTION_{reduction.upper()}"))
        for name, array in (await fleet.pull()).items():
            total = sum(g[name].astype(np.float64) for g in grads) / (3 if reduction == "mean" else 1)
            np.testing.assert_allclose(array, fleet.params[name] - total, rtol=1e-5, atol=1e-6)

    run(scenario)


def test_weights_count_when_the_run_is_weighted(tmp_path: Path) -> None:
    """The sum of weight * gradient over the sum of weights."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), shards=2)
        await fleet.start()
        gathered = asyncio.create_task(fleet.gather((0, 1), reduction=run_pb2.REDUCTION_WEIGHTED))
        await asyncio.gather(fleet.push(arrays(1), 0, weight=3.0), fleet.push(arrays(2), 1, weight=1.0))
        await gathered
        await fleet.finish(apply(0))
        pulled = await fleet.pull()
        expected = fleet.params["big"] - (3.0 * arrays(1)["big"] + arrays(2)["big"]) / 4.0
        np.testing.assert_allclose(pulled["big"], expected, rtol=1e-5, atol=1e-6)

    run(scenario)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_norms_are_of_the_mean_and_exact(tmp_path: Path, p: float) -> None:
    """Every p-norm agrees with float64 NumPy over the whole gradient, whatever the number of shards."""

    async def scenario() -> None:
        clip, parts = run_pb2.ClipSpec(max_norm=1.0, norm_type=p), []
        for shards in (1, 3):
            fleet = Fleet(tmp_path / f"{shards}", arrays(0), shards=shards)
            await fleet.start()
            sums = await fleet.step(arrays(1), arrays(2), clip=clip)
            mean = np.concatenate([((arrays(1)[n] + arrays(2)[n]) / 2).ravel() for n in SHAPES]).astype(np.float64)
            if p == math.inf:
                parts.append(max(part.maximum for s in sums for part in s.run_norms))
            else:
                parts.append(norm(sums) ** (2 / p))
            assert parts[-1] == pytest.approx(np.linalg.norm(mean, p), rel=1e-7)
        assert parts[0] == parts[1]

    run(scenario)


def test_value_clipping_comes_before_the_norm(tmp_path: Path) -> None:
    """Elements are limited first, and the norm is that of the limited gradient."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), shards=2)
        await fleet.start()
        sums = await fleet.step(arrays(1), clip=run_pb2.ClipSpec(max_value=0.1))
        limited = {n: np.clip(g, np.float32(-0.1), np.float32(0.1)) for n, g in arrays(1).items()}
        flat = np.concatenate([g.ravel() for g in limited.values()]).astype(np.float64)
        assert norm(sums) == pytest.approx(np.linalg.norm(flat), rel=1e-12)
        pulled = await fleet.pull()
        np.testing.assert_allclose(pulled["w"], fleet.params["w"] - limited["w"], rtol=1e-6)

    run(scenario)


def test_deterministic_rounds_do_not_depend_on_the_order_of_arrival(tmp_path: Path) -> None:
    """Three workers in any order, on 1, 2, 3 and 8 shards: the same bits, and nobody waits for ever."""

    async def scenario() -> None:
        grads, results = [arrays(seed) for seed in (1, 2, 3)], []
        for shards, order in [(1, (0, 1, 2)), (2, (2, 1, 0)), (3, (1, 0, 2)), (8, (2, 0, 1))]:
            fleet = Fleet(tmp_path / f"{shards}", arrays(0), AdamW(lr=1e-2), shards)
            await fleet.start()
            for round in range(3):
                gathered = asyncio.create_task(fleet.gather((0, 1, 2), round, deterministic=True))
                await asyncio.gather(*(fleet.push(grads[rank], rank, round) for rank in order))
                await gathered
                await fleet.finish(apply(round, 1e-2, 3))
            results.append(await fleet.pull())
        for name in SHAPES:
            for result in results[1:]:
                np.testing.assert_array_equal(result[name], results[0][name])

    run(scenario)


def test_a_contribution_sent_again_counts_once(tmp_path: Path) -> None:
    """Cut off half way and repeated from the beginning, then repeated once more: accepted, then a duplicate."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        gathered = asyncio.create_task(fleet.gather((0,)))
        flat, ranges = fleet.flat(0, arrays(1))
        header = shard_pb2.PushHeader(run="run", member=member(0), id=round_pb2.RoundId(), weight=1.0, ranges=ranges)
        with pytest.raises(InvalidArgument, match=f"after 50 of {flat.size}"):
            await fleet.shards[0].push(header, chunks(flat[:50]))
        (again,) = await fleet.push(arrays(1), chunk=7)
        assert again.status == shard_pb2.RECEIPT_STATUS_ACCEPTED
        (once_more,) = await fleet.push(arrays(1))
        assert once_more.status == shard_pb2.RECEIPT_STATUS_DUPLICATE
        await gathered
        await fleet.finish(apply(0))
        (after,) = await fleet.push(arrays(1))
        assert after.status == shard_pb2.RECEIPT_STATUS_DUPLICATE
        pulled = await fleet.pull()
        np.testing.assert_allclose(pulled["big"], fleet.params["big"] - arrays(1)["big"], rtol=1e-6)

    run(scenario)


def test_what_a_worker_has_given_up_is_not_mixed_with_what_it_sends_next(tmp_path: Path) -> None:
    """Another shard has refused the first; the attempt starts over, and the coordinator can tell which was added."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        (shard,) = fleet.shards
        request = shard_control_pb2.RoundToGather(id=round_pb2.RoundId(), members=[member(0), member(1)])
        progress = shard.gather(request)
        first = asyncio.create_task(anext(progress))
        await asyncio.sleep(0)
        await fleet.push(arrays(1), sequence=3)
        assert (await first).arrived == member(0)
        news = asyncio.create_task(anext(progress))
        second = asyncio.create_task(fleet.push(arrays(2), sequence=4))
        assert (await news).withdrawn == round_pb2.ContributionName(member=member(0), sequence=3)
        gathered = asyncio.create_task(fleet.gather((0, 1), attempt=1))
        with pytest.raises(Aborted) as caught:
            await second
        assert (caught.value.reason, caught.value.details["attempt"]) == ("ROUND_RESTARTED", 1)
        await asyncio.gather(
            fleet.push(arrays(2), attempt=1, sequence=4), fleet.push(arrays(3), 1, attempt=1, sequence=1)
        )
        (sums,) = await gathered
        assert list(sums.sequences) == [4, 1]

    run(scenario)


def test_what_is_for_one_round_is_not_late_where_turns_are_taken(tmp_path: Path) -> None:
    """Another's turn would be the end of the round. Its sender has yet to hear of it, and names it anew."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        await fleet.step(arrays(1))
        (shard,) = fleet.shards
        request = shard_control_pb2.RoundToGather(id=round_pb2.RoundId(round=1), in_turn=True)
        progress = asyncio.create_task(anext(shard.gather(request)))
        await asyncio.sleep(0)
        for round_number in (0, 1):
            with pytest.raises(Aborted) as caught:
                await fleet.push(arrays(2), 1, round=round_number, sequence=1)
            assert (caught.value.reason, caught.value.details["in_turn"]) == ("ROUND_RESTARTED", 1)
        (again,) = await fleet.push(arrays(1), round=0, sequence=1)
        assert again.status == shard_pb2.RECEIPT_STATUS_DUPLICATE
        progress.cancel()

    run(scenario)


def test_missing_gradients_leave_value_buffers_and_count(tmp_path: Path) -> None:
    """As grad=None in torch; the same in one run with and without sharing a span with neighbours."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), AdamW(lr=0.1), shards=2)
        await fleet.start()
        part = {n: g for n, g in arrays(1).items() if n != "b"}
        await fleet.step(part, lr=0.1)
        pulled = await fleet.pull()
        np.testing.assert_array_equal(pulled["b"], fleet.params["b"])
        assert (pulled["w"] != fleet.params["w"]).all()
        await fleet.step(arrays(1), round=1, lr=0.1)
        alone = Fleet(tmp_path / "alone", {"b": arrays(0)["b"]}, AdamW(lr=0.1))
        await alone.start()
        await alone.step({"b": arrays(1)["b"]}, lr=0.1)
        np.testing.assert_array_equal((await fleet.pull())["b"], (await alone.pull())["b"])

    run(scenario)


def test_a_parameter_that_one_worker_leaves_out_counts_as_zero_there(tmp_path: Path) -> None:
    """The mean divides by the number of contributions."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), shards=3)
        await fleet.start()
        await fleet.step({"b": arrays(1)["b"]}, arrays(2))
        pulled = await fleet.pull()
        np.testing.assert_allclose(pulled["w"], fleet.params["w"] - arrays(2)["w"] / 2, rtol=1e-5)
        expected = fleet.params["b"] - (arrays(1)["b"] + arrays(2)["b"]) / 2
        np.testing.assert_allclose(pulled["b"], expected, rtol=1e-5)

    run(scenario)


def test_missing_gradients_are_refused_if_the_run_says_so(tmp_path: Path) -> None:
    """The error names the parameter."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), missing=run_pb2.MISSING_POLICY_ERROR)
        await fleet.start()
        gathered = asyncio.create_task(fleet.gather((0,)))
        with pytest.raises(MissingGradient, match="'b'"):
            await fleet.push({n: g for n, g in arrays(1).items() if n != "b"})
        await fleet.push(arrays(1))
        await gathered

    run(scenario)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_attributed_and_never_applied(tmp_path: Path, poison: float) -> None:
    """The sums name sender and parameter; after the skip everything is as it was, and the next round works."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), shards=3)
        await fleet.start()
        bad = arrays(2)
        bad["big"][97] = poison
        gathered = asyncio.create_task(fleet.gather((0, 1)))
        await asyncio.gather(fleet.push(arrays(1), 0), fleet.push(bad, 1))
        found = [n for sums in await gathered for n in sums.nonfinite]
        assert [(n.member.worker, fleet.spec.parameters[n.parameter].name) for n in found] == [("w1", "big")]
        await fleet.finish(apply(0, outcome=round_pb2.OUTCOME_SKIPPED, step=0))
        await fleet.step(arrays(1), arrays(2), round=1)
        pulled = await fleet.pull()
        expected = fleet.params["w"] - (arrays(1)["w"] + arrays(2)["w"]) / 2
        np.testing.assert_allclose(pulled["w"], expected, rtol=1e-5, atol=1e-6)

    run(scenario)


def test_a_sum_of_finite_values_that_overflows_is_reported(tmp_path: Path) -> None:
    """3e38 + 3e38 is infinite in float32, and nobody in particular is to blame; 1e30 squared is not."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        huge = {n: np.full_like(g, 3e38) for n, g in arrays(1).items()}
        (sums,) = await fleet.step(huge, huge)
        assert sums.overflow
        assert not sums.nonfinite
        large = {n: np.full_like(g, 1e30) for n, g in arrays(1).items()}
        (sums,) = await fleet.step(large, round=1)
        assert not sums.overflow
        assert norm([sums]) == pytest.approx(1e30 * math.sqrt(169), rel=1e-6)

    run(scenario)


@pytest.mark.parametrize("ranges", [[(0, 10)], [(63, 1), (0, 63)], [(0, 63), (0, 63)], [(0, 1000)], [(0, 0)]], ids=str)
def test_ranges_that_are_not_whole_slices_in_order_are_refused(tmp_path: Path, ranges: list[tuple[int, int]]) -> None:
    """A contribution holds a parameter's slice whole or not at all."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        gathered = asyncio.create_task(fleet.gather((0,)))
        await asyncio.sleep(0)
        header = shard_pb2.PushHeader(
            run="run",
            member=member(0),
            id=round_pb2.RoundId(),
            weight=1.0,
            ranges=[shard_pb2.Range(start=start, count=count) for start, count in ranges],
        )
        with pytest.raises(InvalidArgument, match="whole slices"):
            await fleet.shards[0].push(header, chunks(np.zeros(1000, np.float32)))
        await fleet.push(arrays(1))
        await gathered

    run(scenario)


def test_small_tensors_share_a_span() -> None:
    """Ten thousand small tensors are a few spans, not ten thousand."""
    params = {f"p{i}": np.zeros(100, np.float32) for i in range(10_000)}
    layout = to_proto(lay_out([100] * 10_000, [16] * 10_000, 1), ["x:1"], run_pb2.D_TYPE_FLOAT32)
    piece = Piece.of(spec_of(params, SGD()), layout, 0)
    everything = np.ones(10_000, np.bool_)
    assert len(piece.spans(everything, np.zeros(10_000, np.int64))) == math.ceil(10_000 * 100 / 65_500)


def test_spans_are_cut_anew_only_when_that_makes_a_difference() -> None:
    params = {f"p{i}": np.zeros(100, np.float32) for i in range(6)}
    layout = to_proto(lay_out([100] * 6, [16] * 6, 1), ["x:1"], run_pb2.D_TYPE_FLOAT32)
    piece = Piece.of(spec_of(params, SGD()), layout, 0)
    touched, updates = np.array([1, 1, 1, 1, 0, 1], np.bool_), np.array([3, 3, 5, 5, 9, 5])

    def places() -> list[tuple[int, int, int]]:
        return [(span.start, span.stop, span.slice) for span in piece.spans(touched, updates)]

    first = places()
    assert first == [(0, 200, 0), (200, 400, 2), (500, 600, 5)]
    updates += touched  # as a step does
    assert places() == first
    updates[:2] += 2
    assert places() == [(0, 400, 0), (500, 600, 5)]
    touched[1] = False
    assert places() == [(0, 100, 0), (200, 400, 2), (500, 600, 5)]
