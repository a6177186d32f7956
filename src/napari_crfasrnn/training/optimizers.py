"""The optimiser of a stage: the parts of a model, each at its own rate.

Head and CRF take plain AdamW, the encoder takes `RelativeAdamW`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from napari_crfasrnn.config import Recipe
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.fcn import Fcn8s
from napari_crfasrnn.network import Network

_CRF_BETAS = (0.9, 0.99)
_SMALLEST_WEIGHT, _SMALLEST_BIAS = 1e-4, 0.05


class RelativeAdamW(torch.optim.AdamW):
    """AdamW, without decay, whose steps are in proportion to the size of each output channel.

    With batch norms folded away the channels of an encoder differ by orders of magnitude, and one
    absolute step would shatter the small ones and never move the large.

    Parameters
    ----------
    parameters
        Weights, output channels first, and biases.
    learning_rate
        A step of AdamW, as a share of the size of what it moves.

    Attributes
    ----------
    sizes
        Of each parameter as it was at the beginning, broadcastable to it.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], learning_rate: float) -> None:
        super().__init__(parameters, lr=learning_rate, weight_decay=0.0)
        self._moved = parameters
        self.sizes = [_size(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step."""
        before = [p.clone() for p in self._moved]
        super().step(closure)
        for p, old, size in zip(self._moved, before, self.sizes, strict=True):
            p.copy_(old + (p - old) * size)


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
        self._groups: list[list[nn.Parameter]] = [group["params"] for group in groups]
        if network is not None:
            network.requires_grad_(False)
        for parameter in (p for group in [*self._groups, self._relative] for p in group):
            parameter.requires_grad_(True)
        self._optimizers = [torch.optim.AdamW(groups, weight_decay=0.0)] if groups else []
        self._encoder = RelativeAdamW(self._relative, encoder_rate) if self._relative else None
        if self._encoder is not None:
            self._optimizers.append(self._encoder)
        self._rates = [[group["lr"] for group in o.param_groups] for o in self._optimizers]

    def forget(self) -> None:
        """Forget the gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
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
            for optimizer in self._optimizers:
                self._scaler.step(optimizer)
            self._scaler.update()
        self.forget()
        return is_finite or self._scaler.is_enabled()

    def state_dict(self) -> dict[str, Any]:
        """Return everything a later step hangs on."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "sizes": [] if self._encoder is None else self._encoder.sizes,
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for optimizer, part in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)
        if self._encoder is not None:
            self._encoder.sizes = [
                size.to(p.device) for size, p in zip(state["sizes"], self._relative, strict=True)
            ]
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])


def _parts(network: Network) -> tuple[list[nn.Parameter], list[nn.Module]]:
    """Return the head's parameters, and the layers that take relative steps.

    The last upsampling of FCN-8s stays bilinear, as in the original.
    """
    if not isinstance(network, Fcn8s):
        return network.head_parameters(), [
            layer
            for part in network.encoder_parts()
            for layer in part.modules()
            if isinstance(layer, nn.Conv2d)
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
