"""A worker's memory: every element of a contribution lies where the chunks say, and is not moved without need."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from stepd import shared_memory
from stepd.buffers import Array
from stepd.definitions import ParameterSpec
from stepd.errors import FailedPrecondition, InvalidArgument
from stepd.layout import lay_out, to_proto
from stepd.limits import CHUNK_BYTES
from stepd.shared_memory import Memory, SharedChunk
from stepd.transfer import Plan, bytes_of
from stepd.v1 import run_pb2, shard_pb2
from stepd_server.shard.sharing import attach, parts

F32 = np.dtype(np.float32)
SHAPES = {"w": (300, 1000), "s": (), "e": (0, 3), "b": (5,), "big": (1_000_000,)}


def plan_of(shards: int) -> Plan:
    specs = [ParameterSpec(name, shape, F32) for name, shape in SHAPES.items()]
    pieces = lay_out([spec.size for spec in specs], [16] * len(specs), shards, block=1000)
    return Plan(to_proto(pieces, ["x:1"] * shards, run_pb2.D_TYPE_FLOAT32, 1000), specs)


def memory_of(plan: Plan) -> Memory:
    return Memory(plan.parameters, plan.dtype, len(plan.shards), plan.version)


def as_read(memory: Memory) -> Array:
    """What a reader of the file finds."""
    raw = os.pread(memory.descriptor, memory.count * 4, memory.start)
    elements: Array = np.frombuffer(raw, F32)
    return elements


def gradients(seed: int = 0) -> dict[int, Array]:
    rng = np.random.default_rng(seed)
    return {id_: rng.standard_normal(shape, F32) for id_, shape in enumerate(SHAPES.values())}


def sent(plan: Plan, arrays: Mapping[int, Array], shard: int) -> Array:
    """A contribution to a shard as it would be sent: its chunks laid end to end."""
    pushed = plan.pushes(arrays)[shard]
    flat = [bytes_of(arrays[p])[part or slice(None)] for chunk in pushed.chunks for p, part in chunk.pieces]
    return np.frombuffer(b"".join(flat), F32)


def placed(plan: Plan, memory: Memory, arrays: Mapping[int, Array], shard: int) -> list[SharedChunk]:
    return list(memory.place(plan.pushes(arrays)[shard], arrays))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("held", [(0, 1, 2, 3, 4), (1, 3), (4,), (2,)], ids=str)
def test_what_is_named_is_what_would_be_sent(shards: int, held: tuple[int, ...]) -> None:
    plan = plan_of(shards)
    memory = memory_of(plan)
    arrays = {id_: array for id_, array in gradients().items() if id_ in held}
    for shard in range(shards):
        chunks = placed(plan, memory, arrays, shard)
        found = as_read(memory)
        expected = sent(plan, arrays, shard)
        assert [c.offset for c in chunks] == list(np.cumsum([0, *(c.elements for c in chunks)])[:-1])
        np.testing.assert_array_equal(
            np.concatenate([found[c.at : c.at + c.elements] for c in chunks] or [expected[:0]]), expected
        )


def test_arrays_that_were_lent_are_named_where_they_are() -> None:
    """In one message, and nothing is copied: the other half of the memory stays untouched."""
    plan = plan_of(1)
    memory = memory_of(plan)
    lent = memory.gradients()
    for id_, array in gradients().items():
        lent[list(SHAPES)[id_]][...] = array
    arrays = dict(enumerate(lent.values()))
    (chunk,) = placed(plan, memory, arrays, 0)
    assert chunk == SharedChunk(0, sum(array.size for array in arrays.values()), 0)
    np.testing.assert_array_equal(as_read(memory)[: chunk.elements], sent(plan, gradients(), 0))
    assert os.fstat(memory.descriptor).st_blocks * 512 < 1.1 * 4 * chunk.elements


def test_others_do_not_write_over_what_was_lent() -> None:
    plan = plan_of(1)
    memory = memory_of(plan)
    lent = memory.gradients()
    for array in lent.values():
        array[...] = 7
    placed(plan, memory, gradients(), 0)
    assert all((array == 7).all() for array in lent.values())


def test_a_view_of_what_was_lent_counts_as_another_array() -> None:
    plan = plan_of(1)
    memory = memory_of(plan)
    shifted = memory.gradients()["big"][: SHAPES["b"][0]]
    shifted[...] = 3
    (chunk,) = placed(plan, memory, {3: shifted}, 0)
    np.testing.assert_array_equal(as_read(memory)[chunk.at : chunk.at + 5], np.full(5, 3, F32))


def test_early_parts_are_named_before_late_ones_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a shard adds while the worker copies."""
    monkeypatch.setattr(shared_memory, "SHARED_BYTES_AT_ONCE", CHUNK_BYTES)
    plan = plan_of(1)
    memory = memory_of(plan)
    arrays = gradients()
    first = next(memory.place(plan.pushes(arrays)[0], arrays))
    assert first.elements < sum(array.size for array in gradients().values())
    assert not as_read(memory)[-1000:].any()


def test_the_file_cannot_shrink() -> None:
    memory = memory_of(plan_of(1))
    with pytest.raises(PermissionError):
        os.ftruncate(memory.descriptor, 10)


def test_a_closed_memory_keeps_what_was_lent() -> None:
    memory = memory_of(plan_of(1))
    lent = memory.gradients()["big"]
    memory.close()
    memory.close()
    lent[...] = 1
    assert lent.sum() == lent.size


def test_a_shard_reads_it_in_chunks_of_the_usual_size() -> None:
    memory = np.arange(1_000_000, dtype=np.float32)
    chunks = parts(shard_pb2.SharedChunk(offset=10, count=600_000, at=5), memory, CHUNK_BYTES)
    assert all(chunk.data.nbytes <= CHUNK_BYTES for chunk in chunks)
    assert chunks[0].offset == 10
    data = np.concatenate([np.frombuffer(chunk.data, F32) for chunk in chunks])
    np.testing.assert_array_equal(data, memory[5:600_005])


# --- What a shard does not take -----------------------------------------------------------------------------------

SECRET = bytes(range(32))


def proof_of(memory: Memory, **wrong: int) -> shard_pb2.ShareMemoryProof:
    right = {
        "process": os.getpid(),
        "descriptor": memory.descriptor,
        "start": memory.start,
        "count": memory.count,
        "secret": memory.write_secret(0, SECRET),
    }
    return shard_pb2.ShareMemoryProof(**{**right, **wrong})


def test_a_memory_with_the_secret_is_taken() -> None:
    memory = memory_of(plan_of(1))
    elements = attach(proof_of(memory), SECRET, F32)
    memory.gradients()["w"][0, 0] = 5
    assert elements.size == memory.count
    assert elements[0] == 5
    assert not elements.flags.writeable


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"secret": 64}, "does not hold the secret"),
        ({"start": 4097}, "elements from byte 4097"),
        ({"count": 1 << 30}, "no 1073741824 elements"),
        ({"count": (1 << 64) - 1}, "elements"),
        ({"descriptor": 1 << 20}, "cannot be opened"),
        ({"process": 1 << 30}, "cannot be opened"),
    ],
    ids=str,
)
def test_what_is_not_as_it_was_said_is_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(FailedPrecondition, match=message) as caught:
        attach(proof_of(memory_of(plan_of(1)), **wrong), SECRET, F32)
    assert caught.value.reason == "NOT_SHARED"


def test_a_file_that_can_shrink_is_refused(tmp_path: Path) -> None:
    """Also if it holds the secret: who reads what has gone is killed."""
    path = tmp_path / "file"
    path.write_bytes(SECRET + bytes(8160))
    with path.open("rb") as file:
        proof = shard_pb2.ShareMemoryProof(process=os.getpid(), descriptor=file.fileno(), start=32, count=10)
        with pytest.raises(FailedPrecondition, match=r"shrink|mapped"):
            attach(proof, SECRET, F32)


def test_what_is_no_file_is_not_even_opened() -> None:
    ends = os.pipe()
    try:
        for end in ends:
            proof = shard_pb2.ShareMemoryProof(process=os.getpid(), descriptor=end, count=10)
            with pytest.raises(FailedPrecondition, match="no file of this user"):
                attach(proof, SECRET, F32)
    finally:
        for end in ends:
            os.close(end)


def test_a_chunk_past_the_end_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="holds 10 elements, got a chunk that goes to 11"):
        parts(shard_pb2.SharedChunk(at=1, count=10), np.zeros(10, F32), 16)
    with pytest.raises(FailedPrecondition, match="no memory is shared"):
        parts(shard_pb2.SharedChunk(at=1, count=10), None, 16)
