"""Makes the numbers of torch_averages_2_13.npz; run by torch_numbers.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.nn import Parameter, ParameterList
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.reference.averages import AVERAGED_CASES, AVERAGED_STEPS, AVERAGES, AVERAGES_STORED, counts
from tests.reference.cases import Case, sample


def average_numbers(run: Callable[[Case, Callable[..., None]], Any]) -> tuple[Path, dict[str, np.ndarray]]:
    """Where the numbers go, and the numbers. `run` trains a case and tells of every step."""
    stored: dict[str, np.ndarray] = {}
    for case in AVERAGED_CASES.values():
        run(case, _Averages(case, stored).after)
    return AVERAGES_STORED, stored


class _Averages:
    """All averages of one case."""

    def __init__(self, case: Case, stored: dict[str, np.ndarray]) -> None:
        self.case = case
        self.stored = stored
        self.models: dict[str, AveragedModel] = {}

    def after(self, step: int, params: dict[str, Parameter]) -> None:
        plain = ParameterList(params.values())
        for name, (kind, arguments) in AVERAGES.items():
            if name not in self.models:
                # Without a function it is the equal mean, by get_swa_avg_fn on the CPU.
                function = get_ema_multi_avg_fn(arguments["decay"]) if kind == "EMA" else None
                self.models[name] = AveragedModel(plain, multi_avg_fn=function)
            model = self.models[name]
            if counts(name, step):
                model.update_parameters(plain)
            if step in AVERAGED_STEPS:
                shown = model.module if model.n_averaged else plain
                parts = [sample(self.case, param.detach().numpy()) for param in shown]
                self.stored[f"{self.case.name}/{name}/{step}"] = np.concatenate(parts)
