"""What a caller has begun on the servers and does not finish is taken back, for as long as there is a loop to do so."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from stepd import adding, creating
from stepd.definitions import GroupSpec
from stepd.errors import Unavailable
from stepd.retry import Patience
from stepd.rules import SGD
from stepd.session import together
from stepd.v1 import coordinator_pb2, run_pb2

Work = Callable[["Session"], Coroutine[Any, Any, Any]]


class Session:
    """Notes what the coordinator is asked; what is loaded hangs, or breaks off."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.loads = asyncio.Event()
        self.error: Exception | None = None

    def patience(self, what: str) -> Patience:
        return Patience(what, "here", 1.0)

    async def ask(self, method: str, request: Any) -> Any:
        self.asked.append(method)
        state = coordinator_pb2.RunState(run_id="1", status=coordinator_pb2.RUN_STATUS_LOADING)
        match method:
            case "AddGroup":
                return coordinator_pb2.AddGroupResponse()
            case "CreateRun":
                return coordinator_pb2.CreateRunResponse(run=state)
            case "GetRun":
                return coordinator_pb2.GetRunResponse(run=state)

    async def load(self, *_: Any) -> None:
        self.loads.set()
        if self.error is not None:
            raise self.error
        await Forever()


class Forever:
    """Awaited without a loop."""

    def __await__(self) -> Any:
        while True:
            yield


def add(session: Session) -> Coroutine[Any, Any, Any]:
    streams: Any = type("Streams", (), {"session": session, "run": "digits"})
    return adding.add_group(streams, GroupSpec(SGD(lr=0.1)), (), ())


def create(session: Session) -> Coroutine[Any, Any, Any]:
    anything: Any = session
    return creating.create(anything, run_pb2.RunSpec(name="digits"), ())


@pytest.fixture(autouse=True)
def loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adding, "_load_and_commit", lambda streams, *_: streams.session.load())
    monkeypatch.setattr(creating, "ParameterTable", lambda _: None)
    monkeypatch.setattr(creating, "run_from_proto", lambda spec: spec)
    monkeypatch.setattr(creating, "RunStreams", lambda session, *_: session)


CASES = pytest.mark.parametrize(
    ("begin", "undone"),
    [(add, ["AddGroup", "CommitGroup"]), (create, ["CreateRun", "GetRun", "DeleteRun"])],
    ids=["a-group", "a-run"],
)


@CASES
@pytest.mark.parametrize("fails", [False, True], ids=["cancelled", "failed"])
def test_it_is_taken_back(begin: Work, undone: list[str], fails: bool) -> None:
    async def cut_short() -> list[str]:
        session = Session()
        session.error = Unavailable("gone") if fails else None
        call = asyncio.create_task(begin(session))
        await session.loads.wait()
        if not fails:
            call.cancel()
        with pytest.raises(Unavailable if fails else asyncio.CancelledError):
            await call
        return session.asked

    assert asyncio.run(cut_short()) == undone


@CASES
def test_a_coroutine_that_is_closed_calls_nobody(begin: Work, undone: list[str]) -> None:
    """As at the end of a process: no loop is there any more."""
    session = Session()
    call = begin(session)
    call.send(None)
    call.close()
    gc.collect()  # a coroutine that was never awaited would warn here, and warnings are errors
    assert session.asked == undone[:1]


def test_who_waits_for_others_does_not_look_for_a_loop_that_has_ended() -> None:
    """It would raise an error, and an error is taken for one of the call, which is to be undone."""
    loop, begun = asyncio.new_event_loop(), asyncio.Event()

    async def forever() -> None:
        begun.set()
        await asyncio.Event().wait()

    call = together([forever()])
    waits: Any = loop.create_task(call)
    loop.run_until_complete(begun.wait())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    call.close()
    assert not waits.done()
