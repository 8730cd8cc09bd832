"""A run as others see it: where it stands, who is in it, whom it waits for. What changes it is in run.py."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from stepd import specs
from stepd.definitions import RunSpec
from stepd.errors import FailedPrecondition, Unavailable
from stepd.v1 import coordinator_pb2, run_pb2
from stepd_server.coordinator import convert, decision, events, places
from stepd_server.coordinator.fleet import Fleet
from stepd_server.coordinator.membership import Membership
from stepd_server.coordinator.plateaus import Plateaus
from stepd_server.coordinator.rounds import Rounds
from stepd_server.coordinator.seats import Gone
from stepd_server.coordinator.store import RunRecord, RunStore
from stepd_server.coordinator.tally import Tally
from stepd_server.coordinator.vocabulary import Decision, Member, Phase, RoundId


@dataclass(frozen=True)
class Clocks:
    """Attributes:
    steady: seconds that only grow, for leases.
    wall: seconds since the epoch, for people.
    """

    steady: Callable[[], float]
    wall: Callable[[], float]


class RunPicture:
    """Everything that is known of a run.

    Attributes:
        record: what it is; kept in its file.
        tally: what its rounds add up to.
    """

    def __init__(
        self, record: RunRecord, store: RunStore, fleet: Fleet, membership: Membership, clocks: Clocks
    ) -> None:
        self.record = record
        self._spec: RunSpec = specs.run_from_proto(record.prepared.spec)
        self._store = store
        observed = store.observed
        # What a change by the owner began with, or what has come of reports since.
        known = observed.plateaus if observed and observed.revision == record.revision else record.plateaus
        self._plateaus = Plateaus(self._spec, known.encode() or None)
        self._fleet = fleet
        self._membership = membership
        self._clocks = clocks
        last = store.last_decision
        self.tally: Final = Tally(last.step if last else 0, (seat.member for seat in membership.seats))
        self._rounds: Rounds | None = None
        # When the attempt under way began.
        self._gathering_since = 0.0
        # What follows from events and is yet to be done, as its first cannot be recorded; and why it cannot.
        self._undone: deque[events.Action] = deque()
        self._obstacle = ""
        self._closed = False

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def spec(self) -> RunSpec:
        return self._spec

    @property
    def started(self) -> bool:
        return self._rounds is not None

    @property
    def last(self) -> Decision | None:
        """The last decision that may be told: one that could not be recorded yet would be taken back by a kill."""
        if self._obstacle:
            return self._store.last_decision
        return self._rounds.last if self._rounds else None

    @property
    def step(self) -> int:
        return self.last.step if self.last else 0

    @property
    def status(self) -> coordinator_pb2.RunStatus:
        rounds = self._rounds
        if rounds is None:
            return coordinator_pb2.RUN_STATUS_LOADING
        elif self._closed or rounds.phase is Phase.LOST:
            return coordinator_pb2.RUN_STATUS_LOST
        elif self._obstacle or rounds.phase is Phase.RECOVERING:
            return coordinator_pb2.RUN_STATUS_RECOVERING
        elif rounds.waits_for_members:
            return coordinator_pb2.RUN_STATUS_WAITING
        return coordinator_pb2.RUN_STATUS_TRAINING

    @property
    def problem(self) -> str:
        if self._closed:
            return "it is closed"
        elif self._obstacle or self._rounds is None:
            return self._obstacle
        whom = places.missing_text(self._missing(), self._clocks.steady())
        return self._rounds.problem + (f": {whom}" if whom else "")

    def _missing(self) -> list[tuple[int, Gone | None]]:
        """The places of whom the run waits for."""
        if self.status != coordinator_pb2.RUN_STATUS_WAITING:
            return []
        return self._membership.missing(getattr(self._spec.sync, "workers", None))

    @property
    def layout(self) -> run_pb2.Layout:
        """Where everything lies, with the places at which the shards are now."""
        return self.with_targets(self.record.prepared.layout)

    @property
    def _layout_version(self) -> int:
        return self.record.prepared.layout.version

    def with_targets(self, as_recorded: run_pb2.Layout) -> run_pb2.Layout:
        layout = run_pb2.Layout()
        layout.CopyFrom(as_recorded)
        for shard, target in zip(layout.shards, self._fleet.targets, strict=True):
            shard.target = target or shard.target
        return layout

    def state(self, *, of: Member | None = None) -> coordinator_pb2.RunState:
        """What is known of it; for a member, `round` is the first that takes its contribution."""
        rounds, last = self._rounds, self.last
        if rounds is None or self._obstacle:
            at = RoundId(last.id.round + 1 if last else 0, 0)
        else:
            at = rounds.first_round_of(of) if of else rounds.id
        now = self._clocks.steady()
        awaited = dict.fromkeys(rounds.awaited if rounds else (), now - self._gathering_since)
        return coordinator_pb2.RunState(
            spec=self.record.prepared.spec,
            status=self.status,
            step=self.step,
            round=convert.id_to_proto(at),
            rates=decision.rates(self._plateaus.in_effect, self.step),
            workers=[
                places.worker_state(seat, now, awaited.get(seat.member), self.tally.counts_of(seat.member))
                for seat in self._membership.seats
            ],
            bytes=self.record.state_bytes,
            created_at=places.timestamp(self.record.created_at),
            last_decision=convert.decision_for_readers(last) if last else None,
            problem=self.problem,
            run_id=self.record.run_id,
            missing=places.missing(self._missing(), now),
        )

    def check_going(self) -> None:
        """Raise unless it has started and is not lost."""
        self._going_rounds()

    def _going_rounds(self) -> Rounds:
        if self._rounds is None:
            raise FailedPrecondition(
                f"run {self.name!r} has not started: its initial parameters are not all loaded",
                reason="RUN_NOT_STARTED",
                run=self.name,
            )
        if self.status == coordinator_pb2.RUN_STATUS_LOST:
            raise FailedPrecondition(f"run {self.name!r} is lost: {self.problem}", reason="RUN_LOST", run=self.name)
        return self._rounds

    def _check_recording(self) -> None:
        """Raise Unavailable while something is decided that nobody may know of, as it is not recorded."""
        if self._obstacle:
            raise Unavailable(f"run {self.name!r}: {self._obstacle}", reason="RUN_RECOVERING", run=self.name)
