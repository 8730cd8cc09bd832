"""The metrics of a fleet in one scrape: every process of it is asked, and their texts are put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from stepd.limits import SCRAPE_BYTES_MAX, SCRAPE_PART_S
from stepd.targets import Target
from stepd_server.metrics.catalogue import UP, Sample
from stepd_server.metrics.endpoint import PATH
from stepd_server.metrics.exposition import to_text

__all__ = ["merge", "scrape_all"]

logger = logging.getLogger(__name__)


async def scrape_all(targets: Mapping[str, Target | None]) -> bytes:
    """One text of all processes. Those that do not answer in time are missing in it, and UP says so.

    Args:
        targets: by name of the process, where it serves its metrics; None while it is not there.
    """
    texts = await asyncio.gather(*(_scrape(name, target) for name, target in targets.items()))
    up = [Sample(UP, (name,), text is not None) for name, text in zip(targets, texts, strict=True)]
    return merge([to_text(up), *(text for text in texts if text is not None)])


async def _scrape(name: str, target: Target | None) -> bytes | None:
    """The text of one process; None if there is none to be had."""
    if target is None:
        return None
    try:
        async with asyncio.timeout(SCRAPE_PART_S):
            return await _get(target)
    except (OSError, TimeoutError, EOFError, ValueError) as error:
        logger.info("no metrics of %s on %s: %s", name, target, str(error) or type(error).__name__)
        return None


async def _get(target: Target) -> bytes:
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(f"GET {PATH} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        if head[0].split(b" ")[1:2] != [b"200"]:
            raise ValueError(f"it answers {head[0].decode(errors='replace')}")
        sizes = [int(line.split(b":")[1]) for line in head if line.lower().startswith(b"content-length:")]
        if len(sizes) != 1 or not 0 <= sizes[0] <= SCRAPE_BYTES_MAX:
            raise ValueError(f"its text is of {sizes} bytes, at most {SCRAPE_BYTES_MAX} are taken")
        return await reader.readexactly(sizes[0])
    finally:
        writer.transport.abort()


def merge(texts: Iterable[bytes]) -> bytes:
    """Texts of several processes as one: each family once, with the series of all.

    The series differ by their labels: whatever more than one process of a fleet has is labelled with the shard.
    """
    families: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
    for text in texts:
        about, series, known = list[bytes](), list[bytes](), False
        for line in text.splitlines(keepends=True):
            if line.startswith(b"# HELP "):
                about, series = families.setdefault(line.split(b" ")[2], ([], []))
                known = bool(about)
            if not line.startswith(b"#"):
                series.append(line)
            elif not known:
                about.append(line)
    return b"".join(line for about, series in families.values() for line in (*about, *series))
