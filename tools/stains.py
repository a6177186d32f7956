"""Stained tissue in the colours of other stains.

Stains absorb light (Beer and Lambert): the logarithm of what passes is a sum of the amounts of the stains,
each times its colour. The colours of haematoxylin, eosin and DAB are those of Ruifrok and Johnston (Anal.
Quant. Cytol. Histol. 23, 2001), as scikit-image has them. What is varied is after Tellez et
al. (IEEE Transactions on Medical Imaging 37, 2018), who vary amounts; here colours vary, too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.color import hed_from_rgb, rgb_from_hed

_DARKEST = 1 / 255  # of what passes: the logarithm of nothing is infinite


def restained(image: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Return an RGB image in other stains.

    Haematoxylin stays something bluish; what was stained by eosin is drawn in a colour between eosin and DAB,
    may be darker than the nuclei, or all but gone.

    Parameters
    ----------
    image
        ``[3, H, W]`` of 0..255.
    random
        What draws the stains.

    Returns
    -------
    numpy.ndarray
        ``[3, H, W]`` of 0..255.
    """
    first, second, third = (row / np.linalg.norm(row) for row in rgb_from_hed)
    toward_dab = random.uniform(0, 1)
    colours = np.stack(
        [
            first + random.normal(0, 0.1, 3),
            (1 - toward_dab) * second + toward_dab * third + random.normal(0, 0.15, 3),
            third,
        ]
    ).clip(0.02)
    colours /= np.linalg.norm(colours, axis=1, keepdims=True)
    gains = np.exp(random.normal(0, (0.45, 0.75, 0.2)))
    if random.random() < 0.2:
        gains[1] *= 0.2
    return _drawn(image, gains, colours)


def as_dab(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an RGB image of H&E, ``[3, H, W]`` of 0..255, as pale haematoxylin and brown DAB would look."""
    first, _, third = (row / np.linalg.norm(row) for row in rgb_from_hed)
    return _drawn(image, np.array([0.6, 0.5, 0.5]), np.stack([first, third, third]))


def _drawn(
    image: NDArray[np.float32], gains: NDArray[np.float64], colours: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return an image with the amounts of its stains multiplied, and drawn in other colours."""
    # In units of rgb_from_hed's rows, which are not normed.
    lengths = np.linalg.norm(rgb_from_hed, axis=1)
    passed = np.log(np.clip(image / 255, _DARKEST, 1))
    amounts = np.einsum("chw,cs->shw", -passed, hed_from_rgb)
    absorbed = np.einsum("shw,sc->chw", amounts, (gains * lengths)[:, None] * colours)
    return (255 * np.exp(-absorbed.clip(0))).astype(np.float32)
