"""The optimiser of a stage: the parts of a model, each at its own rate.

Head and CRF take plain AdamW. The encoder takes AdamW with steps in proportion to the size of each
output channel: with its batch norms folded away the channels differ by orders of magnitude, and one
absolute step would shatter the small ones and never move the large.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from napari_crfasrnn.config import Recipe
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.fcn import Fcn8s
from napari_crfasrnn.network import Network

_CRF_BETAS = (0.9, 0.99)
_SMALLEST_WEIGHT, _SMALLEST_BIAS = 1e-4, 0.05


class StageOptimizer:
    """AdamW for the parts of a model that a stage trains.

    Parameters
    ----------
    network, crf
        What to train; None: not in this stage. The network's parameters get ``requires_grad`` accordingly.
    recipe
        Rates.
    share
        Of the network's rates.
    scaler
        Of the gradients in float16.
    """

    def __init__(
        self,
        network: Network | None,
        crf: CrfRnn | None,
        recipe: Recipe,
        share: float,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self._scaler = scaler
        self._max_gradient = recipe.max_gradient
        groups: list[dict[str, Any]] = []
        layers: list[nn.Module] = []
        if network is not None:
            head, layers = _parts(network)
            rate = recipe.learning_rate * share
            groups.append({"params": head, "lr": rate, "weight_decay": recipe.weight_decay})
        if crf is not None:
            groups += [
                {name: value for name, value in group.items() if name != "name"} | {"betas": _CRF_BETAS}
                for group in crf.parameter_groups(recipe.crf_learning_rate)
            ]
        encoder_rate = recipe.encoder_learning_rate * share
        layers = layers if encoder_rate > 0 else []
        self._relative = [p for layer in layers for p in layer.parameters()]
        self._sizes = [_size(p) for p in self._relative]
        self._groups: list[list[nn.Parameter]] = [group["params"] for group in groups]
        if network is not None:
            network.requires_grad_(False)
        for parameter in (p for group in [*self._groups, self._relative] for p in group):
            parameter.requires_grad_(True)
        self._optimizers = [torch.optim.AdamW(groups, weight_decay=0.0)] if groups else []
        if self._relative:
            self._optimizers.append(torch.optim.AdamW(self._relative, lr=encoder_rate, weight_decay=0.0))
        self._rates = [[group["lr"] for group in o.param_groups] for o in self._optimizers]

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def step(self, factor: float) -> bool:
        """Take a step of ``factor`` times the rates and forget the gradients.

        Returns False, having changed nothing, if a gradient is not finite.
        """
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            self._scaler.unscale_(optimizer)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        norms = [
            nn.utils.clip_grad_norm_(group, self._max_gradient)
            for group in [*self._groups, self._relative]
            if group
        ]
        is_finite = all(bool(torch.isfinite(norm)) for norm in norms)
        if is_finite or self._scaler.is_enabled():  # the scaler skips the step by itself and scales less
            before = [p.clone() for p in self._relative]
            for optimizer in self._optimizers:
                self._scaler.step(optimizer)
            self._scaler.update()
            for p, old, size in zip(self._relative, before, self._sizes, strict=True):
                p.copy_(old + (p - old) * size)
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        return is_finite or self._scaler.is_enabled()

    def state_dict(self) -> dict[str, Any]:
        """Return everything a later step hangs on."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "sizes": self._sizes,
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for optimizer, part in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)
        self._sizes = [size.to(p.device) for size, p in zip(state["sizes"], self._relative, strict=True)]
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])


def _parts(network: Network) -> tuple[list[nn.Parameter], list[nn.Module]]:
    """Return the head's parameters, and the layers that take relative steps.

    The last upsampling of FCN-8s stays bilinear, as in the original.
    """
    if not isinstance(network, Fcn8s):
        return network.head_parameters(), [
            layer for layer in network.encoder.modules() if isinstance(layer, nn.Conv2d)
        ]
    head = [p for layer in network.score_layers for p in layer.parameters()]
    fixed = {id(layer) for layer in (*network.score_layers, network.upscore8)}
    layers: list[nn.Module] = [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and id(layer) not in fixed
    ]
    return head, layers


@torch.no_grad()
def _size(parameter: nn.Parameter) -> Tensor:
    """Return the size of a weight's output channels, or of a bias, broadcastable to it."""
    if parameter.ndim == 1:
        return parameter.abs().mean().clamp_min(_SMALLEST_BIAS)
    axes = tuple(range(1, parameter.ndim))
    return parameter.pow(2).mean(axes, keepdim=True).sqrt().clamp_min(_SMALLEST_WEIGHT)
