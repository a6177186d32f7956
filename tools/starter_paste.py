"""Objects cut out of photographs and pasted into training views: rare and small things, seen more often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from starter_data import IGNORE, N_LABELS, VIEW, Photo

PASTED_SHARE = 0.35  # of the views
SIDE_RANGE = (24.0, 200.0)  # pixels of a view; longer side of a pasted object
_KEPT_SIDE = 240  # pixels; objects are kept no larger
_LEAST_PIXELS = 600  # of an object in its photograph
_SURE = 0.85  # the teacher's mean probability on what it takes for an object
_PER_CLASS = 120


@dataclass(frozen=True)
class CutOut:
    """An object with its outline."""

    label: int
    dataset: str
    pixels: Image.Image  # RGBA


class Scrapbook:
    """The objects of some photographs, by class.

    Parameters
    ----------
    photos
        Where to cut from. Where no person drew the mask, only what ``soft_targets`` is sure of is taken.
    soft_targets
        Class probabilities of a photograph, uint8 [L, h, w] in 1/255.
    """

    def __init__(self, photos: Sequence[Photo], soft_targets: Callable[[Photo], np.ndarray]) -> None:
        self._cuts: dict[str, list[list[CutOut]]] = {}
        for photo in photos:
            shelves = self._cuts.setdefault(photo.dataset, [[] for _ in range(N_LABELS)])
            mask = photo.mask()
            sure = None if photo.human else _enlarged(soft_targets(photo), mask.shape)
            for label in np.unique(mask[(mask != 0) & (mask != IGNORE)]):
                if len(shelves[label]) < _PER_CLASS:
                    shelves[label] += _objects(photo, mask, int(label), sure)

    def paste(
        self, image: np.ndarray, datasets: Sequence[str], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Paste up to three objects of some sets' photographs into a view, every class equally often.

        Parameters
        ----------
        image
            uint8 [320, 320, 3]; left as it is.

        Returns
        -------
        image, labels
            uint8 [320, 320, 3] and uint8 [320, 320], `IGNORE` where nothing was pasted.
        """
        canvas = Image.fromarray(image)
        labels = np.full(image.shape[:2], IGNORE, np.uint8)
        shelves = [
            [cut for dataset in datasets for cut in self._cuts.get(dataset, [[]] * N_LABELS)[label]]
            for label in range(N_LABELS)
        ]
        filled = [shelf for shelf in shelves if shelf]
        for _ in range(int(rng.integers(1, 4)) if filled else 0):
            shelf = filled[rng.integers(len(filled))]
            cut = shelf[rng.integers(len(shelf))]
            long_side = np.exp(rng.uniform(*np.log(SIDE_RANGE)))
            factor = min(long_side / max(cut.pixels.size), 1.5)
            size = tuple(max(2, round(side * factor)) for side in cut.pixels.size)
            piece = cut.pixels.resize((size[0], size[1]), Image.Resampling.BILINEAR, reducing_gap=2.0)
            if rng.random() < 0.5:
                piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            x, y = (int(rng.integers(-side // 4, VIEW - side + side // 4 + 1)) for side in size)
            alpha = piece.getchannel("A")
            canvas.paste(piece.convert("RGB"), (x, y), alpha)
            stencil = Image.new("L", canvas.size)
            stencil.paste(alpha, (x, y))
            labels[np.asarray(stencil) > 127] = cut.label
        return np.asarray(canvas), labels


def _enlarged(soft: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return probabilities uint8 [L, h, w] at a photograph's size (H, W), by nearest cells."""
    rows = np.arange(size[0]) * soft.shape[1] // size[0]
    columns = np.arange(size[1]) * soft.shape[2] // size[1]
    return soft[:, rows[:, None], columns]


def _objects(photo: Photo, mask: np.ndarray, label: int, soft: np.ndarray | None) -> list[CutOut]:
    """Cut out the connected regions of a class that are large enough, and sure if a teacher drew them."""
    pieces, _ = ndimage.label(mask == label)
    image, found = None, []
    for number, window in enumerate(ndimage.find_objects(pieces), start=1):
        inside = pieces[window] == number
        if inside.sum() < _LEAST_PIXELS:
            continue
        if soft is not None and soft[label][window][inside].mean() < _SURE * 255:
            continue
        image = photo.image() if image is None else image
        rows, columns = window
        piece = image.crop((columns.start, rows.start, columns.stop, rows.stop))
        piece.putalpha(Image.fromarray(inside.astype(np.uint8) * 255))
        piece.thumbnail((_KEPT_SIDE, _KEPT_SIDE))
        found.append(CutOut(label, photo.dataset, piece))
    return found
