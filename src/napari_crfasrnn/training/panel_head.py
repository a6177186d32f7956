"""Teaching a head of a panel on windows of labelled planes.

An exponential average of the weights is what is kept: it is good whenever the teaching is stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.experts import Head, Panel
from napari_crfasrnn.training.descent import Descent
from napari_crfasrnn.training.panel_windows import IGNORE, Window

_VOTE = 2.0  # where all forests together have one
_BALANCE = 0.35  # classes weigh frequency to the power of minus this
_DROPOUT = 0.2  # of the encoder's channels
_MAX_GRADIENT = 5.0
_SHARES = (0.25, 0.375, 0.5)  # of the other experts' iterations, each of which costs far less: see `n_steps`
_HASTE = 1.5  # times the learning rate of the other experts
_AVERAGE = 0.93  # of the averaged weights stays in an iteration
_ORDER_STREAM = 8  # random stream, beside those of the round


def n_steps(max_iterations: int, n_images: int) -> int:
    """Return how many iterations a head learns from so many images; what one shows is soon learnt."""
    return max(1, round(max_iterations * _SHARES[min(n_images, len(_SHARES)) - 1]))


def with_head(panel: Panel, head: Head) -> Panel:
    """Return the experts of a panel for all classes, and a head that has learnt with them."""
    experts, votes = [*panel.experts, head], [*panel.votes.tolist(), _VOTE]
    joined = Panel.of(experts, votes, panel.n_labels, panel.speaks_for, panel.long_side)
    joined.memory = panel.memory
    return joined


class HeadStudent:
    """A head being taught.

    Parameters
    ----------
    windows
        What to learn, at least one.
    n_labels
        Number of classes L.
    config
        Seed and learning rate.
    n_iterations
        After so many the learning rate is 0.

    Attributes
    ----------
    head
        What learns.
    iteration
        How many are done.
    """

    def __init__(
        self, windows: Sequence[Window], n_labels: int, config: TrainConfig, n_iterations: int
    ) -> None:
        self._windows = windows
        self._random = np.random.default_rng([config.seed, _ORDER_STREAM])
        self._generator = torch.Generator().manual_seed(config.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.head = Head(n_labels)
        counts = torch.zeros(n_labels)
        for window in windows:
            counts += torch.bincount(window.labels[window.labels != IGNORE], minlength=n_labels)
        # A class that is nowhere weighs nothing: it would have the largest weight of all.
        share = counts / counts.sum().clamp_min(1)
        self._weight = torch.where(counts > 0, share.clamp_min(1e-9) ** -_BALANCE, 0.0)
        self._parameters = self.head.head_parameters()
        self._average = [parameter.detach().clone() for parameter in self._parameters]
        self._descent = Descent(self._parameters, _HASTE * config.learning_rate, n_iterations, _MAX_GRADIENT)
        self._order: list[int] = []
        self.iteration = 0
        self._n_averaged = 0

    def step(self) -> float:
        """Do one iteration and return its loss; when that is not finite, nothing was changed."""
        if not self._order:
            self._order = self._random.permutation(len(self._windows)).tolist()
        self.iteration += 1
        window = self._windows[self._order.pop()]
        features = []
        for values in window.features:
            kept = torch.rand(1, values.shape[1], 1, 1, generator=self._generator) >= _DROPOUT
            features.append(values * kept / (1 - _DROPOUT))
        labels = window.labels[1::2, 1::2]  # where the cells of stride 2 sit, see `fcn.enlarge`
        if not bool((labels != IGNORE).any()):  # the few labels are between cells
            labels = window.labels
        height, width = labels.shape
        with torch.enable_grad():
            if labels is window.labels:
                scores = self.head.decode(tuple(features), (height, width))
            else:
                scores = self.head.decode_coarse(tuple(features))[..., :height, :width]
            loss = F.cross_entropy(scores, labels[None], self._weight, ignore_index=IGNORE)
            if self._descent.step(loss):
                self._follow()
        return float(loss.detach())

    @torch.no_grad()
    def _follow(self) -> None:
        self._n_averaged += 1
        memory = min(_AVERAGE, self._n_averaged / (self._n_averaged + 9))  # the first steps are forgotten
        for average, parameter in zip(self._average, self._parameters, strict=True):
            average.lerp_(parameter, 1 - memory)

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the averaged weights in the head."""
        if all(bool(average.isfinite().all()) for average in self._average):
            for average, parameter in zip(self._average, self._parameters, strict=True):
                parameter.copy_(average)
        else:
            self._descent.finish()
        self.head.eval()
