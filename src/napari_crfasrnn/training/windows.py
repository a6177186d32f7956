"""What a network sees of a sample in one iteration: a window of it, scaled, mirrored, tinted.

Every choice is made by the generator that is handed in, so that a window is a function of the seed
and of its place in the training, whoever computes it and whenever.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.config import Augmentation
from napari_crfasrnn.training.mask_files import IGNORE

_MID_GREY = 127.0


@dataclass(frozen=True, eq=False)
class Window:
    """A training example.

    Attributes
    ----------
    image
        float32 ``[C, s, s]``, 0..255; mid-grey beyond the edge of the image.
    labels
        int64 ``[s, s]``; `IGNORE` where nothing is labelled, and beyond the edge.
    """

    image: Tensor
    labels: Tensor


def draw_window(
    image: NDArray[np.float32],  # [C, H, W]
    labels: NDArray[np.uint8],  # [H, W]
    augmentation: Augmentation,
    rng: np.random.Generator,
    *,
    largest: int | None = None,
    keep_scale: bool = False,
) -> Window:
    """Cut a window out of a sample; one that shows a label, if the sample has any.

    Parameters
    ----------
    image, labels
        The sample.
    augmentation
        Size of the window, and how much is varied.
    rng
        Makes all choices; the same ones for all images but those whose first window shows no label.
    largest
        The longer side, in pixels, to which the model shrinks larger images; None: it does not.
    keep_scale
        Leave the scale alone: the widths of a CRF are in pixels.
    """
    height, width = labels.shape
    log_low, log_high = np.log(augmentation.scale)
    scale = float(np.exp(rng.uniform(log_low, log_high)))
    place = rng.uniform(size=2)
    mirrored = bool(rng.random() < 0.5)
    brightness, tints = rng.normal(0, 1), rng.normal(0, 1, 3)
    if keep_scale:
        scale = 1.0
    if largest is not None:
        scale *= min(1.0, largest / max(height, width))
    side = max(1, round(augmentation.crop / scale))  # of the window, in pixels of the sample
    top, left = (int(u * (max(0, n - side) + 1)) for u, n in zip(place, (height, width), strict=True))
    if (labels[top : top + side, left : left + side] == IGNORE).all():
        top, left = _around_a_label(labels, side, rng) or (top, left)
    part = np.ascontiguousarray(image[:, top : top + side, left : left + side])
    marks = labels[top : top + side, left : left + side]
    pixels = _resized(torch.from_numpy(part)[None], scale, augmentation.crop, nearest=False)[0]
    classes = _resized(
        torch.from_numpy(marks.astype(np.float32))[None, None], scale, augmentation.crop, nearest=True
    )[0, 0]
    if bool((classes == IGNORE).all()):  # single pixels fall between those that a small window keeps
        y, x = np.nonzero(marks != IGNORE)
        classes[y * classes.shape[0] // marks.shape[0], x * classes.shape[1] // marks.shape[1]] = (
            torch.from_numpy(marks[y, x].astype(np.float32))
        )
    if augmentation.flip and mirrored:
        pixels, classes = pixels.flip(-1), classes.flip(-1)
    if augmentation.colour > 0:
        gains = np.exp(augmentation.colour * (brightness + tints / 3))  # hue varies less than brightness
        gain = torch.tensor(gains[: len(pixels)] if len(pixels) == 3 else gains[:1], dtype=torch.float32)
        pixels = (pixels * gain[:, None, None]).clamp(0, 255)
    bottom, right = (augmentation.crop - n for n in classes.shape)
    if bottom or right:
        pixels = F.pad(pixels, (0, right, 0, bottom), value=_MID_GREY)
        classes = F.pad(classes, (0, right, 0, bottom), value=float(IGNORE))
    return Window(pixels, classes.to(torch.int64))


def stack(windows: list[Window]) -> tuple[Tensor, Tensor]:  # [B, C, s, s], [B, s, s]
    """Make a batch; where only some images are grey, these become grey in colour.

    Raises
    ------
    ValueError
        If images of more or other than 1 and 3 channels are mixed.
    """
    channels = {len(window.image) for window in windows}
    images = [window.image for window in windows]
    if channels == {1, 3}:
        images = [image.expand(3, -1, -1) for image in images]
    elif len(channels) > 1:
        numbers = " and ".join(map(str, sorted(channels)))
        raise ValueError(f"all images must have the same number of channels, got {numbers}")
    return torch.stack(images), torch.stack([window.labels for window in windows])


def _around_a_label(
    labels: NDArray[np.uint8],  # [H, W]
    side: int,
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    """Draw the top and left of a window that holds a drawn labelled pixel; None if there is no such pixel."""
    y, x = np.nonzero(labels != IGNORE)
    if not y.size:
        return None
    chosen = int(rng.integers(y.size))
    top, left = (
        int(rng.integers(max(0, at - side + 1), min(at, max(0, size - side)) + 1))
        for at, size in zip((int(y[chosen]), int(x[chosen])), labels.shape, strict=True)
    )
    return top, left


def _resized(x: Tensor, scale: float, crop: int, *, nearest: bool) -> Tensor:  # [1, C, h, w]
    size = [min(crop, max(1, round(n * scale))) for n in x.shape[-2:]]
    if size == list(x.shape[-2:]):
        return x
    if nearest:
        return F.interpolate(x, size=size, mode="nearest-exact")
    return F.interpolate(x, size=size, mode="bilinear", antialias=True)
