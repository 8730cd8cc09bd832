"""Machine code from LLVM's language (the extra `stepd[fast]`), in some ten milliseconds each."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Any


@cache
def available() -> bool:
    """Whether the library that compiles is installed, and STEPD_KERNELS=numpy does not say to do without."""
    return os.environ.get("STEPD_KERNELS") != "numpy" and importlib.util.find_spec("llvmlite") is not None


def machine_code(text: str) -> Any:
    """The engine that holds the functions of a module; they are there as long as it is."""
    from llvmlite import binding  # noqa: PLC0415 (an extra; and nobody else needs its 50 MB)

    machine = _machine()
    module = binding.parse_assembly(text)
    module.verify()
    optimizer = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    optimizer.getModulePassManager().run(module, optimizer)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine


def has_halves() -> bool:
    """Whether this processor turns numbers into those of 16 bits and back by itself: code may not ask for it else."""
    from llvmlite import binding  # noqa: PLC0415

    return bool(binding.get_host_cpu_features().get("f16c"))


def _machine() -> Any:
    from llvmlite import binding  # noqa: PLC0415

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    # This very processor with all that it can do; the code is never kept. A new machine each time: it is the engine's.
    return binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3, jit=True
    )
