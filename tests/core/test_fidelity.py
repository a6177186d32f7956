"""FCN-8s and CRF-RNN as a whole against a straightforward float64 re-computation in NumPy.

The re-computation is written from the description of the original (its layers, sizes and crops), not from
our modules, and shares no code with them but the specification of the lattice.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from foreign_files import Weights, pytorch_name, random_weights
from numpy.typing import NDArray

from napari_crfasrnn._reference import ReferenceLattice
from napari_crfasrnn.config import CrfConfig
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.fcn import Fcn8s

Array = NDArray[np.float64]


def convolution(x: Array, weight: Array, bias: Array, pad: int) -> Array:
    """Correlate [C, H, W] with [O, C, k, k], one position of the kernel after the other."""
    k = weight.shape[-1]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    h, w = x.shape[1] - k + 1, x.shape[2] - k + 1
    out = np.tile(bias[:, None, None], (1, h, w))
    for i in range(k):
        for j in range(k):
            out += np.tensordot(weight[:, :, i, j], x[:, i : i + h, j : j + w], axes=1)
    return out


def pool(x: Array) -> Array:
    """Maximum of 2×2 cells; a cell that hangs over the edge counts."""
    h, w = x.shape[1:]
    padded = np.pad(x, ((0, 0), (0, h % 2), (0, w % 2)), constant_values=-np.inf)
    return padded.reshape(len(x), (h + 1) // 2, 2, (w + 1) // 2, 2).max(axis=(2, 4))


def deconvolution(x: Array, weight: Array, stride: int) -> Array:
    """Paint the kernel [C, O, k, k] of every cell of [C, H, W] into the output, ``stride`` apart."""
    k = weight.shape[-1]
    h, w = x.shape[1:]
    out = np.zeros((weight.shape[1], (h - 1) * stride + k, (w - 1) * stride + k))
    for i in range(k):
        for j in range(k):
            painted = np.tensordot(weight[:, :, i, j].T, x, axes=1)
            out[:, i : i + h * stride : stride, j : j + w * stride : stride] += painted
    return out


def fcn8s(weights: Weights, image: Array) -> Array:
    layers = {
        name: (weight.astype(np.float64), np.zeros(0) if bias is None else bias.astype(np.float64))
        for name, (weight, bias) in weights.layers.items()
    }

    def relu_of(name: str, x: Array, pad: int = 1) -> Array:
        return np.maximum(convolution(x, *layers[name], pad), 0)

    x = image
    pools = []
    for block, n_layers in enumerate((2, 2, 3, 3, 3), start=1):
        for layer in range(1, n_layers + 1):
            x = relu_of(f"conv{block}_{layer}", x, 100 if (block, layer) == (1, 1) else 1)
        x = pool(x)
        pools.append(x)
    x = relu_of("fc7", relu_of("fc6", x, 0), 0)
    x = convolution(x, *layers["score-fr"], 0)
    x = deconvolution(x, layers["score2"][0], 2) + layers["score2"][1][:, None, None]
    skip = convolution(pools[3], *layers["score-pool4"], 0)
    x = x + skip[:, 5 : 5 + x.shape[1], 5 : 5 + x.shape[2]]
    x = deconvolution(x, layers["score4"][0], 2)
    skip = convolution(pools[2], *layers["score-pool3"], 0)
    x = x + skip[:, 9 : 9 + x.shape[1], 9 : 9 + x.shape[2]]
    x = deconvolution(x, layers["upsample"][0], 8)
    return x[:, 31 : 31 + image.shape[1], 31 : 31 + image.shape[2]]


def mean_field(weights: Weights, unary: Array, image: Array, n_iterations: int) -> Array:
    """The CRF layer of the original: filters normalised after, three full matrices, C starts below zero."""
    n_labels, height, width = unary.shape
    y, x = np.mgrid[:height, :width]
    positions = np.stack([x.ravel(), y.ravel()], 1).astype(np.float64)
    colours = image.reshape(len(image), -1).T
    kernels = [
        ReferenceLattice(positions / 3.0),
        ReferenceLattice(np.hstack([positions / 160.0, colours / 3.0])),
    ]
    norms = [1.0 / kernel.filter(np.ones((height * width, 1))) for kernel in kernels]
    u = unary.reshape(n_labels, -1).T
    q = u
    spatial, bilateral, compatibility = (matrix.astype(np.float64) for matrix in weights.crf)
    for _ in range(n_iterations):
        p = np.exp(q - q.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        s, b = (norm * kernel.filter(p) for kernel, norm in zip(kernels, norms, strict=True))
        q = u - (s @ spatial.T + b @ bilateral.T) @ compatibility.T
    return q.T.reshape(unary.shape)


def picture(height: int, width: int) -> NDArray[np.float32]:
    """Part of a photograph, blue first, minus the mean: what the network and the CRF of the original read."""
    from skimage.data import astronaut

    pixels = astronaut()[:height, :width, ::-1].astype(np.float32)
    return (pixels - np.array([103.939, 116.779, 123.68], np.float32)).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(500, 500), (61, 83), (97, 333), (1, 7)])
def test_network(size: tuple[int, int]) -> None:
    weights = random_weights(n_labels=5)
    network = Fcn8s(5, width=1 / 32).eval()
    network.load_state_dict(
        {
            f"{pytorch_name(layer)}.{part}": torch.from_numpy(array)
            for layer, pair in weights.layers.items()
            for part, array in zip(("weight", "bias"), pair, strict=True)
            if array is not None
        }
    )
    image = picture(*size)
    expected = fcn8s(weights, image.astype(np.float64))
    with torch.inference_mode():
        found = network(torch.from_numpy(image)[None])[0].double().numpy()
        exact = network.double()(torch.from_numpy(image)[None].double())[0].numpy()
    assert found.shape == expected.shape == (5, *size)
    scale = np.abs(expected).max()
    # 21 layers of float32 sums: some 1e-6 of the largest logit
    assert np.abs(found - expected).max() < 2e-5 * scale
    assert np.abs(exact - expected).max() < 1e-12 * scale


@pytest.mark.parametrize(
    ("size", "n_iterations"), [pytest.param((500, 500), 2, marks=pytest.mark.slow), ((61, 83), 5)]
)
def test_network_and_crf(size: tuple[int, int], n_iterations: int) -> None:
    weights = random_weights(n_labels=5)
    image = picture(*size)
    unary = fcn8s(weights, image.astype(np.float64))
    unary *= 3 / unary.std()
    expected = mean_field(weights, unary, image.astype(np.float64), n_iterations)
    crf = CrfRnn(5, CrfConfig.original()).eval()
    with torch.no_grad():
        parameters = (crf.spatial_weights, crf.bilateral_weights, crf.compatibility)
        for parameter, matrix in zip(parameters, weights.crf, strict=True):
            parameter.copy_(torch.from_numpy(matrix))
        logits, seen = torch.from_numpy(unary).float()[None], torch.from_numpy(image)[None]
        found = crf(logits, seen, n_iterations=n_iterations)[0]
    difference = np.abs(found.double().numpy() - expected)
    # In float32 a few pixels lie in the neighbouring simplex of the lattice, and a vertex more or less there
    # moves the messages around it; nearly all pixels agree to rounding.
    assert np.median(difference) < 1e-4
    assert (difference < 1e-2).mean() > 0.99
    assert (found.argmax(0).numpy() == expected.argmax(0)).mean() > 0.999
