"""What kind of micrograph an image may be, by a look at its colours.

The models of photographs see bottles and trains in micrographs. Nobody can tell a micrograph for certain, so
what is found here is asked, never acted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers import ImageInput
    from napari_crfasrnn.imaging import ImageSource

Kind = Literal["grey", "stained"]

LOOK = 160  # pixels, at most, of each side: colours need no more
LEAST_CHROMA = 0.08  # of the range: below, a colour is as good as grey
# Stained tissue is seen in transmitted light: bright, and its dyes are blue, purple, pink and brown.
# Photographs have shadows, and most have something green or yellow.
LEAST_BRIGHTNESS = 0.55
DARK, MOST_DARK = 0.25, 0.01
MOST_GREEN = 0.002
LEAST_COLORED = 0.01


def kind_at_a_glance(image: ImageInput, index: Sequence[int]) -> Kind | None:
    """Return `kind_of` where that takes next to nothing to read: not of colours in more than 8 bits."""
    from napari_crfasrnn.imaging import open_image

    if "C" not in image.axes:
        return "grey"
    if np.dtype(image.array.dtype) != np.uint8:  # the range of values would have to be found first
        return None
    return kind_of(open_image(image.array, image.axes), index)


def kind_of(source: ImageSource, index: Sequence[int]) -> Kind | None:
    """Return the kind of micrograph that a plane of an image may be.

    Parameters
    ----------
    source
        The image. What has colours is read for it.
    index
        Which plane.

    Returns
    -------
    kind
        "grey" where there are no colours, "stained" for tissue in bright field; None for all else.
    """
    if source.n_channels == 1:
        return "grey"
    if source.n_channels != 3:
        return None
    steps = [max(1, size // LOOK) for size in source.plane_shape]
    few = source.plane(index)[:, :: steps[0], :: steps[1]] / np.float32(255)
    if (few == few[:1]).all():
        return "grey"
    red, green, blue = few
    brightness = few.max(axis=0)
    colored = brightness - few.min(axis=0) > LEAST_CHROMA
    is_bright = np.median(brightness) >= LEAST_BRIGHTNESS and np.mean(brightness < DARK) <= MOST_DARK
    is_dyed = (
        colored.mean() >= LEAST_COLORED and np.mean(colored & (green >= np.maximum(red, blue))) <= MOST_GREEN
    )
    return "stained" if is_bright and is_dyed else None
