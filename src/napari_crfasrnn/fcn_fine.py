"""A network for small structures: a head on the encoder's early maps, down to stride 2.

Nuclei that touch and membranes of a few pixels are lost at stride 8. What tells them apart is local, so
this head reads the first two thirds of the encoder only (strides 2 to 16), which is also faster, and makes
its own wider context. Those blocks are the ImageNet ones in the starter model, too: a checkpoint of this
network need not repeat them (`checkpoint`).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_crfasrnn.encoder import FINE_BLOCKS, FINE_CHANNELS
from napari_crfasrnn.fcn import Features, LiteNetwork, Mix, enlarge

CHANNELS = (64, 64, 64, 32, 24)
"""Of the levels of the head at the strides 32, 16, 8, 4 and 2."""
# Typical deviation of the encoder's maps of stride 2, 4, 8 and 16, as measured on micrographs.
_FEATURE_DEVIATION = (6.0, 8.0, 7.0, 5.0)


class _Look(nn.Module):
    """Look around closely: a residual 3×3 convolution over all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        for conv in (self.conv, self.pointwise):
            nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = self.pointwise(F.relu(self.conv(F.relu(x)), inplace=True))
        return x + seen


class FcnFine(LiteNetwork):
    """Skips from stride 32 down to stride 2 on the first eleven blocks of EfficientNet-Lite0.

    As in `FcnLite`, from coarse to fine each level adds its features to the enlarged level before it, looks
    around, and is scored. The coarsest level is made of the map of stride 16 by averaging, and adds the mean
    over the image.

    Parameters
    ----------
    n_labels
        Number of classes L.
    has_encoder
        Without one, there is only the head, for features that come from elsewhere.
    """

    stride = 2
    feature_blocks = FINE_BLOCKS

    def __init__(self, n_labels: int, *, has_encoder: bool = True) -> None:
        super().__init__(n_labels, has_encoder=has_encoder)
        c2, c4, c8, c16 = FINE_CHANNELS
        sources = (c16, c16, c8, c4, c2)
        self.context = nn.Conv2d(c16, CHANNELS[0], 1, bias=False)
        self.laterals = nn.ModuleList(
            nn.Conv2d(source, channels, 1) for source, channels in zip(sources, CHANNELS, strict=True)
        )
        self.narrow = nn.ModuleList(
            nn.Conv2d(coarse, fine, 1, bias=False) if coarse != fine else nn.Identity()
            for coarse, fine in pairwise(CHANNELS)
        )
        c = CHANNELS
        self.mixes = nn.ModuleList(
            [
                nn.Sequential(Mix(c[0]), Mix(c[0], dilation=2)),
                nn.Sequential(Mix(c[1]), Mix(c[1])),
                _Look(c[2]),
                _Look(c[3]),
                _Look(c[4]),
            ]
        )
        self.scores = nn.ModuleList(nn.Conv2d(channels, n_labels, 1) for channels in CHANNELS)
        self._initialise()

    def _initialise(self) -> None:
        if self.context.weight.is_meta:  # the weights will come from a file, and drawing on "meta" is slow
            return
        d2, d4, d8, d16 = _FEATURE_DEVIATION
        for layer, deviation in zip((self.context, *self.laterals), (d16, d16, d16, d8, d4, d2), strict=True):
            assert isinstance(layer, nn.Conv2d)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            with torch.no_grad():
                layer.weight /= deviation
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for score in self.score_layers:
            nn.init.normal_(score.weight, std=0.01)
            nn.init.zeros_(score.bias)  # type: ignore[arg-type]

    @property
    def score_layers(self) -> tuple[nn.Conv2d, ...]:
        """The 1×1 convolutions with one output row per class, from coarse to fine."""
        return tuple(score for score in self.scores if isinstance(score, nn.Conv2d))

    def level_inputs(self, features: Features) -> Features:
        """Return what each of `score_layers` reads, in their order: [B, 64, …] to [B, 24, …]."""
        f2, f4, f8, f16 = features
        # Cell 2i + 1 of stride 16 sits where cell i of stride 32 does, see `enlarge`: average around it.
        f32 = F.avg_pool2d(F.pad(f16, (0, 1, 0, 1), mode="replicate"), 3, stride=2)
        levels: list[Tensor] = []
        for i, source in enumerate((f32, f16, f8, f4, f2)):
            x = self.laterals[i](source)
            if i == 0:
                x = x + self.context(f16.mean(dim=(-2, -1), keepdim=True))
            else:
                x = x + enlarge(self.narrow[i - 1](levels[-1]), 2)
            levels.append(self.mixes[i](x))
        return tuple(F.relu(x) for x in levels)
