"""The only place with threads.

A `Worker` runs one task at a time in a thread of its own and reports in the GUI thread. Cancelling takes
effect at once: the task is told to stop, and whatever it still reports is dropped, however long it takes
to notice. The next task then waits in the thread until it has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from qtpy.QtCore import QObject, Qt, Signal

from napari_crfasrnn.progress import Cancelled

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Task:
    """Work in progress.

    Attributes
    ----------
    name
        What it does, for the log.
    """

    name: str
    _stop: Event = field(default_factory=Event)

    def cancelled(self) -> bool:
        """Whether the work shall stop; safe to ask from the thread that does it."""
        return self._stop.is_set()


@dataclass(frozen=True)
class _Callbacks:
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]
    progress: Callable[[Any], None] | None


class Worker(QObject):  # type: ignore[misc]
    """Runs tasks one after another in one thread.

    Parameters
    ----------
    name
        Of the thread, for debuggers.
    parent
        Qt owner.
    """

    _reported = Signal(object, str, object)  # task, what, value; emitted in the thread, received in the GUI

    def __init__(self, name: str, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._callbacks: dict[Task, _Callbacks] = {}
        self._reported.connect(self._on_reported, Qt.ConnectionType.QueuedConnection)

    @property
    def busy(self) -> bool:
        """Whether a task runs or waits whose result is still wanted."""
        return bool(self._callbacks)

    def start(
        self,
        name: str,
        work: Callable[[Task, Callable[[Any], None]], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        progress: Callable[[Any], None] | None = None,
    ) -> Task:
        """Run ``work(task, report)`` in the thread, then ``done(result)`` or ``failed(error)`` in the GUI.

        ``progress`` is called in the GUI with whatever the work gives to ``report``.
        """
        task = Task(name)
        self._callbacks[task] = _Callbacks(done, failed, progress)
        self._pool.submit(self._run, task, work)
        return task

    def cancel(self, task: Task) -> None:
        """Tell a task to stop and drop what it still reports."""
        task._stop.set()
        self._callbacks.pop(task, None)

    def cancel_all(self) -> None:
        """Cancel every task that runs or waits."""
        for task in list(self._callbacks):
            self.cancel(task)

    def close(self, *, wait: bool = False) -> None:
        """Take no more tasks; with ``wait`` finish those that were given, else cancel them."""
        if not wait:
            self.cancel_all()
        self._pool.shutdown(wait=wait, cancel_futures=not wait)

    def _run(self, task: Task, work: Callable[[Task, Callable[[Any], None]], Any]) -> None:
        if task.cancelled():
            return
        try:
            result = work(task, lambda value: self._report(task, "progress", value))
        except Cancelled as error:
            self._report(task, "failed", error)  # dropped, unless nobody asked for it
        except Exception as error:  # noqa: BLE001 - whatever it is, the GUI thread tells the person and logs it
            self._report(task, "failed", error)
        else:
            self._report(task, "done", result)

    def _report(self, task: Task, what: str, value: Any) -> None:
        try:
            if not task.cancelled():
                self._reported.emit(task, what, value)
        except RuntimeError:  # the window was closed meanwhile, and Qt deleted this object
            _log.debug("%s reported after the window was closed", task.name)

    def _on_reported(self, task: Task, what: str, value: Any) -> None:
        callbacks = self._callbacks.get(task)
        if callbacks is None:
            return
        if what == "progress":
            if callbacks.progress is not None:
                callbacks.progress(value)
            return
        del self._callbacks[task]
        (callbacks.done if what == "done" else callbacks.failed)(value)
