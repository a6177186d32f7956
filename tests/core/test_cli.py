from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from typer.testing import CliRunner

from napari_crfasrnn import __version__
from napari_crfasrnn.classes import VOC_CLASSES, class_table
from napari_crfasrnn.cli import app
from napari_crfasrnn.cli.output import overlay, save_labels_png
from napari_crfasrnn.config import ModelConfig
from napari_crfasrnn.imaging import IGNORE_COLOR, read_image
from napari_crfasrnn.lattice import set_num_threads
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.samples import sample
from napari_crfasrnn.segmenter import Segmenter
from napari_crfasrnn.zoo import load_model

COMMAND = [sys.executable, "-c", "from napari_crfasrnn.cli import app; app(prog_name='napari-crfasrnn')"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with a model of random weights: three classes, and one of three hundred."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, n_labels in (("three", 3), ("many", 300)):
        table = class_table(["background", *(f"kind {i}" for i in range(1, n_labels))])
        SegmentationModel(ModelConfig(classes=table)).save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def run(models, monkeypatch):
    monkeypatch.setenv("NAPARI_CRFASRNN_MODELS", str(models))
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts back how many processors are used."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    set_num_threads(0)


@pytest.fixture
def photo(tmp_path) -> Path:
    """A photograph of a cat's face, 60 pixels high."""
    path = tmp_path / "images" / "cat.png"
    path.parent.mkdir()
    Image.fromarray(sample("chelsea")[::5, ::5]).save(path)
    return path


# --------------------------------------------------------------------------------------------- segment


def test_a_photograph_gives_what_the_segmenter_says(run, tmp_path):
    Image.fromarray(sample("chelsea")).save(tmp_path / "cat.png")
    done = run("segment", tmp_path / "cat.png", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "cat_labels.png" in done.stdout
    assert "(cat " in done.stdout  # the largest class comes first
    assert done.stderr == ""

    segmenter = Segmenter(load_model("starter"))
    segmenter.set_image(sample("chelsea"))
    written = Image.open(tmp_path / "out" / "cat_labels.png")
    np.testing.assert_array_equal(np.asarray(written), segmenter.predict().labels)
    assert written.mode == "P"
    palette = np.array(written.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(palette[:21], [spec.color for spec in VOC_CLASSES])
    np.testing.assert_array_equal(palette[255], IGNORE_COLOR)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cat_labels.png"]


def test_without_crf(run, photo, tmp_path):
    run("segment", photo, "-o", tmp_path / "a", "--no-crf")
    run("segment", photo, "-o", tmp_path / "b")
    segmenter = Segmenter(load_model("starter"))
    segmenter.set_image(np.asarray(read_image(photo)))
    alone = np.asarray(Image.open(tmp_path / "a" / "cat_labels.png"))
    np.testing.assert_array_equal(alone, segmenter.predict(crf=False).labels)
    assert (alone != np.asarray(Image.open(tmp_path / "b" / "cat_labels.png"))).any()


def test_json_for_machines(run, photo, tmp_path, threads):
    done = run(
        "segment",
        photo,
        "-o",
        tmp_path / "out",
        "-m",
        "three",
        "--json",
        "--overlay",
        "--entropy",
        "--threads",
        1,
    )
    said = json.loads(done.stdout)
    [result] = said["results"]
    assert (said["model"], said["skipped"]) == ("three", [])
    assert (result["image"], result["axes"], result["shape"]) == (str(photo), "YXC", [60, 91])
    assert [entry["name"] for entry in result["classes"]] == ["background", "kind 1", "kind 2"]
    assert sum(entry["share"] for entry in result["classes"]) == pytest.approx(1)
    assert torch.get_num_threads() == 1
    assert set(result["seconds"]) == {"network", "crf", "total"}
    with Image.open(result["overlay"]) as picture:
        assert picture.size == (91, 60)
    entropy = read_image(result["entropy"]).array
    assert (entropy.shape, entropy.dtype) == ((60, 91), np.float32)
    assert 0 <= entropy.min() <= entropy.max() <= 1


def test_a_stack_gives_a_tiff_with_its_axes_and_voxel_size(run, tmp_path):
    stack = np.stack([sample("chelsea")[::8, ::8, 0].astype(np.uint16) * i for i in (3, 30, 300)])
    tifffile.imwrite(
        tmp_path / "stack.tif",
        stack,
        imagej=True,
        resolution=(4, 4),
        metadata={"axes": "ZYX", "spacing": 2.0, "unit": "um"},
    )
    arguments = ("-o", tmp_path / "out", "-m", "three", "--overlay", "--entropy")
    done = run("segment", tmp_path / "stack.tif", *arguments)
    assert done.exit_code == 0, done.output
    for kind, axes, dtype in (
        ("labels", "ZYX", np.uint8),
        ("entropy", "ZYX", np.float32),
        ("overlay", "ZYXC", np.uint8),
    ):
        read = read_image(tmp_path / "out" / f"stack_{kind}.tif")
        assert (read.axes, read.array.dtype, read.array.shape[:3]) == (axes, dtype, stack.shape)
        assert read.spacing == (2.0, 0.25, 0.25)
    done = run("segment", tmp_path / "stack.tif", *arguments, "--axes", "CYX", "--overwrite")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "stack_labels.png").exists()


def test_more_classes_than_a_palette_holds(run, photo, tmp_path):
    done = run("segment", photo, "-o", tmp_path / "out", "-m", "many")
    assert done.exit_code == 0, done.output
    labels = read_image(tmp_path / "out" / "cat_labels.tif").array
    assert (labels.dtype, labels.shape) == (np.uint16, (60, 91))


def test_a_folder_skips_what_cannot_be_read_and_says_so(run, photo, tmp_path):
    folder = photo.parent
    (folder / "broken.png").write_bytes(photo.read_bytes()[:500])
    (folder / "notes.txt").write_text("no image, and nobody claims it is")
    (folder / ".hidden.png").write_bytes(b"")
    Image.fromarray(sample("chelsea")[:40, :40]).save(folder / "dog.jpg")
    for _ in range(2):  # its own output, in the same folder, is no input the second time
        done = run("segment", folder, "-o", folder, "-m", "three", "--json", "--overlay", "--overwrite")
        assert done.exit_code == 0
        said = json.loads(done.stdout)
        assert [Path(result["image"]).name for result in said["results"]] == ["cat.png", "dog.jpg"]
        assert [Path(skip["image"]).name for skip in said["skipped"]] == ["broken.png"]
        assert done.stderr.count("\n") == 1
        assert "broken.png" in done.stderr


def test_images_of_one_name_get_different_files(run, photo, tmp_path):
    Image.fromarray(sample("chelsea")[:40, :40]).save(photo.with_suffix(".jpg"))
    done = run("segment", photo.parent, "-o", tmp_path / "out", "-m", "three")
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["cat_jpg_labels.png", "cat_png_labels.png"]
    tifffile.imwrite(photo.with_name("cat_png.tif"), sample("chelsea")[:40, :40])
    done = run("segment", photo.parent, "-o", tmp_path / "three", "-m", "three")
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (tmp_path / "three").iterdir())
    assert names == ["cat_jpg_labels.png", "cat_png_labels.png", "cat_png_tif_labels.png"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cat.png").write_bytes(photo.read_bytes())
    done = run("segment", photo, tmp_path / "other" / "cat.png", "-o", tmp_path / "out", "-m", "three")
    assert done.exit_code == 2
    assert "images must differ in name" in done.stderr


def test_labels_that_are_there_are_not_written_over(run, photo, tmp_path):
    """They may be corrected by hand: without being told what to do, the run refuses before any work."""
    corrected = photo.with_name("cat_labels.png")
    corrected.write_bytes(b"corrected by hand")
    Image.fromarray(sample("chelsea")[:40, :40]).save(photo.with_name("dog.jpg"))
    common = ("segment", photo.parent, "-o", photo.parent, "-m", "three")
    for model in ("three", "no such model"):  # which is not even loaded
        done = run(*common, "-m", model)
        assert done.exit_code == 2
        [line] = done.stderr.splitlines()
        assert f"cat_labels.png would be written over in {photo.parent}: --overwrite does so" in line
    assert not photo.with_name("dog_labels.png").exists()

    said = json.loads(run(*common, "--skip-existing", "--json").stdout)
    assert [Path(result["image"]).name for result in said["results"]] == ["dog.jpg"]
    assert said["existing"] == [str(photo)]
    done = run(*common, "--skip-existing", "--overlay")  # what is missing of it is written, and no more
    assert done.exit_code == 0, done.output
    assert photo.with_name("cat_overlay.png").exists()
    assert corrected.read_bytes() == b"corrected by hand"
    done = run(*common, "--skip-existing", "--overlay", "-m", "no such model")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "Note: 2 images passed over, whose output files are there already\n"

    done = run(*common, "--overwrite", "--skip-existing")
    assert done.exit_code == 2
    assert "exclude each other" in done.stderr
    assert run(*common, "--overwrite").exit_code == 0
    assert corrected.read_bytes()[:4] == b"\x89PNG"
    done = run(*common, "--overlay")
    assert "cat_labels.png, cat_overlay.png, dog_labels.png and 1 more would be written" in done.stderr


def test_labels_that_appear_during_a_run_are_not_written_over(run, photo, monkeypatch, tmp_path):
    cli_segment = importlib.import_module("napari_crfasrnn.cli.segment")
    load = cli_segment.new_segmenter

    def meanwhile(*arguments):
        photo.with_name("cat_labels.png").write_bytes(b"drawn by hand")
        return load(*arguments)

    monkeypatch.setattr(cli_segment, "new_segmenter", meanwhile)
    done = run("segment", photo, "-o", photo.parent, "-m", "three")
    assert done.exit_code == 2
    assert photo.with_name("cat_labels.png").read_bytes() == b"drawn by hand"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_run_leaves_nothing_that_skip_existing_trusts(photo, tmp_path, models, run):
    code = (
        "import os; os.fsync = lambda handle: os.kill(os.getpid(), 9);"
        "from napari_crfasrnn.cli import app; app(prog_name='x')"
    )
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", code, "segment", photo, "-o", out, "-m", "three"],
        env={**os.environ, "NAPARI_CRFASRNN_MODELS": str(models)},
        check=False,
    )
    assert done.returncode == -9
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == []
    assert run("segment", photo, "-o", out, "-m", "three", "--skip-existing").exit_code == 0
    assert read_image(out / "cat_labels.png").array.shape == (60, 91, 3)


def test_an_image_given_twice_counts_once(run, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(photo.parent)
    arguments = (photo.name, photo, photo.parent, Path("..") / photo.parent.name / photo.name)
    said = json.loads(run("segment", *arguments, "-o", tmp_path / "out", "-m", "three", "--json").stdout)
    assert [result["image"] for result in said["results"]] == ["cat.png"]


def test_one_bad_entry_does_not_stop_the_others(run, photo, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run("segment", tmp_path / "empty", photo, "-o", tmp_path / "a", "-m", "three", "--json")
    assert done.exit_code == 2  # it was named
    said = json.loads(done.stdout)
    assert [result["image"] for result in said["results"]] == [str(photo)]
    assert [skip["image"] for skip in said["skipped"]] == [str(tmp_path / "empty")]
    assert "got a folder without one" in done.stderr

    (photo.parent / "gone.png").symlink_to("nowhere.png")
    done = run("segment", photo.parent, "-o", tmp_path / "b", "-m", "three")
    assert done.exit_code == 0
    assert "gone.png (a link that leads nowhere)" in done.stderr


def test_an_input_is_never_overwritten(run, photo):
    victim = photo.with_name("cat_labels.png")
    victim.write_bytes(photo.read_bytes())
    before = victim.read_bytes()
    done = run("segment", photo, victim, "-o", photo.parent, "-m", "three")
    assert done.exit_code == 2
    assert "is one of the images and must not be overwritten" in done.stderr
    assert victim.read_bytes() == before
    assert photo.with_name("cat_labels_labels.png").exists()  # the other image was done


def test_values_that_are_no_numbers_are_remarked_on(run, tmp_path):
    image = np.random.default_rng(0).random((40, 50)).astype(np.float32)
    image[:2, :3] = np.nan
    tifffile.imwrite(tmp_path / "holes.tif", image)
    done = run("segment", tmp_path / "holes.tif", "-o", tmp_path / "out", "-m", "three")
    assert done.exit_code == 0
    assert ": 6 values were NaN or infinite" in done.stderr
    stack = np.zeros((17, 8, 9), np.float32)
    stack[:, 0, 0] = np.nan
    tifffile.imwrite(tmp_path / "stack.tif", stack)  # of which 16 planes are looked at
    done = run("segment", tmp_path / "stack.tif", "-o", tmp_path / "out", "-m", "three", "--no-crf")
    assert ": at least 16 values were NaN or infinite" in done.stderr


@pytest.mark.parametrize(
    "error", [MemoryError("std::bad_alloc"), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")]
)
def test_a_lack_of_memory_says_what_to_do(run, photo, tmp_path, monkeypatch, error):
    def predict(*_, **__):
        raise error

    monkeypatch.setattr(Segmenter, "predict", predict)
    done = run("segment", photo, "-o", tmp_path / "out", "-m", "three")
    assert done.exit_code == 2
    assert "not enough memory for an image of this size and so many classes: cut it into parts" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment", "none.png", "-o", "out"], "image file not found: none.png"),
        (["segment", "none.mp4", "-o", "out"], "video file not found: none.mp4"),
        (["segment", "here.png", "-o", "here.png"], "--output must be a folder, got the file here.png"),
        (
            ["evaluate", "starter", "-d", ".", "--errors", "here.png"],
            "--errors must be a folder, got the file",
        ),
        (["train", "-d", ".", "-o", "here.png"], "--output must be a folder, got the file here.png"),
        (["evaluate", "starter", "-d", "none"], "--data must be a folder, but there is none at none"),
        (["train", "-d", "none", "-o", "out"], "--data must be a folder, but there is none at none"),
    ],
)
def test_files_are_checked_before_torch_is_loaded(tmp_path, arguments, message):
    (tmp_path / "here.png").write_bytes(b"")
    code = """
import sys
from napari_crfasrnn.cli import app
try:
    app(sys.argv[1:])
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stdout.strip() == "False"


def test_missing_files_are_in_the_results_for_machines(run, tmp_path):
    missing = tmp_path / "none.png"
    done = run("segment", missing, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 2
    told = json.loads(done.stdout)
    assert told["results"] == []
    assert told["skipped"] == [{"image": str(missing), "reason": f"image file not found: {missing}"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png"], "image file not found: none.png"),
        (["."], "got a folder without one: ."),
        (["text.png"], "image must be a PNG, JPEG"),
        (["nan.tif"], "image must hold at least one finite value"),
        (["cat.png", "--axes", "ZYX"], None),
        (["cat.png", "--axes", "YQC"], "axes must be made of the letters"),
        (
            ["cat.png", "--model", "no-such"],
            "--model must be the name or the file of a model, got 'no-such'; the names are",
        ),
        (["cat.png", "--model", "text.png"], "text.png"),
        (["cat.png", "--device", "abacus"], "device must be 'auto', 'cpu' or 'cuda'"),
        (["cat.png", "--device", "cuda:77"], "device 'cuda:77' is not available"),
        (["cat.png", "-o", "text.png"], "text.png"),
    ],
)
def test_bad_input_is_one_sentence_and_code_two(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    if arguments != ["."]:
        Image.fromarray(sample("chelsea")[:40, :40]).save("cat.png")
        Path("text.png").write_text("not a picture")
        tifffile.imwrite("nan.tif", np.full((9, 9), np.nan, np.float32))
    defaults = [] if "-o" in arguments else ["-o", "out"]
    defaults += [] if "--model" in arguments else ["-m", "three"]
    done = run("segment", *arguments, *defaults)
    if message is None:  # odd, but possible: three columns of 40 rows, 40 times
        assert done.exit_code == 0
        return
    assert done.exit_code == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert message in line


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are a thing of Unix")
def test_a_full_disk_leaves_the_file_that_was_there(photo, tmp_path, models):
    target = tmp_path / "out" / "cat_labels.png"
    target.parent.mkdir()
    target.write_bytes(b"what was there")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50));"
        "from napari_crfasrnn.cli import app; app(prog_name='x')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "segment", photo, "-o", target.parent, "-m", "three", "--overwrite"],
        env={**os.environ, "NAPARI_CRFASRNN_MODELS": str(models)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "too large" in done.stderr
    assert target.read_bytes() == b"what was there"
    assert list(target.parent.iterdir()) == [target]


# ------------------------------------------------------------------------------- the command as a process


def test_the_command_as_a_process(photo, tmp_path, models):
    environment = {**os.environ, "NAPARI_CRFASRNN_MODELS": str(models)}
    done = subprocess.run(
        [*COMMAND, "segment", photo, "-o", tmp_path / "out", "-m", "three"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar where there is no terminal
    assert (tmp_path / "out" / "cat_labels.png").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a thing of Unix")
def test_a_terminal_gets_a_progress_bar(photo, tmp_path, models):
    import pty

    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(ours, 4096):
                shown.append(part)
        except OSError:  # the other side was closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    subprocess.run(
        [*COMMAND, "segment", photo, "-o", tmp_path / "out", "-m", "three"],
        env={**os.environ, "NAPARI_CRFASRNN_MODELS": str(models), "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=True,
    )
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    assert b"Segmenting" in b"".join(shown)


@pytest.mark.parametrize("arguments", [["--help"], ["segment", "--help"], ["--version"]])
def test_help_is_quick(arguments):
    code = (
        "import sys; from napari_crfasrnn.cli import app; app(sys.argv[1:], standalone_mode=False);"
        "print(sorted({'torch', 'numpy', 'napari', 'qtpy', 'skimage', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


# ----------------------------------------------------------------------------------------- info and models


def test_version(run):
    assert run("--version").stdout.strip() == __version__
    module = subprocess.run(
        [sys.executable, "-m", "napari_crfasrnn", "--version"], capture_output=True, text=True, check=True
    )
    assert module.stdout.strip() == __version__


def test_info(run, models):
    facts = json.loads(run("info", "--json").stdout)
    assert facts["versions"]["napari-crfasrnn"] == __version__
    assert torch.__version__.startswith(facts["versions"]["torch"].split("+")[0])
    assert "cpu" in facts["lattice"]["backends"]
    assert facts["folders"]["your models"] == str(models)
    names = [model["name"] for model in facts["models"]]
    assert names[0] == "starter"
    assert "nuclei-stained" in names
    assert names[-2:] == ["many", "three"]  # those of the user come last
    shown = run("info")
    assert shown.exit_code == 0
    for word in ("versions", "lattice", "devices", "folders", "models", "starter", str(models)):
        assert word in shown.stdout


def test_models_list(run, models):
    (models / "broken.safetensors").write_bytes(b"cut short")
    (models / "starter.safetensors").write_bytes(b"a name that is taken")
    try:
        done = run("models", "list")
        shown = done.stdout
        facts = json.loads(run("info", "--json").stdout)
        listed = json.loads(run("models", "list", "--json").stdout)
    finally:
        (models / "broken.safetensors").unlink()
        (models / "starter.safetensors").unlink()
    assert "starter.safetensors is not used: the name starter is taken" in done.stderr
    assert facts["folders"]["not used, names taken"] == ["starter.safetensors"]
    assert "three" in shown
    assert "starter: everyday photographs, the 21 PASCAL VOC classes\n" in shown
    assert "3 classes: background, kind 1, kind 2" in shown
    assert "cannot be loaded" in shown
    by_name = {entry["name"]: entry for entry in listed}
    assert by_name["three"]["classes"] == ["background", "kind 1", "kind 2"]
    assert by_name["three"]["problem"] is None
    assert by_name["broken"]["problem"]
    assert by_name["starter"]["shipped"]


# -------------------------------------------------------------------------------------------------- demo


def test_the_demo_without_a_window(run, tmp_path):
    done = run("demo", "--output", tmp_path / "demo", "--no-window")
    assert done.exit_code == 0, done.output
    labels = np.asarray(Image.open(tmp_path / "demo" / "astronaut_labels.png"))
    assert labels.shape == (512, 512)
    person = [spec.name for spec in VOC_CLASSES].index("person")
    assert labels[120, 220] == person  # her face
    assert (labels == person).mean() > 0.2
    for name in ("astronaut.png", "astronaut_overlay.png", "astronaut_entropy.tif"):
        assert (tmp_path / "demo" / name).exists()
    assert str(tmp_path / "demo" / "astronaut_labels.png") in done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
def test_the_demo_without_a_display_says_what_to_do(run, tmp_path, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    done = run("demo", "--output", tmp_path / "demo")
    assert done.exit_code == 2
    assert "there is no display" in done.stderr
    assert "xvfb-run" in done.stderr
    assert (tmp_path / "demo" / "astronaut_labels.png").exists()


# ------------------------------------------------------------------------------------------- label files


def test_labels_keep_their_values_whatever_the_colours(tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save_labels_png(tmp_path / "a.png", labels, [(9, 9, 9)] * 256)  # indistinguishable, yet distinct
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), labels)


def test_an_overlay_leaves_the_background_clear():
    plane = np.full((3, 4, 4), 100, np.float32)
    labels = np.zeros((4, 4), np.uint8)
    labels[0], labels[1] = 1, 255
    picture = overlay(plane, labels, [(0, 0, 0), (200, 0, 100)])
    assert (picture[0] == (150, 50, 100)).all()
    assert (picture[1:] == 100).all()
    for n_channels in (1, 2, 5):
        assert overlay(plane[:1].repeat(n_channels, 0), labels, [(0, 0, 0)]).shape == (4, 4, 3)


def test_depth_beside_an_image(run, photo, tmp_path):
    """`--extra` gives what `set_image` is given: a file, or those of a folder by name."""
    pixels = np.array(Image.open(photo))
    depth = np.random.default_rng(0).integers(0, 5000, pixels.shape[:2]).astype(np.uint16)
    (tmp_path / "depth").mkdir()
    tifffile.imwrite(tmp_path / "depth" / "cat.tif", depth)
    segmenter = Segmenter(load_model("starter"))
    segmenter.set_image(pixels, extra_features=depth / 250.0)
    expected = segmenter.predict(marginals=True).marginals
    segmenter.set_image(pixels)
    assert np.abs(segmenter.predict(marginals=True).marginals - expected).max() > 0.01
    options = ("--probabilities", "--extra-width", 250, "--overwrite")
    common = ("segment", photo, "-o", tmp_path / "out", *options)
    (tmp_path / "capitals").mkdir()
    tifffile.imwrite(tmp_path / "capitals" / "cat.TIF", depth)
    for extra in (tmp_path / "depth" / "cat.tif", tmp_path / "depth", tmp_path / "capitals"):
        done = run(*common, "--extra", extra)
        assert done.exit_code == 0, done.output
        found = tifffile.imread(tmp_path / "out" / "cat_probabilities.tif")
        np.testing.assert_allclose(found, expected, atol=1e-4)
    tifffile.imwrite(tmp_path / "depth" / "cat.tif", depth[1:])
    for extra, says in (
        (tmp_path / "depth", "extra_features must have the shape"),
        (tmp_path, "got none for"),
    ):
        done = run(*common, "--extra", extra)
        assert done.exit_code == 2
        assert says in done.stderr
