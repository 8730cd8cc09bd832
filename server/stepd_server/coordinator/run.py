"""One run: its rounds with everything around them. Events come in from members, shards and owner; all on one loop."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import AsyncIterator, Container, Sequence
from contextlib import AbstractContextManager
from itertools import count
from typing import Any, Final

from stepd import specs
from stepd.definitions import RunSpec
from stepd.errors import NotFound, ResourceExhausted, Unavailable
from stepd.v1 import coordinator_pb2, run_pb2, shard_control_pb2
from stepd_server.coordinator import convert, events, places
from stepd_server.coordinator.changes import changed, with_state
from stepd_server.coordinator.driver import Driver
from stepd_server.coordinator.extension import Extension
from stepd_server.coordinator.fleet import Fleet
from stepd_server.coordinator.membership import Membership, check_metrics
from stepd_server.coordinator.picture import Clocks, RunPicture
from stepd_server.coordinator.policy import policy_of
from stepd_server.coordinator.rounds import Rounds
from stepd_server.coordinator.seats import Seat
from stepd_server.coordinator.store import Observed, RunRecord, RunStore
from stepd_server.coordinator.vocabulary import Decision, Member, RoundId
from stepd_server.coordinator.watch import Reports, Watchers

logger = logging.getLogger(__name__)


class Run(RunPicture):
    """A run, loading or started.

    Attributes:
        loading_since: on the steady clock; until when its parameters may be awaited is counted from here.
    """

    def __init__(
        self, record: RunRecord, store: RunStore, fleet: Fleet, incarnations: count[int], clocks: Clocks
    ) -> None:
        seats = _recorded_seats(store, clocks.steady())
        super().__init__(record, store, fleet, Membership(record.name, incarnations, seats), clocks)
        self.loading_since = clocks.steady()
        self._driver: Final = Driver(record.name, len(self._spec.groups), fleet, self.tell)
        self._watchers = Watchers()
        self._reports = Reports()

    # --- Life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Its parameters are loaded: open the first round as soon as there are workers."""
        self._write(dataclasses.replace(self.record, started=True))
        away = [shard.index for shard in self._fleet.shards if not shard.ready]
        self._rounds = Rounds(len(self._fleet.shards), self._plateaus.in_effect, away=away, layout=self._layout_version)

    def restore(self) -> None:
        """Take it up where an earlier coordinator left it: with its members, whose leases begin anew.

        Shards have yet to say where they stand. The round in hand becomes the next attempt.
        """
        attempt = self._store.next_attempt()
        self._rounds = Rounds(
            len(self._fleet.shards),
            self._plateaus.in_effect,
            last=self._store.last_decision,
            attempt=attempt.id.attempt,
            away=range(len(self._fleet.shards)),
            layout=self._layout_version,
            state_loaded=bool(self.record.state_id),
            members={seat.member: seat.first_round for seat in self._membership.seats},
            left_out=attempt.left_out,
            nonfinite=attempt.nonfinite,
            standings=self._store.standings,
            last_together=self.record.last_together,
        )

    def set_bytes(self, total: int) -> None:
        self._write(dataclasses.replace(self.record, state_bytes=total))

    async def close(self, *, deleted: bool) -> None:
        """Stop everything; whoever watches a deleted run is told."""
        self._closed = True
        if deleted:
            self._watchers.close(NotFound(f"run {self.name!r} was deleted", reason="RUN_NOT_FOUND", run=self.name))
        await self._driver.stop()

    def _write(self, record: RunRecord) -> None:
        try:
            self._store.write_record(record)
        except OSError as error:
            raise ResourceExhausted(
                f"run {self.name!r}: the coordinator cannot write down what it is to be: {error.strerror}",
                run=self.name,
            ) from error
        self.record = record

    # --- Rounds ---------------------------------------------------------------------------------------------------

    def tell(self, event: events.Event) -> None:
        """Take an event in and do at once what follows from it, in order."""
        if self._rounds is None or self._closed:
            return
        self.tally.take_in(event, self._clocks.steady())
        self._undone.extend(self._rounds.apply(event))
        self.take_up()

    def take_up(self) -> None:
        """Do what is yet to be done, in order, for as long as it can be recorded: what cannot must not be told."""
        while self._undone:
            try:
                self._perform(self._undone[0])
            except OSError as error:
                if not self._obstacle:
                    logger.error("run %r: cannot record what is decided: %s", self.name, error)  # noqa: TRY400
                self._obstacle = f"the coordinator cannot record its decisions: {error.strerror or error}"
                return
            self._undone.popleft()
        if self._obstacle:
            logger.info("run %r: what is decided can be recorded again", self.name)
            self._obstacle = ""

    def _perform(self, action: events.Action) -> None:
        match action:
            case events.Gather():
                self._gathering_since = self._clocks.steady()
                self._driver.gather(action)
            case events.Measure():
                self._driver.measure(action)
            case events.SetTimer():
                self._driver.set_timer(action)
            case events.Close():
                self._driver.close(action)
            case events.Select():
                self._driver.select(action)
                self.tally.refused(action.refused)
            case events.Record(decided, standings):
                self._store.write_decision(decided, standings)
                self.tally.decided(decided, self._clocks.steady())
            case events.Finish():
                self._driver.finish(action)
                if len(action.shards) == len(self._fleet.shards):
                    self._publish(action.decision)
            case events.RecordAttempt():
                self._store.write_attempt(action)
            case events.Commit():
                self._driver.commit(action, self.record.state_id, self.record.prepared.spec.groups)
            case events.Lost(problem):
                logger.error("run %r is lost: %s", self.name, problem)

    def _publish(self, decided: Decision) -> None:
        self._watchers.publish(
            coordinator_pb2.WatchRunResponse(
                decision=convert.decision_for_readers(decided),
                decided_at=places.timestamp(self._clocks.wall()),
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

    def join(self, request_id: str, name: str, rank: int | None, lease: float, again: Member | None = None) -> Seat:
        """Give a worker a place; it is on file when this returns."""
        rounds = self._going_rounds()
        self._check_recording()
        seat, old, new = self._membership.join(
            policy_of(self._spec.sync),
            name=name,
            rank=rank,
            lease=lease,
            request_id=request_id,
            now=self._clocks.steady(),
            joined_at=self._clocks.wall(),
            again=again,
        )
        if new:
            logger.info("run %r: %s joins with rank %d", self.name, seat.member, seat.member.rank)
            self.tell(events.MemberJoined(seat.member))
            seat.first_round = rounds.first_round_of(seat.member).round
            try:
                self._write_member(seat)
            finally:
                if old is not None:
                    self._forget(old.member)
        return seat

    def _write_member(self, seat: Seat) -> None:
        try:
            self._store.write_member(seat)
            self._check_recording()
        except (OSError, Unavailable) as error:
            self._membership.leave(seat.member, self._clocks.steady())
            self._forget(seat.member)
            self.tell(events.MemberLost(seat.member))
            if isinstance(error, Unavailable):
                raise
            raise ResourceExhausted(
                f"run {self.name!r}: the coordinator cannot write down who joins: {error.strerror}", run=self.name
            ) from error

    def _forget(self, member: Member) -> None:
        try:
            self._store.remove_member(member.incarnation)
        except OSError as error:
            # A coordinator that starts again would wait for it as long as its lease.
            logger.warning("run %r: cannot remove the record of %s: %s", self.name, member, error)

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
        self._observe(seat, observed, observed_before)
        self._check_recording()
        return rounds.first_round_of(member)

    def counted(self, member: Member) -> int:
        """The latest of the member's contributions that counts, where they are taken in turn."""
        return self._going_rounds().counted(member)

    def _observe(self, seat: Seat, observed: Sequence[float], observed_before: int) -> None:
        before = seat.observed
        plateaus = copy.copy(self._plateaus)
        if not plateaus.observe(self._membership.observe(seat, observed, observed_before)):
            return
        # In one file: what has come of reports, and how many have been counted.
        counts = {each.member.incarnation: each.observed for each in self._membership.seats if each.observed}
        try:
            self._store.write_observed(Observed(self.record.revision, plateaus.to_bytes().decode(), counts))
        except OSError as error:
            seat.observed = before  # they come again
            raise Unavailable(
                f"run {self.name!r}: the coordinator cannot write down what was reported: {error.strerror}",
                run=self.name,
            ) from error
        self._plateaus = plateaus
        self.tell(events.PolicyChanged(plateaus.in_effect))

    def leave(self, member: Member, contributed: RoundId | None) -> None:
        if self._membership.leave(member, self._clocks.steady()):
            logger.info("run %r: %s leaves", self.name, member)
            self._forget(member)
            self.tell(events.MemberLeft(member, contributed))

    def make_up_for(self, seconds: float) -> None:
        """The coordinator stood still for so long, and heard of nobody: no lease ran meanwhile."""
        self._membership.make_up_for(seconds)
        self.loading_since += seconds

    def expire_leases(self) -> None:
        for member in self._membership.expire(self._clocks.steady()):
            logger.info("run %r: the lease of %s has run out", self.name, member)
            self._forget(member)
            self.tell(events.MemberLost(member))

    def count_repeated(self, shard: int, held: coordinator_pb2.HeldRun) -> None:
        """Take in how often contributions came again to a shard."""
        if held.run_id == self.record.run_id:
            counts = {(one.worker, one.incarnation): one.count for one in held.repeated_contributions}
            self.tally.repeated(shard, counts)

    # --- Owner ----------------------------------------------------------------------------------------------------

    def update(self, request: coordinator_pb2.UpdateRunRequest) -> None:
        if request.request_id in self.record.changes:
            return  # a repeat; others may have changed the run since
        message, spec = changed(self.record.prepared.spec, request, step=self.step, members=len(self._membership))
        rated = range(len(spec.groups)) if request.HasField("rate") else ()
        self._change(
            spec,
            [request.rate.group] if request.rate.HasField("group") else rated,
            prepared=self._prepared_with(message),
            changes=self.record.changed_by(request.request_id),
            last_together=self._rounds.last_together(spec.sync) if self._rounds else None,
        )
        self.tell(events.PolicyChanged(self._plateaus.in_effect))

    def _change(self, spec: RunSpec, rated: Container[int] = (), **record: Any) -> None:
        """The owner has changed the run: in one file, with what rates that go by reports begin with from here."""
        self._check_recording()
        plateaus = copy.copy(self._plateaus)
        plateaus.change(spec, rated)
        states = plateaus.to_bytes().decode()
        self._write(dataclasses.replace(self.record, revision=self.record.revision + 1, plateaus=states, **record))
        self._spec, self._plateaus = spec, plateaus

    def extend(self, extension: Extension) -> None:
        """A group is there on every shard: from here on it is part of the run."""
        spec = extension.spec(self._spec)
        prepared = shard_control_pb2.PrepareRunRequest(
            run_id=self.record.run_id, spec=specs.run_to_proto(spec), layout=extension.layout
        )
        self._change(
            spec,
            prepared=prepared,
            extension=extension.id,
            state_bytes=extension.bytes,
            changes=self.record.changed_by(extension.id),
        )
        self._driver.extend(len(spec.groups))
        self._settle(*(shard.index for shard in self._fleet.shards))
        self.tell(events.LayoutChanged(self._plateaus.in_effect, self._layout_version))

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
        # One file: the state and the hyperparameters that belong to it are decided together. A rate that comes with a
        # state is what is to be reduced from now on.
        self._change(
            spec,
            [i for i, change in enumerate(request.groups) if "lr" in change.hyperparameters],
            prepared=self._prepared_with(message),
            state_id=request.state_id,
            changes=self.record.changed_by(request.state_id),
        )
        self.tell(events.StateLoaded(self._plateaus.in_effect))

    def watching(self) -> AbstractContextManager[AsyncIterator[coordinator_pb2.WatchRunResponse]]:
        return self._watchers.watching()


def _recorded_seats(store: RunStore, now: float) -> list[Seat]:
    """Members of an earlier coordinator, and how many of their reports it has counted."""
    seats = store.members(now)
    observed = store.observed
    for seat in seats:
        seat.observed = observed.counts.get(seat.member.incarnation, 0) if observed else 0
    return seats
