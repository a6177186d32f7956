"""What a reader finds in a foreign file: named arrays, each with its layer and its part there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn.checkpoint import CheckpointError

Format = Literal["pytorch", "caffe", "keras", "matconvnet"]
Role = Literal["weight", "bias", "spatial", "bilateral", "compatibility"]

CRF_ROLES: dict[str, Role] = {
    "spatial_ker_weights": "spatial",
    "bilateral_ker_weights": "bilateral",
    "compatibility_matrix": "compatibility",
}
"""What the Keras and PyTorch ports call the matrices of their CRF layer."""


@dataclass(frozen=True, eq=False)
class SourceTensor:
    """One array of a foreign file, as it is stored there."""

    name: str
    """How the file calls it; for the report."""
    layer: str
    role: Role | None
    """Which part of the layer it is; None if nothing like it is known."""
    values: NDArray[np.floating]


@dataclass(frozen=True)
class CrfSettings:
    """What a foreign file says about its CRF layer beside the matrices."""

    theta_alpha: float
    theta_beta: float
    theta_gamma: float
    n_iterations: int
    """Of the net that the file was saved from, which is that of training in a snapshot."""


@dataclass(frozen=True, eq=False)
class Source:
    """All arrays of a foreign file, and what it says about its input."""

    format: Format
    tensors: tuple[SourceTensor, ...]
    mean_rgb: tuple[float, float, float] | None = None
    """The mean that the file wants subtracted, red first, if it holds one."""
    blue_first: bool = True
    """Whether the first convolution takes blue first, as Caffe does."""
    crf: CrfSettings | None = None
    """None where the file does not say."""
    notes: tuple[str, ...] = ()


def needs(module: str, package: str, path: Path) -> ModuleType:
    """Import an optional library, or say how to get it.

    Raises
    ------
    RuntimeError
        If it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        raise RuntimeError(
            f'reading {path.name} takes the library {package}: pip install "napari-crfasrnn[legacy]"'
        ) from None


@contextmanager
def damaged_if(path: Path, kind: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn the errors of a library that meets a broken file into one sentence."""
    try:
        yield
    except CheckpointError:
        raise
    except errors as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as {kind}, it is cut short or of another kind ({said})"
        ) from None
