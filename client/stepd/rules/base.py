"""What an update rule is.

A rule is a frozen dataclass: its fields are the hyperparameters (torch's names and defaults where torch has the rule),
`buffers` and `scalars` say what it keeps, and `update` applies it in place to one block of consecutive elements.
The server decides which blocks, in which order and on which memory; a rule knows nothing of shards, runs or files.
Spec, state and formula stand together in one file because they change together.

How far a rule looks (`Rule.reach`) says what a server must do for it, in each step:

ELEMENTWISE: every block by itself.
    for each block:  rule.update(block, at)

LAYERWISE: two passes. The first finds norms of whole tensors wherever their blocks lie, and changes nothing.
    for each block:  a, b = rule.measure(block, at); add the exact sums of a * a and of b * b to the tensor's
    for each block, its gradient made anew:  rule.update(block, at._replace(norms=(sqrt(sum of a * a), ...)))

WHOLE: a tensor stays on one shard and is one block, with `shape` set. Its buffers have sizes of their own
    (`Buffer.size(shape)`, which may be 0), scratch arrays have the size of the tensor.
    Refuse at the start what does not suit: rule.check_parameter(name, shape), and tensors larger than a shard can hold.

A rule with scalars keeps a few numbers for each parameter besides the count of its updates. `at.scalars` are those
from before the step for all of its blocks; `rule.advance(at)` gives those after it. Being pure, it gives every shard
that holds a part of the tensor the same numbers, however the tensor is cut.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np

from stepd.errors import InvalidArgument
from stepd.settings import Settings

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]
Shape: TypeAlias = tuple[int, ...]


class Reach(Enum):
    """How much of a tensor a rule must see to change one of its elements."""

    ELEMENTWISE = "elementwise"
    LAYERWISE = "layerwise"
    WHOLE = "whole"


def _like_the_parameter(shape: Shape) -> Shape:
    return shape


@dataclass(frozen=True)
class Buffer:
    """An array that a rule keeps for every parameter, of the master's dtype.

    Attributes:
        name: torch's name for it in `Optimizer.state`.
        initial: its value before the first step; "parameter": the parameter's own values.
        shape: its shape for a parameter of a given shape, None if such a parameter has none. Of elementwise and
            layerwise rules it is the parameter's.
    """

    name: str
    initial: float | Literal["parameter"] = 0.0
    shape: Callable[[Shape], Shape | None] = _like_the_parameter

    def size(self, shape: Shape) -> int:
        """Elements of the buffer of a parameter of this shape."""
        own = self.shape(shape)
        return 0 if own is None else math.prod(own)


@dataclass(frozen=True)
class Scalar:
    """A number that a rule keeps for every parameter, as a double.

    Attributes:
        name: torch's name for it in `Optimizer.state`.
        initial: its value before the first step.
    """

    name: str
    initial: float


class Moment(NamedTuple):
    """When an update happens, and to which parameter.

    Attributes:
        step: the parameter's own count of updates, this one included: 1 for the first.
        lr: the group's rate in this step.
        scalars: in the order of `Rule.scalars`, from before this step.
        name: of the parameter; only layerwise rules ask.
        norms: of the whole tensor, what `Rule.measure` asked for; only layerwise rules ask, and only in `update`.
    """

    step: int
    lr: float
    scalars: tuple[float, ...] = ()
    name: str = ""
    norms: tuple[float, float] = (math.nan, math.nan)


class Block(NamedTuple):
    """Consecutive elements with everything an update needs; all arrays are 1-d, of one length and dtype.

    Attributes:
        p: the parameters, changed in place.
        g: the gradient, already averaged and clipped. It is the rule's to overwrite.
        buffers: in the order of `Rule.buffers`, changed in place. Of rules of reach WHOLE in sizes of their own.
        scratch: `Rule.scratch` arrays whose content means nothing.
        shape: of the tensor, of which the block is all; only for rules of reach WHOLE.
    """

    p: Array
    g: Array
    buffers: tuple[Array, ...]
    scratch: tuple[Array, ...]
    shape: Shape = ()


@dataclass(frozen=True)
class Rule(Settings, ABC):
    """Base of all rules. A subclass registers itself under its class name."""

    # How many scratch arrays `update` wants.
    scratch: ClassVar[int] = 1
    reach: ClassVar[Reach] = Reach.ELEMENTWISE
    # Whether other weights than those being trained are meant for evaluation: see `average`.
    averages: ClassVar[bool] = False
    registry: ClassVar[dict[str, type[Rule]]] = {}

    lr: float

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        Rule.registry[cls.__name__] = cls

    def check(self) -> None:
        super().check()
        self.require_not_negative("lr")

    @abstractmethod
    def buffers(self) -> tuple[Buffer, ...]:
        """What is kept for each element under these hyperparameters."""

    def scalars(self) -> tuple[Scalar, ...]:
        """What is kept for each parameter besides the count of its updates."""
        return ()

    def check_parameter(self, name: str, shape: Shape) -> None:
        """Raise InvalidArgument if the rule cannot update a tensor of this shape."""

    def measure(self, block: Block, at: Moment) -> tuple[Array, Array]:
        """Of layerwise rules: two arrays whose 2-norms over the whole tensor `update` wants as `at.norms`.

        Parameters and buffers stay as they are; the gradient and the scratch may be overwritten, and may be the answer.
        """
        raise NotImplementedError(f"{type(self).__name__} is not layerwise")

    @abstractmethod
    def update(self, block: Block, at: Moment) -> None:
        """Apply one step to a block, in place and without allocating arrays."""

    def advance(self, at: Moment) -> tuple[float, ...]:
        """The parameter's scalars after the step `at`, whose own are those from before it. Pure."""
        return at.scalars

    def average(self, block: Block, step: int, out: Array) -> None:
        """Write the weights for evaluation into `out`. Changes nothing else, `block.g` and scratch are not used.

        Args:
            step: how many updates the parameter has had; may be 0.
        """
        out[...] = block.p

    def cycled(self, momentum: float) -> Rule:
        """The rule with its momentum, or the first of its betas, set to what a schedule says (`Schedule.momentum`).

        Raises:
            InvalidArgument: the rule has neither.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if "betas" in values:
            return type(self)(**values | {"betas": (momentum, *values["betas"][1:])})
        elif "momentum" in values:
            return type(self)(**values | {"momentum": momentum})
        name = type(self).__name__
        raise InvalidArgument(
            f"{name} has neither momentum nor betas for the schedule to cycle: "
            "use a rule that has, or give the schedule cycle_momentum=False",
            thing=name,
            field="momentum",
            expected="a rule with momentum or betas",
            given=name,
        )


def turn_and_decay(block: Block, *, maximize: bool, weight_decay: float) -> None:
    """What most rules of torch begin with: the gradient's sign turned, weight_decay * p added. Uses scratch[0]."""
    g, t = block.g, block.scratch[0]
    if maximize:
        np.negative(g, out=g)
    if weight_decay:
        np.multiply(block.p, weight_decay, out=t)
        g += t


def blend(average: Array, g: Array, beta: float, t: Array) -> None:
    """average = beta * average + (1 - beta) * g, keeping g."""
    np.multiply(g, 1 - beta, out=t)
    average *= beta
    average += t


def blend_square(average: Array, g: Array, beta: float, t: Array) -> None:
    """average = beta * average + (1 - beta) * g^2, keeping g."""
    np.multiply(g, g, out=t)
    t *= 1 - beta
    average *= beta
    average += t
