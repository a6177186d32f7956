"""The encoder of `LiteNetwork`: EfficientNet-Lite0 without its classifier, batch norms folded away.

Architecture: Tan and Le, "EfficientNet", ICML 2019, in the Lite variant of the TensorFlow TPU models
(no squeeze-and-excitation, ReLU6 for swish, stem of 32 channels). Batch normalisation with frozen
statistics is an affine map per channel, so it is multiplied into the convolution before it: faster,
nothing to freeze, and half the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_crfasrnn.progress import Cancel, raise_if_cancelled


class _Stage(NamedTuple):
    """A run of inverted residual blocks; only its first block has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
FEATURE_BLOCKS = (4, 10, 15)
"""The blocks whose outputs are the features: the last ones of strides 8, 16 and 32."""
FEATURE_CHANNELS = (40, 112, 320)
FINE_BLOCKS = (0, 2, 4, 10)
"""The last blocks of strides 2, 4, 8 and 16."""
FINE_CHANNELS = (16, 24, 40, 112)
STRIDE = 32

_BATCH_NORM_EPS = 1e-3


class _SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": a stride of 2 pads one pixel more after than before.

    The ImageNet weights were trained so; symmetric padding would shift every feature map by half a
    pixel per stride. Holds for even sizes, which `EfficientNetLite0` makes sure of.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        before = (kernel - stride) // 2 if stride > 1 else kernel // 2
        self.extra = kernel - stride - 2 * before if stride > 1 else 0
        super().__init__(c_in, c_out, kernel, stride, padding=before, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, self.extra, 0, self.extra)) if self.extra else x)


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise, project 1×1, the last one without activation; added to what came in, if it fits.

    Parameters
    ----------
    c_in, c_out
        Channels.
    expansion
        Channels in between for each that comes in.
    depthwise
        The convolution of so many channels in between.
    """

    def __init__(self, c_in: int, c_out: int, expansion: int, depthwise: Callable[[int], nn.Conv2d]) -> None:
        super().__init__()
        hidden = c_in * expansion
        self.expand = nn.Conv2d(c_in, hidden, 1) if expansion > 1 else None
        self.depthwise = depthwise(hidden)
        self.project = nn.Conv2d(hidden, c_out, 1)
        self.residual = self.depthwise.stride == (1, 1) and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, c_out, H/s, W/s] of ``x`` [B, c_in, H, W]; s: the stride of ``depthwise``."""
        y: Tensor = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = F.relu6(self.depthwise(y), inplace=True)
        y = self.project(y)
        return x + y if self.residual else y


def _depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    return _SameConv2d(channels, channels, kernel, stride, groups=channels)


def fill_up(x: Tensor) -> Tensor:  # [B, C, H, W] → [B, C, H', W']
    """Return an input with its last row and column repeated, as far as to multiples of 32."""
    bottom, right = -x.shape[-2] % STRIDE, -x.shape[-1] % STRIDE
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to its last block: three feature maps at strides 8, 16 and 32.

    Its input is ``(image - 127) / 128``, not the usual ImageNet mean and deviation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _SameConv2d(3, STEM_CHANNELS, 3, stride=2)
        blocks: list[nn.Module] = []
        channels = STEM_CHANNELS
        for stage in STAGES:
            for i in range(stage.repeats):
                depthwise = partial(_depthwise, kernel=stage.kernel, stride=1 if i else stage.stride)
                blocks.append(InvertedResidual(channels, stage.channels, stage.expansion, depthwise))
                channels = stage.channels
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features of ``x`` [B, 3, H, W], H and W multiples of 32.

        Returns
        -------
        tuple of Tensor
            [B, 40, H/8, W/8], [B, 112, H/16, W/16], [B, 320, H/32, W/32].
        """
        f8, f16, f32 = self.maps(x, FEATURE_BLOCKS)
        return f8, f16, f32

    def maps(self, x: Tensor, blocks: tuple[int, ...], cancel: Cancel | None = None) -> tuple[Tensor, ...]:
        """Return the outputs of some blocks, in order; those after the last of them are not computed.

        Raises
        ------
        Cancelled
            When ``cancel``, asked before every block, says so.
        """
        x = F.relu6(self.stem(x), inplace=True)
        found = []
        for i in range(blocks[-1] + 1):
            raise_if_cancelled(cancel)
            x = self.blocks[i](x)
            if i in blocks:
                found.append(x)
        return tuple(found)


def fold_batch_norms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a published EfficientNet-Lite0 state dict into the tensors of `EfficientNetLite0`.

    A convolution without bias followed by a batch norm with frozen statistics,
    ``gamma * (conv(x) - mean) / sqrt(var + eps) + beta``, is one convolution with bias.
    The classifier's tensors are left out.

    Parameters
    ----------
    state
        The state dict of efficientnet-lite-pytorch: ``_conv_stem``, ``_bn0``, ``_blocks.<i>.…``.

    Raises
    ------
    ValueError
        If a tensor is not there.
    """
    folded: dict[str, Tensor] = {}

    def fold(target: str, conv: str, norm: str) -> None:
        try:
            weight = state[f"{conv}.weight"]
            gamma, beta = state[f"{norm}.weight"], state[f"{norm}.bias"]
            mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        except KeyError as error:
            raise ValueError(f"state must be that of an EfficientNet-Lite0, it lacks {error}") from None
        scale = gamma / torch.sqrt(var + _BATCH_NORM_EPS)
        folded[f"{target}.weight"] = weight * scale[:, None, None, None]
        folded[f"{target}.bias"] = beta - mean * scale

    fold("stem", "_conv_stem", "_bn0")
    for i in range(sum(stage.repeats for stage in STAGES)):
        theirs, ours = f"_blocks.{i}", f"blocks.{i}"
        if i > 0:  # the first block does not expand
            fold(f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
        fold(f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        fold(f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
    return folded
