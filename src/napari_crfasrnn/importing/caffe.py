"""Caffe models, ``.caffemodel``: V1 (``layers``, of the published CRF-RNN) and V2 (``layer``)."""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn.checkpoint import CheckpointError
from napari_crfasrnn.importing.caffe_schema import net_parameter
from napari_crfasrnn.importing.source import CrfSettings, Role, Source, SourceTensor, damaged_if, needs
from napari_crfasrnn.importing.table import CRF, known_layer

_PARAMETERS: tuple[Role, ...] = ("weight", "bias")
_CRF_PARAMETERS: tuple[Role, ...] = ("spatial", "bilateral", "compatibility")
_CRF_TYPES = (42, "MultiStageMeanfield")  # in V1 and V2
_LEGACY_AXES = ("num", "channels", "height", "width")


def read_caffe(path: Path) -> Source:
    """Read the blobs of every layer that has some.

    Raises
    ------
    CheckpointError
        If the file is damaged or holds no layer with blobs.
    RuntimeError
        If protobuf is not installed.
    """
    needs("google.protobuf", "protobuf", path)
    from google.protobuf.message import DecodeError

    with damaged_if(path, "a Caffe model", DecodeError, ValueError):
        net = _parse(path, numbers_as_bytes=True)
        layers = [*net.layers, *net.layer]
        if any(_without_numbers(blob) for layer in layers for blob in layer.blobs):
            net = _parse(path, numbers_as_bytes=False)  # the numbers are not packed
            layers = [*net.layers, *net.layer]
    tensors = [tensor for layer in layers for tensor in _tensors(path, layer)]
    if not tensors:
        raise CheckpointError(
            f"{path} is no Caffe model with weights: none of its {len(layers)} layers has a blob"
        )
    settings = (_settings(path, layer) for layer in layers if _is_crf(layer))
    return Source("caffe", tuple(tensors), crf=next((s for s in settings if s is not None), None))


def _parse(path: Path, *, numbers_as_bytes: bool) -> Any:
    net = net_parameter(numbers_as_bytes=numbers_as_bytes)()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        net.ParseFromString(view)
    return net


def _is_crf(layer: Any) -> bool:
    # by its name too: private versions of Caffe gave the type other numbers
    return layer.type in _CRF_TYPES or (known_layer(layer.name) or ("",))[0] == CRF


def _settings(path: Path, layer: Any) -> CrfSettings | None:
    """Return the parameters of a mean-field layer, if they are where they were published."""
    stored = layer.multi_stage_meanfield_param
    names = ("theta_alpha", "theta_beta", "theta_gamma")
    if not all(stored.HasField(name) for name in names):
        return None
    alpha, beta, gamma = (float(getattr(stored, name)) for name in names)
    if not all(math.isfinite(width) and width > 0 for width in (alpha, beta, gamma)):
        raise CheckpointError(
            f"{path} is damaged: the kernel widths of the layer {layer.name} must be positive, "
            f"got {alpha:g}, {beta:g} and {gamma:g}"
        )
    return CrfSettings(alpha, beta, gamma, int(stored.num_iterations))


def _tensors(path: Path, layer: Any) -> list[SourceTensor]:
    roles = _CRF_PARAMETERS if _is_crf(layer) else _PARAMETERS
    found = []
    for place, blob in enumerate(layer.blobs):
        role = roles[place] if place < len(roles) else None
        name = f"{layer.name}[{place}]"
        found.append(SourceTensor(name, layer.name, role, _values(path, name, blob)))
    return found


def _values(path: Path, name: str, blob: Any) -> NDArray[np.floating]:
    shape = _shape(blob)
    if blob.data:
        numbers = _numbers(blob.data, np.dtype("<f4"))
    else:
        numbers = _numbers(blob.double_data, np.dtype("<f8"))
    if numbers.size != math.prod(shape):
        raise CheckpointError(
            f"{path} is damaged: the blob {name} should hold {'×'.join(map(str, shape))} numbers, "
            f"but has {numbers.size}"
        )
    return numbers.reshape(shape)


def _numbers(stored: Any, dtype: np.dtype[Any]) -> NDArray[np.floating]:
    if len(stored) and isinstance(stored[0], bytes):
        # a writer may cut a packed field into several pieces
        packed = stored[0] if len(stored) == 1 else b"".join(stored)
        return np.frombuffer(packed, dtype)
    return np.fromiter(stored, dtype, len(stored))


def _shape(blob: Any) -> tuple[int, ...]:
    if blob.HasField("shape"):
        return tuple(blob.shape.dim)
    return tuple(getattr(blob, axis) for axis in _LEGACY_AXES)


def _without_numbers(blob: Any) -> bool:
    return math.prod(_shape(blob)) > 0 and not blob.data and not blob.double_data
