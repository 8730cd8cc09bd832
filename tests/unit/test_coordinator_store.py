"""What a coordinator remembers, and what is left of it after a kill in the middle of a write."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
from pathlib import Path

import pytest

from stepd.v1 import run_pb2, shard_control_pb2
from stepd_server.coordinator import convert
from stepd_server.coordinator.events import RecordAttempt
from stepd_server.coordinator.slots import Slots, frame, unframe, write_whole
from stepd_server.coordinator.store import Damaged, RunRecord, Store
from stepd_server.coordinator.vocabulary import Decision, GroupRates, Member, Nonfinite, Outcome, RoundId
from stepd_server.settings import CannotStart


def record(name: str = "digits", run_id: str = "1") -> RunRecord:
    prepared = shard_control_pb2.PrepareRunRequest(run_id=run_id, spec=run_pb2.RunSpec(name=name))
    return RunRecord(prepared, "request", 17.5)


def decided(round_: int, attempt: int = 0) -> Decision:
    a, b = Member("a", 10**9 + 1, 0), Member("b", 3, 1)
    return Decision(
        id=RoundId(round_, attempt),
        outcome=Outcome.APPLIED,
        step=round_ + 1,
        groups=(GroupRates(0.1, 0.5), GroupRates(1e-300)),
        grad_norm=math.inf,
        clip_scale=0.25,
        members=(a, b),
        nonfinite=(Nonfinite(b, 7),),
        quarantined=(b,),
    )


def test_a_decision_is_the_same_after_the_wire() -> None:
    assert convert.decision_from_proto(convert.decision_to_proto(decided(4, 2))) == decided(4, 2)


def test_the_last_value_is_found_again(tmp_path: Path) -> None:
    slots = Slots(tmp_path, "value")
    assert slots.value is None
    for i in range(5):
        slots.write(b"x" * (100 - 20 * i))
        assert Slots(tmp_path, "value").value == b"x" * (100 - 20 * i)


def test_after_any_torn_write_the_value_before_it_is_there(tmp_path: Path) -> None:
    slots = Slots(tmp_path, "value")
    slots.write(b"first value, the longest of them all")
    slots.write(b"second value")
    torn = tmp_path / "value.1"  # where the third goes
    before, after = torn.read_bytes(), frame(b"third value!", 3)
    for length in range(len(after)):
        torn.write_bytes(after[:length] + before[length:])
        assert Slots(tmp_path, "value").value == b"second value"
    torn.write_bytes(after + before[len(after) :])
    assert Slots(tmp_path, "value").value == b"third value!"


def test_a_flipped_bit_is_noticed() -> None:
    whole = frame(b"payload", 9)
    assert unframe(whole) == (9, b"payload")
    for i in range(len(whole)):
        broken = bytearray(whole)
        broken[i] ^= 4
        assert unframe(bytes(broken)) is None


def test_a_run_is_found_again_with_where_it_stands(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = store.create(record())
    assert run.last_decision is None
    run.write_record(dataclasses.replace(record(), started=True, state_bytes=12))
    run.write_decision(decided(0))
    run.write_decision(decided(1))
    again = Store(tmp_path)
    (found,) = again.runs()
    assert found == dataclasses.replace(record(), started=True, state_bytes=12)
    assert again.run("digits").last_decision == decided(1)


def test_no_attempt_is_given_away_twice(tmp_path: Path) -> None:
    run = Store(tmp_path).create(record())
    assert run.next_attempt().id == RoundId(0, 1)  # attempt 0 is not written down: it may have been told
    run.write_attempt(RecordAttempt(RoundId(0, 1)))
    assert run.next_attempt().id == RoundId(0, 2)
    run.write_decision(decided(0, 1))
    assert run.next_attempt().id == RoundId(1, 1)
    left_out = Member("b", 3, 1)
    run.write_attempt(RecordAttempt(RoundId(1, 6), (left_out,), (Nonfinite(left_out, 7),)))
    after = RecordAttempt(RoundId(1, 7), (left_out,), (Nonfinite(left_out, 7),))
    assert Store(tmp_path).run("digits").next_attempt() == after
    run.write_decision(decided(1, 6))
    assert run.next_attempt() == RecordAttempt(RoundId(2, 1))


def test_a_deleted_run_is_remembered_until_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create(record())
    store.drop(record())
    assert Store(tmp_path).runs() == []
    assert Store(tmp_path).dropped() == [record()]
    store.create(record(run_id="2"))
    assert [found.run_id for found in store.runs()] == ["2"]
    store.forget(record())
    assert Store(tmp_path).dropped() == []


def test_a_creation_that_was_broken_off_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "coordinator" / "runs" / "half").mkdir()
    assert store.runs() == []
    assert not (tmp_path / "coordinator" / "runs" / "half").exists()


def test_a_damaged_run_stops_the_coordinator(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create(record())
    path = tmp_path / "coordinator" / "runs" / "digits" / "run"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Damaged, match="digits"):
        store.runs()


def test_lives_are_counted(tmp_path: Path) -> None:
    assert [Store(tmp_path).start() for _ in range(3)] == [1, 2, 3]


def test_a_coordinator_that_cannot_write_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CannotStart, match=r"cannot write to .*coordinator: no space left on device"):
        store.start()
    with pytest.raises(OSError, match="No space"):
        store.create(record())
    assert store.runs() == []


def test_a_run_has_its_room_from_the_beginning(tmp_path: Path) -> None:
    """Whatever is written while it goes on fits into what was taken when it was created."""
    store = Store(tmp_path)
    store.start()
    folder = tmp_path / "coordinator"
    store.create(record())
    sizes = {path: path.stat().st_blocks for path in folder.rglob("*")}
    run = store.run("digits")
    for round_ in range(3):
        run.write_attempt(RecordAttempt(RoundId(round_, 1)))
        run.write_decision(decided(round_))
    Store(tmp_path).start()
    assert {path: path.stat().st_blocks for path in folder.rglob("*")} == sizes


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"old")
    write_whole(tmp_path / "file", b"new")
    assert unframe((tmp_path / "file").read_bytes()) == (0, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
