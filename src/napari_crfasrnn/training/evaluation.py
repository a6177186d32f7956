"""How good a model is on images with masks: counts that add up, and what is read off them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn import metrics
from napari_crfasrnn.classes import ClassSpec
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.progress import Cancel, Progress, raise_if_cancelled
from napari_crfasrnn.training.data_sets import DataSet, Sample
from napari_crfasrnn.training.mask_files import IGNORE

BAND = 5  # pixels on each side of a true edge

SUMMARY = (
    "mean IoU", "mean band IoU", "mean boundary IoU", "pixel accuracy", "mean accuracy",
    "frequency-weighted IoU",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Score:
    """Counts over any number of images; two of them add up.

    Attributes
    ----------
    confusion, band
        ``[L, L]``, rows the true class, columns the given one: of all pixels, and of those within `BAND`
        pixels of a true edge.
    rims
        ``[2, L]``: pixels that the rims of the two masks of a class share, and those in either. A rim is
        2 % of the image's diagonal deep.
    """

    confusion: NDArray[np.int64]
    band: NDArray[np.int64]
    rims: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        given: NDArray[Any],  # [H, W]
        truth: NDArray[Any],  # [H, W]
        n_labels: int,
    ) -> Score:
        """Count one image."""
        return cls(
            metrics.confusion(given, truth, n_labels, IGNORE),
            metrics.band_confusion(given, truth, n_labels, BAND, IGNORE),
            metrics.rim_counts(given, truth, n_labels, ignore=IGNORE),
        )

    @classmethod
    def nothing(cls, n_labels: int) -> Score:
        """Return the score of no image."""
        square = np.zeros((n_labels, n_labels), np.int64)
        return cls(square, square, np.zeros((2, n_labels), np.int64))

    def __add__(self, other: Score) -> Score:
        return Score(self.confusion + other.confusion, self.band + other.band, self.rims + other.rims)

    def iou(self) -> NDArray[np.float64]:
        """Return the IoU of each class; NaN for one that is neither in the truth nor given."""
        return metrics.iou(self.confusion)

    def band_iou(self) -> NDArray[np.float64]:
        """Return the IoU of each class near true edges."""
        return metrics.iou(self.band)

    def boundary_iou(self) -> NDArray[np.float64]:
        """Return the Boundary IoU of each class."""
        both, either = self.rims
        return np.where(either > 0, both / np.maximum(either, 1), np.nan)

    def summary(self) -> dict[str, float]:
        """Return the numbers of `SUMMARY`; NaN where there is nothing to count."""
        boundary = self.boundary_iou()
        values = (
            metrics.miou(self.confusion),
            metrics.miou(self.band),
            float(np.nanmean(boundary)) if not np.isnan(boundary).all() else float("nan"),
            metrics.accuracy(self.confusion),
            metrics.mean_accuracy(self.confusion),
            metrics.frequency_weighted_iou(self.confusion),
        )
        return dict(zip(SUMMARY, values, strict=True))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model is worth on a set of images.

    Attributes
    ----------
    classes
        The class table.
    n_images
        How many images were looked at.
    before, after
        The network alone, and with its CRF.
    """

    classes: tuple[ClassSpec, ...]
    n_images: int
    before: Score
    after: Score

    def as_dict(self) -> dict[str, Any]:
        """Return everything in JSON values; what cannot be told is None."""

        def told(values: NDArray[np.float64]) -> list[float | None]:
            return [None if np.isnan(value) else float(value) for value in values]

        def one(score: Score) -> dict[str, Any]:
            return {
                **{name: None if np.isnan(v) else v for name, v in score.summary().items()},
                "IoU": told(score.iou()),
                "band IoU": told(score.band_iou()),
                "boundary IoU": told(score.boundary_iou()),
                "confusion": score.confusion.tolist(),
            }

        return {
            "images": self.n_images,
            "classes": [spec.name for spec in self.classes],
            "before": one(self.before),
            "after": one(self.after),
        }


@dataclass(frozen=True, eq=False)
class Judged:
    """One image with its truth and what a model says, labels ``[H, W]``."""

    sample: Sample
    image: NDArray[np.float32]  # [C, H, W]
    truth: NDArray[np.uint8]
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]


def judge(
    model: SegmentationModel,
    data: DataSet,
    samples: Sequence[Sample],
    *,
    crf: bool = True,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Iterator[Judged]:
    """Segment the samples one by one, with and without the CRF.

    Parameters
    ----------
    model
        Its classes must be those of ``data``, in the same order.
    data, samples
        What to look at.
    crf
        False spares the work: ``after`` is then ``before``.
    progress
        Called with the number of images done and their total.
    cancel
        Asked before every image.

    Raises
    ------
    ValueError
        If the classes differ, or a file is damaged.
    Cancelled
        When asked to stop.
    """
    check_classes(model, data)
    for place, sample in enumerate(samples):
        raise_if_cancelled(cancel)
        image, truth = data.load(sample)
        before, after = _predict(model, torch.from_numpy(image)[None], crf=crf)
        yield Judged(sample, image, truth, before, after)
        if progress is not None:
            progress(place + 1, len(samples))


def evaluate(
    model: SegmentationModel,
    data: DataSet,
    samples: Sequence[Sample] | None = None,
    *,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Evaluation:
    """Score a model with and without its CRF on images with masks.

    Parameters
    ----------
    model, data, progress, cancel
        As in `judge`.
    samples
        None: those of the set's validation list.

    Raises
    ------
    ValueError
        If there is no image, the classes differ, or a file is damaged.
    """
    samples = data.val if samples is None else samples
    if not samples:
        raise ValueError(f"there must be an image to evaluate, got none in {data.folder}")
    before = after = Score.nothing(model.n_labels)
    for judged in judge(model, data, samples, progress=progress, cancel=cancel):
        before += Score.of(judged.before, judged.truth, model.n_labels)
        after += Score.of(judged.after, judged.truth, model.n_labels)
    return Evaluation(model.classes, len(samples), before, after)


def check_classes(model: SegmentationModel, data: DataSet) -> None:
    """Raise unless model and data have the same classes in the same order."""
    ours, theirs = ([spec.name for spec in table] for table in (model.classes, data.classes))
    if ours != theirs:
        if len(ours) != len(theirs):
            how = f"{len(ours)} and {len(theirs)} of them"
        else:
            place = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
            how = f"value {place} is {ours[place]!r} and {theirs[place]!r}"
        raise ValueError(f"model and data must have the same classes in the same order, got {how}")


@torch.no_grad()
def _predict(
    model: SegmentationModel,
    image: Tensor,  # [1, C, H, W]
    *,
    crf: bool,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    framed = model.framed(image)
    if framed is not None:  # as the demos of the original looked at images: the CRF, too, works in the frame
        seen = model.framed_input(framed)
        unary = model.network(seen)
        refined = framed.restore(model.crf(unary, seen)) if crf else framed.restore(unary)
        logits = framed.restore(unary)
    else:
        logits = model.logits(image)
        refined = model.crf(logits, prepared=model.prepare(image)) if crf else logits
    before, after = (x[0].argmax(0).to(torch.uint8).cpu().numpy() for x in (logits, refined))
    return before, after
