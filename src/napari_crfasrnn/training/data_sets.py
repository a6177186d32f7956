"""Folders of images with masks, as people keep them: in the layout of PASCAL VOC, or simpler.

Two layouts are known by their folders:

- **VOC**: ``JPEGImages/``, ``SegmentationClass/``, lists in ``ImageSets/Segmentation/``.
- **plain**: ``images/``, ``masks/``, lists beside them.

The lists are ``train.txt`` and ``val.txt``, one name per line, with or without suffix; a second column of
-1, 0 or 1, as in VOC's lists of one class, is passed over. Without ``val.txt`` about every tenth image,
chosen by its name, is held for validation; without ``train.txt`` all others are trained on.
Masks hold label values (indexed or grey PNG), 255 where nobody labelled, or the colours of the classes.
``classes.txt`` names the classes, one a line, from value 0; a VOC folder without it has VOC's 21.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn.classes import BACKGROUND, VOC_CLASSES, ClassSpec, class_table
from napari_crfasrnn.imaging import IMAGE_SUFFIXES, open_image, read_image
from napari_crfasrnn.training.mask_files import IGNORE, check_size, read_mask

MAX_CLASSES = 255  # in 8-bit masks

Others = Literal["background", "ignore"]

_LAYOUTS = (("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"), ("images", "masks", "."))
_VALIDATION_ONE_IN = 10
_MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")


@dataclass(frozen=True)
class Sample:
    """One image with its mask.

    Attributes
    ----------
    name
        As in the lists.
    image_path, mask_path
        Its files.
    """

    name: str
    image_path: Path
    mask_path: Path

    def image(self) -> NDArray[np.float32]:
        """Read the image, ``[C, H, W]`` with values 0..255, as `open_image` sees it."""
        read = read_image(self.image_path)
        source = open_image(read.array, read.axes, read.spacing)
        if source.stack_shape:
            raise ValueError(
                f"an image to train on must be one plane, got a stack of {source.stack_shape}: "
                f"{self.image_path}; save its planes as files"
            )
        return source.plane()


@dataclass(frozen=True)
class DataSet:
    """Images with masks, split into those to train on and those to validate with.

    Attributes
    ----------
    folder
        Where it is.
    classes
        The class table of the labels that `labels` returns.
    train, val
        Samples, in the order of the lists.
    values
        ``uint8 [256]``, from a mask's value to the label; `IGNORE` for what is not trained on.
    file_colors
        Colours of the mask's values, for masks that hold colours.
    """

    folder: Path
    classes: tuple[ClassSpec, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    values: NDArray[np.uint8]
    file_colors: tuple[tuple[int, int, int], ...]

    @property
    def n_labels(self) -> int:
        """Number of classes L."""
        return len(self.classes)

    def labels(self, sample: Sample) -> NDArray[np.uint8]:
        """Read the mask of a sample as labels of ``classes``, ``[H, W]``; `IGNORE` where there is none.

        Raises
        ------
        ValueError
            If the file is no mask, holds a value or colour that is no class, or does not lie on the image.
        """
        raw = read_mask(sample.mask_path, sample.image_path, self.file_colors)
        unknown = np.unique(raw)
        unknown = unknown[(unknown >= len(self.file_colors)) & (unknown != IGNORE)]
        if unknown.size:
            raise ValueError(
                f"a mask must hold values below {len(self.file_colors)}, the number of classes, or {IGNORE}, "
                f"got {unknown[0]} in {sample.mask_path}: check classes.txt"
            )
        return self.values[raw]

    def load(self, sample: Sample) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Read a sample: image ``[C, H, W]`` and labels ``[H, W]`` of one size.

        Raises
        ------
        ValueError
            If a file is damaged, or the sizes differ.
        """
        image, labels = sample.image(), self.labels(sample)
        check_size(labels.shape, image.shape[1:], sample.mask_path)  # of the image as it was read
        return image, labels

    def with_classes(self, names: Sequence[str], others: Others = "background") -> DataSet:
        """Return the set with some of its classes only, in the order given.

        Parameters
        ----------
        names
            Names of classes. "background", where there is one, stays value 0 and need not be named.
        others
            What becomes of the pixels of all other classes: "background" (added as value 0 if the set has
            none) or "ignore".

        Raises
        ------
        ValueError
            If a name is not a class, is given twice, or too few classes are left to tell apart.
        """
        known = {spec.name: value for value, spec in enumerate(self.classes)}
        for name in names:
            if name not in known:
                raise ValueError(f"classes must be among {', '.join(known)}, got {name!r}")
        chosen = [name for name in names if name != BACKGROUND]
        has_background = BACKGROUND in known or others == "background"
        table = class_table(
            [ClassSpec(name=BACKGROUND, color=(0, 0, 0))] * has_background
            + [self.classes[known[name]] for name in chosen]
        )
        if len(table) < 2:
            raise ValueError(f"at least two classes must be left to tell apart, got {', '.join(names)}")
        rest = 0 if others == "background" else IGNORE
        onward = np.full(256, IGNORE, np.uint8)
        onward[: self.n_labels] = rest
        if BACKGROUND in known:
            onward[known[BACKGROUND]] = 0
        for value, name in enumerate(chosen, start=int(has_background)):
            onward[known[name]] = value
        return DataSet(self.folder, table, self.train, self.val, onward[self.values], self.file_colors)


def open_data_set(folder: str | Path) -> DataSet:
    """Open a folder of images with masks; see the top of this module for the layouts.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or an image or mask of the lists is missing.
    ValueError
        If the folder has neither layout, no image, or no valid class table.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"data must be a folder, but there is none at {folder}")
    images, masks, lists = _layout(folder)
    classes = _classes(folder, is_voc=images.name == "JPEGImages")
    image_files, mask_files = _by_stem(images, IMAGE_SUFFIXES), _by_stem(masks, _MASK_SUFFIXES)
    train, val = _split(lists, image_files, mask_files)
    if not train and not val:
        raise ValueError(f"data must hold images with masks of the same name, got none in {folder}")

    def samples(names: Sequence[str]) -> tuple[Sample, ...]:
        for kind, found in (("image", image_files), ("mask", mask_files)):
            missing = [name for name in names if name not in found]
            if missing:
                raise FileNotFoundError(
                    f"{len(missing)} of the {kind}s in the lists of {folder} are not there, "
                    f"the first is {missing[0]!r}: write one name a line, without folders"
                )
        return tuple(Sample(name, image_files[name], mask_files[name]) for name in names)

    return DataSet(
        folder,
        classes,
        samples(train),
        samples(val),
        np.arange(256, dtype=np.uint8),
        tuple(spec.color for spec in classes),
    )


def _layout(folder: Path) -> tuple[Path, Path, Path]:
    for images, masks, lists in _LAYOUTS:
        if (folder / images).is_dir() and (folder / masks).is_dir():
            return folder / images, folder / masks, folder / lists
    raise ValueError(
        f"data must hold the folders images and masks, or JPEGImages and SegmentationClass, "
        f"got neither in {folder}"
    )


def _classes(folder: Path, *, is_voc: bool) -> tuple[ClassSpec, ...]:
    path = folder / "classes.txt"
    if path.is_file():
        names = _read_lines(path)
        if "" in names:
            raise ValueError(
                f"each line of {path} must name a class, whose label value is its place, but line "
                f"{names.index('') + 1} is blank: take it out, or name the class of value {names.index('')}"
            )
        table = class_table(names)
        if len(table) > MAX_CLASSES:
            raise ValueError(f"8-bit masks hold at most {MAX_CLASSES} classes, got {len(table)} in {path}")
        return table
    if is_voc:
        return VOC_CLASSES
    raise ValueError(
        f"data must hold a file classes.txt with the name of a class on each line, got none in {folder}"
    )


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a text file without what is blank around them and at the end of the file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} must be a text file in UTF-8, got another encoding: save it as UTF-8"
        ) from None
    return [line.strip() for line in lines]


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            raise ValueError(
                f"an image and its mask are matched by their name without suffix, but {folder} holds both "
                f"{found[path.stem].name} and {path.name}: rename or remove one of them"
            )
        found[path.stem] = path
    return found


def _split(lists: Path, images: Mapping[str, Path], masks: Mapping[str, Path]) -> tuple[list[str], list[str]]:
    """Return the names to train on and those to validate with."""
    read = {name: _read_list(lists / f"{name}.txt", images, masks) for name in ("train", "val")}
    both = sorted(set(images) & set(masks))
    val = read["val"]
    if val is None:
        pool = both if read["train"] is None else read["train"]
        val = [name for name in pool if crc32(name.encode()) % _VALIDATION_ONE_IN == 0]
    held = set(val)
    train = read["train"] if read["train"] is not None else list(both)
    if read["train"] is not None and read["val"] is not None and held & set(train):
        raise ValueError(
            f"no image may be in both train.txt and val.txt, got {min(held & set(train))!r} in {lists}"
        )
    return [name for name in train if name not in held], val


def _read_list(path: Path, images: Mapping[str, Path], masks: Mapping[str, Path]) -> list[str] | None:
    """Read the names of a list, or None if there is none."""
    if not path.is_file():
        return None
    stems = {file.name: stem for files in (masks, images) for stem, file in files.items()}

    def name_of(line: str) -> str:
        first_column = re.sub(r"\s+(-1|0|1)$", "", line)
        for name in (line, first_column):  # what is a name as it stands may hold blanks and points
            if name in images:
                return name
        return stems.get(line, stems.get(first_column, first_column))

    return [name_of(line) for line in _read_lines(path) if line]
