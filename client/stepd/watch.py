"""The steps of a run as they happen."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from stepd.info import StepEvent
from stepd.session import Session
from stepd.status import from_rpc_error
from stepd.v1 import coordinator_pb2


class Watch(Iterator[StepEvent]):
    """Steps decided since it was made, one event each; waits for the next. Ends only by `close`, or with an error.

    A connection that is lost is made again; steps decided meanwhile are missing. Also a context manager.
    """

    def __init__(self, session: Session, run: str) -> None:
        """Not to be called: `Run.watch` makes them."""
        self._session = session
        self._request = coordinator_pb2.WatchRunRequest(run=run)
        self._what = f"WatchRun of run {run!r}"
        # Held apart from the object, so that the stream ends with it even if nobody closes it.
        self._calls: list[Any] = []
        self._finalizer = weakref.finalize(self, _end, session.loop.post, self._calls)
        session.run(self._open())

    def __next__(self) -> StepEvent:
        if not self._finalizer.alive:
            raise StopIteration
        return self._session.run(self._read())

    def close(self) -> None:
        """End the stream. May be repeated."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    async def _open(self) -> None:
        """Return once the coordinator has the subscription, so that the next step is not missed."""
        patience = self._session.patience(self._what)
        while True:
            patience.begin()
            # No deadline: it is to last as long as the run. A dead connection is noticed by its keepalive.
            call = self._session.coordinator.WatchRun(self._request)
            try:
                # Sent by the coordinator before the first event.
                async with asyncio.timeout(self._session.timeout):
                    await call.initial_metadata()
                    await call.wait_for_connection()
            except grpc.RpcError as error:
                call.cancel()
                await asyncio.sleep(patience.pause(from_rpc_error(error, target=self._session.target)))
            except BaseException:
                call.cancel()
                raise
            else:
                self._calls[:] = [call]
                return

    async def _read(self) -> StepEvent:
        patience = self._session.patience(self._what)
        while True:
            patience.begin()
            try:
                message = await self._calls[0].read()
            except grpc.RpcError as error:
                await asyncio.sleep(patience.pause(from_rpc_error(error, target=self._session.target)))
                await self._open()
                continue
            if message is not grpc.aio.EOF:
                return StepEvent.from_proto(message)
            await self._open()  # a coordinator that stops ends the stream without an error


def _end(post: Any, calls: list[Any]) -> None:
    post(lambda: [call.cancel() for call in calls])
