"""The project on disk: images, labels, classes and rounds, safe against kills and full disks."""

from __future__ import annotations

from napari_crfasrnn.project.export import Exported, LabelChoice, Layout, export_project
from napari_crfasrnn.project.files import SaveError
from napari_crfasrnn.project.items import Item, Round
from napari_crfasrnn.project.project import Project

__all__ = ["Exported", "Item", "LabelChoice", "Layout", "Project", "Round", "SaveError", "export_project"]
