"""Failures as a picture: of each run the image with the lowest score, its truth, and what ours says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from annotator import UNLABELLED
from numpy.typing import NDArray
from photographs import Photograph
from PIL import Image

from napari_crfasrnn import metrics
from napari_crfasrnn.classes import voc_color

_GAP = 4  # pixels between pictures, white
_EDGE = ((0, _GAP), (0, _GAP), (0, 0))


def save_failures(
    path: Path, runs: Iterable[tuple[Sequence[Photograph], Sequence[NDArray[np.integer]], int]]
) -> None:
    """Save a picture with a row for each run.

    Parameters
    ----------
    path
        Of the PNG file.
    runs
        Images with their masks, the label values given for each, and the number of classes.
    """
    rows = []
    for photographs, given, n_labels in runs:
        scores = [
            metrics.miou(metrics.confusion(labels, photograph.mask, n_labels))
            for photograph, labels in zip(photographs, given, strict=True)
        ]
        worst = int(np.argmin(scores))
        photograph = photographs[worst]
        print(f"{photograph.name}: mean IoU {scores[worst]:.3f}", flush=True)
        grey = photograph.image if photograph.image.ndim == 3 else np.stack([photograph.image] * 3, -1)
        parts = [grey, _coloured(photograph.mask), _coloured(given[worst])]
        rows.append(np.concatenate([np.pad(part, _EDGE, constant_values=255) for part in parts], axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    picture = Image.fromarray(np.concatenate(padded).astype(np.uint8))
    picture.quantize(128).save(path, optimize=True)


def _coloured(labels: NDArray[np.integer]) -> NDArray[np.uint8]:  # [H, W] → [H, W, 3]
    colours = np.array([voc_color(value) for value in range(UNLABELLED + 1)])
    colours[0] = (90, 90, 90)  # black would look like nothing
    colours[UNLABELLED] = (255, 255, 255)
    return colours[labels].astype(np.uint8)
