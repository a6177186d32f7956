"""Learning: a round from the corrections in a project, or a whole training from a data set."""

from __future__ import annotations

from napari_crfasrnn.training.data_sets import DataSet, Sample, open_data_set
from napari_crfasrnn.training.data_training import DataTraining, DivergedError, Iteration, train
from napari_crfasrnn.training.evaluation import Evaluation, Score, evaluate
from napari_crfasrnn.training.learning_round import fine_tune
from napari_crfasrnn.training.live_beside import LiveBeside
from napari_crfasrnn.training.live_classifier import LiveClassifier
from napari_crfasrnn.training.report import LockedScore, PlaceOfContradiction, TrainReport, TrainStep
from napari_crfasrnn.training.stroke_teacher import StrokeLesson

__all__ = [
    "DataSet",
    "DataTraining",
    "DivergedError",
    "Evaluation",
    "Iteration",
    "LiveBeside",
    "LiveClassifier",
    "LockedScore",
    "PlaceOfContradiction",
    "Sample",
    "Score",
    "StrokeLesson",
    "TrainReport",
    "TrainStep",
    "evaluate",
    "fine_tune",
    "open_data_set",
    "train",
]
