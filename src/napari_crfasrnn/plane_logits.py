"""What a network says of a plane, at the plane's own size wherever that is asked for."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_crfasrnn.edits import Box

WHOLE_PIXELS = 1 << 21
"""A plane of more pixels is worked on in parts: all its logits at once would take gigabytes."""
_BLOCK = 1 << 18  # values at a time, so that they stay in the cache


class PlaneLogits:
    """The logits of a plane, enlarged bilinearly from what the network saw.

    Planes of up to `WHOLE_PIXELS` are enlarged once, of larger ones each part when it is asked for.

    Parameters
    ----------
    judged
        ``[1, L, h, w]``, as large as the plane or smaller.
    size
        Height and width of the plane.
    """

    def __init__(self, judged: Tensor, size: tuple[int, int]) -> None:
        self.size = size
        self._judged = enlarged(judged, size) if math.prod(size) <= WHOLE_PIXELS else judged

    def within(self, box: Box) -> Tensor:
        """Return the logits of a part of the plane, [1, L, y1 - y0, x1 - x0]; not to be written to."""
        y0, x0, y1, x1 = box
        if self._judged.shape[-2:] == self.size:
            return self._judged[..., y0:y1, x0:x1]
        rows = self._places(torch.arange(y0, y1), 0)
        columns = self._places(torch.arange(x0, x1), 1)
        first, last = int(columns[0][0]), int(columns[1][-1]) + 1
        left, right, nearer_right = columns[0] - first, columns[1] - first, columns[2]
        needed = self._judged[..., first:last]
        part = needed.new_empty((1, needed.shape[1], y1 - y0, x1 - x0))
        n_lines = max(1, _BLOCK // (needed.shape[1] * (x1 - x0)))
        for start in range(0, y1 - y0, n_lines):
            block = slice(start, start + n_lines)
            above, below, nearer_below = (of_rows[block] for of_rows in rows)
            lines = torch.lerp(needed[..., above, :], needed[..., below, :], nearer_below[:, None])
            torch.lerp(lines[..., left], lines[..., right], nearer_right, out=part[:, :, block])
        return part

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the logits of some pixels, [L, n], of which rows and columns, int64 [n], are given."""
        one = self._judged[0]
        if one.shape[-2:] == self.size:
            return one[:, rows, columns]
        (above, below, nearer_below), (left, right, nearer_right) = (
            self._places(places, axis) for axis, places in enumerate((rows, columns))
        )
        over, under = (
            torch.lerp(one[:, row, left], one[:, row, right], nearer_right) for row in (above, below)
        )
        return torch.lerp(over, under, nearer_below)

    def _places(self, places: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return between which two places of the network's grid places of the plane lie, and how far."""
        count = self._judged.shape[2 + axis]
        middle = (places.to(self._judged.device, torch.float64) + 0.5) * (count / self.size[axis]) - 0.5
        middle = middle.clamp_min(0)
        before = middle.long()
        share = (middle - before).to(self._judged.dtype)
        return before, (before + 1).clamp_max(count - 1), share


def enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return logits [B, L, h, w] at the size (H, W) of an image."""
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
