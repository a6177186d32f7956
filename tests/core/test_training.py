"""Learning from a project: what is learnt, what stays, and how it can be stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data, draw
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label as connected_components
from skimage.measure import regionprops

from napari_crfasrnn import metrics
from napari_crfasrnn.classes import class_table
from napari_crfasrnn.config import ModelConfig, Preprocessing, TrainConfig
from napari_crfasrnn.experts.sampling import Grid, Lay, _Interpolate, values_at
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.progress import Cancelled
from napari_crfasrnn.project import Project
from napari_crfasrnn.segmenter import Segmenter
from napari_crfasrnn.training import LockedScore, TrainStep, fine_tune, learning_round
from napari_crfasrnn.training.head_lessons import Lesson, halves, weighed
from napari_crfasrnn.training.planes import (
    LOOKS,
    LabelledPlane,
    Look,
    draw_pixels,
    labelled_planes,
    make_view,
)
from napari_crfasrnn.training.positions import locate, score_map
from napari_crfasrnn.training.teacher import Advice
from napari_crfasrnn.zoo import load_model

QUICK = TrainConfig(seconds=None, max_iterations=25, crf_iterations=2)
TWO = class_table(["background", "thing"])


@pytest.fixture(scope="module")
def starter() -> SegmentationModel:
    return load_model("starter")


@pytest.fixture
def make_project(tmp_path: Path) -> Iterator[Callable[..., Project]]:
    made: list[Project] = []

    def make(classes: object) -> Project:
        project = Project.create(tmp_path / f"project {len(made)}", classes)
        made.append(project)
        return project

    yield make
    for project in made:
        project.close()


@pytest.fixture
def coins_project(make_project: Callable[..., Project]) -> Project:
    """Strokes on a real micrograph-like photograph: coins and what lies between them."""
    project = make_project(TWO)
    project.add(data.coins()[:128, :128], labels=coin_strokes()[:128, :128])
    return project


def coin_strokes() -> NDArray[np.uint8]:
    labels = np.full(data.coins().shape, 255, np.uint8)
    labels[30:70, 35:60] = 1
    labels[45:75, 95:120] = 1
    labels[2:8, 10:125] = 0
    labels[90:100, 4:125] = 0
    return labels


def coin_middles() -> NDArray[np.float64]:
    """Return the middles of the twelve largest coins, row and column."""
    regions = regionprops(
        connected_components(gaussian(data.coins(), 2) > threshold_otsu(data.coins()) / 255)
    )
    coins = [each for each in regions if 800 < each.area < 4000]
    return np.array([each.centroid for each in sorted(coins, key=lambda each: -each.area)[:12]])


def coins_and_ground() -> NDArray[np.uint8]:
    """Return strokes in these coins, and in the ground between them."""
    labels = np.full(data.coins().shape, 255, np.uint8)
    for y, x in coin_middles().astype(int):
        labels[y - 2 : y + 2, x - 6 : x + 6] = 1
    ground = gaussian(data.coins(), 3) < 0.75 * threshold_otsu(data.coins()) / 255
    for x in range(20, 360, 60):
        for y in (100, 160, 290):
            labels[y : y + 4, x : x + 12][ground[y : y + 4, x : x + 12]] = 0
    return labels


def weights(model: SegmentationModel) -> dict[str, torch.Tensor]:
    found = {f"network.{name}": value.clone() for name, value in model.network.state_dict().items()}
    found |= {f"crf.{name}": value.clone() for name, value in model.crf.state_dict().items()}
    if model.panel is not None:
        found |= {f"panel.{name}": value.clone() for name, value in model.panel.state_dict().items()}
    return found


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def segment(model: SegmentationModel, image: NDArray[np.generic]) -> NDArray[np.uint8]:
    segmenter = Segmenter(model)
    segmenter.set_image(image)
    return segmenter.predict().labels


def paint(labels: NDArray[np.uint8], y0: int, x0: int, y1: int, x1: int, value: int, width: int = 4) -> None:
    """Draw a straight stroke with a round brush."""
    for y, x in zip(*draw.line(y0, x0, y1, x1), strict=True):
        labels[draw.disk((y, x), width, shape=labels.shape)] = value


class TestPositions:
    @pytest.mark.parametrize("architecture", ["fcn-lite", "fcn-fine", "fcn-8s"])
    @pytest.mark.parametrize("size", [(64, 96), (70, 53), (5, 1)])
    def test_single_pixels_are_those_of_the_whole_map(self, architecture: str, size: tuple[int, int]) -> None:
        torch.manual_seed(0)
        config = ModelConfig(architecture=architecture, classes=TWO, width=0.03)
        model = SegmentationModel(config)
        image = torch.rand(1, 3, *size) * 255
        with torch.no_grad():
            whole = model.logits(image)[0]
            seen = model.preprocess(image)
            grid = Grid(size, tuple(seen.shape[-2:]))
            scores = score_map(model.network, model.network.encode(seen), grid)
            y, x = (axis.ravel() for axis in np.mgrid[: size[0], : size[1]])
            single = values_at(scores, locate(model.network, grid, y, x))
        torch.testing.assert_close(single.T.reshape(whole.shape), whole, rtol=1e-4, atol=1e-4)

    def test_a_shrunk_image_is_found_as_closely_as_interpolation_allows(self) -> None:
        torch.manual_seed(0)
        config = ModelConfig(classes=TWO, preprocessing=Preprocessing(long_side=64))
        model = SegmentationModel(config)
        image = torch.rand(1, 3, 90, 128) * 255
        with torch.no_grad():
            whole = model.logits(image)[0]
            seen = model.preprocess(image)
            grid = Grid((90, 128), tuple(seen.shape[-2:]))
            scores = score_map(model.network, model.network.encode(seen), grid)
            y, x = (axis.ravel() for axis in np.mgrid[:90, :128])
            single = values_at(scores, locate(model.network, grid, y, x)).T.reshape(whole.shape)
        assert (single - whole).abs().mean() < 0.03 * whole.std()

    def test_a_mirrored_view_reads_the_same_pixels(self) -> None:
        torch.manual_seed(0)
        model = SegmentationModel(ModelConfig(classes=TWO))
        image = torch.rand(1, 3, 64, 96) * 255
        y, x = np.array([3, 40, 63]), np.array([0, 50, 95])
        with torch.no_grad():
            seen = model.preprocess(image.flip(-1))
            grid = Grid((64, 96), (64, 96))
            scores = score_map(model.network, model.network.encode(seen), grid)
            single = values_at(scores, locate(model.network, grid, y, x, mirrored=True))
            whole = model.logits(image.flip(-1))[0].flip(-1)
        torch.testing.assert_close(single, whole[:, y, x].T, rtol=1e-4, atol=1e-4)

    def test_gradients(self) -> None:
        generator = torch.Generator().manual_seed(0)
        flat = torch.rand(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        cells = torch.tensor([[0, 5], [1, 5], [0, 2], [4, 2]])
        weights = torch.rand(4, 2, generator=generator, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda f: _Interpolate.apply(f, cells, weights), flat)


class TestPlanes:
    def test_no_training_pixel_is_held_back(self, make_project: Callable[..., Project]) -> None:
        project = make_project(TWO)
        labels = (data.coins() > 110).astype(np.uint8)
        project.add(data.coins(), labels=labels)
        (plane,) = labelled_planes(project, 0.2, None)
        assert not ((plane.training != 255) & (plane.locked != 255)).any()
        assert 0.1 < plane.n_locked / labels.size < 0.3
        model = SegmentationModel(ModelConfig(classes=TWO))
        pixels = draw_pixels(plane, np.random.default_rng(0))
        view = make_view(model, 0, plane, pixels, Look(), encode=True)
        everything = locate(model.network, view.grid, *(axis.ravel() for axis in np.mgrid[:303, :384]))
        held = everything.select(torch.from_numpy(plane.locked.ravel() != 255))
        known = {tuple(row) for row in torch.cat([held.cells, held.weights]).T.tolist()}
        drawn = torch.cat([view.training.positions.cells, view.training.positions.weights]).T.tolist()
        kept = torch.cat([view.untouched.positions.cells, view.untouched.positions.weights]).T.tolist()
        assert not any(tuple(row) in known for row in drawn + kept)

    def test_what_counts_as_labelled(self, make_project: Callable[..., Project]) -> None:
        project = make_project(TWO)
        image = data.coins()[:64, :64]
        baseline = np.zeros((64, 64), np.uint8)
        untouched = project.add(image, labels=baseline, baseline=baseline)
        assert list(labelled_planes(project, 0.1, None)) == []
        labels = baseline.copy()
        labels[:20] = 1
        project.set_labels(untouched, labels)
        (plane,) = labelled_planes(project, 0.0, None)
        assert plane.n_training == 20 * 64
        project.set_labels(untouched, labels, verified=np.ones((64, 64), bool))
        (plane,) = labelled_planes(project, 0.0, None)
        assert plane.n_training == 64 * 64


class TestLearning:
    def test_a_wrong_region_comes_out_right_and_the_rest_stays(
        self, starter: SegmentationModel, make_project: Callable[..., Project]
    ) -> None:
        # The starter takes the tank of the shuttle behind the astronaut for a bottle.
        image = data.astronaut()
        baseline = segment(starter, image)
        names = [spec.name for spec in starter.classes]
        person, bottle, background = (names.index(name) for name in ("person", "bottle", "background"))
        wrong = baseline == bottle
        assert wrong.sum() > 1000
        labels = baseline.copy()
        paint(labels, 105, 400, 150, 400, background)
        verified = np.zeros(baseline.shape, bool)
        verified[330:430, 120:250] = baseline[330:430, 120:250] == person
        project = make_project(starter.classes)
        project.add(image, labels=labels, baseline=baseline, verified=verified)
        before = weights(starter)
        report = fine_tune(starter, project, TrainConfig(seconds=None, max_iterations=80, crf_iterations=4))
        assert same(before, weights(starter))
        after = segment(report.model, image)
        held_back = wrong & (labels == baseline)
        assert (after[held_back] == background).mean() > 0.65
        suit = np.zeros(baseline.shape, bool)
        suit[300:480, 100:300] = True
        assert (after[suit] == person).mean() > (baseline[suit] == person).mean() - 0.03

    def test_the_report_tells_what_happened(self, starter: SegmentationModel, coins_project: Project) -> None:
        steps: list[TrainStep] = []
        report = fine_tune(starter, coins_project, QUICK, progress=steps.append)
        assert tuple(step for step in steps if step in report.history) == report.history
        assert [step.iteration for step in report.history] == list(range(1, 26))
        iterations = [step.iteration for step in steps]  # what goes on between them is told, too
        assert iterations == sorted(iterations)
        assert {step.total for step in steps} == {25}
        assert report.stopped_by == "iterations"
        losses = [step.loss for step in report.history[:25]]
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
        seconds = [step.seconds for step in steps]
        assert seconds == sorted(seconds)
        assert report.n_planes == 1
        known = int((coins_project.items[0].labels() != 255).sum())
        assert 0 < report.n_training_pixels + report.n_locked_pixels <= known
        assert [spec.name for spec in report.model.classes] == ["background", "thing"]

    def test_a_round_is_stored_and_comes_back(
        self, starter: SegmentationModel, coins_project: Project
    ) -> None:
        report = fine_tune(starter, coins_project, QUICK)
        done = coins_project.add_round(report, report.model)
        assert done.report["stopped_by"] == "iterations"
        assert done.report["config"]["max_iterations"] == 25
        assert len(done.report["history"]) == 25
        loaded = coins_project.latest_model()
        assert loaded is not None
        assert same(weights(report.model), weights(loaded))

    def test_a_class_kept_by_name_keeps_its_knowledge(
        self, starter: SegmentationModel, make_project: Callable[..., Project]
    ) -> None:
        image = data.chelsea()[:160, :240]
        labels = np.full(image.shape[:2], 255, np.uint8)
        labels[40:60, 60:120] = 2
        project = make_project(["background", "dog", "cat"])
        project.add(image, labels=labels)
        project.set_classes(["background", "dog", "tabby"], {"cat": "tabby"})
        report = fine_tune(starter, project, QUICK)
        assert [spec.name for spec in report.model.classes] == ["background", "dog", "tabby"]
        # Nothing but a patch of fur was labelled, yet the cat is still told from its background.
        assert (segment(report.model, image) == 2).mean() > 0.5
        assert report.notes == (
            "only 'tabby' is labelled: label a little of what is not 'tabby', too, "
            "or it may spread over everything",
        )

    def test_a_class_that_nobody_labelled_is_told(
        self, starter: SegmentationModel, make_project: Callable[..., Project]
    ) -> None:
        image = data.coins()[:96, :96]
        labels = np.full(image.shape, 255, np.uint8)
        labels[4:10, 20:60], labels[40:46, 20:60] = 1, 2
        project = make_project(["background", "coin", "cloth", "hand", "table"])
        project.add(image, labels=labels)
        report = fine_tune(starter, project, QUICK)
        told = [note for note in report.notes if "does not know" in note]
        assert told == [
            "nothing is labelled 'background' or 'hand' or 'table' yet, so the model does not know them"
        ]
        labels[80:86, 20:60], labels[60:66, 20:60], labels[70:76, 20:60] = 0, 3, 4
        project.add(image, labels=labels)
        taught = fine_tune(report.model, project, QUICK)
        assert not [note for note in taught.notes if "does not know" in note]
        # What a panel learnt elsewhere it knows here, though nothing shows it; so do networks.
        other = make_project(["background", "coin", "hand", "leaf"])
        labels[labels > 1] = 255
        other.add(image, labels=labels)
        told = [note for note in fine_tune(taught.model, other, QUICK).notes if "does not know" in note]
        assert told == ["nothing is labelled 'leaf' yet, so the model does not know it"]

    def test_grey_stacks_and_many_channels(self, make_project: Callable[..., Project]) -> None:
        torch.manual_seed(0)
        model = SegmentationModel(ModelConfig(classes=TWO))
        project = make_project(TWO)
        strokes = coin_strokes()[:64, :64]
        stack = np.stack([data.coins()[:64, :64].astype(np.uint16) * 40] * 3)
        item = project.add(stack, axes="ZYX")
        project.set_labels(item, strokes, index=(1,))
        for n_channels in (5, 20):
            many = np.random.default_rng(0).random((n_channels, 64, 64))
            project.add(many, axes="CYX", labels=strokes)
        report = fine_tune(model, project, QUICK)
        assert report.n_planes == 3
        assert report.stopped_by == "iterations"

    def test_the_original_architecture_learns_too(self, coins_project: Project) -> None:
        torch.manual_seed(0)
        config = ModelConfig(
            architecture="fcn-8s", width=0.05, classes=TWO, preprocessing=Preprocessing.vgg()
        )
        model = SegmentationModel(config)
        report = fine_tune(model, coins_project, QUICK.model_copy(update={"max_iterations": 5}))
        changed = {
            name
            for name, value in weights(model).items()
            if not torch.equal(value, weights(report.model)[name])
        }
        assert {"network.score_fr.weight", "network.score_pool3.weight"} <= changed
        assert not any("conv" in name or "fc7" in name for name in changed)

    def test_thawing_trains_the_encoder(self, starter: SegmentationModel, coins_project: Project) -> None:
        few = QUICK.model_copy(update={"max_iterations": 3})
        encoder = [name for name in weights(starter) if name.startswith("network.encoder.")]
        before = weights(starter)
        frozen = weights(fine_tune(starter, coins_project, few).model)
        thawed = weights(fine_tune(starter, coins_project, few.model_copy(update={"thaw": True})).model)
        assert all(torch.equal(frozen[name], before[name]) for name in encoder)
        assert not all(torch.equal(thawed[name], before[name]) for name in encoder)

    def test_when_memory_ends_the_encoder_learns_from_windows(
        self, starter: SegmentationModel, coins_project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encode, largest = type(starter.network).encode, []

        def limited(self: Any, images: torch.Tensor, *cancel: Any) -> Any:
            if torch.is_grad_enabled():
                if images.shape[-2] * images.shape[-1] > 30_000:
                    raise torch.OutOfMemoryError("no room")
                largest.append(images.shape[-2] * images.shape[-1])
            return encode(self, images, *cancel)

        monkeypatch.setattr(type(starter.network), "encode", limited)
        few = QUICK.model_copy(update={"max_iterations": 6, "crf_iterations": 0, "thaw": True})
        report = fine_tune(starter, coins_project, few)
        assert len(report.history) == len(largest) == 6
        assert any("did not hold whole images" in note for note in report.notes)
        before, after = weights(starter), weights(report.model)
        assert any(not torch.equal(after[n], before[n]) for n in before if n.startswith("network.encoder."))

    def test_without_room_for_any_window_nothing_is_learnt(
        self, starter: SegmentationModel, coins_project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encode = type(starter.network).encode

        def never(self: Any, images: torch.Tensor, *cancel: Any) -> Any:
            if torch.is_grad_enabled():
                raise torch.OutOfMemoryError("no room")
            return encode(self, images, *cancel)

        monkeypatch.setattr(type(starter.network), "encode", never)
        with pytest.raises(torch.OutOfMemoryError, match="smallest window"):
            fine_tune(starter, coins_project, QUICK.model_copy(update={"thaw": True}))

    @pytest.mark.parametrize("size", [(96, 224), (200, 70)])
    def test_halves_of_a_view_hold_the_same_values(
        self, starter: SegmentationModel, size: tuple[int, int]
    ) -> None:
        image = torch.rand(1, 3, *size) * 255
        labels = np.zeros(size, np.uint8)
        nothing = np.full(size, 255, np.uint8)
        plane = LabelledPlane(0, (), image, labels, nothing, np.zeros(size, bool))
        pixels = draw_pixels(plane, np.random.default_rng(0))
        view = make_view(starter, 0, plane, pixels, LOOKS[1], encode=False)
        stride = starter.network.stride
        cells = Lay.of_encoder(view.grid, stride).size
        values = torch.rand(2, *cells)
        expected = values_at(values, view.training.positions)
        axis = int(size[1] > size[0])
        found, start = halves(view, starter.network), 0
        for half, mine, _ in found:
            shape = Lay.of_encoder(half.grid, stride).size
            part = values.narrow(1 + axis, start, shape[axis])
            start += shape[axis]
            torch.testing.assert_close(values_at(part, half.training.positions), expected[mine])
        assert len(found) == 2
        assert start == cells[axis]
        assert sum(len(mine) for _, mine, _ in found) > 0.85 * len(expected)
        read = make_view(starter, 0, plane, pixels, LOOKS[1], encode=True)
        parts = [half.features for half, _, _ in halves(read, starter.network)]
        for whole, *cut in zip(read.features, *parts, strict=True):
            assert torch.equal(torch.cat(cut, dim=2 + axis), whole)

    def test_a_lesson_in_parts_teaches_the_same_pixels(self, starter: SegmentationModel) -> None:
        labels = np.full((200, 330), 255, np.uint8)
        labels[20:60, 30:90], labels[150:180, 200:320] = 0, 15
        image = torch.rand(1, 3, *labels.shape) * 255
        nothing = np.full_like(labels, 255)
        plane = LabelledPlane(0, (), image, labels, nothing, np.zeros(labels.shape, bool))
        pixels = draw_pixels(plane, np.random.default_rng(0))
        view = make_view(starter, 0, plane, pixels, LOOKS[0], encode=True)
        n = len(view.untouched)
        weight = torch.arange(len(view.training), dtype=torch.float32)
        advice = Advice(torch.arange(float(n))[:, None], torch.arange(float(n)))
        whole = Lesson(view, weight, advice)
        stride = starter.network.stride
        assert whole.within(starter.network, 224 * 352 // stride**2) == [whole]
        parts = whole.within(starter.network, 128 * 192 // stride**2)
        assert [len(part.weight) > 0 for part in parts] == [True, False, False, True]
        n_free = sum(len(part.view.untouched) for part in parts)
        assert 0.85 * n < n_free < n  # but for those beside a cut
        assert torch.cat([part.weight for part in parts]).sort().values.tolist() == weight.tolist()
        for part in parts:
            mine = part.weight.long()
            assert torch.equal(part.view.training.place, view.training.place[mine])
            assert torch.equal(part.view.training.target, view.training.target[mine])
            assert part.advice is not None
            assert torch.equal(part.view.untouched.place, view.untouched.place[part.advice.weight.long()])
            assert torch.equal(part.advice.marginals[:, 0], part.advice.weight)
            assert max(part.view.grid.input_size) <= 192
        total = float(weight.sum())
        parts = [part for part in parts if len(part.weight)]
        says = [part.say for part in weighed(parts)]
        assert says == pytest.approx([(2 * float(p.weight.sum()) / total) ** 0.5 for p in parts])

    def test_a_lesson_is_not_cut_where_a_class_would_be_lost(self, starter: SegmentationModel) -> None:
        labels = np.full((200, 330), 255, np.uint8)
        labels[20:60, 30:90] = 0
        labels[50:150, 161] = 15  # a thin stroke, just where the cut would be
        image = torch.rand(1, 3, *labels.shape) * 255
        nothing = np.full_like(labels, 255)
        plane = LabelledPlane(0, (), image, labels, nothing, np.zeros(labels.shape, bool))
        pixels = draw_pixels(plane, np.random.default_rng(0))
        view = make_view(starter, 0, plane, pixels, LOOKS[0], encode=True)
        whole = Lesson(view, torch.ones(len(view.training)), None)
        taught = [set(part.view.training.target.tolist()) for part in whole.split(starter.network)]
        assert taught == [{0}, set()]
        assert whole.within(starter.network, 1) == [whole]

    @pytest.mark.parametrize("half", [None, torch.bfloat16])
    def test_a_thawed_encoder_learns_in_16_bits_too(
        self, starter: SegmentationModel, coins_project: Project, half: torch.dtype | None, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(learning_round, "half_precision", lambda precision, device: half)
        few = QUICK.model_copy(update={"max_iterations": 60, "crf_iterations": 0, "thaw": True})
        losses = [step.loss for step in fine_tune(starter, coins_project, few).history]
        assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])

    def test_contradictory_strokes_are_found(
        self, starter: SegmentationModel, make_project: Callable[..., Project]
    ) -> None:
        project = make_project(TWO)
        image = data.coins()[:128, :128]
        for _ in range(3):
            project.add(image, labels=coin_strokes()[:128, :128])
        wrong = np.full((128, 128), 255, np.uint8)
        wrong[45:65, 97:117] = 0  # a coin that the same image shows as a thing three times
        liar = project.add(image, labels=wrong)
        report = fine_tune(starter, project, QUICK.model_copy(update={"max_iterations": 40}))
        # One side cannot be learnt, whichever it is, and its place is told.
        assert report.contradictions
        for place in report.contradictions:
            said = 0 if place.item_id == liar.id else 1
            assert (place.region.label, place.region.predicted) == (said, 1 - said)
            y0, x0, y1, x1 = place.region.box
            assert y0 < 65
            assert y1 > 45
            assert x0 < 117
            assert x1 > 97
        assert report.as_dict()["contradictions"][0]["region"]["n_pixels"] > 20

    def test_a_stroke_that_the_others_outvote_is_found_though_it_was_learnt(
        self, starter: SegmentationModel, make_project: Callable[..., Project]
    ) -> None:
        labels = coins_and_ground()
        report = fine_tune(starter, self._project(make_project, labels), QUICK)
        assert report.contradictions == ()
        assert report.strokes_known == report.strokes_asked > 12
        wrong = labels.copy()
        y, x = (int(middle) for middle in coin_middles()[3])
        wrong[y + 5 : y + 10, x - 6 : x + 6] = 0  # on a coin, below a stroke that says so
        report = fine_tune(starter, self._project(make_project, wrong), QUICK)
        (place,) = report.contradictions
        assert report.strokes_known == report.strokes_asked - 1
        assert place.region.box == (y + 5, x - 6, y + 10, x + 6)
        assert (place.region.label, place.region.predicted) == (0, 1)
        assert place.region.is_learnt
        assert place.region.share > 0.7
        assert place.region.n_pixels == 60

    def _project(self, make_project: Callable[..., Project], labels: NDArray[np.uint8]) -> Project:
        project = make_project(TWO)
        project.add(data.coins(), labels=labels)
        return project


@pytest.mark.usefixtures("small_forests")
class TestRepeating:
    def test_same_seed_and_data_give_the_same_weights(
        self, starter: SegmentationModel, coins_project: Project
    ) -> None:
        torch.manual_seed(5)
        first = fine_tune(starter, coins_project, QUICK)
        torch.manual_seed(6)
        second = fine_tune(starter, coins_project, QUICK)
        assert same(weights(first.model), weights(second.model))
        assert [step.loss for step in first.history] == [step.loss for step in second.history]

    def test_a_later_round_begins_anew(
        self, starter: SegmentationModel, make_project: Callable[..., Project]
    ) -> None:
        project = self._corrected(starter, make_project)
        first = fine_tune(starter, project, QUICK)
        later = fine_tune(first.model, project, QUICK, base=starter)
        assert same(weights(later.model), weights(first.model))  # no further from the starter
        assert later.before == first.after  # scored is what was in use
        assert not same(weights(fine_tune(first.model, project, QUICK).model), weights(first.model))

    def test_a_round_goes_on_where_images_were_read_otherwise(
        self, starter: SegmentationModel, make_project: Callable[..., Project]
    ) -> None:
        project = self._corrected(starter, make_project)
        thawed = starter.copy()
        with torch.no_grad():
            next(thawed.network.encoder.parameters()).mul_(1.01)
        on = fine_tune(thawed, project, QUICK)
        assert same(weights(fine_tune(thawed, project, QUICK, base=starter).model), weights(on.model))

    def test_what_a_cancel_leaves_is_not_the_model_of_long_ago(
        self,
        starter: SegmentationModel,
        make_project: Callable[..., Project],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        project = self._corrected(starter, make_project)
        first = fine_tune(starter, project, QUICK).model

        def cancelled(*_: object) -> None:  # the last question before the head learns
            raise Cancelled

        monkeypatch.setattr(learning_round.Restraint, "replay", cancelled)
        report = fine_tune(first, project, QUICK, base=starter)
        assert report.stopped_by == "cancelled"
        assert same(weights(report.model), weights(first))

    def _corrected(self, starter: SegmentationModel, make_project: Callable[..., Project]) -> Project:
        project = make_project(starter.classes)
        labels = np.full((96, 128), 255, np.uint8)
        labels[20:30, 20:100], labels[60:70, 20:100] = 0, 7
        project.add(data.chelsea()[60:156, 100:228], labels=labels)
        return project

    def test_another_seed_gives_others(
        self, starter: SegmentationModel, make_project: Callable[..., Project]
    ) -> None:
        project = make_project(TWO)
        image = data.coins()[:200, :200]  # more labelled pixels than one iteration takes
        project.add(image, labels=(image > 110).astype(np.uint8))
        few = QUICK.model_copy(update={"max_iterations": 3})
        first = fine_tune(starter, project, few)
        second = fine_tune(starter, project, few.model_copy(update={"seed": 1}))
        assert not same(weights(first.model), weights(second.model))

    def test_global_state_is_left_alone(self, starter: SegmentationModel, coins_project: Project) -> None:
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002 - the global generator is what must not move
        before = (torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads())  # noqa: NPY002
        fine_tune(starter, coins_project, QUICK.model_copy(update={"max_iterations": 2}))
        after = (torch.get_rng_state(), np.random.get_state()[1], torch.get_num_threads())  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert (before[1] == after[1]).all()
        assert before[2] == after[2]
        assert torch.is_grad_enabled()


class TestStopping:
    def test_a_cancel_at_any_moment_returns_a_model(
        self, starter: SegmentationModel, coins_project: Project
    ) -> None:
        asked = 0

        def count() -> bool:
            nonlocal asked
            asked += 1
            return False

        few = QUICK.model_copy(update={"max_iterations": 4})
        for _ in range(2):  # the first round may import, and asks all the time while it waits
            asked = 0
            fine_tune(starter, coins_project, few, cancel=count)
        times = 3 * asked // 4  # on a busy machine it waits longer, and asks more often
        assert times > 8  # often, and so soon heard
        image = data.coins()[:128, :128]
        unlearnt = weights(starter.with_classes(TWO))
        for moment in (*range(6), *range(6, times, max(1, times // 8))):
            calls = iter([False] * moment + [True] * 1000)
            report = fine_tune(starter, coins_project, few, cancel=lambda calls=calls: next(calls))
            assert report.stopped_by == "cancelled"
            if not report.history:
                assert same(weights(report.model), unlearnt)
            assert report.after is None or report.before is not None
        assert segment(report.model, image).shape == (128, 128)

    def test_the_time_limit_stops_it(self, starter: SegmentationModel, coins_project: Project) -> None:
        config = TrainConfig(seconds=1.0, max_iterations=100_000, crf_iterations=100_000)
        report = fine_tune(starter, coins_project, config)
        assert report.stopped_by == "time"
        assert 0 < len(report.history) < 100_000
        assert report.after is not None

    @pytest.mark.parametrize(("classes", "limit"), [(["background", "thing"], 10.0), (None, 6.0)])
    def test_a_slow_machine_keeps_the_limit_and_tells_all_the_time(
        self,
        starter: SegmentationModel,
        make_project: Callable[..., Project],
        monkeypatch: pytest.MonkeyPatch,
        classes: list[str] | None,
        limit: float,
    ) -> None:
        """A machine where it takes 0.02 s from one question whether to stop to the next."""
        seconds, told = 0.0, list[tuple[float, TrainStep]]()

        def slow() -> bool:
            nonlocal seconds
            seconds += 0.02
            return False

        monkeypatch.setattr("napari_crfasrnn.training.learning_round.time.monotonic", lambda: seconds)
        project = make_project(classes or [*starter.classes, "thing"])
        labels = coin_strokes()[:128, :128]
        labels[labels == 1] = len(project.classes) - 1
        project.add(data.coins()[:128, :128], labels=labels)
        config = TrainConfig(seconds=limit, max_iterations=100_000)
        report = fine_tune(
            starter, project, config, progress=lambda step: told.append((seconds, step)), cancel=slow
        )
        assert report.stopped_by == "time"
        assert report.after is not None
        assert seconds <= limit * 1.15
        moments = [0.0, *(moment for moment, _ in told), seconds]
        assert max(np.diff(moments)) <= 0.2
        assert any(step.loss is None for _, step in told)
        assert all(step.loss is not None for step in report.history)
        cut = "ended it after" if classes else "cut a part of it short"  # its trees, of few iterations
        assert any(f"the limit of {limit:.0f} s {cut}" in note for note in report.notes)

    def test_a_loss_that_is_no_number_stops_it_with_sound_weights(
        self, starter: SegmentationModel, coins_project: Project
    ) -> None:
        report = fine_tune(starter, coins_project, QUICK.model_copy(update={"learning_rate": 1e30}))
        assert report.stopped_by == "diverged"
        assert any("no longer a number" in note for note in report.notes)
        assert all(bool(value.isfinite().all()) for value in weights(report.model).values())

    def test_nothing_to_learn_is_an_error(
        self, starter: SegmentationModel, make_project: Callable[..., Project]
    ) -> None:
        project = make_project(TWO)
        with pytest.raises(ValueError, match="project must hold labelled pixels to learn from, got none"):
            fine_tune(starter, project, QUICK)
        baseline = np.zeros((32, 32), np.uint8)
        project.add(data.coins()[:32, :32], labels=baseline, baseline=baseline)
        with pytest.raises(ValueError, match="paint or accept some first"):
            fine_tune(starter, project, QUICK)
        with pytest.raises(TypeError, match=r"got 'folder': open its folder with Project\.open"):
            fine_tune(starter, "folder", QUICK)

    @pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (17, 23)])
    def test_tiny_and_constant_images(
        self, starter: SegmentationModel, make_project: Callable[..., Project], size: tuple[int, int]
    ) -> None:
        project = make_project(TWO)
        project.add(np.full(size, 7, np.uint8), labels=np.zeros(size, np.uint8))
        report = fine_tune(starter, project, QUICK.model_copy(update={"max_iterations": 2}))
        assert report.stopped_by == "iterations"


@pytest.mark.usefixtures("small_forests")
class TestHonesty:
    def test_a_new_class_of_which_nothing_was_held_back_is_noted(
        self, starter: SegmentationModel, make_project: Callable[..., Project]
    ) -> None:
        project = make_project(TWO)
        labels = coin_strokes()[:128, :128]
        project.add(data.coins()[:128, :128], labels=labels)
        for share, is_noted in ((0.0, True), (0.5, False)):
            config = QUICK.model_copy(update={"locked_share": share, "max_iterations": 2})
            report = fine_tune(starter, project, config)
            assert report.after is not None
            assert (report.after.n_pixels[1] == 0) == is_noted
            assert any("nothing of 'thing' was held back" in note for note in report.notes) == is_noted

    def test_a_score_of_few_places_says_that_it_tells_little(
        self, starter: SegmentationModel, make_project: Callable[..., Project]
    ) -> None:
        coins = data.coins()[:192, :256]
        project = make_project(TWO)
        few = np.full(coins.shape, 255, np.uint8)
        few[40:80], few[140:180] = 0, 1  # two strokes
        project.add(coins, labels=few)
        short = QUICK.model_copy(update={"max_iterations": 5})
        report = fine_tune(starter, project, short)
        assert report.n_locked_areas == 2
        assert f"{report.n_locked_pixels:,} px, held back in 2 areas you labelled: too few" in report.verdict
        assert report.as_dict()["verdict"] == report.verdict
        many = make_project(TWO)
        many.add(coins, labels=(coins > 110).astype(np.uint8))
        report = fine_tune(starter, many, short)
        assert report.n_locked_areas >= 10
        assert report.after is not None
        assert f"→ {report.after.miou:.2f} on {report.n_locked_pixels:,} px, held back" in report.verdict
        assert "too few" not in report.verdict
        assert "was not measured" in replace(report, after=None).verdict
        nothing = LockedScore(("background", "thing"), (None, None), (9, 9))
        assert "Too few pixels were held back" in replace(report, after=nothing).verdict


class TestLockedScore:
    def test_few_pixels_tell_nothing(self) -> None:
        counts = np.array([[900, 100, 0], [50, 250, 0], [0, 20, 10]])
        score = LockedScore.from_confusion(counts, ("a", "b", "c"))
        assert score.iou[2] is None
        assert score.iou[0] == pytest.approx(900 / 1050)
        assert score.miou == pytest.approx((900 / 1050 + 250 / 420) / 2)
        assert LockedScore.from_confusion(np.zeros((2, 2), np.int64), ("a", "b")).miou is None

    def test_it_rises_on_a_dense_mask(
        self, starter: SegmentationModel, make_project: Callable[..., Project]
    ) -> None:
        project = make_project(TWO)
        project.add(data.coins(), labels=(data.coins() > 110).astype(np.uint8))
        report = fine_tune(starter, project, QUICK.model_copy(update={"max_iterations": 200}))
        assert report.before is not None
        assert report.after is not None
        assert report.before.miou is not None
        assert report.after.miou is not None
        assert report.after.miou > report.before.miou + 0.05
        measured = [step.locked_miou for step in report.history if step.locked_miou is not None]
        assert len(measured) == 2


def read_pair(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    (image,) = (folder / "images").glob(f"{name}.*")
    return np.asarray(Image.open(image)), np.asarray(Image.open(folder / "masks" / f"{name}.png"))


def test_one_dense_mask_of_nuclei_serves_images_never_seen(
    starter: SegmentationModel, shared_dir: Path, make_project: Callable[..., Project]
) -> None:
    folder = shared_dir / "data" / "dsb2018_fluo"
    classes = ["background", "nucleus", "border"]
    project = make_project(classes)
    image, mask = read_pair(folder, (folder / "train.txt").read_text().split()[3])
    project.add(image, labels=mask)
    report = fine_tune(starter, project, TrainConfig(seconds=None, max_iterations=60, crf_iterations=4))
    counts = np.zeros((3, 3), np.int64)
    for name in (folder / "val.txt").read_text().split()[:6]:
        image, mask = read_pair(folder, name)
        counts += metrics.confusion(segment(report.model, image), mask, 3)
    assert metrics.iou(counts)[1] > 0.6
