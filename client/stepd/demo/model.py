"""A perceptron with two hidden layers in NumPy, with its gradient written out."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from stepd.demo.data import CLASSES, PIXELS

if TYPE_CHECKING:
    from stepd.demo.data import Examples

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]
Params: TypeAlias = dict[str, Array]

WIDTHS: Final = (PIXELS, 256, 128, CLASSES)
LAYERS: Final = len(WIDTHS) - 1


class Loss(NamedTuple):
    """The mean cross-entropy of a batch in nats, and its gradient by parameter."""

    value: float
    grads: Params


def initial(seed: int = 0) -> Params:
    """He's initial weights, zero biases; the same on every worker."""
    rng = np.random.default_rng(seed)
    params: Params = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(WIDTHS)):
        scale = np.sqrt(2 / fan_in)
        params[f"layer{layer}.weight"] = (scale * rng.standard_normal((fan_in, fan_out))).astype(np.float32)
        params[f"layer{layer}.bias"] = np.zeros(fan_out, np.float32)
    return params


def forward(params: Params, images: Array) -> list[Array]:
    """The input of every layer, and the logits last."""
    values = [images]
    for layer in range(LAYERS):
        linear = values[-1] @ params[f"layer{layer}.weight"] + params[f"layer{layer}.bias"]
        values.append(np.maximum(linear, 0) if layer < LAYERS - 1 else linear)
    return values


def loss(params: Params, batch: Examples) -> Loss:
    *inputs, logits = forward(params, batch.images)
    rows = np.arange(len(batch))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    # The gradient at the logits: the probabilities, less one at the label.
    delta = np.exp(log_p)
    delta[rows, batch.labels] -= 1
    delta /= len(batch)
    grads: Params = {}
    for layer in reversed(range(LAYERS)):
        grads[f"layer{layer}.weight"] = inputs[layer].T @ delta
        grads[f"layer{layer}.bias"] = delta.sum(axis=0)
        if layer:
            # Only where the rectifier let the value through.
            delta = (delta @ params[f"layer{layer}.weight"].T) * (inputs[layer] > 0)
    return Loss(value=float(-log_p[rows, batch.labels].mean()), grads=grads)


def accuracy(params: Params, examples: Examples) -> float:
    """The share of images whose digit is recognised."""
    return float((forward(params, examples.images)[-1].argmax(axis=1) == examples.labels).mean())
