"""Draws the curves of docs/schedules.md: python tools/draw_schedules.py"""

from __future__ import annotations

from pathlib import Path

from stepd.chart import Line, Panel, render
from stepd.schedules import (
    Chained,
    Constant,
    ConstantFactor,
    Cosine,
    CosineAnnealing,
    CosineWarmRestarts,
    Cyclic,
    Exponential,
    FromList,
    InverseSqrt,
    Linear,
    LinearFactor,
    MultiStep,
    OneCycle,
    Polynomial,
    ReduceOnPlateau,
    Schedule,
    Sequential,
    Step,
    Warmup,
    WarmupStableDecay,
)

DOCS = Path(__file__).resolve().parent.parent / "docs"
STEPS = range(121)
BASE = 0.1

FAMILIES: dict[str, tuple[str, dict[str, Schedule]]] = {
    "warmup": (
        "The warm-up family",
        {
            "Constant()": Constant(),
            "Warmup(20)": Warmup(20),
            "Linear(100, warmup_steps=20, min_lr=0.01)": Linear(100, 20, 0.01),
            "Cosine(100, warmup_steps=20, min_lr=0.01)": Cosine(100, 20, 0.01),
            "InverseSqrt(20)": InverseSqrt(20),
            "WarmupStableDecay(20, 50, 30, min_lr=0.01)": WarmupStableDecay(20, 50, 30, 0.01),
        },
    ),
    "decay": (
        "Factors",
        {
            "Exponential(0.97)": Exponential(0.97),
            "Step(30, gamma=0.5)": Step(30, 0.5),
            "MultiStep([40, 90], gamma=0.3)": MultiStep([40, 90], 0.3),  # type: ignore[arg-type]
            "Polynomial(100, power=2.0)": Polynomial(100, 2.0),
            "FromList([0.2, 0.4, 0.8] + [1.0] * 57 + [0.5])": FromList((0.2, 0.4, 0.8, *(1.0,) * 57, 0.5)),
            "LinearFactor(0.25, 1.0, total_iters=40)": LinearFactor(0.25, 1.0, 40),
            "ConstantFactor(0.5, total_iters=40)": ConstantFactor(0.5, 40),
        },
    ),
    "cycles": (
        "Cycles and compositions",
        {
            "CosineAnnealing(50, eta_min=0.01)": CosineAnnealing(50, 0.01),
            "CosineWarmRestarts(20, T_mult=2)": CosineWarmRestarts(20, 2),
            "OneCycle(0.1, 100)": OneCycle(0.1, 100),
            "OneCycle(0.1, 100, three_phase=True)": OneCycle(0.1, 100, three_phase=True),
            'Cyclic(0.01, 0.1, step_size_up=15, mode="triangular2")': Cyclic(0.01, 0.1, 15, mode="triangular2"),
            "Sequential([LinearFactor(0.1, 1.0, 20), CosineAnnealing(100)], [20])": Sequential(
                (LinearFactor(0.1, 1.0, 20), CosineAnnealing(100)), (20,)
            ),
            "Chained([ConstantFactor(0.5, 40), Exponential(0.98)])": Chained(
                (ConstantFactor(0.5, 40), Exponential(0.98))
            ),
            "ReduceOnPlateau(factor=0.5, patience=10)": ReduceOnPlateau(factor=0.5, patience=10),
        },
    ),
}


def rates(schedule: Schedule) -> list[float]:
    if not isinstance(schedule, ReduceOnPlateau):
        return [schedule.rate(step, BASE) for step in STEPS]
    state, found = schedule.start(), []
    for step in STEPS:
        found.append(schedule.rate_after(state, BASE))
        state = schedule.observe(state, metric(step))
    return found


def metric(step: int) -> float:
    """A loss that gets better until step 40, and from step 75 to 85."""
    return 1.0 - 0.01 * min(step, 40) - 0.01 * min(max(step - 75, 0), 10)


def pictures() -> dict[str, str]:
    """The files by name."""
    steps = [float(step) for step in STEPS]
    files = {}
    for family, (title, schedules) in FAMILIES.items():
        panels = []
        for call, schedule in schedules.items():
            panels.append(Panel(call, "", (Line(steps, rates(schedule)),)))
            momenta = [schedule.momentum(step) for step in STEPS]
            if momenta[0] is not None and isinstance(schedule, OneCycle) and not schedule.three_phase:
                panels.append(Panel("its momentum", "", (Line(steps, [momentum or 0.0 for momentum in momenta]),)))
        subtitle = f"the rate at each step, for a group with lr={BASE:g}"
        files[f"schedules-{family}.svg"] = render(panels, title=title, subtitle=subtitle)
    return files


def main() -> None:
    for name, text in pictures().items():
        (DOCS / name).write_text(text)


if __name__ == "__main__":
    main()
