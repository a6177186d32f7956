"""MatConvNet's ``pascal-fcn8s-tvg-dag.mat``: the FCN part of the CRF-RNN, a DagNN in a MATLAB 5 file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from napari_crfasrnn.checkpoint import CheckpointError
from napari_crfasrnn.importing.source import Role, Source, SourceTensor, damaged_if

# longest first: "conv1_1_filter" (importers of today), "conv1_1f" (the published file)
_ENDINGS: tuple[tuple[str, Role], ...] = (
    ("_filter", "weight"), ("_bias", "bias"),
    ("_f", "weight"), ("_b", "bias"), ("f", "weight"), ("b", "bias"),
)  # fmt: skip


def read_matconvnet(path: Path) -> Source:
    """Read the parameters of a DagNN and its mean colour.

    Raises
    ------
    CheckpointError
        If the file is damaged, of MATLAB 7.3, or holds no DagNN.
    """
    errors = (
        ValueError, TypeError, KeyError, IndexError, OSError, EOFError, OverflowError, MemoryError,
        UnicodeDecodeError, struct.error, zlib.error, scipy.io.matlab.MatReadError,
    )  # fmt: skip
    with damaged_if(path, "a MatConvNet model", *errors):
        try:
            variables = scipy.io.loadmat(path, struct_as_record=False)
        except NotImplementedError:
            raise CheckpointError(
                f"{path} is a MATLAB 7.3 file, which is not read: save it in MATLAB with save(..., '-v7')"
            ) from None
        if "net" in variables:
            net = variables["net"].flat[0]
            variables = {name: getattr(net, name) for name in net._fieldnames}
        if "params" not in variables:
            raise CheckpointError(
                f"{path} is a MATLAB file, but no DagNN of MatConvNet: it has no variable 'params'"
            )
        tensors = tuple(_tensor(entry) for entry in variables["params"].flat)
        mean = _mean(variables.get("meta"))
    # a mean that grows says blue first (104, 117, 123); MatConvNet itself is red first
    blue_first = mean is not None and mean[0] < mean[2]
    if mean is not None and blue_first:
        mean = (mean[2], mean[1], mean[0])
    return Source("matconvnet", tensors, mean_rgb=mean, blue_first=blue_first)


def _tensor(entry: Any) -> SourceTensor:
    name = str(np.asarray(entry.name).flat[0])
    values: NDArray[np.floating] = np.asarray(entry.value)
    for ending, role in _ENDINGS:
        if name.endswith(ending):
            return SourceTensor(name, name.removesuffix(ending), role, values)
    return SourceTensor(name, name, None, values)


def _mean(meta: Any) -> tuple[float, float, float] | None:
    """Return the mean colour: one per channel, or the mean of a mean image."""
    for name in ("normalization", "averageImage"):
        if meta is None or not np.size(meta) or name not in getattr(meta.flat[0], "_fieldnames", ()):
            return None
        meta = getattr(meta.flat[0], name)
    image = np.asarray(meta, np.float64)
    if image.size == 0 or image.size % 3:
        return None
    # stored in single precision: the shortest number that means it, 103.939 and not 103.93900299
    red, green, blue = (float(str(np.float32(value))) for value in image.reshape(-1, 3).mean(axis=0))
    return red, green, blue
