"""The panels of the widget. They show a state and tell what a person did; they decide nothing."""

from __future__ import annotations

from napari_crfasrnn._qt.panels.classes import ClassesPanel
from napari_crfasrnn._qt.panels.correct import CorrectPanel
from napari_crfasrnn._qt.panels.learn import LearnPanel
from napari_crfasrnn._qt.panels.look import Theme, style_sheet, theme_of
from napari_crfasrnn._qt.panels.project import ProjectPanel
from napari_crfasrnn._qt.panels.round_report import RoundReport
from napari_crfasrnn._qt.panels.start import StartPanel

__all__ = [
    "ClassesPanel",
    "CorrectPanel",
    "LearnPanel",
    "ProjectPanel",
    "RoundReport",
    "StartPanel",
    "Theme",
    "style_sheet",
    "theme_of",
]
