"""AdamW on all weights at once.

By hand for two reasons: the first optimiser of torch that is made in a process costs seconds of imports, in
which a window answers badly; and dozens of small operations for each of dozens of weights take longer than
the gradients of a small head.

Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_TINY = 1e-8


class AdamW:
    """Changes weights by their gradients.

    Parameters
    ----------
    groups
        Each with "params", weights of type float32, and "lr", which may be changed between steps. All weights
        are on one device.
    betas
        Memory of the means of gradients and of their squares.
    weight_decay
        Share of the weights, times the rate, that goes in each step.
    max_norm
        Gradients whose norm over all weights is larger are shortened to it.

    Attributes
    ----------
    param_groups
        The groups. `torch.amp.GradScaler` looks for them here.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        max_norm: float = math.inf,
    ) -> None:
        self.param_groups = list(groups)
        self._weights: list[Tensor] = [each for group in self.param_groups for each in group["params"]]
        self._sizes = [weight.numel() for weight in self._weights]
        self._betas, self._weight_decay, self._max_norm = betas, weight_decay, max_norm
        self._first = torch.cat([torch.zeros_like(weight).flatten() for weight in self._weights])
        self._second = torch.zeros_like(self._first)
        self._n_steps = 0

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self._weights:
            weight.grad = None

    def step(self) -> None:
        """Take a step by the weights' ``grad``; a weight without one has the gradient 0."""
        self.step_by([torch.zeros_like(each) if each.grad is None else each.grad for each in self._weights])

    @torch.no_grad()
    def step_by(self, gradients: Sequence[Tensor]) -> None:
        """Take a step by gradients, one for each weight of all groups."""
        self._n_steps += 1
        beta1, beta2 = self._betas
        gradient = torch.cat([each.flatten() for each in gradients])
        if math.isfinite(self._max_norm):
            norm = float(gradient.norm())
            gradient *= min(1.0, self._max_norm / max(norm, _TINY))
        self._first.lerp_(gradient, 1 - beta1)
        self._second.lerp_(gradient.square_(), 1 - beta2)
        deviation = (self._second / (1 - beta2**self._n_steps)).sqrt_().add_(_TINY)
        ways = iter((self._first / deviation).div_(1 - beta1**self._n_steps).split(self._sizes))  # type: ignore[no-untyped-call]
        for group in self.param_groups:
            rate = group["lr"]
            for weight in group["params"]:
                if self._weight_decay:
                    weight.mul_(1 - rate * self._weight_decay)
                weight.sub_(next(ways).view_as(weight), alpha=rate)
