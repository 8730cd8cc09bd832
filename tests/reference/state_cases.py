"""Cases of an optimizer's state: what torch 2.13 keeps after BEFORE steps, and where it gets in AFTER further ones.

Every rule of torch, in both dtypes; Muon without its cast to bfloat16. Parameters have different counts of updates
(`gaps` of cases.py), and one has a gradient only in the second half.

    saved = stored_state("adamw-float32")
    saved.state_dict               # as torch saved it, with arrays for tensors
    saved.params, saved.final      # when it was saved, and AFTER steps later
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .cases import CASES, Arrays, Case, gradient, stored_numbers
from .rule_cases import TORCH_CASES

STATE_STORED = Path(__file__).with_name("torch_states_2_13.npz")
BEFORE = AFTER = 20
# The one that is late, of scalars or of matrices.
LATE = ("scale", "row")

STATE_CASES = {
    name: replace(case, gaps=True, stored=STATE_STORED)
    for name, case in (CASES | TORCH_CASES).items()
    if not (case.schedule or case.clip or case.groups)
}


class Saved(NamedTuple):
    """What torch made of a case."""

    state_dict: dict[str, Any]
    params: Arrays
    final: Arrays


def state_gradient(case: Case, step: int, params: Arrays) -> Arrays:
    grads = gradient(case, step, params)
    return {name: grad for name, grad in grads.items() if step >= BEFORE or name not in LATE}


def pack(case: Case, saved: Saved) -> dict[str, np.ndarray]:
    """As it is stored: few arrays, and a text that says what is in them."""
    entries = [(i, key, value) for i, entry in saved.state_dict["state"].items() for key, value in entry.items()]
    form = {
        "state": [(i, key, value.dtype.name, value.shape) for i, key, value in entries],
        "param_groups": saved.state_dict["param_groups"],
    }
    flat = [np.asarray(value, np.float64).reshape(-1) for *_, value in entries]
    return {
        f"{case.name}/form": np.frombuffer(json.dumps(form).encode(), np.uint8),
        f"{case.name}/state": np.concatenate([*flat, np.empty(0)]).astype(case.dtype),
        f"{case.name}/params": np.concatenate([saved.params[name].reshape(-1) for name in case.shapes]),
        f"{case.name}/final": np.concatenate([saved.final[name].reshape(-1) for name in case.shapes]),
    }


def stored_state(case: Case) -> Saved:
    stored = stored_numbers(STATE_STORED)
    form = json.loads(stored[f"{case.name}/form"].tobytes())
    values, at = stored[f"{case.name}/state"], 0
    state: dict[int, dict[str, np.ndarray]] = {}
    for index, key, dtype, shape in form["state"]:
        count = int(np.prod(shape))
        state.setdefault(index, {})[key] = values[at : at + count].astype(dtype).reshape(shape)
        at += count
    return Saved(
        {"state": state, "param_groups": form["param_groups"]},
        _by_name(case, stored[f"{case.name}/params"]),
        _by_name(case, stored[f"{case.name}/final"]),
    )


def _by_name(case: Case, flat: np.ndarray) -> Arrays:
    arrays, at = {}, 0
    for name, shape in case.shapes.items():
        count = int(np.prod(shape))
        arrays[name] = flat[at : at + count].reshape(shape)
        at += count
    return arrays
