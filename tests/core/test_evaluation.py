from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from napari_crfasrnn import metrics
from napari_crfasrnn.classes import class_table
from napari_crfasrnn.cli import app
from napari_crfasrnn.config import ModelConfig
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.segmenter import Segmenter
from napari_crfasrnn.training import Score, evaluate, open_data_set
from napari_crfasrnn.training.evaluation import judge

NAMES = ("background", "coin", "rim")


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    torch.manual_seed(0)
    base = SegmentationModel(ModelConfig(architecture="fcn-8s", width=0.02, classes=class_table(NAMES)))
    with torch.no_grad():
        for score in base.network.score_layers:
            score.weight *= 100  # so that the classes compete
    return base


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    for name in ("images", "masks"):
        (path / name).mkdir()
    coins = data.coins()
    for number in range(3):
        part = coins[20 * number :, 40 * number :][: 60 + number, :80]  # sizes differ
        truth = np.where(part > 120, 1, 0).astype(np.uint8)
        truth[:, 30:33] = 2
        truth[:4] = 255
        Image.fromarray(part).save(path / "images" / f"n{number}.png")
        Image.fromarray(truth).save(path / "masks" / f"n{number}.png")
    (path / "classes.txt").write_text("\n".join(NAMES))
    (path / "train.txt").write_text("n0")
    (path / "val.txt").write_text("n1\nn2")
    return path


def test_scores_agree_with_torchmetrics():
    classification = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(3)
    n_labels = 5
    score = Score.nothing(n_labels)
    given, truth = [], []
    for _ in range(4):
        size = tuple(rng.integers(8, 40, 2))
        labels = rng.integers(0, n_labels, size).astype(np.uint8)
        said = np.where(rng.random(size) < 0.6, labels, rng.integers(0, n_labels, size)).astype(np.uint8)
        labels[rng.random(size) < 0.1] = 255
        score += Score.of(said, labels, n_labels)
        given.append(said.reshape(-1))
        truth.append(labels.reshape(-1))
    pred, target = (torch.from_numpy(np.concatenate(x).astype(np.int64)) for x in (given, truth))
    ours = score.summary()
    told = {
        "mean IoU": classification.multiclass_jaccard_index(pred, target, n_labels, ignore_index=255),
        "frequency-weighted IoU": classification.multiclass_jaccard_index(
            pred, target, n_labels, average="weighted", ignore_index=255
        ),
        "pixel accuracy": classification.multiclass_accuracy(
            pred, target, n_labels, average="micro", ignore_index=255
        ),
        "mean accuracy": classification.multiclass_accuracy(pred, target, n_labels, ignore_index=255),
    }
    for name, value in told.items():
        assert ours[name] == pytest.approx(float(value), rel=1e-6), name
    per_class = classification.multiclass_jaccard_index(
        pred, target, n_labels, average=None, ignore_index=255
    )
    np.testing.assert_allclose(score.iou(), per_class.numpy(), rtol=1e-6)
    assert np.isnan(Score.nothing(n_labels).summary()["mean IoU"])


def test_band_and_rims_of_images_add_up():
    rng = np.random.default_rng(1)
    truths = rng.integers(0, 3, (2, 5, 6)).astype(np.uint8).repeat(6, 1).repeat(6, 2)
    saids = np.roll(truths, 2, axis=2)
    score = Score.of(saids[0], truths[0], 3) + Score.of(saids[1], truths[1], 3)
    np.testing.assert_allclose(score.band_iou(), metrics.band_iou(saids, truths, 3, 5))
    np.testing.assert_allclose(score.boundary_iou(), metrics.boundary_iou(saids, truths, 3))


def test_evaluate_is_what_the_model_says(model, folder):
    images = open_data_set(folder)
    result = evaluate(model, images)
    assert result.n_images == 2
    before = np.zeros((3, 3), np.int64)
    after = np.zeros((3, 3), np.int64)
    for one in images.val:
        image, truth = images.load(one)
        x = torch.from_numpy(image)[None]
        with torch.no_grad():
            logits = model.logits(x)
            refined = model.crf(logits, model.crf_image(x))
        before += metrics.confusion(logits[0].argmax(0).numpy(), truth, 3)
        after += metrics.confusion(refined[0].argmax(0).numpy(), truth, 3)
    np.testing.assert_array_equal(result.before.confusion, before)
    np.testing.assert_array_equal(result.after.confusion, after)
    assert (before != after).any()


def test_a_model_in_the_frame_of_a_demo_is_judged_there(model, folder):
    framed = model.with_frame("caffe")
    images = open_data_set(folder)
    segmenter = Segmenter(framed, "cpu")
    for judged in judge(framed, images, images.val[:1]):
        segmenter.set_image(judged.image[0].astype(np.uint8))
        said = segmenter.predict()
        np.testing.assert_array_equal(judged.after, said.labels)
        np.testing.assert_array_equal(judged.before, said.before_crf)


@pytest.mark.parametrize("n_channels", [12, 20])
def test_images_of_many_channels_are_judged_as_they_are_segmented(model, tmp_path, n_channels):
    rng = np.random.default_rng(n_channels)
    pixels = rng.integers(0, 256, (n_channels, 40, 44), dtype=np.uint8)
    pixels[:, 10:30, 10:30] //= 3
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    tifffile.imwrite(
        tmp_path / "images" / "a.ome.tif", pixels, metadata={"axes": "CYX"}, photometric="minisblack"
    )
    Image.fromarray((pixels.mean(0) < 90).astype(np.uint8)).save(tmp_path / "masks" / "a.ome.png")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    (tmp_path / "val.txt").write_text("a.ome")
    images = open_data_set(tmp_path)
    segmenter = Segmenter(model, "cpu")
    segmenter.set_image(pixels, axes="CYX")
    (judged,) = judge(model, images, images.val)
    assert judged.image.shape[0] == n_channels
    np.testing.assert_array_equal(judged.after, segmenter.predict().labels)
    assert (judged.after != judged.before).any()


def test_masks_without_labels_measure_nothing(model, folder, tmp_path):
    model.save(tmp_path / "m.safetensors")
    bare = shutil.copytree(folder, tmp_path / "bare")
    for path in (bare / "masks").iterdir():
        with Image.open(path) as mask:
            nothing = np.full(mask.size[::-1], 255, np.uint8)
        Image.fromarray(nothing).save(path)
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "m.safetensors"), "--data", str(bare)])
    assert done.exit_code == 2
    assert "only unlabelled ones" in " ".join(done.stderr.split())


def test_the_command_prints_draws_and_writes(model, folder, tmp_path):
    model.save(tmp_path / "m.safetensors")
    common = ["evaluate", str(tmp_path / "m.safetensors"), "--data", str(folder)]
    figure, errors = tmp_path / "c.png", tmp_path / "errors"
    done = CliRunner().invoke(app, [*common, "--picture", str(figure), "--errors", str(errors)])
    assert done.exit_code == 0, done.output
    assert "| coin |" in done.stdout
    assert "| mean boundary IoU |" in done.stdout
    assert np.asarray(Image.open(figure)).std() > 0
    shown = np.asarray(Image.open(errors / "n1_errors.png"))
    assert shown.shape == (61, 4 * 80, 3)
    assert (shown[0, 3 * 80 :] == 128).all()  # unlabelled rows are grey

    done = CliRunner().invoke(app, [*common, "--json", "--split", "all"])
    said = json.loads(done.stdout)
    expected = evaluate(
        model, open_data_set(folder), [*open_data_set(folder).train, *open_data_set(folder).val]
    )
    assert said == json.loads(json.dumps(expected.as_dict()))
    assert said["images"] == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["starter", "--data", "FOLDER"], "same classes in the same order, got 21 and 3"),
        (["no-such-model", "--data", "FOLDER"], "the names are"),
        (["MODEL", "--data", "nowhere"], "none at nowhere"),
        (["MODEL", "--data", "FOLDER", "--split", "test"], "--split must be"),
        (["MODEL", "--data", "FOLDER", "--classes", "coin,euro"], "got 'euro'"),
        (["MODEL", "--data", "FOLDER", "--classes", "coin", "--others", "x"], "--others must be"),
        (["MODEL", "--data", "FOLDER", "--classes", "rim,coin"], "value 1 is 'coin' and 'rim'"),
        (["MODEL", "--data", "FOLDER", "--picture", "c.jpg"], r".png file, got 'c.jpg'"),
    ],
)
def test_bad_input_is_one_sentence(model, folder, tmp_path, options, says):
    model.save(tmp_path / "m.safetensors")
    places = {"FOLDER": str(folder), "MODEL": str(tmp_path / "m.safetensors")}
    done = CliRunner().invoke(app, ["evaluate", *(places.get(option, option) for option in options)])
    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: ")
