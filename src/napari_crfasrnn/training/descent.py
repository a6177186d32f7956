"""AdamW for the experts of a panel.

By hand, because the first optimiser of torch that is made costs seconds of imports.

Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_WEIGHT_DECAY = 1e-2
_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8
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
        self._learning_rate, self._n_iterations, self._max_gradient = (
            learning_rate,
            n_iterations,
            max_gradient,
        )
        # All weights one after the other: dozens of small operations for each of them would take longer
        # than the gradients of a small head.
        self._flat = torch.cat([weight.detach().flatten() for weight in self._weights])
        parts = torch.split(self._flat, [weight.numel() for weight in self._weights])
        self._places = [part.view_as(weight) for part, weight in zip(parts, self._weights, strict=True)]
        self._remembered = self._flat.clone()
        self._first, self._second = torch.zeros_like(self._flat), torch.zeros_like(self._flat)
        self._is_sound = True
        self._iteration = 0

    def step(self, loss: Tensor) -> bool:
        """Do one iteration and return True; when the loss is not finite, change nothing and return False."""
        self._is_sound = math.isfinite(float(loss.detach()))
        if not self._is_sound:
            return False
        self._iteration += 1
        if self._iteration % _REMEMBER_EVERY == 1:
            self._remembered.copy_(self._flat)
        self._move(torch.autograd.grad(loss, self._weights))
        return True

    @torch.no_grad()
    def _move(self, gradients: Sequence[Tensor]) -> None:
        n = self._iteration
        share = min(1.0, (n - 1) / self._n_iterations)
        rate = self._learning_rate * min(1.0, n / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * share))
        gradient = torch.cat([each.flatten() for each in gradients])
        if math.isfinite(self._max_gradient):
            norm = float(gradient.norm())
            gradient *= min(1.0, self._max_gradient / max(norm, _TINY))
        self._first.lerp_(gradient, 1 - _BETA1)
        self._second.lerp_(gradient.square_(), 1 - _BETA2)
        deviation = (self._second / (1 - _BETA2**n)).sqrt_().add_(_TINY)
        self._flat.mul_(1 - rate * _WEIGHT_DECAY)
        self._flat.addcdiv_(self._first, deviation, value=-rate / (1 - _BETA1**n))
        self._give()

    @torch.no_grad()
    def finish(self) -> None:
        """Leave sound weights: the latest, or after a loss that is no number earlier ones."""
        if not self._is_sound:
            self._flat.copy_(self._remembered)
            self._give()

    def _give(self) -> None:
        for weight, place in zip(self._weights, self._places, strict=True):
            weight.copy_(place)
