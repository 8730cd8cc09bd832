"""Many known cases as the groups of one run, each with a rule, a schedule and a clip of its own: a step is one of all.

Cases that are trained one by one take minutes, and nearly all of it is the calls of their steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

import numpy as np
import pytest

import stepd
from tests.reference.as_stepd import clip, schedule
from tests.reference.cases import Arrays, Case, initial

T = TypeVar("T")


class Together:
    """Cases of one dtype, none of them with groups.

    Attributes:
        cases: in the order of their groups.
    """

    def __init__(self, cases: Iterable[Case]) -> None:
        self.cases = list(cases)
        # Not a case's name: rules look for "bias" and "norm" in the names of parameters.
        self._prefixes = {case.name: f"{index}/" for index, case in enumerate(self.cases)}

    def group(self, case: Case, params: Mapping[str, np.ndarray] | None = None) -> stepd.ParamGroup:
        """Its group.

        Args:
            params: to begin with; None: those that the case begins with.
        """
        prefix, options = self._prefixes[case.name], dict(case.options)
        if "exclude" in options:
            options["exclude"] = tuple(g if g.startswith("*") else prefix + g for g in options["exclude"])
        return stepd.ParamGroup(
            {prefix + name: value for name, value in (params or initial(case)).items()},
            optimizer=getattr(stepd, case.rule)(**options),
            schedule=schedule(case.schedule),
            clip=clip(case),
        )

    def names(self, case: Case) -> list[str]:
        return [self._prefixes[case.name] + name for name in case.shapes]

    def own(self, case: Case, of_all: Mapping[str, T]) -> dict[str, T]:
        """What belongs to its parameters, by their names in the case."""
        return {name: of_all[full] for name, full in zip(case.shapes, self.names(case), strict=True)}

    def all(self, of: Callable[[Case], Mapping[str, T]]) -> dict[str, T]:
        """The same of every case, by the names of the run's parameters."""
        return {self._prefixes[case.name] + name: value for case in self.cases for name, value in of(case).items()}

    def train(
        self,
        run: stepd.Run,
        steps: range,
        gradient: Callable[[Case, int, Arrays], Arrays],
        note: Callable[[stepd.StepResult], object] = lambda _: None,
    ) -> Arrays:
        """Where the run's parameters are after these steps.

        Args:
            note: told of every result.
        """

        def contribution(step: int, params: Mapping[str, np.ndarray]) -> Arrays:
            return self.all(lambda case: gradient(case, step, self.own(case, params)))

        with run.join() as worker:
            params = dict(worker.pull())
            for step in steps:
                result = worker.step(contribution(step, params))
                params = dict(result.params)
                note(result)
        return params

    # --- States of the optimizer, in torch's form -------------------------------------------------------------------

    def joined(self, states: Callable[[Case], dict[str, Any]]) -> dict[str, Any]:
        """The state of the run: those of all cases, one group each."""
        entries: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        at = 0
        for case in self.cases:
            state = states(case)
            entries |= {at + index: entry for index, entry in state["state"].items()}
            (group,) = state["param_groups"]
            groups.append(group | {"params": [at + index for index in group["params"]]})
            at += len(case.shapes)
        return {"state": entries, "param_groups": groups}

    def part(self, case: Case, state: dict[str, Any]) -> dict[str, Any]:
        """A case's own of the state of the run."""
        group = dict(state["param_groups"][self.cases.index(case)])
        assert group.pop("param_names") == self.names(case)
        at = sum(len(before.shapes) for before in self.cases[: self.cases.index(case)])
        own = {index: state["state"][at + index] for index in range(len(case.shapes)) if at + index in state["state"]}
        return {"state": own, "param_groups": [group | {"params": [index - at for index in group["params"]]}]}


def once(make: Callable[..., T]) -> Callable[..., T]:
    """A function that does its work once for the same arguments.

    Where that fails, all tests of these cases fail for the same reason, without trying again.
    """

    @cache
    def outcome(*arguments: Any) -> tuple[T | None, BaseException | None]:
        try:
            return make(*arguments), None
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 (raised again, for every case)
            return None, error

    def made(*arguments: Any) -> T:
        found, error = outcome(*arguments)
        if error is not None:
            raise error
        return found  # type: ignore[return-value]  # it was made

    return made
