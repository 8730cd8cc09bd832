"""Shards without a server: runs laid out over any number of them, contributions cut into chunks, rounds led by hand."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepd import wire
from stepd.layout import lay_out, slices_of, to_proto
from stepd.rules import SGD, Reach, Rule
from stepd.specs import optimizer_to_proto
from stepd.v1 import round_pb2, run_pb2, shard_control_pb2, shard_pb2
from stepd_server.exact import ExactSum
from stepd_server.shard.arena import Arena, read_prepared
from stepd_server.shard.extending import restore
from stepd_server.shard.plan import Piece
from stepd_server.shard.run import ShardRun
from tests.patience import PATIENCE_S

Arrays = Mapping[str, np.ndarray[Any, Any]]
BLOCK = 8


# Vectors, scalars, empty tensors, and one that spans shards.
SHAPES = {"w": (7, 9), "scalar": (), "empty": (0, 3), "b": (5,), "big": (100,)}


def arrays(seed: int, dtype: str = "float32") -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await scenario()

    asyncio.run(limited())


def member(rank: int, incarnation: int = 1) -> round_pb2.Member:
    return round_pb2.Member(worker=f"w{rank}", incarnation=incarnation, rank=rank)


def spec_of(params: Arrays, rule: Rule, **fields: Any) -> run_pb2.RunSpec:
    """The spec of a run with one group."""
    double = any(array.dtype == np.float64 for array in params.values())
    dtype = run_pb2.D_TYPE_FLOAT64 if double else run_pb2.D_TYPE_FLOAT32
    parameters = [run_pb2.ParameterSpec(name=n, shape=a.shape, dtype=dtype) for n, a in params.items()]
    groups = [run_pb2.GroupSpec(optimizer=optimizer_to_proto(rule))]
    fields = {"on_nonfinite": run_pb2.NONFINITE_POLICY_SKIP, "missing": run_pb2.MISSING_POLICY_SKIP, **fields}
    return run_pb2.RunSpec(name="run", parameters=parameters, groups=groups, **fields)


class Fleet:
    """The shards of one run."""

    def __init__(self, folder: Path, params: Arrays, rule: Rule = SGD(lr=1.0), shards: int = 1, **fields: Any) -> None:  # noqa: B008
        self.params = params
        self.spec = spec_of(params, rule, **fields)
        sizes = [a.size for a in params.values()]
        whole = {id_: 16 * size for id_, size in enumerate(sizes) if rule.reach is Reach.WHOLE}
        pieces = lay_out(sizes, [16] * len(params), shards, block=BLOCK, whole=whole)
        self.rule = rule
        self.layout = to_proto(pieces, ["x:1"] * shards, self.spec.parameters[0].dtype, BLOCK)
        self.folder = folder
        self.shards = [self.open(i) for i in range(shards)]

    def open(self, index: int) -> ShardRun:
        prepared = shard_control_pb2.PrepareRunRequest(run_id="1", spec=self.spec, layout=self.layout)
        return ShardRun(Arena(self.folder / f"{index}", Piece.of(self.spec, self.layout, index), prepared))

    def flat(self, index: int, arrays: Arrays) -> tuple[np.ndarray[Any, Any], list[shard_pb2.Range]]:
        """What of some arrays lies on a shard, and which ranges of it that is."""
        piece = self.shards[index].arena.piece
        names, parts, ranges = list(self.params), [], list[shard_pb2.Range]()
        for s, start in zip(slices_of(self.layout.shards[index]), piece.starts, strict=False):
            array = arrays.get(names[s.parameter])
            if array is not None:
                parts.append(array.ravel()[s.start : s.stop])
                if ranges and ranges[-1].start + ranges[-1].count == start:
                    ranges[-1].count += s.count
                else:
                    ranges.append(shard_pb2.Range(start=start, count=s.count))
        return np.concatenate([*parts, np.empty(0, piece.dtype)]).astype(piece.dtype), ranges

    async def start(self) -> None:
        for i, shard in enumerate(self.shards):
            await shard.load(chunks(self.flat(i, self.params)[0]))
            shard.seal()

    async def push(
        self,
        grads: Arrays,
        rank: int = 0,
        round: int = 0,
        attempt: int = 0,
        weight: float = 1.0,
        chunk: int = 5,
        layout_version: int = 0,
        sequence: int = 0,
    ) -> list[shard_pb2.PushResponse]:
        async def to(index: int) -> shard_pb2.PushResponse:
            flat, ranges = self.flat(index, grads)
            header = shard_pb2.PushHeader(
                run="run",
                member=member(rank),
                id=round_pb2.RoundId(round=round, attempt=attempt),
                weight=weight,
                ranges=ranges,
                layout_version=layout_version,
                sequence=sequence,
            )
            return await self.shards[index].push(header, chunks(flat, chunk))

        return await asyncio.gather(*(to(i) for i in range(len(self.shards))))

    async def gather(
        self,
        members: Sequence[int] = (0,),
        round: int = 0,
        attempt: int = 0,
        clip: run_pb2.ClipSpec | None = None,
        reduction: run_pb2.Reduction = run_pb2.REDUCTION_MEAN,
        deterministic: bool = False,
        quarantined: Sequence[int] = (),
        layout_version: int = 0,
    ) -> list[round_pb2.GatheredSums]:
        request = shard_control_pb2.RoundToGather(
            id=round_pb2.RoundId(round=round, attempt=attempt),
            members=[member(rank) for rank in members],
            clip=clip,
            reduction=reduction,
            deterministic=deterministic,
            quarantined=[member(rank) for rank in quarantined],
            layout_version=layout_version,
        )

        async def sums(shard: ShardRun) -> round_pb2.GatheredSums:
            last = [message async for message in shard.gather(request)][-1]
            assert last.WhichOneof("message") == "sums"
            return last.sums

        return await asyncio.gather(*(sums(shard) for shard in self.shards))

    async def finish(self, decision: round_pb2.Decision) -> list[int]:
        return await asyncio.gather(*(shard.finish(decision) for shard in self.shards))

    async def step(
        self,
        *grads: Arrays,
        round: int = 0,
        lr: float = 1.0,
        clip_scale: float = 1.0,
        applied: int | None = None,
        momentum: float | None = None,
        **gathering: Any,
    ) -> list[Any]:
        """One whole round in which every worker contributes and the step is applied; gives the shards' sums."""
        gathered = asyncio.create_task(self.gather(range(len(grads)), round, **gathering))
        await asyncio.sleep(0)
        await asyncio.gather(*(self.push(g, rank, round) for rank, g in enumerate(grads)))
        sums = await gathered
        decision = apply(round, lr, members=len(grads), step=applied, clip_scale=clip_scale, momentum=momentum)
        decision.groups.extend([decision.groups[0]] * (len(self.spec.groups) - 1))
        if self.rule.reach is Reach.LAYERWISE:
            decision.norms.extend(norms(await self.measure(decision)))
        await self.finish(decision)
        return sums

    async def measure(self, draft: round_pb2.Decision) -> list[shard_control_pb2.TensorSums]:
        """What all shards find of the norms of tensors."""
        answers = await asyncio.gather(*(shard.measure(draft) for shard in self.shards))
        return [sums for messages in answers for message in messages for sums in message.sums]

    async def pull(self, **request: Any) -> dict[str, np.ndarray[Any, Any]]:
        """All parameters."""
        result = {name: np.full(array.size, np.nan) for name, array in self.params.items()}
        names = list(result)
        for index, shard in enumerate(self.shards):
            flat = np.full(shard.arena.piece.size, np.nan)
            async for raw in shard.pull(shard_pb2.PullRequest(run="run", **request)):
                message = wire.decode_pull(raw)
                if isinstance(message, wire.Chunk):
                    data = np.frombuffer(message.data, shard.arena.piece.dtype)
                    flat[message.offset : message.offset + data.size] = data
            for s, start in zip(slices_of(self.layout.shards[index]), shard.arena.piece.starts, strict=False):
                result[names[s.parameter]][s.start : s.stop] = flat[start : start + s.count]
        return {n: a.astype(self.params[n].dtype).reshape(self.params[n].shape) for n, a in result.items()}


def reopen(folder: Path, index: int = 0) -> ShardRun:
    """The run as another process finds it in the folder of its fleet."""
    prepared = read_prepared(folder / f"{index}")
    assert prepared is not None
    run = ShardRun(Arena(folder / f"{index}", Piece.of(prepared.spec, prepared.layout, index), prepared))
    run.extension = restore(run.arena, index)
    return run


async def chunks(flat: np.ndarray[Any, Any], elements: int = 5) -> AsyncIterator[wire.Chunk]:
    """Small chunks, with a chance for others to run after each."""
    for at in range(0, flat.size, elements):
        yield wire.Chunk(at, memoryview(flat[at : at + elements].tobytes()))
        await asyncio.sleep(0)


def apply(round: int, lr: float = 1.0, members: int = 1, step: int | None = None, **fields: Any) -> round_pb2.Decision:
    """A decision to apply."""
    return round_pb2.Decision(
        id=round_pb2.RoundId(round=round, attempt=fields.pop("attempt", 0)),
        outcome=fields.pop("outcome", round_pb2.OUTCOME_APPLIED),
        step=round + 1 if step is None else step,
        groups=[round_pb2.GroupRates(lr=lr, clip_scale=1.0, momentum=fields.pop("momentum", None))],
        clip_scale=fields.pop("clip_scale", 1.0),
        members=[member(rank) for rank in range(members)],
        **fields,
    )


def norm(sums: Sequence[round_pb2.GatheredSums]) -> float:
    """The 2-norm that the sums of all shards make."""
    return math.sqrt(ExactSum.of(ExactSum.from_proto(p.powers) for s in sums for p in s.run_norms).total())


def norms(sums: Sequence[shard_control_pb2.TensorSums]) -> list[round_pb2.TensorNorms]:
    """The norms of tensors that the sums of all shards make."""
    found: dict[int, tuple[ExactSum, ExactSum]] = {}
    for part in sums:
        first, second = found.setdefault(part.parameter, (ExactSum(), ExactSum()))
        first.merge(ExactSum.from_proto(part.first))
        second.merge(ExactSum.from_proto(part.second))
    return [
        round_pb2.TensorNorms(parameter=id_, first=math.sqrt(a.total()), second=math.sqrt(b.total()))
        for id_, (a, b) in found.items()
    ]
