"""The small models beside the starter: what each is for, what it learns from and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image

from napari_crfasrnn.config import Preprocessing
from stains import as_dab

# Micrographs: brightness means nothing from one to the next, and small things must not be shrunk away.
_MICROGRAPH = Preprocessing(stretch=(0.5, 99.5), long_side=2048)


def _one_in_five(name: str) -> bool:
    return crc32(name.encode()) % 5 == 0


def _last_sections(name: str) -> bool:
    """Tell whether an EM tile is of the last two of the twelve training sections: neighbours are alike."""
    return int(name[3:5]) >= 10


def _some_street(name: str) -> bool:
    """Tell whether a frame is of a stretch of one of the three drives, away from the validation frames."""
    return name.startswith("0016E5") and 5280 <= int(name[7:]) <= 6780


@dataclass(frozen=True)
class Recipe:
    """One model: its data, classes and terms, and how it is trained."""

    title: str
    classes: tuple[str, ...]
    sets: tuple[str, ...]
    """Folders of the data; masks of all hold places in ``classes``."""
    held_out: Callable[[str], bool]
    """By its name, whether an image is kept for the CRF."""
    sources: dict[str, str]
    """Source → its terms, as they are stated."""
    licence: str
    preprocessing: Preprocessing
    joined: dict[str, str] = field(default_factory=dict, kw_only=True)
    """Classes that are taught apart from another one, and then dropped: their pixels belong to that one."""
    scale: tuple[float, float]
    """Range of the factor on the size of training windows."""
    turns: bool
    """Whether up and down mean nothing: windows are turned by right angles."""
    tints: bool = False
    """Whether channels may be dimmed or missing, as in fluorescence shown in one colour."""
    stains: bool = False
    """Whether colours are those of stains, of which there are others."""
    iterations: int = 3000
    crop: int = 224
    """Side of a training window, in pixels."""
    batch: int = 6
    crf: dict[str, Any] = field(default_factory=lambda: dict(_SHORT_SEARCH))
    """What of `CrfRecipe` differs."""


_WIDE_SEARCH = ((5, 8), (10, 5), (10, 13), (20, 8))
_SHORT_SEARCH: dict[str, Any] = {
    "widths": ((5, 8), (10, 5), (10, 13)),
    "weights": (1, 2),
    "search_photos": 6,
    "iterations": 80,
}
_DSB = "2018 Data Science Bowl, stage 1 (BBBC038, masks with the community's fixes)"
_DSB_TERMS = "CC0 as published by the Broad Bioimage Benchmark Collection"
_NOTE = " The program has its own licence. Encoder: EfficientNet-Lite0, ImageNet weights, Apache-2.0."

RECIPES = {
    "nuclei-fluorescence": Recipe(
        title="Nuclei in fluorescence micrographs: nucleus, and the border where two touch",
        classes=("background", "nucleus", "border"),
        sets=("dsb2018_fluo",),
        held_out=_one_in_five,
        sources={_DSB: _DSB_TERMS},
        licence="Weights free to use: learned from images published under CC0." + _NOTE,
        preprocessing=_MICROGRAPH,
        scale=(0.6, 2.0),
        turns=True,
        tints=True,
        crf={"widths": _WIDE_SEARCH},
    ),
    "nuclei-stained": Recipe(
        title="Nuclei in stained tissue (H&E and others)",
        classes=("background", "nucleus", "border"),
        sets=("dsb2018_stained", "histo_gbm40"),
        held_out=_one_in_five,
        sources={_DSB: _DSB_TERMS, "GBM40, H&E of glioblastoma (Kong et al., ISBI 2016)": "none stated"},
        licence=(
            "Weights for research, teaching and evaluation: for the images of GBM40 no terms are stated."
            + _NOTE
        ),
        preprocessing=_MICROGRAPH,
        joined={"border": "nucleus"},
        scale=(0.6, 1.7),
        turns=True,
        stains=True,
    ),
    "em-tissue": Recipe(
        title="Electron micrographs of nervous tissue: membranes, mitochondria, synapses, glia",
        classes=("intracellular", "membrane", "mitochondria", "synapse", "glia_extracellular"),
        sets=("em_vnc",),
        held_out=_last_sections,
        sources={
            "ssTEM of Drosophila ventral nerve cord (Gerhard et al., figshare 856713)": "CC BY-NC-SA 3.0"
        },
        licence=(
            "Weights not for commercial use, share alike (CC BY-NC-SA 3.0), as the images they learned from."
            + _NOTE
        ),
        preprocessing=_MICROGRAPH,
        scale=(0.7, 1.5),
        turns=True,
        iterations=8000,
        crf={"widths": _WIDE_SEARCH},
    ),
    "road-scenes": Recipe(
        title="Road scenes seen from a car: the 11 CamVid classes",
        classes=(
            "sky", "building", "pole", "road", "pavement", "tree", "signsymbol", "fence", "car",
            "pedestrian", "bicyclist",
        ),
        sets=("camvid11",),
        held_out=_some_street,
        sources={"CamVid (Brostow, Fauqueur, Cipolla), SegNet split": "CC BY-NC 4.0, research"},
        licence="Weights for research, not for commercial use, as the images they learned from." + _NOTE,
        preprocessing=Preprocessing(),
        scale=(0.5, 1.5),
        turns=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Micrograph:
    """One image with its mask; grey if it has no colours, however it is stored."""

    dataset: str
    name: str
    folder: Path
    joined: tuple[tuple[int, int], ...] = ()
    """Label values that are read as others."""

    @property
    def key(self) -> str:
        """A name that is unique over all sets."""
        return f"{self.dataset}/{self.name}"

    @cached_property
    def _image_path(self) -> Path:
        return next(self.folder.joinpath("images").glob(f"{self.name}.*"))

    def image(self) -> Image.Image:
        """Read the image, in colour or grey."""
        with Image.open(self._image_path) as image:
            return image.copy() if image.mode == "L" else image.convert("RGB")

    def mask(self) -> np.ndarray:
        """Read the mask, uint8 [H, W]; 255 = ignore."""
        with Image.open(self.folder / "masks" / f"{self.name}.png") as image:
            mask = np.array(image)
        for value, other in self.joined:
            mask[mask == value] = other
        return mask


@dataclass(frozen=True)
class OtherStain(Micrograph):
    """The same, drawn as pale haematoxylin and brown DAB."""

    def image(self) -> Image.Image:
        """Read the image, and draw it in the other colours."""
        pixels = np.moveaxis(np.asarray(super().image().convert("RGB"), np.float32), -1, 0)
        return Image.fromarray(np.moveaxis(as_dab(pixels), 0, -1).round().astype(np.uint8))


def read_images(data: Path, recipe: Recipe, split: str, *, apart: bool = False) -> list[Micrograph]:
    """List the images of ``split`` ("train" or "val") of all sets of a model.

    With ``apart``, masks hold the classes that are taught; else those that are joined to others are.
    """
    places = {name: value for value, name in enumerate(recipe.classes)}
    joined = () if apart else tuple((places[a], places[b]) for a, b in recipe.joined.items())
    found = []
    for dataset in recipe.sets:
        folder = data / dataset
        found += [
            Micrograph(dataset, name, folder, joined)
            for name in (folder / f"{split}.txt").read_text().split()
        ]
    return found
