"""Features made by hand: colours, edges and ridges at several blurs.

The narrow blurs are computed at full size, the wide ones at half of it, where nothing of them is lost, each
from the one before: variances of Gaussians add up. So the widest costs hardly more than the narrowest.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_crfasrnn.progress import Cancel, raise_if_cancelled

NARROW, WIDE = (1.0, 2.0), (4.0, 8.0, 16.0)
"""Standard deviations of the blurs at full and at half size, in pixels of the full size."""
KINDS = 4
"""Of each channel and blur: the value, the strength of the edge, and both curvatures."""

_POOLED_VARIANCE = 0.25  # of a mean of 2 × 2 pixels beside that of one pixel: (2² - 1) / 12
_TRUNCATE = 4.0  # standard deviations


@torch.no_grad()
def classic_maps(seen: Tensor, cancel: Cancel | None) -> tuple[Tensor, Tensor]:
    """Return the features of an image.

    Parameters
    ----------
    seen
        [C, h, w].
    cancel
        Asked between blurs.

    Returns
    -------
    narrow, wide
        [C × 8, h, w], and [C × 12, ⌈h / 2⌉, ⌈w / 2⌉] of which cell (i, j) has its centre at (2i + ½, 2j + ½).

    Raises
    ------
    Cancelled
        When asked to stop.
    """
    is_grey = bool((seen[1:] == seen[:1]).all())  # such an image needs the work done once
    image = seen[:1] if is_grey else seen
    narrow, blurred = _levels(image, (0.0, *NARROW), cancel)
    odd = (0, blurred.shape[-1] % 2, 0, blurred.shape[-2] % 2)
    half = F.avg_pool2d(F.pad(blurred[None], odd, mode="replicate"), 2)[0]
    start = math.sqrt(NARROW[-1] ** 2 + _POOLED_VARIANCE)
    wide, _ = _levels(half, tuple(blur / 2 for blur in (start, *WIDE)), cancel)
    found = []
    for maps in (narrow, wide):  # [blurs × kinds, channels, h, w]
        every = maps.expand(-1, len(seen), -1, -1) if is_grey else maps
        found.append(every.flatten(0, 1).contiguous())
    return found[0], found[1]


def _levels(image: Tensor, blurs: tuple[float, ...], cancel: Cancel | None) -> tuple[Tensor, Tensor]:
    """Return the features [blurs × kinds, C, h, w] of an image with the first blur, and it with the last."""
    found = []
    for before, after in pairwise(blurs):
        raise_if_cancelled(cancel)
        image = _blurred(image, math.sqrt(after**2 - before**2))
        found += [image, *_shapes(image)]
    return torch.stack(found), image


def _blurred(image: Tensor, deviation: float) -> Tensor:  # [C, h, w]
    reach = max(1, math.ceil(_TRUNCATE * deviation))
    x = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-(x**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).to(image.device)
    for axis in (-2, -1):
        image = _filtered(image, kernel, axis)
    return image


def _filtered(image: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Return an image after a symmetric filter along an axis, its borders repeated."""
    reach, n = len(kernel) // 2, image.shape[axis]
    at = torch.arange(-reach, n + reach, device=image.device).clamp(0, n - 1)
    padded = image.index_select(axis, at)
    total = kernel[reach] * padded.narrow(axis, reach, n)
    for i in range(reach):
        pair = padded.narrow(axis, i, n) + padded.narrow(axis, 2 * reach - i, n)
        total.add_(pair, alpha=float(kernel[i]))
    return total


def _shapes(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the strength of edges, and the larger and the smaller curvature, from 3 × 3 pixels."""
    padded = F.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    left, right = padded[..., :-2], padded[..., 2:]  # [C, h + 2, w]
    across, smooth = right - left, left + 2 * padded[..., 1:-1] + right
    dx = (across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]) / 8
    dy = (smooth[:, 2:] - smooth[:, :-2]) / 8
    middle = padded[:, 1:-1, 1:-1]
    xx = left[:, 1:-1] + right[:, 1:-1] - 2 * middle
    yy = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] - 2 * middle
    xy = (across[:, 2:] - across[:, :-2]) / 4
    mean = (xx + yy) / 2
    root = torch.sqrt(((xx - yy) / 2).square_().add_(xy.square_()))
    return torch.sqrt(dx.square_().add_(dy.square_())), mean + root, mean - root
