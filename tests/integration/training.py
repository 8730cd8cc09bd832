"""Workers in threads of the test's process, each with a connection of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np

import stepd
from tests.patience import PATIENCE_S

T = TypeVar("T")
Arrays = dict[str, np.ndarray]
Gradient = Callable[[int, int, Arrays], Arrays]  # worker, step, parameters


def at_once(work: Callable[[int], T], count: int) -> list[T]:
    """Do the same in `count` threads; the results by thread, or the first error."""
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = work(index)
        except BaseException as error:  # noqa: BLE001 (raised in the test's own thread)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a worker hangs"
    return [results[index] for index in range(count)]


def train(target: str, run: str, gradient: Gradient, *, workers: int, steps: int) -> list[list[stepd.StepResult]]:
    """Train with so many workers; every worker's results."""

    def work(rank: int) -> list[stepd.StepResult]:
        with stepd.connect(target, retry_for=PATIENCE_S) as client, client.run(run).join(rank) as worker:
            params, results = worker.pull(), []
            for step in range(steps):
                result = worker.step(gradient(rank, step, params))
                params = result.params
                results.append(result)
            return results

    return at_once(work, workers)
