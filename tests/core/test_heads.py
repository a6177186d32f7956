"""The small models beside the starter, and the tools that make them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from napari_crfasrnn.checkpoint import read_info
from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.metrics import confusion, iou
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.project import Project
from napari_crfasrnn.samples import tissue
from napari_crfasrnn.segmenter import Segmenter
from napari_crfasrnn.training import fine_tune
from napari_crfasrnn.zoo import list_models, load_model

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAMES = ("em-tissue", "nuclei-fluorescence", "nuclei-stained", "road-scenes")
# Mean IoU with CRF on the first validation images that must be kept; measured minus a margin.
FLOORS = {"em-tissue": 0.65, "nuclei-fluorescence": 0.68, "nuclei-stained": 0.85, "road-scenes": 0.63}
N_IMAGES = 3


def segment(model: SegmentationModel, pixels: np.ndarray) -> np.ndarray:
    segmenter = Segmenter(model, device="cpu")
    segmenter.set_image(pixels)
    return np.asarray(segmenter.predict().labels)


def discs(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a fluorescence micrograph of blurred, noisy discs, 8 bits, and where they are."""
    y, x = np.mgrid[:200, :240]
    inside = np.zeros((200, 240), bool)
    for cy, cx in ((40, 50), (60, 150), (120, 90), (150, 200), (100, 30), (165, 45), (35, 210)):
        a, b = rng.uniform(9, 15, 2)
        inside |= ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1
    signal = ndimage.gaussian_filter(inside * rng.uniform(0.8, 1.2, inside.shape), 1.2)
    return np.clip(12 + 40 * signal + rng.normal(0, 1.5, inside.shape), 0, 255).astype(np.uint8), inside


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found & truth).sum() / (found | truth).sum())


@pytest.mark.parametrize("name", NAMES)
def test_file_is_small_and_says_its_terms(name: str) -> None:
    entry = next(entry for entry in list_models() if entry.name == name)
    assert entry.shipped
    assert entry.problem is None
    assert entry.path.stat().st_size < 1_000_000
    assert entry.title != name
    model = load_model(name)
    assert model.provenance["licence"] == entry.licence
    assert "Apache-2.0" in entry.licence
    assert entry.class_names == tuple(spec.name for spec in model.classes)
    terms = (files("napari_crfasrnn") / "data" / "HEADS_LICENSE.md").read_text(encoding="utf-8")
    assert f"`{name}.safetensors`" in terms
    assert all(source.split(",")[0].split(" (")[0] in terms for source in model.provenance["sources"])


@pytest.mark.parametrize("name", NAMES)
def test_encoder_is_the_one_of_the_starter(name: str) -> None:
    shared = read_info(next(e.path for e in list_models() if e.name == name)).shared_encoder
    assert shared is not None
    assert shared["blocks"] == 11
    ours = load_model(name).network.encoder.state_dict()
    theirs = load_model("starter").network.encoder.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


class TestNucleiInFluorescence:
    def test_bright_discs_are_nuclei(self) -> None:
        pixels, inside = discs(np.random.default_rng(0))
        labels = segment(load_model("nuclei-fluorescence"), pixels)
        assert overlap(labels > 0, inside) > 0.75

    def test_brightness_and_storage_do_not_matter(self) -> None:
        pixels, _ = discs(np.random.default_rng(1))
        model = load_model("nuclei-fluorescence")
        labels = segment(model, pixels)
        assert (segment(model, pixels * 3) == labels).mean() > 0.99
        assert (segment(model, np.repeat(pixels[..., None], 3, -1)) == labels).all()

    def test_nothing_is_found_where_nothing_is(self) -> None:
        noise = np.random.default_rng(0).normal(12, 1.5, (160, 160)).clip(0, 255).astype(np.uint8)
        assert (segment(load_model("nuclei-fluorescence"), noise) == 0).mean() > 0.95

    @pytest.mark.parametrize(("value", "places"), [(0, [(40, 50)]), (1, [(20, 100), (190, 120)])])
    def test_a_few_corrections_do_not_cost_what_it_knew(
        self, value: int, places: list[tuple[int, int]], tmp_path: Path
    ) -> None:
        # Of a disc that is none, and of two in the dark: neither is to say what all the others are.
        model = load_model("nuclei-fluorescence")
        (image, _), (other, inside) = (discs(np.random.default_rng(seed)) for seed in (0, 5))
        labels = np.full(image.shape, 255, np.uint8)
        for y, x in places:
            labels[y - 4 : y + 4, x - 4 : x + 4] = value
        with Project.create(tmp_path / "project", model.classes) as project:
            project.add(image, labels=labels)
            report = fine_tune(model, project, TrainConfig(seconds=None))
        assert (segment(report.model, image) == value)[labels != 255].mean() > 0.3  # something is learnt
        assert overlap(segment(report.model, other) > 0, inside) > 0.9
        assert not report.crf_learnt


def test_purple_discs_in_pink_tissue_are_nuclei() -> None:
    rng = np.random.default_rng(0)
    _, inside = discs(rng)
    noise = ndimage.gaussian_filter(rng.normal(0, 60, (*inside.shape, 3)), (2, 2, 0))
    pixels = np.where(inside[..., None], (110, 75, 140), (220, 175, 205)) + noise
    pixels = ndimage.gaussian_filter(pixels, (1, 1, 0)).clip(0, 255).astype(np.uint8)
    labels = segment(load_model("nuclei-stained"), pixels)
    assert overlap(labels > 0, inside) > 0.6


def test_membranes_are_dark_lines_between_cells() -> None:
    rng = np.random.default_rng(0)
    seeds = rng.uniform(0, 256, (24, 2))
    at = np.stack(np.mgrid[:256, :256], -1)
    nearest = np.sort(np.linalg.norm(at[:, :, None] - seeds, axis=-1), axis=-1)
    line = nearest[..., 1] - nearest[..., 0] < 5
    pixels = np.where(line, 60.0, 170.0) + ndimage.gaussian_filter(rng.normal(0, 40, line.shape), 1.5)
    model = load_model("em-tissue")
    names = [spec.name for spec in model.classes]
    labels = segment(model, ndimage.gaussian_filter(pixels, 1).clip(0, 255).astype(np.uint8))
    membrane, cell = labels == names.index("membrane"), labels == names.index("intracellular")
    assert membrane[line].mean() > 0.5 > 0.3 > membrane[~line].mean()
    assert cell[~line].mean() > 0.5


def test_a_road_lies_below_the_sky() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:360, :480]
    pixels = np.full((360, 480, 3), (105, 95, 90), float)  # houses
    pixels[y < 130 - 0.25 * np.abs(x - 240)] = (225, 235, 245)
    pixels[y > 210 + 0.1 * np.abs(x - 240)] = (88, 88, 92)
    pixels += rng.normal(0, 4, pixels.shape)
    model = load_model("road-scenes")
    labels = segment(model, pixels.clip(0, 255).astype(np.uint8))
    names = [spec.name for spec in model.classes]
    assert (labels[:60, 200:280] == names.index("sky")).mean() > 0.8
    road = labels == names.index("road")
    assert road[240:300].mean() > 0.7
    assert road[:60].mean() < 0.02


def test_a_small_model_learns_from_corrections(tmp_path: Path) -> None:
    """Somebody who wants only the two left discs says so, and its head follows."""
    pixels, inside = discs(np.random.default_rng(3))
    wanted = inside & (np.arange(inside.shape[1]) < 120)
    model = load_model("nuclei-fluorescence")
    settings = TrainConfig(seconds=None, max_iterations=60, crf_iterations=2, locked_share=0.0)
    with Project.create(tmp_path / "project", model.classes) as project:
        project.add(pixels, labels=wanted.astype(np.uint8))
        report = fine_tune(model, project, settings)
    before, after = (overlap(segment(m, pixels) > 0, wanted) for m in (model, report.model))
    assert after > before + 0.1
    again = tmp_path / "taught.safetensors"
    report.model.save(again)
    assert (segment(load_model(again), pixels) == segment(report.model, pixels)).all()


def test_tissue_is_drawn_in_other_stains(tools: Path) -> None:
    stains = import_module("stains")
    image = np.moveaxis(tissue()[:64, :80].astype(np.float32), -1, 0)
    lengths = np.linalg.norm(stains.rgb_from_hed, axis=1, keepdims=True)
    same = stains._drawn(image, np.ones(3), stains.rgb_from_hed / lengths)
    np.testing.assert_allclose(same, image, atol=1.5)  # of 255: scikit-image's inverse has few digits
    first, again, other = (stains.restained(image, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 5
    for drawn in (first, other, stains.as_dab(image)):
        assert drawn.shape == image.shape
        assert drawn.dtype == np.float32
        assert 0 <= drawn.min() <= drawn.max() <= 255
    np.testing.assert_allclose(stains.as_dab(np.full((3, 4, 4), 255, np.float32)), 255)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of tools on the import path; its modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(TOOLS))
    yield TOOLS
    for name in set(sys.modules) - before:
        if "starter" in name or "heads" in name or name == "stains":
            del sys.modules[name]


@pytest.mark.parametrize("name", NAMES)
def test_validation_images_are_labelled_as_well_as_the_card_says(
    tools: Path, shared_dir: Path, name: str
) -> None:
    import heads_data

    recipe = heads_data.RECIPES[name]
    images = heads_data.read_images(shared_dir / "data", recipe, "val")[:: 50 // N_IMAGES][:N_IMAGES]
    model = load_model(name)
    counts = sum(
        confusion(segment(model, np.asarray(image.image())), image.mask(), model.n_labels, 255)
        for image in images
    )
    present = counts.sum(1) > 0
    assert iou(counts)[present].mean() > FLOORS[name]


def make_data(folder: Path) -> Path:
    """Write a set of the layout of dsb2018_fluo: discs on noise."""
    root = folder / "dsb2018_fluo"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    names = [f"p{i}" for i in range(12)]
    (root / "classes.txt").write_text("background\nnucleus\nborder\n")
    (root / "train.txt").write_text("\n".join(names[:10]))
    (root / "val.txt").write_text("\n".join(names[10:]))
    for seed, name in enumerate(names):
        pixels, inside = discs(np.random.default_rng(seed))
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        Image.fromarray(inside.astype(np.uint8)).save(root / "masks" / f"{name}.png")
    return folder


class TestTools:
    def test_validation_images_are_never_trained_on(self, tools: Path, shared_dir: Path) -> None:
        import heads_data

        for recipe in heads_data.RECIPES.values():
            train, val = (
                {image.key for image in heads_data.read_images(shared_dir / "data", recipe, split)}
                for split in ("train", "val")
            )
            assert train
            assert val
            assert not train & val
            held = {key for key in train if recipe.held_out(key.split("/")[1])}
            assert 0.1 < len(held) / len(train) < 0.3

    def test_the_whole_recipe_learns(
        self, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The command from end to end on a few discs, in few iterations."""
        import starter_crf
        import train_heads

        for constant, value in {"ITERATIONS": 2, "CROP": 40, "BILATERAL_WEIGHTS": (2.0,)}.items():
            monkeypatch.setattr(starter_crf, constant, value)
        data = make_data(tmp_path / "data")
        options = ["-o", str(tmp_path), "--iterations", "25"]
        command = ["train_heads.py", str(data), "nuclei-fluorescence", *options]
        monkeypatch.setattr(sys, "argv", command)
        train_heads.main()
        path = tmp_path / "nuclei-fluorescence.safetensors"
        assert path.stat().st_size < 1_000_000
        pixels, inside = discs(np.random.default_rng(11))
        assert overlap(segment(load_model(path), pixels) > 0, inside) > 0.5
