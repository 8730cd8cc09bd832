"""What the parameters must be: a plain computation, on whole tensors, of what was decided over what was sent.

It knows nothing of shards, rounds, attempts or time. The rules are the library's own; tests of their numbers are
elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from stepd.definitions import RunSpec
from stepd.policies import Clip, Reduce
from stepd.rules import Block, Moment
from stepd_server.coordinator import decision as decisions
from stepd_server.coordinator.policy import policy_of
from stepd_server.coordinator.vocabulary import Decision, Outcome
from tests.simulator.sent import Contradiction, Contributions, Kept, keys_of

Array = np.ndarray[Any, Any]


class Model:
    """The run as it must be.

    Attributes:
        versions: by step, each parameter's bytes; also of those that a group has brought there.
        averages: the same of the averages.
    """

    def __init__(self, spec: RunSpec, masters: Iterable[Array]) -> None:
        self.spec = spec
        # Since the last decision.
        self._specs = [spec]
        # How contributions that are taken together become one: also in a round that the policy changes in.
        self._reduce: Reduce = "mean"
        self._tensors: list[_Tensor] = []
        self._averaged = 0
        self.versions: list[dict[str, bytes]] = []
        self.averages: list[dict[str, bytes]] = []
        self.extend(spec, masters)

    def _note_version(self) -> None:
        self.versions.append({tensor.name: tensor.p.tobytes() for tensor in self._tensors})
        self.averages.append(
            {tensor.name: (tensor.average if self._averaged else tensor.p).tobytes() for tensor in self._tensors}
        )

    # --- What the owner changes -----------------------------------------------------------------------------------

    def change(self, spec: RunSpec) -> None:
        """Rates and limits, from the next decision on."""
        self.spec = spec
        self._specs.append(spec)
        policy = policy_of(spec.sync)
        self._reduce = self._reduce if policy.in_turn else policy.reduce

    def extend(self, spec: RunSpec, masters: Iterable[Array]) -> None:
        """Further parameters, which are there from the present version on."""
        self.change(spec)
        first = len(self._tensors)
        self._tensors += [_Tensor(spec, first + i, master) for i, master in enumerate(masters)]
        del self.versions[-1:], self.averages[-1:]
        self._note_version()

    def load(self, spec: RunSpec, state: Mapping[int, Kept]) -> None:
        """A state of the optimizer in place of the one there is."""
        self.change(spec)
        for id_, kept in state.items():
            self._tensors[id_].take(kept, spec)

    # --- Steps ----------------------------------------------------------------------------------------------------

    def apply(self, decision: Decision, contributions: Contributions) -> None:
        """One decided round."""
        self._decide(decision, contributions)
        self._specs = [self.spec]

    def _decide(self, decision: Decision, contributions: Contributions) -> None:
        if decision.outcome is not Outcome.APPLIED:
            return
        reduce: Reduce = "sum" if decision.counted else self._reduce
        held = [(*contributions.tensors(key), scale) for key, scale in keys_of(decision)]
        divisor = {"mean": float(len(held)), "sum": 1.0, "weighted": math.fsum(weight for _, weight, _ in held)}
        total: dict[int, Array] = {}
        for tensors, weight, scale in held:
            factor = weight if reduce == "weighted" else scale
            for id_, tensor in tensors.items():
                part = tensor * factor if factor != 1.0 else tensor
                total[id_] = total[id_] + part if id_ in total else part.copy()
        norms = {one.parameter: (one.first, one.second) for one in decision.norms}
        self._check_norm(decision, total, divisor[reduce])
        self._check_rates(decision)
        for id_, tensor in total.items():
            group = self.spec.parameters[id_].group
            rates = decision.groups[group]
            gradient = self._gradient(tensor, divisor[reduce], rates.clip_scale * decision.clip_scale)
            self._tensors[id_].update(gradient, rates.lr, norms.get(id_, (math.nan, math.nan)))
        self._average(decision.step)
        self._note_version()

    def _average(self, step: int) -> None:
        average = self.spec.average
        if average is None or not average.counts(step):
            return
        share = average.share(self._averaged)
        for tensor in self._tensors:
            tensor.average = tensor.p.copy() if share == 1.0 else tensor.average + (tensor.p - tensor.average) * share
        self._averaged += 1

    def _gradient(self, total: Array, divisor: float, scale: float) -> Array:
        """Rounded as often as on shards: dividing costs a rounding of its own only if values are limited."""
        clip = Clip.of(self.spec.clip) if self.spec.clip else None
        if clip is None or clip.value is None:
            return np.asarray(total * (scale / divisor))
        limit = clip.value.max_value
        return np.asarray(np.clip(total * (1.0 / divisor), -limit, limit) * scale)

    def _check_norm(self, decision: Decision, total: Mapping[int, Array], divisor: float) -> None:
        squares = math.fsum(float(x) ** 2 for t in total.values() for x in self._gradient(t, divisor, 1.0))
        if not math.isclose(decision.grad_norm, math.sqrt(squares), rel_tol=1e-5, abs_tol=1e-12):
            raise Contradiction(f"round {decision.id}: the norm is {math.sqrt(squares)}, not {decision.grad_norm}")

    def _check_rates(self, decision: Decision) -> None:
        """They are those that were recorded last; a decision that awaited norms keeps those from before."""
        rates = tuple(group.lr for group in decision.groups)
        known = [decisions.rates(self.spec, decision.step_before)]
        if decision.norms:
            known += [decisions.rates(spec, decision.step_before) for spec in self._specs]
        if rates not in known:
            raise Contradiction(f"round {decision.id}: the rates are {rates}, not {known[0]}")


class _Tensor:
    """One parameter with what its rule keeps."""

    def __init__(self, spec: RunSpec, id_: int, master: Array) -> None:
        parameter = spec.parameters[id_]
        self.name = parameter.name
        self._group = parameter.group
        self._rule = spec.groups[parameter.group].optimizer
        self.p = master.reshape(-1).copy()
        self.average = self.p.copy()
        self._buffers = tuple(
            self.p.copy() if buffer.initial == "parameter" else np.full(self.p.size, buffer.initial, self.p.dtype)
            for buffer in self._rule.buffers()
        )
        self._scalars = tuple(scalar.initial for scalar in self._rule.scalars())
        self._updates = 0

    def take(self, kept: Kept, spec: RunSpec) -> None:
        self._rule = spec.groups[self._group].optimizer
        self._buffers, self._scalars, self._updates = tuple(kept.buffers), kept.scalars, kept.updates

    def update(self, gradient: Array, lr: float, norms: tuple[float, float]) -> None:
        self._updates += 1
        at = Moment(self._updates, lr, self._scalars, self.name, norms)
        if self.p.size:
            scratch = tuple(np.empty_like(self.p) for _ in range(self._rule.scratch))
            with np.errstate(all="ignore"):
                self._rule.update(Block(self.p, gradient, self._buffers, scratch), at)
        self._scalars = self._rule.advance(at)
