"""Every metric by name. docs/metrics.md says of each where it comes from; a test holds the two together. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from stepd_server.metrics.durations import Durations

__all__ = ["Metric", "Sample"]


@dataclass(frozen=True)
class Metric:
    """One family of series.

    Attributes:
        labels: what tells its series apart.
        about: one line for whoever reads the scrape.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    about: str


class Sample(NamedTuple):
    """The value of one series now.

    Attributes:
        labels: values, in the order of the metric's labels.
        value: of a histogram: all that was counted.
    """

    metric: Metric
    labels: tuple[str, ...]
    value: float | Durations


# --- The coordinator's ------------------------------------------------------------------------------------------

STEPS: Final = Metric("stepd_steps_total", "counter", ("run",), "Steps applied.")
GRAD_NORM: Final = Metric("stepd_grad_norm", "gauge", ("run",), "Norm of the latest aggregated gradient.")
LEARNING_RATE: Final = Metric("stepd_learning_rate", "gauge", ("run", "group"), "Learning rate of the next step.")
CLIPPED: Final = Metric("stepd_clipped_steps_total", "counter", ("run",), "Steps whose gradient a norm has clipped.")
SKIPPED: Final = Metric(
    "stepd_skipped_steps_total", "counter", ("run", "reason"), "Rounds that ended without a step being applied."
)
WORKERS: Final = Metric("stepd_workers", "gauge", ("run",), "Workers that are members now.")
CONTRIBUTIONS: Final = Metric(
    "stepd_contributions_total", "counter", ("run", "status"), "Contributions by what became of them."
)
WORKER_CONTRIBUTIONS: Final = Metric(
    "stepd_worker_contributions_total",
    "counter",
    ("run", "rank", "status"),
    "Contributions of present members by what became of them.",
)
WORKER_LAG: Final = Metric(
    "stepd_worker_lag_steps", "gauge", ("run", "rank"), "Steps applied since a contribution of the worker was in one."
)
WORKER_WAIT: Final = Metric(
    "stepd_worker_wait_seconds_total",
    "counter",
    ("run", "rank"),
    "From the worker's contribution being whole to the decision of its round.",
)

# --- A shard's --------------------------------------------------------------------------------------------------

STEP_SECONDS: Final = Metric(
    "stepd_step_seconds", "histogram", ("run", "phase", "shard"), "How long each phase of a step took on a shard."
)
STATE_BYTES: Final = Metric(
    "stepd_state_bytes", "gauge", ("run", "kind", "shard"), "Memory of a run on a shard by what it holds."
)
BYTES: Final = Metric(
    "stepd_bytes_total",
    "counter",
    ("direction", "transport", "shard"),
    "Bytes of gradients, parameters and states that went in and out of a shard.",
)

# --- The supervisor's -------------------------------------------------------------------------------------------

UP: Final = Metric("stepd_up", "gauge", ("process",), "Whether a process of the fleet has answered this scrape.")

ALL: Final = (
    *(STEPS, GRAD_NORM, LEARNING_RATE, CLIPPED, SKIPPED, WORKERS, CONTRIBUTIONS),
    *(WORKER_CONTRIBUTIONS, WORKER_LAG, WORKER_WAIT),
    *(STEP_SECONDS, STATE_BYTES, BYTES, UP),
)
