"""What a training learns from: which images serve which stage, and how much each class weighs."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.training.data_sets import DataSet, Sample

# A class in fewer of the images keeps its common weight in the CRF: nothing is known of it.
_ENOUGH_IMAGES = 4


class Material:
    """The images of a data set that teach something, all of whose masks were looked at.

    Images without a labelled pixel teach nothing and are left out.

    Parameters
    ----------
    data
        The set.
    held_out
        Share of the images that the network alone does not learn from.
    cancel
        Asked before every mask.

    Attributes
    ----------
    train
        Images to train on.
    fit, held
        Those that the network alone learns from, and those held out.

    Raises
    ------
    ValueError
        If a mask is damaged or does not fit, of the images to train on or to validate with; or if these
        teach nothing: there are none, or they show one class.
    Cancelled
        When asked to stop.
    """

    def __init__(self, data: DataSet, held_out: float, cancel: Cancel | None = None) -> None:
        if not data.train:
            raise ValueError(f"there must be images to train on, got none in {data.folder}")
        counts = []
        for sample in data.train:
            raise_if_cancelled(cancel)
            counts.append(count_labels(data, sample))
        for sample in data.val:  # or what is wrong with them is found after hours
            raise_if_cancelled(cancel)
            data.labels(sample)
        self._counts = {
            sample: count for sample, count in zip(data.train, counts, strict=True) if count.any()
        }  # [L] each
        if not self._counts:
            raise ValueError(f"the masks to train on must hold labelled pixels, got none in {data.folder}")
        self._total = np.sum(counts, 0)
        shown = np.flatnonzero(self._total)
        if len(shown) < 2 and data.n_labels > 1:
            name = data.classes[shown[0]].name
            raise ValueError(
                f"the masks to train on must show two classes at least, got {name!r} alone in {data.folder}: "
                "in masks of 0 and 255, 255 stands for unlabelled; write the place of the class in the class "
                "table instead"
            )
        self.train = tuple(sample for sample in data.train if sample in self._counts)
        self.fit, self.held = divide(self.train, held_out)

    def weights(self, balance: float) -> Tensor:  # [L]
        """Return share ** -balance, 1 on average over pixels; a class that is nowhere is as the rarest."""
        share = self._total / self._total.sum()
        share = np.maximum(share, share[share > 0].min())
        weights = share**-balance
        return torch.from_numpy(weights / (weights * self._total).sum() * self._total.sum()).float()

    def known_pairs(self, samples: tuple[Sample, ...]) -> Tensor:  # [L, L], 0 or 1
        """Mark the pairs of classes of which enough of some images tell something."""
        shown = np.stack([self._counts[sample] > 0 for sample in samples])  # [images, L]
        known = shown.sum(0) >= min(_ENOUGH_IMAGES, len(samples))
        return torch.from_numpy(np.outer(known, known).astype(np.float32))


def divide(samples: tuple[Sample, ...], share: float) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Return the images the network alone learns from and those held out.

    A name always falls on the same side, whatever other images there are. Where nothing would be left to
    learn from, nothing is held out.
    """
    held = tuple(s for s in samples if crc32(s.name.encode()[::-1]) % 1000 < 1000 * share)
    fit = tuple(s for s in samples if s not in set(held))
    return (fit, held) if fit else (samples, ())


def spread(samples: tuple[Sample, ...], count: int) -> list[Sample]:
    """Return ``count`` samples evenly spread over the list, or all if there are fewer."""
    count = min(count, len(samples))
    return [samples[place * len(samples) // count] for place in range(count)]


def count_labels(data: DataSet, sample: Sample) -> NDArray[np.int64]:  # [L]
    """Return how many pixels of an image have each label."""
    return np.bincount(data.labels(sample).reshape(-1), minlength=256)[: data.n_labels]


def fingerprint(data: DataSet) -> str:
    """Return what tells data sets apart: the names of images and classes, in order."""
    names: list[Any] = [[sample.name for sample in part] for part in (data.train, data.val)]
    table = [spec.name for spec in data.classes]
    return hashlib.sha256(json.dumps([names, table, data.values.tolist()]).encode()).hexdigest()
