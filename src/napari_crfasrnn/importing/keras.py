"""Keras weights, ``crfrnn_keras_model.h5``: HDF5 in the layout of Keras 1 and 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_crfasrnn.checkpoint import CheckpointError
from napari_crfasrnn.importing.source import CRF_ROLES, Role, Source, SourceTensor, damaged_if, needs
from napari_crfasrnn.importing.table import is_known_layer

_ROLES: dict[str, Role] = {"kernel": "weight", "bias": "bias", "W": "weight", "b": "bias", **CRF_ROLES}
_CONV_3X3 = (
    "conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3",
    "conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3",
)  # fmt: skip
_READ_BY = {"fc6": "fc7", "fc7": "score-fr", "conv4_3": "score-pool4", "conv3_3": "score-pool3"}
_RECOGNISED = "no layer name is known: the layers were recognised by their order and their shapes"


def read_keras(path: Path) -> Source:
    """Read what ``save_weights`` or ``save`` of Keras 1 and 2 have written.

    Raises
    ------
    CheckpointError
        If the file is damaged or of another layout.
    RuntimeError
        If h5py is not installed.
    """
    h5py = needs("h5py", "h5py", path)
    errors = (OSError, KeyError, RuntimeError, ValueError, TypeError)
    with damaged_if(path, "Keras weights", *errors), h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        if not _has(root, "layer_names"):
            raise CheckpointError(f"{path} is {_kind(root)}")
        tensors = [t for name in _attribute(root, "layer_names") for t in _layer(root[name], name)]
    notes: tuple[str, ...] = ()
    if tensors and not any(is_known_layer(tensor.layer) for tensor in tensors):
        tensors, notes = _recognised(tensors), (_RECOGNISED,)
    return Source("keras", tuple(tensors), notes=notes)


def _kind(file: Any) -> str:
    """Say what another HDF5 file is, and the way out where there is one."""
    names = set(file)
    if "data" in names and hasattr(file["data"], "values") and all(map(_is_blob, file["data"].values())):
        return (
            "a snapshot of Caffe in HDF5, which is not read: write a .caffemodel with net.save(...) in "
            "pycaffe, or with snapshot_format: BINARYPROTO in the solver"
        )
    if {"layers", "_layer_checkpoint_dependencies"} & names:
        return (
            "a weights file of Keras 3, which does not name its layers: load it there and write the "
            "whole model with model.save('model.h5')"
        )
    if any("MATLAB_class" in file[name].attrs for name in names):
        return "a MATLAB 7.3 file, which is not read: save it in MATLAB with save(..., '-v7')"
    return "an HDF5 file, but none that Keras 1 or 2 wrote: it does not say layer_names"


def _is_blob(layer: Any) -> bool:
    """Tell whether a group is a layer of Caffe: its blobs are numbered."""
    return hasattr(layer, "keys") and all(name.isdigit() for name in layer)


def _layer(group: Any, layer: str) -> list[SourceTensor]:
    found = []
    for name in _attribute(group, "weight_names"):
        dataset = group[name]
        part = name.rpartition("/")[2].partition(":")[0]
        # Keras 1 wrote conv1_1_W, Keras 2 writes conv1_1/kernel
        role = _ROLES.get(part) or _ROLES.get(part.removeprefix(f"{layer}_"))
        shown = name if name.startswith(f"{layer}/") else f"{layer}/{name}"
        found.append(SourceTensor(shown, layer, role, np.asarray(dataset[()])))
    return found


def _has(group: Any, name: str) -> bool:
    return name in group.attrs or f"{name}0" in group.attrs


def _attribute(group: Any, name: str) -> list[str]:
    """Return a list of names; Keras cuts long ones into pieces numbered from 0."""
    if name in group.attrs:
        pieces = [group.attrs[name]]
    else:
        pieces = []
        while f"{name}{len(pieces)}" in group.attrs:
            pieces.append(group.attrs[f"{name}{len(pieces)}"])
    texts = [text for piece in pieces for text in np.atleast_1d(piece)]
    return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]


def _recognised(tensors: list[SourceTensor]) -> list[SourceTensor]:
    """Give the layers of a file with other names those of the network, as Keras loads it: not by name.

    The 3×3 convolutions come in their order; every other layer is the only one of its kernel size, bias
    and number of input channels.
    """
    parts: dict[str, dict[Role | None, SourceTensor]] = {}
    for tensor in tensors:
        parts.setdefault(tensor.layer, {})[tensor.role] = tensor
    remaining_3x3 = list(_CONV_3X3)
    readers: dict[int, str] = {}  # number of channels → the 1×1 convolution that reads so many
    named: dict[str, str] = {}
    for layer, part in parts.items():
        if "compatibility" in part:
            named[layer] = "crfrnn"
        if "weight" not in part or part["weight"].values.ndim != 4:
            continue
        kh, _, n_in, n_out = part["weight"].values.shape
        if kh == 3 and remaining_3x3:
            name = remaining_3x3.pop(0)
        elif kh == 1 and n_in in readers:
            name = readers.pop(n_in)
        elif kh == 4:
            name = "score2" if "bias" in part else "score4"
        else:
            name = {7: "fc6", 16: "upsample"}.get(kh, layer)
        named[layer] = name
        if name in _READ_BY:
            readers[n_out] = _READ_BY[name]
    return [SourceTensor(t.name, named.get(t.layer, t.layer), t.role, t.values) for t in tensors]
