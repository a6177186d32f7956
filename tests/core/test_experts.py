"""The experts for single pixels: the forest, the perceptrons, the panel, and what they give when learnt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage import data
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

from napari_crfasrnn import metrics
from napari_crfasrnn.classes import class_table
from napari_crfasrnn.config import ModelConfig, PerceptronsConfig, TrainConfig
from napari_crfasrnn.experts import REST, FeatureMaps, Forest, Head, Memory, Panel, Perceptrons, Sieve
from napari_crfasrnn.experts.classic import KINDS, NARROW, WIDE, classic_maps
from napari_crfasrnn.experts.features import (
    AROUND,
    CLASSIC,
    GROUPS,
    column_index,
    columns,
    parts_to_read,
    stretched,
)
from napari_crfasrnn.experts.sampling import Lay, locate_cells, values_at
from napari_crfasrnn.fcn_fine import FcnFine
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.progress import Cancelled
from napari_crfasrnn.project import Project
from napari_crfasrnn.segmenter import Segmenter
from napari_crfasrnn.training import TrainReport, fine_tune, panel_round
from napari_crfasrnn.training.growing import Pixels
from napari_crfasrnn.training.panel_learner import PanelLearner
from napari_crfasrnn.training.panel_windows import are_upright, draw_windows
from napari_crfasrnn.training.planes import LabelledPlane
from napari_crfasrnn.zoo import load_model

QUICK = TrainConfig(seconds=None, max_iterations=60)
EVERY = tuple(GROUPS)


@pytest.fixture(scope="module")
def starter() -> SegmentationModel:
    return load_model("starter")


def grown(kind: type, n_labels: int = 5) -> tuple[RandomForestClassifier, NDArray[np.float32]]:
    """Return a forest that never saw class 1, and rows to ask it about."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(400, 100)).astype(np.float32)
    targets = random.integers(0, n_labels, 400)
    targets[targets == 1] = 0
    return kind(12, max_depth=9, random_state=0).fit(rows, targets), rows


def small_panel(n_labels: int) -> Panel:
    classifier, rows = grown(RandomForestClassifier, n_labels)
    perceptrons = Perceptrons(PerceptronsConfig(groups=(1, 8), n_members=2, hidden=6), n_labels)
    perceptrons.initialise(torch.from_numpy(rows), torch.Generator().manual_seed(0))
    forest = Forest.planted(classifier, (1, 8), n_labels)
    return Panel.of([forest, perceptrons], [1.0, 0.5], n_labels)


def loud_head(n_labels: int) -> Head:
    """Return a head with random weights that has opinions."""
    head = Head(n_labels).eval()
    with torch.no_grad():
        for score in head.score_layers:
            score.weight *= 20
    return head


class TestForest:
    @pytest.mark.parametrize("kind", [RandomForestClassifier, ExtraTreesClassifier])
    def test_it_says_what_scikit_learn_says(self, kind: type) -> None:
        classifier, rows = grown(kind)
        # Rows on the very thresholds are where rounding would show.
        threshold = classifier.estimators_[0].tree_.threshold[0]
        rows = np.concatenate([rows, np.full((1, 100), threshold, np.float32)])
        every = np.zeros((len(rows), sum(GROUPS.values())), np.float32)
        every[:, column_index((1, 8))] = rows
        said = Forest.planted(classifier, (1, 8), 5)(torch.from_numpy(every)).numpy()
        expected = np.zeros_like(said)
        expected[:, classifier.classes_] = classifier.predict_proba(rows)
        np.testing.assert_allclose(said, expected, atol=1e-6)
        assert not said[:, 1].any()


def walked(forest: Forest, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what `Forest.forward` says of rows of its own groups, a level of the trees at a time."""
    feature, threshold, child, root, share = (
        getattr(forest, name).numpy() for name in ("feature", "threshold", "child", "root", "share")
    )
    leaf = np.cumsum(child == np.arange(len(child))) - 1
    node = np.repeat(root[:, None], len(rows), axis=1)  # [T, n]
    for _ in range(forest.config.depth):
        higher = rows[np.arange(len(rows)), feature[node]] > threshold[node]
        node = child[node] + higher
    return np.add.reduce(share[leaf[node]], axis=0) / np.float32(len(root))


class TestWalk:
    @given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 90), depth=st.integers(1, 12))
    def test_compiled_and_level_by_level_are_the_same(self, seed: int, n: int, depth: int) -> None:
        random = np.random.default_rng(seed)
        x = random.integers(-3, 4, (60, 40)).astype(np.float32)
        classifier = ExtraTreesClassifier(5, max_depth=depth, random_state=seed)
        forest = Forest.planted(classifier.fit(x, random.integers(0, 3, 60)), (8,), 4)
        own = random.integers(-3, 4, (n, 40)).astype(np.float32)
        rows = np.zeros((n, sum(GROUPS.values())), np.float32)
        rows[:, column_index((8,))] = own
        given_by_it = forest(torch.from_numpy(rows)).numpy()
        np.testing.assert_allclose(given_by_it, walked(forest, own), rtol=1e-6)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("child", 10**6), ("child", -1), ("feature", 10**6), ("feature", -1), ("root", 10**6)],
    )
    def test_tables_that_are_no_trees_are_refused(self, name: str, value: int) -> None:
        forest = Forest.planted(grown(RandomForestClassifier)[0], (1, 8), 5)
        getattr(forest, name)[0] = value
        with pytest.raises(ValueError, match="must hold trees"):
            forest(torch.zeros(3, sum(GROUPS.values())))

    def test_a_tree_that_leads_back_is_refused(self) -> None:
        forest = Forest.planted(grown(RandomForestClassifier)[0], (1, 8), 5)
        inner = int((forest.child != torch.arange(len(forest.child))).nonzero()[-1])
        forest.child[inner] = 0
        with pytest.raises(ValueError, match="must hold trees"):
            forest(torch.zeros(3, sum(GROUPS.values())))


class TestFeatures:
    @pytest.mark.parametrize("size", [(64, 96), (37, 51), (3, 2), (1, 1)])
    def test_a_grid_has_the_features_of_its_pixels(
        self, starter: SegmentationModel, size: tuple[int, int]
    ) -> None:
        image = torch.from_numpy(data.astronaut()[: size[0], : size[1]]).movedim(-1, 0).float()[None]
        maps = FeatureMaps(starter.network, starter.preprocess(image), size)
        sieve = Sieve((size[0] // 3, 0, *size), 2)
        single = maps.at(*sieve.pixels(), tuple(GROUPS))
        torch.testing.assert_close(maps.on_grid(*sieve.axes(), tuple(GROUPS)), single, rtol=1e-4, atol=1e-4)

    def test_blurs_are_gaussian(self) -> None:
        seen = torch.zeros(1, 128, 128)
        seen[0, 63, 62] = 1
        narrow, wide = classic_maps(seen, None)
        for maps, blurs, unit in ((narrow, NARROW, 1), (wide, WIDE, 2)):
            for i, blur in enumerate(blurs):
                spot = maps[KINDS * i]
                assert float(spot.sum()) * unit**2 == pytest.approx(1, rel=0.02)
                rows = spot.sum(1) / spot.sum()
                place = torch.arange(len(rows)) * unit
                mean = (rows * place).sum()
                assert float((rows * (place - mean) ** 2).sum()) == pytest.approx(blur**2, rel=0.06)
                assert float(mean) == pytest.approx(63 - (unit - 1) / 2, abs=0.3)

    def test_a_grey_image_is_one_in_three_equal_channels(self) -> None:
        grey = torch.rand(1, 30, 41)
        one, three = classic_maps(grey, None), classic_maps(grey.expand(3, -1, -1), None)
        for narrow, wide in zip(one, three, strict=True):
            assert torch.equal(narrow.repeat(1, 1, 1).repeat_interleave(3, 0), wide)

    def test_brightness_and_contrast_do_not_matter(self, starter: SegmentationModel) -> None:
        image = torch.from_numpy(data.coins()[:64, :96].astype(np.float32))[None, None]
        y, x = np.arange(0, 60, 7), np.arange(0, 90, 11)[:9]
        bright, dark = (
            FeatureMaps(starter.network, starter.preprocess(each), (64, 96)).at(y, x, tuple(GROUPS))
            for each in (image, image * 0.2 + 10)
        )
        torch.testing.assert_close(bright, dark, rtol=1e-2, atol=1e-2)
        assert columns(bright, (2, 8)).shape == (9, GROUPS[2] + GROUPS[8])

    def test_what_a_place_is_like_around_varies_less_than_the_place(self, starter: SegmentationModel) -> None:
        image = torch.from_numpy(data.coins()[:96, :96].astype(np.float32))[None, None]
        maps = FeatureMaps(starter.network, starter.preprocess(image), (96, 96))
        y, x = (axis.ravel() for axis in np.mgrid[:96:3, :96:3])
        for group, stride in AROUND.items():
            around, there = maps.at(y, x, [group]), maps.at(y, x, [stride])
            assert around.shape == there.shape
            assert around.min() >= there.min() - 1e-4
            assert around.max() <= there.max() + 1e-4
            assert around.std(0).mean() < 0.5 * there.std(0).mean()

    @pytest.mark.parametrize("shrunk", [1.0, 0.7])
    def test_maps_of_a_part_are_those_of_the_whole(self, starter: SegmentationModel, shrunk: float) -> None:
        image = torch.from_numpy(data.astronaut()[:, 100:440]).movedim(-1, 0).float()[None]
        seen = F.interpolate(starter.preprocess(image), scale_factor=shrunk, mode="bilinear")
        whole = FeatureMaps(starter.network, seen, (512, 340))
        part = FeatureMaps(starter.network, seen, (512, 340), box=(250, 190, 300, 291))
        assert part.grid.box != whole.grid.box
        y, x = (axis.ravel() for axis in np.mgrid[250:300:3, 190:291:3])
        for group in (CLASSIC, 2, 4, 8):
            torch.testing.assert_close(part.at(y, x, [group]), whole.at(y, x, [group]), rtol=1e-4, atol=1e-4)
        for group in (16, 32):  # which see more than what lies around the part
            there = whole.at(y, x, [group])
            assert (part.at(y, x, [group]) - there).abs().mean() < 0.2 * there.std()
        mirrored = (
            values_at(
                maps.mirrored[0][0].flip(-1), locate_cells(maps.grid, y, x, Lay.of_mirrored(maps.grid, 2))
            )
            for maps in (part, whole)
        )
        torch.testing.assert_close(*mirrored, rtol=1e-4, atol=1e-4)

    @given(sides=st.tuples(st.integers(1, 5000), st.integers(1, 5000)), shrunk=st.floats(0.3, 1))
    def test_parts_to_read_are_all_of_an_image(self, sides: tuple[int, int], shrunk: float) -> None:
        read = (max(1, round(shrunk * sides[0])), max(1, round(shrunk * sides[1])))
        boxes = parts_to_read(sides, read)
        assert sum((y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in boxes) == sides[0] * sides[1]
        assert len({(y0, x0) for y0, x0, _, _ in boxes}) == len(boxes)
        for y0, x0, y1, x1 in boxes:
            assert 0 <= y0 < y1 <= sides[0]
            assert 0 <= x0 < x1 <= sides[1]
            assert y0 % 2 == x0 % 2 == 0
        if len(boxes) == 1:
            assert read[0] * read[1] <= 1280**2
        else:  # so that memory does not depend on the size
            assert max((y1 - y0) * shrunk for y0, _, y1, _ in boxes) < 1030
            assert max((x1 - x0) * shrunk for _, x0, _, x1 in boxes) < 1030

    def test_a_sieve_puts_every_second_pixel_where_it_was(self) -> None:
        sieve = Sieve((2, 4, 9, 13), 2)
        y, x = sieve.pixels()
        marginals = torch.from_numpy(np.stack([np.exp(-0.1 * y), np.exp(-0.05 * x)], 1)).float()
        spread = sieve.spread(marginals)[0]
        assert spread.shape == (2, 7, 9)
        rows = torch.arange(2, 9).float()
        torch.testing.assert_close(spread[0, :, 0], -0.1 * rows, rtol=1e-4, atol=1e-4)


class TestPanel:
    def test_a_grid_is_judged_like_its_pixels(self, starter: SegmentationModel) -> None:
        panel = small_panel(3)
        shape = PerceptronsConfig(groups=tuple(GROUPS), n_members=2, hidden=6)
        deep = Perceptrons(shape, 3)
        image = torch.from_numpy(data.astronaut()[:70, :90]).movedim(-1, 0).float()[None]
        maps = FeatureMaps(starter.network, starter.preprocess(image), (70, 90))
        sieve = Sieve((0, 0, 70, 90), 2)
        rows = maps.at(*sieve.pixels(), tuple(GROUPS))
        deep.initialise(rows, torch.Generator().manual_seed(1))
        (fine,) = panel.perceptrons
        assert isinstance(fine, Perceptrons)
        fine.initialise(columns(rows, fine.config.groups), torch.Generator().manual_seed(2))
        panel = Panel.of([*panel.forests, *panel.perceptrons, deep], [1.0, 0.5, 2.0], 3)
        # Beyond the clip of six standard deviations, cells and pixels may differ a little.
        torch.testing.assert_close(panel.judge(maps, sieve), panel.marginals(rows), rtol=0, atol=5e-3)

    def test_it_is_saved_without_pickle_and_comes_back(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = SegmentationModel(ModelConfig(classes=class_table(["a", "b", "c"])))
        model = model.with_panel(small_panel(3))
        model.save(tmp_path / "model.safetensors")
        loaded = load_model(tmp_path / "model.safetensors")
        image = torch.rand(1, 3, 40, 50) * 255
        assert torch.equal(model.logits(image), loaded.logits(image))
        assert loaded.config == model.config

    def test_other_classes_keep_what_is_known(self) -> None:
        torch.manual_seed(0)
        model = SegmentationModel(ModelConfig(classes=class_table(["a", "b", "c"])))
        model = model.with_panel(small_panel(3))
        rows = torch.randn(50, sum(GROUPS.values()))
        changed = model.with_classes(["new", "c", "a", "b"])
        assert model.panel is not None
        assert changed.panel is not None
        torch.testing.assert_close(
            changed.panel.marginals(rows)[:, [2, 3, 1]], model.panel.marginals(rows), rtol=1e-4, atol=1e-5
        )

    @pytest.mark.parametrize("are_dense", [False, True])
    def test_only_whole_regions_teach_what_places_are_like_around(self, are_dense: bool) -> None:
        rows = torch.randn(60, sum(GROUPS.values()))
        pixels = Pixels(rows, torch.arange(60) % 3, torch.ones(60))
        learner = PanelLearner(3, None, pixels, are_dense, False, QUICK, None)
        assert np.isfinite(learner.step())
        read = {group for each in learner.panel.config.perceptrons for group in each.groups}
        assert (read & set(AROUND) == set(AROUND)) is are_dense

    def test_a_head_judges_an_image_and_its_mirror_image_as_its_network_does(
        self, starter: SegmentationModel
    ) -> None:
        torch.manual_seed(0)
        head = loud_head(3)
        image = torch.from_numpy(data.astronaut()[:70, :90]).movedim(-1, 0).float()[None]
        seen = starter.preprocess(image)
        maps = FeatureMaps(starter.network, seen, (70, 90))
        network = FcnFine(3)
        network.load_state_dict(head.state_dict(), strict=False)
        network.encoder.load_state_dict(starter.network.encoder.state_dict())
        with torch.no_grad():
            plain, mirrored = (
                network(each).softmax(1)[0] for each in (stretched(seen), stretched(seen).flip(-1))
            )
        expected = (plain + mirrored.flip(-1)) / 2
        sieve = Sieve((4, 6, 70, 90), 2)
        judged = Panel.of([head], [1.0], 3).judge(maps, sieve)
        y, x = sieve.pixels()
        torch.testing.assert_close(judged, expected[:, y, x].T, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(head.marginals(maps, y, x), judged, rtol=1e-3, atol=1e-4)
        rows = maps.at(y, x, EVERY)
        panel = Panel.of([*small_panel(3).forests, head], [1.0, 3.0], 3)
        both = panel.marginals(rows, [head.marginals(maps, y, x)])
        torch.testing.assert_close(panel.judge(maps, sieve), both, rtol=1e-3, atol=1e-4)

    def test_a_head_is_saved_and_keeps_what_it_knows_of_classes_that_stay(
        self, starter: SegmentationModel, tmp_path: Path
    ) -> None:
        torch.manual_seed(0)
        model = SegmentationModel(ModelConfig(classes=class_table(["a", "b", "c"])))
        model = model.with_panel(Panel.of([*small_panel(3).forests, loud_head(3)], [1.0, 2.0], 3))
        model.save(tmp_path / "model.safetensors")
        loaded = load_model(tmp_path / "model.safetensors")
        image = torch.rand(1, 3, 40, 50) * 255
        assert loaded.config.panel is not None
        assert loaded.config.panel.n_heads == 1
        assert torch.equal(model.logits(image), loaded.logits(image))
        changed = loaded.with_classes(["new", "c", "a", "b"]).logits(image)
        assert changed[:, 0].max() < np.log(2e-3)
        torch.testing.assert_close(changed[:, [2, 3, 1]], loaded.logits(image), rtol=1e-3, atol=1e-4)

    def test_it_needs_the_encoder_it_reads(self) -> None:
        config = ModelConfig(architecture="fcn-8s", width=0.03, classes=class_table(["a", "b", "c"]))
        with pytest.raises(ValueError, match="a panel reads the encoder of an FcnLite"):
            SegmentationModel(config, panel=small_panel(3))


def partial_panel(n_labels: int, speaks_for: tuple[int, ...]) -> Panel:
    panel = small_panel(len(speaks_for))
    experts = [*panel.forests, *panel.perceptrons]
    return Panel.of(experts, panel.votes.tolist(), n_labels, speaks_for)


class TestGrowing:
    """Forests grow beside one another, in threads."""

    @pytest.fixture
    def pixels(self) -> Pixels:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(2000, sum(GROUPS.values()), generator=generator)
        return Pixels(rows, (rows[:, 3] > 0).long() + (rows[:, 200] > 1), torch.ones(len(rows)))

    @pytest.fixture
    def set_threads(self) -> Iterator[Callable[[int], None]]:
        before = torch.get_num_threads()
        yield torch.set_num_threads
        torch.set_num_threads(before)

    def test_threads_change_no_tree(self, pixels: Pixels, set_threads: Callable[[int], None]) -> None:
        set_threads(1)
        expected = PanelLearner(3, None, pixels, False, False, QUICK, None).panel
        set_threads(3)
        given = PanelLearner(3, None, pixels, False, False, QUICK, None).panel
        for one, other in zip(given.forests, expected.forests, strict=True):
            mine, its = one.state_dict(), other.state_dict()
            assert mine
            assert all(torch.equal(value, its[name]) for name, value in mine.items())

    @pytest.mark.parametrize("n_threads", [1, 3])
    def test_a_cancel_ends_it_and_its_threads(
        self, pixels: Pixels, set_threads: Callable[[int], None], n_threads: int
    ) -> None:
        asked = []

        def cancel() -> bool:
            asked.append(threading.active_count())
            return len(asked) == 5

        set_threads(n_threads)
        before = threading.active_count()
        with pytest.raises(Cancelled):
            PanelLearner(3, None, pixels, False, False, QUICK, cancel)
        assert len(asked) == 5
        assert before < max(asked) <= before + n_threads
        assert threading.active_count() == before


class TestBesideTheNetwork:
    def test_the_rest_is_shared_out_as_the_network_says(self) -> None:
        panel = partial_panel(5, (3, 1, REST))
        judged = torch.rand(1, 3, 4, 6).add(0.1).log()
        known = torch.randn(1, 5, 4, 6)
        joined = panel.joined(judged, known)[0].softmax(0)
        experts = judged[0].softmax(0)
        torch.testing.assert_close(joined[[3, 1]], experts[:2])
        rest = known[0, [0, 2, 4]].softmax(0) * experts[2]
        torch.testing.assert_close(joined[[0, 2, 4]], rest)

    def test_classes_that_go_are_left_to_the_network(self) -> None:
        panel = partial_panel(4, (3, 1, REST))
        moved = panel.with_origin([0, 3, None])
        assert moved is not None
        assert moved.speaks_for == (1, REST, REST)
        rows = torch.randn(20, sum(GROUPS.values()))
        assert torch.equal(moved.marginals(rows), panel.marginals(rows))
        assert panel.with_origin([0, 2]) is None

    def test_it_is_saved_with_what_it_remembers(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = SegmentationModel(ModelConfig(classes=class_table(["a", "b", "c", "d"])))
        panel = partial_panel(4, (3, REST))
        rows = torch.randn(7, sum(GROUPS.values()))
        panel.memory = Memory.of(rows, torch.arange(7) % 2, torch.ones(7))
        model = model.with_panel(panel)
        model.save(tmp_path / "model.safetensors")
        loaded = load_model(tmp_path / "model.safetensors")
        image = torch.rand(1, 3, 40, 50) * 255
        assert torch.equal(model.logits(image), loaded.logits(image))
        assert loaded.panel is not None
        assert loaded.panel.speaks_for == (3, REST)
        assert torch.equal(loaded.panel.memory.rows, rows.half().float())
        assert loaded.panel.memory.column.tolist() == [0, 1, 0, 1, 0, 1, 0]


def segment(model: SegmentationModel, image: NDArray[np.generic]) -> NDArray[np.uint8]:
    segmenter = Segmenter(model)
    segmenter.set_image(image)
    return segmenter.predict().labels


class TestRounds:
    def test_a_new_class_with_one_stroke_leaves_the_old_ones_alone(
        self, starter: SegmentationModel, tmp_path: Path
    ) -> None:
        image, paper = data.coins()[:160, :160], np.ascontiguousarray(data.page()[:160, :160])
        labels = np.full(image.shape, 255, np.uint8)
        labels[30:70, 35:60] = 1
        labels[45:75, 95:120] = 1
        labels[2:8, 10:125] = 0
        labels[90:100, 4:125] = 0
        with Project.create(tmp_path / "project", ["background", "coin"]) as project:
            project.add(image, labels=labels)
            first: TrainReport = fine_tune(starter, project, QUICK)
            before = segment(first.model, image)
            project.set_classes(["background", "coin", "paper"])
            strokes = np.full(paper.shape, 255, np.uint8)
            strokes[70:74, 20:120] = 2
            project.add(paper, labels=strokes)
            second: TrainReport = fine_tune(first.model, project, QUICK)
        after = segment(second.model, image)
        assert (before == after).mean() > 0.97
        assert (after == 2).mean() < 0.01
        assert (segment(second.model, paper) == 2).mean() > 0.5

    def test_a_class_beside_those_of_the_starter_is_learnt_from_a_few_strokes(
        self, starter: SegmentationModel, tmp_path: Path
    ) -> None:
        image, cat = data.coins()[:160, :160], np.ascontiguousarray(data.chelsea()[::2, ::2])
        labels = np.full(image.shape, 255, np.uint8)
        labels[30:70, 35:60] = 21
        labels[45:75, 95:120] = 21
        classes = [*starter.classes, "coin"]
        with Project.create(tmp_path / "project", classes) as project:
            project.add(image, labels=labels)  # nobody has to paint background where it is background
            model = fine_tune(starter, project, QUICK).model
        seen, is_coin = segment(model, image), image > 115
        assert (is_coin & (seen == 21)).sum() > 0.5 * (is_coin | (seen == 21)).sum()
        assert (segment(model, cat) == segment(starter, cat)).mean() > 0.98
        assert all(
            torch.equal(value, model.network.state_dict()[name])
            for name, value in starter.with_classes(classes).network.state_dict().items()
        )

    @pytest.mark.parametrize("beside_a_new_class", [True, False])
    def test_known_classes_are_corrected_and_others_not_forgotten(
        self, starter: SegmentationModel, tmp_path: Path, beside_a_new_class: bool
    ) -> None:
        path = Path(data.__file__).parent / "motorcycle_left.png"
        with Image.open(path) as whole:
            photograph = np.asarray(whole.convert("RGB").resize((247, 166)))
        coins, cat = data.coins()[:160, :160], np.ascontiguousarray(data.chelsea()[::2, ::2])
        motorbike, bicycle = 14, 2
        was = segment(starter, photograph) == motorbike
        assert was.mean() > 0.15
        labels = np.full(was.shape, 255, np.uint8)
        row = np.indices(was.shape)[0]
        labels[was & (row % 12 < 3)] = bicycle  # as somebody might see it
        labels[~was & (row % 40 < 3)] = 0
        coin = np.full(coins.shape, 255, np.uint8)
        coin[30:70, 35:60] = 21
        with Project.create(tmp_path / "project", [*starter.classes, "coin"]) as project:
            project.add(photograph, labels=labels)
            if beside_a_new_class:
                project.add(coins, labels=coin)
            report = fine_tune(starter, project, TrainConfig(seconds=None, max_iterations=100))
        seen = segment(report.model, photograph)
        assert (seen[was] == bicycle).mean() > 0.8
        assert (seen[~was] == bicycle).mean() < 0.1
        assert ((segment(report.model, coins) == 21).mean() > 0.05) == beside_a_new_class
        # A photograph that is replayed, at another size (0.82 to 0.87 without); TestTenRounds has others.
        assert (segment(report.model, cat) == segment(starter, cat)).mean() > 0.95
        assert not any("still seen otherwise" in note for note in report.notes)

    def test_small_things_are_learnt_in_a_large_image(
        self,
        starter: SegmentationModel,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        small_forests: None,
    ) -> None:
        random, side = np.random.default_rng(0), 1300
        middles = np.zeros((side, side), bool)
        middles[random.integers(0, side, 1300), random.integers(0, side, 1300)] = True
        truth = ndimage.distance_transform_edt(~middles) < 5  # spots ten pixels wide
        image = (random.normal(90, 12, truth.shape) + 60 * truth).clip(0, 255).astype(np.uint8)
        corner = np.full(truth.shape, 255, np.uint8)
        corner[8:200, 8:200] = truth[8:200, 8:200]
        corner[:, ::3] = corner[::3] = 255  # not a whole mask
        read: list[tuple[int, int, int, int]] = []

        def maps(*arguments: Any) -> FeatureMaps:
            made = FeatureMaps(*arguments)
            read.append(made.grid.box)
            return made

        monkeypatch.setattr(panel_round, "FeatureMaps", maps)
        with Project.create(tmp_path / "project", ["ground", "spot"]) as project:
            project.add(image, labels=corner)
            report = fine_tune(starter, project, QUICK)
        assert read == [(0, 0, 778, 778)]  # the other parts hold no labels
        asked: list[int] = []

        def count(done: int, total: int) -> None:
            asked.append(total)

        segmenter = Segmenter(report.model)
        segmenter.set_image(image)
        seen = segmenter.predict(progress=count).labels == 1
        assert (seen & truth).sum() > 0.8 * (seen | truth).sum()
        assert set(asked) == {4 + 1 + report.model.crf.config.n_iterations}

    def test_what_another_project_taught_is_not_forgotten(
        self, starter: SegmentationModel, tmp_path: Path
    ) -> None:
        image, paper = data.coins()[:160, :160], np.ascontiguousarray(data.page()[:160, :160])
        labels = np.full(image.shape, 255, np.uint8)
        labels[30:70, 35:60] = 1
        labels[45:75, 95:120] = 1
        labels[2:8, 10:125] = 0
        labels[90:100, 4:125] = 0
        with Project.create(tmp_path / "coins", ["background", "coin"]) as project:
            project.add(image, labels=labels)
            first = fine_tune(starter, project, QUICK).model
        strokes = np.full(paper.shape, 255, np.uint8)
        strokes[70:74, 20:120] = 2
        with Project.create(tmp_path / "papers", ["background", "coin", "paper"]) as project:
            project.add(paper, labels=strokes)
            second = fine_tune(first, project, QUICK).model
            third = fine_tune(second, project, QUICK).model
        before = segment(first, image)
        assert (segment(second, image) == before).mean() > 0.9
        assert (segment(third, image) == before).mean() > 0.9
        assert (segment(third, paper) == 2).mean() > 0.5


def read_pair(folder: Path, name: str, side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return an image and its mask, shrunk to a longer side."""
    (path,) = (folder / "images").glob(f"{name}.*")
    image, mask = Image.open(path).convert("RGB"), Image.open(folder / "masks" / f"{name}.png")
    size = [round(length * side / max(image.size)) for length in image.size]
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)), np.asarray(
        mask.resize(size, Image.Resampling.NEAREST)
    )


def strokes_in(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a stroke along the deepest line of the largest region of each class."""
    labels = np.full(mask.shape, 255, np.uint8)
    for value in np.unique(mask[mask != 255]):
        depth = ndimage.distance_transform_edt(np.pad(mask == value, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        line, _ = ndimage.label(mask[row] == value)
        inside = np.flatnonzero((line == line[column]) & (np.abs(np.arange(len(line)) - column) < 40))
        for y in range(max(0, row - 1), min(len(mask), row + 2)):
            labels[y, inside[mask[y, inside] == value]] = value
    return labels


class TestPaintedAlone:
    def test_what_nobody_painted_over_is_found_where_it_looks_the_same(
        self, starter: SegmentationModel, shared_dir: Path, tmp_path: Path
    ) -> None:
        folder, nucleus = shared_dir / "data" / "histo_gbm40", 21
        image, mask = read_pair(folder, (folder / "train.txt").read_text().split()[0], 256)
        is_nucleus = mask == 1
        labels = np.full(mask.shape, 255, np.uint8)
        regions, _ = ndimage.label(is_nucleus)
        for region in np.argsort(-np.bincount(regions.ravel())[1:])[:3] + 1:
            labels[strokes_in(np.where(regions == region, 0, 255).astype(np.uint8)) == 0] = nucleus
        assert (labels == nucleus).sum() < 0.1 * is_nucleus.sum()
        with Project.create(tmp_path / "project", [*starter.classes, "nucleus"]) as project:
            project.add(image, labels=labels)
            model = fine_tune(starter, project, TrainConfig(seconds=None)).model
        seen = segment(model, image) == nucleus
        assert (seen & is_nucleus).sum() > 0.4 * (seen | is_nucleus).sum()


@pytest.mark.usefixtures("small_forests")
class TestTenRounds:
    def test_old_classes_stay_while_new_ones_are_learnt(
        self, starter: SegmentationModel, shared_dir: Path, tmp_path: Path
    ) -> None:
        old, plants = shared_dir / "data" / "voc_coco128", shared_dir / "data" / "peanut_plants"
        photographs = [read_pair(old, name, 192) for name in (old / "val.txt").read_text().split()[:6]]
        table = np.full(256, 255, np.uint8)
        table[:3] = 0, 21, 22  # soil, crop, weed
        coins, coin = data.coins()[:160, :160], 23
        coin_strokes = np.full(coins.shape, 255, np.uint8)
        coin_strokes[30:70, 35:60] = coin
        coin_strokes[45:75, 95:120] = coin

        def old_iou(model: SegmentationModel) -> float:
            counts = np.zeros((24, 24), np.int64)
            for image, mask in photographs:
                counts += metrics.confusion(segment(model, image), mask, 24)
            there = counts.sum(1) > 0
            return float(metrics.iou(counts)[there].mean())

        config = TrainConfig(seconds=None, max_iterations=30)
        model, before = starter, old_iou(starter)
        names = (plants / "train.txt").read_text().split()
        with Project.create(tmp_path / "project", [*starter.classes, "crop", "weed"]) as project:
            for number in range(10):
                if number == 6:
                    project.set_classes([*project.classes, "coin"])
                    project.add(coins, labels=coin_strokes)
                else:
                    image, mask = read_pair(plants, names[number], 128)
                    project.add(image, labels=strokes_in(table[mask]))
                model = fine_tune(model, project, config).model
        assert old_iou(model) > before - 0.01
        counts = np.zeros((24, 24), np.int64)
        for name in (plants / "val.txt").read_text().split()[:2]:
            image, mask = read_pair(plants, name, 128)
            counts += metrics.confusion(segment(model, image), table[mask], 24)
        assert metrics.iou(counts)[21] > 0.4
        seen, is_coin = segment(model, coins) == coin, coins > 115
        assert (is_coin & seen).sum() > 0.3 * (is_coin | seen).sum()


def waves(side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return noise of one brightness in which only the length of waves tells left and right apart."""
    y, x = np.mgrid[:side, :side]
    mask = (x >= side // 2).astype(np.uint8)
    wave = np.where(mask == 1, np.sin(y / 1.2), np.sin(y / 4))
    noise = np.random.default_rng(0).normal(0, 15, mask.shape)
    return (120 + 60 * wave + noise).clip(0, 255).astype(np.uint8), mask


class TestHeads:
    def test_whole_masks_teach_a_head_and_strokes_do_not(
        self, starter: SegmentationModel, tmp_path: Path
    ) -> None:
        image, mask = waves(128)
        strokes = np.full_like(mask, 255)
        strokes[40:44, 10:54] = 0
        strokes[40:44, 74:118] = 1
        config = QUICK.model_copy(update={"max_iterations": 100})
        reports = []
        for name, labels in (("whole", mask), ("whole again", mask), ("strokes", strokes)):
            with Project.create(tmp_path / name, ["long", "short"]) as project:
                project.add(image, labels=labels)
                reports.append(fine_tune(starter, project, config))
        whole, again, few = (report.model for report in reports)
        assert whole.panel is not None
        assert again.panel is not None
        assert few.panel is not None
        assert len(whole.panel.heads) == 1
        assert not len(few.panel.heads)
        assert any(step.locked_miou is not None for step in reports[0].history)
        for name, value in whole.panel.state_dict().items():
            assert torch.equal(value, again.panel.state_dict()[name]), name
        (head,) = whole.panel.heads
        assert isinstance(head, Head)
        seen = starter.preprocess(torch.from_numpy(image.T.copy()).float()[None, None])
        maps = FeatureMaps(starter.network, seen, image.shape)
        y, x = (axis.ravel() for axis in np.mgrid[16:112:4, 16:112:4])
        given = head.marginals(maps, y, x).argmax(1).numpy()
        assert (given == mask.T[y, x]).mean() > 0.8

    def test_windows_hold_labels_and_are_the_same_for_the_same_seed(self, starter: SegmentationModel) -> None:
        image, mask = waves(300)
        training = np.full_like(mask, 255)
        training[200:210, 20:40] = 1
        training[40:45, 270:290] = 0
        nothing = np.full_like(mask, 255)
        pixels = torch.from_numpy(image).float()[None, None]
        plane = LabelledPlane(1, (), pixels, training, nothing, np.zeros(mask.shape, bool))
        drawn = draw_windows(starter, [plane], range(6), [3], None, lambda: False)
        some = draw_windows(starter, [plane], range(1, 6, 2), [3], None, lambda: False)
        assert list(drawn) == list(range(6))
        assert list(some) == [1, 3, 5]
        for number, other in some.items():
            one = drawn[number]
            assert torch.equal(one.labels, other.labels)
            assert all(torch.equal(a, b) for a, b in zip(one.features, other.features, strict=True))
        for one in drawn.values():
            assert max(one.labels.shape) <= 257
            assert (one.labels >= 0).any()
            assert set(one.labels.unique().tolist()) <= {-1, 0, 1}
            height, width = one.labels.shape
            assert one.features[0].shape[-2:] == (-(-height // 32) * 16, -(-width // 32) * 16)
        assert list(draw_windows(starter, [plane], range(6), [3], None, lambda: True)) == [0]

    def test_what_has_an_up_is_known_by_its_labels(self) -> None:
        y, x = np.mgrid[:64, :64]
        scene = np.where(y < 30, 0, np.where(x < 20, 1, 2)).astype(np.uint8)
        assert are_upright([scene, scene[:, ::-1]])
        assert not are_upright([scene.T])
        assert not are_upright([scene, scene[::-1]])
        assert not are_upright([np.zeros_like(scene), np.full_like(scene, 255)])
