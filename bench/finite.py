"""What it costs a shard to look whether what arrives is finite: contributions are added with and without.

    python -m bench.finite [--times 15] [--workers 2]

Workload W of bench/compare on one shard, in one process and without a wire: so adding is all that receiving is.
Prints milliseconds for all contributions of a round, and the share that looking has, as JSON: the least of all times,
taken in turns, as what is to be seen is less than what the rest of a machine does to a median.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any
from unittest import mock

import numpy as np

from bench.compare.workload import CLIP, ELEMENTS, SHAPES
from stepd.layout import lay_out, to_proto
from stepd.limits import BLOCK_ELEMENTS, CHUNK_BYTES
from stepd.parameters import define_run
from stepd.policies import ClipNorm
from stepd.rules import SGD
from stepd.v1 import round_pb2, run_pb2, shard_control_pb2, shard_pb2
from stepd_server.kernels import arriving
from stepd_server.kernels.compiled import available
from stepd_server.kernels.gather import Form, emit_gather
from stepd_server.shard import in_numpy
from stepd_server.shard.gathering import Gathering
from stepd_server.shard.plan import Piece

F4 = np.dtype(np.float32)
AT_ONCE = CHUNK_BYTES // F4.itemsize


def workload() -> Piece:
    params = {name: np.broadcast_to(F4.type(0), shape) for name, shape in SHAPES.items()}
    spec, _ = define_run("w", params, optimizer=SGD(lr=1.0), clip=ClipNorm(CLIP))
    sizes = [array.size for array in params.values()]
    pieces = lay_out(sizes, [8] * len(sizes), 1)
    return Piece.of(spec, to_proto(pieces, [""], run_pb2.D_TYPE_FLOAT32, BLOCK_ELEMENTS), 0)


def blind(form: Form) -> str:
    """The loop but for the look: what the compiler finds to be of no use is not done."""
    text, found = emit_gather(form), "%bad = icmp uge i32 %peak,"
    assert found in text
    return text.replace(found, "%bad = icmp ugt i32 0,")


def trusting(_: object) -> bool:
    return True


class Rounds:
    """Rounds of as many contributions, in chunks that come in turns."""

    def __init__(self, piece: Piece, workers: int) -> None:
        self._piece = piece
        self._members = [round_pb2.Member(worker=f"w{rank}", rank=rank) for rank in range(workers)]
        rng = np.random.default_rng(0)
        self._gradients = [rng.standard_normal(piece.size, np.float32) for _ in range(workers)]
        self._accumulator = np.zeros(piece.size, F4)
        self._updates = np.zeros(len(piece.slices), np.int64)

    def seconds(self, loops: Any) -> float:
        request = shard_control_pb2.RoundToGather(
            members=self._members, clip=self._piece.spec.clip, reduction=run_pb2.REDUCTION_MEAN
        )
        gathering = Gathering(self._piece, self._accumulator, self._updates, request, loops)
        whole = [shard_pb2.Range(start=0, count=self._piece.size)]
        headers = [shard_pb2.PushHeader(member=member, ranges=whole, weight=1.0) for member in self._members]
        contributions = [gathering.begin(header) for header in headers]
        began = time.perf_counter()
        for at in range(0, self._piece.size, AT_ONCE):
            for contribution, gradient in zip(contributions, self._gradients, strict=True):
                gathering.add(contribution, gradient[at : at + AT_ONCE])
        for contribution in contributions:
            gathering.finish(contribution)
        while gathering.sum_some():
            pass
        return time.perf_counter() - began


def measure(rounds: Rounds, way: str, times: int) -> dict[str, float]:
    """By whether it looks."""
    loops: dict[str, Any] = {"with": None, "without": None}
    if way == "compiled":
        loops["with"] = arriving.Loops(F4)
        loops["with"].wait()
        with mock.patch.object(arriving, "emit_gather", blind):
            loops["without"] = arriving.Loops(F4)
            loops["without"].wait()
    found: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(times + 1):
        found["with"].append(rounds.seconds(loops["with"]))
        with mock.patch.object(in_numpy, "is_finite", trusting):
            found["without"].append(rounds.seconds(loops["without"]))
    least = {how: 1000 * min(seconds[1:]) for how, seconds in found.items()}
    return least | {"share": 1 - least["without"] / least["with"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    rounds = Rounds(workload(), options.workers)
    ways = ["numpy", *(["compiled"] if available() else [])]
    found = {way: measure(rounds, way, options.times) for way in ways}
    print(json.dumps({"elements": ELEMENTS, "workers": options.workers, **found}))


if __name__ == "__main__":
    main()
