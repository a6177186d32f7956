"""The rounds that a project holds: listed, put in force again, and compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_crfasrnn._qt.state.engine import Engine, ModelRequest
from napari_crfasrnn._qt.state.shelf import PREFIX, ModelChoice, Shelf
from napari_crfasrnn._qt.state.storage import Storage
from napari_crfasrnn._qt.state.tasks import Busy, Tasks
from napari_crfasrnn._qt.worker import Report, Task

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers import ImageInput
    from napari_crfasrnn._qt.state.planes import PlaneIndex
    from napari_crfasrnn._qt.state.work import Labels
    from napari_crfasrnn.project import Round


class Rounds:
    """The rounds of learning in the open project.

    Attributes
    ----------
    all
        Oldest first, as they were when they were listed last.
    current
        Number of the round in force; 0 before the first.
    undecided
        Number of the round that was neither kept nor discarded; 0 if there is none.
    """

    listed = Signal()

    def __init__(self, tasks: Tasks, engine: Engine, shelf: Shelf, storage: Storage) -> None:
        self.all: tuple[Round, ...] = ()
        self.current = 0
        self.undecided = 0
        self._tasks, self._engine, self._shelf, self._storage = tasks, engine, shelf, storage

    def forget(self) -> None:
        """Know of no round: another project takes the place of theirs."""
        self.all, self.current, self.undecided = (), 0, 0

    def list_again(self) -> None:
        """Read which rounds there are."""
        keeper = self._storage.keeper

        def read() -> tuple[tuple[Round, ...], int, int]:
            project = keeper.project
            if project is None:
                return (), 0, 0
            current, last = project.current_round, None if project.read_only else project.undecided_round
            return project.rounds, current.number if current else 0, last.number if last else 0

        def done(found: tuple[tuple[Round, ...], int, int]) -> None:
            if keeper is not self._storage.keeper:
                return
            self.all, self.current, self.undecided = found
            self.listed.emit()
            self._tasks.changed.emit()

        self._storage.run("listing the rounds", read, done)

    def get(self, number: int) -> Round | None:
        """Return a round by its number, if it is listed."""
        return next((one for one in self.all if one.number == number), None)

    def parent_of(self, choice: ModelChoice | None) -> tuple[int, str]:
        """Return which round a model is of, 0 if of none, and the name of the model that all began with."""
        if choice is None:
            return 0, ""
        number = int(choice.name.removeprefix(PREFIX)) if choice.name.startswith(PREFIX) else 0
        before = self.get(number)
        return number, choice.name if before is None else before.started_from

    def model_before(self, number: int) -> str:
        """Return the name of the model that a round followed; "" where there is no such round."""
        one = self.get(number)
        if one is None:
            return ""
        return f"{PREFIX}{one.parent}" if one.parent else one.started_from

    def roll_back(self, number: int) -> None:
        """Put a round in force: its model is chosen, and the project opens with it.

        0 stands for the model that the first round began with.
        """
        project, first = self._storage.keeper.project, self.all[0] if self.all else None
        if project is None or first is None or self._tasks.busy is not None:
            return
        if number and self.get(number) is None:
            return
        if not project.read_only:
            self._storage.run("rolling back", lambda: project.roll_back(number))
        self.list_again()
        if number:
            self._storage.read_taught(number)
            self._shelf.choose(f"{PREFIX}{number}")
            said = f"Round {number} is in use again"
        else:
            self._shelf.choose_first(first.started_from)
            said = "The model from before the first round is in use again"
        self._tasks.say("learn", f"{said}; no round was lost.", "good")

    def keep(self, number: int) -> None:
        """Keep the round that was left undecided: it is in force from now on."""
        if number == self.undecided and self._tasks.busy is None:
            self.roll_back(number)
            said = f"Kept as round {number}. Labels stay as they are until you segment again."
            self._tasks.say("learn", said, "good")

    def discard(self, number: int) -> None:
        """Remove the round that was left undecided, and its model."""
        project, one = self._storage.keeper.project, self.get(number)
        if project is None or one is None or number != self.undecided or self._tasks.busy is not None:
            return
        self.undecided = 0
        if self._shelf.choice is not None and self._shelf.choice.name == f"{PREFIX}{number}":
            self._shelf.choose_first(one.started_from)
        self._storage.run("removing the round", partial(project.remove_round, number))
        self._shelf.drop(f"{PREFIX}{number}")
        self._tasks.say("learn", f"Round {number} was discarded.")
        self.list_again()

    def compare(
        self,
        choices: tuple[ModelChoice, ModelChoice],
        requests: tuple[ModelRequest, ModelRequest],
        image: ImageInput,
        index: PlaneIndex,
        then: Callable[[Labels, Labels], None],
    ) -> None:
        """Segment a plane with two models; ``then`` gets the labels of both."""
        if self._tasks.busy is not None:
            return
        titles = " and ".join(choice.title.lower() for choice in choices)

        def run(task: Task, report: Report) -> tuple[Labels, Labels]:
            return self._engine.compare(
                requests, image, index, lambda done, total: report((done, total)), task.cancelled
            )

        self._tasks.start(Busy("compare", f"Comparing {titles}…"), run, lambda both: then(*both))
