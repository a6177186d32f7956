"""How the head of the starter's network learns on features of frozen encoders."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_crfasrnn.fcn import FcnLite, enlarge
from starter_data import IGNORE
from starter_views import Batch, ViewStore

BATCH = 16
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
    rate: float,
    class_weight_power: float,
    say: Say = print,
) -> None:
    """Train the head of ``network`` in place; the encoders stay as they are.

    The learning rate rises over the first hundred iterations and falls to zero as (1 - progress)^0.9.
    The result is a running mean of the weights (decay 0.998).
    """
    weights = class_weights(store, network.n_labels, class_weight_power)
    rng = np.random.default_rng([seed, iterations])
    head = network.head_parameters()
    network.requires_grad_(False)
    for parameter in head:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(head, lr=rate, weight_decay=1e-4)
    mean = [parameter.detach().clone() for parameter in head]
    started, running = time.monotonic(), 0.0
    for i in range(iterations):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (i + 1) / 100) * (1 - i / iterations) ** 0.9
        batch = store.draw(BATCH, rng)
        logits = network.decode_coarse(batch.features)
        loss = loss_of(logits, enlarge(logits, 2), batch, weights)
        loss.backward()
        nn.utils.clip_grad_norm_(head, 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running += (loss.item() - running) * (0.02 if i else 1.0)
        with torch.no_grad():
            for held, parameter in zip(mean, head, strict=True):
                held.lerp_(parameter, 1 - min(0.998, (i + 1) / (i + 10)))
        if i % 100 == 99:
            say(f"  iteration {i + 1}/{iterations}: loss {running:.3f}, {time.monotonic() - started:.0f} s")
    with torch.no_grad():
        for held, parameter in zip(mean, head, strict=True):
            parameter.copy_(held)
    network.requires_grad_(True)


@torch.no_grad()
def go_back(network: FcnLite, before: FcnLite, share: float) -> None:
    """Take back a share of what the logits of ``network`` have learnt since ``before``, in place.

    The score layers are mixed, which mixes the logits, where the score layers of ``before`` read nothing
    of the head but what is frozen (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
    """
    for layer, old in zip(network.score_layers, before.score_layers, strict=True):
        for parameter, source in zip(layer.parameters(), old.parameters(), strict=True):
            parameter.lerp_(source, share)
