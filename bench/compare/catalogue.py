"""All systems that are compared, in the order of the table."""

from __future__ import annotations

import importlib.util
from typing import Final

from bench.compare.system import System

_TCP: Final = {"transports": ["uv"], "channels": ["basic"]}
_TORCH: Final = ("torch",)

SYSTEMS: Final = (
    System("local", "torch, in the training process", "none", "local", needs=_TORCH, workers_max=1, server=False),
    System(
        "stepd-view",
        "stepd, `gradient_buffers`, `view`",
        "shared memory",
        "stepd_fleet",
        {"transport": "shm", "lent": True, "view": True},
    ),
    System(
        "stepd-view-numpy",
        "stepd, the same in NumPy",
        "shared memory",
        "stepd_fleet",
        {"transport": "shm", "lent": True, "view": True, "kernels": "numpy"},
        quick=False,
    ),
    System(
        "stepd-view-numpy-2",
        "stepd, in NumPy with a shard for each of 2 cores",
        "shared memory",
        "stepd_fleet",
        {"transport": "shm", "lent": True, "view": True, "kernels": "numpy", "shards": 2},
        quick=False,
    ),
    System(
        "stepd-lent",
        "stepd, `gradient_buffers`",
        "shared memory",
        "stepd_fleet",
        {"transport": "shm", "lent": True},
        quick=False,
    ),
    System("stepd-shm", "stepd, any arrays", "shared memory", "stepd_fleet", {"transport": "shm"}),
    System("ray", "Ray actors", "shared memory", "ray_actors", needs=("torch", "ray")),
    System("rpc-shm", "torch.distributed.rpc", "shared memory", "torch_rpc", needs=_TORCH, spins=True),
    System("stepd-grpc", "stepd", "gRPC", "stepd_fleet", {"transport": "grpc"}),
    System(
        "stepd-bf16",
        "stepd, bfloat16 both ways",
        "gRPC",
        "stepd_fleet",
        {"transport": "grpc", "wire": ("bfloat16", "bfloat16")},
        tolerance=3e-2,
    ),
    System(
        "stepd-grpc-numpy",
        "stepd, in NumPy",
        "gRPC",
        "stepd_fleet",
        {"transport": "grpc", "kernels": "numpy"},
        quick=False,
    ),
    System("gloo", "gloo all_reduce, no server", "TCP", "gloo", needs=_TORCH, server=False),
    System("rpc-tcp", "torch.distributed.rpc", "TCP", "torch_rpc", _TCP, needs=_TORCH),
    System(
        "rpc-tcp-malloc",
        "torch.distributed.rpc, malloc tuned",
        "TCP",
        "torch_rpc",
        _TCP | {"malloc": True},
        needs=_TORCH,
        quick=False,
    ),
    System("sockets", "raw sockets", "TCP", "sockets", needs=_TORCH, quick=False),
    System("bare", "bare stream, no arithmetic", "gRPC", "bare_stream", tolerance=None),
    System("days-work", "a day's work", "gRPC", "days_work", slow=True, quick=False),
)


def lacking(system: System) -> list[str]:
    """What would have to be installed for a system."""
    return [name for name in system.needs if importlib.util.find_spec(name) is None]
