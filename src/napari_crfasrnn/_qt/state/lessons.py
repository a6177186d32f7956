"""Rounds of learning: begun, watched, and kept or discarded.

A round is in the project as soon as its learning ends, though not in force: whatever happens until it is
kept, it is not lost. Keeping puts it in force; discarding removes it. So it is with what was learnt until a
cancel: the person chooses between that and the model from before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from psygnal import Signal

from napari_crfasrnn._qt.state.engine import Engine, ModelRequest
from napari_crfasrnn._qt.state.rounds import Rounds
from napari_crfasrnn._qt.state.shelf import LEARNT, ModelChoice, Shelf, round_choice
from napari_crfasrnn._qt.state.storage import Storage
from napari_crfasrnn._qt.state.tasks import Busy, Tasks
from napari_crfasrnn._qt.worker import Report, Task
from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.edits import Labels, labelled_mask

if TYPE_CHECKING:
    from napari_crfasrnn.project import Project, Round
    from napari_crfasrnn.training import TrainReport, TrainStep


@dataclass(frozen=True)
class Effort:
    """What a round may cost.

    Attributes
    ----------
    seconds
        Its time limit.
    thaw
        Whether it trains the encoder, too.
    """

    seconds: float = 20.0
    thaw: bool = False

    def config(self) -> TrainConfig:
        """Return how to learn; with more time, longer."""
        few = TrainConfig()
        n = round(few.max_iterations * self.seconds / Effort.seconds)
        return few.model_copy(update={"seconds": self.seconds, "thaw": self.thaw, "max_iterations": n})


class Lessons:
    """Rounds of learning.

    ``kept`` is emitted with the name that what was learnt is going to have on the shelf.

    Attributes
    ----------
    report
        Of the round that is neither kept nor discarded.
    history
        Steps of the last round.
    """

    kept = Signal(str)

    def __init__(self, tasks: Tasks, engine: Engine, shelf: Shelf, storage: Storage, rounds: Rounds) -> None:
        self.report: TrainReport | None = None
        self.history: list[TrainStep] = []
        self._tasks, self._engine, self._shelf, self._storage = tasks, engine, shelf, storage
        self._rounds = rounds
        self._before: ModelChoice | None = None
        self._to_add: Callable[..., Round] | None = None  # puts the round into a project
        self._stored: list[Round] = []  # the round, once it is in the project; used by the thread of the disk

    @property
    def before(self) -> ModelChoice | None:
        """The model from before the round that is neither kept nor discarded."""
        return self._before

    def learn(
        self,
        request: ModelRequest,
        base: ModelRequest | None,
        config: TrainConfig,
        taken: Callable[[Mapping[int, Labels]], None],
    ) -> None:
        """Teach a copy of a model what the project holds; then ``taken`` with that, and the copy is chosen.

        ``base`` is the model that the first of its rounds began with, if it is of one and that one is there.
        ``taken`` gets labels by the numbers of the images in the project; what is painted meanwhile is new.
        """
        busy = Busy("learn", "Learning…")
        self.history = []

        def run(task: Task, report: Report) -> tuple[TrainReport, dict[int, Labels]]:
            project = self._storage.keeper.project
            if project is None:
                raise ValueError("there is nothing to learn from: correct something first")
            taught = _known(project)
            return self._engine.learn(request, project, config, report, task.cancelled, base), taught

        def done(result: tuple[TrainReport, dict[int, Labels]]) -> None:
            report, taught = result
            self._before, self.report = self._shelf.choice, report
            taken(taught)
            names = tuple(spec.name for spec in report.model.classes)
            parent, name = self._rounds.parent_of(self._before)
            self._shelf.add(ModelChoice(LEARNT, "What was just learnt", report.model, names))
            self._store(report, parent, name, taught)

        on_step = partial(self._on_step, config)
        self._storage.when_saved(busy, lambda: self._tasks.start(busy, run, done, on_step))

    def _store(
        self, report: TrainReport, parent: int, started_from: str, taught: Mapping[int, Labels]
    ) -> None:
        """Put a round into the project, not in force."""
        project, stored = self._storage.keeper.project, self._stored
        self._to_add = partial(
            _add_round, report=report, parent=parent, started_from=started_from, taught=taught
        )
        if project is None or project.read_only:
            return  # keeping says so
        add = partial(self._to_add, project, use=False)
        self._storage.run("saving the round", lambda: stored.append(add()))
        self._rounds.list_again()

    def keep(self) -> None:
        """Keep what was learnt: it is in force in the project, and its model is on the shelf."""
        report, project, stored, add = self.report, self._storage.keeper.project, self._stored, self._to_add
        if report is None or project is None or add is None:
            return

        def put_in_force() -> Round:
            if not stored:  # it could not be saved then; now it can, or this says why not
                return add(project, use=True)
            project.roll_back(stored[0].number)
            return stored[0]

        def done(learnt: Round) -> None:
            self.report = self._before = None
            self._stored = []
            self._shelf.remove(LEARNT)
            names = tuple(spec.name for spec in report.model.classes)
            choice = round_choice(learnt.number, learnt.model_path, names)
            self.kept.emit(choice.name)
            self._shelf.add(choice)
            self._tasks.say("learn", f"Kept as round {learnt.number}.", "good")
            self._rounds.list_again()
            self._tasks.finished.emit("save")

        self._storage.run("saving the round", put_in_force, done)

    def discard(self) -> None:
        """Go back to the model from before."""
        previous, project, stored = self._before, self._storage.keeper.project, self._stored

        def remove() -> None:
            if stored and project is not None:
                project.remove_round(stored[0].number)

        self.forget()
        self._storage.run("removing the round", remove)
        self._rounds.list_again()
        if previous is not None:
            self._shelf.choose(previous.name)
        self._tasks.say("learn", "Discarded; the model is as it was.")

    def forget(self) -> None:
        """Drop what was learnt and not kept."""
        self.report = self._before = None
        self._stored = []
        self.history = []
        self._shelf.remove(LEARNT)

    def _on_step(self, config: TrainConfig, step: TrainStep) -> None:
        if step.loss is not None:
            self.history.append(step)
        self._tasks.show_progress((round(100 * share_done(step, config)), 100))


def share_done(step: TrainStep, config: TrainConfig) -> float:
    """Return how much of a round is done after a step: of its iterations or its time, whichever is more."""
    share = step.iteration / step.total
    if config.seconds is not None:
        share = max(share, step.seconds / config.seconds)
    return min(share, 1.0)


def _known(project: Project) -> dict[int, Labels]:
    """Return what a project holds to learn from: by the number of an image its labels known to be true."""
    known = {}
    for item in project.items:
        labels = item.labels()
        where = labelled_mask(labels, item.baseline(), item.verified())
        if where.any():
            known[item.id] = np.where(where, labels, labels.dtype.type(ignore_value(labels.dtype)))
    return known


def _add_round(
    project: Project,
    *,
    report: TrainReport,
    parent: int,
    started_from: str,
    taught: Mapping[int, Labels],
    use: bool,
) -> Round:
    return project.add_round(
        report, report.model, use=use, parent=parent, started_from=started_from, taught=taught
    )
