"""The step that torch does: mean, clip by the norm of everything, fused AdamW."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from bench.compare.workload import BETAS, CLIP, DECAY, EPS, LR, Array


def tensors(arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Parameters over the memory of arrays."""
    return {name: torch.from_numpy(array).requires_grad_() for name, array in arrays.items()}


def optimizer_of(params: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(params), lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=True)


class TorchStep:
    """Parameters with their optimizer. `params[name].grad` is the sum of the gradients before a step."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.params = tensors(arrays)
        self._optimizer = optimizer_of(self.params.values())

    def step(self, workers: int) -> None:
        """Update by the sum of so many gradients; what is in `grad` is changed."""
        params = list(self.params.values())
        if workers > 1:
            torch._foreach_div_([param.grad for param in params], workers)
        torch.nn.utils.clip_grad_norm_(params, CLIP)
        self._optimizer.step()


class Rounds:
    """Sums up what workers hand over; the last of a round does the step.

    Its callers say when a round begins anew: `add` gives whether this one was the last.
    """

    def __init__(self, arrays: Mapping[str, Array], workers: int) -> None:
        self.state = TorchStep(arrays)
        self._workers = workers
        self._in = 0

    def add(self, gradient: Iterable[torch.Tensor], *, own: bool) -> bool:
        """Take one in; with the last, update.

        Args:
            gradient: in the order of the parameters.
            own: the tensors are ours to change.
        """
        params = list(self.state.params.values())
        if self._in:
            torch._foreach_add_([param.grad for param in params], list(gradient))
        else:
            for param, grad in zip(params, gradient, strict=True):
                if own:
                    param.grad = grad
                elif param.grad is None:
                    param.grad = grad.clone()
                else:
                    param.grad.copy_(grad)
        self._in += 1
        if self._in < self._workers:
            return False
        self._in = 0
        self.state.step(self._workers)
        return True
