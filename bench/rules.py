"""How long each rule takes for a parameter, beside torch and beside what memory allows.

    python bench/rules.py [--only AdamW SGD] [--seconds 1.0] [--json]

One core. stepd: by blocks, as a shard does it: the gradient is made from the accumulator (one multiplication) and the
rule applied; of layerwise rules both passes and the sums of squares, of whole rules a square matrix. NumPy: without the
extra `fast`. compiled: with it; where there is no number, NumPy does it. torch: if it can
be imported, the fastest of its implementations on the CPU (fused, foreach, single) on one whole tensor with the
gradient ready, in the same run. memory: the bytes that any implementation must read and write, at the bandwidth with
which this core copies in this run.

Tensors are float32 and larger than any cache. Medians of processor time, which on one core is what the step takes when
nothing else runs; nanoseconds for each parameter. Other programs are still felt, in caches and memory.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from stepd.limits import BLOCK_ELEMENTS
from stepd.rules import SGD, Block, Moment, Muon, Reach, Rule
from stepd_server.kernels.compiled import available
from stepd_server.kernels.trace import Untraceable
from stepd_server.kernels.updates import Updates, record
from stepd_server.shard.scratch import aligned_empty
from stepd_server.shard.sums import Shaping

try:
    import torch
except ImportError:
    torch = None

ELEMENTS = 1 << 24
# Of the matrix for whole rules. Muon multiplies matrices: this one takes it a second.
SIDE, SIDE_MUON = 4096, 1024
FLOAT32 = np.dtype(np.float32)
# Small enough that nothing runs away, since the gradient is the same in every step.
RATE = 1e-6
# A mean of two contributions.
SHAPING = Shaping(2.0, (math.inf,))
# Arrays that the first pass of a layerwise rule reads.
MEASURED = {"LARS": 2, "LAMB": 4}
BAR = 36


@dataclass(frozen=True)
class Row:
    """One rule.

    Attributes:
        rule: with what is not default.
        reach: elementwise, layerwise or whole.
        bytes: that must be read and written for each parameter.
        memory: nanoseconds that these take at the bandwidth of a copy.
        numpy: nanoseconds.
        compiled: nanoseconds; None without the compiler, and of rules that are left to NumPy.
        torch: nanoseconds; None without torch, and of rules that it does not have.
        torch_kind: which of torch's implementations that is.
    """

    rule: str
    reach: str
    bytes: float
    memory: float
    numpy: float
    compiled: float | None
    torch: float | None
    torch_kind: str

    @property
    def stepd(self) -> float:
        """What a shard takes that has the compiler."""
        return self.numpy if self.compiled is None else self.compiled


def cases() -> list[tuple[str, Rule]]:
    """Every rule with its defaults, and a few options that cost."""
    rules: list[tuple[str, Rule]] = [("SGD momentum", SGD(RATE, momentum=0.9))]
    for name, cls in Rule.registry.items():
        if not name.startswith("_"):
            rules.append((name, cls(lr=RATE)))
    rules.append(("Adam amsgrad", Rule.registry["Adam"](lr=RATE, amsgrad=True)))  # type: ignore[call-arg]
    return sorted(rules, key=lambda case: (list(Reach).index(case[1].reach), case[0].lower()))


def bytes_moved(rule: Rule, shape: tuple[int, ...]) -> float:
    """For each parameter: it is read and written, its gradient read, its buffers read and written; no array twice."""
    count = math.prod(shape)
    buffers = sum(buffer.size(shape) for buffer in rule.buffers()) / count
    arrays = 3 + 2 * buffers
    if rule.reach is Reach.LAYERWISE:
        arrays += MEASURED.get(type(rule).__name__, 2 + buffers)
    return FLOAT32.itemsize * arrays


class Shard:
    """What a shard holds for one tensor."""

    def __init__(self, rule: Rule, shape: tuple[int, ...], *, compiled: bool) -> None:
        self.compiled = compiled
        random = np.random.default_rng(1)
        self.rule, self.shape, self.size = rule, shape, math.prod(shape)
        self.p = random.standard_normal(self.size, np.float32)
        self.accumulator = random.standard_normal(self.size, np.float32)
        self.buffers = [
            self.p.copy() if buffer.initial == "parameter" else np.full(buffer.size(shape), buffer.initial, np.float32)
            for buffer in rule.buffers()
        ]
        span = self.size if rule.reach is Reach.WHOLE else BLOCK_ELEMENTS
        self.scratch = aligned_empty(1 + rule.scratch, span, FLOAT32)
        (self.wide,) = aligned_empty(1, span, np.dtype(np.float64))
        self.scalars = tuple(scalar.initial for scalar in rule.scalars())
        self.span, self.updates = span, 0

    def step(self) -> None:
        at = Moment(self.updates + 1, RATE, self.scalars, "w")
        if self.rule.reach is Reach.LAYERWISE:
            sums = [0.0, 0.0]
            for start in range(0, self.size, self.span):
                for i, values in enumerate(self.rule.measure(self.block(start), at)):
                    wide = self.wide[: values.size]
                    np.copyto(wide, values)
                    np.multiply(wide, wide, out=wide)
                    sums[i] += float(np.add.reduce(wide))
            at = at._replace(norms=(math.sqrt(sums[0]), math.sqrt(sums[1])))
        updates = Updates(FLOAT32, SHAPING) if self.compiled else None
        for start in range(0, self.size, self.span):
            if updates:
                part = slice(start, start + self.span)
                buffers = [buffer[part] for buffer in self.buffers]
                done = updates.run(0, self.rule, 1.0, at, self.p[part], self.accumulator[part], buffers)
                assert done, "cannot be compiled"
            else:
                self.rule.update(self.block(start), at)
        self.updates += 1
        self.scalars = self.rule.advance(at)

    def block(self, start: int) -> Block:
        end = min(start + self.span, self.size)
        g = SHAPING.gradient(self.accumulator[start:end], 0, 1.0, self.scratch[0, : end - start])
        scratch = tuple(self.scratch[1:, : end - start])
        if self.rule.reach is Reach.WHOLE:
            return Block(self.p, g, tuple(self.buffers), scratch, self.shape)
        return Block(self.p[start:end], g, tuple(buffer[start:end] for buffer in self.buffers), scratch)


def can_compile(rule: Rule) -> bool:
    if not available():
        return False
    try:
        record(rule, Moment(1, RATE, tuple(scalar.initial for scalar in rule.scalars()), "w"), SHAPING, 0, 1.0)
    except Untraceable:
        return False
    return True


def median(step: Callable[[], object], seconds: float) -> float:
    """Processor time of at least three calls, after one that warms up; more as time allows."""
    step()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        begin = time.process_time()
        step()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def torchs_best(rule: Rule, shape: tuple[int, ...], seconds: float) -> tuple[float | None, str]:
    """Seconds of torch's fastest implementation of the rule, and its name."""
    cls = getattr(torch.optim, type(rule).__name__, None) if torch else None
    if cls is None:
        return None, ""
    known = inspect.signature(cls).parameters
    options = {name: value for name, value in asdict(rule).items() if name in known}
    best: tuple[float | None, str] = (None, "")
    for kind in ("fused", "foreach", "single"):
        flags = {name: name == kind for name in ("fused", "foreach") if name in known}
        if kind != "single" and kind not in known:
            continue
        p = torch.nn.Parameter(torch.randn(shape))
        p.grad = torch.randn(shape)
        try:
            taken = median(cls([p], **options, **flags).step, seconds)
        except (RuntimeError, ValueError):
            continue  # not on the CPU, or not with these options
        if best[0] is None or taken < best[0]:
            best = (taken, kind)
    return best


def bandwidth(seconds: float) -> float:
    """Bytes a second that are read and written by a copy."""
    source, sink = np.ones(ELEMENTS, np.float32), np.zeros(ELEMENTS, np.float32)
    return 2 * source.nbytes / median(lambda: np.copyto(sink, source), seconds)


def measure(name: str, rule: Rule, speed: float, seconds: float) -> Row:
    side = SIDE_MUON if isinstance(rule, Muon) else SIDE
    shape = (side, side) if rule.reach is Reach.WHOLE else (ELEMENTS,)
    count = math.prod(shape)
    moved = bytes_moved(rule, shape)
    with np.errstate(all="ignore"):
        in_numpy = median(Shard(rule, shape, compiled=False).step, seconds)
        compiled = median(Shard(rule, shape, compiled=True).step, seconds) if can_compile(rule) else None
    theirs, kind = torchs_best(rule, shape, seconds)
    return Row(
        rule=name,
        reach=rule.reach.value,
        bytes=moved,
        memory=1e9 * moved / speed,
        numpy=1e9 * in_numpy / count,
        compiled=None if compiled is None else 1e9 * compiled / count,
        torch=None if theirs is None else 1e9 * theirs / count,
        torch_kind=kind,
    )


def show(rows: list[Row], speed: float, console: Console) -> None:
    title = f"ns for each parameter; one core, float32; a copy moves {speed / 1e9:.1f} GB/s"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("rule", "reach"):
        table.add_column(column, no_wrap=True)
    for column in ("bytes", "memory", "NumPy", "compiled", "torch"):
        table.add_column(column, justify="right")
    table.add_column("torch's")
    table.add_column("ratio", justify="right")
    table.add_column(f"stepd {'█'}, torch {'░'}, memory {'│'}", no_wrap=True)
    full = max((row.stepd for row in rows if row.reach != Reach.WHOLE.value), default=1.0)
    for row in rows:
        table.add_row(
            row.rule,
            row.reach,
            f"{row.bytes:.0f}",
            f"{row.memory:.2f}",
            f"{row.numpy:.2f}",
            "" if row.compiled is None else f"{row.compiled:.2f}",
            "" if row.torch is None else f"{row.torch:.2f}",
            row.torch_kind,
            "" if row.torch is None else f"{row.stepd / row.torch:.2f}",
            bar(row, full),
        )
    console.print(table)


def bar(row: Row, full: float) -> str:
    """stepd's time as a bar, torch's as a lighter one where it is longer, and memory's limit as a mark."""

    def width(value: float) -> int:
        return min(BAR, max(1, round(BAR * value / full)))

    cells = ["█"] * width(row.stepd)
    cells += ["░"] * (width(row.torch or 0.0) - len(cells))
    cells[min(width(row.memory), len(cells)) - 1] = "│"
    return "".join(cells) + ("…" if row.stepd > full else "")


def on_one_core() -> None:
    """Start again with libraries that use one thread, on one core: BLAS reads its settings when it is loaded."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        settings = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | settings)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if torch:
        torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="rules by class name")
    parser.add_argument("--seconds", type=float, default=1.0, help="at least, for each measurement")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    on_one_core()
    console = Console(stderr=options.json, width=None if sys.stdout.isatty() else 120)
    speed = bandwidth(options.seconds)
    rows = []
    for name, rule in cases():
        if not options.only or type(rule).__name__ in options.only:
            with console.status(name):
                rows.append(measure(name, rule, speed, options.seconds))
    if options.json:
        print(json.dumps({"copy_bytes_per_second": speed, "rules": [asdict(row) for row in rows]}))
    else:
        show(rows, speed, console)


if __name__ == "__main__":
    main()
