"""Averages: what they are, torch's numbers, and how shards keep them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stepd import averages, specs
from stepd.averages import EMA, SWA, Average
from stepd.errors import Aborted, FailedPrecondition, InvalidArgument
from stepd.parameters import define_run
from stepd.rules import ASGD, SGD, AdamW, Rule, ScheduleFreeAdamW
from stepd.v1 import round_pb2, run_pb2, shard_pb2
from tests.reference.as_stepd import create_run_arguments
from tests.reference.averages import AVERAGED_CASES, AVERAGED_STEPS, AVERAGES, reference_average
from tests.reference.cases import STEPS, TOLERANCE, Case, error, gradient

from .one_process import Tensor
from .shard_bench import BLOCK, Fleet, apply, arrays, run


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMA(1), r"EMA: decay must be in \[0, 1\), got 1.0"),
        (lambda: EMA(-0.1), r"EMA: decay must be in \[0, 1\), got -0.1"),
        (lambda: EMA("0.9"), "EMA: decay must be a finite number, got '0.9'"),
        (lambda: SWA(-1), "SWA: start must be >= 0, got -1"),
        (lambda: SWA(1, 0), "SWA: every must be >= 1, got 0"),
        (lambda: SWA(1.5), "SWA: start must be an integer, got 1.5"),
        (lambda: specs.average_from_proto(run_pb2.AverageSpec()), "average must be exponential or equal, got None"),
        (
            lambda: define_run("r", arrays(0), optimizer=SGD(), average=0.9),
            "average must be stepd.EMA, stepd.SWA or None, got 0.9",
        ),
    ],
)
def test_impossible_averages_are_refused(make: object, message: str) -> None:
    """The error names the average, the field, what it must be and what was given."""
    with pytest.raises(InvalidArgument, match=message):
        make()


def test_which_steps_count() -> None:
    """All of an EMA; of an SWA the first and every so many after it, but never the initial parameters."""
    steps = range(1, 13)
    assert all(EMA(0.9).counts(step) for step in steps)
    assert [step for step in steps if SWA(3, 4).counts(step)] == [3, 7, 11]
    assert [step for step in steps if SWA(0, 5).counts(step)] == [5, 10]
    assert [step for step in steps if SWA(12).counts(step)] == [12]
    assert [EMA(0.75).share(n) for n in range(3)] == [1.0, 0.25, 0.25]
    assert [SWA(3).share(n) for n in range(3)] == [1.0, 1 / 2, 1 / 3]


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("case", AVERAGED_CASES.values(), ids=str)
def test_shards_give_torchs_averages(tmp_path: Path, case: Case, name: str) -> None:
    """Through 100 steps on three shards, in some of which parameters have no gradient."""
    kind, arguments = AVERAGES[name]
    average: Average = getattr(averages, kind)(**arguments)

    async def scenario() -> None:
        given = create_run_arguments(case)
        spec = specs.run_from_proto(define_run("r", **given)[0])
        fields = {"average": specs.average_to_proto(average)}
        fleet = Fleet(tmp_path, given["params"], given["optimizer"], shards=3, **fields)
        await fleet.start()
        for step in range(STEPS):
            grads = gradient(case, step, await fleet.pull())
            norm = np.linalg.norm(np.concatenate([np.ravel(grad) for grad in grads.values()]).astype(np.float64))
            scale = spec.clip.norm.scale(norm) if spec.clip and spec.clip.norm else 1.0
            rate = spec.schedule_of(0).rate(step, spec.groups[0].optimizer.lr)
            await fleet.step(grads, round=step, lr=rate, clip_scale=scale)
            if step + 1 in AVERAGED_STEPS:
                expected = reference_average(case, name, step + 1)
                assert error(case, await fleet.pull(averaged=True), expected) <= TOLERANCE[case.dtype]

    run(scenario)


def gaps(steps: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Gradients from which some parameters are left out."""
    for step in range(steps):
        grads = arrays(step + 1)
        for name in ("big", "b", "w")[: step % 4]:
            del grads[name]
        yield step, grads


@pytest.mark.parametrize("average", [EMA(0.75), SWA(2, 2)], ids=repr)
@pytest.mark.parametrize("shards", [1, 3])
def test_the_bits_are_those_of_one_process(tmp_path: Path, average: Average, shards: int) -> None:
    """Of all elements, touched or not; a step that is skipped does not count; shards' processes end in between."""

    async def scenario() -> None:
        message = specs.average_to_proto(average)
        fleet = Fleet(tmp_path, arrays(0), AdamW(lr=0.1), shards=shards, average=message)
        await fleet.start()
        means: dict[str, np.ndarray] = {}
        count = 0
        for step, grads in gaps(9):
            if step == 5:
                for shard in fleet.shards:
                    await shard.finish(apply(step, outcome=round_pb2.OUTCOME_SKIPPED, step=5))
                fleet.shards = [fleet.open(index) for index in range(shards)]
            await fleet.step(grads, round=step + (step >= 5), applied=step + 1)
            now = await fleet.pull()
            if average.counts(step + 1):
                share = np.float32(average.share(count))
                means = {k: means[k] + (p - means[k]) * share if count else p for k, p in now.items()}
                count += 1
            for name, value in (await fleet.pull(averaged=True)).items():
                assert value.tobytes() == (means or now)[name].tobytes(), name
        assert {shard.arena.averaged_steps for shard in fleet.shards} == {count}

    run(scenario)


@pytest.mark.parametrize("rule", [ASGD(0.1, lambd=0.1, t0=1), ScheduleFreeAdamW(0.1)], ids=repr)
@pytest.mark.parametrize("shards", [1, 3])
def test_rules_that_average_are_asked(tmp_path: Path, rule: Rule, shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the run keeps no average: each parameter by its own number of updates, which may be none."""
    monkeypatch.setattr("stepd_server.shard.pulling.BLOCK_ELEMENTS", 30)  # parts of tensors, and several at once

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), rule, shards=shards)
        await fleet.start()
        alone = {name: Tensor(rule, value, name) for name, value in arrays(0).items()}
        for step, grads in gaps(6):
            del grads["scalar"]
            await fleet.step(grads, round=step, lr=0.1)
            for name, grad in grads.items():
                alone[name].update(grad.reshape(-1), 0.1, [])
        before = await fleet.pull()
        for name, value in (await fleet.pull(averaged=True)).items():
            assert value.tobytes() == alone[name].average().tobytes(), name
        for name, value in (await fleet.pull()).items():
            assert value.tobytes() == before[name].tobytes() == alone[name].p.tobytes(), name

    run(scenario)


def test_groups_without_averages_give_their_parameters(tmp_path: Path) -> None:
    """Beside a group whose rule averages."""

    async def scenario() -> None:
        spec = Fleet(tmp_path / "spec", arrays(0), ASGD(0.1, t0=0)).spec
        spec.groups.append(run_pb2.GroupSpec(optimizer=specs.optimizer_to_proto(SGD(0.1))))
        for parameter in spec.parameters[3:]:
            parameter.group = 1
        fleet = Fleet(tmp_path, arrays(0), shards=2)
        fleet.spec.CopyFrom(spec)
        fleet.folder = tmp_path / "two"
        fleet.shards = [fleet.open(index) for index in range(2)]
        await fleet.start()
        for step in range(3):
            await fleet.step(arrays(step + 1), round=step, lr=0.1)
        plain, mean = await fleet.pull(), await fleet.pull(averaged=True)
        same = {name for name in plain if plain[name].tobytes() == mean[name].tobytes()}
        assert same == {"b", "big", "empty"}

    run(scenario)


def test_a_run_without_averages_says_so(tmp_path: Path) -> None:
    """Naming the run and its rules."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        with pytest.raises(FailedPrecondition, match=r"run 'run' has no averages: .*, and SGD keeps none") as caught:
            await fleet.pull(averaged=True)
        assert caught.value.reason == "NO_AVERAGE"

    run(scenario)


def test_averages_of_a_step_under_way_are_waited_for(tmp_path: Path) -> None:
    """Also where the step has no gradient, which is averaged last."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), SGD(lr=1.0), shards=2, average=specs.average_to_proto(EMA(0.5)))
        await fleet.start()
        await fleet.step(arrays(1))
        before = await fleet.pull()
        waiting = asyncio.create_task(fleet.pull(round=1, attempt=0, averaged=True))
        await fleet.step({"w": arrays(2)["w"]}, round=1)
        after = await fleet.pull()
        for name, value in (await waiting).items():
            np.testing.assert_allclose(value, (before[name] + after[name]) / 2, rtol=1e-6, err_msg=name)

    run(scenario)


def test_an_average_costs_one_array(tmp_path: Path) -> None:
    """Only in runs that have one; and its part of the undo slot."""
    fleet = Fleet(tmp_path / "a", arrays(0), average=specs.average_to_proto(EMA(0.9)))
    plain = Fleet(tmp_path / "b", arrays(0))
    size = sum(array.nbytes for array in arrays(0).values())
    assert fleet.shards[0].arena.bytes - plain.shards[0].arena.bytes == size + BLOCK * 4
    assert (tmp_path / "a" / "0" / "averaged").stat().st_size == size
    assert not (tmp_path / "b" / "0" / "averaged").exists()


def test_a_slow_reader_of_averages_keeps_its_version_or_is_sent_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of parameters."""
    monkeypatch.setattr("stepd_server.shard.reading.READER_GRACE_S", 0.05)
    monkeypatch.setattr("stepd_server.shard.pulling.CHUNK_BYTES", 4 * BLOCK)

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), average=specs.average_to_proto(EMA(0.9)))
        await fleet.start()
        reading = fleet.shards[0].pull(shard_pb2.PullRequest(run="run", averaged=True))
        await anext(reading)
        await anext(reading)
        await fleet.step(arrays(1))
        with pytest.raises(Aborted, match="step 0 has been overwritten by step 1"):
            await anext(reading)

    run(scenario)
