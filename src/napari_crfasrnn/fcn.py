"""The networks: the original FCN-8s on VGG-16, and a small one on EfficientNet-Lite0.

Both (and the finer one in `fcn_fine`) are cut in the same place. `encode` costs nearly everything and
knows no classes; `decode` is cheap and holds all that depends on the classes. So the features of an
image can be kept while the classes are taught.

Sources: Long, Shelhamer and Darrell, "Fully convolutional networks for semantic segmentation",
CVPR 2015; Zheng et al., "Conditional random fields as recurrent neural networks", ICCV 2015.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_crfasrnn.deeplab import CONTEXT_CHANNELS, DeepLabEncoder
from napari_crfasrnn.encoder import FEATURE_BLOCKS, FEATURE_CHANNELS, EfficientNetLite0, fill_up
from napari_crfasrnn.progress import Cancel, raise_if_cancelled

Features = tuple[Tensor, ...]
"""Feature maps of an input, from fine to coarse."""

VGG_MIN_CHANNELS = 4  # of the narrowest layer when `Fcn8s` is made small

HEAD_CHANNELS = 96
# Typical deviation of the three feature maps of ImageNet's EfficientNet-Lite0, measured on photographs:
# the first layers of a new head divide by it, so that all three levels speak equally loud.
_FEATURE_DEVIATION = (8.0, 4.0, 2.0)
_ENCODERS = ("encoder.", "deeplab.")


def bilinear_kernel(size: int) -> Tensor:
    """Return the [size, size] kernel with which a transposed convolution of stride size/2 interpolates."""
    center = (size - 1) / 2
    ramp = 1 - (torch.arange(size) - center).abs() / ((size + 1) // 2)
    return ramp[:, None] * ramp[None, :]


def _bilinear_(conv: nn.ConvTranspose2d) -> None:
    """Interpolate each channel by itself: the bilinear kernel on the channel diagonal, zero elsewhere."""
    with torch.no_grad():
        conv.weight.zero_()
        kernel = bilinear_kernel(conv.kernel_size[0])
        for i in range(min(conv.in_channels, conv.out_channels)):
            conv.weight[i, i] = kernel
        if conv.bias is not None:
            conv.bias.zero_()


class Fcn8s(nn.Module):
    """FCN-8s on VGG-16, with the numerics of the original CRF-RNN (Caffe) network.

    The first convolution pads 100 pixels, pools round up, and the score maps are cropped at the
    offsets 5, 9 and 31, which hold at every size. Tensors are named as in the PyTorch port of the
    original, so that its weights fit. The transposed convolutions are full (not per channel) and
    start as bilinear interpolation on the channel diagonal.

    Parameters
    ----------
    n_labels
        Number of classes L.
    width
        Factor on the number of channels of every hidden layer; 1 is the published network with
        134 million parameters, less makes a small one of the same geometry.
    """

    def __init__(self, n_labels: int, width: float = 1.0) -> None:
        super().__init__()
        c1, c2, c3, c4, c6 = (max(VGG_MIN_CHANNELS, round(c * width)) for c in (64, 128, 256, 512, 4096))
        self.n_labels = n_labels
        self.conv1_1 = nn.Conv2d(3, c1, 3, padding=100)
        self.conv1_2 = nn.Conv2d(c1, c1, 3, padding=1)
        self.conv2_1 = nn.Conv2d(c1, c2, 3, padding=1)
        self.conv2_2 = nn.Conv2d(c2, c2, 3, padding=1)
        self.conv3_1 = nn.Conv2d(c2, c3, 3, padding=1)
        self.conv3_2 = nn.Conv2d(c3, c3, 3, padding=1)
        self.conv3_3 = nn.Conv2d(c3, c3, 3, padding=1)
        self.conv4_1 = nn.Conv2d(c3, c4, 3, padding=1)
        self.conv4_2 = nn.Conv2d(c4, c4, 3, padding=1)
        self.conv4_3 = nn.Conv2d(c4, c4, 3, padding=1)
        self.conv5_1 = nn.Conv2d(c4, c4, 3, padding=1)
        self.conv5_2 = nn.Conv2d(c4, c4, 3, padding=1)
        self.conv5_3 = nn.Conv2d(c4, c4, 3, padding=1)
        self.fc6 = nn.Conv2d(c4, c6, 7)
        self.fc7 = nn.Conv2d(c6, c6, 1)
        self.dropout = nn.Dropout(0.5)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.score_fr = nn.Conv2d(c6, n_labels, 1)
        self.score_pool4 = nn.Conv2d(c4, n_labels, 1)
        self.score_pool3 = nn.Conv2d(c3, n_labels, 1)
        self.upscore2 = nn.ConvTranspose2d(n_labels, n_labels, 4, stride=2)
        self.upscore_pool4 = nn.ConvTranspose2d(n_labels, n_labels, 4, stride=2, bias=False)
        self.upscore8 = nn.ConvTranspose2d(n_labels, n_labels, 16, stride=8, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        if self.conv1_1.weight.is_meta:  # the weights will come from a file
            return
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):
                _bilinear_(module)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for score in self.score_layers:
            nn.init.normal_(score.weight, std=0.01)

    @property
    def score_layers(self) -> tuple[nn.Conv2d, ...]:
        """The 1×1 convolutions with one output row per class."""
        return self.score_fr, self.score_pool4, self.score_pool3

    @property
    def class_upsamplers(self) -> tuple[nn.ConvTranspose2d, ...]:
        """The transposed convolutions from classes to classes."""
        return self.upscore2, self.upscore_pool4, self.upscore8

    def encode(self, x: Tensor, cancel: Cancel | None = None) -> Features:  # x: [B, 3, H, W]
        """Return the outputs of pool3, pool4 and fc7, which the scores are made of.

        ``cancel`` is asked between them; `Cancelled` comes out where it says so.
        """
        x = F.relu(self.conv1_1(x), inplace=True)
        x = self.pool(F.relu(self.conv1_2(x), inplace=True))
        x = F.relu(self.conv2_1(x), inplace=True)
        x = self.pool(F.relu(self.conv2_2(x), inplace=True))
        x = F.relu(self.conv3_1(x), inplace=True)
        x = F.relu(self.conv3_2(x), inplace=True)
        pool3 = self.pool(F.relu(self.conv3_3(x), inplace=True))
        raise_if_cancelled(cancel)
        x = F.relu(self.conv4_1(pool3), inplace=True)
        x = F.relu(self.conv4_2(x), inplace=True)
        pool4 = self.pool(F.relu(self.conv4_3(x), inplace=True))
        raise_if_cancelled(cancel)
        x = F.relu(self.conv5_1(pool4), inplace=True)
        x = F.relu(self.conv5_2(x), inplace=True)
        x = self.pool(F.relu(self.conv5_3(x), inplace=True))
        raise_if_cancelled(cancel)
        x = self.dropout(F.relu(self.fc6(x), inplace=True))
        fc7 = self.dropout(F.relu(self.fc7(x), inplace=True))
        return pool3, pool4, fc7

    def level_inputs(self, features: Features) -> Features:
        """Return what each of `score_layers` reads, in their order."""
        pool3, pool4, fc7 = features
        return fc7, pool4, pool3

    def decode(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Return the logits [B, L, h, w] of an input of ``size`` (h, w) from its features."""
        pool3, pool4, fc7 = features
        score = self.upscore2(self.score_fr(fc7))
        score = score + _crop(self.score_pool4(pool4), 5, score.shape[-2:])
        score = self.upscore_pool4(score)
        score = score + _crop(self.score_pool3(pool3), 9, score.shape[-2:])
        return _crop(self.upscore8(score), 31, size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, L, H, W] of ``x`` [B, 3, H, W]."""
        return self.decode(self.encode(x), (x.shape[-2], x.shape[-1]))


def _crop(x: Tensor, offset: int, size: tuple[int, int] | torch.Size) -> Tensor:
    h, w = size
    return x[..., offset : offset + h, offset : offset + w]


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Enlarge [B, C, h, w] to [B, C, factor h, factor w] bilinearly, cells sitting at their last pixel.

    A convolution of stride 2 padded as "SAME" looks at the pixels around 2i + 1, so after several of
    them cell i of a map of stride s sits at pixel s i + (s - 1), its last one, and not at its middle.
    One repeated cell before the first puts the cells at -1, s - 1, 2s - 1, …: then interpolation from
    corner to corner is exact, and its first pixel is dropped.
    """
    return _Enlarge.apply(x, factor)  # type: ignore[no-any-return, no-untyped-call]


class _Enlarge(torch.autograd.Function):
    """`enlarge`, with a gradient of a few sums: that of torch takes 4 to 9 times as long.

    Measured on maps of 96 channels and 32 x 32 cells, laid out channel by channel, and pixel by pixel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        h, w = x.shape[-2] * factor + 1, x.shape[-1] * factor + 1
        padded = F.pad(x, (1, 0, 1, 0), mode="replicate")
        return F.interpolate(padded, size=(h, w), mode="bilinear", align_corners=True)[..., 1:, 1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _gathered(_gathered(gradients[0], ctx.factor, 2), ctx.factor, 3), None


def _gathered(gradient: Tensor, factor: int, axis: int) -> Tensor:
    """Return the sums over what each cell along an axis was enlarged to, times its share in that.

    Pixel j = 1 … f after a cell is to j / f of the next one, the last pixel of which is pixel f.
    """
    n = gradient.shape[axis] // factor
    size = (*gradient.shape[:axis], n, factor, *gradient.shape[axis + 1 :])
    parts = gradient.reshape(size).unbind(axis + 1)
    found = parts[-1].clone()
    for j, part in enumerate(parts[:-1], 1):
        found.add_(part, alpha=j / factor)
        found.narrow(axis, 0, n - 1).add_(part.narrow(axis, 1, n - 1), alpha=1 - j / factor)
        found.narrow(axis, 0, 1).add_(part.narrow(axis, 0, 1), alpha=1 - j / factor)  # the repeated cell
    return found


class Mix(nn.Module):
    """Look around: a residual depthwise 3×3 and a pointwise convolution."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels, channels, 3, padding=dilation, dilation=dilation, groups=channels
        )
        self.pointwise = nn.Conv2d(channels, channels, 1)
        nn.init.kaiming_uniform_(self.depthwise.weight, nonlinearity="relu")
        nn.init.kaiming_uniform_(self.pointwise.weight, nonlinearity="relu")
        nn.init.zeros_(self.depthwise.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.pointwise.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` [B, C, h, w] with what it sees around each cell added."""
        mixed: Tensor = self.pointwise(F.relu(self.depthwise(F.relu(x)), inplace=True))
        return x + mixed


class LiteNetwork(nn.Module, ABC):
    """What the networks on EfficientNet-Lite0 have in common: all but the shape of the head.

    They take any size: the input is padded at the bottom and the right to a multiple of 32 by repeating
    its edge, and the logits are cropped. There is a score map for each level of the head; each is enlarged
    and added to the next finer one.

    Parameters
    ----------
    n_labels
        Number of classes L.
    has_encoder
        Without one, there is only the head, for features that come from elsewhere.

    Attributes
    ----------
    stride
        Of the finest level, in pixels of the input.
    feature_blocks
        The blocks of the encoder whose outputs are the features.
    """

    stride: int
    feature_blocks: tuple[int, ...]
    encoder: EfficientNetLite0

    def __init__(self, n_labels: int, *, has_encoder: bool = True) -> None:
        super().__init__()
        self.n_labels = n_labels
        if has_encoder:
            self.encoder = EfficientNetLite0()

    @property
    @abstractmethod
    def score_layers(self) -> tuple[nn.Conv2d, ...]:
        """The 1×1 convolutions with one output row per class, from coarse to fine."""

    @abstractmethod
    def level_inputs(self, features: Features) -> Features:
        """Return what each of `score_layers` reads, in their order: [B, C, …], each twice as fine."""

    @property
    def class_upsamplers(self) -> tuple[nn.ConvTranspose2d, ...]:
        """None here: score maps are enlarged by plain interpolation."""
        return ()

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters outside the encoders: what learns from a few corrections."""
        return [p for name, p in self.named_parameters() if not name.startswith(_ENCODERS)]

    def encoder_parts(self) -> list[nn.Module]:
        """Return the encoders: what learns, slowly, where there is much to learn from."""
        return [part for name, part in self.named_children() if f"{name}." in _ENCODERS]

    def encode(self, x: Tensor, cancel: Cancel | None = None) -> Features:  # x: [B, 3, H, W]
        """Return the features, [B, C, h/s, w/s] for some strides s; h, w are H, W in full multiples of 32.

        ``cancel`` is asked before every block; `Cancelled` comes out where it says so.
        """
        return self._encode_padded(fill_up(x).contiguous(memory_format=torch.channels_last), cancel)

    def _encode_padded(self, x: Tensor, cancel: Cancel | None) -> Features:
        # x: [B, 3, H, W], H and W multiples of 32
        return self.encoder.maps(x, self.feature_blocks, cancel)

    def decode(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Return the logits [B, L, h, w] of an input of ``size`` (h, w) from its features."""
        # As planes, which the CRF and all that looks for the best label read: turning the small map is quick.
        coarse = self.decode_coarse(features).contiguous()
        return _crop(enlarge(coarse, self.stride), 0, size).contiguous()

    def decode_coarse(self, features: Features) -> Tensor:
        """Return the logits at the finest level, [B, L, h/stride, w/stride], before they are enlarged."""
        layers = zip(self.score_layers, self.level_inputs(features), strict=True)
        maps: list[Tensor] = [score(x) for score, x in layers]
        return reduce(lambda coarse, fine: fine + enlarge(coarse, 2), maps)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, L, H, W] of ``x`` [B, 3, H, W]."""
        return self.decode(self.encode(x), (x.shape[-2], x.shape[-1]))


class FcnLite(LiteNetwork):
    """FCN-8s-style skips on EfficientNet-Lite0: a network for a laptop without a GPU.

    From coarse to fine, each level adds its features to the enlarged level below it, looks around,
    and is scored; the three score maps are enlarged and summed. The coarsest level also adds the mean
    of the whole image to every pixel (global context). With a second encoder, the level of stride 16 reads
    and scores its map too.

    Parameters
    ----------
    n_labels
        Number of classes L.
    second_encoder
        Whether there is a `DeepLabEncoder` beside EfficientNet-Lite0.
    """

    stride = 8
    feature_blocks = FEATURE_BLOCKS

    def __init__(self, n_labels: int, *, second_encoder: bool = False) -> None:
        super().__init__(n_labels)
        self.deeplab = DeepLabEncoder() if second_encoder else None
        second_channels = CONTEXT_CHANNELS if second_encoder else 0
        self.lateral_second: nn.Conv2d | None = None
        if second_encoder:
            self.lateral_second = nn.Conv2d(second_channels, HEAD_CHANNELS, 1, bias=False)
        c8, c16, c32 = FEATURE_CHANNELS
        self.lateral8 = nn.Conv2d(c8, HEAD_CHANNELS, 1)
        self.lateral16 = nn.Conv2d(c16, HEAD_CHANNELS, 1)
        self.lateral32 = nn.Conv2d(c32, HEAD_CHANNELS, 1)
        self.context = nn.Conv2d(c32, HEAD_CHANNELS, 1, bias=False)
        self.mix8 = Mix(HEAD_CHANNELS)
        self.mix16 = nn.Sequential(Mix(HEAD_CHANNELS), Mix(HEAD_CHANNELS))
        self.mix32 = nn.Sequential(Mix(HEAD_CHANNELS), Mix(HEAD_CHANNELS, dilation=2))
        self.score8 = nn.Conv2d(HEAD_CHANNELS, n_labels, 1)
        self.score16 = nn.Conv2d(HEAD_CHANNELS + second_channels, n_labels, 1)
        self.score32 = nn.Conv2d(HEAD_CHANNELS, n_labels, 1)
        self._initialise()

    def _initialise(self) -> None:
        if self.score8.weight.is_meta:  # the weights will come from a file, and drawing on "meta" is slow
            return
        d8, d16, d32 = _FEATURE_DEVIATION
        first = ((self.lateral8, d8), (self.lateral16, d16), (self.lateral32, d32), (self.context, d32))
        for layer, deviation in first:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            with torch.no_grad():
                layer.weight /= deviation
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if self.lateral_second is not None:
            nn.init.kaiming_normal_(self.lateral_second.weight, nonlinearity="linear")
        for score in self.score_layers:
            nn.init.normal_(score.weight, std=0.01)
            nn.init.zeros_(score.bias)  # type: ignore[arg-type]

    @property
    def score_layers(self) -> tuple[nn.Conv2d, ...]:
        """The 1×1 convolutions with one output row per class, from coarse to fine."""
        return self.score32, self.score16, self.score8

    def _encode_padded(self, x: Tensor, cancel: Cancel | None) -> Features:
        features = super()._encode_padded(x, cancel)
        raise_if_cancelled(cancel)
        return features if self.deeplab is None else (*features, self.deeplab(x, cancel))

    def level_inputs(self, features: Features) -> Features:
        """Return what each of `score_layers` reads, in their order: [B, C, …] from coarse to fine.

        C is 96; with a second encoder that of the middle level is 352, the last 256 being its map.
        """
        f8, f16, f32 = features[:3]
        context = self.context(f32.mean(dim=(-2, -1), keepdim=True))
        x32 = self.mix32(self.lateral32(f32) + context)
        around = self.lateral16(f16) + enlarge(x32, 2)
        if self.lateral_second is not None:
            around = around + self.lateral_second(features[3])
        x16 = self.mix16(around)
        x8 = self.mix8(self.lateral8(f8) + enlarge(x16, 2))
        seen16 = F.relu(x16)
        if self.lateral_second is not None:
            seen16 = torch.cat([seen16, features[3]], 1)
        return F.relu(x32), seen16, F.relu(x8)


Network = Fcn8s | LiteNetwork
"""The networks that a model may have."""
