"""What went out to shards, put together again from its streams: contributions, and states of the optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepd import wire
from stepd.definitions import RunSpec
from stepd.layout import Slice, flat_starts, slices_of
from stepd.v1 import run_pb2, shard_pb2
from stepd_server.coordinator.vocabulary import Decision

Array = np.ndarray[Any, Any]

# What a worker has sent: (name, incarnation, round, attempt); what is taken in turn: (name, incarnation, -1, sequence).
Key = tuple[str, int, int, int]


def keys_of(decision: Decision) -> list[tuple[Key, float]]:
    """What a decision counts, in the order of ranks, each with what it is multiplied by besides its weight."""
    if decision.counted:
        return [
            ((member.worker, member.incarnation, -1, sequence), scale) for member, sequence, scale in decision.counted
        ]
    members = sorted(decision.members, key=lambda member: member.rank)
    return [((member.worker, member.incarnation, *decision.id), 1.0) for member in members]


@dataclass
class Sent:
    """One contribution as it went out, put together again from its streams.

    Attributes:
        based_on: the step of the parameters that it was computed from.
        layout: version of the layout that it goes by.
        flat: by shard, its values in the shard's flat space.
        there: by shard, which of them have been sent.
        ranges: by shard, which were to be sent.
    """

    weight: float
    based_on: int
    layout: int
    flat: dict[int, Array]
    there: dict[int, Array]
    ranges: dict[int, tuple[tuple[int, int], ...]]


def messages_of(path: str, sent: Iterable[bytes]) -> Iterable[bytes]:
    """What was pushed in a call, however it went out: one contribution, or one after another."""
    if not path.endswith("/PushAndPull"):
        return sent
    return [
        message.SerializeToString() for raw in sent for message in shard_pb2.PushAndPullRequest.FromString(raw).push
    ]


class Contradiction(Exception):
    """Something that must not be; says what."""


class Contributions:
    """All contributions of a history, by what they were named."""

    def __init__(self, layouts: Iterable[run_pb2.Layout], rounds: Mapping[Key, int]) -> None:
        """Args:
        layouts: of the run, one after another.
        rounds: by (name, incarnation, -1, sequence), of what was sent for whichever round takes it: which did, as far
            as its worker was told.
        """
        self._rounds = rounds
        self._slices = {layout.version: [slices_of(shard) for shard in layout.shards] for layout in layouts}
        self._sent: dict[Key, dict[int, Sent]] = {}
        # By (name, incarnation, -1, sequence): the rounds that it was sent for as well, before the policy changed.
        self._for_rounds: dict[Key, set[Key]] = {}

    def _starts(self, sent: Sent, shard: int) -> list[int]:
        return list(flat_starts(self._slices[sent.layout][shard]))

    def add(self, shard: int, messages: Iterable[bytes]) -> None:
        """One stream to one shard, as far as it was sent."""
        header: Any = None
        sent = Sent(1.0, 0, 0, {}, {}, {})
        for raw in messages:
            message = wire.decode_push(raw)
            if isinstance(message, shard_pb2.PushHeader):
                header = message
                sent = self._begin(shard, header)
            else:
                self._put(sent, shard, message, header)

    def _begin(self, shard: int, header: shard_pb2.PushHeader) -> Sent:
        named = (header.id.round, header.id.attempt) if header.HasField("id") else (-1, header.sequence)
        key = (header.member.worker, header.member.incarnation, *named)
        if header.HasField("id"):
            sequence = (header.member.worker, header.member.incarnation, -1, header.sequence)
            self._for_rounds.setdefault(sequence, set()).add(key)
        # One that went out by an older layout may have been counted there, and may come again by the new one.
        versions = self._sent.setdefault(key, {})
        new = Sent(header.weight, header.based_on, header.layout_version, {}, {}, {})
        sent = versions.setdefault(header.layout_version, new)
        ranges = tuple((r.start, r.start + r.count) for r in header.ranges)
        size = self._starts(sent, shard)[-1]
        if shard not in sent.flat:
            sent.flat[shard] = np.zeros(size, np.float32)
            sent.there[shard] = np.zeros(size, np.bool_)
            sent.ranges[shard] = ranges
        if (sent.ranges[shard], sent.weight, sent.based_on) != (ranges, header.weight, header.based_on):
            raise Contradiction(f"{key} was sent with other ranges, another weight or another step")
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

    def _whole(self, key: Key) -> Sent:
        """As it can have been counted: one that has gone to all shards."""
        found = [sent for _, sent in sorted(self._sent.get(key, {}).items()) if self._has_reached_all(sent)]
        if not found and key[2] >= 0:
            # Sent while contributions were taken in turn, and taken by a round under the next policy.
            found = [self._sent[other][layout] for other, layout in self._of_any_round(key)]
        if not found and key[2] < 0:
            found = [sent for sent in self._put_together(key) if self._has_reached_all(sent)]
        if not found:
            raise Contradiction(f"{key} was counted and never sent to all shards")
        return found[0]

    def _put_together(self, key: Key) -> list[Sent]:
        """What has gone to some shards for a round, and to others, after the policy had changed, for any: by layout."""
        found: dict[int, Sent] = {}
        for name in (key, *sorted(self._for_rounds.get(key, ()))):
            for layout, sent in self._sent.get(name, {}).items():
                whole = found.setdefault(layout, Sent(sent.weight, sent.based_on, layout, {}, {}, {}))
                for shard in sent.ranges.keys() - whole.ranges.keys():
                    if self._has_reached(sent, shard):
                        whole.ranges[shard] = sent.ranges[shard]
                        whole.flat[shard], whole.there[shard] = sent.flat[shard], sent.there[shard]
        return [sent for _, sent in sorted(found.items())]

    def _of_any_round(self, key: Key) -> list[tuple[Key, int]]:
        """What can have been counted under this name: what its worker was told of, or was never told about."""
        own = [other for other in self._sent if other[:3] == (*key[:2], -1)]
        told = [other for other in own if self._rounds.get(other) == key[2]]
        return [
            (other, layout)
            for other in told or sorted((other for other in own if other not in self._rounds), reverse=True)
            for layout, sent in sorted(self._sent[other].items())
            if self._has_reached_all(sent)
        ]

    def _has_reached_all(self, sent: Sent) -> bool:
        reached = [self._has_reached(sent, shard) for shard in sent.ranges]
        return all(reached) and len(reached) == len(self._slices[sent.layout])

    def _has_reached(self, sent: Sent, shard: int) -> bool:
        return all(sent.there[shard][start:stop].all() for start, stop in sent.ranges[shard])

    def tensors(self, key: Key) -> tuple[dict[int, Array], float]:
        """By parameter, flat: what the contribution of that name held; and its weight."""
        sent = self._whole(key)
        of_shards = self._slices[sent.layout]
        sizes: dict[int, int] = {}
        for slices in of_shards:
            for piece in slices:
                sizes[piece.parameter] = sizes.get(piece.parameter, 0) + piece.count
        found: dict[int, Array] = {}
        for shard, slices in enumerate(of_shards):
            for piece, start in zip(slices, self._starts(sent, shard), strict=False):
                if not any(a <= start and start + piece.count <= b for a, b in sent.ranges[shard]):
                    continue
                tensor = found.setdefault(piece.parameter, np.zeros(sizes[piece.parameter], np.float32))
                tensor[piece.start : piece.start + piece.count] = sent.flat[shard][start : start + piece.count]
        return found, sent.weight

    def based_on(self, key: Key) -> int:
        return self._whole(key).based_on

    def bytes_of(self, key: Key) -> bytes:
        """What tells contributions apart."""
        tensors, _ = self.tensors(key)
        return b"".join(id_.to_bytes(4, "little") + tensor.tobytes() for id_, tensor in sorted(tensors.items()))


@dataclass
class Kept:
    """What the rule of one parameter keeps."""

    updates: int
    scalars: tuple[float, ...]
    buffers: list[Array]


class States:
    """All states of the optimizer that were sent, by their ids."""

    def __init__(self) -> None:
        self._headers: dict[tuple[str, int], shard_pb2.StageStateHeader] = {}
        self._data: dict[tuple[str, int], dict[int, bytes]] = {}

    def add(self, shard: int, messages: Iterable[bytes]) -> None:
        """One stream to one shard, as far as it was sent."""
        key = ("", shard)
        for raw in messages:
            message = wire.decode_stage(raw)
            if isinstance(message, wire.Chunk):
                self._data[key][message.offset] = bytes(message.data)
            else:
                key = (message.state_id, shard)
                self._headers[key] = message
                self._data[key] = {}

    def kept(self, state_id: str, layout: run_pb2.Layout, spec: RunSpec) -> dict[int, Kept]:
        """By parameter."""
        found: dict[int, Kept] = {}
        for shard, pieces in enumerate(layout.shards):
            self._read((state_id, shard), slices_of(pieces), spec, found)
        return found

    def _read(self, key: tuple[str, int], slices: list[Slice], spec: RunSpec, found: dict[int, Kept]) -> None:
        if key not in self._headers:
            raise Contradiction(f"the state {key} is in use and was never sent")
        header = self._headers[key]
        data = np.frombuffer(b"".join(part for _, part in sorted(self._data[key].items())), np.float32)
        scalars = iter(header.scalars)
        for piece, updates in zip(slices, header.updates, strict=True):
            rule = spec.groups[spec.parameters[piece.parameter].group].optimizer
            own = tuple(next(scalars) for _ in rule.scalars())
            size = int(np.prod(spec.parameters[piece.parameter].shape, dtype=int))
            found.setdefault(piece.parameter, Kept(updates, own, [np.zeros(size, np.float32) for _ in rule.buffers()]))
        at = 0
        for index, group in enumerate(spec.groups):
            of_group = [piece for piece in slices if spec.parameters[piece.parameter].group == index]
            for buffer in range(len(group.optimizer.buffers())):
                for piece in of_group:
                    target = found[piece.parameter].buffers[buffer]
                    target[piece.start : piece.start + piece.count] = data[at : at + piece.count]
                    at += piece.count
