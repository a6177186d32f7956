"""The models that can be chosen, and the one that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psygnal import Signal

from napari_crfasrnn._qt.state.engine import Engine, ModelRequest, ReadModel
from napari_crfasrnn._qt.state.tasks import Busy, Tasks

if TYPE_CHECKING:
    from napari_crfasrnn.importing import ImportReport
    from napari_crfasrnn.network import SegmentationModel
    from napari_crfasrnn.zoo import ModelEntry, Published

PREFIX = "round:"  # the choice that stands for a round is called this and the number of the round
PHOTOGRAPHS = "starter"  # the model of everyday photographs, which sees bottles in micrographs
LEARNT = "learnt"  # the choice that stands for what was learnt and is neither kept nor discarded


@dataclass(frozen=True, eq=False)
class ModelChoice:
    """A model that can be chosen: where it is, what it is called, and why it cannot be used, if so."""

    name: str
    title: str
    source: Path | SegmentationModel
    class_names: tuple[str, ...]
    problem: str | None = None
    published: Published | None = None
    """Where it comes from and on which terms, if it has to be downloaded first."""


def round_choice(number: int, path: Path, class_names: tuple[str, ...]) -> ModelChoice:
    """Return the choice of a round of learning."""
    return ModelChoice(f"{PREFIX}{number}", f"Round {number}", path, class_names)


class Shelf:
    """The models that can be chosen, and the one that is.

    Attributes
    ----------
    models, choice
        All of them, and the chosen one.
    loading
        Whether it is still being found out which models there are.
    wanted
        The model that waits for its licence to be accepted and its download.
    report
        What became of the tensors of the file of another system that was opened last.
    """

    chosen = Signal()

    def __init__(self, tasks: Tasks, engine: Engine) -> None:
        self.models: tuple[ModelChoice, ...] = ()
        self.choice: ModelChoice | None = None
        self.loading = False
        self.wanted: ModelChoice | None = None
        self.report: ImportReport | None = None
        self._tasks, self._engine = tasks, engine
        self._waiting: Callable[[], None] | None = None
        self._preferred = ""

    @property
    def chosen_name(self) -> str:
        """The name of the chosen model; empty while there is none."""
        return "" if self.choice is None else self.choice.name

    def load(self) -> None:
        """Find out which models there are."""
        self.loading = True

        def done(entries: Any) -> None:
            self.loading = False
            self.models = (*map(_choice, entries), *self.models)
            usable = [c for c in self.models if c.problem is None and c.published is None]
            if self.choice is None and usable:
                self.choose_first(self._preferred)
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

    def get(self, name: str) -> ModelChoice | None:
        """Return a model by its name, if it is there."""
        return next((c for c in self.models if c.name == name), None)

    def choose(self, name: str) -> None:
        """Choose a model by its name."""
        choice = self.get(name)
        if choice is None or choice is self.choice:
            return
        if choice.problem is not None:
            self._tasks.say("start", choice.problem, "problem")
            return
        if choice.published is not None:
            self._offer(choice, choice.published)
            return
        self.choice = choice
        self._tasks.lines.pop("start", None)
        self.chosen.emit()
        self._tasks.changed.emit()

    def choose_first(self, name: str) -> None:
        """Choose a model by its name, or the first that can be had if it is no longer there."""
        usable = [c.name for c in self.models if c.problem is None and c.published is None]
        if usable:
            self.choose(name if name in usable else usable[0])

    def choose_fitting(self, class_names: Sequence[str]) -> None:
        """Choose the model, no round, that knows most of some classes beside the first, and few others."""
        wanted = set(class_names[1:])
        usable = [c for c in self.models if c.problem is None and c.published is None]
        fitting = [c for c in usable if wanted & set(c.class_names) and not c.name.startswith(PREFIX)]
        if fitting:
            best = max(fitting, key=lambda c: (len(wanted & set(c.class_names)), -len(c.class_names)))
            self.choose(best.name)

    def prefer(self, name: str) -> None:
        """Choose a model by its name, as soon as it is known which there are."""
        self._preferred = name
        self.choose(name)

    def _offer(self, choice: ModelChoice, published: Published) -> None:
        """Say on which terms a model can be downloaded; `download` does it."""
        self.wanted = choice
        size = f" ({published.size / 1e6:.0f} MB)" if published.size else ""
        self._tasks.say(
            "start",
            f"{published.licence.text} Download {published.file_name}{size}?",
            "quiet",
            "download",
        )

    def download(self) -> None:
        """Accept the licence of the model that waits for it, download it, and choose it."""
        choice, self.wanted = self.wanted, None
        if choice is None or choice.published is None or self._tasks.busy is not None:
            return
        published = choice.published

        def done(result: tuple[Path, ReadModel]) -> None:
            path, read = result
            here = ModelChoice(choice.name, published.title, path, read.class_names)
            self.models = tuple(here if c.name == here.name else c for c in self.models)
            self.choose(here.name)
            self._tell(read.report)

        self._tasks.start(
            Busy("load", f"Downloading {published.file_name}…"),
            lambda task, report: self._engine.download(
                choice.name, lambda done, total: report((done, total)), task.cancelled
            ),
            done,
        )

    def _tell(self, report: ImportReport | None) -> None:
        """Say what became of the tensors of a file of another system."""
        self.report = report
        if report is None:
            return
        text = f"All {len(report.matched)} tensors of the file found their place."
        doubts = "; ".join(report.warnings)
        if doubts:
            text = f"{doubts[:1].upper()}{doubts[1:]}."
        self._tasks.say("start", text, "problem" if doubts else "good", "import-report")

    def add(self, choice: ModelChoice) -> None:
        """Add a model, and choose it."""
        self.models = (*(c for c in self.models if c.name != choice.name), choice)
        self.choice = None
        self.choose(choice.name)

    def drop(self, name: str) -> None:
        """Remove one model that is not chosen."""
        self.models = tuple(c for c in self.models if c.name != name)

    def remove(self, *prefixes: str) -> None:
        """Remove the models whose names begin with one of these."""
        self.models = tuple(c for c in self.models if not c.name.startswith(prefixes))
        if self.choice not in self.models:
            self.choice = None

    def open(self, path: Path) -> None:
        """Add a model file, and choose it."""

        def done(read: ReadModel) -> None:
            self.add(ModelChoice(f"file:{path}", path.stem, path, read.class_names))
            self._tell(read.report)

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


def _choice(entry: ModelEntry) -> ModelChoice:
    if entry.is_here or entry.published is None:
        return ModelChoice(entry.name, entry.title, entry.path, entry.class_names, entry.problem)
    title = f"{entry.title} – to download; {entry.licence.lower()}"
    return ModelChoice(
        entry.name, title, entry.path, entry.class_names, entry.problem, published=entry.published
    )
