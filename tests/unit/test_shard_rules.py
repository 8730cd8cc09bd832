"""What rules keep besides one number for each element, on shards: scalars, and buffers that begin as the parameter."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepd.rules import ASGD, NAdam, Rule, ScheduleFreeAdamW, ScheduleFreeSGD

from .one_process import Tensor
from .shard_bench import Fleet, arrays, run

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
