"""A disk under a server's data that fills up: errors that say so, nothing half done, and steps that go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest

import stepd
from tests.faults.disks import PAGE, SmallDisk
from tests.faults.roles import Fleet
from tests.faults.trainees import Trainees, check_order

MIB = 1 << 20
ELEMENTS = 100_000  # of float32; with momentum and accumulator about 1.2 MB on two shards


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk", 8 * MIB) as disk:
        yield disk


def create(client: stepd.Client, name: str, elements: int = ELEMENTS, workers: int | None = None) -> stepd.Run:
    return client.create_run(
        name,
        {"w": np.ones(elements, np.float32)},
        optimizer=stepd.SGD(lr=0.1, momentum=0.9),
        sync=stepd.Sync(workers=workers),
    )


def ones(elements: int = ELEMENTS, name: str = "w") -> dict[str, np.ndarray]:
    return {name: np.ones(elements, np.float32)}


def test_a_shard_without_room_says_so_and_goes_on(start: Callable[..., Fleet], disk: SmallDisk) -> None:
    fleet = start(2, data_dirs={"shard-1": disk.path})
    with stepd.connect(fleet.target, retry_for=60.0) as client:
        before = disk.files
        with pytest.raises(stepd.ResourceExhausted, match=r"no room for run 'large'.* bytes in"):
            create(client, "large", 4_000_000)
        assert client.runs() == []
        assert disk.files == before
        run = create(client, "small")
        with run.join(lease=60.0) as worker:
            worker.step(ones())
            state = run.state_dict()
            disk.fill()
            # All that steps need has been there since the run was created.
            for step in range(2, 12):
                assert worker.step(ones()).step == step
            params = run.pull()
            files = disk.files
            with pytest.raises(stepd.ResourceExhausted, match="no room"):
                run.add_param_group(stepd.ParamGroup(ones(name="more")))
            with pytest.raises(stepd.ResourceExhausted, match="no room"):
                run.load_state_dict(state)
            with pytest.raises(stepd.ResourceExhausted, match="no room"):
                create(client, "another")
            assert disk.files == files
            assert [info.name for info in client.runs()] == ["small"]
            for name, value in run.pull().items():
                np.testing.assert_array_equal(value, params[name])
            # A shard that starts on a full disk finds its runs.
            fleet.shards[1].kill()
            assert worker.step(ones()).step == 12
            disk.empty()
            run.load_state_dict(state)
            run.add_param_group(stepd.ParamGroup(ones(name="more")))
            result = worker.step(ones() | ones(name="more"))
            assert result.step == 13
            assert result.params.keys() == {"w", "more"}
            create(client, "another").delete()


def test_with_little_room_a_change_is_made_or_refused(start: Callable[..., Fleet], disk: SmallDisk) -> None:
    """Page by page: room is found for what is large, and then not for the last small file."""
    few = 5_000
    fleet = start(1, data_dirs={"shard-0": disk.path})
    with stepd.connect(fleet.target, retry_for=120.0) as client, ThreadPoolExecutor(1) as background:
        run = create(client, "run", few)
        with run.join(lease=120.0) as worker:
            worker.step(ones(few))
            state = run.state_dict()
            worker.step(ones(few))
            changes: list[Callable[[], None]] = [
                lambda: create(client, "another", few).delete(),
                lambda: run.load_state_dict(state),
                lambda: run.add_param_group(stepd.ParamGroup(ones(few, "more"))),
            ]
            for change in changes:
                disk.fill()
                under_way, pages, params, refused = background.submit(change), 0, run.pull().keys(), 0
                while True:
                    # What has been decided waits for more room; everything else is answered at once.
                    wait([under_way], 1.0)
                    if not under_way.done():
                        pages += 1
                        disk.leave(pages * PAGE)
                        continue
                    if (error := under_way.exception()) is None:
                        break
                    assert isinstance(error, stepd.ResourceExhausted), error
                    assert "room" in str(error)
                    assert run.pull().keys() == params
                    refused += 1
                    pages += 1
                    disk.leave(pages * PAGE)
                    under_way = background.submit(change)
                assert refused
            assert [info.name for info in client.runs()] == ["run"]
            result = worker.step(ones(few) | ones(few, "more"))
            assert result.step == 3
            assert result.params.keys() == {"w", "more"}


def test_a_coordinator_without_room_says_so_and_goes_on(
    start: Callable[..., Fleet], disk: SmallDisk, tmp_path: Path
) -> None:
    fleet = start(1, data_dirs={"coordinator": disk.path})
    with stepd.connect(fleet.target, retry_for=60.0) as client:
        run = create(client, "run", workers=2)
        with Trainees(tmp_path, fleet.target, "run", retry_for=60.0) as trainees:
            trainees.start(0)
            trainees.wait(lambda: len(run.info().workers) == 1, "one has joined")
            disk.fill()
            with pytest.raises(stepd.ResourceExhausted, match="cannot write down"):
                run.join()
            assert [worker.rank for worker in run.info().workers] == [0]
            with pytest.raises(stepd.ResourceExhausted, match="cannot write down"):
                create(client, "another")
            with pytest.raises(stepd.ResourceExhausted, match="cannot write down"):
                run.set_lr(0.5)
            assert run.get_lr() == [0.1]
            assert [info.name for info in client.runs()] == ["run"]
            disk.empty()
            begin = tmp_path / "begin"
            (second,) = trainees.start(1, begin=str(begin))
            trainees.wait(lambda: second.all("pulled"), "the other one has joined")
            disk.fill()
            # All that decisions need has been there since the run was created.
            begin.touch()
            trainees.await_steps(3)
            for _ in range(2):
                fleet.coordinator.kill()
                trainees.await_steps(3)
            disk.empty()
            run.set_lr(0.5)
            trainees.await_steps(3)
            trainees.finish()
            for worker in trainees.workers:
                check_order(worker.steps)
                assert worker.steps[-1]["lr"] == [0.5]
