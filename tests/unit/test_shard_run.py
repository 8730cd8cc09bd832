"""A run on its shards: decisions are carried out once, readers see one version, nobody waits for ever."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest

from stepd.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from stepd.rules import AdamW
from stepd.v1 import round_pb2, shard_pb2
from stepd_server.shard import pulling
from stepd_server.shard.pulling import Pulling

from .shard_bench import BLOCK, Fleet, apply, arrays, chunks, member, run


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_parameters_come_back_as_they_were_loaded(tmp_path: Path, shards: int) -> None:
    """Scalars and empty tensors too, on any number of shards."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), shards=shards)
        await fleet.start()
        for name, array in (await fleet.pull()).items():
            np.testing.assert_array_equal(array, fleet.params[name])

    run(scenario)


def test_a_new_attempt_drops_what_was_gathered(tmp_path: Path) -> None:
    """Whoever waits for the old attempt, or sends to it, is told to send again; a quarantined worker is told that."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), shards=2)
        await fleet.start()
        first = asyncio.create_task(fleet.gather((0, 1)))
        await asyncio.sleep(0)
        await fleet.push(arrays(9), 0)
        waiting = asyncio.create_task(fleet.pull(round=0, attempt=0))
        await asyncio.sleep(0)
        second = asyncio.create_task(fleet.gather((0,), attempt=1, quarantined=(1,)))
        for task in (first, waiting):
            with pytest.raises(Aborted) as caught:
                await task
            assert caught.value.reason == "ROUND_RESTARTED"
            assert caught.value.details["attempt"] == 1
        with pytest.raises(Aborted):
            await fleet.push(arrays(1), 0)
        statuses = {r.status for r in await fleet.push(arrays(2), 1, attempt=1)}
        assert statuses == {shard_pb2.RECEIPT_STATUS_QUARANTINED}
        await fleet.push(arrays(1), 0, attempt=1)
        await second
        await fleet.finish(apply(0, attempt=1))
        pulled = await fleet.pull(round=0)
        np.testing.assert_allclose(pulled["w"], fleet.params["w"] - arrays(1)["w"], rtol=1e-6)

    run(scenario)


@pytest.mark.parametrize("kept", [1, 100])
def test_readers_of_one_version_share_its_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """And never see another version's, nor do messages stay when nobody reads."""
    encoded = []

    def encode(shard: Pulling, request: shard_pb2.PullRequest, start: int, stop: int) -> bytes:
        encoded.append(start)
        return real(shard, request, start, stop)

    real = Pulling._encoded
    monkeypatch.setattr(Pulling, "_encoded", encode)
    monkeypatch.setattr(pulling, "CHUNK_BYTES", 64)
    monkeypatch.setattr(pulling, "MESSAGES_KEPT", kept)

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        expected = dict(fleet.params)
        for step in range(3):
            encoded.clear()
            waiting = [asyncio.create_task(fleet.pull(round=step)) for _ in range(3)]
            await fleet.step(arrays(step + 1), round=step)
            expected = {name: value - arrays(step + 1)[name] for name, value in expected.items()}
            for pulled in await asyncio.gather(*waiting):
                for name, value in pulled.items():
                    np.testing.assert_array_equal(value, expected[name])
            if kept == 100:
                assert 1 < len(encoded) < 2 * len(set(encoded))  # the first may be ahead before there is a second
            assert not fleet.shards[0]._messages

    run(scenario)


def test_a_contribution_from_outside_the_round_is_late_when_that_is_decided(tmp_path: Path) -> None:
    """A stranger, and an older incarnation; a round long over."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        await fleet.step(arrays(1))
        gathered = asyncio.create_task(fleet.gather((0,), round=1))
        await asyncio.sleep(0)
        old = shard_pb2.PushHeader(run="run", member=member(0, 0), id=round_pb2.RoundId(round=1), weight=1.0)
        stranger = asyncio.create_task(fleet.push(arrays(1), 5, round=1))
        older = asyncio.create_task(fleet.shards[0].push(old, chunks(np.empty(0))))
        await fleet.push(arrays(1), 0, round=1)
        await gathered
        assert not stranger.done()
        assert not older.done()
        await fleet.finish(apply(1))
        receipts = [*await stranger, await older, *await fleet.push(arrays(1), 5, round=0)]
        assert {receipt.status for receipt in receipts} == {shard_pb2.RECEIPT_STATUS_LATE}

    run(scenario)


def test_a_round_that_starts_over_may_take_what_it_was_closed_without(tmp_path: Path) -> None:
    """Nobody has been told that it is late."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        first = asyncio.create_task(fleet.gather((0,)))
        await asyncio.sleep(0)
        slow = asyncio.create_task(fleet.push(arrays(2), 1))
        await fleet.push(arrays(1), 0)
        await first
        again = asyncio.create_task(fleet.gather((0, 1), attempt=1))
        with pytest.raises(Aborted, match="gathered again as attempt 1"):
            await slow
        for rank in (0, 1):
            (receipt,) = await fleet.push(arrays(1 + rank), rank, attempt=1)
            assert receipt.status == shard_pb2.RECEIPT_STATUS_ACCEPTED
        await again

    run(scenario)


def test_decisions_may_be_repeated(tmp_path: Path) -> None:
    """Twice at once, and again after: applied once. A decision for a round that is not gathered is refused."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), shards=2)
        await fleet.start()
        gathered = asyncio.create_task(fleet.gather((0,)))
        await fleet.push(arrays(1))
        await gathered
        assert await asyncio.gather(*(fleet.finish(apply(0)) for _ in range(3))) == [[1, 1]] * 3
        assert await fleet.finish(apply(0)) == [1, 1]
        with pytest.raises(FailedPrecondition):
            await fleet.finish(apply(1))
        pulled = await fleet.pull()
        np.testing.assert_allclose(pulled["w"], fleet.params["w"] - arrays(1)["w"], rtol=1e-6)

    run(scenario)


def test_a_pull_waits_for_its_round(tmp_path: Path) -> None:
    """And gets the parameters after it, with the decision in the header."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), shards=2)
        await fleet.start()
        waiting = asyncio.create_task(fleet.pull(round=0, attempt=0))
        await fleet.step(arrays(1))
        pulled = await waiting
        np.testing.assert_allclose(pulled["w"], fleet.params["w"] - arrays(1)["w"], rtol=1e-6)

    run(scenario)


def test_a_slow_reader_keeps_its_version_or_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step waits a while for a reader of what it overwrites; then the reader gets an error, never a mixture."""
    monkeypatch.setattr("stepd_server.shard.reading.READER_GRACE_S", 0.05)
    monkeypatch.setattr("stepd_server.shard.pulling.CHUNK_BYTES", 4 * BLOCK)

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        reading = fleet.shards[0].pull(shard_pb2.PullRequest(run="run"))
        await anext(reading)
        await anext(reading)
        await fleet.step(arrays(1))
        with pytest.raises(Aborted) as caught:
            await anext(reading)
        assert (caught.value.reason, caught.value.details["step"]) == ("VERSION_PASSED", 1)
        with pytest.raises(Aborted, match="step 0 has been overwritten by step 1"):
            await fleet.pull(step=0)
        await fleet.pull(step=1)

    run(scenario)


def test_a_reader_that_is_lost_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member is stopped in the middle of a pull, and then left out of the round: the step does not wait for it."""
    monkeypatch.setattr("stepd_server.shard.reading.READER_GRACE_S", 3600.0)
    monkeypatch.setattr("stepd_server.shard.pulling.CHUNK_BYTES", 4 * BLOCK)

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        first = asyncio.create_task(fleet.gather((0, 1)))
        await asyncio.sleep(0)
        reading = fleet.shards[0].pull(shard_pb2.PullRequest(run="run", member=member(1)))
        await anext(reading)
        await anext(reading)
        second = asyncio.create_task(fleet.gather((0,), attempt=1))
        await asyncio.sleep(0)
        with pytest.raises(Aborted, match="gathered again as attempt 1"):
            await first
        await fleet.push(arrays(1), attempt=1)
        await second
        await fleet.finish(apply(0, attempt=1))
        with pytest.raises(Aborted, match="step 0 has been overwritten by step 1"):
            await anext(reading)

    run(scenario)


def test_a_run_taken_up_again_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """The files of a shard that ended hold parameters, buffers, counts, round and step."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), AdamW(lr=0.1), shards=2)
        await fleet.start()
        other = Fleet(tmp_path / "other", arrays(0), AdamW(lr=0.1), shards=2)
        await other.start()
        for round in range(4):
            await fleet.step(arrays(round), round=round, lr=0.1)
            await other.step(arrays(round), round=round, lr=0.1)
            fleet.shards = [fleet.open(i) for i in range(2)]
            arenas = [shard.arena for shard in fleet.shards]
            assert {(a.round, a.step, a.unfinished) for a in arenas} == {(round + 1, round + 1, False)}
        expected = await other.pull()
        for name, array in (await fleet.pull()).items():
            np.testing.assert_array_equal(array, expected[name])

    run(scenario)


def test_deleting_a_run_ends_every_wait_on_it(tmp_path: Path) -> None:
    """Pushes that wait for their round, pulls, and the gathering itself."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        waits = [
            asyncio.create_task(fleet.gather((0,))),
            asyncio.create_task(fleet.push(arrays(1), round=3)),
            asyncio.create_task(fleet.pull(round=2)),
        ]
        await asyncio.sleep(0.01)
        await fleet.shards[0].close()
        for task in waits:
            with pytest.raises(NotFound):
                await task

    run(scenario)


def test_a_run_without_all_its_parameters_does_not_start(tmp_path: Path) -> None:
    """The errors say how many elements are there, and which parameter is not finite."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        shard = fleet.shards[0]
        with pytest.raises(FailedPrecondition, match="0 of 169 elements"):
            shard.seal()
        with pytest.raises(FailedPrecondition, match="has not started"):
            await fleet.pull()
        flat = fleet.flat(0, arrays(0))[0]
        with pytest.raises(InvalidArgument, match="after 100 of 169"):
            await shard.load(chunks(flat[:100]))
        flat[65] = math.nan
        with pytest.raises(InvalidArgument, match="'b' must be finite, got nan"):
            await shard.load(chunks(flat))
        await shard.load(chunks(fleet.flat(0, arrays(0))[0]))
        shard.seal()

    run(scenario)
