"""A run: what can be asked of it and changed on it, and the way in for workers."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration

from stepd import specs
from stepd.adding import add_group
from stepd.buffers import Array
from stepd.errors import Aborted, NotFound
from stepd.export import write_safetensors
from stepd.info import RunInfo
from stepd.limits import LEASE_S_MAX, LEASE_S_MIN
from stepd.parameters import ParameterTable, ParamGroup, check_sync, define_group
from stepd.policies import AnyClip, AnySync
from stepd.reading import Reading
from stepd.schedules import Constant, Schedule
from stepd.session import Session
from stepd.settings import Unfit, fit, refuse, shown
from stepd.state import load_state_dict, read_state_dict
from stepd.streams import RunStreams
from stepd.torch_form import StateDict
from stepd.v1 import coordinator_pb2, run_pb2
from stepd.watch import Watch
from stepd.worker import Worker, join


class _Unset:
    """Not given, where None is a value."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = _Unset()


class Run:
    """A handle of one run. Makes no connection of its own and need not be closed.

    Attributes:
        name: unique in the fleet.
    """

    def __init__(self, session: Session, spec: run_pb2.RunSpec, layout: run_pb2.Layout) -> None:
        """Not to be called: `Client.run` and `Client.create_run` make them."""
        self.name: str = spec.name
        self._session = session
        self._spec = specs.run_from_proto(spec)
        self._streams = RunStreams(session, spec, layout, ParameterTable(self._spec.parameters))

    def __repr__(self) -> str:
        return f"Run({self.name!r}, {len(self._streams.table.specs)} parameters, {self._session.target})"

    # --- Workers ------------------------------------------------------------------------------------------------

    def join(
        self,
        rank: int | None = None,
        *,
        name: str | None = None,
        lease: float = 10.0,
        error_feedback: Mapping[str, Any] | None = None,
    ) -> Worker:
        """Become a worker of the run.

        Args:
            rank: a place to take, from 0. None: the lowest that is free.
            name: in the run; one that is a member already is taken over. None: one is made up.
            lease: seconds after which a worker that is not heard of loses its place, 1 to 3600. Renewed by itself.
            error_feedback: `Worker.error_feedback()` of the worker whose place this one takes, in runs whose encoding
                of gradients leaves something out.
        """
        request = coordinator_pb2.JoinRunRequest(
            request_id=uuid.uuid4().hex, run=self.name, name=_name(name), lease=_lease(lease)
        )
        if rank is not None:
            request.rank = _index("join", "rank", rank)
        return self._session.run(join(self._spec, self._streams, request, error_feedback))

    # --- What is --------------------------------------------------------------------------------------------------

    def info(self) -> RunInfo:
        """Where the run stands."""
        return RunInfo.from_proto(self._state())

    @property
    def step_count(self) -> int:
        """Steps applied."""
        return self._state().step

    def get_lr(self) -> list[float]:
        """The rate of the next step, by group."""
        return list(self._state().rates)

    def pull(self, *, averaged: bool = False, dtype: Any = None) -> dict[str, Array]:
        """Read the parameters as they are, all of one version.

        Args:
            averaged: their averages instead: what `create_run(average=...)` keeps, or else what rules such as
                ScheduleFreeAdamW and ASGD do (parameters of other rules are given as they are). Until the first step
                that counts they are the parameters.
            dtype: cast all to it; None gives each its own.

        Raises:
            FailedPrecondition: NO_AVERAGE: neither the run nor any of its rules keeps averages.
        """
        return self._read(averaged=averaged, dtype=dtype)[0]

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters as one safetensors file under their own names."""
        arrays, step = self._read(averaged=False, dtype=None)
        write_safetensors(path, arrays, {"run": self.name, "step": str(step)})

    def state_dict(self) -> StateDict:
        """The optimizer's state, all of one version, in the form of `torch.optim.Optimizer.state_dict()`.

        Arrays stand for tensors (`stepd.compat.to_torch` makes them tensors), each of the dtype that servers keep:
        float64 if any parameter of the run is, else float32. `lr` is the rate of the next step.
        """
        return self._session.run(read_state_dict(self._streams))

    def watch(self) -> Watch:
        """The steps from now on: an iterator of `StepEvent` that waits for the next."""
        return Watch(self._session, self.name)

    # --- Changes ------------------------------------------------------------------------------------------------

    def set_lr(self, lr: float, group: int | None = None) -> None:
        """Set the rate from the next step on; the schedule goes on from there.

        Args:
            lr: the rate.
            group: only this one; None: every group.
        """
        change = coordinator_pb2.RateChange(lr=_number("set_lr", "lr", lr))
        if group is not None:
            change.group = _index("set_lr", "group", group)
        self._update(rate=change)

    def update(
        self,
        *,
        clip: AnyClip | _Unset | None = UNSET,
        sync: AnySync | _Unset | None = UNSET,
        schedule: Schedule | _Unset | None = UNSET,
    ) -> None:
        """Change policies of the run, from the next decision on. What is not given stays.

        Args:
            clip: None takes it away.
            sync: None is `Sync()`.
            schedule: None is a constant rate.
        """
        changes: dict[str, Any] = {}
        if clip is None:
            changes["drop_clip"] = True
        elif not isinstance(clip, _Unset):
            changes["clip"] = specs.clip_to_proto(clip)
        if not isinstance(sync, _Unset):
            changes["sync"] = specs.sync_to_proto(check_sync("update", sync))
        if not isinstance(schedule, _Unset):
            if not isinstance(schedule, Schedule | None):
                refuse("update", "schedule", schedule, "a schedule such as stepd.Cosine(total_steps=1000), or None")
            changes["schedule"] = specs.schedule_to_proto(schedule or Constant())
        if changes:
            self._update(**changes)

    def add_param_group(self, group: ParamGroup) -> None:
        """Add parameters to the live run. Workers learn of them with their next call; none has to join again.

        The group's schedule goes by the run's steps. Contributions may leave the new parameters out, unless the run
        was created with missing="error". What the group does not set is as the run's optimizer was created.

        Args:
            group: its parameters get the ids that follow those that are there.

        Raises:
            OverlappingGroups: the run has a parameter of that name.
            DtypeMismatch: a float64 parameter, and the run has none so far.
            ResourceExhausted: the fleet lacks the memory; nothing has changed.
        """
        spec = specs.run_from_proto(self._state().spec)
        self._session.run(add_group(self._streams, *define_group(group, spec)))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state that `state_dict` or `torch.optim.Optimizer.state_dict()` has given: on all shards or none.

        Everything is checked before anything is sent. Groups and parameters are matched by place, as torch does it, or
        by `param_names` where these are the run's own. Hyperparameters of the groups are taken over, too; the schedule
        goes on from the given `lr`. Parameters' values, the run's step and its schedule stay; workers in the middle of
        a step send their gradient again by themselves.

        Args:
            state_dict: with arrays or tensors. A parameter without an entry begins anew.

        Raises:
            ShapeMismatch, DtypeMismatch: a buffer does not fit its parameter.
            InvalidArgument: something is missing, not finite, or of another rule.
            ResourceExhausted: a shard has no room for a second state beside the one in use.
        """
        self._session.run(load_state_dict(self._streams, state_dict))

    def delete(self) -> None:
        """End the run and free its memory. Its workers get NotFound."""
        self._session.run(delete_run(self._session, self.name))

    def _update(self, **changes: Any) -> None:
        request = coordinator_pb2.UpdateRunRequest(request_id=uuid.uuid4().hex, run=self.name, **changes)
        self._session.run(self._session.ask("UpdateRun", request))

    def _state(self) -> coordinator_pb2.RunState:
        return self._session.run(self._streams.state())

    def _read(self, *, averaged: bool, dtype: Any) -> tuple[dict[str, Array], int]:
        """The parameters and their step."""
        if not isinstance(averaged, bool):
            refuse("pull", "averaged", averaged, "True or False")
        reading = Reading(lambda: self._streams.known, None)
        while True:
            wanted = reading.want(dtype=dtype)
            try:
                headers = self._session.run(self._streams.pull_now(wanted.picture, wanted.regions, averaged=averaged))
            except Aborted as error:
                if error.reason != "LAYOUT_CHANGED":
                    raise
                self._state()  # a group was added
            else:
                return wanted.arrays(), next(header.step for header in headers.values())


async def delete_run(session: Session, name: str) -> None:
    """Delete the run that has the name now; no other that gets it while answers are lost."""
    found: coordinator_pb2.GetRunResponse = await session.ask("GetRun", coordinator_pb2.GetRunRequest(run=name))
    with contextlib.suppress(NotFound):  # a repeat, of a call that has done it
        await session.ask("DeleteRun", coordinator_pb2.DeleteRunRequest(run=name, run_id=found.run.run_id))


def _number(thing: str, field: str, value: object) -> float:
    try:
        number = fit(float, value)
    except Unfit as unfit:
        refuse(thing, field, value, unfit.expected)
    assert isinstance(number, float)
    return number


def _index(thing: str, field: str, value: object) -> int:
    try:
        number = fit(int, value)
    except Unfit:
        number = -1
    if not isinstance(number, int) or not 0 <= number < 1 << 32:
        refuse(thing, field, value, "an integer from 0 on")
    return number


def _name(name: object) -> str:
    """The coordinator knows what a name may be; an empty one would mean none."""
    if name is not None and (not isinstance(name, str) or not name):
        refuse("join", "name", name, "a name or None")
    return name or ""


def _lease(lease: object) -> Duration:
    seconds = _number("join", "lease", lease)
    if not LEASE_S_MIN <= seconds <= LEASE_S_MAX:
        refuse("join", "lease", shown(lease), f"from {LEASE_S_MIN:g} to {LEASE_S_MAX:g} seconds")
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
