"""Segment images with a CRF-RNN in napari, correct by hand, and teach the model from the corrections.

Importing this package loads neither Qt nor torch: every public name is fetched from its room
when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_crfasrnn import metrics
    from napari_crfasrnn.classes import ClassSpec
    from napari_crfasrnn.config import CrfConfig, TrainConfig
    from napari_crfasrnn.crf import CrfRnn
    from napari_crfasrnn.edits import least_certain_patch
    from napari_crfasrnn.higher_order import Detection
    from napari_crfasrnn.lattice import Lattice, build_config
    from napari_crfasrnn.network import SegmentationModel
    from napari_crfasrnn.project import Project
    from napari_crfasrnn.segmenter import Segmentation, Segmenter
    from napari_crfasrnn.training import TrainReport, fine_tune
    from napari_crfasrnn.zoo import list_models, load_model

_ROOM_OF = {
    "ClassSpec": "classes",
    "CrfConfig": "config",
    "CrfRnn": "crf",
    "Detection": "higher_order",
    "Lattice": "lattice",
    "Project": "project",
    "Segmentation": "segmenter",
    "SegmentationModel": "network",
    "Segmenter": "segmenter",
    "TrainConfig": "config",
    "TrainReport": "training",
    "build_config": "lattice",
    "fine_tune": "training",
    "least_certain_patch": "edits",
    "list_models": "zoo",
    "load_model": "zoo",
}

__version__ = "0.1.0"
__all__ = [
    "ClassSpec",
    "CrfConfig",
    "CrfRnn",
    "Detection",
    "Lattice",
    "Project",
    "Segmentation",
    "SegmentationModel",
    "Segmenter",
    "TrainConfig",
    "TrainReport",
    "__version__",
    "build_config",
    "fine_tune",
    "least_certain_patch",
    "list_models",
    "load_model",
    "metrics",
]


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return import_module("napari_crfasrnn.metrics")
    if name in _ROOM_OF:
        return getattr(import_module(f"napari_crfasrnn.{_ROOM_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
