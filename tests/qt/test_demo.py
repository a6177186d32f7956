from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points

import numpy as np
import pytest
from PIL import Image


@pytest.mark.skipif(
    "napari-crfasrnn" not in {point.name for point in entry_points(group="napari.manifest")},
    reason="napari finds the plugin only where the package is installed",
)
def test_the_demo_leaves_a_picture_of_a_window_with_the_labels(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from napari_crfasrnn.cli import app; app(prog_name='napari-crfasrnn')",
            "demo",
            "--output",
            tmp_path / "demo",
            "--close",
        ],
        env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    window = np.asarray(Image.open(tmp_path / "demo" / "screenshot.png").convert("RGB"))
    assert window.shape[0] > 500
    assert window.shape[1] > 1000
    canvas = window[150:-150, 400:-450].reshape(-1, 3)
    assert len(np.unique(canvas, axis=0)) > 5000  # a photograph, not an empty canvas
    assert (tmp_path / "demo" / "astronaut_labels.png").exists()
    assert str(tmp_path / "demo" / "screenshot.png") in done.stdout
