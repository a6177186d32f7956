"""Rounds on classes that the model knows: how long they take, and what they compute once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.project import Project
from napari_crfasrnn.training import encodings as encodings_module
from napari_crfasrnn.training import fine_tune
from napari_crfasrnn.training.encodings import Encodings
from napari_crfasrnn.training.head import HeadLearner, n_iterations
from napari_crfasrnn.training.planes import LabelledPlane, labelled_planes
from napari_crfasrnn.zoo import load_model


@pytest.fixture(scope="module")
def starter() -> SegmentationModel:
    return load_model("starter")


@pytest.fixture
def project(starter: SegmentationModel, tmp_path: Path) -> Iterator[Project]:
    """A photograph and its negative with strokes of a person and of background, which the starter knows."""
    person = [spec.name for spec in starter.classes].index("person")
    photograph = np.ascontiguousarray(data.astronaut()[::4, ::4])
    with Project.create(tmp_path / "project", starter.classes) as made:
        for image in (photograph, 255 - photograph):
            labels = np.full(image.shape[:2], 255, np.uint8)
            labels[100:108, 30:90] = person
            labels[4:8, 90:120] = 0
            made.add(image, labels=labels)
        yield made


def only(project: Project) -> LabelledPlane:
    return next(labelled_planes(project, 0.1, None))


class TestLength:
    def test_few_images_are_learnt_in_a_hundred_iterations_and_many_in_all(self) -> None:
        n_planes = range(1, 40)
        found = [n_iterations(400, n) for n in n_planes]
        assert found[:3] == [100, 100, 100]
        assert found == sorted(found)
        assert found[5] > 100
        assert found[-1] == 400
        assert [n_iterations(30, n) for n in n_planes] == [30] * len(n_planes)
        assert n_iterations(1200, 3) > n_iterations(400, 3)  # somebody who has more time wants more

    def test_a_round_ends_by_iterations_and_tells_how_many_there_are(
        self, starter: SegmentationModel, project: Project
    ) -> None:
        totals = list[int]()
        config = TrainConfig(seconds=None, crf_iterations=1)
        report = fine_tune(starter, project, config, progress=lambda step: totals.append(step.total))
        assert report.stopped_by == "iterations"
        assert [step.iteration for step in report.history] == list(range(1, 102))
        assert totals[-1] == 101
        assert not any("the limit" in note for note in report.notes)

    def test_what_has_hardly_learnt_is_not_the_best_whatever_the_held_back_pixels_say(
        self, starter: SegmentationModel, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        averages = dict[int, list[torch.Tensor]]()
        learners = list[HeadLearner]()

        def worse_and_worse(learner: HeadLearner) -> float:
            learners.append(learner)
            averages[learner.iteration] = [each.clone() for each in learner._average]
            return 1 / learner.iteration

        monkeypatch.setattr(HeadLearner, "locked_miou", worse_and_worse)
        fine_tune(starter, project, TrainConfig(seconds=None, crf_iterations=0))
        assert list(averages) == list(range(10, 101, 10))
        found = [
            iteration
            for iteration, average in averages.items()
            if all(map(torch.equal, learners[-1]._parameters, average))
        ]
        assert found == [80]


class TestEncodings:
    def test_the_encoder_reads_a_plane_once_in_a_round(
        self, starter: SegmentationModel, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = list[torch.Tensor]()
        encode = type(starter.network).encode

        def counted(network: torch.nn.Module, x: torch.Tensor, cancel: object = None) -> object:
            read.append(x)
            return encode(network, x, cancel)

        monkeypatch.setattr(type(starter.network), "encode", counted)
        project.set_classes([*starter.classes, "visor"])
        labels = project.items[0].labels()
        labels[60:64, 40:60] = starter.n_labels  # a new class, so experts learn beside the head
        labels[110:114, 30:90] = 0  # and a correction, so the head does
        project.set_labels(project.items[0], labels)
        report = fine_tune(starter, project, TrainConfig(seconds=None, max_iterations=2))
        assert report.model.panel is not None
        assert len(report.history) == 4
        planes = [starter.preprocess(plane.image) for plane in labelled_planes(project, 0.1, None)]
        for plane in planes:
            assert sum(x.shape == plane.shape and torch.equal(x, plane) for x in read) == 1

    def test_logits_are_those_of_the_model(self, starter: SegmentationModel, project: Project) -> None:
        plane = only(project)
        with torch.no_grad():
            expected = starter.logits(plane.image)
        logits = Encodings(keep=True).logits(starter, plane, None)
        assert torch.equal(logits.within((0, 0, *plane.size)), expected)

    def test_they_are_kept_as_long_as_they_are_true_and_there_is_room(
        self, starter: SegmentationModel, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plane = only(project)
        kept, thawed = Encodings(keep=True), Encodings(keep=False)
        first = kept.of(starter, plane, None)
        assert kept.of(starter, plane.without([0]), None) is first
        assert thawed.of(starter, plane, None) is not thawed.of(starter, plane, None)
        monkeypatch.setattr(encodings_module, "_MAX_BYTES", sum(each.nbytes for each in first.features))
        small = Encodings(keep=True)
        one, other = labelled_planes(project, 0.1, None)
        assert small.of(starter, one, None) is small.of(starter, one, None)
        assert small.of(starter, other, None) is not small.of(starter, other, None)
