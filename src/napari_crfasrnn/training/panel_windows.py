"""Windows of labelled planes, shrunk, enlarged, turned and mirrored: what the heads of a panel learn from.

The encoder does not learn, so each window goes through it once, and an iteration costs the head only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.encoder import FINE_BLOCKS, fill_up
from napari_crfasrnn.experts.features import VALUES, stretched
from napari_crfasrnn.network import Features, LiteNetwork, SegmentationModel
from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.training.planes import LabelledPlane

IGNORE = -1
_SIDE = 256  # pixels, of a window at most
_SCALE = (0.75, 1.4)  # factor on the sides, drawn evenly in its logarithm
_BANDS = 8  # of rows
_UPRIGHT = 0.25  # of the labels' variance is explained by the row: micrographs stay below, road scenes above
_BRIGHTNESS = 0.15  # deviation of the logarithm of the contrast, and of the brightness (values span 2)
_GAMMA = 0.2  # deviation of its logarithm
_COLOUR = 0.1  # as of the brightness, of each channel by itself


@dataclass(frozen=True, eq=False)
class Window:
    """A part of a plane.

    Attributes
    ----------
    features
        [1, C, h/s, w/s] at the strides 2 to 16, of the window with its sides filled up to multiples of 32.
    labels
        [h, w] classes; `IGNORE` elsewhere.
    """

    features: Features
    labels: Tensor


def draw_windows(
    model: SegmentationModel,
    planes: Sequence[LabelledPlane],
    numbers: Sequence[int],
    seed: Sequence[int],
    cancel: Cancel | None,
    is_late: Callable[[], bool],
) -> dict[int, Window]:
    """Return windows of all planes in turn, by number: the first of each unchanged; fewer when late.

    What a window shows depends on its number and the seed alone, so several threads may share them out.

    Parameters
    ----------
    model
        Whose encoder.
    planes
        With pixels to learn. Larger ones are cut around pixels of all their classes alike.
    numbers
        From 0 on, ascending: 0 is of the first plane, 1 of the next one, and after the last comes the first.
    seed
        Says where they are cut and how they are changed.
    cancel
        Asked before every window and every block of the encoder.
    is_late
        Asked once there is one of each plane.

    Raises
    ------
    Cancelled
        When asked to stop.
    """
    network = model.network
    assert isinstance(network, LiteNetwork)
    found: dict[int, Window] = {}
    inputs: dict[int, _Input] = {}
    ways = 2 if are_upright([plane.training for plane in planes]) else 8
    for number in numbers:
        raise_if_cancelled(cancel)
        if number >= len(planes) and is_late():
            break
        random = np.random.default_rng([*seed, number])
        place = number % len(planes)
        if place not in inputs:
            inputs[place] = _Input.of(model, planes[place])
        is_first = number < len(planes)
        factor = 1.0 if is_first else float(np.exp(random.uniform(*np.log(_SCALE))))
        part, known = _cut(inputs[place], factor, random)
        if not is_first:
            part, known = _turned(part, known, int(random.integers(ways)))
            part = _relit(part, random)
        found[number] = Window(_encoded(network, part, cancel), known)
    return found


def are_upright(masks: Sequence[NDArray[np.integer]]) -> bool:
    """Return whether the classes of masks [H, W] depend on the height, as sky and road do.

    What has an up must not be turned upside down, and what has none may be: then there is more to learn from.
    The measure is the share of the one-hot labels' variance that lies between bands of rows.
    """
    counts = np.zeros((_BANDS, 1 + max(int(mask.max(initial=0)) for mask in masks)))
    for mask in masks:
        y, x = np.nonzero(mask != ignore_value(mask.dtype))
        np.add.at(counts, (y * _BANDS // len(mask), mask[y, x]), 1)
    bands = counts.sum(1)
    if not bands.any():
        return False
    share, within = counts.sum(0) / bands.sum(), counts[bands > 0] / bands[bands > 0, None]
    variance = 1 - np.square(share).sum()
    left = np.average(1 - np.square(within).sum(1), weights=bands[bands > 0])
    return bool(variance > 0 and 1 - left / variance >= _UPRIGHT)


@dataclass(frozen=True, eq=False)
class _Input:
    """A plane to cut windows from.

    Attributes
    ----------
    seen
        [1, 3, h, w] what the experts see of it.
    labels
        [h, w] classes to learn; `IGNORE` elsewhere.
    places
        [n, 2] row and column of what is labelled.
    share
        [n] these with all before them, of all, where all pixels of a class together count as much as those of
        another.
    """

    seen: Tensor
    labels: NDArray[np.int64]
    places: NDArray[np.int64]
    share: NDArray[np.float64]

    @classmethod
    def of(cls, model: SegmentationModel, plane: LabelledPlane) -> _Input:
        """Read a plane."""
        seen = stretched(model.expert_input(plane.image))
        whole = plane.training.astype(np.int64)
        whole[plane.training == ignore_value(plane.training.dtype)] = IGNORE
        labels = _resized(torch.from_numpy(whole), (seen.shape[-2], seen.shape[-1])).numpy()
        y, x = np.nonzero(labels != IGNORE)
        target = labels[y, x]
        share = np.cumsum(1 / np.bincount(target)[target]) if len(y) else np.zeros(0)
        return cls(seen, labels, np.stack([y, x], axis=1), share / share[-1:])

    def draw_place(self, random: np.random.Generator) -> tuple[int, int]:
        """Return a labelled pixel, or the middle where there is none."""
        if not len(self.places):
            return self.labels.shape[0] // 2, self.labels.shape[1] // 2
        y, x = self.places[np.searchsorted(self.share, random.random(), side="right")]
        return int(y), int(x)


def _cut(source: _Input, factor: float, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return a window that holds labels, and the labels, both with their sides times a factor."""
    labels = source.labels
    sides = [min(length, round(_SIDE / factor)) for length in labels.shape]
    centre = source.draw_place(random)
    y0, x0 = (
        int(np.clip(random.integers(at - side + 1, at + 1), 0, length - side))
        for at, side, length in zip(centre, sides, labels.shape, strict=True)
    )
    cut = np.s_[..., y0 : y0 + sides[0], x0 : x0 + sides[1]]
    part, known = source.seen[cut], torch.from_numpy(labels[cut].copy())
    if factor == 1:
        return part, known
    size = (max(1, round(sides[0] * factor)), max(1, round(sides[1] * factor)))
    return F.interpolate(part, size=size, mode="bilinear", antialias=True), _resized(known, size)


def _resized(labels: Tensor, size: tuple[int, int]) -> Tensor:  # [h, w]
    if labels.shape == size:
        return labels
    return F.interpolate(labels[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()


def _turned(part: Tensor, labels: Tensor, how: int) -> tuple[Tensor, Tensor]:
    """Return a window in one of the eight ways in which a square falls on itself; 0 and 1 keep it upright."""
    axes = [axis for axis, bit in ((-1, 1), (-2, 2)) if how & bit]
    part, labels = part.flip(axes), labels.flip(axes)
    return (part.transpose(-1, -2), labels.T) if how & 4 else (part, labels)


def _relit(part: Tensor, random: np.random.Generator) -> Tensor:
    """Return a window as another lamp, camera or stain would show it; what is grey stays grey."""
    contrast, brightness, gamma = random.normal(0, (_BRIGHTNESS, _BRIGHTNESS, _GAMMA))
    colours = random.normal(0, _COLOUR, (2, 3))
    if bool((part[:, :1] == part).all()):
        colours[:] = 0
    gain, offset = torch.from_numpy(colours).to(part)[:, None, :, None, None]
    part = (part * math.exp(contrast) + brightness) * gain.exp() + offset
    part = 2 * ((part + 1) / 2).clamp_min(0) ** math.exp(gamma) - 1
    return part.clamp(*VALUES)


def _encoded(network: LiteNetwork, part: Tensor, cancel: Cancel | None) -> Features:
    whole = fill_up(part).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        maps = network.encoder.maps(whole, FINE_BLOCKS, cancel)
    return tuple(each.cpu() for each in maps)
