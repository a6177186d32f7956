"""Teaching the experts for single pixels from the first tree to the last step, in whatever thread."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from napari_crfasrnn.experts import Panel
from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.training.panel_learner import PanelLearner
from napari_crfasrnn.training.panel_round import PanelRound
from napari_crfasrnn.training.report import StoppedBy

Tell = Callable[[int, float, float | None], None]
"""Is given the number of an iteration, its loss, and the mean IoU if it was measured."""


@dataclass(eq=False)
class PanelLesson:
    """Teaches experts what a round has read.

    Parameters
    ----------
    work
        The round.
    trees_are_late
        Whether there is no time to grow more trees.
    is_over
        Whether there is no time for more iterations; one there is in any case.
    """

    work: PanelRound
    trees_are_late: Callable[[], bool]
    is_over: Callable[[], bool]
    _learner: PanelLearner | None = field(default=None, init=False)

    @property
    def panel(self) -> Panel | None:
        """What has learnt at least a step."""
        return self._learner.panel if self._learner is not None and self._learner.iteration else None

    def run(self, cancel: Cancel | None, tell: Tell | None = None) -> StoppedBy:
        """Teach them, and return why it ended.

        Raises
        ------
        Cancelled
            When asked to stop; `panel` holds the best so far.
        """
        self._learner = learner = self.work.start(self.trees_are_late, cancel)
        try:
            while learner.iteration < self.work.n_iterations:
                raise_if_cancelled(cancel)
                if learner.iteration and self.is_over():
                    return "time"
                loss = learner.step()
                if not math.isfinite(loss):
                    return "diverged"
                if tell is not None:
                    tell(learner.iteration, loss, self.work.measure(learner.panel, learner.iteration))
        finally:
            learner.finish()
        return "iterations" if learner.is_complete else "time"
