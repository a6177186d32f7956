"""What a shipped model is worth: IoU per class on images it never saw, before and after its CRF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from napari_crfasrnn import metrics
from napari_crfasrnn.classes import VOC_CLASSES, ClassSpec
from napari_crfasrnn.network import SegmentationModel
from starter_data import IGNORE, N_LABELS, Labelled, Photo, read_split
from starter_teacher import Teacher

BAND = 5  # pixels on each side of a true edge
VALIDATION_SETS = ("voc_coco128", "msrc21")


@dataclass(frozen=True)
class Score:
    """IoU of one set: NaN for a class that is not in the truth."""

    name: str
    n_photos: int
    iou: np.ndarray  # [L], network alone
    iou_crf: np.ndarray
    band: np.ndarray  # [L], within `BAND` pixels of a true edge
    band_crf: np.ndarray

    def as_json(self) -> dict[str, object]:
        """Return the numbers as a checkpoint's provenance holds them."""
        return {
            "photographs": self.n_photos,
            "miou": round(mean(self.iou), 4),
            "miou_crf": round(mean(self.iou_crf), 4),
            "band_miou": round(mean(self.band), 4),
            "band_miou_crf": round(mean(self.band_crf), 4),
        }


def mean(iou: np.ndarray) -> float:
    """Return the mean over the classes that the truth of the set holds."""
    return float(np.nanmean(iou))


def pixels_of(photo: Labelled) -> torch.Tensor:
    """Read an image as float32 [1, C, H, W], 0..255."""
    return torch.from_numpy(np.atleast_3d(np.array(photo.image()))).permute(2, 0, 1)[None].float()


@torch.inference_mode()
def predict(model: SegmentationModel, photo: Labelled) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels [H, W] of a photograph from the network alone and after the CRF."""
    image = pixels_of(photo)
    logits = model.logits(image)
    refined = model.crf(logits, prepared=model.prepare(image))
    return logits[0].argmax(0).numpy().astype(np.uint8), refined[0].argmax(0).numpy().astype(np.uint8)


def score_labels(
    name: str,
    truths: Sequence[np.ndarray],
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    n_labels: int = N_LABELS,
) -> Score:
    """Score labels [H, W] of several photographs, which may differ in size, as one set."""
    truth = _stack(truths)
    present = np.bincount(truth.ravel(), minlength=256)[:n_labels] > 0
    ious = []
    for labels in (_stack(before, 0), _stack(after, 0)):
        whole = metrics.iou(metrics.confusion(labels, truth, n_labels, IGNORE))
        band = metrics.band_iou(labels, truth, n_labels, BAND, IGNORE)
        ious.append([np.where(present, iou, np.nan) for iou in (whole, band)])
    (iou, band), (iou_crf, band_crf) = ious
    return Score(name, len(truth), iou, iou_crf, band, band_crf)


def evaluate(model: SegmentationModel, data: Path, dataset: str, *, whole: bool = False) -> Score:
    """Score a model on one set: its validation list, or all of it where none of it was trained on."""
    return evaluate_on(model, *photographs(data, dataset, whole=whole))


def photographs(data: Path, dataset: str, *, whole: bool = False) -> tuple[str, list[Photo]]:
    """Return what some photographs are called together, and which they are."""
    splits = ("train", "val") if whole else ("val",)
    name = f"{dataset} {'all' if whole else 'val'}"
    return name, [photo for split in splits for photo in read_split(data, dataset, split)]


def evaluate_teacher(teacher: Teacher, name: str, photos: Sequence[Photo]) -> Score:
    """Score the teacher, asked once per photograph; it has no CRF, so it is the same before and after."""
    labels = []
    for photo in photos:
        image = photo.image()
        marginals = teacher.marginals(image, 1.0)[None]
        full = F.interpolate(marginals, size=(image.height, image.width), mode="bilinear")
        labels.append(full[0].argmax(0).numpy().astype(np.uint8))
    return score_labels(name, [photo.mask() for photo in photos], labels, labels)


def evaluate_on(model: SegmentationModel, name: str, photos: Sequence[Labelled]) -> Score:
    """Score a model on some images, together called ``name``."""
    before, after = zip(*(predict(model, photo) for photo in photos), strict=True)
    return score_labels(name, [p.mask() for p in photos], before, after, model.n_labels)


def _stack(labels: Sequence[np.ndarray], fill: int = IGNORE) -> np.ndarray:
    """Pad label images at the bottom and the right to one size."""
    h, w = (max(image.shape[axis] for image in labels) for axis in (0, 1))
    stack = np.full((len(labels), h, w), fill, np.uint8)
    for plane, image in zip(stack, labels, strict=True):
        plane[: image.shape[0], : image.shape[1]] = image
    return stack


def table(scores: Sequence[Score], classes: Sequence[ClassSpec] = VOC_CLASSES) -> str:
    """Return a Markdown table: a row per class, for each set IoU and band IoU before → after the CRF."""
    heads = [f"{s.name} ({s.n_photos}): IoU → CRF | band → CRF" for s in scores]
    rows = [f"| class | {' | '.join(heads)} |", f"|---|{'---|' * (2 * len(scores))}"]
    names = [spec.name for spec in classes]
    for value, name in enumerate(names):
        if any(np.isfinite(s.iou[value]) for s in scores):
            cells = [_cells(s.iou[value], s.iou_crf[value], s.band[value], s.band_crf[value]) for s in scores]
            rows.append(f"| {name} | {' | '.join(cells)} |")
    means = [_cells(mean(s.iou), mean(s.iou_crf), mean(s.band), mean(s.band_crf)) for s in scores]
    rows.append(f"| **mean** | {' | '.join(means)} |")
    return "\n".join(rows)


def _cells(iou: float, iou_crf: float, band: float, band_crf: float) -> str:
    def pair(before: float, after: float) -> str:
        return f"{before:.3f} → {after:.3f}" if np.isfinite(before) else "–"

    return f"{pair(iou, iou_crf)} | {pair(band, band_crf)}"
