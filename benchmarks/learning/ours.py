"""Our side of the benchmark: a project with labels, a round of learning, segmentations by what it gave."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from annotator import Labels
from photographs import Photograph

from napari_crfasrnn import Project, TrainConfig, fine_tune
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.training import TrainReport


def learn(
    model: SegmentationModel,
    classes: list[str],
    training: Sequence[tuple[Photograph, Labels]],
    config: TrainConfig,
    base: SegmentationModel | None = None,
) -> TrainReport:
    """Return what a round of learning makes of a model, in a project that holds these labels.

    ``base`` is as in `fine_tune`.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        Project.create(Path(folder) / "project", classes) as project,
    ):
        for photograph, labels in training:
            project.add(photograph.image, labels=labels)
        return fine_tune(model, project, config, base=base)
