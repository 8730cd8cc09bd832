"""`GET /metrics` over HTTP, for whoever scrapes.

A server of its own beside gRPC, small and strict: one request for each connection, few connections at once, and so much
time for each. Whoever is slow or talks nonsense is cut off and costs at most one text.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus

from stepd.limits import SCRAPE_REQUEST_BYTES_MAX, SCRAPE_S, SCRAPES_AT_ONCE
from stepd.targets import Target
from stepd_server.ports import resolve
from stepd_server.settings import CannotStart

__all__ = ["CONTENT_TYPE", "PATH", "announced", "serving_metrics"]

logger = logging.getLogger(__name__)

PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Text = Callable[[], Awaitable[bytes]]


@contextlib.asynccontextmanager
async def serving_metrics(listen: Target | None, text: Text) -> AsyncIterator[Target | None]:
    """Answer scrapes with what `text` gives for as long as the block lasts.

    Args:
        listen: where; None: nowhere.
        text: makes the whole text for one scrape.

    Yields:
        The address with the port that was chosen.

    Raises:
        CannotStart: the port cannot be had.
    """
    if listen is None:
        yield None
        return
    endpoint = _Endpoint(text)
    address = resolve(listen)
    try:
        server = await asyncio.start_server(
            endpoint.answer, address.host, address.port, limit=SCRAPE_REQUEST_BYTES_MAX, backlog=SCRAPES_AT_ONCE
        )
    except OSError as error:
        why = os.strerror(error.errno).lower() if error.errno else str(error)
        raise CannotStart(f"cannot listen on {listen}: {why}") from error
    try:
        yield Target(listen.host, server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await endpoint.stop()


def announced(metrics: Target | None) -> tuple[str, dict[str, str]]:
    """What a server says about its metrics: to people, and to programs. Nothing if it serves none."""
    if metrics is None:
        return "", {}
    return f", metrics on http://{metrics}{PATH}", {"metrics": str(metrics)}


class _Endpoint:
    """The connections of one server."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._open: set[asyncio.Task[None]] = set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close the connection."""
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= SCRAPES_AT_ONCE:
            writer.transport.abort()
            return
        self._open.add(task)
        try:
            async with asyncio.timeout(SCRAPE_S):
                writer.write(await self._response(reader))
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # Gone, too slow, or we stop: there is nobody to tell. (A cancelled handler would be logged as an error.)
            pass
        finally:
            # What has not been sent is dropped with the connection.
            writer.transport.abort()
            self._open.discard(task)

    async def stop(self) -> None:
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _response(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _message(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _message(HTTPStatus.BAD_REQUEST)
        if words[1].split(b"?")[0] != PATH.encode():
            return _message(HTTPStatus.NOT_FOUND, f"metrics are at {PATH}\n".encode())
        if words[0] not in {b"GET", b"HEAD"}:
            return _message(HTTPStatus.METHOD_NOT_ALLOWED)
        try:
            text = await self._text()
        except Exception:
            logger.exception("cannot answer a scrape")
            return _message(HTTPStatus.INTERNAL_SERVER_ERROR)
        return _message(HTTPStatus.OK, text, with_body=words[0] == b"GET")


def _message(status: HTTPStatus, body: bytes = b"", *, with_body: bool = True) -> bytes:
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {CONTENT_TYPE}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(["Allow: GET, HEAD"] if status is HTTPStatus.METHOD_NOT_ALLOWED else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + (body if with_body else b"")
