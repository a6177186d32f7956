"""The second encoder of `FcnLite`: MobileNetV2 as DeepLabV3 has it, up to its last map before the classes.

EfficientNet-Lite0 was taught to name one thing per photograph; this one was taught where the classes of
PASCAL VOC are, and its map says so cell by cell. Architecture: Sandler et al., "MobileNetV2", CVPR 2018;
Chen et al., "Rethinking atrous convolution for semantic image segmentation", 2017, in the light form that
the TensorFlow models have for MobileNetV2 (output stride 16, no atrous pyramid, image pooling). Batch norms
are folded into the convolutions.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_crfasrnn.encoder import InvertedResidual
from napari_crfasrnn.progress import Cancel, raise_if_cancelled


class _Stage(NamedTuple):
    """A run of inverted residual blocks; only its first block has the stride."""

    repeats: int
    stride: int
    expansion: int
    channels: int
    dilation: int  # of all blocks but the first


_STAGES = (
    _Stage(1, 1, 1, 16, 1),
    _Stage(2, 2, 6, 24, 1),
    _Stage(3, 2, 6, 32, 1),
    _Stage(4, 2, 6, 64, 1),
    _Stage(3, 1, 6, 96, 1),
    _Stage(3, 1, 6, 160, 2),
    _Stage(1, 1, 6, 320, 2),
)
_STEM_CHANNELS = 32
CONTEXT_CHANNELS = 256
STRIDE = 16


def _depthwise(channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=dilation, dilation=dilation, groups=channels)


class DeepLabEncoder(nn.Module):
    """MobileNetV2 at output stride 16 with DeepLabV3's image pooling and projection.

    Its input is ``(image - 128) / 128``, near enough to that of `EfficientNetLite0` for the two to share one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _STEM_CHANNELS, 3, 2, padding=1)
        blocks: list[nn.Module] = []
        channels = _STEM_CHANNELS
        around = 1  # the first block of a stage looks as far as the stage before it
        for stage in _STAGES:
            for i in range(stage.repeats):
                depthwise = partial(_depthwise, stride=1 if i else stage.stride, dilation=around)
                blocks.append(InvertedResidual(channels, stage.channels, stage.expansion, depthwise))
                channels, around = stage.channels, stage.dilation
        self.blocks = nn.ModuleList(blocks)
        self.local = nn.Conv2d(channels, CONTEXT_CHANNELS, 1)
        self.pooled = nn.Conv2d(channels, CONTEXT_CHANNELS, 1)
        self.projection = nn.Conv2d(2 * CONTEXT_CHANNELS, CONTEXT_CHANNELS, 1)

    def forward(self, x: Tensor, cancel: Cancel | None = None) -> Tensor:
        """Return the map [B, 256, H/16, W/16] of ``x`` [B, 3, H, W], H and W multiples of 16.

        ``cancel`` is asked before every block; `Cancelled` comes out where it says so.

        The network was taught on odd sizes, 513 pixels, where strides of 2 pad alike on both sides and
        cells sit at every 16th pixel from the first on. One repeated pixel before the first puts them at
        -1, 15, 31, …, and after dropping the first each sits at its last pixel, as those of
        `EfficientNetLite0` do.
        """
        x = F.pad(x, (1, 0, 1, 0), mode="replicate").contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.stem(x), inplace=True)
        for block in self.blocks:
            raise_if_cancelled(cancel)
            x = block(x)
        raise_if_cancelled(cancel)
        mean = F.relu(self.pooled(x.mean((-2, -1), keepdim=True)))
        here = F.relu(self.local(x), inplace=True)
        both = torch.cat([mean.expand(-1, -1, *here.shape[-2:]), here], 1)
        return F.relu(self.projection(both), inplace=True)[..., 1:, 1:]
