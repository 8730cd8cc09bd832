"""Links between processes that a test can cut, stall, delay and throttle: TCP proxies on this machine.

A proxy stands before a server. It knows which process each of its connections comes from, so that the link of one
worker can be troubled and those of the others not.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from tests.patience import PATIENCE_S

T = TypeVar("T")

_READ_BYTES: Final = 64 * 1024
# Read but not forwarded yet; then the sender is held back, as by a real network.
_PIECES_HELD: Final = 16
# Bytes in the system's buffers hide a stall from the sender: keep them few.
_SYSTEM_BUFFER_BYTES: Final = 128 * 1024


class Way(Enum):
    """Which way bytes go."""

    UP = "to the server"
    DOWN = "to the client"


@dataclass(frozen=True)
class Conditions:
    """What a link is like.

    Attributes:
        stalled: ways on which nothing is forwarded, while the connection stays.
        delay_s: from a byte's arrival to its going on.
        bytes_per_s: at most, each way; None is no limit.
        refused: new connections are closed at once.
    """

    stalled: frozenset[Way] = frozenset()
    delay_s: float = 0.0
    bytes_per_s: float | None = None
    refused: bool = False


FINE: Final = Conditions()
STALLED: Final = Conditions(stalled=frozenset(Way))
DEAF: Final = Conditions(stalled=frozenset({Way.DOWN}))  # requests arrive, answers do not
REFUSED: Final = Conditions(refused=True)


@dataclass
class _Trap:
    """Something to do when so many bytes have gone one way from now on."""

    of: int | None
    way: Way
    left: int
    then: Callable[[], object]


class Network:
    """A thread in which all proxies of a test live; a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._proxies: list[Proxy] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def proxy(self) -> Proxy:
        """A proxy that listens; whom it stands before is said later."""

        async def start() -> Proxy:
            proxy = Proxy(self)
            await proxy.listen()
            self._proxies.append(proxy)
            return proxy

        return self.run(start())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def do(self, action: Callable[[], T]) -> T:
        """Do something where the proxies live; from any thread, theirs too."""
        if threading.current_thread() is self._thread:
            return action()

        async def act() -> T:
            return action()

        return self.run(act())

    def close(self) -> None:
        async def end() -> None:
            for proxy in self._proxies:
                proxy.close()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self.run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Proxy:
    """One port in front of one server. `of` is the process id of a client; None means all of them.

    Attributes:
        target: where clients are to connect.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._upstream: tuple[str, int] | None = None
        self._links: list[_Link] = []
        self._conditions: dict[int | None, Conditions] = {}
        self._traps: list[_Trap] = []
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.target = ""

    # --- What tests do ------------------------------------------------------------------------------------------

    def stand_before(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._network.do(lambda: setattr(self, "_upstream", (host, int(port))))

    def have(self, conditions: Conditions, *, of: int | None = None) -> None:
        """Have links be like this from now on; those of one client go before those of all."""

        def change() -> None:
            self._conditions[of] = conditions
            self._spawn(self._notify())

        self._network.do(change)

    def cut(self, *, of: int | None = None) -> int:
        """Reset connections; how many there were. What was under way in them is lost."""

        def reset() -> int:
            links = [link for link in self._links if link.is_of(of)]
            for link in links:
                link.reset()
            return len(links)

        return self._network.do(reset)

    def after(self, count: int, way: Way, then: Callable[[], object], *, of: int | None = None) -> None:
        """Call `then` (in the proxies' thread) when exactly `count` more bytes have gone one way, and none after."""
        self._network.do(lambda: self._traps.append(_Trap(of, way, count, then)))

    def clear(self) -> None:
        """All links are fine, and nothing is waited for."""

        def clear() -> None:
            self._conditions.clear()
            self._traps.clear()
            self._spawn(self._notify())

        self._network.do(clear)

    # --- In the loop --------------------------------------------------------------------------------------------

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_READ_BYTES)
        self.target = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for link in list(self._links):
            link.reset()

    def conditions(self, link: _Link) -> Conditions:
        own = (conditions for of, conditions in self._conditions.items() if of is not None and link.is_of(of))
        return next(own, self._conditions.get(None, FINE))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(holds)

    def traps(self, link: _Link, way: Way) -> list[_Trap]:
        """What the next bytes on a link may run into."""
        return [trap for trap in self._traps if trap.way is way and link.is_of(trap.of)]

    def passed(self, link: _Link, way: Way, count: int) -> None:
        """Bytes have gone by: count them for whoever waits."""
        for trap in self.traps(link, way):
            trap.left -= count
            if trap.left <= 0:
                self._traps.remove(trap)
                trap.then()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._network._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self, writer)
        if self._upstream is None or self.conditions(link).refused:
            writer.transport.abort()
            return
        try:
            there_reader, there = await asyncio.open_connection(*self._upstream, limit=_READ_BYTES)
        except OSError:
            writer.transport.abort()
            return
        link.goes_on(there)
        self._links.append(link)
        try:
            await asyncio.gather(link.carry(reader, there, Way.UP), link.carry(there_reader, writer, Way.DOWN))
        finally:
            link.reset()
            self._links.remove(link)


class _Link:
    """One connection through a proxy."""

    def __init__(self, proxy: Proxy, client: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._ends: list[asyncio.StreamWriter] = []
        self._cut = False
        self._ports = (client.get_extra_info("peername")[1], client.get_extra_info("sockname")[1])
        self._socket: str | None = None
        self._owners: dict[int, bool] = {}
        self.goes_on(client)

    def goes_on(self, end: asyncio.StreamWriter) -> None:
        end.transport.set_write_buffer_limits(_SYSTEM_BUFFER_BYTES)
        self._ends.append(end)

    def is_of(self, client: int | None) -> bool:
        """Whether a process made it; None: any."""
        if client is None:
            return True
        # The system's table is read in pieces, and a line may be missed while others come and go: look again.
        self._socket = self._socket or _socket_of(*self._ports)
        if self._socket and client not in self._owners:
            self._owners[client] = _has_open(client, self._socket)
        return self._owners.get(client, False)

    def reset(self) -> None:
        self._cut = True
        for end in self._ends:
            end.transport.abort()
        self._proxy._spawn(self._proxy._notify())

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES_HELD)
        taking = asyncio.ensure_future(self._take(reader, held))
        try:
            with contextlib.suppress(OSError):
                while data := await self._next(held, way):
                    await self._give(writer, data, way)
                    if self._cut:
                        return
                writer.write_eof()
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, held: asyncio.Queue[tuple[float, bytes]]) -> None:
        now, data = asyncio.get_running_loop().time, b"?"
        while data:
            try:
                data = await reader.read(_READ_BYTES)
            except OSError:
                data = b""
            await held.put((now(), data))

    async def _next(self, held: asyncio.Queue[tuple[float, bytes]], way: Way) -> bytes:
        came, data = await held.get()
        due = came + self._proxy.conditions(self).delay_s
        await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        return data

    async def _give(self, writer: asyncio.StreamWriter, data: bytes, way: Way) -> None:
        """Forward, up to each trap exactly."""
        while data and not self._cut:
            await self._proxy.until(lambda: self._cut or way not in self._proxy.conditions(self).stalled)
            if self._cut:
                return
            part = data[: min((trap.left for trap in self._proxy.traps(self, way)), default=len(data))]
            writer.write(part)
            self._proxy.passed(self, way, len(part))
            if self._cut:
                return
            data = data[len(part) :]
            if rate := self._proxy.conditions(self).bytes_per_s:
                await asyncio.sleep(len(part) / rate)
            await writer.drain()


def _socket_of(port: int, server: int) -> str | None:
    """The name of the socket that is connected from one port of the loopback to another."""
    lines = [line for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    for _, local, remote, *fields in map(str.split, lines):
        # gRPC's sockets are of the sixth version, with addresses of the fourth mapped into it: look at ports only.
        # One that is closed and lingers has the inode 0.
        if (local[-4:], remote[-4:]) == (f"{port:04X}", f"{server:04X}") and fields[6] != "0":
            return f"socket:[{fields[6]}]"
    return None


def _has_open(pid: int, name: str) -> bool:
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            if str(path.readlink()) == name:
                return True
    return False
