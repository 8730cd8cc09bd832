"""What a coordinator remembers, as files that a kill at any moment leaves whole.

    coordinator/epoch.0, epoch.1             how often a coordinator has started here
    coordinator/runs/NAME/run                what the run is
    coordinator/runs/NAME/decision.0, .1     its last decision
    coordinator/runs/NAME/attempt.0, .1      the last attempt after the first of its round, and who was left out of it
    coordinator/runs/NAME/plateaus.0, .1     what rates depend on besides the step, and which reports it comes from
    coordinator/runs/NAME/members/NUMBER     a member, by its incarnation
    coordinator/dropped/RUN_ID/run           a deleted run that some shard may still hold

What changes with every step is written in turn to two files: if one is torn, the other holds what was there before,
and nobody has been told of what came after.

Files of one run depend on each other in one way only: `plateaus` belongs to a revision of `run`, which holds what it
began with. A kill between any two writes leaves the one or the other, and both are good.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from stepd.limits import CHANGES_MAX
from stepd.v1 import round_pb2, shard_control_pb2
from stepd_server.coordinator import convert
from stepd_server.coordinator.events import RecordAttempt
from stepd_server.coordinator.policy import LastTogether
from stepd_server.coordinator.seats import Seat
from stepd_server.coordinator.slots import NEW, Slots, read, sync_folder, unframe, write_whole
from stepd_server.coordinator.vocabulary import Decision, Member, RoundId, Standing
from stepd_server.settings import CannotStart

_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True)
class RunRecord:
    """What a run is, apart from where it stands.

    Attributes:
        prepared: what the shards were told: its id, spec and layout. The spec is the present one, with changed rates.
        request_id: of the call that created it.
        created_at: seconds since the epoch.
        state_bytes: on all shards.
        started: its parameters are loaded.
        extension: the request_id of the latest group that was added.
        state_id: of the latest state of the optimizer that was loaded; empty if there was none. With it, that is
            decided: shards that do not use it yet are told until they do.
        changes: ids of the latest requests that changed the run, so that a repeat of one is known.
        revision: grows with every change by the owner.
        plateaus: what rates depended on besides the step when this revision began, as Plateaus.to_bytes gives it.
        last_together: a round that does not go by the policy of the spec yet, or has not.
    """

    prepared: shard_control_pb2.PrepareRunRequest
    request_id: str
    created_at: float
    state_bytes: int = 0
    started: bool = False
    extension: str = ""
    state_id: str = ""
    changes: tuple[str, ...] = ()
    revision: int = 0
    plateaus: str = ""
    last_together: LastTogether | None = None

    def changed_by(self, request_id: str) -> tuple[str, ...]:
        """`changes` with one more; a request without an id leaves no trace."""
        return (*self.changes, request_id)[-CHANGES_MAX:] if request_id else self.changes

    @property
    def name(self) -> str:
        return self.prepared.spec.name

    @property
    def run_id(self) -> str:
        return self.prepared.run_id

    def to_bytes(self) -> bytes:
        about = json.dumps(
            {
                "request_id": self.request_id,
                "created_at": self.created_at,
                "state_bytes": self.state_bytes,
                "started": self.started,
                "extension": self.extension,
                "state_id": self.state_id,
                "changes": self.changes,
                "revision": self.revision,
                "plateaus": self.plateaus,
                "last_together": self.last_together,
            }
        ).encode()
        return _LENGTH.pack(len(about)) + about + self.prepared.SerializeToString()

    @classmethod
    def from_bytes(cls, data: bytes) -> RunRecord:
        (length,) = _LENGTH.unpack_from(data)
        start = _LENGTH.size
        about = json.loads(data[start : start + length])
        about["changes"] = tuple(about.get("changes", ()))
        if about.get("last_together"):
            about["last_together"] = LastTogether(*about["last_together"])
        prepared = shard_control_pb2.PrepareRunRequest.FromString(data[start + length :])
        return cls(prepared=prepared, **about)


class Observed(NamedTuple):
    """How far reports have come in.

    Attributes:
        revision: of the run, that `plateaus` belongs to.
        plateaus: what has come of them, as Plateaus.to_bytes gives it.
        counts: by incarnation of a member, how many of its values have been counted.
    """

    revision: int
    plateaus: str
    counts: dict[int, int]


class RunStore:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._members = folder / "members"
        self._decision = Slots(folder, "decision")
        self._attempt = Slots(folder, "attempt")
        self._plateaus = Slots(folder, "plateaus")

    def reserve(self) -> None:
        """Take room for what is written while the run goes on. OSError if there is none."""
        for slots in (self._decision, self._attempt, self._plateaus):
            slots.reserve()

    def write_record(self, record: RunRecord) -> None:
        write_whole(self._folder / "run", record.to_bytes())

    # --- Rounds ---------------------------------------------------------------------------------------------------

    def write_decision(self, decision: Decision, standings: Iterable[tuple[Member, Standing]] = ()) -> None:
        self._decision.write(convert.recorded_to_proto(decision, standings).SerializeToString())

    def write_attempt(self, attempt: RecordAttempt) -> None:
        self._attempt.write(convert.attempt_to_proto(attempt).SerializeToString())

    @property
    def last_decision(self) -> Decision | None:
        if self._decision.value is None:
            return None
        return convert.decision_from_proto(round_pb2.RecordedDecision.FromString(self._decision.value).decision)

    @property
    def standings(self) -> dict[Member, Standing]:
        """What had been counted of members by the last decision, where contributions are taken in turn."""
        return convert.standings_from_proto(round_pb2.RecordedDecision.FromString(self._decision.value or b""))

    def next_attempt(self) -> RecordAttempt:
        """The first attempt of the round after the last decision that nobody can have heard of."""
        last = self.last_decision
        following = last.id.round + 1 if last else 0
        if self._attempt.value is not None:
            written = convert.attempt_from_proto(round_pb2.Decision.FromString(self._attempt.value))
            if written.id.round == following:
                return replace(written, id=RoundId(following, written.id.attempt + 1))
        return RecordAttempt(RoundId(following, 1))

    # --- Reports --------------------------------------------------------------------------------------------------

    def write_observed(self, observed: Observed) -> None:
        self._plateaus.write(json.dumps(observed).encode())

    @property
    def observed(self) -> Observed | None:
        if self._plateaus.value is None:
            return None
        revision, plateaus, counts = json.loads(self._plateaus.value)
        return Observed(revision, plateaus, {int(incarnation): number for incarnation, number in counts.items()})

    # --- Members --------------------------------------------------------------------------------------------------

    def write_member(self, seat: Seat) -> None:
        self._members.mkdir(mode=0o700, exist_ok=True)
        write_whole(self._members / str(seat.member.incarnation), seat.to_bytes(), synced=False)

    def remove_member(self, incarnation: int) -> None:
        (self._members / str(incarnation)).unlink(missing_ok=True)

    def members(self, now: float) -> list[Seat]:
        """All that were written and not removed."""
        found = []
        for path in self._members.iterdir() if self._members.is_dir() else ():
            whole = unframe(read(path))
            if whole is None or path.name.endswith(NEW):
                path.unlink()  # killed before it was written, or lost with the machine: nobody was told
            else:
                found.append(Seat.from_bytes(whole[1], now))
        return found


class Damaged(CannotStart):
    """A file is not what was written. The coordinator must not start: it would give names and rounds away twice."""


class Store:
    """The coordinator's folder."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "coordinator"
        self._runs = self._folder / "runs"
        self._dropped = self._folder / "dropped"
        for folder in (self._runs, self._dropped):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def start(self) -> int:
        """Note that a coordinator starts; the answer says the how manieth it is."""
        epochs = Slots(self._folder, "epoch")
        epoch = int.from_bytes(epochs.value or b"", "little") + 1
        try:
            epochs.reserve()
            epochs.write(epoch.to_bytes(8, "little"))
        except OSError as error:
            raise CannotStart(f"cannot write to {self._folder}: {(error.strerror or str(error)).lower()}") from error
        return epoch

    def runs(self) -> list[RunRecord]:
        """All runs, by name."""
        return list(self._records(self._runs))

    def dropped(self) -> list[RunRecord]:
        """Deleted runs that some shard may still hold."""
        return list(self._records(self._dropped))

    def create(self, record: RunRecord) -> RunStore:
        folder = self._runs / record.name
        shutil.rmtree(folder, ignore_errors=True)  # of a creation that was broken off
        folder.mkdir(mode=0o700)
        store = self.run(record.name)
        store.reserve()
        store.write_record(record)
        sync_folder(self._runs)
        return store

    def run(self, name: str) -> RunStore:
        return RunStore(self._runs / name)

    def drop(self, record: RunRecord) -> None:
        """Delete a run; it is remembered until `forget`, so that shards that are away can be told later."""
        (self._runs / record.name).rename(self._dropped / record.run_id)
        sync_folder(self._runs)

    def forget(self, record: RunRecord) -> None:
        shutil.rmtree(self._dropped / record.run_id, ignore_errors=True)

    def _records(self, folder: Path) -> Iterator[RunRecord]:
        for path in sorted(folder.iterdir()):
            data = read(path / "run")
            if not data:
                shutil.rmtree(path, ignore_errors=True)  # killed before the run was written: nobody knows of it
                continue
            whole = unframe(data)
            if whole is None:
                raise Damaged(f"{path / 'run'} is not what was written: its checksum does not fit")
            yield RunRecord.from_bytes(whole[1])
