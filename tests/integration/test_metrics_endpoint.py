"""The port for metrics: what it answers, and whom it cuts off."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import ParamSpec

import pytest

from stepd.targets import Target, parse_target
from stepd_server.metrics import catalogue, endpoint
from stepd_server.metrics.catalogue import Sample
from stepd_server.metrics.endpoint import serving_metrics
from stepd_server.metrics.exposition import to_text
from stepd_server.metrics.fleet import scrape_all
from stepd_server.settings import CannotStart
from tests.integration.servers import Server
from tests.patience import PATIENCE_S

LOOPBACK = Target("127.0.0.1", 0)
GET = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"
Arguments = ParamSpec("Arguments")


def in_a_loop(test: Callable[Arguments, Coroutine[object, object, None]]) -> Callable[Arguments, None]:
    """The test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@contextlib.asynccontextmanager
async def serving(text: Callable[[], bytes]) -> AsyncIterator[Target]:
    async def made() -> bytes:
        return text()

    async with serving_metrics(LOOPBACK, made) as target:
        assert target is not None
        yield target


async def ask(target: Target, request: bytes) -> tuple[int, bytes]:
    """The status and the body of an answer; status 0 if the connection was cut."""
    reader, writer = await asyncio.open_connection(*target)
    try:
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
    except ConnectionResetError:
        return 0, b""
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]) if head else 0, body


@in_a_loop
async def test_metrics_are_at_their_path_and_nothing_is_elsewhere() -> None:
    async with serving(lambda: b"text\n") as target:
        for request, status, body in (
            (GET, 200, b"text\n"),
            (GET.replace(b"/metrics", b"/metrics?name=x"), 200, b"text\n"),
            (GET.replace(b"GET", b"HEAD"), 200, b""),
            (GET.replace(b"GET", b"POST"), 405, b""),
            (GET.replace(b"/metrics", b"/"), 404, b"metrics are at /metrics\n"),
            (GET.replace(b"/metrics", b"/metrics/../x"), 404, b"metrics are at /metrics\n"),
            (b"hello\r\n\r\n", 400, b""),
            (b"\x16\x03\x01 what TLS begins with\r\n\r\n", 400, b""),
        ):
            assert await ask(target, request) == (status, body), request


@in_a_loop
async def test_what_goes_wrong_stays_here(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> bytes:
        raise ValueError("of interest to nobody else")

    async with serving(broken) as target:
        assert await ask(target, GET) == (500, b"")
    assert "of interest to nobody else" in caplog.text


@in_a_loop
async def test_a_request_that_does_not_end_is_refused_when_it_is_too_long() -> None:
    async with serving(lambda: b"text\n") as target:
        status, _ = await ask(target, GET[:-2] + b"X: " + b"x" * 20_000)
        assert status in {0, 431}
        assert (await ask(target, GET))[0] == 200


@in_a_loop
async def test_who_sends_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "SCRAPE_S", 0.1)
    async with serving(lambda: b"text\n") as target:
        assert await ask(target, GET[:10]) == (0, b"")


@in_a_loop
async def test_who_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen by the place of the only connection becoming free again: nothing else frees it here."""
    monkeypatch.setattr(endpoint, "SCRAPE_S", 0.3)
    monkeypatch.setattr(endpoint, "SCRAPES_AT_ONCE", 1)
    texts = iter([bytes(1 << 26), b"text\n"])
    made = asyncio.Event()

    def text() -> bytes:
        made.set()
        return next(texts)

    async with serving(text) as target:
        with socket.create_connection(target) as idle:
            idle.sendall(GET)
            await made.wait()
            async with asyncio.timeout(PATIENCE_S):
                while (await ask(target, GET))[0] != 200:
                    pass


@in_a_loop
async def test_so_many_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "SCRAPES_AT_ONCE", 2)
    both, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def text() -> bytes:
        both.release()
        await go_on.wait()
        return b"text\n"

    async with serving_metrics(LOOPBACK, text) as target:
        assert target is not None
        first = [asyncio.create_task(ask(target, GET)) for _ in range(2)]
        await both.acquire()
        await both.acquire()
        assert await ask(target, GET) == (0, b"")
        go_on.set()
        assert await asyncio.gather(*first) == [(200, b"text\n")] * 2
        assert await ask(target, GET) == (200, b"text\n")


@in_a_loop
async def test_the_end_does_not_wait_for_anybody() -> None:
    async with serving(lambda: b"text\n") as target:
        reader, writer = await asyncio.open_connection(*target)
    assert await reader.read() == b""
    writer.close()


@in_a_loop
async def test_a_port_that_cannot_be_had() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        target = Target("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(CannotStart, match=f"^cannot listen on {target}: address already in use$"):
            await serving_metrics(target, lambda: asyncio.sleep(0, b"")).__aenter__()
    with pytest.raises(CannotStart, match=r"^cannot listen on no\.such\.host\.invalid:1: "):
        await serving_metrics(Target("no.such.host.invalid", 1), lambda: asyncio.sleep(0, b"")).__aenter__()


@pytest.mark.parametrize("role", ["serve", "coordinator", "shard"])
def test_a_server_says_so_in_one_line(role: str) -> None:
    flags = {
        "serve": [],
        "coordinator": ["--shards=1"],
        "shard": ["--index=0", "--coordinator=127.0.0.1:1"],
    }[role]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        with Server(role, "--listen=127.0.0.1:0", *flags, f"--metrics={target}") as server:
            assert server.ended() == (1, [f"stepd {role}: cannot listen on {target}: address already in use"])


@in_a_loop
async def test_who_does_not_answer_is_missing_and_named(vacant: str) -> None:
    def text() -> bytes:
        return to_text([Sample(catalogue.STEPS, ("r",), 3)])

    async with serving(text) as here, serving(lambda: 1 // 0) as broken:  # type: ignore[return-value]
        parts = {"coordinator": here, "shard 0": parse_target(vacant), "shard 1": None, "shard 2": broken}
        lines = (await scrape_all(parts)).decode().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        'stepd_up{process="coordinator"} 1.0',
        'stepd_up{process="shard 0"} 0.0',
        'stepd_up{process="shard 1"} 0.0',
        'stepd_up{process="shard 2"} 0.0',
        'stepd_steps_total{run="r"} 3.0',
    ]
