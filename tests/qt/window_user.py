"""Somebody at the widget, for the tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import napari_crfasrnn

PLUGIN, WIDGET = "napari-crfasrnn", "Segmentation"
PATIENCE = 300.0  # seconds until a test gives up waiting; no measure of anything


class User:
    """Somebody at the widget of a viewer."""

    def __init__(self, viewer: Any) -> None:
        import npe2

        manager = npe2.PluginManager.instance()
        if PLUGIN not in manager:
            manifest = Path(napari_crfasrnn.__file__).parent / "napari.yaml"
            manager.register(npe2.PluginManifest.from_file(manifest))
        self.viewer = viewer
        self.dock, self.widget = viewer.window.add_plugin_dock_widget(PLUGIN, WIDGET)
        self.bench, self.session = self.widget.bench, self.widget.session
        self.bench.set_live(False)  # what a test paints stays as painted, unless it is about that
        self.ended: list[str] = []
        self.widget.finished.connect(self.ended.append)

    def wait(self, condition: Callable[[], Any]) -> None:
        from qtpy.QtTest import QTest

        given_up = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < given_up, f"{self.session.busy}, {self.session.tasks.lines}"
            QTest.qWait(5)

    def do(self, action: Callable[[], Any]) -> str:
        """Do something that takes a while; return how it ended."""
        n_ended = len(self.ended)
        action()
        self.wait(lambda: len(self.ended) > n_ended)
        return self.ended[-1]

    def settle(self) -> None:
        """Wait until numbers are counted and work is saved."""
        self.wait(lambda: not self.bench.pending and not self.session.storage.unsaved)
        saved: list[bool] = []
        self.session.storage.run("waiting", lambda: True, saved.append)
        self.wait(lambda: saved)

    def line(self, section: str) -> str:
        line = self.session.tasks.lines.get(section)
        return line.text if line else ""

    @property
    def labels(self) -> np.ndarray:
        return self.bench.group.labels

    def click(self, button: Any) -> None:
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        QTest.mouseClick(button, Qt.MouseButton.LeftButton)

    def drag(self, *points: tuple[float, float], release: bool = True) -> None:
        """Drag the mouse over the canvas, through points (y, x) of the world."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        canvas = self.viewer.window._qt_viewer.canvas.native
        spots = [self.on_canvas(*point) for point in points]
        QTest.mouseMove(canvas, spots[0])
        QTest.mousePress(canvas, Qt.MouseButton.LeftButton, pos=spots[0])
        for start, end in pairwise(spots):
            for part in np.linspace(0, 1, 6)[1:]:
                QTest.qWait(15)  # vispy drops moves that follow within 10 ms
                _move(canvas, start + (end - start) * float(part))
        if release:
            self.release(*points[-1])

    def release(self, y: float, x: float) -> None:
        """Let go of the mouse at a point of the world."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        canvas = self.viewer.window._qt_viewer.canvas.native
        QTest.mouseRelease(canvas, Qt.MouseButton.LeftButton, pos=self.on_canvas(y, x))

    def color_at(self, y: float, x: float) -> np.ndarray:
        """Return what the canvas shows at a point of the world, red, green and blue in 0..255."""
        from qtpy.QtTest import QTest

        QTest.qWait(100)  # until it is drawn
        canvas = self.viewer.window._qt_viewer.canvas
        canvas.native.repaint()
        return np.array(canvas.screenshot().pixelColor(self.on_canvas(y, x)).getRgb()[:3])

    def on_canvas(self, y: float, x: float) -> Any:
        from qtpy.QtCore import QPoint

        canvas = self.viewer.window._qt_viewer.canvas.native
        camera = self.viewer.scene.camera
        center = np.array(camera.center)[-2:]
        dy, dx = (np.array([y, x]) - center) * camera.zoom
        return QPoint(round(canvas.width() / 2 + dx), round(canvas.height() / 2 + dy))


def _move(canvas: Any, spot: Any) -> None:
    # QTest.mouseMove knows no pressed button, and without one the canvas sees no drag.
    from qtpy.QtCore import QEvent, QPointF, Qt
    from qtpy.QtGui import QMouseEvent
    from qtpy.QtWidgets import QApplication

    where = QPointF(spot)
    left, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    event = QMouseEvent(
        QEvent.Type.MouseMove, where, QPointF(canvas.mapToGlobal(spot)), Qt.MouseButton.NoButton, left, none
    )
    QApplication.sendEvent(canvas, event)
