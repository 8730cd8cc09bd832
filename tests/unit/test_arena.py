"""A run's memory on a shard: files that are whole, of the right size, and gone when the run is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from stepd.errors import ResourceExhausted
from stepd.layout import lay_out, to_proto
from stepd.rules import SGD, AdamW, Rule
from stepd.v1 import run_pb2, shard_control_pb2
from stepd_server.shard.arena import Arena, read_prepared
from stepd_server.shard.journal import Field
from stepd_server.shard.plan import Piece
from stepd_server.shard.scratch import aligned_empty

from .shard_bench import spec_of

PARAMS = {"w": np.zeros((30, 10), np.float32), "b": np.zeros((), np.float32)}


def arena(folder: Path, rule: Rule) -> Arena:
    spec = spec_of(PARAMS, rule)
    layout = to_proto(lay_out([300, 1], [16, 16], 1), ["x:1"], run_pb2.D_TYPE_FLOAT32)
    prepared = shard_control_pb2.PrepareRunRequest(run_id="7", spec=spec, layout=layout)
    return Arena(folder, Piece.of(spec, layout, 0), prepared)


def test_memory_is_parameters_accumulator_and_buffers(tmp_path: Path) -> None:
    """Plain SGD keeps nothing besides; AdamW two numbers for each element. What a unit overwrites is there twice."""
    assert arena(tmp_path / "a", SGD(lr=0.1)).bytes == 301 * 4 * (2 + 1)
    assert arena(tmp_path / "b", AdamW()).bytes == 301 * 4 * (4 + 3)
    files = {path.name: path.stat().st_size for path in (tmp_path / "b").iterdir()}
    assert files["0.exp_avg"] == files["0.exp_avg_sq"] == files["parameters"] == files["accumulator"] == 301 * 4
    assert files["undo"] == 301 * 4 * 3


def test_what_was_written_is_there_when_the_files_are_mapped_again(tmp_path: Path) -> None:
    """Arrays and counters, without anybody having saved them."""
    first = arena(tmp_path, AdamW())
    first.parameters[:] = np.arange(301)
    first.buffers[0][1][5] = 7
    first.updates[0] = 3
    first.seal()
    first.journal.store(Field.STEP, 1)
    first.journal.store(Field.INTENT, 1)
    first.journal.store(Field.ROUND, 1)
    again = arena(tmp_path, AdamW())
    np.testing.assert_array_equal(again.parameters, np.arange(301))
    assert (again.updates[0], again.round, again.step, again.sealed, again.unfinished) == (3, 1, 1, True, False)
    # Sealing has filled the buffers with what they begin with.
    assert again.buffers[0][1][5] == 0


def test_a_folder_says_what_it_was_prepared_with(tmp_path: Path) -> None:
    """Only once it is whole; removing leaves nothing."""
    (tmp_path / "half").mkdir()
    assert read_prepared(tmp_path / "half") is None
    made = arena(tmp_path / "run", SGD(lr=0.1))
    prepared = read_prepared(tmp_path / "run")
    assert prepared is not None
    assert prepared.run_id == "7"
    made.remove()
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_an_error_before_anything_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a bus error in the middle of a step; the error says how much is needed, and nothing is left behind."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ResourceExhausted, match="needs 8428 bytes"):
        arena(tmp_path / "run", AdamW())
    assert not (tmp_path / "run").exists()


def test_what_was_mapped_before_the_disk_was_full_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, not when the error is forgotten: the next run may need the room."""
    allocate, left = os.posix_fallocate, 4

    def nearly_full(*where: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "no space")
        allocate(*where)

    monkeypatch.setattr(os, "posix_fallocate", nearly_full)
    with pytest.raises(ResourceExhausted) as held:
        arena(tmp_path / "run", AdamW())
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert held.value.details["needed"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scratch_begins_at_cache_lines(dtype: str) -> None:
    """Every row of it."""
    scratch = aligned_empty(3, 1024, np.dtype(dtype))
    assert [row.ctypes.data % 64 for row in scratch] == [0, 0, 0]
    assert (scratch.shape, scratch.dtype) == ((3, 1024), np.dtype(dtype))
