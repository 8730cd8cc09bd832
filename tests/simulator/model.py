"""What the parameters must be: a plain computation, on whole tensors, of what was decided over what was sent.

It knows nothing of shards, rounds, attempts or time. The rules are the library's own; tests of their numbers are
elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from stepd import wire
from stepd.definitions import RunSpec
from stepd.layout import flat_starts, slices_of
from stepd.policies import Clip
from stepd.rules import Block, Moment
from stepd.v1 import run_pb2, shard_pb2
from stepd_server.coordinator.policy import policy_of
from stepd_server.coordinator.vocabulary import Decision, Outcome

Array = np.ndarray[Any, Any]

# What a worker has sent: (name, incarnation, round, attempt).
Key = tuple[str, int, int, int]


@dataclass
class Sent:
    """One contribution as it went out, put together again from its streams.

    Attributes:
        flat: by shard, its values in the shard's flat space.
        there: by shard, which of them have been sent.
        ranges: by shard, which were to be sent.
    """

    weight: float
    flat: dict[int, Array]
    there: dict[int, Array]
    ranges: dict[int, tuple[tuple[int, int], ...]]


class Contradiction(Exception):
    """Something that must not be; says what."""


class Contributions:
    """All contributions of a history, by what they were named."""

    def __init__(self, layout: run_pb2.Layout) -> None:
        self._slices = [slices_of(shard) for shard in layout.shards]
        self._starts = [flat_starts(slices) for slices in self._slices]
        self._sent: dict[Key, Sent] = {}

    def add(self, shard: int, messages: Iterable[bytes]) -> None:
        """One stream to one shard, as far as it was sent."""
        header: Any = None
        sent = Sent(1.0, {}, {}, {})
        for raw in messages:
            message = wire.decode_push(raw)
            if isinstance(message, shard_pb2.PushHeader):
                header = message
                sent = self._begin(shard, header)
            else:
                self._put(sent, shard, message, header)

    def _begin(self, shard: int, header: shard_pb2.PushHeader) -> Sent:
        key = (header.member.worker, header.member.incarnation, header.id.round, header.id.attempt)
        sent = self._sent.setdefault(key, Sent(header.weight, {}, {}, {}))
        ranges = tuple((r.start, r.start + r.count) for r in header.ranges)
        size = self._starts[shard][-1]
        if shard not in sent.flat:
            sent.flat[shard] = np.zeros(size, np.float32)
            sent.there[shard] = np.zeros(size, np.bool_)
            sent.ranges[shard] = ranges
        if sent.ranges[shard] != ranges or sent.weight != header.weight:
            raise Contradiction(f"{key} was sent with other ranges or another weight")
        return sent

    def _put(self, sent: Sent, shard: int, chunk: wire.Chunk, header: shard_pb2.PushHeader) -> None:
        data = np.frombuffer(chunk.data, np.float32)
        places = np.concatenate([np.arange(a, b) for a, b in sent.ranges[shard]])[chunk.offset :][: data.size]
        flat, there = sent.flat[shard], sent.there[shard]
        again = there[places]
        if not np.array_equal(flat[places][again].view(np.int32), data[again].view(np.int32)):
            raise Contradiction(f"{header.member.worker} sent other bytes under the name {header.id}")
        flat[places] = data
        there[places] = True

    def tensors(self, key: Key) -> tuple[dict[int, Array], float]:
        """By parameter, flat: what the contribution of that name held; and its weight."""
        sent = self._sent.get(key)
        if sent is None or len(sent.flat) < len(self._slices):
            raise Contradiction(f"{key} was counted and never sent to all shards")
        sizes: dict[int, int] = {}
        for slices in self._slices:
            for piece in slices:
                sizes[piece.parameter] = sizes.get(piece.parameter, 0) + piece.count
        found: dict[int, Array] = {}
        for shard, slices in enumerate(self._slices):
            for piece, start in zip(slices, self._starts[shard], strict=False):
                if not any(a <= start and start + piece.count <= b for a, b in sent.ranges[shard]):
                    continue
                if not sent.there[shard][start : start + piece.count].all():
                    raise Contradiction(f"{key} was counted and not wholly sent")
                tensor = found.setdefault(piece.parameter, np.zeros(sizes[piece.parameter], np.float32))
                tensor[piece.start : piece.start + piece.count] = sent.flat[shard][start : start + piece.count]
        return found, sent.weight

    def bytes_of(self, key: Key) -> bytes:
        """What tells contributions apart."""
        tensors, _ = self.tensors(key)
        return b"".join(id_.to_bytes(4, "little") + tensor.tobytes() for id_, tensor in sorted(tensors.items()))


class Model:
    """The run as it must be.

    Attributes:
        versions: by step, each parameter's bytes.
    """

    def __init__(self, spec: RunSpec, masters: Iterable[Array]) -> None:
        self._spec = spec
        self._tensors = [_Tensor(spec, id_, master) for id_, master in enumerate(masters)]
        self.versions: list[Mapping[str, bytes]] = [self._version()]

    def _version(self) -> dict[str, bytes]:
        return {
            parameter.name: tensor.p.tobytes()
            for parameter, tensor in zip(self._spec.parameters, self._tensors, strict=True)
        }

    def apply(self, decision: Decision, contributions: Contributions) -> None:
        """One decided round."""
        if decision.outcome is not Outcome.APPLIED:
            return
        held = [
            contributions.tensors((member.worker, member.incarnation, *decision.id))
            for member in sorted(decision.members, key=lambda member: member.rank)
        ]
        reduce = policy_of(self._spec.sync).reduce
        divisor = {"mean": float(len(held)), "sum": 1.0, "weighted": math.fsum(w for _, w in held)}
        total: dict[int, Array] = {}
        for tensors, weight in held:
            for id_, tensor in tensors.items():
                part = tensor * weight if reduce == "weighted" and weight != 1.0 else tensor
                total[id_] = total[id_] + part if id_ in total else part.copy()
        norms = {one.parameter: (one.first, one.second) for one in decision.norms}
        self._check_norm(decision, total, divisor[reduce])
        for id_, tensor in total.items():
            group = self._spec.parameters[id_].group
            rates = decision.groups[group]
            shaped = self._shaped(tensor, divisor[reduce])
            gradient = shaped * np.float32(1.0) if shaped is tensor else shaped
            np.multiply(gradient, rates.clip_scale * decision.clip_scale, out=gradient)
            self._tensors[id_].update(gradient, rates.lr, norms.get(id_, (math.nan, math.nan)))
        self.versions.append(self._version())

    def _shaped(self, total: Array, divisor: float) -> Array:
        if divisor != 1.0:
            total = total * (1.0 / divisor)
        clip = Clip.of(self._spec.clip) if self._spec.clip else None
        if clip and clip.value:
            total = np.clip(total, -clip.value.max_value, clip.value.max_value)
        return total

    def _check_norm(self, decision: Decision, total: Mapping[int, Array], divisor: float) -> None:
        squares = math.fsum(float(x) ** 2 for t in total.values() for x in self._shaped(t, divisor))
        if not math.isclose(decision.grad_norm, math.sqrt(squares), rel_tol=1e-5, abs_tol=1e-12):
            raise Contradiction(f"round {decision.id}: the norm is {math.sqrt(squares)}, not {decision.grad_norm}")


class _Tensor:
    """One parameter with what its rule keeps."""

    def __init__(self, spec: RunSpec, id_: int, master: Array) -> None:
        parameter = spec.parameters[id_]
        self._name = parameter.name
        self._rule: Final = spec.groups[parameter.group].optimizer
        self.p = master.reshape(-1).copy()
        self._buffers = tuple(
            self.p.copy() if buffer.initial == "parameter" else np.full(self.p.size, buffer.initial, self.p.dtype)
            for buffer in self._rule.buffers()
        )
        self._scalars = tuple(scalar.initial for scalar in self._rule.scalars())
        self._updates = 0

    def update(self, gradient: Array, lr: float, norms: tuple[float, float]) -> None:
        self._updates += 1
        at = Moment(self._updates, lr, self._scalars, self._name, norms)
        if self.p.size:
            scratch = tuple(np.empty_like(self.p) for _ in range(self._rule.scratch))
            with np.errstate(all="ignore"):
                self._rule.update(Block(self.p, gradient, self._buffers, scratch), at)
        self._scalars = self._rule.advance(at)
