"""The 500×500 pixels in which the demos of the original CRF-RNN looked at every image.

The networks of the original were of one size. The demos resized an image with Pillow, padded it at the
bottom and the right with zeros after the mean was subtracted, and let network and CRF see the padding; the
labels were cut out again. This is here for numbers that are comparable with theirs, to the last detail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE = 500  # pixels


@dataclass(frozen=True, eq=False)
class FramedImage:
    """Images as a demo saw them, and the way back."""

    image: Tensor
    """[B, 3, 500, 500], 0..255, with the mean colour where there is no image."""
    rows: Tensor
    """int64 [H]: which row of the frame each row of the image takes its labels from."""
    columns: Tensor
    """int64 [W]: the same for columns."""

    def restore(self, logits: Tensor) -> Tensor:  # [B, L, 500, 500] → [B, L, H, W]
        """Return the logits of the frame at the size of the image: cut out, nearest neighbours."""
        return logits[:, :, self.rows][..., self.columns]


def framed_size(height: int, width: int, frame: Literal["caffe", "pytorch"]) -> tuple[int, int]:
    """Return the height and the width to which a demo resized an image.

    The ports to PyTorch and Keras made the longer side 500, whatever it was; the Caffe demo only if it was
    more. All cut off what is behind the decimal point, which now and then gives 499.
    """
    if frame == "caffe" and max(height, width) <= SIDE:
        return height, width
    ratio = min(SIDE / width, SIDE / height)
    return max(1, int(height * ratio)), max(1, int(width * ratio))


def put_in_frame(
    image: Tensor,  # [B, 3, H, W], 0..255
    frame: Literal["caffe", "pytorch"],
    mean: tuple[float, float, float],
) -> FramedImage:
    """Resize images as a demo did, and pad them with the colour ``mean`` (in the order of the channels).

    Values are rounded to 8 bits, which is what the demos read.
    """
    height, width = image.shape[-2:]
    h, w = framed_size(height, width, frame)
    padded = torch.tensor(mean, dtype=torch.float32)[:, None, None].repeat(len(image), 1, SIDE, SIDE)
    for place, one in enumerate(image):
        pixels = one.round().clamp(0, 255).to("cpu", torch.uint8).permute(1, 2, 0).contiguous().numpy()
        picture = Image.fromarray(pixels).resize((w, h), Image.Resampling.BILINEAR)
        padded[place, :, :h, :w] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    rows, columns = _nearest(h, height), _nearest(w, width)
    return FramedImage(padded.to(image.device), rows.to(image.device), columns.to(image.device))


def _nearest(size: int, new_size: int) -> Tensor:
    """Return which of ``size`` places each of ``new_size`` shows when Pillow resizes to the nearest."""
    places = Image.fromarray(np.arange(size, dtype=np.int32)[None])
    return torch.from_numpy(
        np.array(places.resize((new_size, 1), Image.Resampling.NEAREST))[0].astype(np.int64)
    )
