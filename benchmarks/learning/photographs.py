"""The images of the benchmark: training ones to label, six validation ones to score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from annotator import UNLABELLED
from numpy.typing import NDArray
from PIL import Image

SETS = ("dsb2018_fluo", "dsb2018_stained", "em_vnc", "histo_gbm40", "peanut_plants", "camvid11")
STRETCH = (0.5, 99.5)  # percentiles that become black and white
SMALLEST_RANGE = 19.0  # grey levels between them: below, there is only noise to be seen


@dataclass(frozen=True, eq=False)
class Photograph:
    """An image with its mask, cut to the middle.

    Attributes
    ----------
    name
        Of the set and the file.
    image
        [H, W] or [H, W, 3].
    mask
        [H, W], 255 where nobody knows.
    """

    name: str
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]

    def stretched(self) -> Photograph:
        """Return the photograph with its image stretched to the whole range of brightness.

        By the percentiles that our learner stretches every image by (`experts.features`).
        """
        low, high = np.percentile(self.image, STRETCH)
        share = (self.image - low) / max(high - low, SMALLEST_RANGE)
        image = (255 * share.clip(0, 1)).round().astype(np.uint8)
        return Photograph(f"{self.name}, stretched", image, self.mask)

    def renamed(self, values: Mapping[int, int], rest: int) -> Photograph:
        """Return the photograph with other label values; those that have none become ``rest``."""
        table = np.full(UNLABELLED + 1, rest, np.uint8)
        table[list(values)] = list(values.values())
        table[UNLABELLED] = UNLABELLED
        return Photograph(self.name, self.image, table[self.mask])


@dataclass(frozen=True)
class PhotographSet:
    """One set of the bundle.

    Attributes
    ----------
    folder
        With `images`, `masks`, `classes.txt`, `train.txt` and `val.txt`.
    side
        Images are cut to their middle square of so many pixels.
    """

    folder: Path
    side: int

    @cached_property
    def classes(self) -> list[str]:
        """Names, by label value."""
        return (self.folder / "classes.txt").read_text().split()

    def training(self, k: int, seed: int) -> list[Photograph]:
        """Return k images to label; those of a smaller k are among those of a larger one."""
        names = self.names("train")
        order = np.random.default_rng([seed, 7]).permutation(len(names))
        return [self.read(names[i]) for i in order[:k]]

    def validation(self, n: int) -> list[Photograph]:
        """Return n images to score, the same for every seed, spread over the split."""
        names = self.names("val")
        return [self.read(names[i]) for i in np.linspace(0, len(names) - 1, n).round().astype(int)]

    def development(self, n: int, seed: int) -> list[Photograph]:
        """Return n images of the training split that `training` reaches last, to choose settings on."""
        names = self.names("train")
        order = np.random.default_rng([seed, 7]).permutation(len(names))
        return [self.read(names[i]) for i in order[-n:]]

    def names(self, split: str) -> list[str]:
        """Return the names of the images of a split."""
        return (self.folder / f"{split}.txt").read_text().split()

    def read(self, name: str) -> Photograph:
        """Return an image by its name in the lists of the splits."""
        (path,) = (self.folder / "images").glob(f"{name}.*")
        image = np.asarray(Image.open(path))
        mask = np.asarray(Image.open(self.folder / "masks" / f"{name}.png"))
        y0, x0 = (max(0, (length - self.side) // 2) for length in mask.shape)
        part = np.s_[y0 : y0 + self.side, x0 : x0 + self.side]
        image = image[..., :3] if image.ndim == 3 else image
        return Photograph(f"{self.folder.name}/{name}", image[part].copy(), mask[part].copy())
