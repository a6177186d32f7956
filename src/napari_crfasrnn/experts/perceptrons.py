"""Small perceptrons, side by side: one hidden layer each, averaged."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_crfasrnn.config import PerceptronsConfig
from napari_crfasrnn.experts.features import DEEP, GROUPS, FeatureMaps, Layer
from napari_crfasrnn.experts.features import columns as columns_of

_CLIP = 6.0  # standard deviations: what lies farther out says no more
_SMALLEST_DEVIATION = 1e-3
_EQUAL_WIDTH = 40  # a group with more features than this speaks no louder for it
_CHUNK = 8_192


class Perceptrons(nn.Module):
    """Some perceptrons over pixel features, of which each was taught with other pixels.

    Parameters
    ----------
    config
        Which features, how many perceptrons and hidden units.
    n_labels
        Number of classes L.
    """

    centre: Tensor
    deviation: Tensor
    loudness: Tensor

    def __init__(self, config: PerceptronsConfig, n_labels: int) -> None:
        super().__init__()
        self.config = config
        m, d, hidden = config.n_members, sum(GROUPS[group] for group in config.groups), config.hidden
        self.register_buffer("centre", torch.zeros(d))
        self.register_buffer("deviation", torch.ones(d))
        widths = torch.tensor([GROUPS[group] for group in config.groups])
        loudness = (_EQUAL_WIDTH / widths).clamp_max(1).sqrt().repeat_interleave(widths)
        self.register_buffer("loudness", loudness, persistent=False)
        self.weight1 = nn.Parameter(torch.zeros(m, d, hidden))
        self.bias1 = nn.Parameter(torch.zeros(m, 1, hidden))
        self.weight2 = nn.Parameter(torch.zeros(m, hidden, n_labels))
        self.bias2 = nn.Parameter(torch.zeros(m, 1, n_labels))

    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """Measure the features of rows [N, d], and draw the first weights."""
        with torch.no_grad():
            self.centre.copy_(rows.mean(0))
            self.deviation.copy_(rows.std(0, correction=0).clamp_min(_SMALLEST_DEVIATION))
            for weight in (self.weight1, self.weight2):
                draw = torch.rand(weight.shape, generator=generator) * 2 - 1
                weight.copy_(draw / weight.shape[1] ** 0.5)

    def normalised(self, rows: Tensor) -> Tensor:  # [N, d]
        """Return features as the perceptrons read them."""
        return ((rows - self.centre) / self.deviation).clamp(-_CLIP, _CLIP) * self.loudness

    def logits(self, x: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Return the logits [M, n, L] of normalised features [M, n, d] (or [1, n, d], the same for all)."""
        hidden = F.relu(x @ self.weight1 + self.bias1)
        if dropout:
            kept = torch.rand(hidden.shape, generator=generator) >= dropout
            hidden = hidden * kept / (1 - dropout)
        return hidden @ self.weight2 + self.bias2

    @torch.no_grad()
    def deep_part(self, maps: FeatureMaps) -> Layer | None:
        """Return what coarse maps add to the hidden units, at the cells of the finest: what `on_grid` reads.

        A sum of weighted features is interpolated as well as the features are (but for those beyond the
        clip, of which only those of whole cells are held back), and there are 64 pixels to a cell or more.
        """
        parts = []
        for group, start, stop in self._ranges():
            if group not in DEEP:
                continue
            layer = maps.layer(group)
            size = layer.values.shape[:2]
            x = self._normalised(layer.values.flatten(0, 1).to(self.centre.device), start, stop)
            parts.append(Layer((x @ self._stacked(start, stop)).view(*size, -1).cpu(), layer.lay))
        return maps.joined(parts) if parts else None

    @torch.no_grad()
    def on_grid(
        self,
        maps: FeatureMaps,
        deep: Layer | None,
        rows: NDArray[np.integer],
        columns: NDArray[np.integer],
        fine: Tensor,
    ) -> Tensor:  # [N, L]
        """Return the mean of the perceptrons' marginals for all pixels in some rows and columns.

        Parameters
        ----------
        maps, deep
            The features, and what `deep_part` says of them.
        rows, columns
            Which pixels.
        fine
            [N, d] their features of the groups `FINE`, at least.
        """
        m, hidden = self.config.n_members, self.config.hidden
        total = self.bias1.flatten().expand(len(fine), -1).clone()  # [N, M × hidden]
        own = [group for group in self.config.groups if group not in DEEP]
        stop = sum(GROUPS[group] for group in own)  # they come first
        total.addmm_(self._normalised(columns_of(fine, own), 0, stop), self._stacked(0, stop))
        if deep is not None:
            total += maps.spread(deep, rows, columns).flatten(0, 1).to(total.device)
        units = total.relu_().view(-1, m, hidden).movedim(1, 0)  # [M, N, hidden]
        logits = torch.baddbmm(self.bias2, units, self.weight2)
        return logits.softmax(-1).mean(0)

    def _ranges(self) -> list[tuple[int, int, int]]:
        """Return each group of features with the columns where it starts and ends."""
        ends = np.cumsum([GROUPS[group] for group in self.config.groups]).tolist()
        return list(zip(self.config.groups, [0, *ends[:-1]], ends, strict=True))

    def _stacked(self, start: int, stop: int) -> Tensor:  # [d, M × hidden]
        return self.weight1[:, start:stop].movedim(0, 1).flatten(1)

    def _normalised(self, rows: Tensor, start: int, stop: int) -> Tensor:
        part = slice(start, stop)
        scaled = (rows - self.centre[part]).div_(self.deviation[part]).clamp_(-_CLIP, _CLIP)
        return scaled.mul_(self.loudness[part])

    @torch.no_grad()
    def forward(self, rows: Tensor) -> Tensor:  # [N, d] → [N, L]
        """Return the mean of the perceptrons' marginals for pixels with these features, all groups."""
        rows = columns_of(rows, self.config.groups)
        chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
        parts = [self.logits(self.normalised(part)[None]).softmax(-1).mean(0) for part in chunks]
        return torch.cat(parts) if parts else rows.new_zeros(0, self.bias2.shape[-1])
