"""The state behind the widget: no layers, no widgets; the core is called in threads."""

from __future__ import annotations

from napari_crfasrnn._qt.state.counts import Numbers
from napari_crfasrnn._qt.state.keeper import Opened
from napari_crfasrnn._qt.state.planes import PlaneIndex
from napari_crfasrnn._qt.state.session import Session
from napari_crfasrnn._qt.state.tasks import Busy
from napari_crfasrnn._qt.state.work import Labels, Work

__all__ = ["Busy", "Labels", "Numbers", "Opened", "PlaneIndex", "Session", "Work"]
