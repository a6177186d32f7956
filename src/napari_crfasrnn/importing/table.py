"""One table: what each system calls a layer, what we call it, and how its numbers are laid out.

Caffe and PyTorch keep convolutions as [out, in, height, width] and transposed ones as [in, out, height,
width]; Keras and MatConvNet keep [height, width, in, out] and [height, width, out, in]. So one permutation
of the axes serves both kinds of both.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn.importing.source import Format, Role, SourceTensor

# ours (and the PyTorch port's) → the name in Caffe and Keras, where it is another
_FCN_LAYERS: dict[str, str | None] = {
    **dict.fromkeys((
        "conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3",
        "conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3", "fc6", "fc7",
        "score_fr", "score_pool4", "score_pool3",
    )),
    "upscore2": "score2",
    "upscore_pool4": "score4",
    "upscore8": "upsample",
}  # fmt: skip
# What the ports call the CRF: Caffe, PyTorch and Keras, Keras where nobody named it.
CRF = "crf"
_CRF_LAYERS = ("inference1", "crfrnn", "crf_rnn_layer")
_CRF_PARTS: dict[Role, str] = {
    "spatial": "crf.spatial_weights",
    "bilateral": "crf.bilateral_weights",
    "compatibility": "crf.compatibility",
}

_HEIGHT_FIRST: tuple[Format, ...] = ("keras", "matconvnet")
_ADDS_PAIRWISE: tuple[Format, ...] = ("pytorch",)
"""The PyTorch port computes U + C·M, all others and we U - C·M: its compatibility has the other sign."""


def _words(name: str) -> tuple[str, ...]:
    return tuple(re.split(r"[-_./ ]+", name.lower()))


_KNOWN: dict[tuple[str, ...], str] = {
    **{_words(ours): ours for ours in _FCN_LAYERS},
    **{_words(other): ours for ours, other in _FCN_LAYERS.items() if other},
    **{_words(name): CRF for name in _CRF_LAYERS},
}


def known_layer(layer: str) -> tuple[str, bool] | None:
    """Return our name of a layer and whether the file's is exactly a known one, or None.

    Hyphens and underscores are the same. A known name may have more words after it, which is how people
    rename layers that they train anew: "score-fr-ft".
    """
    words = _words(layer)
    for length in range(len(words), 0, -1):
        if words[:length] in _KNOWN:
            return _KNOWN[words[:length]], length == len(words)
    return None


def is_known_layer(layer: str) -> bool:
    """Return whether the name of a layer is one of the table, possibly with more words after it."""
    return known_layer(layer) is not None


def our_name(tensor: SourceTensor) -> tuple[str, bool] | None:
    """Return the name of a tensor in our models and whether its layer's name is exactly a known one."""
    layer = known_layer(tensor.layer)
    if layer is None or tensor.role is None:
        return None
    name, exact = layer
    if name == CRF:
        return (_CRF_PARTS[tensor.role], exact) if tensor.role in _CRF_PARTS else None
    return (f"network.{name}.{tensor.role}", exact) if tensor.role in ("weight", "bias") else None


def converted(
    tensor: SourceTensor, ours: str, shape: tuple[int, ...], file_format: Format, *, blue_first: bool
) -> NDArray[np.float32] | None:
    """Return the numbers of a tensor in our layout, a new array of ``shape``; None if they do not fit it."""
    values = tensor.values
    if file_format in _HEIGHT_FIRST and tensor.role == "weight":
        if values.ndim < 4:  # MATLAB drops axes of length 1 at the end
            values = values.reshape(values.shape + (1,) * (4 - values.ndim))
        if values.ndim != 4:
            return None
        values = values.transpose(3, 2, 0, 1)
    if not _fits(values.shape, shape):
        return None
    result: NDArray[np.float32] = np.array(values.reshape(shape), np.float32, order="C")
    if file_format in _ADDS_PAIRWISE and tensor.role == "compatibility":
        result = 0.0 - result  # not -result, whose zeros would be negative
    if ours == "network.conv1_1.weight" and not blue_first:
        result = np.ascontiguousarray(result[:, ::-1])
    return result


def _fits(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether the shapes differ in axes of length 1 only, or found is a fully connected layer's.

    Caffe's old files give every blob four axes, biases 1×1×1×N. A fully connected layer of Caffe is the
    convolution with the axes in, height and width in one.
    """
    if _long_axes(found) == _long_axes(wanted):
        return True
    return len(wanted) == 4 and _long_axes(found) == _long_axes((wanted[0], math.prod(wanted[1:])))


def _long_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)
