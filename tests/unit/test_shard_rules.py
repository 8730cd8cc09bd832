"""Rules on shards that keep more than a number for each element, or look at more than an element."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from stepd import wire
from stepd.errors import Aborted, FailedPrecondition, InvalidArgument, Unavailable
from stepd.rules import (
    ASGD,
    LAMB,
    LARS,
    SGD,
    Adafactor,
    Adam,
    Muon,
    NAdam,
    RMSprop,
    Rule,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
)
from stepd.v1 import round_pb2, shard_pb2
from stepd_server.shard import finishing

from .one_process import Tensor
from .shard_bench import Fleet, apply, arrays, norms, run

RULES = [
    ASGD(0.1, lambd=0.1, t0=1),
    NAdam(0.1),
    ScheduleFreeSGD(0.1, warmup_steps=3),
    ScheduleFreeAdamW(0.1, weight_decay=0.1),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("shards", [1, 3])
def test_shards_keep_scalars(tmp_path: Path, rule: Rule, shards: int) -> None:
    """The bits of one process, though tensors are cut, skip steps, and the shards' processes end in between."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), rule, shards=shards)
        await fleet.start()
        alone = {name: Tensor(rule, value, name) for name, value in arrays(0).items()}
        for step in range(6):
            grads = arrays(step + 1)
            for name in ("b", "w")[: step % 3]:
                del grads[name]
            await fleet.step(grads, round=step, lr=0.1 / (step + 1))
            for name, grad in grads.items():
                alone[name].update(grad.reshape(-1), 0.1 / (step + 1), [])
            if step == 2:
                fleet.shards = [fleet.open(index) for index in range(shards)]
        for name, value in (await fleet.pull()).items():
            assert value.tobytes() == alone[name].p.tobytes(), name

    run(scenario)


def test_a_buffer_begins_as_the_parameter(tmp_path: Path) -> None:
    """When the initial parameters are complete; the others with their number, scalars with theirs."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), ScheduleFreeAdamW(), shards=2)
        await fleet.start()
        for shard in fleet.shards:
            z, squares = shard.arena.buffers[0]
            assert z.tobytes() == shard.arena.parameters.tobytes()
            assert not squares.any()
            assert shard.arena.scalars(0, 2) == (-1.0, 0.0)

    run(scenario)


WHOLE = [Adafactor(0.1), Adafactor(0.1, weight_decay=0.1), Muon(0.1)]
LAYERWISE = [LAMB(0.1), LARS(1.0, weight_decay=0.1), LARS(1.0, momentum=0, exclude=("big",))]


def fitting(rule: Rule, seed: int) -> dict[str, np.ndarray]:
    """Tensors that a rule can update."""
    return {name: a for name, a in arrays(seed).items() if a.ndim == 2 or not isinstance(rule, Muon)}


async def trained(folder: Path, rule: Rule, shards: int, momenta: list[float] | None = None) -> dict[str, bytes]:
    """Parameters after six steps with gaps, restarts in between."""
    fleet = Fleet(folder, fitting(rule, 0), rule, shards=shards)
    await fleet.start()
    alone = {name: Tensor(rule, value, name) for name, value in fitting(rule, 0).items()}
    for step in range(6):
        grads = fitting(rule, step + 1)
        for name in ("b", "w")[: step % 3]:
            grads.pop(name, None)
        momentum = momenta[step] if momenta else None
        await fleet.step(grads, round=step, lr=0.1 / (step + 1), momentum=momentum)
        for name, grad in grads.items():
            if grad.size:
                alone[name].rule = rule if momentum is None else rule.cycled(momentum)
                alone[name].update(grad.reshape(-1), 0.1 / (step + 1), [])
        if step == 2:
            fleet.shards = [fleet.open(index) for index in range(shards)]
    pulled = await fleet.pull()
    for name, value in pulled.items():
        np.testing.assert_allclose(value.reshape(-1), alone[name].p, rtol=1e-5, err_msg=name)
    return {name: value.tobytes() for name, value in pulled.items()}


@pytest.mark.parametrize("at_once", [0, 64, 10**6], ids="threads for {} elements".format)
@pytest.mark.parametrize("rule", WHOLE, ids=repr)
def test_tensors_that_are_seen_whole(tmp_path: Path, rule: Rule, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits on any number of shards, whether they are updated in a thread or not; buffers in their sizes."""
    monkeypatch.setattr(finishing, "_WHOLE_ELEMENTS_AT_ONCE", at_once)

    async def scenario() -> None:
        ends = [await trained(tmp_path / f"{shards}", rule, shards) for shards in (1, 2, 5)]
        assert ends[0] == ends[1] == ends[2]

    run(scenario)


@pytest.mark.parametrize("rule", LAYERWISE, ids=repr)
def test_norms_of_tensors_are_found_wherever_they_lie(tmp_path: Path, rule: Rule) -> None:
    """The same bits on any number of shards, where "big" lies on several of them."""

    async def scenario() -> None:
        ends = [await trained(tmp_path / f"{shards}", rule, shards) for shards in (1, 2, 5)]
        assert ends[0] == ends[1] == ends[2]

    run(scenario)


@pytest.mark.parametrize("rule", [SGD(momentum=0.9), RMSprop(momentum=0.9, centered=True), Adam(), LAMB()], ids=repr)
def test_momenta_are_those_of_the_decision(tmp_path: Path, rule: Rule) -> None:
    """Of each step, 0 as well: then there is no momentum, and its buffer is left as it is."""

    async def scenario() -> None:
        for momenta in ([0.9, 0.5, 0.7, 0.8, 0.95, 0.85], [0.9, 0.5, 0.0, 0.8, 0.95, 0.0]):
            if not (isinstance(rule, RMSprop) and 0.0 in momenta):  # one process has no choice of buffers
                ends = [await trained(tmp_path / f"{shards}-{momenta[2]}", rule, shards, momenta) for shards in (1, 3)]
                assert ends[0] == ends[1]

    run(scenario)


def test_a_rule_without_momentum_for_a_step_gets_the_buffers_it_has(tmp_path: Path) -> None:
    """Which are not the first ones of those that are kept."""

    async def scenario() -> None:
        rule = RMSprop(0.1, momentum=0.9, centered=True)
        fleet = Fleet(tmp_path, arrays(0), rule)
        await fleet.start()
        await fleet.step(arrays(1), momentum=0.0)
        kept = dict(zip((buffer.name for buffer in rule.buffers()), fleet.shards[0].arena.buffers[0], strict=True))
        assert not kept["momentum_buffer"].any()
        assert kept["grad_avg"].any()

    run(scenario)


def test_measuring_changes_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    """And parameters without a gradient are not measured."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), LAMB(), shards=3)
        await fleet.start()
        grads = {name: a for name, a in arrays(1).items() if name != "b"}
        gathered = asyncio.create_task(fleet.gather())
        await asyncio.sleep(0)
        await fleet.push(grads)
        await gathered
        draft = apply(0)
        before = [(shard.arena.parameters.tobytes(), shard.arena.buffers[0][0].tobytes()) for shard in fleet.shards]
        first, second = await fleet.measure(draft), await fleet.measure(draft)
        assert first == second
        assert before == [(s.arena.parameters.tobytes(), s.arena.buffers[0][0].tobytes()) for s in fleet.shards]
        found = {norm.parameter: norm.first for norm in norms(first)}
        expected = {i: np.linalg.norm(fleet.params[name].astype(float)) for i, name in enumerate(("w", "scalar"))}
        assert set(found) == {0, 1, 4}
        assert {id_: found[id_] for id_ in expected} == pytest.approx(expected, rel=1e-12)

    run(scenario)


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    """What is not gathered or makes no sense, and an attempt that is over, also while it is being measured."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), LAMB())
        await fleet.start()
        (shard,) = fleet.shards
        with pytest.raises(Unavailable, match="nothing is gathered since the shard was started"):
            await shard.measure(apply(0))
        gathered = asyncio.create_task(fleet.gather())
        for _ in range(3):
            await asyncio.sleep(0)
        with pytest.raises(FailedPrecondition, match="told to finish round 0"):
            await shard.measure(apply(0))
        await fleet.push(arrays(1))
        await gathered
        with pytest.raises(FailedPrecondition, match="lacks the norms of parameter 0"):
            await shard.finish(apply(0))
        assert not shard.arena.unfinished
        without_rates = apply(0)
        del without_rates.groups[:]
        for broken, kind, message in (
            (apply(1), FailedPrecondition, "told to finish round 1, but here it is round 0"),
            (apply(0, attempt=1), FailedPrecondition, "round 0 attempt 1, but here"),
            (apply(0, outcome=round_pb2.OUTCOME_SKIPPED), InvalidArgument, "what is applied, got OUTCOME_SKIPPED"),
            (round_pb2.Decision(), InvalidArgument, "what is applied, got OUTCOME_UNSPECIFIED"),
            (without_rates, InvalidArgument, "rates of its 1 groups, got 0"),
        ):
            with pytest.raises(kind, match=message):
                await shard.measure(broken)
        with pytest.raises(InvalidArgument, match="rates of its 1 groups, got 0"):
            await shard.finish(without_rates)
        assert norms(await fleet.measure(apply(0)))[0].parameter == 0
        under_way = asyncio.create_task(shard.measure(apply(0)))
        await asyncio.sleep(0)
        again = asyncio.create_task(fleet.gather(attempt=1))
        for late in (under_way, asyncio.create_task(shard.measure(apply(0)))):
            with pytest.raises(Aborted, match="gathered again as attempt 1"):
                await late
        again.cancel()

    run(scenario)


def test_readers_are_not_told_the_norms(tmp_path: Path) -> None:
    """Of twenty thousand tensors they would be half a megabyte, for every worker in every step."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), LAMB())
        await fleet.start()
        await fleet.step(arrays(1))
        async for raw in fleet.shards[0].pull(shard_pb2.PullRequest(run="run")):
            header = wire.decode_pull(raw)
            assert isinstance(header, shard_pb2.PullHeader)
            assert header.decision.step == 1
            assert not header.decision.norms
            break

    run(scenario)
