"""The only place with threads.

A `Worker` runs tasks one after another in a thread of its own and reports in the GUI thread. Cancelling
takes effect at once: the task is told to stop, and whatever it still reports is dropped, however long it
takes to notice. The next task then waits in the thread until it has.

Qt objects may be deleted in the GUI thread only, and Python deletes an object in the thread that lets go
of it last. So whatever a task was given stays referenced here until its thread has let go of it, and
Python's cycle collector, which runs in any thread and takes whatever it finds, is kept to the GUI thread
while a task is at work.
"""

from __future__ import annotations

import atexit
import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from qtpy.QtCore import QObject, Qt, QTimer, Signal

_log = logging.getLogger(__name__)

Report = Callable[[Any], None]
Work = Callable[["Task", Report], Any]

COLLECT_MS = 1000
LAST_SECONDS = 20.0  # that a program which ends waits for a thread


class Task:
    """Work in progress.

    Parameters
    ----------
    name
        What it does, for the log.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._stop = Event()

    def cancelled(self) -> bool:
        """Whether the work shall stop; safe to ask from the thread that does it."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask the work to stop."""
        self._stop.set()


@dataclass(frozen=True)
class _Job:
    work: Work
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]
    progress: Callable[[Any], None] | None
    dropped: Callable[[Any], None] | None


class _Collector:
    """Lets Python look for unreachable cycles in the GUI thread only, as long as tasks are at work."""

    def __init__(self) -> None:
        self._n_tasks = 0
        self._was_enabled = True
        self._timer: QTimer | None = None

    def hold(self) -> None:
        self._n_tasks += 1
        if self._n_tasks > 1:
            return
        self._was_enabled = gc.isenabled()
        gc.disable()
        if self._was_enabled:
            self._timer = QTimer()
            self._timer.timeout.connect(lambda: gc.collect(1))  # the young ones: a matter of milliseconds
            self._timer.start(COLLECT_MS)

    def release(self) -> None:
        self._n_tasks -= 1
        if self._n_tasks == 0 and self._was_enabled:
            gc.enable()
            if self._timer is not None:
                self._timer.stop()
                self._timer = None


_collector = _Collector()
_at_work: set[Worker] = set()  # workers whose threads are not idle: they must not be deleted meanwhile


class Worker(QObject):  # type: ignore[misc]
    """Runs tasks one after another in one thread. To be used in the GUI thread.

    Parameters
    ----------
    name
        Of the thread, for debuggers.
    finishes
        Whether what it was given is done in any case, also when the program ends.
    """

    _reported = Signal(object, str, object)  # task, what, value; emitted in the thread, received in the GUI

    def __init__(self, name: str, *, finishes: bool = False) -> None:
        super().__init__()
        self._finishes = finishes
        self._jobs: dict[Task, _Job] = {}
        self._dropped: set[Task] = set()
        self._outcomes: dict[Task, tuple[str, Any]] = {}
        self._queue: SimpleQueue[Task | None] = SimpleQueue()
        self._closed = False
        self._reported.connect(self._on_reported, Qt.ConnectionType.QueuedConnection)
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a task runs or waits whose result is still wanted."""
        return bool(self._jobs.keys() - self._dropped)

    def start(
        self,
        name: str,
        work: Work,
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        progress: Callable[[Any], None] | None = None,
        dropped: Callable[[Any], None] | None = None,
    ) -> Task:
        """Run ``work(task, report)`` in the thread, then ``done(result)`` or ``failed(error)`` in the GUI.

        ``progress`` is called in the GUI with whatever the work gives to ``report``. ``dropped`` gets the
        result of a task that was cancelled too late to notice.
        """
        task = Task(name)
        if self._closed:
            _log.info("%s was not begun: the window is closed", name)
            return task
        self._jobs[task] = _Job(work, done, failed, progress, dropped)
        _at_work.add(self)
        _collector.hold()
        self._queue.put(task)
        return task

    def cancel(self, task: Task) -> None:
        """Tell a task to stop, and drop what it still reports."""
        task.stop()
        self._dropped.add(task)

    def close(self, *, wait: bool = False) -> None:
        """Take no more tasks; with ``wait`` finish those that were given, else cancel them, if it may."""
        if self._closed:
            return
        self._closed = True
        if not (wait or self._finishes):
            for task in list(self._jobs):
                self.cancel(task)
        _at_work.add(self)
        self._queue.put(None)
        if wait:
            self._thread.join()

    def wait(self, seconds: float) -> None:
        """Wait until the thread has ended after `close`, so long at most."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while (task := self._queue.get()) is not None:
            self._do(task)
            self._report(task, "end")  # from here on the thread holds nothing that the task was given or made
        self._report(None, "closed")

    def _do(self, task: Task) -> None:
        try:
            if not task.cancelled():
                result = self._jobs[task].work(task, lambda value: self._report(task, "progress", value))
                self._outcomes[task] = ("done", result)
        except Exception as error:  # noqa: BLE001 - whatever it is, the GUI thread tells the person and logs it
            self._outcomes[task] = ("failed", error)

    def _report(self, task: Task | None, what: str, value: Any = None) -> None:
        try:
            self._reported.emit(task, what, value)
        except RuntimeError:  # at the end of the program Qt deletes objects, whoever refers to them
            _log.debug("a thread reported after the end of the window")

    def _on_reported(self, task: Task | None, what: str, value: Any) -> None:
        if task is None:
            self._thread.join()  # it is about to end, and with it its reference to this object
            _at_work.discard(self)
            return
        wanted, job = task not in self._dropped, self._jobs[task]
        if what == "progress":
            if wanted and job.progress is not None:
                job.progress(value)
            return
        del self._jobs[task]
        self._dropped.discard(task)
        how, outcome = self._outcomes.pop(task, ("stopped", None))
        _collector.release()
        if not self._jobs and not self._closed:
            _at_work.discard(self)
        if wanted and how == "done":
            job.done(outcome)
        elif wanted and how == "failed":
            job.failed(outcome)
        elif how == "done" and job.dropped is not None:
            job.dropped(outcome)


@atexit.register
def _wait_for_threads() -> None:
    """Let threads come to an end that were told to stop when the window closed.

    Python ends a thread that is still at work when it asks for the interpreter's lock, by unwinding its
    stack: where that passes through C++, as in torch or in our lattice, the process aborts.
    """
    for worker in tuple(_at_work):
        worker.close()
        worker.wait(LAST_SECONDS)
