"""Classes: their names, their colours, and the label values that stand for them.

A class's label value is its place in the class table, from 0. Value 0 is a real class
(usually "background"). The highest value of the label type means "ignore": unlabelled, unknown,
never trained on, and never the same as background.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator

from napari_crfasrnn.palette import Color, Palette

BACKGROUND = "background"  # what the first class is called that stands for everything else
MAX_CLASSES = 65535  # the largest uint16 value is the ignore label


class ClassSpec(BaseModel):
    """One class: a name and an RGB colour.

    Parameters
    ----------
    name
        What people call the class; not blank.
    color
        Red, green, blue, each 0..255.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    color: Color

    @field_validator("name")
    @classmethod
    def _not_blank(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("a class name must not be blank")
        return name.strip()

    @field_validator("color")
    @classmethod
    def _in_range(cls, color: Color) -> Color:
        if any(not 0 <= c <= 255 for c in color):
            raise ValueError(f"color must hold three values from 0 to 255, got {color}")
        return color


def voc_color(value: int) -> Color:
    """Return the PASCAL VOC palette colour of a label value.

    The palette spreads the bits of the value over the high bits of the three channels
    (VOCdevkit, ``VOClabelcolormap``).
    """
    r = g = b = 0
    for shift in range(7, -1, -1):
        r |= (value & 1) << shift
        g |= (value >> 1 & 1) << shift
        b |= (value >> 2 & 1) << shift
        value >>= 3
    return r, g, b


_VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip

VOC_CLASSES: tuple[ClassSpec, ...] = tuple(
    ClassSpec(name=name, color=voc_color(value)) for value, name in enumerate(_VOC_NAMES)
)


def has_background(classes: Sequence[ClassSpec]) -> bool:
    """Whether the first class is the background, and no thing of its own."""
    return classes[0].name.lower() == BACKGROUND


def class_table(classes: Iterable[str | ClassSpec]) -> tuple[ClassSpec, ...]:
    """Make a class table of names and specs, giving a colour to each class without one.

    Parameters
    ----------
    classes
        Names or `ClassSpec`; names of PASCAL VOC classes get their VOC colours, others colours far from
        those of all other classes of the table.

    Raises
    ------
    ValueError
        If the table is empty, repeats a name, holds a blank name, or is too long.
    TypeError
        If an entry is neither a string nor a `ClassSpec`, or all of it is one string.
    """
    if isinstance(classes, str):
        raise TypeError(f"classes must be a list of names, got the string {classes!r}: put it into brackets")
    entries = list(classes)
    if not entries:
        raise ValueError("classes must hold at least one class, got none: add a class first")
    if len(entries) > MAX_CLASSES:
        raise ValueError(f"classes must hold at most {MAX_CLASSES} classes, got {len(entries)}")
    for entry in entries:
        if not isinstance(entry, str | ClassSpec):
            raise TypeError(f"a class must be a name or a ClassSpec, got {type(entry).__name__}")

    voc = {spec.name: spec.color for spec in VOC_CLASSES}
    taken = {entry.color for entry in entries if isinstance(entry, ClassSpec)}
    taken |= {voc[entry] for entry in entries if isinstance(entry, str) and entry in voc}
    palette: Palette | None = None  # made for the first that needs a colour
    table: list[ClassSpec] = []
    for value, entry in enumerate(entries):
        if isinstance(entry, ClassSpec):
            spec = entry
        elif entry in voc:
            spec = ClassSpec(name=entry, color=voc[entry])
        else:
            palette = palette or Palette(taken)
            color = palette.next() or voc_color(value % 256)  # of hundreds of classes, some look alike
            spec = ClassSpec(name=entry, color=color)
        if any(spec.name == other.name for other in table):
            raise ValueError(f"class names must differ, got {spec.name!r} twice: rename one of them")
        table.append(spec)
    return tuple(table)


def label_dtype(n_labels: int) -> type[np.uint8] | type[np.uint16]:
    """Return the smallest label type that holds ``n_labels`` classes and the ignore value."""
    return np.uint8 if n_labels <= 255 else np.uint16


def ignore_value(dtype: np.dtype | type) -> int:
    """Return the "ignore" value of a label type: 255 for 8 bits, 65535 for wider ones."""
    return 255 if np.dtype(dtype).itemsize == 1 else 65535
