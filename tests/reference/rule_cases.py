"""Cases of all rules beyond those of cases.py, each in both dtypes, as it is and with clipping and a cosine.

TORCH_CASES: rules of torch.optim. Their numbers are torch's.
    Muon is torch's own but for its cast to bfloat16, which is left out. What it gives with the cast stands beside it as
    "bfloat16" (`other_final`).
OTHER_CASES: rules that torch does not have. Their numbers are those of papers.py, in float64. Beside them stand, where
    there is one, the numbers of another library: "optax" or "schedulefree", and of the latter "average", too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .cases import SMALL, STEPS, TABLE, TOLERANCE, Case, rules_of_torch

TORCH_STORED = Path(__file__).with_name("torch_rules_2_13.npz")
OTHER_STORED = Path(__file__).with_name("other_rules.npz")

Rules = dict[str, tuple[str, dict[str, Any]]]
Shapes = dict[str, tuple[int, ...]]

# For rules that take matrices only.
MATRICES: Shapes = {"square": (6, 6), "wide": (4, 9), "tall": (8, 2), "row": (1, 5)}
# Names and values that LARS and LAMB treat differently: a bias, a norm, and one that the gradient alone moves.
LAYERS: Shapes = {
    "conv.kernel": (2, 3, 2, 2),
    "conv.bias": (7,),
    "layer_norm.scale": (3,),
    "dense.weight": (5, 3),
    "scale": (),
}


TORCH_RULES: Rules = {
    "adamax": ("Adamax", {"lr": 0.02}),
    "adamax-decay": ("Adamax", {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.05, "maximize": True}),
    "nadam": ("NAdam", {"lr": 0.02}),
    "nadam-decay": ("NAdam", {"lr": 0.01, "weight_decay": 0.05, "momentum_decay": 0.05, "maximize": True}),
    "nadam-decoupled": ("NAdam", {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "radam": ("RAdam", {"lr": 0.02}),
    "radam-decay": ("RAdam", {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.05, "maximize": True}),
    "radam-decoupled": ("RAdam", {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "rmsprop": ("RMSprop", {"lr": 0.005}),
    "rmsprop-momentum": ("RMSprop", {"lr": 0.002, "alpha": 0.9, "momentum": 0.8, "weight_decay": 0.05}),
    "rmsprop-centered": ("RMSprop", {"lr": 0.005, "centered": True, "maximize": True}),
    "rmsprop-both": ("RMSprop", {"lr": 0.002, "eps": 1e-3, "momentum": 0.5, "centered": True}),
    "adagrad": ("Adagrad", {"lr": 0.05}),
    "adagrad-decay": (
        "Adagrad",
        {"lr": 0.05, "lr_decay": 0.01, "weight_decay": 0.05, "initial_accumulator_value": 0.1, "maximize": True},
    ),
    "adadelta": ("Adadelta", {"lr": 1.0}),
    "adadelta-decay": ("Adadelta", {"lr": 0.5, "rho": 0.8, "eps": 1e-4, "weight_decay": 0.05, "maximize": True}),
    "asgd": ("ASGD", {"lr": 0.05}),
    "asgd-average": ("ASGD", {"lr": 0.05, "lambd": 0.01, "alpha": 0.6, "t0": 20, "weight_decay": 0.05}),
    "asgd-maximize": ("ASGD", {"lr": 0.005, "lambd": 0.1, "maximize": True}),
    "rprop": ("Rprop", {"lr": 0.01}),
    "rprop-options": ("Rprop", {"lr": 0.02, "etas": (0.7, 1.3), "step_sizes": (1e-3, 0.03), "maximize": True}),
    "adafactor": ("Adafactor", {"lr": 0.02}),
    "adafactor-decay": (
        "Adafactor",
        {"lr": 0.05, "beta2_decay": -0.5, "eps": (1e-4, 0.1), "d": 1.5, "weight_decay": 0.05, "maximize": True},
    ),
    "muon": ("Muon", {"lr": 0.02}),
    "muon-plain": ("Muon", {"lr": 0.02, "momentum": 0.8, "nesterov": False, "weight_decay": 0.0, "ns_steps": 3}),
    "muon-adamw": ("Muon", {"lr": 0.02, "ns_coefficients": (2.0, -1.5, 0.5), "adjust_lr_fn": "match_rms_adamw"}),
}

OTHER_RULES: Rules = {
    "lion": ("Lion", {"lr": 0.005}),
    "lion-decay": ("Lion", {"lr": 0.003, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    "lion-maximize": ("Lion", {"lr": 0.005, "maximize": True}),
    "yogi": ("Yogi", {"lr": 0.02}),
    "yogi-decay": ("Yogi", {"lr": 0.02, "weight_decay": 0.05, "initial_accumulator_value": 0.01, "maximize": True}),
    "lars": ("LARS", {"lr": 5.0, "exclude": ()}),
    "lars-nesterov": ("LARS", {"lr": 5.0, "exclude": (), "nesterov": True}),
    "lars-paper": ("LARS", {"lr": 0.05, "weight_decay": 0.1, "trust_coefficient": 0.1}),
    "lars-plain": (
        "LARS",
        {
            "lr": 0.05,
            "weight_decay": 0.05,
            "trust_coefficient": 0.05,
            "variant": "plain",
            "exclude": ("*bias*", "scale"),
        },
    ),
    "lars-still": ("LARS", {"lr": 0.05, "momentum": 0.0, "trust_coefficient": 0.1, "maximize": True}),
    "lamb": ("LAMB", {"lr": 0.01, "weight_decay": 0.0}),
    "lamb-decay": ("LAMB", {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    "lamb-exclude": ("LAMB", {"lr": 0.01, "exclude": ("*bias*", "scale"), "maximize": True}),
    "schedule-free-sgd": ("ScheduleFreeSGD", {"lr": 0.1}),
    "schedule-free-sgd-warmup": (
        "ScheduleFreeSGD",
        {"lr": 0.2, "momentum": 0.8, "weight_decay": 0.05, "warmup_steps": 20, "r": 1.0, "weight_lr_power": 1.0},
    ),
    "schedule-free-adamw": ("ScheduleFreeAdamW", {"lr": 0.02}),
    "schedule-free-adamw-warmup": (
        "ScheduleFreeAdamW",
        {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1, "warmup_steps": 20, "r": 0.5},
    ),
}


def _shapes(rule: str) -> dict[str, tuple[int, ...]]:
    return {"Muon": MATRICES, "LARS": LAYERS, "LAMB": LAYERS}.get(rule, SMALL)


def _cases(rules: Rules, stored: Path, gaps: tuple[str, ...] = ()) -> dict[str, Case]:
    cosine = ("Cosine", {"total_steps": STEPS, "min_lr": 1e-4})
    cases = []
    for dtype in TOLERANCE:
        for name, (rule, options) in rules.items():
            own: dict[str, Any] = {"shapes": _shapes(rule), "stored": stored}
            cases.append(Case(f"{name}-{dtype}", dtype, rule, options, **own))
            cases.append(Case(f"{name}-clip-cosine-{dtype}", dtype, rule, options, cosine, {"max_norm": 1.0}, **own))
            if name in gaps:
                cases.append(Case(f"{name}-gaps-{dtype}", dtype, rule, options, cosine, gaps=True, **own))
    return {case.name: case for case in cases}


# With gaps: those that keep numbers of their own for every parameter, or an average that begins later.
TORCH_CASES = _cases(TORCH_RULES, TORCH_STORED, gaps=("nadam", "asgd-average", "rprop"))
OTHER_CASES = _cases(OTHER_RULES, OTHER_STORED)


# One of each rule, with all buffers that it may have. Not here: Muon and Adafactor, which see every tensor whole.
_SPANNING = (
    *("sgd-decay", "adam-amsgrad", "adamw-amsgrad", "adamax-decay", "nadam-decay", "radam-decay", "rmsprop-both"),
    *("adagrad-decay", "adadelta-decay", "asgd-average", "rprop-options", "lion-decay", "yogi-decay", "lars-paper"),
    *("lamb-decay", "schedule-free-sgd-warmup", "schedule-free-adamw-warmup"),
)


def _spanning() -> dict[str, Case]:
    stored = dict.fromkeys((*rules_of_torch(), *TORCH_RULES), TORCH_STORED) | dict.fromkeys(OTHER_RULES, OTHER_STORED)
    rules = rules_of_torch() | TORCH_RULES | OTHER_RULES
    cases = []
    for dtype in TOLERANCE:
        for name in _SPANNING:
            rule, options = rules[name]
            own: dict[str, Any] = {"shapes": _shapes(rule) | TABLE, "stride": 2003, "stored": stored[name]}
            cases.append(Case(f"{name}-spanning-{dtype}", dtype, rule, options, clip={"max_norm": 50.0}, **own))
    return {case.name: case for case in cases}


SPANNING_CASES = _spanning()
