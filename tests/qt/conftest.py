"""A real napari viewer for every test that asks for one; settings and data lie in a scratch folder."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("pytestqt")

from window_user import User


@pytest.fixture(autouse=True)
def scratch_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAPARI_CONFIG", str(tmp_path / "napari.yaml"))
    monkeypatch.setenv("NAPARI_CRFASRNN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NAPARI_CRFASRNN_MODELS", str(tmp_path / "models"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Torch's threads spin while they wait for each other: on a busy machine that takes ten times longer.
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _modules_stay() -> None:
    # Every test, and napari for every layer that goes, lets Python look through all objects for unreachable
    # ones. Those of modules are most of them and never go: they need not be looked through.
    for name in ("napari.viewer", "sklearn.ensemble", "torch"):
        import_module(name)
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _short_rounds(small_forests: None) -> None:
    """What trees learn is tested without a window."""


@pytest.fixture(autouse=True)
def _nothing_left() -> None:
    # What is left of an earlier test's window is freed now. Freed later, in the middle of a test, vispy would
    # delete its buffers in the window that is drawn then, under the same numbers: a crash in OpenGL.
    gc.collect()


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any]) -> Any:
    """Return a shown viewer: without a shown canvas napari neither slices nor draws."""
    if sys.platform.startswith("linux"):
        from qtpy.QtWidgets import QApplication

        app = QApplication.instance()
        if app is not None and app.platformName() == "offscreen":
            pytest.skip("an image layer needs OpenGL: run under Xvfb")
    return make_napari_viewer(show=True)


@pytest.fixture
def user(viewer: Any) -> Iterator[User]:
    made = User(viewer)
    made.wait(lambda: made.session.shelf.choice is not None)
    yield made
    made.session.cancel()


@pytest.fixture
def photograph() -> np.ndarray:
    """Return a photograph of a person, half as large as the sample."""
    from napari_crfasrnn.samples import astronaut

    return np.ascontiguousarray(astronaut()[::2, ::2])
