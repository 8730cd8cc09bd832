"""The latest decision, which outlives the process: to be carried out to its end, and to answer for its round.

Two files in turn, so that a new decision never overwrites the latest: that of round r is in file r % 2, and is the
latest once INTENT is r + 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from stepd.rules import Reach
from stepd.v1 import round_pb2
from stepd_server.shard.files import map_array
from stepd_server.shard.journal import Field, Journal
from stepd_server.shard.plan import Piece

# Room that is taken from the beginning, so that a disk that fills up does not stop a run: for a hundred members with
# the longest names, and for the norms of tensors. More is taken when it is needed.
_BYTES: Final = 16 << 10
_BYTES_A_NORM: Final = 32
_LENGTH: Final = np.dtype("<u8").itemsize


class Remembering:
    """The files of one run."""

    def __init__(self, folder: Path, piece: Piece, journal: Journal) -> None:
        self._journal = journal
        self._paths = [folder / f"decision.{turn}" for turn in range(2)]
        layerwise = sum(len(group.shapes) for group in piece.groups if group.rule.reach is Reach.LAYERWISE)
        room = _BYTES + _BYTES_A_NORM * layerwise
        self._files = [map_array(path, room, np.dtype(np.uint8)) for path in self._paths]

    def write(self, decision: round_pb2.Decision) -> None:
        """Write a decision down; it is the latest when INTENT says so. OSError if there is no room."""
        content = decision.SerializeToString()
        file = self._file(decision.id.round % 2, _LENGTH + len(content))
        self._journal.write(file[:_LENGTH].view("<u8"), np.array([len(content)], "<u8"))
        self._journal.write(file[_LENGTH : _LENGTH + len(content)], np.frombuffer(content, np.uint8))

    def read(self) -> round_pb2.Decision | None:
        """The latest decision; None if there was none here."""
        intent = self._journal[Field.INTENT]
        if not intent:
            return None
        turn = (intent - 1) % 2
        length = int(self._file(turn, _LENGTH)[:_LENGTH].view("<u8")[0])
        return round_pb2.Decision.FromString(self._file(turn, _LENGTH + length)[_LENGTH : _LENGTH + length].tobytes())

    def _file(self, turn: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        if size > self._files[turn].size:
            self._files[turn] = map_array(self._paths[turn], size, np.dtype(np.uint8))
        return self._files[turn]
