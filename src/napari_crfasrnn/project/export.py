"""A project as a training set: images and masks in a folder, for other tools and for our own ``train``.

Two layouts:

- **plain**, as `open_data_set` reads: ``images/``, ``masks/``, ``classes.txt``, ``train.txt``, ``val.txt``.
  Masks are indexed PNG files in the colours of the classes, 255 where unlabelled; with more than 255 classes
  they are grey PNG files of 16 bits, 65535 where unlabelled, which `open_data_set` does not read.
- **coco**: ``images/``, ``train.json`` and, where images are held for validation, ``val.json``; the module
  `coco` says what is in them.

A stack gives a file for each plane that holds a label, so that every file is an image of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_crfasrnn.classes import ClassSpec, ignore_value
from napari_crfasrnn.edits import Labels, settled_mask
from napari_crfasrnn.imaging import label_picture, write_plane
from napari_crfasrnn.progress import Cancel, Progress, raise_if_cancelled
from napari_crfasrnn.project.coco import CocoWriter
from napari_crfasrnn.project.file_names import plane_names
from napari_crfasrnn.project.files import SaveError, publish_folder, require_free
from napari_crfasrnn.project.items import Item, PlaneIndex
from napari_crfasrnn.project.project import Project

LabelChoice = Literal["all", "settled"]
Layout = Literal["plain", "coco"]
VAL_SHARE = 0.2  # of the images
MOST_CLASSES = 255  # in masks of 8 bits


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    path
        The folder.
    n_train, n_val
        Images to train on and to validate with; a plane of a stack counts as one.
    n_left_out
        Images, or planes of stacks, that hold no label.
    notes
        What one should know of the files.
    """

    path: Path
    n_train: int
    n_val: int
    n_left_out: int
    notes: tuple[str, ...] = ()

    @property
    def n_images(self) -> int:
        """How many images were written."""
        return self.n_train + self.n_val

    @property
    def summary(self) -> str:
        """What was written, in words."""
        others = f"{self.n_left_out} other{'s hold' if self.n_left_out != 1 else ' holds'}"
        left_out = f"; {others} no labels to export" if self.n_left_out else ""
        images = f"{self.n_images} image{'s' * (self.n_images != 1)}"
        return f"{images}, {self.n_train} to train on and {self.n_val or 'none'} to validate with{left_out}"


class _Writer(Protocol):
    """Writes the labels of a training set, in a layout of its own, beside the images."""

    def add(self, image: Path, labels: Labels) -> None:
        """Take the labels ``[H, W]`` of an image that was written."""

    def finish(self, lists: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """Write what concerns all images, and return remarks; the lists are called "train" and "val"."""


def export_project(
    project: Project,
    path: str | Path,
    *,
    labels: LabelChoice = "all",
    val_share: float = VAL_SHARE,
    layout: Layout = "plain",
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Exported:
    """Write a project as a training set, whole or not at all.

    Parameters
    ----------
    project
        An open project; it may be read-only.
    path
        A folder that does not exist yet or is empty.
    labels
        "all" takes the labels as they are, also those that nobody has looked at; "settled" only those that a
        person painted, corrected or verified, the rest is unlabelled.
    val_share
        About this share of the images is held for validation, 0 up to but not 1. Which ones depends on
        their names alone, so an image stays on its side when others come. All planes of a stack are on
        one side: neighbours are much alike. Of two images and more at least one is on either side,
        unless the share is 0.
    layout
        "plain" or "coco"; the top of this module has what is in them.
    progress
        Called after each plane.
    cancel
        Asked before each plane.

    Raises
    ------
    FileExistsError
        If the folder holds anything.
    ValueError
        If an argument is none of these, there is nothing to export, or the project changes its classes
        meanwhile.
    SaveError
        If it cannot be written.
    Cancelled
        If ``cancel`` asked for it. As after any error nothing is left in the folder then.
    """
    if not isinstance(project, Project):
        raise TypeError(f"project must be a Project, got {project!r}: open its folder with Project.open")
    _check(labels, val_share, layout)
    path = Path(path).absolute()
    require_free(path)
    classes = project.classes
    reading = _Reading(project, labels, progress, cancel)
    lists: dict[str, list[str]] = {}
    notes: tuple[str, ...] = ()

    def fill(folder: Path) -> None:
        nonlocal notes
        images = folder / "images"
        images.mkdir()
        writer: _Writer = _WRITERS[layout](folder, classes)
        written: dict[str, list[str]] = {}  # of each image, its files
        for found in reading.labelled_planes():
            writer.add(write_plane(images, found.name, found.plane, found.axes), found.labels)
            written.setdefault(found.image_name, []).append(found.name)
        if not written:
            raise ValueError(_nothing(labels, len(reading.items)))
        if project.classes != classes:
            raise ValueError("the classes of the project were changed while it was exported: export it again")
        lists.update(_split(written, val_share))
        notes = writer.finish(lists)

    with _telling(path):
        publish_folder(path, fill)
    n_train, n_val = len(lists["train"]), len(lists["val"])
    return Exported(path, n_train, n_val, reading.n_planes - n_train - n_val, notes)


@dataclass(frozen=True, eq=False)
class _LabelledPlane:
    """One image of the training set."""

    image_name: str  # of the image in the project, as a file's name
    name: str
    plane: NDArray[Any]
    axes: str
    labels: Labels


class _Reading:
    """Reads what is to be exported, plane by plane, and tells how far it is."""

    def __init__(
        self, project: Project, choice: LabelChoice, progress: Progress | None, cancel: Cancel | None
    ) -> None:
        self._project, self._choice = project, choice
        self._progress, self._cancel = progress, cancel
        self.items = project.items
        self.n_planes = sum(math.prod(item.stack_shape) for item in self.items)

    def labelled_planes(self) -> Iterator[_LabelledPlane]:
        """Give each plane that holds a label."""
        n_done = 0
        for item, (image_name, names) in zip(self.items, plane_names(self.items), strict=True):
            image: NDArray[Any] | None = None  # read when it is known to have labels
            axes = "".join(letter for letter in item.axes if letter not in "TZ")
            for index, name in zip(item.indices(), names, strict=True):
                raise_if_cancelled(self._cancel)
                labels = self._labels(item, index)
                if (labels != ignore_value(labels.dtype)).any():
                    image = item.image() if image is None else image
                    yield _LabelledPlane(image_name, name, _plane(image, item.axes, index), axes, labels)
                n_done += 1
                if self._progress is not None:
                    self._progress(n_done, self.n_planes)

    def _labels(self, item: Item, index: PlaneIndex) -> Labels:
        """Return the labels of a plane, and with "settled" the ignore value where no person settled them.

        Somebody may paint meanwhile: what is read belongs together if the image was not saved in between.
        """
        while True:
            modified = self._project.item(item.id).modified
            labels = item.labels(index)
            if self._choice == "all":
                return labels
            settled = settled_mask(labels, item.baseline(index), item.verified(index))
            if self._project.item(item.id).modified == modified:
                return np.where(settled, labels, labels.dtype.type(ignore_value(labels.dtype)))


class _PlainWriter:
    """Masks, and lists of names."""

    def __init__(self, folder: Path, classes: Sequence[ClassSpec]) -> None:
        for spec in classes:
            if len(spec.name.splitlines()) > 1:
                raise ValueError(
                    f"the name of a class must be one line to be in classes.txt, got {spec.name!r}: rename it"
                )
        self._folder, self._classes = folder, classes
        self._colors = [spec.color for spec in classes]
        self._masks = folder / "masks"
        self._masks.mkdir()

    def add(self, image: Path, labels: Labels) -> None:
        """Write a mask."""
        is_wide = labels.dtype.itemsize > 1
        picture = Image.fromarray(labels) if is_wide else label_picture(labels, self._colors)
        picture.save(self._masks / f"{image.stem}.png", format="png")

    def finish(self, lists: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """Write the lists, also an empty one: without it `open_data_set` would choose some images itself."""
        for name, lines in {**lists, "classes": [spec.name for spec in self._classes]}.items():
            text = "".join(f"{line}\n" for line in lines)
            (self._folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="\n")
        if len(self._classes) <= MOST_CLASSES:
            return ()
        return (f"masks have 16 bits for {len(self._classes)} classes; train reads up to {MOST_CLASSES}",)


_WRITERS: dict[Layout, Callable[[Path, Sequence[ClassSpec]], _Writer]] = {
    "plain": _PlainWriter,
    "coco": CocoWriter,
}


def _check(labels: str, val_share: float, layout: str) -> None:
    for name, given, known in (
        ("labels", labels, get_args(LabelChoice)),
        ("layout", layout, get_args(Layout)),
    ):
        if given not in known:
            raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {given!r}")
    if not 0 <= val_share < 1:
        raise ValueError(f"val_share must be a share from 0 up to but not 1, got {val_share}")


def _plane(image: NDArray[Any], axes: str, index: PlaneIndex) -> NDArray[Any]:
    at = iter(index)
    return image[tuple(next(at) if letter in "TZ" else slice(None) for letter in axes)]


def _split(written: Mapping[str, Sequence[str]], val_share: float) -> dict[str, list[str]]:
    """Return the names of the files to train on and to validate with."""
    place = {whole: crc32(whole.encode()) / 2**32 for whole in written}
    by_place = sorted(place, key=lambda whole: (place[whole], whole))
    n_val = sum(part < val_share for part in place.values())
    least = int(val_share > 0 and len(by_place) > 1)
    held = set(by_place[: min(max(n_val, least), len(by_place) - 1)])
    return {
        "train": [name for whole, names in written.items() if whole not in held for name in names],
        "val": [name for whole, names in written.items() if whole in held for name in names],
    }


def _nothing(labels: LabelChoice, n_images: int) -> str:
    images = f"{n_images} image{'s' * (n_images != 1)}"
    if labels == "settled":
        return (
            "the project must hold labels that a person painted, corrected or verified, "
            f"got none in {images}: paint or verify some, or export all labels"
        )
    return f"the project must hold labels to be exported, got none in {images}: paint or segment some first"


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Turn what a full or broken disk raises into one sentence; a file that is missed has its own."""
    try:
        yield
    except (SaveError, FileNotFoundError):
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise SaveError(
            error.errno,
            f"the training set could not be written to {path} ({reason[:1].lower()}{reason[1:]}): nothing of "
            "it is left there, make room or choose another place and export again",
            str(path),
        ) from error
