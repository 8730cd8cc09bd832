"""What a coordinator has to tell to whoever scrapes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from stepd.limits import SCRAPED_WORKERS_MAX
from stepd_server.coordinator.run import Run
from stepd_server.coordinator.tally import REASONS
from stepd_server.metrics import catalogue
from stepd_server.metrics.catalogue import Sample

# What can become of a contribution, as in a receipt.
STATUSES = ("accepted", "duplicate", "late", "stale", "quarantined")


def samples(runs: Iterable[Run]) -> Iterator[Sample]:
    """Of all runs. Those that were deleted are not among them, and so their series end."""
    for run in runs:
        yield from _of_run(run)
        yield from _of_workers(run)


def _of_run(run: Run) -> Iterator[Sample]:
    name, state, tally = run.name, run.state(), run.tally
    yield Sample(catalogue.STEPS, (name,), state.step)
    yield Sample(catalogue.WORKERS, (name,), len(state.workers))
    yield Sample(catalogue.CLIPPED, (name,), tally.clipped)
    if state.HasField("last_decision"):
        yield Sample(catalogue.GRAD_NORM, (name,), state.last_decision.grad_norm)
    for group, rate in enumerate(state.rates):
        yield Sample(catalogue.LEARNING_RATE, (name, str(group)), rate)
    # Each from zero on: of a series that begins at one Prometheus does not see the first.
    for reason in REASONS:
        yield Sample(catalogue.SKIPPED, (name, reason), tally.skipped[reason])
    for status in STATUSES:
        yield Sample(catalogue.CONTRIBUTIONS, (name, status), tally.contributions[status])


def _of_workers(run: Run) -> Iterator[Sample]:
    tally = run.tally
    for rank, worker in islice(sorted(tally.workers.items()), SCRAPED_WORKERS_MAX):
        labels = (run.name, str(rank))
        yield Sample(catalogue.WORKER_LAG, labels, tally.lag_of(worker))
        yield Sample(catalogue.WORKER_WAIT, labels, worker.waited)
        for status in STATUSES:
            yield Sample(catalogue.WORKER_CONTRIBUTIONS, (*labels, status), worker.contributions[status])
