"""The labels that may win around a stroke: a preview computes with these, and with all others as one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.network import SegmentationModel

AS_QUICK_AS_ONE = 8  # compiled code computes with rows of so many values, the last ones empty
COARSE_STEP = 8  # pixels; the likeliest labels are found on a grid of these


@dataclass(frozen=True, eq=False)
class Contenders:
    """Some of the labels of a model, and the CRF among them and what stands for all others.

    Letters: A contenders; K values of a point, A and the one for the others, or A where these are all labels.
    """

    labels: Tensor  # int64 [A], ascending
    others: Tensor  # int64 [L - A]
    crf: CrfRnn  # of K labels

    @classmethod
    def choose(
        cls,
        model: SegmentationModel,
        needed: NDArray[np.bool_],  # [L]
        logits: Tensor,  # [1, L, h, w]
    ) -> Contenders:
        """Take those that are needed, and the likeliest of some logits as long as these cost nothing."""
        n_labels = len(needed)
        n_values = (int(needed.sum()) // AS_QUICK_AS_ONE + 1) * AS_QUICK_AS_ONE
        if n_values >= n_labels:
            everyone = torch.arange(n_labels, device=logits.device)
            return cls(everyone, everyone[:0], model.crf)
        mass = logits[0, :, ::COARSE_STEP, ::COARSE_STEP].softmax(0).mean((1, 2))
        order = (mass + 2.0 * torch.from_numpy(needed).to(mass)).argsort(descending=True)
        labels, others = order[: n_values - 1].sort().values, order[n_values - 1 :]
        return cls(labels, others, crf_among(model.crf, labels))

    @property
    def are_all(self) -> bool:
        """Whether these are all labels of the model."""
        return len(self.others) == 0

    def join(
        self,
        logits: Tensor,  # [1, L, h, w]
    ) -> Tensor:  # [1, K, h, w]
        """Return logits in which the others are one, as likely as one of them on average."""
        if self.are_all:
            return logits
        scale = self.crf.log_unary_scale.exp()
        together = (scale * logits[:, self.others]).logsumexp(1, keepdim=True) - math.log(len(self.others))
        return torch.cat([logits[:, self.labels], together / scale], dim=1)

    def count_others(
        self,
        unary: Tensor,  # [1, K, h, w]
    ) -> Tensor:  # [1, K, h, w]
        """Return logits in which the others are as likely as all of them together.

        Last, since where the network is not to be trusted, each label becomes as likely as any other.
        """
        if self.are_all:
            return unary
        bias = torch.zeros_like(unary[:, :, :1, :1])
        bias[:, -1] = math.log(len(self.others)) / self.crf.log_unary_scale.exp()
        return unary + bias

    def include(self, needed: NDArray[np.bool_]) -> bool:
        """Return whether all that are needed, ``[L]``, are among them."""
        return bool(np.count_nonzero(needed[self.labels.cpu().numpy()]) == np.count_nonzero(needed))

    def numbers_of(self, strokes: NDArray[Any]) -> NDArray[Any]:
        """Return strokes of these labels with the place of each among them."""
        if self.are_all:
            return strokes
        numbers = np.full(ignore_value(strokes.dtype) + 1, ignore_value(strokes.dtype), strokes.dtype)
        numbers[self.labels.cpu().numpy()] = np.arange(len(self.labels))
        placed: NDArray[Any] = numbers[strokes]
        return placed

    def winners(
        self,
        logits: Tensor,  # [1, K, h, w]
    ) -> Tensor:  # int64 [h, w]
        """Return the contender with the highest logit."""
        return self.labels[logits[0, : len(self.labels)].max(0).indices]

    def spread(
        self,
        logits: Tensor,  # [1, K, h, w]
        before: Tensor | None,  # [1, L, h, w]
    ) -> Tensor:  # [1, L, h, w]
        """Return logits of all labels: of the others as they were before, else the lowest of these."""
        if self.are_all:
            return logits
        if before is None:
            n_labels = len(self.labels) + len(self.others)
            everywhere = logits.amin(1, keepdim=True).repeat(1, n_labels, 1, 1)
        else:
            everywhere = before.clone()
        everywhere[:, self.labels] = logits[:, : len(self.labels)]
        return everywhere


def labels_in(strokes: NDArray[Any], n_labels: int) -> NDArray[np.bool_]:  # [L]
    """Return which labels occur in labels or strokes."""
    return np.bincount(strokes.ravel(), minlength=n_labels)[:n_labels] > 0


@torch.no_grad()
def crf_among(
    crf: CrfRnn,
    labels: Tensor,  # int64 [A]
) -> CrfRnn:
    """Return a CRF of some labels, fewer than all, and a last one, which stands for the others together.

    Its weights are constants, and it is in evaluation mode. It computes what ``crf`` would if the others
    were equally likely, and alike to each label: nearly so where none is likely, or nothing is known.
    """
    # A map is a product of matrices over all labels: its part is not the product of their parts.
    constant = {"trainable_thetas": False, "weight_form": "full", "compatibility_form": "learned"}
    part = CrfRnn(len(labels) + 1, crf.settings.model_copy(update=constant))
    part.to(crf.compatibility.device).eval().requires_grad_(False)
    part.backend = crf.backend
    part.compatibility.copy_(torch.eye(part.n_labels))
    part.log_unary_scale.copy_(crf.log_unary_scale)
    part.log_output_scale.copy_(crf.log_output_scale)
    joined = torch.zeros(part.n_labels, crf.n_labels, device=labels.device)
    joined[-1] = 1.0 / (crf.n_labels - len(labels))
    joined[:, labels] = torch.eye(part.n_labels, len(labels), device=labels.device)
    for own, learned in zip((part.spatial_weights, part.bilateral_weights), crf.maps(), strict=True):
        own.copy_(joined @ learned @ joined.T)
    if part.spatial_offsets is not None and part.bilateral_offsets is not None:
        for iteration in range(len(part.spatial_offsets)):
            spatial, bilateral = (joined @ learned @ joined.T for learned in crf.maps(iteration))
            part.spatial_offsets[iteration] = spatial - part.spatial_weights
            part.bilateral_offsets[iteration] = bilateral - part.bilateral_weights
    return part
