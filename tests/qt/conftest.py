"""A real napari viewer for every test that asks for one, with its settings and our data in a scratch folder."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("pytestqt")


@pytest.fixture(autouse=True)
def scratch_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAPARI_CONFIG", str(tmp_path / "napari.yaml"))
    monkeypatch.setenv("NAPARI_CRFASRNN_DATA", str(tmp_path / "data"))


@pytest.fixture
def viewer(make_napari_viewer):
    """A shown viewer: without a shown canvas napari neither slices nor draws."""
    if sys.platform.startswith("linux"):
        from qtpy.QtWidgets import QApplication

        app = QApplication.instance()
        if app is not None and app.platformName() == "offscreen":
            pytest.skip("an image layer needs OpenGL: run under Xvfb")
    return make_napari_viewer(show=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
