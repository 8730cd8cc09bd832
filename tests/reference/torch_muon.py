"""torch's Muon in the dtype of its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import _muon


@contextmanager
def uncast_muon() -> Iterator[None]:
    """torch's Muon without its cast to bfloat16."""
    original = _muon._zeropower_via_newtonschulz

    def without_the_cast(grad: torch.Tensor, *args: Any) -> torch.Tensor:
        return original(grad.as_subclass(_Uncast), *args).as_subclass(torch.Tensor)

    _muon._zeropower_via_newtonschulz = without_the_cast
    try:
        yield
    finally:
        _muon._zeropower_via_newtonschulz = original


class _Uncast(torch.Tensor):
    """A tensor that stays what it is."""

    def bfloat16(self) -> torch.Tensor:  # type: ignore[override]
        return self.clone()
