"""Runs, rules, schedules and policies there and back over the wire, and what is refused when it comes off it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepd import limits, specs
from stepd.averages import EMA, SWA
from stepd.definitions import DTYPES, GroupSpec, ParameterSpec, RunSpec
from stepd.errors import DtypeMismatch, InvalidArgument, OverlappingGroups, ResourceExhausted, StepdError
from stepd.policies import Async, BoundedStaleness, Clip, ClipNorm, ClipValue, Sync
from stepd.rules import LARS, SGD, Adafactor, Adam, AdamW, Muon, Rule
from stepd.schedules import (
    Chained,
    Constant,
    Cosine,
    Cyclic,
    Linear,
    MultiStep,
    OneCycle,
    ReduceOnPlateau,
    Schedule,
    Sequential,
    Warmup,
)
from stepd.v1 import run_pb2

positive = st.floats(1e-300, 1e300)
fraction = st.floats(0, 1, exclude_max=True)
rates = st.floats(0, 1e300)

adam_fields = {
    "lr": rates,
    "betas": st.tuples(fraction, fraction),
    "eps": rates,
    "weight_decay": rates,
    "amsgrad": st.booleans(),
    "maximize": st.booleans(),
}
optimizers = st.one_of(
    st.builds(SGD, lr=rates, momentum=rates, dampening=st.floats(-1, 1), weight_decay=rates, maximize=st.booleans()),
    st.builds(SGD, lr=rates, momentum=positive, nesterov=st.just(True)),
    st.builds(Adam, **adam_fields),
    st.builds(AdamW, **adam_fields),
    st.builds(LARS, rates, exclude=st.lists(st.text(max_size=5), max_size=3)),
    st.builds(Adafactor, eps=st.tuples(st.none() | rates, rates)),
    st.builds(Muon, adjust_lr_fn=st.sampled_from([None, "original", "match_rms_adamw"])),
    st.sampled_from([rule(lr=0.5) for name, rule in sorted(Rule.registry.items()) if not name.startswith("_")]),
)
steps = st.integers(1, 1 << 52)
flat_schedules = st.one_of(
    st.builds(Constant),
    st.builds(Warmup, steps),
    st.builds(lambda a, b, low: Linear(a + b, b, low), steps, steps, rates),
    st.builds(lambda a, b, low: Cosine(a + b, b, low), steps, steps, rates),
    st.builds(MultiStep, st.lists(steps, max_size=3)),
    st.builds(OneCycle, rates, steps, anneal_strategy=st.sampled_from(["cos", "linear"]), three_phase=st.booleans()),
    st.builds(Cyclic, rates, rates, steps, st.none() | steps),
)
schedules = st.one_of(
    st.just(ReduceOnPlateau()),
    st.recursive(
        flat_schedules,
        lambda parts: st.one_of(
            st.builds(Chained, st.lists(parts, min_size=1, max_size=3)),
            st.builds(lambda a, b, at: Sequential([a, b], [at]), parts, parts, steps),
        ),
        max_leaves=4,
    ),
)
norms = st.builds(ClipNorm, positive, st.one_of(positive, st.just(math.inf)))
values = st.builds(ClipValue, positive)
clips = st.one_of(norms, values, st.builds(Clip, norms, values))
all_workers = st.builds(
    Sync,
    workers=st.none() | st.integers(1, limits.WORKERS_MAX),
    reduce=st.sampled_from(["mean", "sum", "weighted"]),
    deterministic=st.booleans(),
)
staleness = st.integers(0, limits.STALENESS_MAX)
syncs = st.one_of(
    all_workers,
    st.builds(
        lambda k, more, grace: Sync(k + more, k, grace), st.integers(1, 99), st.integers(0, 99), st.floats(0, 3600)
    ),
    st.builds(Async, st.none() | staleness, st.sampled_from([None, "inverse"])),
    st.builds(BoundedStaleness, st.integers(1, 100), staleness),
)
averages = st.one_of(st.builds(EMA, fraction), st.builds(SWA, st.integers(0, 1 << 52), steps))
groups = st.builds(GroupSpec, optimizers, schedule=st.none() | schedules, clip=st.none() | clips.map(Clip.of))
printable = st.characters(exclude_categories=["C", "Z"])
names = st.text(printable, min_size=1, max_size=8)
shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@st.composite
def runs(draw: st.DrawFn) -> RunSpec:
    """Any run."""
    its_groups = draw(st.lists(groups, min_size=1, max_size=3))
    its_names = draw(st.sets(names, min_size=1, max_size=4))
    of_group = sorted(draw(st.integers(0, len(its_groups) - 1)) for _ in its_names)
    parameters = tuple(
        ParameterSpec(name, draw(shapes), draw(st.sampled_from(DTYPES)), group)
        for name, group in zip(its_names, of_group, strict=True)
    )
    return RunSpec(
        name=draw(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,127}", fullmatch=True)),
        parameters=parameters,
        groups=tuple(its_groups),
        schedule=draw(st.none() | schedules),
        clip=draw(st.none() | clips.map(Clip.of)),
        sync=draw(syncs),
        on_nonfinite=draw(st.sampled_from(["skip", "quarantine", "error"])),
        missing=draw(st.sampled_from(["skip", "error"])),
        average=draw(st.none() | averages),
    )


@settings(deadline=None)
@given(runs())
def test_a_run_there_and_back(run: RunSpec) -> None:
    """Every field of every part survives the bytes, with its type: what prints the same is the same."""
    back = specs.run_from_proto(run_pb2.RunSpec.FromString(specs.run_to_proto(run).SerializeToString()))
    assert back == run
    assert repr(back) == repr(run)


@settings(deadline=None)
@given(optimizers)
def test_a_rule_there_and_back(rule: Rule) -> None:
    """A rule keeps its class, its values and their types."""
    assert repr(specs.optimizer_from_proto(specs.optimizer_to_proto(rule))) == repr(rule)


@settings(deadline=None)
@given(schedules)
def test_a_schedule_there_and_back(schedule: Schedule) -> None:
    """A schedule too: steps stay integers though they travel as doubles."""
    assert repr(specs.schedule_from_proto(specs.schedule_to_proto(schedule))) == repr(schedule)


@settings(deadline=None)
@given(clips)
def test_a_clip_there_and_back(clip: specs.AnyClip) -> None:
    """A clip comes back as a user would write it."""
    assert specs.clip_from_proto(specs.clip_to_proto(clip)) == Clip.of(clip).simplest()


def test_every_rule_travels_under_torchs_names() -> None:
    """The message holds the class's name and every field: a reader of the wire needs no stepd."""
    message = specs.optimizer_to_proto(AdamW(lr=0.5))
    assert message.rule == "AdamW"
    assert message.hyperparameters["lr"].number == 0.5
    assert list(message.hyperparameters["betas"].numbers.values) == [0.9, 0.999]
    assert set(message.hyperparameters) == {"lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"}


def test_none_and_schedules_within_schedules_travel() -> None:
    """What is None is a value without content; a schedule within another is a message of its own kind."""
    eps = specs.optimizer_to_proto(Adafactor(eps=(None, 0.5))).hyperparameters["eps"]
    assert [value.WhichOneof("value") for value in eps.list.values] == [None, "number"]
    assert "adjust_lr_fn" not in specs.optimizer_to_proto(Muon()).hyperparameters
    parts = specs.schedule_to_proto(Sequential([Warmup(3), Cosine(9)], [3])).arguments["schedules"]
    assert [value.schedule.rule for value in parts.list.values] == ["Warmup", "Cosine"]


def test_a_wrong_schedule_within_a_schedule() -> None:
    """It is refused by its own name."""
    message = specs.schedule_to_proto(Chained([Warmup(3)]))
    message.arguments["schedules"].list.values[0].schedule.arguments["warmup_steps"].number = -3
    with pytest.raises(InvalidArgument, match=r"^Warmup: warmup_steps must be >= 0, got -3"):
        specs.schedule_from_proto(message)
    message.arguments["schedules"].list.values[0].number = 3
    with pytest.raises(InvalidArgument, match=r"^Chained: schedules must be a list, each Schedule, got"):
        specs.schedule_from_proto(message)


def test_masters() -> None:
    """One float64 makes the run double; 16-bit parameters have float32 masters."""
    by_name = {dtype.name: dtype for dtype in DTYPES}
    assert specs.master_dtype([by_name["float16"], by_name["bfloat16"]]) == np.float32
    assert specs.master_dtype([by_name["float32"], by_name["float64"]]) == np.float64


def test_whose_schedule() -> None:
    """A group follows its own schedule, or else the run's, or else none."""
    parameter = ParameterSpec("w", (), np.dtype(np.float32))
    own, of_run = Warmup(3), Cosine(9)
    run = RunSpec("r", (parameter,), (GroupSpec(SGD(), own), GroupSpec(SGD())), schedule=of_run)
    assert [run.schedule_of(0), run.schedule_of(1)] == [own, of_run]
    assert RunSpec("r", (parameter,), (GroupSpec(SGD()),)).schedule_of(0) == Constant()


def a_run() -> run_pb2.RunSpec:
    parameters = tuple(ParameterSpec(name, (2, 3), np.dtype(np.float32)) for name in ("w", "b"))
    run = RunSpec("run", parameters, (GroupSpec(AdamW()),), schedule=Cosine(10), clip=Clip(1.0))
    return specs.run_to_proto(run)


def change(path: str, value: object) -> Callable[[run_pb2.RunSpec], None]:
    """Sets one field of a message, found by a path."""

    def apply(message: Any) -> None:
        *way, last = path.split(".")
        for name in way:
            message = message[int(name)] if name.isdigit() else getattr(message, name)
        setattr(message, last, value)

    return apply


def hyperparameter(name: str, **value: object) -> Callable[[run_pb2.RunSpec], None]:
    return lambda run: run.groups[0].optimizer.hyperparameters[name].CopyFrom(run_pb2.Hyperparameter(**value))


def argument(name: str, **value: object) -> Callable[[run_pb2.RunSpec], None]:
    return lambda run: run.schedule.arguments[name].CopyFrom(run_pb2.Hyperparameter(**value))


@pytest.mark.parametrize(
    ("spoil", "kind", "reason", "message"),
    [
        (change("name", "a/b"), InvalidArgument, "", "run: name must be 1 to 128 characters of A-Z, .* got 'a/b'"),
        (change("name", ""), InvalidArgument, "", "run: name must be .* got ''"),
        (lambda r: r.ClearField("parameters"), InvalidArgument, "", "params must be at least one parameter, got {}"),
        (
            lambda r: r.ClearField("groups"),
            InvalidArgument,
            "",
            "'w': group must be the index of one of 0 groups, got 0",
        ),
        (
            change("parameters.1.group", 1),
            InvalidArgument,
            "",
            "'b': group must be the index of one of 1 groups, got 1",
        ),
        (change("parameters.1.name", "w"), OverlappingGroups, "", "parameter 'w' stands twice, in the groups 0 and 0"),
        (change("parameters.0.name", ""), InvalidArgument, "", "parameter: name must be 1 to 512 printable .* got ''"),
        (change("parameters.0.name", "a\nb"), InvalidArgument, "", r"parameter: name must be .* got 'a\\nb'"),
        (change("parameters.0.name", "n" * 10**6), InvalidArgument, "", r"parameter: name must be .* got 'nnn.*\.\.\."),
        (change("parameters.0.dtype", 0), DtypeMismatch, "", r"'w': dtype must be one of 2 \(float64\), .* got 0"),
        (change("parameters.0.dtype", 99), DtypeMismatch, "", "'w': dtype must be one of .* got 99"),
        (
            lambda r: r.parameters[0].shape.extend([1] * 63),
            InvalidArgument,
            "",
            "shape must be of at most 64 dimensions",
        ),
        (
            lambda r: r.parameters[0].shape.extend([1 << 63] * 2),
            ResourceExhausted,
            "",
            "at most 17592186044416 elements",
        ),
        (
            lambda r: r.parameters[0].shape.extend([1 << 63, 0]),
            ResourceExhausted,
            "",
            "at most 17592186044416 elements",
        ),
        (change("groups.0.optimizer.rule", "Adan"), InvalidArgument, "UNKNOWN_RULE", "'Adan'; .* Adam, AdamW, .*SGD"),
        (change("groups.0.optimizer.rule", ""), InvalidArgument, "UNKNOWN_RULE", "no optimizer of the name ''"),
        (
            change("schedule.rule", "_Decay"),
            InvalidArgument,
            "UNKNOWN_RULE",
            "'_Decay'; this version has Chained, Constant, Con",
        ),
        (hyperparameter("beta", number=1), InvalidArgument, "", "AdamW has no 'beta'; it has lr, betas, eps"),
        (lambda r: r.groups[0].optimizer.hyperparameters.pop("eps"), InvalidArgument, "", "AdamW: eps must be given"),
        (hyperparameter("lr", number=math.nan), InvalidArgument, "", "AdamW: lr must be a finite number, got nan"),
        (hyperparameter("lr", flag=True), InvalidArgument, "", "AdamW: lr must be a finite number, got True"),
        (hyperparameter("lr", text="1"), InvalidArgument, "", "AdamW: lr must be a finite number, got '1'"),
        (hyperparameter("lr"), InvalidArgument, "", "AdamW: lr must be a finite number, got None"),
        (hyperparameter("amsgrad", number=1), InvalidArgument, "", "AdamW: amsgrad must be True or False, got 1.0"),
        (hyperparameter("betas", number=0.9), InvalidArgument, "", "AdamW: betas must be 2 values, got 0.9"),
        (hyperparameter("betas", texts={"values": ["a"]}), InvalidArgument, "", "AdamW: betas must be 2 values, got"),
        (argument("total_steps", number=9.5), InvalidArgument, "", "Cosine: total_steps must be an integer, got 9.5"),
        (argument("total_steps", number=2.0**60), InvalidArgument, "", "Cosine: total_steps must be an integer, got 1"),
        (argument("gamma", number=1), InvalidArgument, "", "Cosine has no 'gamma'; it has total_steps, warmup_steps"),
        (change("clip.max_norm", -1), InvalidArgument, "", "ClipNorm: max_norm must be > 0, got -1.0"),
        (
            change("clip.max_value", math.nan),
            InvalidArgument,
            "",
            "ClipValue: max_value must be a finite number, got nan",
        ),
        (lambda r: r.clip.Clear(), InvalidArgument, "", "Clip: norm must be given if value is not"),
        (
            lambda r: r.clip.ClearField("max_norm"),
            InvalidArgument,
            "",
            "Clip: norm_type must be absent without max_norm",
        ),
        (lambda r: r.ClearField("sync"), InvalidArgument, "", r"Sync: reduction must be one of 1 \(mean\), .* got 0"),
        (
            lambda r: r.sync.asynchronous.SetInParent(),
            InvalidArgument,
            "",
            "sync: reduction must be unset together with asynchronous, got",
        ),
        (change("sync.quorum", 0), InvalidArgument, "", "Sync: quorum must be from 1 to .*, or None, got 0"),
        (change("sync.workers", 0), InvalidArgument, "", "Sync: workers must be from 1 to 65536, or None, got 0"),
        (
            change("on_nonfinite", 0),
            InvalidArgument,
            "",
            r"run 'run': on_nonfinite must be one of 1 \(skip\), .* got 0",
        ),
        (change("missing", 7), InvalidArgument, "", "run 'run': missing must be one of .* got 7"),
    ],
)
def test_what_is_refused_off_the_wire(
    spoil: Callable[[run_pb2.RunSpec], None], kind: type[StepdError], reason: str, message: str
) -> None:
    """Each error names the thing, the expected and the given; none is as long as what was sent."""
    run = a_run()
    spoil(run)
    with pytest.raises(kind, match=message) as caught:
        specs.run_from_proto(run)
    assert type(caught.value) is kind
    assert caught.value.reason == (reason or kind.default_reason)
    assert len(str(caught.value)) < 1000
    assert all(len(str(value)) < 1000 for value in caught.value.details.values())


@pytest.mark.parametrize(
    ("parameters", "groups", "message"),
    [
        (limits.PARAMETERS_MAX + 1, 1, "at most 20000 parameters, got 20001"),
        (1, limits.GROUPS_MAX + 1, "at most 1024 groups, got 1025"),
    ],
)
def test_counts_have_limits(parameters: int, groups: int, message: str) -> None:
    """Over a limit the error is ResourceExhausted and names it."""
    each = [ParameterSpec(f"p{i}", (), np.dtype(np.float32)) for i in range(parameters)]
    with pytest.raises(ResourceExhausted, match=message):
        RunSpec("run", tuple(each), (GroupSpec(SGD()),) * groups)


def test_elements_add_up_to_a_limit() -> None:
    """Tensors that are each within the limit may be too much together."""
    each = [ParameterSpec(f"p{i}", (limits.ELEMENTS_MAX,), np.dtype(np.float32)) for i in range(2)]
    with pytest.raises(
        ResourceExhausted, match=f"at most {limits.ELEMENTS_MAX} elements, got {2 * limits.ELEMENTS_MAX}"
    ):
        RunSpec("run", tuple(each), (GroupSpec(SGD()),))


def test_names_that_are_too_long_together() -> None:
    """A spec that would not fit a message is refused before it is sent."""
    each = [ParameterSpec(f"{i:0>512}", (), np.dtype(np.float32)) for i in range(5000)]
    with pytest.raises(ResourceExhausted, match="its spec must fit one message of 2097152 bytes, got"):
        specs.run_to_proto(RunSpec("run", tuple(each), (GroupSpec(SGD()),)))


def test_parameters_come_in_the_order_of_their_groups() -> None:
    """A group is one stretch on every shard; a client of its own making that mixes them is told."""
    group = GroupSpec(SGD(lr=0.1))
    parameters = (ParameterSpec("a", (2,), DTYPES[0], 1), ParameterSpec("b", (2,), DTYPES[0], 0))
    with pytest.raises(InvalidArgument, match=r"'b' \(after one of group 1\): group must be in the order"):
        RunSpec("run", parameters, (group, group))
