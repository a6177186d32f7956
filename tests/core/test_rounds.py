"""Rounds of a project: what they went on from, and what a kill in the middle of one leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from napari_crfasrnn import Project, Segmenter, TrainConfig, fine_tune, load_model

CLASSES = ["background", "coin"]
SHORT = TrainConfig(seconds=None, max_iterations=3, crf_iterations=0)
SIDE = 96
LEARN_FOR_EVER = """
import sys
from napari_crfasrnn import Project, TrainConfig, fine_tune

def tell(step):
    if step.loss is not None:
        print(step.iteration, flush=True)

with Project.open(sys.argv[1]) as project:
    config = TrainConfig(seconds=None, max_iterations=1_000_000)
    report = fine_tune(project.latest_model(), project, config, progress=tell)
    project.add_round(report, report.model)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The folder of a project with one image, its strokes and one round."""
    image = data.coins()[:SIDE, :SIDE]
    labels = np.full(image.shape, 255, np.uint8)
    labels[:6] = 0
    labels[40:50, 40:50] = 1
    with Project.create(tmp_path / "coins", CLASSES) as project:
        project.add(image, labels=labels)
        report = fine_tune(load_model("starter"), project, SHORT)
        project.add_round(report, report.model, started_from="starter")
    return tmp_path / "coins"


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_kill_in_the_middle_of_a_round_leaves_the_model_from_before(path: Path) -> None:
    learning = subprocess.Popen(
        [sys.executable, "-c", LEARN_FOR_EVER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert learning.stdout is not None
    with learning.stdout:
        for line in learning.stdout:
            if int(line) >= 3:
                break
        learning.kill()
    assert learning.wait() == -9

    with Project.open(path) as project:
        assert not project.read_only
        assert [done.number for done in project.rounds] == [1]
        (item,) = project.items
        assert (item.labels() != 255).sum() == 6 * SIDE + 100
        old = project.latest_model()
        assert old is not None
        segmenter = Segmenter(old, "cpu")
        segmenter.set_image(item.image())
        assert segmenter.predict().labels.shape == (SIDE, SIDE)
        # The round is run again, and comes to what it would have come to.
        again, twice = (fine_tune(old, project, SHORT) for _ in range(2))
        assert again.stopped_by == "iterations"
        assert again.model.panel is not None
        assert twice.model.panel is not None
        weights = again.model.panel.state_dict()
        assert all(
            torch.equal(weights[name], value) for name, value in twice.model.panel.state_dict().items()
        )
        second = project.add_round(again, again.model)
        assert (second.number, second.parent, second.started_from) == (2, 1, "starter")
    with Project.open(path) as project:
        assert project.current_round is not None
        assert project.current_round.number == 2


def test_a_round_knows_what_it_went_on_from(path: Path) -> None:
    with Project.open(path) as project:
        (first,) = project.rounds
        assert (first.parent, first.started_from) == (0, "starter")
        model = project.model(1)
        second = project.add_round({"miou": 0.5}, model, use=False)
        third = project.add_round({}, model, parent=2)
        fourth = project.add_round({}, model, parent=0, started_from="em-tissue")
        assert [done.parent for done in (second, third, fourth)] == [1, 2, 0]
        assert [done.started_from for done in (second, third, fourth)] == ["starter", "starter", "em-tissue"]
        assert second.report == {"miou": 0.5}
        with pytest.raises(KeyError, match="no round 9"):
            project.add_round({}, model, parent=9)
        assert len(project.rounds) == 4


def test_a_report_says_what_was_done(path: Path) -> None:
    with Project.open(path) as project:
        (done,) = project.rounds
    report = done.report
    assert report["n_planes"] == 1
    assert report["n_training_pixels"] + report["n_locked_pixels"] > 0
    assert report["config"]["seed"] == SHORT.seed
    assert report["config"]["max_iterations"] == SHORT.max_iterations
    assert [step["iteration"] for step in report["history"]] == [1, 2, 3]
    assert all(step["loss"] > 0 for step in report["history"])
    for score in (report["before"], report["after"]):
        assert score["classes"] == CLASSES
        assert len(score["iou"]) == len(score["n_pixels"]) == len(CLASSES)
