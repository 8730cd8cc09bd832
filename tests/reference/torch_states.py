"""torch's side of state_cases.py: trains, saves, loads, goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.reference.cases import Arrays, Case, initial
from tests.reference.state_cases import AFTER, BEFORE, STATE_CASES, STATE_STORED, Saved, pack, state_gradient
from tests.reference.torch_muon import uncast_muon


class Training:
    """One optimizer of torch on the parameters of a case."""

    def __init__(self, case: Case, params: Arrays) -> None:
        self.case = case
        self.params = {name: torch.nn.Parameter(torch.from_numpy(np.array(value))) for name, value in params.items()}
        self.optimizer = getattr(torch.optim, case.rule)(list(self.params.values()), **case.options)

    def train(self, steps: range) -> Arrays:
        """Where the parameters are after these steps."""
        for step in steps:
            grads = state_gradient(self.case, step, self.values())
            for name, param in self.params.items():
                param.grad = torch.from_numpy(grads[name]) if name in grads else None
            with uncast_muon():
                self.optimizer.step()
        return self.values()

    def values(self) -> Arrays:
        return {name: param.detach().numpy().copy() for name, param in self.params.items()}

    def state_dict(self) -> dict[str, Any]:
        """As torch has it, with arrays for tensors; later steps do not change them."""
        saved = self.optimizer.state_dict()
        state = {i: {key: value.numpy().copy() for key, value in e.items()} for i, e in saved["state"].items()}
        return {"state": state, "param_groups": saved["param_groups"]}


def state_numbers() -> tuple[Path, dict[str, np.ndarray]]:
    stored: dict[str, np.ndarray] = {}
    for case in STATE_CASES.values():
        training = Training(case, initial(case))
        params = training.train(range(BEFORE))
        state = training.state_dict()
        stored |= pack(case, Saved(state, params, training.train(range(BEFORE, BEFORE + AFTER))))
    return STATE_STORED, stored
