"""One run: its rounds with everything around them. Events come in from members, shards and owner; all on one loop."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Container, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from stepd import specs
from stepd.definitions import RunSpec
from stepd.errors import FailedPrecondition, NotFound
from stepd.v1 import coordinator_pb2, run_pb2, shard_control_pb2
from stepd_server.coordinator import convert, decision, events
from stepd_server.coordinator.changes import changed, with_state
from stepd_server.coordinator.driver import Driver
from stepd_server.coordinator.extension import Extension
from stepd_server.coordinator.fleet import Fleet
from stepd_server.coordinator.membership import Membership, Seat, check_metrics
from stepd_server.coordinator.plateaus import Plateaus
from stepd_server.coordinator.policy import policy_of
from stepd_server.coordinator.rounds import Rounds
from stepd_server.coordinator.store import RunRecord, RunStore
from stepd_server.coordinator.tally import Tally
from stepd_server.coordinator.vocabulary import Decision, Member, Phase, RoundId
from stepd_server.coordinator.watch import Reports, Watchers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clocks:
    """Attributes:
    steady: seconds that only grow, for leases.
    wall: seconds since the epoch, for people.
    """

    steady: Callable[[], float]
    wall: Callable[[], float]


class Run:
    """A run, loading or started.

    Attributes:
        record: what it is; kept in its file.
        loading_since: on the steady clock; until when its parameters may be awaited is counted from here.
        tally: what its rounds add up to, for metrics.
    """

    def __init__(
        self, record: RunRecord, store: RunStore, fleet: Fleet, incarnations: count[int], clocks: Clocks
    ) -> None:
        self.record = record
        self.loading_since = clocks.steady()
        self.tally: Final = Tally(store.last_decision.step if store.last_decision else 0)
        self._spec: RunSpec = specs.run_from_proto(record.prepared.spec)
        self._store = store
        self._plateaus = Plateaus(self._spec, store.plateaus)
        self._fleet = fleet
        self._clocks = clocks
        self._membership = Membership(record.name, incarnations)
        self._driver: Final = Driver(record.name, len(self._spec.groups), fleet, self.tell)
        self._rounds: Rounds | None = None
        self._watchers = Watchers()
        self._reports = Reports()
        # Why nothing goes on though the rounds would; empty: it does.
        self._broken = ""

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def spec(self) -> RunSpec:
        return self._spec

    @property
    def started(self) -> bool:
        return self._rounds is not None

    # --- Life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Its parameters are loaded: open the first round as soon as there are workers."""
        self._write(dataclasses.replace(self.record, started=True))
        away = [shard.index for shard in self._fleet.shards if not shard.ready]
        self._rounds = Rounds(len(self._fleet.shards), self._plateaus.in_effect, away=away, layout=self._layout_version)

    def restore(self) -> None:
        """Take it up where an earlier coordinator left it: without members; shards have yet to say where they stand."""
        self._rounds = Rounds(
            len(self._fleet.shards),
            self._plateaus.in_effect,
            last=self._store.last_decision,
            attempt=self._store.next_attempt(),
            away=range(len(self._fleet.shards)),
            layout=self._layout_version,
            state_loaded=bool(self.record.state_id),
            standings=self._store.standings,
        )

    def set_bytes(self, total: int) -> None:
        self._write(dataclasses.replace(self.record, state_bytes=total))

    async def close(self, *, deleted: bool) -> None:
        """Stop everything; whoever watches a deleted run is told."""
        self._broken = "it is closed"
        if deleted:
            self._watchers.close(NotFound(f"run {self.name!r} was deleted", reason="RUN_NOT_FOUND", run=self.name))
        await self._driver.stop()

    def _write(self, record: RunRecord) -> None:
        self._store.write_record(record)
        self.record = record

    # --- Rounds ---------------------------------------------------------------------------------------------------

    def tell(self, event: events.Event) -> None:
        """Take an event in and do at once what follows from it, in order."""
        if self._rounds is None or self._broken:
            return
        self.tally.take_in(event, self._clocks.steady())
        try:
            for action in self._rounds.apply(event):
                self._perform(action)
        except OSError as error:
            # What cannot be recorded must not be told. A coordinator that starts again goes on from what is.
            self._broken = f"the coordinator cannot record its decisions: {error}"
            logger.exception("run %r: %s", self.name, self._broken)

    def _perform(self, action: events.Action) -> None:
        match action:
            case events.Gather():
                self._driver.gather(action)
            case events.Measure():
                self._driver.measure(action)
            case events.SetTimer():
                self._driver.set_timer(action)
            case events.Close():
                self._driver.close(action)
            case events.Select():
                self._driver.select(action)
            case events.Record(decided, standings):
                self._store.write_decision(decided, standings)
                self.tally.decided(decided, self._clocks.steady())
            case events.Finish():
                self._driver.finish(action)
                if len(action.shards) == len(self._fleet.shards):
                    self._publish(action.decision)
            case events.RecordAttempt(id_):
                self._store.write_attempt(id_)
            case events.Commit():
                self._driver.commit(action, self.record.state_id, self.record.prepared.spec.groups)
            case events.Lost(problem):
                logger.error("run %r is lost: %s", self.name, problem)

    def _publish(self, decided: Decision) -> None:
        self._watchers.publish(
            coordinator_pb2.WatchRunResponse(
                decision=convert.decision_for_readers(decided),
                decided_at=timestamp(self._clocks.wall()),
                metrics=self._reports.take_means(),
            )
        )

    def shard_away(self, index: int) -> None:
        self._driver.abandon(index)
        self.tell(events.ShardAway(index))

    def shard_back(self, index: int, held: coordinator_pb2.HeldRun | None) -> None:
        """A shard is here that was not, or another process of it than before."""
        self.shard_away(index)
        if held is None or held.run_id != self.record.run_id:
            self.tell(events.ShardLost(index, "does not hold its part of the run any more"))
        else:
            if held.layout_version < self._layout_version:
                self._settle(index)
            self.tell(events.ShardBack(index, held.round, held.step, held.torn))

    # --- Members --------------------------------------------------------------------------------------------------

    def join(self, request_id: str, name: str, rank: int | None, lease: float) -> Seat:
        self._going_rounds()
        seat, new = self._membership.join(
            policy_of(self._spec.sync),
            name=name,
            rank=rank,
            lease=lease,
            request_id=request_id,
            now=self._clocks.steady(),
            joined_at=self._clocks.wall(),
        )
        if new:
            logger.info("run %r: %s joins with rank %d", self.name, seat.member, seat.member.rank)
            self.tell(events.MemberJoined(seat.member))
        return seat

    def renew(
        self, member: Member, metrics: dict[str, float], observed: Sequence[float] = (), observed_before: int = 0
    ) -> RoundId:
        """Keep a membership alive; the attempt that wants the member's next contribution.

        Args:
            member: whose.
            metrics: to show.
            observed: what schedules are to be told, oldest first.
            observed_before: how many observations of this membership came before these.
        """
        rounds = self._going_rounds()
        seat = self._membership.renew(member, self._clocks.steady())
        check_metrics({**seat.metrics, **metrics})
        seat.metrics |= metrics
        self._reports.add(member.worker, metrics)
        new = self._membership.observe(seat, observed, observed_before)
        if self._plateaus.observe(new):
            self._store.write_plateaus(self._plateaus.to_bytes())
            self.tell(events.PolicyChanged(self._plateaus.in_effect))
        return rounds.first_round_of(member)

    def counted(self, member: Member) -> int:
        """The latest of the member's contributions that counts, where they are taken in turn."""
        return self._going_rounds().counted(member)

    def leave(self, member: Member, contributed: RoundId | None) -> None:
        if self._membership.leave(member):
            logger.info("run %r: %s leaves", self.name, member)
            self.tell(events.MemberLeft(member, contributed))

    def expire_leases(self) -> None:
        for member in self._membership.expire(self._clocks.steady()):
            logger.info("run %r: the lease of %s has run out", self.name, member)
            self.tell(events.MemberLost(member))

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

    # --- Owner ----------------------------------------------------------------------------------------------------

    def update(self, request: coordinator_pb2.UpdateRunRequest) -> None:
        message, spec = changed(self.record.prepared.spec, request, step=self.step, members=len(self._membership))
        self._write(dataclasses.replace(self.record, prepared=self._prepared_with(message)))
        self._spec = spec
        rated = range(len(spec.groups)) if request.HasField("rate") else ()
        self._replan(spec, [request.rate.group] if request.rate.HasField("group") else rated)
        self.tell(events.PolicyChanged(self._plateaus.in_effect))

    def extend(self, extension: Extension) -> None:
        """A group is there on every shard: from here on it is part of the run."""
        spec = extension.spec(self._spec)
        prepared = shard_control_pb2.PrepareRunRequest(
            run_id=self.record.run_id, spec=specs.run_to_proto(spec), layout=extension.layout
        )
        self._write(
            dataclasses.replace(self.record, prepared=prepared, extension=extension.id, state_bytes=extension.bytes)
        )
        self._spec = spec
        self._driver.groups = len(spec.groups)
        self._settle(*(shard.index for shard in self._fleet.shards))
        self._replan(spec)
        self.tell(events.LayoutChanged(self._plateaus.in_effect, self._layout_version))

    def _replan(self, spec: RunSpec, rated: Container[int] = ()) -> None:
        self._plateaus.change(spec, rated)
        self._store.write_plateaus(self._plateaus.to_bytes())

    def _settle(self, *shards: int) -> None:
        # Rounds before this one are finished as they were gathered.
        at = self._rounds.id.round if self._rounds else 0
        request = shard_control_pb2.SettleExtensionRequest(
            run=self.name, extension=self.record.extension, round=at, layout_version=self._layout_version
        )
        self._driver.settle(request, shards)

    def _prepared_with(self, message: run_pb2.RunSpec) -> shard_control_pb2.PrepareRunRequest:
        prepared = shard_control_pb2.PrepareRunRequest()
        prepared.CopyFrom(self.record.prepared)
        prepared.spec.CopyFrom(message)
        return prepared

    @property
    def loads_state(self) -> bool:
        """Whether some shard has yet to use the latest state that was loaded."""
        return self._going_rounds().loads_state

    def load_state(self, request: coordinator_pb2.LoadStateRequest) -> None:
        """Decide that a state, which every shard holds, is used from the next round on."""
        self._going_rounds()
        message, spec = with_state(self.record.prepared.spec, request, step=self.step)
        # One file: the state and the hyperparameters that belong to it are decided together.
        self._write(dataclasses.replace(self.record, prepared=self._prepared_with(message), state_id=request.state_id))
        self._spec = spec
        # A rate that comes with a state is what is to be reduced from now on.
        self._replan(spec, [i for i, change in enumerate(request.groups) if "lr" in change.hyperparameters])
        self.tell(events.StateLoaded(self._plateaus.in_effect))

    def watching(self) -> AbstractContextManager[AsyncIterator[coordinator_pb2.WatchRunResponse]]:
        return self._watchers.watching()

    # --- What others see ------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        return self._rounds.step if self._rounds else 0

    @property
    def status(self) -> coordinator_pb2.RunStatus:
        rounds = self._rounds
        if rounds is None:
            return coordinator_pb2.RUN_STATUS_LOADING
        elif self._broken or rounds.phase is Phase.LOST:
            return coordinator_pb2.RUN_STATUS_LOST
        elif rounds.phase is Phase.RECOVERING:
            return coordinator_pb2.RUN_STATUS_RECOVERING
        elif rounds.waits_for_members:
            return coordinator_pb2.RUN_STATUS_WAITING
        return coordinator_pb2.RUN_STATUS_TRAINING

    @property
    def problem(self) -> str:
        return self._broken or (self._rounds.problem if self._rounds else "")

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
        rounds, last = self._rounds, self._rounds.last if self._rounds else None
        at = RoundId(0, 0) if rounds is None else rounds.first_round_of(of) if of else rounds.id
        return coordinator_pb2.RunState(
            spec=self.record.prepared.spec,
            status=self.status,
            step=self.step,
            round=convert.id_to_proto(at),
            rates=decision.rates(self._plateaus.in_effect, self.step),
            workers=map(_worker_state, self._membership.seats),
            bytes=self.record.state_bytes,
            created_at=timestamp(self.record.created_at),
            last_decision=convert.decision_for_readers(last) if last else None,
            problem=self.problem,
        )


def _worker_state(seat: Seat) -> coordinator_pb2.WorkerState:
    return coordinator_pb2.WorkerState(
        member=convert.member_to_proto(seat.member), joined_at=timestamp(seat.joined_at), metrics=seat.metrics
    )


def timestamp(seconds: float) -> Timestamp:
    message = Timestamp()
    message.FromNanoseconds(int(seconds * 1e9))
    return message
