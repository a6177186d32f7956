"""Threads report in the GUI thread, and say nothing any more once they were cancelled."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
from qtpy.QtCore import QObject

from napari_crfasrnn._qt.worker import Worker
from napari_crfasrnn.progress import Cancelled, raise_if_cancelled


@pytest.fixture
def worker(qtbot):
    made = Worker("test")
    yield made
    made.close()
    qtbot.waitUntil(lambda: not made._jobs)


def test_results_progress_and_errors_arrive_in_the_gui_thread(worker, qtbot) -> None:
    heard = []

    def hear(kind):
        return lambda value: heard.append((kind, value, threading.current_thread()))

    def work(task, report):
        report(1)
        report(2)
        return threading.current_thread()

    def fail(task, report):
        raise KeyError("what went wrong")

    worker.start("works", work, hear("done"), hear("failed"), hear("progress"))
    worker.start("fails", fail, hear("done"), hear("failed"))
    assert worker.busy
    qtbot.waitUntil(lambda: not worker.busy)
    assert [kind for kind, _, _ in heard] == ["progress", "progress", "done", "failed"]
    assert heard[2][1] is not threading.main_thread()
    assert isinstance(heard[3][1], KeyError)
    assert {thread for _, _, thread in heard} == {threading.main_thread()}


def test_a_cancelled_task_is_not_heard_of_and_the_next_one_waits(worker, qtbot) -> None:
    heard, stopped = [], []

    def work(task, report):
        while not task.cancelled():
            time.sleep(0.001)
            report("late")
        stopped.append(True)
        raise_if_cancelled(task.cancelled)

    task = worker.start("long", work, heard.append, heard.append, lambda _: None)
    waiting = worker.start("waits", lambda task, report: 1, heard.append, heard.append)
    qtbot.wait(20)
    worker.cancel(waiting)
    worker.cancel(task)
    assert not worker.busy
    worker.start("next", lambda task, report: "next", heard.append, heard.append)
    qtbot.waitUntil(lambda: not worker.busy)
    assert stopped
    assert heard == ["next"]


def test_a_stop_nobody_asked_for_is_a_failure(worker, qtbot) -> None:
    heard = []

    def work(task, report):
        raise Cancelled("by itself")

    worker.start("odd", work, heard.append, heard.append)
    qtbot.waitUntil(lambda: not worker.busy)
    assert isinstance(heard[0], Cancelled)


def test_closing_finishes_what_was_begun_if_asked_to(qtbot) -> None:
    written = []
    worker = Worker("disk")
    for i in range(3):
        worker.start("write", lambda task, report, i=i: written.append(i), lambda _: None, lambda _: None)
    worker.close(wait=True)
    assert written == [0, 1, 2]
    worker.start("too late", lambda task, report: written.append(3), lambda _: None, lambda _: None)
    qtbot.waitUntil(lambda: not worker._jobs)
    assert written == [0, 1, 2]


def test_what_a_task_was_given_ends_in_the_gui_thread(worker, qtbot) -> None:
    """Qt objects that are deleted in another thread bring the program down."""
    ended_in = []

    class Owner(QObject):
        pass

    def start() -> None:
        owner = Owner()
        weakref.finalize(owner, lambda: ended_in.append(threading.current_thread()))
        worker.start("uses it", lambda task, report: owner.objectName(), lambda _: None, lambda _: None)

    start()
    qtbot.waitUntil(lambda: bool(ended_in))
    assert ended_in == [threading.main_thread()]


def test_the_cycle_collector_stays_out_of_the_thread(worker, qtbot) -> None:
    collected_in = set()

    def note(phase, info):
        collected_in.add(threading.current_thread())

    def work(task, report):
        for _ in range(100_000):  # enough to set the collector off, were it on
            cycle = []
            cycle.append(cycle)
        return gc.isenabled()

    heard = []
    gc.callbacks.append(note)
    try:
        worker.start("makes cycles", work, heard.append, heard.append)
        qtbot.waitUntil(lambda: not worker.busy)
    finally:
        gc.callbacks.remove(note)
    assert heard == [False]
    assert collected_in <= {threading.main_thread()}
    assert gc.isenabled()


@pytest.mark.parametrize("finishes", [False, True])
def test_a_program_that_ends_lets_threads_come_to_an_end(tmp_path: Path, finishes: bool) -> None:
    # Python would end the thread in the middle of C++ that does not expect it: the process aborts.
    script = """
import sys, time
from pathlib import Path
from qtpy.QtCore import QCoreApplication
from napari_crfasrnn._qt.worker import Worker
app, begun = QCoreApplication([]), []
finishes, noted = bool(int(sys.argv[1])), Path(sys.argv[2])
def work(task, report):
    begun.append(True)
    while not (task.cancelled() or finishes):
        time.sleep(0.01)
    time.sleep(0.3)  # until it notices
    noted.write_text("came to its end")
worker = Worker("worker", finishes=finishes)
worker.start("work", work, print, print)
worker.start("more", lambda task, report: noted.write_text("and did what was left"), print, print)
while not begun:
    time.sleep(0.01)
"""
    noted = tmp_path / "noted"
    environment = os.environ | {"QT_QPA_PLATFORM": "offscreen"}
    command = [sys.executable, "-c", script, str(int(finishes)), str(noted)]
    done = subprocess.run(command, env=environment, timeout=120, check=False)
    assert done.returncode == 0
    assert noted.read_text() == ("and did what was left" if finishes else "came to its end")
