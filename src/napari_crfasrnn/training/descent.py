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
        self._remembered = [weight.detach().clone() for weight in self._weights]
        self._first, self._second = ([torch.zeros_like(each) for each in self._weights] for _ in range(2))
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
        self._move(torch.autograd.grad(loss, self._weights))
        return True

    @torch.no_grad()
    def _move(self, gradients: Sequence[Tensor]) -> None:
        n = self._iteration
        share = min(1.0, (n - 1) / self._n_iterations)
        rate = self._learning_rate * min(1.0, n / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * share))
        shrink = 1.0
        if math.isfinite(self._max_gradient):
            norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
            shrink = min(1.0, self._max_gradient / max(norm, _TINY))
        for weight, gradient, first, second in zip(
            self._weights, gradients, self._first, self._second, strict=True
        ):
            first.lerp_(gradient * shrink, 1 - _BETA1)
            second.lerp_((gradient * shrink).square(), 1 - _BETA2)
            deviation = (second / (1 - _BETA2**n)).sqrt_().add_(_TINY)
            weight.mul_(1 - rate * _WEIGHT_DECAY)
            weight.sub_(first.div(deviation), alpha=rate / (1 - _BETA1**n))

    @torch.no_grad()
    def finish(self) -> None:
        """Leave sound weights: the latest, or after a loss that is no number earlier ones."""
        if not self._is_sound:
            for weight, remembered in zip(self._weights, self._remembered, strict=True):
                weight.copy_(remembered)
