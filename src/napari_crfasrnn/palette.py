"""Colours for classes that have none: each far from all that are in use.

Okabe and Ito's colours come first, as long as none in use is like them; then, as Glasbey et al. (2007,
"Colour displays for categorical images") build their palettes, the colour whose nearest neighbour is
farthest away. Distances are CIEDE2000's, in which 1 is about what an eye can just tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]

# Okabe and Ito (2008), "Color Universal Design": eight colours that colour-blind people tell apart.
# Black comes first because the first class is the background.
OKABE_ITO: tuple[Color, ...] = (
    (0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115),
    (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip

_UNLIKE = 20.0  # CIEDE2000; Okabe and Ito's colours are 21 and more from each other
_LEVELS = range(16, 256, 32)  # of each channel of the other colours
_LIGHTNESS = (30, 92)  # CIELAB's L: neither lost on black nor on white
_LEAST_CHROMA = 15.0  # greys look like the image


class Palette:
    """The colours in use, and the next one.

    Parameters
    ----------
    used
        Colours in use.
    """

    def __init__(self, used: Iterable[Color]) -> None:
        self._offered = np.array([*OKABE_ITO, *product(_LEVELS, _LEVELS, _LEVELS)], np.uint8)  # [N, 3]
        self._lab = _lab(self._offered)
        light, chroma = self._lab[:, 0], np.hypot(self._lab[:, 1], self._lab[:, 2])
        self._vivid = (light > _LIGHTNESS[0]) & (light < _LIGHTNESS[1]) & (chroma > _LEAST_CHROMA)
        self._distance = np.full(len(self._offered), np.inf)
        used = list(used)
        if used:
            self._use(_lab(np.array(used, np.uint8)))

    def next(self) -> Color | None:
        """Return a colour far from all in use, in use from now on; None when all that are offered are."""
        unlike = np.flatnonzero(self._distance[: len(OKABE_ITO)] >= _UNLIKE)
        chosen = int(unlike[0] if len(unlike) else np.where(self._vivid, self._distance, -1).argmax())
        if self._distance[chosen] == 0:
            return None
        self._use(self._lab[chosen : chosen + 1])
        red, green, blue = self._offered[chosen].tolist()
        return red, green, blue

    def _use(self, lab: NDArray[np.float64]) -> None:  # [K, 3]
        from skimage.color import deltaE_ciede2000

        nearest = deltaE_ciede2000(self._lab[:, None], lab[None]).min(axis=1)
        self._distance = np.minimum(self._distance, nearest)


def _lab(colors: NDArray[np.uint8]) -> NDArray[np.float64]:  # [K, 3] to [K, 3]
    from skimage.color import rgb2lab

    return np.asarray(rgb2lab(colors[None].astype(np.float64) / 255)[0])
