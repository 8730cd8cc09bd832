"""What was counted of each membership is known to later processes, however many rounds others have had since."""

from __future__ import annotations

import asyncio
import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepd.v1 import round_pb2, shard_pb2
from stepd_server.shard import counted
from stepd_server.shard.counted import Counted
from stepd_server.shard.files import map_array
from stepd_server.shard.journal import Field, Journal

from .shard_bench import Fleet, apply, arrays, chunks, member, reopen, run

DUPLICATE, LATE = shard_pb2.RECEIPT_STATUS_DUPLICATE, shard_pb2.RECEIPT_STATUS_LATE
QUARANTINED = shard_pb2.RECEIPT_STATUS_QUARANTINED


def of(incarnation: int, worker: str = "a") -> round_pb2.Member:
    return round_pb2.Member(worker=worker, incarnation=incarnation, rank=0)


def decided(round: int, *members: round_pb2.Member, **fields: Any) -> round_pb2.Decision:
    return round_pb2.Decision(id=round_pb2.RoundId(round=round, attempt=3), members=members, **fields)


def again(known: Counted, sender: round_pb2.Member, round: int | None = None, sequence: int = 0) -> Any:
    """The status, round and attempt that who sends again is told; None: nothing."""
    id_ = None if round is None else round_pb2.RoundId(round=round)
    receipt = known.receipt(shard_pb2.PushHeader(member=sender, id=id_, sequence=sequence))
    return receipt and (receipt.status, receipt.id and (receipt.id.round, receipt.id.attempt))


def described(known: Counted, sender: round_pb2.Member) -> tuple[int, int]:
    """Which of a member's contributions was in a round last, and what became of it."""
    header = shard_pb2.PullHeader()
    known.describe(sender, header)
    return header.counted, header.counted_status


def opened(folder: Path) -> Counted:
    return Counted(folder, Journal(np.zeros(len(Field), np.int64)))


def test_who_was_counted_rounds_ago_is_told_so_by_a_later_process(tmp_path: Path) -> None:
    """Of an old membership as of the new one of the same worker, and of what was left out."""
    known = opened(tmp_path)
    known.learn(decided(0, of(1), of(2, "b"), quarantined=[of(3, "c")]))
    known.learn(decided(1, of(2, "b")))
    known.learn(decided(2, of(9)))
    for each in (known, opened(tmp_path)):
        assert again(each, of(1), 0) == (DUPLICATE, (0, 3))
        assert again(each, of(9), 2) == (DUPLICATE, (2, 3))
        assert again(each, of(2, "b"), 1) == (DUPLICATE, (1, 3))
        assert again(each, of(3, "c"), 0) == (QUARANTINED, (0, 3))
        assert again(each, of(2, "b"), 2) is None
        assert again(each, of(1, "z"), 0) is None


def test_what_is_counted_in_turn_is_known_by_its_sequence(tmp_path: Path) -> None:
    known = opened(tmp_path)
    name = round_pb2.ContributionName(member=of(1), sequence=5)
    known.learn(decided(7, of(1), counted=[name]))
    known.learn(decided(8, of(2, "b"), counted=[round_pb2.ContributionName(member=of(2, "b"), sequence=1)]))
    for each in (known, opened(tmp_path)):
        assert again(each, of(1), sequence=5) == (DUPLICATE, (7, 3))
        assert again(each, of(1), sequence=4) == (DUPLICATE, None)
        assert again(each, of(1), sequence=6) is None
        assert described(each, of(1)) == (5, DUPLICATE)


def test_who_was_left_out_in_its_turn_is_told_so_under_any_later_decision(tmp_path: Path) -> None:
    known = opened(tmp_path)
    name = round_pb2.ContributionName(member=of(1), sequence=5)
    known.learn(decided(7, counted=[name], quarantined=[of(1)]))
    known.learn(decided(8, of(2, "b")))
    for each in (known, opened(tmp_path)):
        assert described(each, of(1)) == (5, QUARANTINED)
        assert described(each, of(3, "c")) == (0, shard_pb2.RECEIPT_STATUS_UNSPECIFIED)


def test_what_was_sent_for_any_round_is_known_when_a_round_of_all_took_it(tmp_path: Path) -> None:
    """The policy has changed on the way: the decision names members only, and the shard dies before it is told."""
    known = opened(tmp_path)
    known.expect(4, {("a", 1): 7})
    known.learn(decided(4, of(2, "b")))
    later = opened(tmp_path)
    assert again(later, of(1), sequence=7) is None
    later.expect(5, {("a", 1): 7})
    last = opened(tmp_path)
    last.learn(decided(5, of(1), of(2, "b")))
    for each in (last, opened(tmp_path)):
        assert again(each, of(1), sequence=7) == (DUPLICATE, (5, 3))
        assert again(each, of(1), sequence=8) is None
    last.learn(decided(6, of(1)), {("a", 1): 8})
    for each in (last, opened(tmp_path)):
        assert again(each, of(1), sequence=7) == (DUPLICATE, None)
        assert again(each, of(1), sequence=8) == (DUPLICATE, (6, 3))


def test_death_while_it_is_written_loses_and_mixes_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next process finds the decision as the latest, and takes it in again; also where a row becomes another's."""
    monkeypatch.setattr(counted, "COUNTED_MAX", 0)
    monkeypatch.setattr(counted, "_ROWS", 3)
    now = tmp_path / "now"
    now.mkdir()
    known = opened(now)
    known.learn(decided(0, of(1), of(2, "b"), of(3, "c")))
    latest = decided(1, of(2, "b"), of(4, "d"))  # for whom the first is forgotten
    copies, write = list[Path](), Journal.write

    def writing(journal: Journal, target: Any, source: Any) -> None:
        for part in (target.size // 2, target.size):
            write(journal, target[:part], source[:part])
            copies.append(tmp_path / f"{len(copies)}")
            shutil.copytree(now, copies[-1])

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", writing)
        known.learn(latest)
    assert len(copies) > 5
    for copy in copies:
        later = opened(copy)
        assert again(later, of(1), 1) is None
        assert again(later, of(4, "d"), 0) is None
        later.learn(latest)
        for each in (later, opened(copy)):
            assert again(each, of(3, "c"), 0) == (DUPLICATE, (0, 3))
            assert again(each, of(2, "b"), 1) == (DUPLICATE, (1, 3))
            assert again(each, of(4, "d"), 1) == (DUPLICATE, (1, 3))


def test_there_is_room_for_more_unless_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then those are forgotten that were counted longest ago."""
    monkeypatch.setattr(counted, "_ROWS", 2)
    known = opened(tmp_path)
    for round_number in range(6):
        known.learn(decided(round_number, of(round_number + 1)))
    for each in (known, opened(tmp_path)):
        assert [again(each, of(i + 1), i) for i in range(6)] == [(DUPLICATE, (i, 3)) for i in range(6)]

    def full(path: Path, size: int, dtype: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    later = opened(tmp_path)
    monkeypatch.setattr(counted, "map_array", full)
    for round_number in range(6, 10):
        later.learn(decided(round_number, of(round_number + 1)))
    monkeypatch.setattr(counted, "map_array", map_array)
    for each in (later, opened(tmp_path)):
        assert [i for i in range(10) if again(each, of(i + 1), i)] == list(range(2, 10))


def test_a_shard_that_was_started_again_calls_nothing_late_that_counts(tmp_path: Path) -> None:
    """The first worker had no answer for round 0; the second has had two rounds since, and the shard was killed."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        await fleet.step(arrays(1), arrays(2))
        for round_number in (1, 2):
            gathered = asyncio.create_task(fleet.gather((1,), round_number))
            await asyncio.sleep(0)
            await fleet.push(arrays(3), 1, round_number)
            await gathered
            decision = apply(round_number, members=0)
            decision.members.append(member(1))
            await fleet.finish(decision)
        fleet.shards = [reopen(tmp_path)]
        (counts,) = await fleet.push(arrays(1), 0, 0)
        assert (counts.status, counts.id.round) == (DUPLICATE, 0)
        late = shard_pb2.PushHeader(run="run", member=member(0), id=round_pb2.RoundId(round=1), weight=1.0)
        assert (await fleet.shards[0].push(late, chunks(np.empty(0)))).status == LATE

    run(scenario)
