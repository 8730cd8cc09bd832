"""Which scenario a seed stands for."""

from __future__ import annotations

import random
from typing import Final, Literal, TypeAlias

from stepd.averages import EMA, SWA, Average
from stepd.policies import AnyClip, AnySync, Async, BoundedStaleness, Clip, ClipNorm, ClipValue, Damping, Reduce, Sync
from stepd.rules import LAMB, SGD, AdamW, Rule
from stepd.schedules import Cosine, Exponential, Schedule
from tests.simulator.scenario import Change, Fault, Kind, Scenario

_KINDS: Final[tuple[Kind, ...]] = (
    *("cut", "cut", "cut", "again", "part", "stall", "alone", "slow"),
    *("kill", "kill", "die", "die", "die", "die", "stop", "wall", "policy"),
)
# What most worlds are not: shards that die in one step after the other, messages that get lost all the time, somebody
# who reads while everything takes long, servers and workers that are killed, rounds that are closed before all have
# come, and by the first of three, contributions that are steps of their own, and owners who change the policy in the
# middle of rounds.
Theme: TypeAlias = Literal["steps", "links", "reads", "kills", "quorum", "late", "turns", "policies"]
_THEMES: Final[dict[Theme | None, tuple[Kind, ...]]] = {
    None: _KINDS,
    "steps": ("die",),
    "links": ("cut", "cut", "again", "part"),
    "reads": ("slow", "stall", "slow", "die"),
    "kills": ("kill", "kill", "die"),
    "quorum": ("slow", "stall", "alone", "stop", "kill", "cut", "die"),
    "late": ("stall", "stall", "stall", "stall", "slow", "part", "die"),
    "turns": ("slow", "stall", "stop", "kill", "cut", "again", "die", "die"),
    "policies": ("policy", "policy", "policy", "policy", "slow", "stall", "kill", "cut", "die"),
}
_ALL: Final[tuple[Theme, ...]] = ("steps", "links", "reads", "kills", "quorum", "late", "turns", "policies")
# Where more depends on what workers are told before the decision.
_OF_PUSHES: Final = ("policies", "quorum", "late", "turns")
_QUORUM: Final = ("quorum",)
_TURNS: Final = ("async", "bounded")
_SYNCS: Final = ("all", "all", "all", "all", *_QUORUM, *_TURNS)
# Messages of one worker with one shard in one round, roughly: faults are spread over as many as there will be.
_MESSAGES: Final = 14
# Shapes of parameters in blocks of 8: the first over several blocks, which no two gradients have in common by chance;
# the others also in one block, without dimensions, empty.
_FIRST_SHAPES: Final[tuple[tuple[int, ...], ...]] = ((4, 5), (17,), (25,))
_SHAPES: Final[tuple[tuple[int, ...], ...]] = ((3,), (), (11,), (0, 2), (2, 3), (16,))
# Where a shard dies: at any of its stores, or at a kind of them that is seldom met by chance.
_PLACES: Final = (
    *("", "", "update", "update", "update", "array", "write_bytes", "replace"),
    *("PROGRESS", "INTENT", "ROUND", "GATHERED"),
)


def draw(seed: int, theme: Theme | None = None) -> Scenario:
    """The scenario of a seed; of all of them, or of those with a theme."""
    rng = random.Random(f"scenario {seed}" + (f" of {theme}" if theme else ""))
    theme = theme or rng.choice((None, None, None, None, None, *_ALL))
    shards, workers = rng.choice((1, 2, 2, 3)), rng.choice((1, 2, 2, 2, 3))
    if theme == "late":
        shards, workers = max(shards, 2), 3
    target = rng.choice((2, 2, 3, 3, 4))
    rule: Rule = rng.choice(
        (SGD(lr=0.1, momentum=0.9), AdamW(lr=0.05), AdamW(lr=0.05, amsgrad=True), LAMB(lr=0.02), SGD(lr=0.5))
    )
    sync, fixed = _sync(rng, theme, workers)
    clip: AnyClip | None = rng.choice((None, ClipNorm(1.0), ClipValue(0.5), Clip(norm=0.7, value=0.4)))
    schedule: Schedule | None = rng.choice((None, Cosine(total_steps=1000), Exponential(0.8)))
    poison: frozenset[tuple[int, int]] = frozenset(
        (worker, step) for worker in range(workers) for step in range(target) if rng.random() < 0.06 / workers
    )
    average: Average | None = rng.choice((None, None, EMA(0.5), SWA(start=1, every=2)))
    changes = tuple(
        Change(rng.randrange(target), kind)
        for kind in rng.sample(("rate", "group", "state"), rng.choice((0, 0, 0, 0, 1, 2)))
    )
    policy: AnySync | None = None
    if rng.random() < 0.12:
        policy = _other(rng, workers, fixed=fixed)
        changes = (*changes, Change(rng.randrange(target), "policy"))
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
        at_once=seed % 2 == 1,
        partial=rng.choice((0.0, 0.0, 0.3)),
        pushes=rng.choice((0.0, 0.5, 0.9) if theme in _OF_PUSHES else (0.0, 0.0, 0.5)),
        late=tuple(0.0 if rng.random() < 0.7 else rng.uniform(0, 0.1) for _ in range(workers)),
        leaves=leaves,
        lease=rng.choice((1.0, 2.0)),
        changes=tuple(sorted(changes, key=lambda change: change.step)),
        policy=policy,
        deleted=rng.randrange(target) if rng.random() < 0.04 else None,
        average=average,
        reader=theme == "reads" or rng.random() < 0.1,
        early=rng.random() < 0.06,
        faults=_faults(rng, theme, shards, workers, target, fixed=fixed),
    )


def _sync(rng: random.Random, theme: Theme | None, workers: int) -> tuple[AnySync, bool]:
    """The policy, and whether nobody can be done without."""
    fixed = rng.random() < 0.5
    reduce: Reduce = rng.choice(("mean", "mean", "sum", "weighted"))
    kind = rng.choice({"quorum": _QUORUM, "late": _QUORUM, "turns": _TURNS}.get(theme or "", _SYNCS))
    if kind == "quorum":
        quorum, grace = 1 if theme == "late" else rng.randint(1, workers), rng.choice((0.0, 0.01, 0.5))
        number = workers if fixed else None
        return Sync(number, quorum=quorum, grace=grace, reduce=reduce), True
    if kind == "async":
        damping: Damping | None = rng.choice((None, "inverse"))
        return Async(max_staleness=rng.choice((None, 0, 1, 3)), damping=damping), False
    if kind == "bounded":
        return BoundedStaleness(workers, rng.choice((0, 1, 2))), True
    return Sync(workers if fixed else None, reduce=reduce, deterministic=rng.random() < 0.5), fixed


def _other(rng: random.Random, workers: int, *, fixed: bool) -> AnySync:
    """What the owner changes the policy to."""
    if fixed:
        return _sync(rng, None, workers)[0]
    # Whoever may be gone for good must not be waited for.
    return rng.choice((Sync(), Sync(quorum=1), Async(), Async(max_staleness=0), Async(max_staleness=1)))


def _faults(
    rng: random.Random, theme: Theme | None, shards: int, workers: int, target: int, *, fixed: bool
) -> tuple[Fault, ...]:
    messages = _MESSAGES * shards * workers * target
    servers = ["coordinator", *(f"shard-{i}" for i in range(shards))]
    hosts = [*servers, *(f"worker-{i}" for i in range(workers))]
    faults = []
    for _ in range(5 if theme else rng.choice((0, 1, 2, 2, 3, 4))):
        kind: Kind = rng.choice(_THEMES[theme])
        host, stores, where, policy = rng.choice(hosts), 0, "", None
        if kind == "die":
            host = rng.choice(servers[1:] if theme == "steps" else servers)
            where = "" if host == "coordinator" else rng.choice(_PLACES)
            stores = rng.randint(1, 8 if where else 20)
        elif kind in ("cut", "again"):
            where = rng.choice(("", "", "Push", "Push", "Round", "Run"))
        elif kind == "wall":
            host = "coordinator"
        elif kind == "policy":
            policy = _other(rng, workers, fixed=fixed)
        seconds = rng.choice((0.05, 0.3, 1.5, 4.0)) * rng.uniform(0.5, 1.5)
        # Whoever dies for good must not be missed: in a fixed run, and the first worker, everybody returns.
        if kind == "kill" and host.startswith("worker") and host != "worker-0" and not fixed and rng.random() < 0.5:
            seconds = -1.0
        faults.append(Fault(rng.randrange(messages), kind, host, seconds, stores, where, policy))
    return tuple(sorted(faults, key=lambda fault: fault.at))
