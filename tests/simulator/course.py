"""What the coordinator has recorded, in its order: all that a run's course follows from."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepd_server.coordinator.store import RunRecord, RunStore, Store
from stepd_server.coordinator.vocabulary import Decision
from tests.simulator.hosts import RUN


class Course:
    """Attributes:
    records: what the run was, and every decision.
    deleted: it is about to be deleted, or has been.
    """

    def __init__(self, problem: Callable[[str], None], note: Callable[..., None]) -> None:
        self.records: list[RunRecord | Decision] = []
        self.deleted = False
        # What was to be recorded last, whether it is or not.
        self._written: Decision | None = None
        self._problem = problem
        self._note = note

    @property
    def decisions(self) -> list[Decision]:
        return [record for record in self.records if isinstance(record, Decision)]

    @property
    def last(self) -> Decision | None:
        return next((record for record in reversed(self.records) if isinstance(record, Decision)), None)

    @property
    def described(self) -> RunRecord | None:
        """The run as it was recorded last."""
        return next((record for record in reversed(self.records) if isinstance(record, RunRecord)), None)

    @contextmanager
    def watched(self) -> Generator[None, None, None]:
        """Be told of everything that is recorded."""
        write_decision, write_record = RunStore.write_decision, RunStore.write_record

        def decision_written(store: RunStore, decision: Decision, *standings: Any) -> None:
            self._written = decision
            write_decision(store, decision, *standings)
            self.decided(decision)

        def record_written(store: RunStore, record: RunRecord) -> None:
            write_record(store, record)
            self.described_as(record)

        RunStore.write_decision = decision_written  # type: ignore[method-assign,assignment]
        RunStore.write_record = record_written  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            RunStore.write_decision = write_decision  # type: ignore[method-assign]
            RunStore.write_record = write_record  # type: ignore[method-assign]

    def decided(self, decision: Decision) -> None:
        """A decision is recorded."""
        before = self.last
        if before is not None and _is_same(before, decision):
            return
        self._note("decided", decision)
        if decision.id.round != (before.id.round + 1 if before else 0):
            self._problem(f"round {decision.id} was decided as {decision} after {before}")
        if decision.step_before != (before.step if before else 0):
            self._problem(f"{decision} follows {before}")
        self.records.append(decision)

    def described_as(self, record: RunRecord) -> None:
        """What the run is, is recorded."""
        before = self.described
        if before is not None and before.run_id != record.run_id and before.started:
            return  # another run of that name, after it was deleted
        if record != before and record.started:
            version = record.prepared.layout.version
            self._note("recorded", f"layout {version}, state {record.state_id or None}, revision {record.revision}")
            self.records.append(record)

    def read(self, folder: Path) -> None:
        """A coordinator is about to start: what it finds has been recorded, whether its predecessor knew or not."""
        path = folder / "coordinator" / "runs" / RUN
        if not path.exists():
            if self.records and not self.deleted:
                self._problem("the coordinator has forgotten the run")
            return
        for record in Store(folder).runs():
            if record.name == RUN:
                self.described_as(record)
        found = RunStore(path).last_decision
        if found is not None:
            # What contributions were multiplied by is not on file, for shards know: it is what was to be recorded.
            own = self._written
            self.decided(own if own is not None and _is_same(found, own) else found)
        elif self.last is not None and not self.deleted:
            self._problem("the coordinator has forgotten its decisions")


def _is_same(one: Decision, other: Decision) -> bool:
    """By their texts, for a NaN is not itself; but for what contributions were multiplied by, which is not on file."""
    return str(replace(one, counted=())) == str(replace(other, counted=())) and [
        selected[:2] for selected in one.counted
    ] == [selected[:2] for selected in other.counted]
