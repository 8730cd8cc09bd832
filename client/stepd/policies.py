"""How gradients are limited (ClipNorm, ClipValue, Clip), gathered (Sync, Async, BoundedStaleness) and sent (Wire)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from stepd import encodings
from stepd.limits import GRACE_S_MAX, STALENESS_MAX, WORKERS_MAX
from stepd.settings import MAY_BE_INFINITE, Settings, refuse

# What torch adds to the norm, so that a gradient of zeros is not divided by zero.
NORM_EPS: Final = 1e-6

OnNonfinite: TypeAlias = Literal["skip", "quarantine", "error"]
Missing: TypeAlias = Literal["skip", "error"]
Reduce: TypeAlias = Literal["mean", "sum", "weighted"]
Damping: TypeAlias = Literal["inverse"]


@dataclass(frozen=True)
class ClipNorm(Settings):
    """Limits the norm of the aggregated gradient, taken over all parameters and shards as one vector.

    Attributes:
        max_norm: the limit. To read the norm without a limit, give no clip: every step reports it.
        norm_type: the p of the p-norm; may be infinity.
    """

    max_norm: float
    norm_type: float = field(default=2.0, metadata=MAY_BE_INFINITE)

    def check(self) -> None:
        super().check()
        self.require(self.max_norm > 0, "max_norm", self.max_norm, "> 0")
        self.require(self.norm_type > 0, "norm_type", self.norm_type, "> 0")

    def scale(self, norm: float) -> float:
        """What a gradient of this norm is multiplied by, as in torch."""
        return min(1.0, self.max_norm / (norm + NORM_EPS))


@dataclass(frozen=True)
class ClipValue(Settings):
    """Limits every element of the aggregated gradient to [-max_value, max_value]."""

    max_value: float

    def check(self) -> None:
        super().check()
        self.require(self.max_value > 0, "max_value", self.max_value, "> 0")


@dataclass(frozen=True, init=False)
class Clip(Settings):
    """Both limits: the value first, then the norm.

    Args:
        norm: a ClipNorm, or its max_norm.
        value: a ClipValue, or its max_value.
    """

    norm: ClipNorm | None
    value: ClipValue | None

    def __init__(self, norm: ClipNorm | float | None = None, value: ClipValue | float | None = None) -> None:
        norm_limit = norm if norm is None or isinstance(norm, ClipNorm) else ClipNorm(norm)
        value_limit = value if value is None or isinstance(value, ClipValue) else ClipValue(value)
        object.__setattr__(self, "norm", norm_limit)
        object.__setattr__(self, "value", value_limit)
        self.__post_init__()

    def check(self) -> None:
        super().check()
        self.require(self.norm is not None or self.value is not None, "norm", self.norm, "given if value is not")

    @classmethod
    def of(cls, clip: object) -> Clip:
        """Any of the three forms as the one that holds both limits."""
        if isinstance(clip, ClipNorm):
            return cls(norm=clip)
        elif isinstance(clip, ClipValue):
            return cls(value=clip)
        elif not isinstance(clip, Clip):
            refuse("clip", "clip", clip, "ClipNorm, ClipValue, Clip or None")
        return clip

    def simplest(self) -> AnyClip:
        """The form that a user would write."""
        if self.norm is not None and self.value is not None:
            return self
        limit = self.norm or self.value
        assert limit is not None  # check has refused it
        return limit


AnyClip: TypeAlias = ClipNorm | ClipValue | Clip


@dataclass(frozen=True)
class Sync(Settings):
    """Synchronous rounds: a step takes one contribution from every worker.

    Attributes:
        workers: a step takes exactly so many. None: whoever has joined.
        quorum: a round is closed `grace` seconds after so many contributions have arrived: one that has not begun to
            arrive by then is late. A round begins with as many workers, be there fewer than `workers` or more.
            None: every worker is awaited.
        grace: seconds. 0 without a quorum.
        reduce: "mean" over contributions, their "sum", or "weighted": sum of weight * gradient over sum of weights.
        deterministic: contributions are added in the order of ranks, so that the bits depend neither on the order of
            arrival nor on the number of shards. Not with a quorum, where arrival says who takes part.
    """

    workers: int | None = None
    quorum: int | None = None
    grace: float = 0.0
    reduce: Reduce = "mean"
    deterministic: bool = False

    def check(self) -> None:
        super().check()
        if self.workers is not None:
            self.require(1 <= self.workers <= WORKERS_MAX, "workers", self.workers, f"from 1 to {WORKERS_MAX}, or None")
        if self.quorum is not None:
            most = self.workers or WORKERS_MAX
            self.require(1 <= self.quorum <= most, "quorum", self.quorum, f"from 1 to {most}, or None")
            self.require(
                not self.deterministic, "deterministic", True, "False with a quorum, where arrival says who takes part"
            )
        self.require(0 <= self.grace <= GRACE_S_MAX, "grace", self.grace, f"from 0 to {GRACE_S_MAX} seconds")
        self.require(self.quorum is not None or self.grace == 0, "grace", self.grace, "0 without a quorum")


@dataclass(frozen=True)
class Async(Settings):
    """Every contribution is a step of its own, in the order in which they come: nobody waits for anybody.

    Its staleness is the number of steps that were applied since the parameters that it was computed from: those that
    the worker pulled last.

    Attributes:
        max_staleness: a contribution that is staler gets the receipt "stale" and changes nothing. None: no limit.
        damping: "inverse" multiplies a gradient by 1 / (1 + staleness), before its norm is taken.
    """

    max_staleness: int | None = None
    damping: Damping | None = None

    def check(self) -> None:
        super().check()
        if self.max_staleness is not None:
            self.require(
                0 <= self.max_staleness <= STALENESS_MAX,
                "max_staleness",
                self.max_staleness,
                f"from 0 to {STALENESS_MAX}, or None",
            )


@dataclass(frozen=True)
class BoundedStaleness(Settings):
    """Every contribution is a step of its own, but nobody runs ahead of the slowest: a contribution waits until its
    worker has had less than `staleness` steps more than the worker that has had the fewest.

    Attributes:
        workers: of exactly so many. If one is lost, the others wait for another to take its place.
        staleness: of steps. 0 as well as 1: nobody contributes again before everybody has.
    """

    workers: int
    staleness: int

    def check(self) -> None:
        super().check()
        self.require(1 <= self.workers <= WORKERS_MAX, "workers", self.workers, f"from 1 to {WORKERS_MAX}")
        self.require(0 <= self.staleness <= STALENESS_MAX, "staleness", self.staleness, f"from 0 to {STALENESS_MAX}")


AnySync: TypeAlias = Sync | Async | BoundedStaleness


@dataclass(frozen=True)
class Wire(Settings):
    """How float32 runs travel. Norms, limits and rules see what arrives; the masters on the servers stay float32.

    Attributes:
        gradients: "float32", "bfloat16", "float16", "int8" or "topk:F": the fraction F of each chunk that is largest.
            What the last two leave out is added to the worker's next gradient.
        parameters: "float32", "bfloat16" or "float16", for workers. `run.pull` always gives all bits.
    """

    gradients: str = "float32"
    parameters: str = "float32"

    def check(self) -> None:
        super().check()
        encodings.of_gradients(self.gradients)
        encodings.of_parameters(self.parameters)

    @property
    def plain(self) -> bool:
        """Nothing is encoded."""
        return self == Wire()
