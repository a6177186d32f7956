"""What the axes of an array are: a string with one letter for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

AXES = {"T": "time", "Z": "depth", "C": "channels", "Y": "rows", "X": "columns"}


def parse_axes(axes: str, shape: Sequence[int]) -> str:
    """Check an axes string against the shape of an array and return it in capitals.

    Parameters
    ----------
    axes
        One letter for each axis, in the order of the array: T time, Z depth, C channels, Y rows,
        X columns. Y and X are required, the others optional; the order is free.
    shape
        Shape of the array.

    Raises
    ------
    TypeError
        If ``axes`` is not a string.
    ValueError
        If a letter is unknown, repeated or missing, or the number of letters is not that of the axes.
    """
    if not isinstance(axes, str):
        raise TypeError(f"axes must be a string such as 'YX' or 'ZYXC', got {type(axes).__name__}")
    letters = axes.upper()
    unknown = [letter for letter in letters if letter not in AXES]
    if unknown:
        raise ValueError(f"axes must be made of the letters T, Z, C, Y and X, got {unknown[0]!r} in {axes!r}")
    if len(set(letters)) < len(letters):
        raise ValueError(f"axes must name each axis once, got {axes!r}")
    if not {"Y", "X"} <= set(letters):
        raise ValueError(f"axes must name both Y and X, got {axes!r}")
    if len(letters) != len(shape):
        raise ValueError(
            f"axes must have one letter for each axis of the image, "
            f"got {axes!r} for an image of shape {tuple(shape)}"
        )
    return letters


def guess_axes(shape: Sequence[int], dtype: np.dtype | type | str = "uint8") -> str:
    """Guess what the axes of an array are, where nobody said so.

    The rules, the first that fits wins:

    1. two axes are ``YX``;
    2. a last axis of 3 or 4 is colour, as photographs have it, and one of 1 is grey: ``YXC``, ``ZYXC``,
       ``TZYXC`` (3 and 4 never in an array of booleans);
    3. an axis of 2, 3 or 4 just before the two last ones is channels, as microscopes and torch
       have it: ``CYX``, ``ZCYX``, ``TZCYX``; with five axes it is channels at any length;
    4. anything else is a stack: ``ZYX``, ``TZYX``.

    Raises
    ------
    ValueError
        If the array has fewer than two or more than five axes.
    """
    shape = tuple(shape)
    if not 2 <= len(shape) <= 5:
        raise ValueError(f"image must have 2 to 5 axes, got shape {shape}: pass one plane or stack")
    stack = {2: "", 3: "", 4: "Z", 5: "TZ"}[len(shape)]
    if len(shape) == 2:
        return "YX"
    if shape[-1] == 1 or (shape[-1] in (3, 4) and np.dtype(dtype).kind != "b"):
        return stack + "YXC"
    if shape[-3] in (2, 3, 4) or len(shape) == 5:
        return stack + "CYX"
    return {3: "ZYX", 4: "TZYX"}[len(shape)]
