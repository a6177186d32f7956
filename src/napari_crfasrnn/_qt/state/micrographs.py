"""What kind of micrograph an image may be, by a look at its colours.

The models of photographs see bottles and trains in micrographs. Nobody can tell a micrograph for certain, so
what is found here is asked, never acted on.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["grey", "stained"]

LOOK = 160  # pixels, at most, of each side: colours need no more
LEAST_CHROMA = 0.08  # of the range: below, a colour is as good as grey
# Stained tissue is seen in transmitted light: bright, and its dyes are blue, purple, pink and brown.
# Photographs have shadows, and most have something green or yellow.
LEAST_BRIGHTNESS = 0.55
DARK, MOST_DARK = 0.25, 0.01
MOST_GREEN = 0.002
LEAST_COLORED = 0.01


def kind_of(plane: NDArray[np.float32]) -> Kind | None:
    """Return the kind of micrograph that a plane may be.

    Parameters
    ----------
    plane
        ``[C, H, W]``, values 0..255.

    Returns
    -------
    kind
        "grey" where there are no colours, "stained" for tissue in bright field; None for all else.
    """
    steps = [max(1, size // LOOK) for size in plane.shape[1:]]
    few = plane[:, :: steps[0], :: steps[1]] / np.float32(255)
    if len(few) not in (1, 3):
        return None
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
