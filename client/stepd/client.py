"""The way in: `connect` and `Client`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from stepd.averages import Average
from stepd.channel import TLS
from stepd.creating import create, create_or_find
from stepd.definitions import check_run_name
from stepd.errors import InvalidArgument
from stepd.info import FleetInfo, RunInfo
from stepd.parameters import ParamGroup, define_run
from stepd.policies import AnyClip, AnySync, Missing, OnNonfinite, Wire
from stepd.rules import Rule
from stepd.run import Run
from stepd.schedules import Schedule
from stepd.session import Session
from stepd.settings import Unfit, fit, refuse
from stepd.targets import parse_target
from stepd.v1 import coordinator_pb2


def connect(
    target: str | None = None,
    *,
    token: str | None = None,
    tls: TLS | None = None,
    transport: str = "auto",
    timeout: float = 30.0,
    retry_for: float = 120.0,
) -> Client:
    """Make a client of a fleet. Connects with the first call.

    Args:
        target: the coordinator, HOST:PORT. None: the environment's STEPD_TARGET.
        token: sent with every call. None: STEPD_TOKEN, if set.
        tls: certificates. None: STEPD_CA, STEPD_CERT and STEPD_KEY; plaintext if none is set.
        transport: of gradients and parameters. "auto": through memory shared with those shards that prove to be on this
            host and of this user, through gRPC with the others. "grpc": always through gRPC. "shm": runs whose shards
            cannot share memory with this process cannot be joined.
        timeout: seconds that one try of a call may take. Waiting for a round is not counted.
        retry_for: seconds for which a call is tried again when a server does not answer.
    """
    target = target if target is not None else os.environ.get("STEPD_TARGET") or None
    if target is None:
        raise InvalidArgument(
            "connect: no target given, and STEPD_TARGET is not set",
            expected="HOST:PORT, such as 127.0.0.1:7070",
            given=None,
        )
    if not isinstance(target, str):
        refuse("connect", "target", target, "HOST:PORT, such as 127.0.0.1:7070")
    parse_target(target)
    _check_transport(transport)
    if tls is not None and not isinstance(tls, TLS):
        refuse("connect", "tls", tls, "stepd.TLS or None")
    session = Session(
        target,
        token=token if token is not None else os.environ.get("STEPD_TOKEN") or None,
        tls=tls if tls is not None else _tls_of_environment(),
        timeout=_seconds("timeout", timeout, zero=False),
        retry_for=_seconds("retry_for", retry_for, zero=True),
        transport=transport,
    )
    return Client(session)


class Client:
    """A connection to a fleet; a context manager. May be used from several threads."""

    def __init__(self, session: Session) -> None:
        """Not to be called: `connect` makes clients."""
        self._session = session

    def __repr__(self) -> str:
        return f"Client({self._session.target!r}{', closed' if self._session.loop.closed else ''})"

    @property
    def target(self) -> str:
        """The coordinator's."""
        return self._session.target

    def create_run(
        self,
        name: str,
        params: Mapping[str, Any] | Iterable[ParamGroup] | ParamGroup,
        *,
        optimizer: Rule,
        schedule: Schedule | None = None,
        clip: AnyClip | None = None,
        sync: AnySync | None = None,
        on_nonfinite: OnNonfinite = "skip",
        wire: str | Wire = "float32",
        average: Average | None = None,
        missing: Missing = "skip",
        exist_ok: bool = False,
    ) -> Run:
        """Create a run with its initial parameters.

        Args:
            name: 1 to 128 characters of A-Z, a-z, 0-9, _ and -.
            params: name to array, or a sequence of ParamGroup.
            optimizer: the rule, such as stepd.AdamW(lr=1e-3).
            schedule: of the rate; None keeps it.
            clip: of the aggregated gradient; None for none.
            sync: how a step gathers contributions; None is Sync().
            on_nonfinite: what becomes of a step with a gradient that is not finite: "skip", "quarantine" or "error".
            wire: how gradients travel: "float32", "bfloat16", "float16", "int8" or "topk:F"; or stepd.Wire, which says
                it of parameters as well. (Runs with a float64 master send float64 and take only "float32" here.)
            average: of the parameters, kept on the servers for `run.pull(averaged=True)`: EMA, SWA or None.
            missing: what becomes of a contribution that leaves parameters out: "skip" or "error".
            exist_ok: give the run of that name if there is one with the same parameters. Any number of workers may
                call this at once: one of them creates the run, the others wait for it.

        Raises:
            AlreadyExists: the name is taken.
            FailedPrecondition: RUN_DIFFERS: with exist_ok, the run of that name has other parameters.
            ResourceExhausted: the fleet lacks the memory.
        """
        spec, masters = define_run(
            name,
            params,
            optimizer=optimizer,
            schedule=schedule,
            clip=clip,
            sync=sync,
            on_nonfinite=on_nonfinite,
            missing=missing,
            average=average,
            wire=wire,
        )
        opening = create_or_find if exist_ok else create
        return Run(self._session, *self._session.run(opening(self._session, spec, masters)))

    def run(self, name: str) -> Run:
        """The run of that name."""
        request = coordinator_pb2.GetRunRequest(run=check_run_name(name))
        found: coordinator_pb2.GetRunResponse = self._session.run(self._session.ask("GetRun", request))
        return Run(self._session, found.run.spec, found.layout)

    def runs(self) -> list[RunInfo]:
        """All runs of the fleet."""
        answer: coordinator_pb2.ListRunsResponse = self._session.run(
            self._session.ask("ListRuns", coordinator_pb2.ListRunsRequest())
        )
        return [RunInfo.from_proto(run) for run in answer.runs]

    def fleet(self) -> FleetInfo:
        """The servers."""
        answer = self._session.run(self._session.ask("GetFleet", coordinator_pb2.GetFleetRequest()))
        return FleetInfo.from_proto(answer, target=self._session.target)

    def close(self) -> None:
        """End the connection. Workers of it lose their place when their leases run out. May be repeated."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _check_transport(transport: object) -> None:
    if transport not in ("auto", "grpc", "shm"):
        refuse("connect", "transport", transport, '"auto", "grpc" or "shm"')


def _tls_of_environment() -> TLS | None:
    paths = [os.environ.get(name) or None for name in ("STEPD_CA", "STEPD_CERT", "STEPD_KEY")]
    return TLS(*paths) if any(paths) else None


def _seconds(field: str, value: object, *, zero: bool) -> float:
    expected = "a number of seconds, at least 0" if zero else "a positive number of seconds"
    try:
        seconds = fit(float, value)
    except Unfit:
        refuse("connect", field, value, expected)
    if not isinstance(seconds, float) or seconds < 0 or (seconds == 0 and not zero):
        refuse("connect", field, value, expected)
    return seconds
