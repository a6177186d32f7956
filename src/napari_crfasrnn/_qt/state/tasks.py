"""One task at a time: what is going on, what each section has to say, and how both end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from psygnal import Signal
from pydantic import ValidationError

from napari_crfasrnn._qt.worker import Report, Task, Worker
from napari_crfasrnn.config import sentence_of
from napari_crfasrnn.shortage import lack_of_memory

_log = logging.getLogger(__name__)

SECTION_OF = {"segment": "start", "load": "start", "refine": "correct", "learn": "learn", "compare": "learn"}


@dataclass(frozen=True)
class Line:
    """What a section of the widget has to say: one sentence, and the actions that cure it, if any."""

    text: str
    tone: str = "quiet"  # or "good", "problem"
    cures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Busy:
    """The task at work, and how far it is.

    It is called "segment", "refine", "learn", "compare", "open", "load", "save" or
    "export".
    """

    what: str
    text: str
    done: int = 0
    total: int = 0
    is_stopping: bool = False
    """It was asked to end with what it has."""

    @property
    def section(self) -> str:
        """Where its outcome is told."""
        return SECTION_OF.get(self.what, "project")


class Tasks:
    """Runs one task at a time and tells how it goes.

    Attributes
    ----------
    busy
        The task at work.
    lines
        What the sections "start", "classes", "correct", "learn" and "project" say.
    """

    changed = Signal()  # something that is shown
    finished = Signal(str)  # what the task was, or "cancelled" or "failed"

    def __init__(self) -> None:
        self.busy: Busy | None = None
        self.lines: dict[str, Line] = {}
        self._worker = Worker("crfasrnn-jobs")
        self._task: Task | None = None

    def say(self, section: str, text: str, tone: str = "quiet", *cures: str) -> None:
        """Say something in a section; an empty text clears it."""
        if text:
            self.lines[section] = Line(text, tone, cures)
        else:
            self.lines.pop(section, None)
        self.changed.emit()

    def complain(self, section: str, doing: str, error: Exception) -> None:
        """Say in one sentence why something did not work."""
        if isinstance(error, ValueError | TypeError | OSError) or lack_of_memory(error):
            _log.info("%s failed: %s", doing, error)
            text = sentence(error) or f"{doing} failed: {type(error).__name__}"
        else:
            _log.error("%s failed", doing, exc_info=error)
            text = f"{doing} failed ({error or type(error).__name__}); the log has the details"
        self.say(section, text[:1].upper() + text[1:], "problem")

    def hold(self, busy: Busy) -> None:
        """Count as busy, before there is a thread that does the work."""
        self.busy = busy
        self.lines.pop(busy.section, None)
        self.changed.emit()

    def start(
        self,
        busy: Busy,
        work: Callable[[Task, Report], Any],
        done: Callable[[Any], None],
        progress: Callable[[Any], None] | None = None,
        dropped: Callable[[Any], None] | None = None,
    ) -> None:
        """Do work in the thread, then ``done(result)`` here; what goes wrong is told in its section.

        ``dropped(result)`` gets what a cancelled task came to nevertheless.
        """
        self.hold(busy)

        def finish(result: Any) -> None:
            self.busy = self._task = None
            try:
                done(result)
            except (ValueError, TypeError, OSError) as error:
                fail(error)
                return
            if self.busy is not busy:  # else there is more to be done, see `conclude`
                self.conclude(busy)

        def fail(error: Exception) -> None:
            self.end(busy, error)

        self._task = self._worker.start(
            busy.what, work, finish, fail, progress or self.show_progress, dropped
        )

    def conclude(self, busy: Busy) -> None:
        """End a task that worked, and that was held on to after its work in the thread."""
        if self.busy is busy:
            self.busy = None
        self.changed.emit()
        self.finished.emit(busy.what)

    def end(self, busy: Busy, error: Exception) -> None:
        """End a task that did not work."""
        self.busy = self._task = None
        self.complain(busy.section, busy.text.rstrip("…"), error)
        self.finished.emit("failed")

    def aside(
        self,
        what: str,
        work: Callable[[], Any],
        done: Callable[[Any], None],
        section: str,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """Do something in the thread that nobody waits for."""

        def fail(error: Exception) -> None:
            failed()
            self.complain(section, what, error)

        self._worker.start(what, lambda task, report: work(), done, fail)

    def beside(
        self,
        what: str,
        work: Callable[[Task], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
    ) -> Task:
        """Do something short in the thread without counting as busy; `drop` takes it back."""
        return self._worker.start(what, lambda task, report: work(task), done, failed)

    def drop(self, task: Task) -> None:
        """Stop what `beside` began; nothing more is heard of it."""
        self._worker.cancel(task)

    def stop(self) -> None:
        """Ask a task that has begun to end with what it has: its result is taken as if it were done."""
        if self.busy is not None and self._task is not None:
            self._task.stop()
            self.busy = replace(self.busy, text="Stopping…", done=0, total=0, is_stopping=True)
            self.changed.emit()

    def cancel(self) -> None:
        """Stop what is going on; everything is as it was before it was started."""
        if self.busy is None:
            return
        section, self.busy = self.busy.section, None
        if self._task is not None:
            self._worker.cancel(self._task)
            self._task = None
        self.say(section, "Cancelled; everything is as it was.")
        self.finished.emit("cancelled")

    def close(self) -> None:
        """Stop everything."""
        self.busy = self._task = None
        self._worker.close()

    def show_progress(self, value: tuple[int, int]) -> None:
        """Say how far the task is: done, total."""
        if self.busy is not None and not self.busy.is_stopping:
            self.busy = replace(self.busy, done=value[0], total=value[1])
            self.changed.emit()


def sentence(error: Exception) -> str:
    """Return what an error says, as a sentence begins."""
    text = sentence_of(error) if isinstance(error, ValidationError) else lack_of_memory(error) or str(error)
    return text[:1].upper() + text[1:]
