"""The photographs the starter model is trained on and measured with, all in the 21 PASCAL VOC classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol
from zlib import crc32

import numpy as np
from PIL import Image

from napari_crfasrnn.classes import VOC_CLASSES

IGNORE = 255
N_LABELS = len(VOC_CLASSES)
VIEW = 320  # pixels; side of a training view

HUMAN_SETS = ("msrc21", "voc_coco128")
TEACHER_SET = "distill_pseudo_voc"

# MSRC names differ from VOC's for these two; flowers may stand in a pot or not, so they are left out.
_MSRC_TO_VOC = {"face": "person", "body": "person"}
_MSRC_IGNORED = {"flower"}

# Which photographs of a training list are held out for fitting the CRF: one in so many.
_CAL_ONE_IN = {"msrc21": 6, "voc_coco128": 5}


class Labelled(Protocol):
    """An image with its mask, of whatever set."""

    @property
    def dataset(self) -> str:
        """The set it is from."""

    @property
    def key(self) -> str:
        """A name that is unique over all sets."""

    def image(self) -> Image.Image:
        """Read the image, in colour or grey."""

    def mask(self) -> np.ndarray:
        """Read the mask, uint8 [H, W]; 255 = ignore."""


@dataclass(frozen=True)
class Photo:
    """One photograph with its mask in VOC label values (255 = ignore)."""

    dataset: str
    name: str
    folder: Path

    @property
    def human(self) -> bool:
        """Whether a person drew the mask; otherwise it is a teacher's prediction."""
        return self.dataset in HUMAN_SETS

    @property
    def key(self) -> str:
        """A name that is unique over all sets."""
        return f"{self.dataset}/{self.name}"

    @cached_property
    def _image_path(self) -> Path:
        return next(self.folder.joinpath("images").glob(f"{self.name}.*"))

    def image(self) -> Image.Image:
        """Read the photograph as RGB."""
        with Image.open(self._image_path) as image:
            return image.convert("RGB")

    def mask(self) -> np.ndarray:
        """Read the mask, uint8 [H, W]."""
        with Image.open(self.folder / "masks" / f"{self.name}.png") as image:
            values = np.asarray(image)
        return _to_voc(self.folder)[values]


def _to_voc(folder: Path) -> np.ndarray:
    """Return the table from a set's label values to VOC's, uint8 [256]."""
    voc = {spec.name: value for value, spec in enumerate(VOC_CLASSES)}
    table = np.full(256, IGNORE, np.uint8)
    for value, name in enumerate((folder / "classes.txt").read_text().split()):
        if name not in _MSRC_IGNORED:
            table[value] = voc.get(_MSRC_TO_VOC.get(name, name), 0)
    return table


def read_split(data: Path, dataset: str, split: str) -> list[Photo]:
    """List the photographs of ``split`` ("train" or "val") of a set below the folder ``data``."""
    folder = data / dataset
    return [Photo(dataset, name, folder) for name in (folder / f"{split}.txt").read_text().split()]


def fit_and_cal(data: Path) -> tuple[list[Photo], list[Photo]]:
    """Split all training photographs into those the network learns from and those held out for the CRF.

    Only human masks are held out. The choice hangs on the name alone, so it is the same in every run.
    """
    fit = read_split(data, TEACHER_SET, "train")
    cal: list[Photo] = []
    for dataset, one_in in _CAL_ONE_IN.items():
        for photo in read_split(data, dataset, "train"):
            (cal if crc32(photo.name.encode()) % one_in == 0 else fit).append(photo)
    return fit, cal


@dataclass(frozen=True)
class View:
    """A window of 320×320 pixels on a photograph, as the network sees it in training."""

    scale: float  # pixels of the view per pixel of the photograph
    y: float  # corner of the window, in pixels of the photograph
    x: float
    flip: bool
    gain: tuple[float, float, float]  # factor on each channel

    def image(self, photo: Image.Image) -> np.ndarray:
        """Return the window, uint8 [320, 320, 3]; outside of the photograph it is mid-grey."""
        side = VIEW / self.scale
        box = (self.x, self.y, self.x + side, self.y + side)
        if self.scale < 1:  # PIL's affine transform does not filter: shrink first
            small = photo.resize(
                (max(1, round(photo.width * self.scale)), max(1, round(photo.height * self.scale))),
                Image.Resampling.BILINEAR,
                reducing_gap=2.0,
            )
            fx, fy = small.width / photo.width, small.height / photo.height
            box = (box[0] * fx, box[1] * fy, box[2] * fx, box[3] * fy)
            photo = small
        window = photo.transform(
            (VIEW, VIEW), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR, fillcolor=(127, 127, 127)
        )
        pixels = np.asarray(window).astype(np.float32) * np.asarray(self.gain, np.float32)
        pixels = np.clip(pixels, 0, 255).astype(np.uint8)
        return pixels[:, ::-1] if self.flip else pixels

    def sample(self, values: np.ndarray, step: int) -> np.ndarray:
        """Take nearest values of a map [..., H, W] of the photograph at the last pixel of each cell.

        Cells of ``step`` pixels sit at their last pixel, as those of the network do. Returns
        [..., 320/step, 320/step]; cells outside of the photograph hold `IGNORE` (masks are uint8).
        """
        ys, xs = self._positions(step)
        h, w = values.shape[-2:]
        iy, ix = np.floor(ys).astype(int), np.floor(xs).astype(int)
        out = values[..., iy.clip(0, h - 1)[:, None], ix.clip(0, w - 1)[None, :]]
        outside = ((iy < 0) | (iy >= h))[:, None] | ((ix < 0) | (ix >= w))[None, :]
        return np.where(outside, np.asarray(IGNORE, out.dtype), out)

    def grid(self, size: tuple[int, int], step: int) -> np.ndarray:
        """Return the sampling grid [n, n, 2] for torch's ``grid_sample`` on a map of the photograph.

        ``size`` is the photograph's (H, W); the map may have any resolution. Values beyond -1..1 lie outside.
        """
        ys, xs = self._positions(step)
        gy, gx = np.meshgrid(2 * ys / size[0] - 1, 2 * xs / size[1] - 1, indexing="ij")
        return np.stack([gx, gy], -1).astype(np.float32)

    def _positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the photograph's coordinates (pixel edges at whole numbers) of the cells' pixels."""
        at = np.arange(step - 1, VIEW, step)
        across = VIEW - 1 - at if self.flip else at
        return self.y + (at + 0.5) / self.scale, self.x + (across + 0.5) / self.scale


def random_views(
    size: tuple[int, int], mask: np.ndarray, count: int, rng: np.random.Generator
) -> Iterator[View]:
    """Draw views of a photograph of ``size`` (H, W).

    The first shows the whole photograph. The others are scaled so that its longer side would be
    240 to 720 pixels, and half of them are centred on a pixel that is not background.
    """
    height, width = size
    foreground = np.argwhere((mask != 0) & (mask != IGNORE))
    for i in range(count):
        long_side = VIEW if i == 0 else np.exp(rng.uniform(np.log(240), np.log(720)))
        scale = float(long_side) / max(height, width)
        side = VIEW / scale
        if len(foreground) and rng.random() < 0.5:
            cy, cx = foreground[rng.integers(len(foreground))] + rng.uniform(-0.3, 0.3, 2) * side
        else:
            cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        gain = np.exp(rng.normal(0, 0.15)) * np.exp(rng.normal(0, 0.06, 3))
        yield View(
            scale,
            _inside(cy - side / 2, side, height),
            _inside(cx - side / 2, side, width),
            flip=bool(rng.random() < 0.5) if i else False,
            gain=(float(gain[0]), float(gain[1]), float(gain[2])) if i else (1.0, 1.0, 1.0),
        )


def _inside(corner: float, side: float, length: int) -> float:
    """Move a window so that it holds as much of the photograph as it can."""
    low, high = sorted((0.0, length - side))
    return float(min(max(corner, low), high))
