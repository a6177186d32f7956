"""How the starter's network learns: first its head, then the last stages of its encoder too."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_crfasrnn.encoder import FEATURE_BLOCKS
from napari_crfasrnn.fcn import FcnLite, Features, enlarge
from napari_crfasrnn.training.optimizers import RelativeAdamW
from starter_data import IGNORE
from starter_views import Batch, ViewStore

BATCH = 16
LATE_FROM = FEATURE_BLOCKS[1] + 1  # the stages of stride 32: a third of the work, most of the weights
SOFT_WEIGHT_BESIDE_HUMAN = 0.3  # the teacher's word where a person has drawn the mask

Say = Callable[[str], None]


def class_weights(store: ViewStore, n_labels: int, power: float) -> Tensor:
    """Return (1 / frequency) ** power per class as the views show it, 1 on average over pixels."""
    rng = np.random.default_rng(0)
    share = torch.zeros(n_labels)
    for _ in range(60):
        share += store.draw(BATCH, rng).soft.sum((0, 2, 3))
    share = (share / share.sum()).clamp_min(1e-4)
    weights = share**-power
    return weights / (weights * share).sum()


def loss_of(logits: Tensor, upsampled: Tensor, batch: Batch, weights: Tensor) -> Tensor:
    """Return the class-weighted cross entropy to human masks and to the teacher's probabilities.

    Parameters
    ----------
    logits, upsampled
        [B, L, 40, 40] and [B, L, 80, 80].
    """
    log_p = logits.log_softmax(1)
    known = batch.soft.sum(1) > 0.5  # [B, 40, 40]
    human = (batch.hard != IGNORE).flatten(1).any(1)
    trust = known * torch.where(human, SOFT_WEIGHT_BESIDE_HUMAN, 1.0)[:, None, None]
    soft_weight = (batch.soft * weights[:, None, None]).sum(1) * trust
    soft = -(batch.soft * weights[:, None, None] * log_p).sum(1) * trust
    loss = soft.sum() / soft_weight.sum().clamp_min(1e-6)
    if human.any():
        hard = F.cross_entropy(upsampled, batch.hard, weights, ignore_index=IGNORE, reduction="sum")
        count = weights[batch.hard.clamp_max(len(weights) - 1)][batch.hard != IGNORE].sum()
        loss = loss + hard / count.clamp_min(1e-6)
    return loss


def train(
    network: FcnLite,
    store: ViewStore,
    *,
    iterations: int,
    seed: int,
    head_rate: float,
    class_weight_power: float,
    encoder_rate: float = 0.0,
    seconds: float | None = None,
    say: Say = print,
) -> None:
    """Train ``network`` in place; with an ``encoder_rate`` its last stages learn too.

    The learning rates rise over the first hundred iterations and fall to zero as (1 - progress)^0.9;
    with ``seconds`` the progress is that of the clock when it is ahead. The result is a running mean of
    the weights (decay 0.998).
    """
    weights = class_weights(store, network.n_labels, class_weight_power)
    rng = np.random.default_rng([seed, iterations])
    late = list(network.encoder.blocks[LATE_FROM:])
    learning = nn.ModuleList(late) if encoder_rate else nn.ModuleList()
    network.requires_grad_(False)
    for parameter in [*network.head_parameters(), *learning.parameters()]:
        parameter.requires_grad_(True)
    head = torch.optim.AdamW(network.head_parameters(), lr=head_rate, weight_decay=1e-4)
    encoder = RelativeAdamW(list(learning.parameters()), encoder_rate) if encoder_rate else None
    mean = copy.deepcopy(network.state_dict())
    started, running, done = time.monotonic(), 0.0, 0.0
    for i in range(iterations):
        elapsed = time.monotonic() - started
        done = max(i / iterations, elapsed / seconds if seconds else 0.0)
        if done >= 1:
            break
        factor = min(1.0, (i + 1) / 100) * (1 - done) ** 0.9
        batch = store.draw(BATCH, rng)
        features = batch.features
        if encoder is not None:
            features = _late_features(network, features)
        logits = network.decode_coarse(features)
        loss = loss_of(logits, enlarge(logits, 2), batch, weights)
        loss.backward()
        for optimizer, rate in ((head, head_rate), (encoder, encoder_rate)):
            if optimizer is None:
                continue
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], 5.0)
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        _update_mean(mean, network, min(0.998, (i + 1) / (i + 10)))
        running += (loss.item() - running) * (0.02 if i else 1.0)
        if i % 100 == 99:
            say(f"  iteration {i + 1}/{iterations}: loss {running:.3f}, {elapsed:.0f} s")
    network.load_state_dict(mean)
    network.requires_grad_(True)


def _late_features(network: FcnLite, features: Features) -> Features:
    """Run the learning stages of the encoder on the features at stride 16."""
    f8, f16, _ = features
    x = f16.contiguous(memory_format=torch.channels_last)
    for block in network.encoder.blocks[LATE_FROM:]:
        x = block(x)
    return f8, f16, x


@torch.no_grad()
def _update_mean(mean: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    for name, value in network.state_dict().items():
        mean[name].lerp_(value, 1 - decay)
