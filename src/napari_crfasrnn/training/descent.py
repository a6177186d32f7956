"""Weights of the experts of a panel on their way down."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from napari_crfasrnn.training.adamw import AdamW

_WEIGHT_DECAY = 1e-2
_WARM_UP = 20  # iterations
_REMEMBER_EVERY = 25  # iterations: what to go back to should the loss grow beyond numbers


class Descent:
    """Weights on their way down, at a rate that falls to 0 like a cosine.

    Parameters
    ----------
    weights
        Changed in place.
    learning_rate
        After warming up.
    n_iterations
        After so many the rate is 0.
    max_gradient
        Gradients of a larger norm are shortened to it.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        learning_rate: float,
        n_iterations: int,
        max_gradient: float = math.inf,
    ) -> None:
        self._weights = list(weights)
        self._learning_rate, self._n_iterations = learning_rate, n_iterations
        self._group = {"params": self._weights, "lr": 0.0}
        self._optimizer = AdamW([self._group], weight_decay=_WEIGHT_DECAY, max_norm=max_gradient)
        self._remembered = [weight.detach().clone() for weight in self._weights]
        self._is_sound = True
        self._iteration = 0

    def step(self, loss: Tensor) -> bool:
        """Do one iteration and return True; when the loss is not finite, change nothing and return False."""
        self._is_sound = math.isfinite(float(loss.detach()))
        if not self._is_sound:
            return False
        self._iteration += 1
        if self._iteration % _REMEMBER_EVERY == 1:
            self._remembered = [weight.detach().clone() for weight in self._weights]
        share = min(1.0, (self._iteration - 1) / self._n_iterations)
        warm = min(1.0, self._iteration / _WARM_UP)
        self._group["lr"] = self._learning_rate * warm * 0.5 * (1 + math.cos(math.pi * share))
        self._optimizer.step_by(torch.autograd.grad(loss, self._weights))
        return True

    @torch.no_grad()
    def finish(self) -> None:
        """Leave sound weights: the latest, or after a loss that is no number earlier ones."""
        if not self._is_sound:
            for weight, remembered in zip(self._weights, self._remembered, strict=True):
                weight.copy_(remembered)
