"""A shard that dies anywhere in a step finishes it: the bits are those of the step that nothing disturbed."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Iterator
from copy import copy as shallow_copy
from dataclasses import fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from stepd import specs, wire
from stepd.averages import EMA, SWA
from stepd.errors import FailedPrecondition, Unavailable
from stepd.rules import (
    LAMB,
    SGD,
    Adafactor,
    AdamW,
    Block,
    Moment,
    Muon,
    NAdam,
    Reach,
    RMSprop,
    Rule,
    ScheduleFreeAdamW,
)
from stepd.v1 import round_pb2, run_pb2, shard_pb2
from stepd_server.shard import finishing
from stepd_server.shard import run as running
from stepd_server.shard.journal import Field
from stepd_server.shard.run import ShardRun
from stepd_server.shard.sums import Shaping

from .kills import Kills, bits
from .shard_bench import Arrays, Fleet, apply, arrays, chunks, member, norms, reopen, run
from .test_shard_extending import NEW, know, load, request, settle
from .test_shard_staging import commit, header

RULES = [
    SGD(1.0),
    SGD(0.1, momentum=0.9),
    AdamW(0.1),
    NAdam(0.1),
    RMSprop(0.1, momentum=0.9, centered=True),
    ScheduleFreeAdamW(0.1, warmup_steps=3),
    LAMB(0.1),
    Adafactor(0.1),
    Muon(0.1),
]
EMA_, SWA_ = specs.average_to_proto(EMA(0.75)), specs.average_to_proto(SWA(1))
CASES = [(rule, None) for rule in RULES] + [(AdamW(0.1), EMA_), (Adafactor(0.1), SWA_), (SGD(1.0), SWA_)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory: a folder is copied a hundred times."""
    shm = Path("/dev/shm")
    with TemporaryDirectory(dir=shm if shm.is_dir() else None) as path:
        yield Path(path)


def fitting(rule: Rule, seed: int) -> dict[str, np.ndarray]:
    """Few elements, so that there are few places to die at, but several units all the same."""
    every = arrays(seed)
    small = {"w": every["w"][:3], "scalar": every["scalar"], "empty": every["empty"], "b": every["b"]}
    return {name: a for name, a in small.items() if a.ndim == 2 or not isinstance(rule, Muon)}


async def decide(fleet: Fleet, grads: Arrays, round: int, attempt: int = 0, **fields: Any) -> round_pb2.Decision:
    """Gather, and decide to apply."""
    version = fleet.shards[0].arena.piece.version
    gathered = asyncio.create_task(fleet.gather((0,), round, attempt, layout_version=version))
    await asyncio.sleep(0)
    await fleet.push(grads, 0, round, attempt, layout_version=version)
    await gathered
    decision = apply(round, 0.1, attempt=attempt, **fields)
    decision.groups.extend([decision.groups[0]] * (len(fleet.spec.groups) - 1))
    if fleet.rule.reach is Reach.LAYERWISE:
        decision.norms.extend(norms(await fleet.measure(decision)))
    return decision


async def check(fleet: Fleet, kills: Kills, grads: Arrays, decision: round_pb2.Decision, before: Any) -> Counter[str]:
    """Open every copy; give how often what was the case.

    Args:
        fleet: whose step has been watched, and is over.
        kills: what has been watched.
        grads: of the step.
        decision: of the step.
        before: the bits before it.
    """
    after, found = bits(fleet.shards[0]), Counter[str]()
    for where, copy in kills.copies():
        again = reopen(copy)
        assert not again.problem, where
        if again.arena.round == decision.id.round:
            assert bits(again) == before, where
            told = decision
            if again.arena.gathered.read() is not None:
                found["told again"] += 1
            else:
                found["gathered again"] += 1
                told = await decide(with_shard(fleet, again), grads, decision.id.round, 1, step=decision.step)
            await again.finish(told)
        else:
            found["finished"] += 1
        assert bits(again) == after, where
        await knows(again, decision)
        await again.close()
        shutil.rmtree(copy)
    return found


def with_shard(fleet: Fleet, shard: ShardRun) -> Fleet:
    """The same fleet of another process."""
    other = shallow_copy(fleet)
    other.shards = [shard]
    return other


async def knows(shard: ShardRun, decision: round_pb2.Decision) -> None:
    """What became of the last round is known as well."""
    version = shard.arena.piece.version
    pulled = shard.pull(shard_pb2.PullRequest(run="run", round=decision.id.round, layout_version=version))
    told = wire.decode_pull(await anext(pulled))
    await pulled.aclose()
    assert isinstance(told, shard_pb2.PullHeader)
    assert (told.step, told.decision.step, told.decision.members) == (decision.step, decision.step, decision.members)
    repeated = shard_pb2.PushHeader(run="run", member=member(0), id=decision.id, weight=1.0)
    assert (await shard.push(repeated, chunks(np.empty(0)))).status == shard_pb2.RECEIPT_STATUS_DUPLICATE
    assert await shard.finish(decision) == decision.step


@pytest.mark.parametrize(("rule", "average"), CASES, ids=repr)
def test_a_step_survives_death_anywhere(
    folder: Path, rule: Rule, average: run_pb2.AverageSpec | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under rules of every kind, from the first chunk to the end; parts of the run have no gradient in the step."""
    run(partial(survive, folder, rule, average, monkeypatch))


async def survive(
    folder: Path, rule: Rule, average: run_pb2.AverageSpec | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(folder / "run", fitting(rule, 0), rule, average=average)
    await fleet.start()
    await fleet.step(fitting(rule, 1), lr=0.1)
    grads = fitting(rule, 2)
    grads.pop("scalar", None)
    found = await watch(fleet, Kills(folder / "copies", monkeypatch), grads, 1)
    assert min(found[what] for what in ("gathered again", "told again", "finished")) > 3


async def watch(fleet: Fleet, kills: Kills, grads: Arrays, round: int, **fields: Any) -> Counter[str]:
    """Watch a round, and open all copies."""
    before = bits(fleet.shards[0])
    with kills.watching(fleet.folder):
        decision = await decide(fleet, grads, round, **fields)
        await fleet.finish(decision)
    return await check(fleet, kills, grads, decision, before)


def test_without_the_undo_slot_bits_differ(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    monkeypatch.setattr(finishing, "put_back", lambda *_: None)
    with pytest.raises(AssertionError, match="in the middle of an update"):
        run(partial(survive, folder, AdamW(0.1), None, monkeypatch))


def test_who_dies_while_finishing_a_step_finishes_it_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Death at every place of what follows death at every place."""

    async def scenario() -> None:
        fleet = Fleet(
            folder / "run", {"w": arrays(0)["b"], "v": arrays(0)["w"][0]}, SGD(0.1, momentum=0.9), average=EMA_
        )
        await fleet.start()
        decision = await decide(fleet, {"w": arrays(1)["b"]}, 0)
        kills = Kills(folder / "copies", monkeypatch)
        with kills.watching(fleet.folder):
            await fleet.finish(decision)
        after, again = bits(fleet.shards[0]), 0
        for _, first in kills.copies():
            with kills.watching(first):
                reopen(first)
            for where, second in kills.copies():
                shard = reopen(second)
                await shard.finish(decision)
                assert bits(shard) == after, where
                shutil.rmtree(second)
                again += 1
        assert again > 100

    run(scenario)


@pytest.mark.parametrize("outcome", [round_pb2.OUTCOME_SKIPPED, round_pb2.OUTCOME_FAILED])
def test_a_round_that_is_skipped_survives_as_well(
    folder: Path, outcome: round_pb2.Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never looks like a step, and is remembered; the next step goes on from it."""

    async def scenario() -> None:
        fleet = Fleet(folder / "run", fitting(AdamW(), 0), AdamW(0.1))
        await fleet.start()
        await fleet.step(fitting(AdamW(), 1), lr=0.1)
        kills = Kills(folder / "copies", monkeypatch)
        skipped = apply(1, outcome=outcome, step=1)
        before = bits(fleet.shards[0])
        with kills.watching(fleet.folder):
            await fleet.finish(skipped)
        after = bits(fleet.shards[0])
        assert {**before, "ROUND": 2, "INTENT": 2} == after
        for where, copy in kills.copies():
            again = reopen(copy)
            await again.finish(skipped)
            assert bits(again) == after, where
            await knows(again, skipped)
        await watch(fleet, kills, fitting(AdamW(), 2), 2, step=2)

    run(scenario)


def test_a_group_that_is_added_survives_in_both_layouts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it lies ready, in which the run is as it was and the group is there still; and from its first step on."""

    async def scenario() -> None:
        fleet = Fleet(folder / "run", fitting(NAdam(), 0), AdamW(0.1))
        await fleet.start()
        wanted = request(fleet, NEW, NAdam(0.1))
        await load(fleet, wanted, NEW)
        kills = Kills(folder / "copies", monkeypatch)
        before = bits(fleet.shards[0])
        with kills.watching(fleet.folder):
            decision = await decide(fleet, fitting(NAdam(), 1), 0)
            await fleet.finish(decision)
        staged = [again for _, copy in kills.copies() if (again := reopen(copy)).extension is not None]
        assert len(staged) > 10
        old = with_shard(fleet, staged[-1])
        assert bits(staged[-1]) == bits(fleet.shards[0]) != before
        for each in (fleet, old):
            await settle(each, wanted, NEW)
        await watch(fleet, kills, {**fitting(NAdam(), 2), **NEW}, 1)
        know(old, wanted, {})
        await old.finish(await decide(old, {**fitting(NAdam(), 2), **NEW}, 1))
        assert bits(staged[-1]) == bits(fleet.shards[0])

    run(scenario)


def test_what_was_gathered_for_an_older_layout_counts_no_more(folder: Path) -> None:
    """Not even when the shard dies between the two."""

    async def scenario() -> None:
        fleet = Fleet(folder, arrays(0), AdamW(0.1))
        await fleet.start()
        await decide(fleet, arrays(1), 0)
        wanted = request(fleet, NEW, NAdam(0.1))
        await load(fleet, wanted, NEW)
        assert reopen(folder).arena.gathered.read() is not None
        await settle(fleet, wanted, NEW)
        assert reopen(folder).arena.gathered.read() is None

    run(scenario)


def test_a_step_after_a_loaded_state_survives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the counts and hyperparameters that came with it."""

    async def scenario() -> None:
        rule = SGD(0.1, momentum=0.5)
        fleet = Fleet(folder / "run", fitting(rule, 0), rule)
        await fleet.start()
        await fleet.step(fitting(rule, 1), lr=0.1)
        shard = fleet.shards[0]
        await shard.staging.stage(header(fleet, "a"), chunks(np.full(shard.staging.size, 7, np.float32)))
        shard.staging.hold("a")
        await shard.commit_state(commit("a", SGD(0.1, momentum=0.25), round=1))
        await watch(fleet, Kills(folder / "copies", monkeypatch), fitting(rule, 2), 1)
        await shard.close()

    run(scenario)


class Breaking:
    """AdamW.update, but that some of its calls break off halfway."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
        update, self.calls = AdamW.update, 0

        def breaking(rule: AdamW, block: Block, at: Moment) -> None:
            self.calls += 1
            if self.calls in calls:
                block.p.fill(np.nan)
                raise MemoryError("no memory")
            update(rule, block, at)

        monkeypatch.setattr(AdamW, "update", breaking)
        monkeypatch.setattr(running, "_PAUSES_S", (0.0, 0.0))


def test_a_step_that_breaks_off_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same process; nobody notices."""

    async def scenario() -> None:
        fleet, other = (Fleet(tmp_path / name, arrays(0), AdamW(0.1)) for name in "ab")
        for each in (fleet, other):
            await each.start()
        await other.step(arrays(1), lr=0.1)
        Breaking(monkeypatch, {3, 4})
        waiting = asyncio.create_task(fleet.pull(round=0, attempt=0))
        await fleet.step(arrays(1), lr=0.1)
        assert bits(fleet.shards[0]) == bits(other.shards[0])
        for name, value in (await other.pull()).items():
            np.testing.assert_array_equal((await waiting)[name], value)

    run(scenario)


def test_a_step_that_breaks_off_for_good_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody is told, nobody waits; the next process finishes it."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), AdamW(0.1))
        await fleet.start()
        decision = await decide(fleet, arrays(1), 0)
        broken = Breaking(monkeypatch, {3, 4, 5})
        pull, push = fleet.pull(round=0, attempt=0), fleet.push(arrays(2), round=1)
        calls = [asyncio.create_task(call) for call in (pull, push, fleet.finish(decision), fleet.gather(round=1))]
        for call in calls:
            with pytest.raises(
                FailedPrecondition, match="step 1 broke off and cannot be finished: no memory"
            ) as caught:
                await call
            assert caught.value.reason == "RUN_LOST"
        monkeypatch.setattr("stepd_server.shard.finishing.checksum", lambda _: 1)
        again = reopen(tmp_path)
        assert "begun by another version of this program" in again.problem
        monkeypatch.undo()
        again = reopen(tmp_path)
        assert (again.problem, again.arena.step, broken.calls) == ("", 1, 5)

    run(scenario)


def test_what_an_earlier_process_gathered_is_not_gathered_again(tmp_path: Path) -> None:
    """It may be decided. Only a later attempt takes its place, from its first moment on."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        decision = await decide(fleet, arrays(1), 0, attempt=1)
        for attempt in (0, 1):
            fleet.shards = [reopen(tmp_path)]
            with pytest.raises(Unavailable, match="started anew after it gathered round 0"):
                await fleet.gather(attempt=attempt)
        later = asyncio.create_task(fleet.gather(attempt=2))
        for _ in range(3):
            await asyncio.sleep(0)
        with pytest.raises(FailedPrecondition, match="told to finish round 0 attempt 1"):
            await fleet.finish(decision)
        later.cancel()
        with pytest.raises(FailedPrecondition, match="nothing of round 0 is gathered"):
            await reopen(tmp_path).finish(decision)

    run(scenario)


def test_a_decision_that_needs_more_room_gets_it(tmp_path: Path) -> None:
    """As of a thousand members; the next ones do not overwrite it before they are the latest."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        await fleet.step(arrays(1))
        many = apply(1, outcome=round_pb2.OUTCOME_SKIPPED, step=1)
        many.members.extend(round_pb2.Member(worker=f"w{i}" * 20) for i in range(1000))
        await fleet.finish(many)
        fleet.shards = [reopen(tmp_path)]
        assert fleet.shards[0].arena.remembering.read() == many
        await fleet.step(arrays(1), round=2, applied=2)
        assert fleet.shards[0].arena.journal[Field.INTENT] == 3
        assert reopen(tmp_path).arena.remembering.read() == apply(2, step=2)

    run(scenario)


def test_all_that_shapes_a_gradient_is_written_down() -> None:
    """A further number would have to be written by GatheredFile, too."""
    assert [field.name for field in fields(Shaping)] == ["divisor", "limits"]
