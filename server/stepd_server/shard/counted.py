"""Which contribution of each membership was counted last. It outlives the process, as the parameters do that it is in.

A worker sends again what it has no answer to, and by then others may have had any number of rounds: without this a
shard that was started again would call late what counts. In a file there is a row for each membership:

    incarnation, checksum of the worker's name, sequence, round, attempt and status; expected sequence and round

What was sent for whichever round takes it has no other name than its sequence. The decision says it where contributions
are taken in turn; under another policy, to which the run has changed meanwhile, it is written down as expected before
the sums are reported.

A decision's rows are written when INTENT says that it is carried out, and again by a process that finds it as the
latest: so a row that was half written is one of the latest decision, and is made whole. A row that is to be another
membership's belongs to nobody while it is written.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from stepd.limits import COUNTED_MAX
from stepd.v1 import round_pb2, shard_pb2
from stepd_server.shard.files import map_array
from stepd_server.shard.gathering import Key, key_of
from stepd_server.shard.journal import Journal

log = logging.getLogger(__name__)

# Rows that are there from the beginning: 28 KiB. There are more when more memberships have contributed.
_ROWS: Final = 512
_WORDS: Final = 7
_WORD: Final = np.dtype("<u8")
_STATUS_BITS: Final = 8

# Where in a row it stands what is expected.
_EXPECTED: Final = 5

# Incarnation, and a checksum of the worker's name.
_Key: TypeAlias = tuple[int, int]


class Receipt(NamedTuple):
    """What became of a contribution, and in which attempt."""

    status: shard_pb2.ReceiptStatus
    id: round_pb2.RoundId | None = None


class _Known(NamedTuple):
    row: int
    sequence: int
    receipt: Receipt | None


class Counted:
    """The memberships of one run. Those that were counted longest ago are forgotten when there is no room for more."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        """OSError if there is no room for the first rows."""
        self._path = folder / "counted"
        self._journal = journal
        held = self._path.stat().st_size if self._path.exists() else 0
        self._rows = self._map(max(_ROWS, held // (_WORDS * _WORD.itemsize)))
        self._latest: round_pb2.Decision | None = None
        found = []
        taken = self._rows[:, 0] != 0
        self._free: list[int] = np.flatnonzero(~taken)[::-1].tolist()
        for row in np.flatnonzero(taken).tolist():
            incarnation, name, sequence, round_number, last, *_ = self._rows[row].tolist()
            id_ = round_pb2.RoundId(round=round_number, attempt=last >> _STATUS_BITS)
            status: shard_pb2.ReceiptStatus = last & ((1 << _STATUS_BITS) - 1)
            receipt = Receipt(status, id_) if status else None
            found.append((round_number, (incarnation, name), _Known(row, sequence, receipt)))
        # Who was counted last comes last.
        self._known: dict[_Key, _Known] = {key: known for _, key, known in sorted(found, key=lambda one: one[0])}

    def _map(self, rows: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
        mapped: np.ndarray[tuple[int, int], np.dtype[np.uint64]] = map_array(self._path, rows * _WORDS, _WORD).reshape(
            rows, _WORDS
        )
        return mapped

    def expect(self, round_number: int, sequences: Mapping[Key, int]) -> None:
        """A decision of this round will count these, if it counts anything of their members."""
        for (worker, incarnation), sequence in sequences.items():
            key = incarnation, zlib.crc32(worker.encode())
            if key not in self._known:
                self._write(key, _Known(self._take_row(), 0, None), [0, 0, 0])
            row = self._rows[self._known[key].row]
            self._journal.write(row[_EXPECTED:], np.array([sequence, round_number + 1], _WORD))

    def learn(self, decision: round_pb2.Decision | None, gathered: Mapping[Key, int] | None = None) -> None:
        """Take in the latest decision, once INTENT says that it is carried out.

        Args:
            decision: None: there is none.
            gathered: the sequences of what it decides on, if this process has gathered it.
        """
        if decision is None or decision is self._latest:
            return
        self._latest = decision
        id_ = decision.id
        sequences = {**(gathered or {}), **{key_of(name.member): name.sequence for name in decision.counted}}
        for status, members in (
            (shard_pb2.RECEIPT_STATUS_DUPLICATE, decision.members),
            (shard_pb2.RECEIPT_STATUS_QUARANTINED, decision.quarantined),
        ):
            receipt = Receipt(status, id_)
            for member in members:
                self._put(_key(member), sequences.get(key_of(member), 0), receipt)

    def _put(self, key: _Key, sequence: int, receipt: Receipt) -> None:
        assert receipt.id is not None
        before = self._known.get(key)
        if before is not None and not sequence:
            expected, of_round = self._rows[before.row, _EXPECTED:].tolist()
            sequence = expected if of_round == receipt.id.round + 1 else before.sequence
        row = before.row if before else self._take_row()
        last = receipt.id.attempt << _STATUS_BITS | receipt.status
        self._write(key, _Known(row, sequence, receipt), [sequence, receipt.id.round, last])

    def _write(self, key: _Key, known: _Known, words: list[int]) -> None:
        new = self._known.pop(key, None) is None
        self._known[key] = known
        row = self._rows[known.row]
        if new:
            self._journal.write(row[:1], np.zeros(1, _WORD))
            self._journal.write(row[_EXPECTED:], np.zeros(2, _WORD))
        self._journal.write(row[1:_EXPECTED], np.array([key[1], *words], _WORD))
        if new:
            self._journal.write(row[:1], np.array(key[:1], _WORD))

    def _take_row(self) -> int:
        if not self._free and len(self._rows) < COUNTED_MAX:
            self._grow()
        if self._free:
            return self._free.pop()
        return self._known.pop(next(iter(self._known))).row

    def _grow(self) -> None:
        before = len(self._rows)
        try:
            self._rows = self._map(min(2 * before, COUNTED_MAX))
        except OSError as error:
            log.warning("no room to remember more than %d memberships in %s: %s", before, self._path, error)
        else:
            self._free += reversed(range(before, len(self._rows)))

    def receipt(self, header: shard_pb2.PushHeader) -> Receipt | None:
        """The receipt for a repeat; None if it is none, as far as is known."""
        known = self._known.get(_key(header.member))
        if known is None or known.receipt is None:
            return None
        sequence, receipt = known.sequence, known.receipt
        assert receipt.id is not None
        if header.HasField("id") and receipt.id.round == header.id.round:
            return receipt
        if sequence and header.sequence == sequence:
            return receipt
        if not header.HasField("id") and 0 < header.sequence < sequence:
            return Receipt(shard_pb2.RECEIPT_STATUS_DUPLICATE)
        return None

    def describe(self, member: round_pb2.Member, header: shard_pb2.PullHeader) -> None:
        """Say which of a member's contributions was in a round last, as far as is known, and what became of it."""
        if known := self._known.get(_key(member)):
            header.counted = known.sequence
            if known.receipt is not None:
                header.counted_status = known.receipt.status


def _key(member: round_pb2.Member) -> _Key:
    return member.incarnation, zlib.crc32(member.worker.encode())
