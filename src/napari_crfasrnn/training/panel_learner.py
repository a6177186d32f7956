"""Learning a panel of experts from labelled pixels: forests at once, perceptrons step by step.

A few strokes of a new kind of image are too little for the head of a network, which sees everything
through features of stride 8 and learns the strokes by heart. The experts read fine features at single
pixels instead. Forests (Breiman, Machine Learning 2001; Geurts, Ernst and Wehenkel, Machine Learning 2006)
hardly learn by heart; perceptrons, kept modest by dropping features, whole groups of them, and
hidden units, use deeper features better. They fail in different places, so they vote.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_crfasrnn.config import PerceptronsConfig, TrainConfig
from napari_crfasrnn.experts import Forest, Panel, Perceptrons
from napari_crfasrnn.experts.features import AROUND, FINE, GROUPS, columns
from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.training.descent import Descent
from napari_crfasrnn.training.growing import KINDS, Pixels, grow_forests

_TREES = 32
# The groups that perceptrons read, and their votes; all forests together have one. Stride 32 knows what
# kind of place it is, which few strokes teach badly.
_PERCEPTRONS = {FINE: 0.7, (*FINE, 32): 0.3}
# Where regions are labelled as a whole, there are examples enough to learn what places are like around.
_DENSE_PERCEPTRONS = {FINE: 0.5, (*FINE, *AROUND): 0.5, (*FINE, 32, *AROUND): 0.5}
# A head on windows makes more of them still, and beside it fewer others say the same.
_FORESTS_BESIDE_HEAD = ((2, 4, 8), FINE)
_PERCEPTRONS_BESIDE_HEAD = {(*FINE, *AROUND): 1.0}
_MEMBERS, _HIDDEN = 3, 64
_BATCH = 128  # pixels of each member
_FEATURE_DROPOUT, _GROUP_DROPOUT, _HIDDEN_DROPOUT = 0.1, 0.2, 0.3
_BALANCE = 0.5  # pixels are drawn by class frequency to the power of minus this


class PanelLearner:
    """Teaches a panel, one iteration of its perceptrons per call of `step`.

    Parameters
    ----------
    n_labels
        Number of classes L of the model.
    speaks_for
        What the columns stand for, as in `PanelConfig`.
    pixels
        What to learn.
    are_dense
        Whether they are from regions that are labelled as a whole.
    beside_head
        Whether a head learns from the same labels.
    config
        Seed, learning rate, number of iterations.
    cancel
        Asked while trees grow.
    is_late
        Whether there is no time to grow more trees; there are some of each forest in any case.
    n_trees
        Of each forest.
    long_side
        Of the images as the experts read them, as in `PanelConfig`.

    Attributes
    ----------
    is_complete
        Whether all trees were grown.

    Raises
    ------
    Cancelled
        When asked to stop.
    """

    def __init__(
        self,
        n_labels: int,
        speaks_for: tuple[int, ...] | None,
        pixels: Pixels,
        are_dense: bool,
        beside_head: bool,
        config: TrainConfig,
        cancel: Cancel | None,
        is_late: Callable[[], bool] = lambda: False,
        n_trees: int | None = None,
        long_side: int | None = None,
    ) -> None:
        n_columns = n_labels if speaks_for is None else len(speaks_for)
        kinds = _FORESTS_BESIDE_HEAD if beside_head else KINDS
        n_threads = (
            1 if beside_head else torch.get_num_threads()
        )  # beside a head there is one core for all else
        forests, self.is_complete = grow_forests(
            pixels, kinds, n_columns, n_trees or _TREES, config.seed, n_threads, cancel, is_late
        )
        generator = torch.Generator().manual_seed(config.seed)
        schools = _DENSE_PERCEPTRONS if are_dense else _PERCEPTRONS
        if beside_head:
            schools = _PERCEPTRONS_BESIDE_HEAD
        self._students: list[_Student] = []
        for groups in schools:
            raise_if_cancelled(cancel)
            self._students.append(_Student(pixels, groups, n_columns, config, generator))
        votes = [1 / len(forests)] * len(forests) + list(schools.values())
        experts: list[Forest | Perceptrons] = [*forests]
        experts += [student.perceptrons for student in self._students]
        self.panel = Panel.of(experts, votes, n_labels, speaks_for, long_side)
        self.iteration = 0

    def step(self) -> float:
        """Do one iteration and return its loss; when that is not finite, nothing was changed."""
        self.iteration += 1
        return float(np.mean([student.step() for student in self._students]))

    def finish(self) -> None:
        """Leave sound weights in the panel: the latest, or after a loss that is no number earlier ones."""
        for student in self._students:
            student.finish()


class _Student:
    """Perceptrons being taught."""

    def __init__(
        self,
        pixels: Pixels,
        groups: tuple[int, ...],
        n_columns: int,
        config: TrainConfig,
        generator: torch.Generator,
    ) -> None:
        shape = PerceptronsConfig(groups=groups, n_members=_MEMBERS, hidden=_HIDDEN)
        rows = columns(pixels.rows, groups)
        self.perceptrons = Perceptrons(shape, n_columns)
        self.perceptrons.initialise(rows, generator)
        self._x = self.perceptrons.normalised(rows)
        self._target = pixels.column
        self._chance = (pixels.weight * pixels.column_weight() ** -_BALANCE).float()
        widths = torch.tensor([GROUPS[group] for group in groups])
        self._group_of = torch.arange(len(groups)).repeat_interleave(widths)
        self._generator = generator
        self._descent = Descent(
            list(self.perceptrons.parameters()), config.learning_rate, config.max_iterations
        )

    def step(self) -> float:
        """Do one iteration and return its loss; when that is not finite, nothing was changed."""
        chosen = torch.multinomial(
            self._chance, _MEMBERS * _BATCH, replacement=True, generator=self._generator
        )
        chosen = chosen.view(_MEMBERS, _BATCH)
        with torch.enable_grad():
            logits = self.perceptrons.logits(self._dropped(self._x[chosen]), _HIDDEN_DROPOUT, self._generator)
            losses = F.cross_entropy(logits.flatten(0, 1), self._target[chosen].flatten(), reduction="none")
            loss = losses.sum() / _BATCH  # each member takes the step that it would take alone
            self._descent.step(loss)
        return float(loss.detach()) / _MEMBERS

    def finish(self) -> None:
        """Leave sound weights."""
        self._descent.finish()

    def _dropped(self, x: Tensor) -> Tensor:  # [M, n, d]
        """Leave out some features, and for each member some groups."""
        n_groups = int(self._group_of[-1]) + 1
        groups = torch.rand(len(x), 1, n_groups, generator=self._generator) >= _GROUP_DROPOUT
        single = torch.rand(x.shape, generator=self._generator) >= _FEATURE_DROPOUT
        scale = 1 / ((1 - _GROUP_DROPOUT) * (1 - _FEATURE_DROPOUT))
        return x * (groups[..., self._group_of] & single) * scale
