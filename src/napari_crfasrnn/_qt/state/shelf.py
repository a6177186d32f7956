"""The models that can be chosen, and the one that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psygnal import Signal

from napari_crfasrnn._qt.state.engine import Engine, ModelRequest
from napari_crfasrnn._qt.state.tasks import Busy, Tasks

if TYPE_CHECKING:
    from napari_crfasrnn.network import SegmentationModel

LEARNT = "learnt"  # the choice that stands for what was learnt and is neither kept nor discarded


@dataclass(frozen=True, eq=False)
class ModelChoice:
    """A model that can be chosen: where it is, what it is called, and why it cannot be used, if so."""

    name: str
    title: str
    source: Path | SegmentationModel
    class_names: tuple[str, ...]
    problem: str | None = None


def round_choice(number: int, path: Path, class_names: tuple[str, ...]) -> ModelChoice:
    """Return the choice of a round of learning."""
    return ModelChoice(f"round:{number}", f"Round {number}", path, class_names)


class Shelf:
    """The models that can be chosen, and the one that is.

    Attributes
    ----------
    models, choice
        All of them, and the chosen one.
    loading
        Whether it is still being found out which models there are.
    """

    chosen = Signal()

    def __init__(self, tasks: Tasks, engine: Engine) -> None:
        self.models: tuple[ModelChoice, ...] = ()
        self.choice: ModelChoice | None = None
        self.loading = False
        self._tasks, self._engine = tasks, engine
        self._waiting: Callable[[], None] | None = None

    def load(self) -> None:
        """Find out which models there are."""
        self.loading = True

        def done(entries: Any) -> None:
            self.loading = False
            found = (ModelChoice(e.name, e.title, e.path, e.class_names, e.problem) for e in entries)
            self.models = (*found, *self.models)
            usable = [choice for choice in self.models if choice.problem is None]
            if self.choice is None and usable:
                self.choose(usable[0].name)
            elif not usable:
                self._tasks.say("start", "No model is installed: open a model file.", "problem", "open-model")
            self._go_on()
            self._tasks.changed.emit()

        def failed() -> None:
            self.loading = False
            self._go_on()

        self._tasks.aside("looking for models", self._engine.list_models, done, "start", failed)

    def when_loaded(self, busy: Busy, then: Callable[[], None]) -> None:
        """Do something that needs a model: now, or when it is known which models there are."""
        if self.choice is not None:
            then()
        elif self._waiting is None and not self.models:
            self._waiting = then
            self._tasks.hold(busy)

    def _go_on(self) -> None:
        then, self._waiting = self._waiting, None
        if then is None or self._tasks.busy is None:  # cancelled meanwhile
            return
        busy, self._tasks.busy = self._tasks.busy, None
        if self.choice is None:
            self._tasks.end(busy, ValueError("no model is installed: open a model file"))
        else:
            then()

    def choose(self, name: str) -> None:
        """Choose a model by its name."""
        choice = next((c for c in self.models if c.name == name), None)
        if choice is None or choice is self.choice:
            return
        if choice.problem is not None:
            self._tasks.say("start", choice.problem, "problem")
            return
        self.choice = choice
        self._tasks.lines.pop("start", None)
        self.chosen.emit()
        self._tasks.changed.emit()

    def add(self, choice: ModelChoice) -> None:
        """Add a model, and choose it."""
        self.models = (*(c for c in self.models if c.name != choice.name), choice)
        self.choice = None
        self.choose(choice.name)

    def remove(self, *prefixes: str) -> None:
        """Remove the models whose names begin with one of these."""
        self.models = tuple(c for c in self.models if not c.name.startswith(prefixes))
        if self.choice not in self.models:
            self.choice = None

    def open(self, path: Path) -> None:
        """Add a model file, and choose it."""

        def done(names: tuple[str, ...]) -> None:
            self.add(ModelChoice(f"file:{path}", path.stem, path, names))

        self._tasks.start(
            Busy("load", "Reading the model…"), lambda task, report: self._engine.check(path), done
        )

    def save(self, request: ModelRequest, path: Path) -> None:
        """Write a model to a file."""

        def done(written: Path) -> None:
            self._tasks.say("project", f"Model saved as {written.name}.", "good")

        self._tasks.start(
            Busy("save", "Saving the model…"), lambda task, report: self._engine.save(request, path), done
        )
