"""Learning from a project: the head of a network first, then its CRF."""

from __future__ import annotations

from napari_crfasrnn.training.learning_round import fine_tune
from napari_crfasrnn.training.report import LockedScore, PlaceOfContradiction, TrainReport, TrainStep

__all__ = ["LockedScore", "PlaceOfContradiction", "TrainReport", "TrainStep", "fine_tune"]
