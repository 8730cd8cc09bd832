"""What compiling takes is given back, and only what can be had again; kernels are there before a run is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepd import casts
from stepd.layout import lay_out, to_proto
from stepd.rules import SGD, RMSprop
from stepd.specs import optimizer_to_proto
from stepd.v1 import run_pb2, shard_control_pb2
from stepd_server.kernels import ready
from stepd_server.kernels.arriving import known_loops
from stepd_server.kernels.compiled import available, compiled
from stepd_server.kernels.ready import compile_for, give_back_pages
from stepd_server.shard import run, service
from stepd_server.shard.arena import Arena
from stepd_server.shard.plan import Piece
from stepd_server.shard.service import ShardService

needs_compiler = pytest.mark.skipif(not available(), reason="llvmlite (stepd[fast]) is not installed")
FLOAT = np.dtype(np.float32)
SMAPS = """\
10000-20000 r-xp 00000000 fe:00 1                          /lib/libllvmlite.so
Rss:                  60 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
20000-30000 r--p 00010000 fe:00 1                          /lib/libllvmlite.so
Rss:                  64 kB
Anonymous:             4 kB
30000-38000 r--p 00020000 fe:00 1                          /lib/libllvmlite.so
Rss:                   8 kB
Anonymous:             0 kB
38000-40000 rw-p 00028000 fe:00 1                          /lib/libllvmlite.so
Rss:                  32 kB
Anonymous:             0 kB
40000-50000 r-xp 00000000 fe:00 2                          /lib/libc.so
Rss:                  64 kB
Anonymous:             0 kB
50000-60000 rw-p 00000000 00:00 0
Rss:                  64 kB
Anonymous:            64 kB
"""


def test_only_what_nobody_has_written_to_is_given_back() -> None:
    expected = [(0x10000, 0x20000, 60 << 10), (0x30000, 0x38000, 8 << 10)]
    assert list(ready._unchanged(SMAPS, "llvmlite")) == expected


def test_a_library_whose_pages_were_given_back_works() -> None:
    values = np.arange(1000, dtype=np.float64)
    expected = float(values @ values)
    assert give_back_pages("openblas") > 0
    assert float(values @ values) == expected


@needs_compiler
def test_what_compiling_took_is_given_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[None] = []
    compiled.cache_clear()
    monkeypatch.setattr(ready, "give_back_pages", lambda: given.append(None))
    for _ in range(2):
        compile_for([(RMSprop(0.1, momentum=0.9), 3.0)], FLOAT, 1 << 20)
        assert known_loops(FLOAT).ready
        assert len(given) == 1


@needs_compiler
def test_so_are_the_casts_of_a_run_that_travels_in_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    casts.known_loops.cache_clear()
    compile_for([], FLOAT, 1 << 20)
    monkeypatch.setattr(ready, "give_back_pages", lambda: given.append(casts.known_loops().get("widen.bfloat16")))
    for _ in range(2):
        compile_for([], FLOAT, 1 << 20, halves=True)
        assert len(given) == 1
        assert given[0] is not None


@needs_compiler
def test_a_run_takes_its_memory_when_its_kernels_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def watched(*how: Any) -> Arena:
        assert known_loops(FLOAT).ready
        return Arena(*how)

    monkeypatch.setattr(service, "Arena", watched)
    size = 1 << 15
    parameter = run_pb2.ParameterSpec(name="w", shape=(size,), dtype=run_pb2.D_TYPE_FLOAT32)
    group = run_pb2.GroupSpec(optimizer=optimizer_to_proto(SGD(lr=0.1)))
    spec = run_pb2.RunSpec(name="run", parameters=[parameter], groups=[group])
    layout = to_proto(lay_out([size], [4], 1, block=1 << 16), ["x:1"], run_pb2.D_TYPE_FLOAT32, 1 << 16)

    async def scenario() -> None:
        shard = ShardService(tmp_path, 0)
        request = shard_control_pb2.PrepareRunRequest(spec=spec, layout=layout, run_id="a")
        # Asked twice at the same time, as by a coordinator whose first call was lost: there is one run.
        nothing: Any = None
        answers = await asyncio.gather(shard.PrepareRun(request, nothing), shard.PrepareRun(request, nothing))
        assert answers[0].bytes == answers[1].bytes > 0
        assert list(shard._runs) == ["run"]
        await shard.stop()

    asyncio.run(scenario())


@needs_compiler
@pytest.mark.parametrize("encoding", ["", "bfloat16"])
def test_nothing_is_compiled_for_groups_that_are_too_small_for_it(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(run, "compile_for", lambda *how, halves: asked.append((*how, halves)))
    sizes = {"w": 1 << 15, "b": 100}
    spec = run_pb2.RunSpec(
        name="run",
        parameters=[
            run_pb2.ParameterSpec(name=name, shape=(size,), dtype=run_pb2.D_TYPE_FLOAT32, group=group)
            for group, (name, size) in enumerate(sizes.items())
        ],
        groups=[run_pb2.GroupSpec(optimizer=optimizer_to_proto(rule)) for rule in (SGD(lr=0.1), RMSprop(0.1))],
        gradient_encoding=encoding,
    )
    layout = to_proto(lay_out([*sizes.values()], [4, 4], 1, block=1 << 16), ["x:1"], run_pb2.D_TYPE_FLOAT32, 1 << 16)
    run.have_kernels(Piece.of(spec, layout, 0))
    ((groups, *_, halves),) = asked
    assert [rule for rule, _ in groups] == [SGD(lr=0.1)]
    assert halves == bool(encoding)
