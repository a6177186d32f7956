"""Small perceptrons, side by side: one hidden layer each, averaged."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_crfasrnn.config import PerceptronsConfig
from napari_crfasrnn.experts.features import GROUPS

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
    def forward(self, rows: Tensor) -> Tensor:  # [N, d] → [N, L]
        """Return the mean of the perceptrons' marginals."""
        chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
        parts = [self.logits(self.normalised(part)[None]).softmax(-1).mean(0) for part in chunks]
        return torch.cat(parts) if parts else rows.new_zeros(0, self.bias2.shape[-1])
