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

from napari_crfasrnn.training.data_sets import DataSet, Sample


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


def class_weights(counts: NDArray[np.int64], balance: float) -> Tensor:  # [L]
    """Return share ** -balance, 1 on average over pixels; a class that is nowhere weighs as the rarest."""
    share = counts / counts.sum()
    share = np.maximum(share, share[share > 0].min())
    weights = share**-balance
    return torch.from_numpy(weights / (weights * counts).sum() * counts.sum()).float()


def fingerprint(data: DataSet) -> str:
    """Return what tells data sets apart: the names of images and classes, in order."""
    names: list[Any] = [[sample.name for sample in part] for part in (data.train, data.val)]
    table = [spec.name for spec in data.classes]
    return hashlib.sha256(json.dumps([names, table, data.values.tolist()]).encode()).hexdigest()
