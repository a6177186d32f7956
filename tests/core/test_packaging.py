"""What a user gets from an install: data files, entry points, and a core that needs no Qt."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version
from importlib.resources import files
from pathlib import Path

import pytest

import napari_crfasrnn

ROOT = Path(__file__).resolve().parents[2]


def pyproject() -> dict[str, dict[str, object]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_one_version_everywhere() -> None:
    declared = pyproject()["project"]["version"]
    assert napari_crfasrnn.__version__ == declared
    assert version("napari-crfasrnn") == declared
    assert napari_crfasrnn.build_config()["version"] == declared


def test_data_files_come_along() -> None:
    package = files("napari_crfasrnn")
    assert package.joinpath("py.typed").is_file()
    assert package.joinpath("napari.yaml").is_file()
    assert package.joinpath("data", "starter.safetensors").is_file()
    assert package.joinpath("_ext", "_lattice.pyi").is_file()


def test_all_data_stay_below_25_megabytes() -> None:
    data = files("napari_crfasrnn").joinpath("data")
    assert sum(len(file.read_bytes()) for file in data.iterdir() if file.is_file()) < 25e6


def test_entry_points() -> None:
    (manifest,) = entry_points(group="napari.manifest", name="napari-crfasrnn")
    assert manifest.value == "napari_crfasrnn:napari.yaml"
    (script,) = entry_points(group="console_scripts", name="napari-crfasrnn")
    assert callable(script.load())


def test_torch_is_not_needed_to_build() -> None:
    assert not [name for name in pyproject()["build-system"]["requires"] if "torch" in str(name)]


def test_no_qt_in_the_base_install() -> None:
    base = " ".join(map(str, pyproject()["project"]["dependencies"])).lower()
    for name in ("napari", "qt", "pyside", "magicgui"):
        assert name not in base


WITHOUT_GUI = """
import sys
from importlib.abc import MetaPathFinder

GUI = {"napari", "qtpy", "superqt", "magicgui", "pyqtgraph", "vispy", "PyQt6", "PySide6", "npe2"}

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in GUI:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocked())
import napari_crfasrnn as crf
from napari_crfasrnn import metrics, samples
for name in crf.__all__:
    getattr(crf, name)
segmenter = crf.Segmenter(crf.SegmentationModel())
segmenter.set_image(samples.sample("chelsea")[:64, :64])
result = segmenter.predict()
assert result.labels.shape == (64, 64)
from typer.testing import CliRunner
from napari_crfasrnn.cli import app
assert CliRunner().invoke(app, ["info"]).exit_code == 0
print("fine")
"""


def test_core_works_without_qt_and_napari() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_GUI], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("fine"), done.stderr


@pytest.mark.parametrize("target", ["demo", "test", "lint", "bench"])
def test_make_targets_exist(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert f"\n{target}:" in makefile
