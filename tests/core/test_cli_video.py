from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from typer.testing import CliRunner

from napari_crfasrnn.classes import class_table
from napari_crfasrnn.cli import app
from napari_crfasrnn.cli import video as cli_video
from napari_crfasrnn.config import ModelConfig
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.samples import sample
from napari_crfasrnn.segmenter import Segmenter
from napari_crfasrnn.zoo import load_model

N_FRAMES = 3


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    table = class_table(["background", "one", "two"])
    model = SegmentationModel(ModelConfig(architecture="fcn-8s", width=0.02, classes=table))
    with torch.no_grad():
        for score in model.network.score_layers:
            score.weight *= 100  # so that the classes compete
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    model.save(path)
    return path


@pytest.fixture
def video(tmp_path) -> Path:
    """Three frames of a cat moving to the left, 51 by 70 pixels, without loss."""
    av = pytest.importorskip("av")
    path = tmp_path / "in" / "cat.mkv"
    path.parent.mkdir()
    cat = sample("chelsea")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 70, 51, "bgr0"
        for number in range(N_FRAMES):
            frame = np.ascontiguousarray(cat[::4, 8 * number :: 4][:51, :70])
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def run(*arguments: object):
    return CliRunner().invoke(app, ["segment", *(str(argument) for argument in arguments)])


def test_a_video_gives_the_labels_of_its_frames(video, model_file, tmp_path):
    av = pytest.importorskip("av")
    out = tmp_path / "out"
    done = run(video, "-o", out, "-m", model_file, "--overlay", "--json")
    assert done.exit_code == 0, done.output
    (told,) = json.loads(done.stdout)["results"]
    assert told["shape"] == [N_FRAMES, 51, 70]
    assert sum(entry["share"] for entry in told["classes"]) == pytest.approx(1)
    files = sorted((out / "cat_labels").iterdir())
    assert [file.name for file in files] == [f"{number:06d}.png" for number in range(N_FRAMES)]
    segmenter = Segmenter(load_model(model_file))
    cat = sample("chelsea")
    for number, file in enumerate(files):
        with Image.open(file) as image:
            assert image.mode == "P"
            labels = np.asarray(image)
        segmenter.set_image(cat[::4, 8 * number :: 4][:51, :70])
        np.testing.assert_array_equal(labels, segmenter.predict().labels)
    with av.open(str(out / "cat_overlay.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 5
    assert len(frames) == N_FRAMES
    assert frames[0].shape == (50, 70, 3)  # H.264 takes even sides
    assert sorted(path.name for path in out.iterdir()) == ["cat_labels", "cat_overlay.mp4"]


def test_frames_appear_together_instead_of_those_of_an_earlier_run(video, model_file, tmp_path, monkeypatch):
    folder = tmp_path / "out" / "cat_labels"
    folder.mkdir(parents=True)
    for name in ("000000.png", "000007.png", "notes.txt"):
        (folder / name).write_text("earlier")
    written = cli_video.save_labels_png

    def interrupted(path: Path, *what: Any) -> None:
        if path.name == "000001.png":
            raise KeyboardInterrupt
        written(path, *what)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(cli_video, "save_labels_png", interrupted)
        again = run(video, "-o", tmp_path / "out", "-m", model_file, "--overlay", "--overwrite")
        assert again.exit_code == 130
    assert [path.name for path in folder.parent.iterdir()] == ["cat_labels"]
    assert (folder / "000000.png").read_text() == "earlier"
    refused = run(video, "-o", tmp_path / "out", "-m", model_file)
    assert refused.exit_code == 2
    assert "cat_labels would be written over in" in refused.stderr
    assert run(video, "-o", tmp_path / "out", "-m", model_file, "--overwrite").exit_code == 0
    names = [*(f"{number:06d}.png" for number in range(N_FRAMES)), "notes.txt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / "000000.png").read_bytes()[:4] == b"\x89PNG"


def test_frames_are_skipped_only_if_all_of_them_are_there(video, model_file, tmp_path, monkeypatch):
    """The first frame is put into its place last, so a run that was killed meanwhile is seen to be so."""
    common = (video, "-o", tmp_path / "out", "-m", model_file, "--skip-existing")
    moved = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if target.parent.name == "cat_labels" and target.name == "000000.png":
            raise KeyboardInterrupt
        return moved(path, target)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Path, "replace", killed)
        assert run(*common).exit_code == 130
    frames = tmp_path / "out" / "cat_labels"
    assert len(list(frames.iterdir())) == N_FRAMES - 1
    assert run(*common).exit_code == 0
    assert len(list(frames.iterdir())) == N_FRAMES
    (frames / "000001.png").write_text("corrected by hand")
    done = run(*common)
    assert "1 image passed over" in done.stderr
    assert run(*common, "--overlay").exit_code == 0
    assert (tmp_path / "out" / "cat_overlay.mp4").exists()
    assert (frames / "000001.png").read_text() == "corrected by hand"


def test_a_folder_may_hold_videos_and_images(video, model_file, tmp_path):
    Image.fromarray(sample("chelsea")[::6, ::6]).save(video.parent / "still.png")
    done = run(video.parent, "-o", tmp_path / "out", "-m", model_file)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cat_labels", "still_labels.png"]


def test_bad_videos_are_one_sentence(video, model_file, tmp_path, monkeypatch):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    for arguments, says in (
        ((tmp_path / "broken.mp4",), "broken.mp4 cannot be read"),
        ((tmp_path / "nothing.mp4",), "video file not found"),
        ((video, "--entropy"), "--entropy is for images"),
        ((video, "--probabilities"), "--probabilities is for images"),
        ((video, "--axes", "YX"), "--axes is for images"),
    ):
        done = run(*arguments, "-o", tmp_path / "out", "-m", model_file)
        assert done.exit_code == 2
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
    monkeypatch.setitem(sys.modules, "av", None)
    done = run(video, "-o", tmp_path / "out", "-m", model_file)
    assert done.exit_code == 2
    assert 'pip install "napari-crfasrnn[video]"' in done.stderr


def test_probabilities_are_those_of_the_labels(model_file, tmp_path):
    stack = np.stack([sample("chelsea")[::8, ::8, 0], sample("chelsea")[::8, ::8, 1]])
    tifffile.imwrite(tmp_path / "stack.tif", stack, metadata={"axes": "ZYX"})
    done = run(tmp_path / "stack.tif", "-o", tmp_path, "-m", model_file, "--axes", "ZYX", "--probabilities")
    assert done.exit_code == 0, done.output
    with tifffile.TiffFile(tmp_path / "stack_probabilities.tif") as file:
        assert file.series[0].axes == "CZYX"
        values = file.asarray()
    assert values.shape == (3, *stack.shape)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.sum(0), 1, atol=1e-5)
    labels = tifffile.imread(tmp_path / "stack_labels.tif")
    np.testing.assert_array_equal(values.argmax(0), labels)
