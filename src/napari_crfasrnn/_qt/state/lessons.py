"""Rounds of learning: begun, watched, and kept or discarded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from napari_crfasrnn._qt.state.engine import Engine, ModelRequest
from napari_crfasrnn._qt.state.shelf import LEARNT, ModelChoice, Shelf, round_choice
from napari_crfasrnn._qt.state.storage import Storage
from napari_crfasrnn._qt.state.tasks import Busy, Tasks
from napari_crfasrnn._qt.worker import Report, Task
from napari_crfasrnn.config import TrainConfig

if TYPE_CHECKING:
    from napari_crfasrnn.project import Round
    from napari_crfasrnn.training import TrainReport, TrainStep


class Lessons:
    """Rounds of learning.

    Attributes
    ----------
    report
        Of the round that is neither kept nor discarded.
    history
        Steps of the last round.
    """

    def __init__(self, tasks: Tasks, engine: Engine, shelf: Shelf, storage: Storage) -> None:
        self.report: TrainReport | None = None
        self.history: list[TrainStep] = []
        self._tasks, self._engine, self._shelf, self._storage = tasks, engine, shelf, storage
        self._before: ModelChoice | None = None

    def learn(self, request: ModelRequest, config: TrainConfig, taken: Callable[[], None]) -> None:
        """Teach a copy of a model what the project holds; then ``taken``, and the copy is chosen."""
        busy = Busy("learn", "Learning…")
        self.history = []

        def run(task: Task, report: Report) -> TrainReport:
            project = self._storage.keeper.project
            if project is None:
                raise ValueError("there is nothing to learn from: correct something first")
            return self._engine.learn(request, project, config, report, task.cancelled)

        def done(report: TrainReport) -> None:
            self._before, self.report = self._shelf.choice, report
            taken()
            names = tuple(spec.name for spec in report.model.classes)
            self._shelf.add(ModelChoice(LEARNT, "What was just learnt", report.model, names))

        on_step = partial(self._on_step, config)
        self._storage.when_saved(busy, lambda: self._tasks.start(busy, run, done, on_step))

    def keep(self) -> None:
        """Keep what was learnt: the project gets the round, and the models get its model."""
        report, project = self.report, self._storage.keeper.project
        if report is None or project is None:
            return

        def done(learnt: Round) -> None:
            self.report = self._before = None
            self._shelf.remove(LEARNT)
            names = tuple(spec.name for spec in report.model.classes)
            self._shelf.add(round_choice(learnt.number, learnt.model_path, names))
            self._tasks.say("learn", f"Kept as round {learnt.number}.", "good")
            self._tasks.finished.emit("save")

        self._storage.run("saving the round", lambda: project.add_round(report, report.model), done)

    def discard(self) -> None:
        """Go back to the model from before."""
        previous = self._before
        self.forget()
        if previous is not None:
            self._shelf.choose(previous.name)
        self._tasks.say("learn", "Discarded; the model is as it was.")

    def forget(self) -> None:
        """Drop what was learnt and not kept."""
        self.report = self._before = None
        self.history = []
        self._shelf.remove(LEARNT)

    def _on_step(self, config: TrainConfig, step: TrainStep) -> None:
        self.history.append(step)
        share = step.iteration / step.total
        if config.seconds is not None:  # whichever ends it first
            share = max(share, step.seconds / config.seconds)
        self._tasks.show_progress((round(100 * min(share, 1)), 100))
