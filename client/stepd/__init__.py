"""stepd: a training run's parameters and optimizer state on servers, so that workers need only compute gradients."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepd import compat
    from stepd.averages import EMA, SWA
    from stepd.client import Client, connect
    from stepd.errors import (
        AlreadyExists,
        CheckpointCorrupt,
        DeadlineExceeded,
        DtypeMismatch,
        FailedPrecondition,
        InvalidArgument,
        MissingGradient,
        NonFiniteGradient,
        NotFound,
        OverlappingGroups,
        PermissionDenied,
        ResourceExhausted,
        RunRewound,
        ShapeMismatch,
        StepdError,
        Unauthenticated,
        Unavailable,
        UnknownParameter,
    )
    from stepd.info import FleetInfo, MissingInfo, RunInfo, ShardInfo, StepEvent, WorkerInfo
    from stepd.local_fleet import LocalFleet, local
    from stepd.memory import tune_malloc
    from stepd.parameters import ParamGroup
    from stepd.policies import Async, BoundedStaleness, Clip, ClipNorm, ClipValue, Sync, Wire
    from stepd.results import Receipt, StepResult
    from stepd.rules import (
        ASGD,
        LAMB,
        LARS,
        SGD,
        Adadelta,
        Adafactor,
        Adagrad,
        Adam,
        Adamax,
        AdamW,
        Lion,
        Muon,
        NAdam,
        RAdam,
        RMSprop,
        Rprop,
        ScheduleFreeAdamW,
        ScheduleFreeSGD,
        Yogi,
    )
    from stepd.run import Run
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
        Sequential,
        Step,
        Warmup,
        WarmupStableDecay,
    )
    from stepd.tls import TLS
    from stepd.watch import Watch
    from stepd.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "ASGD",
    "EMA",
    "LAMB",
    "LARS",
    "SGD",
    "SWA",
    "TLS",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "AlreadyExists",
    "Async",
    "BoundedStaleness",
    "Chained",
    "CheckpointCorrupt",
    "Client",
    "Clip",
    "ClipNorm",
    "ClipValue",
    "Constant",
    "ConstantFactor",
    "Cosine",
    "CosineAnnealing",
    "CosineWarmRestarts",
    "Cyclic",
    "DeadlineExceeded",
    "DtypeMismatch",
    "Exponential",
    "FailedPrecondition",
    "FleetInfo",
    "FromList",
    "InvalidArgument",
    "InverseSqrt",
    "Linear",
    "LinearFactor",
    "Lion",
    "LocalFleet",
    "MissingGradient",
    "MissingInfo",
    "MultiStep",
    "Muon",
    "NAdam",
    "NonFiniteGradient",
    "NotFound",
    "OneCycle",
    "OverlappingGroups",
    "ParamGroup",
    "PermissionDenied",
    "Polynomial",
    "RAdam",
    "RMSprop",
    "Receipt",
    "ReduceOnPlateau",
    "ResourceExhausted",
    "Rprop",
    "Run",
    "RunInfo",
    "RunRewound",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Sequential",
    "ShapeMismatch",
    "ShardInfo",
    "Step",
    "StepEvent",
    "StepResult",
    "StepdError",
    "Sync",
    "Unauthenticated",
    "Unavailable",
    "UnknownParameter",
    "Warmup",
    "WarmupStableDecay",
    "Watch",
    "Wire",
    "Worker",
    "WorkerInfo",
    "Yogi",
    "__version__",
    "compat",
    "connect",
    "local",
    "tune_malloc",
]

# Where they are. Each is imported when it is first asked for: a supervisor needs none of them, and other servers few.
_HOMES = {
    "averages": "EMA SWA",
    "client": "Client connect",
    "errors": (
        "AlreadyExists CheckpointCorrupt DeadlineExceeded DtypeMismatch FailedPrecondition InvalidArgument "
        "MissingGradient NonFiniteGradient NotFound OverlappingGroups PermissionDenied ResourceExhausted "
        "RunRewound ShapeMismatch StepdError Unauthenticated Unavailable UnknownParameter"
    ),
    "info": "FleetInfo MissingInfo RunInfo ShardInfo StepEvent WorkerInfo",
    "local_fleet": "LocalFleet local",
    "memory": "tune_malloc",
    "parameters": "ParamGroup",
    "policies": "Async BoundedStaleness Clip ClipNorm ClipValue Sync Wire",
    "results": "Receipt StepResult",
    "rules": (
        "ASGD LAMB LARS SGD Adadelta Adafactor Adagrad Adam Adamax AdamW Lion Muon NAdam RAdam RMSprop Rprop "
        "ScheduleFreeAdamW ScheduleFreeSGD Yogi"
    ),
    "run": "Run",
    "schedules": (
        "Chained Constant ConstantFactor Cosine CosineAnnealing CosineWarmRestarts Cyclic Exponential FromList "
        "InverseSqrt Linear LinearFactor MultiStep OneCycle Polynomial ReduceOnPlateau Sequential Step Warmup "
        "WarmupStableDecay"
    ),
    "tls": "TLS",
    "watch": "Watch",
    "worker": "Worker",
    "compat": "",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

if not TYPE_CHECKING:  # checkers would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return importlib.import_module(f"stepd.{name}")
        if name not in _HOME_OF:
            raise AttributeError(f"module 'stepd' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"stepd.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
