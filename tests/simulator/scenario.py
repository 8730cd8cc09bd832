"""What a seed stands for: a run, who works on it, and what goes wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from stepd.policies import AnyClip, Clip, ClipNorm, ClipValue, OnNonfinite, Reduce, Sync
from stepd.rules import LAMB, SGD, AdamW, Rule
from stepd.schedules import Cosine, Exponential, Schedule

Kind: TypeAlias = Literal["cut", "part", "stall", "slow", "kill", "die", "stop", "wall"]

_KINDS: Final[tuple[Kind, ...]] = (
    *("cut", "cut", "cut", "part", "stall", "slow"),
    *("kill", "kill", "die", "die", "stop", "wall"),
)
# Messages of one worker with one shard in one round, roughly: faults are spread over as many as there will be.
_MESSAGES: Final = 16
# Shapes of parameters in blocks of 8: the first over several blocks, which no two gradients have in common by chance;
# the others also in one block, without dimensions, empty.
_FIRST_SHAPES: Final[tuple[tuple[int, ...], ...]] = ((4, 5), (17,), (25,))
_SHAPES: Final[tuple[tuple[int, ...], ...]] = ((3,), (), (11,), (0, 2), (2, 3), (16,))


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong when so many messages have arrived.

    Attributes:
        at: messages.
        kind: "cut": one call; "part": all calls between two hosts; "stall": nothing passes between them for a while;
            "slow": everything takes long; "kill": a process, now; "die": a process, at one of its next stores;
            "stop": a process, for a while; "wall": the wall clock jumps.
        host: which one; for "die" also when.
        seconds: how long it lasts, or until the process is started again; negative: it never is.
        stores: for "die": how many stores it has yet to make.
    """

    at: int
    kind: Kind
    host: str
    seconds: float
    stores: int = 0

    def __str__(self) -> str:
        stores = f" in {self.stores} stores" if self.stores else ""
        return f"at message {self.at}: {self.kind} {self.host} {self.seconds:.2f} s{stores}"


@dataclass(frozen=True)
class Scenario:
    """A history's beginnings; the rest follows.

    Attributes:
        workers: how many.
        target: steps.
        poison: (worker, step): its gradient for that step has a NaN, until a decision has named it.
        partial: how often a parameter is left out of a contribution.
        pushes: how often a worker pushes and pulls instead of doing both at once.
        late: by worker, seconds after which it joins.
        leaves: by worker, the step at which it leaves for good.
        lease: seconds.
        faults: by their message.
    """

    seed: int
    shards: int
    workers: int
    target: int
    rule: Rule
    sync: Sync
    shapes: tuple[tuple[int, ...], ...]
    clip: AnyClip | None = None
    schedule: Schedule | None = None
    on_nonfinite: OnNonfinite = "skip"
    poison: frozenset[tuple[int, int]] = frozenset()
    partial: float = 0.0
    pushes: float = 0.0
    late: tuple[float, ...] = ()
    leaves: dict[int, int] = field(default_factory=dict)
    lease: float = 2.0
    faults: tuple[Fault, ...] = ()

    @property
    def fixed(self) -> bool:
        return self.sync.workers is not None

    @property
    def repeatable(self) -> bool:
        """Whether the result does not depend on what goes wrong on the way."""
        return self.fixed and not self.leaves

    def undisturbed(self) -> Scenario:
        """Nothing goes wrong, and there is but one shard."""
        return replace(self, faults=(), late=(), shards=1)

    def describe(self) -> str:
        faults = "\n".join(f"    {fault}" for fault in self.faults)
        return "\n".join(f"  {name}: {value}" for name, value in vars(self).items() if name != "faults") + (
            f"\n  faults:\n{faults}" if faults else ""
        )


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(f"scenario {seed}")
    shards, workers = rng.choice((1, 2, 2, 3)), rng.choice((1, 2, 2, 3))
    target = rng.randint(2, 4)
    rule: Rule = rng.choice(
        (SGD(lr=0.1, momentum=0.9), AdamW(lr=0.05), AdamW(lr=0.05, amsgrad=True), LAMB(lr=0.02), SGD(lr=0.5))
    )
    fixed = rng.random() < 0.5
    reduce: Reduce = rng.choice(("mean", "mean", "sum", "weighted"))
    sync = Sync(workers=workers if fixed else None, reduce=reduce, deterministic=rng.random() < 0.5)
    clip: AnyClip | None = rng.choice((None, ClipNorm(1.0), ClipValue(0.5), Clip(norm=0.7, value=0.4)))
    schedule: Schedule | None = rng.choice((None, Cosine(total_steps=10), Exponential(0.8)))
    poison = frozenset(
        (worker, step) for worker in range(workers) for step in range(target) if rng.random() < 0.06 / workers
    )
    leaves = {} if fixed or rng.random() < 0.7 else {rng.randrange(workers): rng.randint(1, target)}
    return Scenario(
        seed=seed,
        shards=shards,
        workers=workers,
        target=target,
        rule=rule,
        sync=sync,
        shapes=(rng.choice(_FIRST_SHAPES), *rng.sample(_SHAPES, rng.randint(0, 3))),
        clip=clip,
        schedule=schedule,
        on_nonfinite=rng.choice(("skip", "quarantine", "error")),
        poison=poison,
        partial=rng.choice((0.0, 0.0, 0.3)),
        pushes=rng.choice((0.0, 0.0, 0.5)),
        late=tuple(0.0 if rng.random() < 0.7 else rng.uniform(0, 0.1) for _ in range(workers)),
        leaves=leaves,
        lease=rng.choice((1.0, 2.0)),
        faults=_faults(rng, shards, workers, target, fixed=fixed),
    )


def _faults(rng: random.Random, shards: int, workers: int, target: int, *, fixed: bool) -> tuple[Fault, ...]:
    messages = _MESSAGES * shards * workers * target
    hosts = ["coordinator", *(f"shard-{i}" for i in range(shards)), *(f"worker-{i}" for i in range(workers))]
    faults = []
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4))):
        kind: Kind = rng.choice(_KINDS)
        host = rng.choice(hosts)
        if kind == "die":
            host = rng.choice(hosts[: shards + 1])
        elif kind == "wall":
            host = "coordinator"
        seconds = rng.choice((0.05, 0.3, 1.5, 4.0)) * rng.uniform(0.5, 1.5)
        # Whoever dies for good must not be missed: in a fixed run, and the first worker, everybody returns.
        if kind == "kill" and host.startswith("worker") and host != "worker-0" and not fixed and rng.random() < 0.5:
            seconds = -1.0
        faults.append(Fault(rng.randrange(messages), kind, host, seconds, _stores(rng, host) if kind == "die" else 0))
    return tuple(sorted(faults, key=lambda fault: fault.at))


def _stores(rng: random.Random, host: str) -> int:
    """Over several steps of a shard; the coordinator has few."""
    return rng.randint(1, 200 if host.startswith("shard") and rng.random() < 0.6 else 20)
