"""Where models are kept."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

MODELS_VARIABLE = "NAPARI_CRFASRNN_MODELS"
"""Environment variable that names another folder for the user's models."""


def user_models_dir() -> Path:
    """Return the folder of the user's models; it need not exist yet."""
    override = os.environ.get(MODELS_VARIABLE)
    if override:
        return Path(override)
    return Path(platformdirs.user_data_path("napari-crfasrnn", appauthor=False)) / "models"


def published_dir() -> Path:
    """Return the folder of what was downloaded; it need not exist yet."""
    return user_models_dir() / "published"
