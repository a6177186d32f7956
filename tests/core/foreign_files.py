"""Writers of the original systems' model files, with each format's own library and in its own layout.

The weights are given as the Caffe original names and lays them out: {layer: (weight, bias or None)} with
convolutions [out, in, h, w] and transposed ones [in, out, h, w], and the three matrices of the CRF.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_crfasrnn.fcn import Fcn8s

Array = NDArray[np.float32]

# Published order and names: CRFRNN.md section 2, and the deploy prototxt of the original.
CONVOLUTIONS = (
    "conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3", "conv4_1", "conv4_2",
    "conv4_3", "conv5_1", "conv5_2", "conv5_3", "fc6", "fc7", "score-fr", "score2", "score-pool4", "score4",
    "score-pool3", "upsample",
)  # fmt: skip
DECONVOLUTIONS = ("score2", "score4", "upsample")
PYTORCH_NAMES = {"score2": "upscore2", "score4": "upscore_pool4", "upsample": "upscore8"}
CRF = "inference1"


@dataclass(frozen=True)
class Weights:
    layers: dict[str, tuple[Array, Array | None]]
    crf: tuple[Array, Array, Array]
    """Spatial, bilateral, compatibility as Caffe has it: negative diagonal."""

    @property
    def n_labels(self) -> int:
        return len(self.crf[0])


def pytorch_name(layer: str) -> str:
    return PYTORCH_NAMES.get(layer, layer.replace("-", "_"))


@cache
def random_weights(n_labels: int = 21, width: float = 1 / 32, seed: int = 0) -> Weights:
    """Weights without any symmetry, of a size that keeps the activations in range."""
    torch.manual_seed(seed)
    network = Fcn8s(n_labels, width)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
        for score in network.score_layers:
            score.weight.mul_(4)
    state = {name: t.numpy() for name, t in network.state_dict().items()}
    layers = {
        layer: (state[f"{pytorch_name(layer)}.weight"], state.get(f"{pytorch_name(layer)}.bias"))
        for layer in CONVOLUTIONS
    }
    rng = np.random.default_rng(seed)
    eye = np.eye(n_labels)
    crf = tuple(
        (d * eye + 0.1 * rng.standard_normal((n_labels, n_labels))).astype(np.float32) for d in (3, 5, -1)
    )
    return Weights(layers, (crf[0], crf[1], crf[2]))


# --- PyTorch ----------------------------------------------------------------------------------------


def pytorch_state(weights: Weights) -> dict[str, torch.Tensor]:
    """The 43 tensors of the port, whose update adds: its compatibility has the other sign."""
    state = {}
    for layer, (weight, bias) in weights.layers.items():
        state[f"{pytorch_name(layer)}.weight"] = torch.from_numpy(weight)
        if bias is not None:
            state[f"{pytorch_name(layer)}.bias"] = torch.from_numpy(bias)
    spatial, bilateral, compatibility = weights.crf
    state["crfrnn.spatial_ker_weights"] = torch.from_numpy(spatial)
    state["crfrnn.bilateral_ker_weights"] = torch.from_numpy(bilateral)
    state["crfrnn.compatibility_matrix"] = torch.from_numpy(-compatibility)
    return state


def write_pytorch(path: Path, weights: Weights) -> None:
    torch.save(pytorch_state(weights), path)


def write_old_pytorch(path: Path, weights: Weights) -> None:
    """As torch wrote files in 2019, when the port's were published."""
    torch.save(pytorch_state(weights), path, _use_new_zipfile_serialization=False)


# --- Caffe ------------------------------------------------------------------------------------------

V1_TYPES = {
    "CONVOLUTION": 4,
    "DECONVOLUTION": 39,
    "RELU": 18,
    "INNER_PRODUCT": 14,
    "MULTI_STAGE_MEANFIELD": 42,
}
WIDTHS = (160.0, 3.0, 3.0)  # of the kernels, as published


@cache
def caffe_messages() -> dict[str, Any]:
    """Caffe's messages with more of their fields than our reader knows, the layer type as an enum."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    F = descriptor_pb2.FieldDescriptorProto
    one, many = F.LABEL_OPTIONAL, F.LABEL_REPEATED
    file = descriptor_pb2.FileDescriptorProto(name="caffe_for_tests.proto", package="caffe", syntax="proto2")

    def message(name: str, *fields: tuple[Any, ...]) -> Any:
        described = file.message_type.add(name=name)
        for field, number, label, kind, *rest in fields:
            entry = described.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                entry.type = F.TYPE_ENUM if kind.endswith("Type") else F.TYPE_MESSAGE
                entry.type_name = f".caffe.{kind}"
            else:
                entry.type = kind
            if rest:
                entry.options.packed = rest[0] == "packed"
        return described

    axes = ("num", "channels", "height", "width")
    axes = ("num", "channels", "height", "width")
    message("BlobShape", ("dim", 1, many, F.TYPE_INT64, "packed"))
    for name, packing in (("BlobProto", ("packed",)), ("LooseBlobProto", ())):
        message(
            name,
            *((axis, 1 + i, one, F.TYPE_INT32) for i, axis in enumerate(axes)),
            ("data", 5, many, F.TYPE_FLOAT, *packing),
            ("diff", 6, many, F.TYPE_FLOAT, *packing),
            ("shape", 7, one, "BlobShape"),
            ("double_data", 8, many, F.TYPE_DOUBLE, *packing),
        )
    message(
        "MultiStageMeanfieldParameter",
        ("compatibility_mode", 1, one, F.TYPE_INT32),
        ("threshold", 2, one, F.TYPE_FLOAT),
        *((f"theta_{name}", 3 + i, one, F.TYPE_FLOAT) for i, name in enumerate(("alpha", "beta", "gamma"))),
        ("num_iterations", 6, one, F.TYPE_UINT32),
        ("spatial_filter_weight", 7, one, F.TYPE_FLOAT),
        ("bilateral_filter_weight", 8, one, F.TYPE_FLOAT),
    )
    described = message(
        "V1LayerParameter",
        ("bottom", 2, many, F.TYPE_STRING),
        ("top", 3, many, F.TYPE_STRING),
        ("name", 4, one, F.TYPE_STRING),
        ("type", 5, one, "V1LayerParameter.LayerType"),
        ("blobs", 6, many, "BlobProto"),
        ("blobs_lr", 7, many, F.TYPE_FLOAT),
        ("weight_decay", 8, many, F.TYPE_FLOAT),
        ("multi_stage_meanfield_param", 44, one, "MultiStageMeanfieldParameter"),
    )
    enum = described.enum_type.add(name="LayerType")
    enum.value.add(name="NONE", number=0)
    for name, number in V1_TYPES.items():
        enum.value.add(name=name, number=number)
    for name, blob in (("LayerParameter", "BlobProto"), ("LooseLayerParameter", "LooseBlobProto")):
        message(
            name,
            ("name", 1, one, F.TYPE_STRING),
            ("type", 2, one, F.TYPE_STRING),
            ("bottom", 3, many, F.TYPE_STRING),
            ("top", 4, many, F.TYPE_STRING),
            ("blobs", 7, many, blob),
            ("phase", 10, one, F.TYPE_INT32),
            ("multi_stage_meanfield_param", 147, one, "MultiStageMeanfieldParameter"),
        )
    for name, layer in (("NetParameter", "LayerParameter"), ("LooseNetParameter", "LooseLayerParameter")):
        message(
            name,
            ("name", 1, one, F.TYPE_STRING),
            ("layers", 2, many, "V1LayerParameter"),
            ("input", 3, many, F.TYPE_STRING),
            ("input_dim", 4, many, F.TYPE_INT32),
            ("layer", 100, many, layer),
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    names = ("NetParameter", "LooseNetParameter")
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{n}")) for n in names}


def caffe_parameters(weights: Weights, suffix: str = "") -> Iterator[tuple[str, str, list[Array]]]:
    """Give name, V1 type and blobs of each layer; ``suffix`` renames those that depend on the classes."""
    for layer, (weight, bias) in weights.layers.items():
        kind = "DECONVOLUTION" if layer in DECONVOLUTIONS else "CONVOLUTION"
        name = layer if layer.startswith(("conv", "fc")) else layer + suffix
        yield name, kind, [weight] if bias is None else [weight, bias]
    yield CRF + suffix, "MULTI_STAGE_MEANFIELD", list(weights.crf)


def legacy_shape(array: Array) -> tuple[int, ...]:
    """Four axes for every blob: a bias is 1×1×1×N, a matrix 1×1×L×L."""
    return (1,) * (4 - array.ndim) + array.shape


def describe_meanfield(layer: Any, widths: tuple[float, float, float], n_iterations: int | None = 5) -> None:
    described = layer.multi_stage_meanfield_param
    described.compatibility_mode, described.threshold = 0, 2.0
    if n_iterations is not None:
        described.num_iterations = n_iterations
    described.theta_alpha, described.theta_beta, described.theta_gamma = widths
    described.spatial_filter_weight, described.bilateral_filter_weight = 3.0, 5.0


def write_caffe_v1(
    path: Path,
    weights: Weights,
    suffix: str = "",
    *,
    widths: tuple[float, float, float] | None = WIDTHS,
    n_iterations: int | None = 5,
) -> None:
    net = caffe_messages()["NetParameter"](name="TVG_CRFRNN_COCO_VOC", input=["data"])
    net.input_dim.extend([1, 3, 500, 500])
    for name, kind, blobs in caffe_parameters(weights, suffix):
        layer = net.layers.add(name=name, type=V1_TYPES[kind], bottom=["below"], top=[name])
        for array in blobs:
            n, c, h, w = legacy_shape(array)
            layer.blobs.add(num=n, channels=c, height=h, width=w, data=array.ravel())
            layer.blobs_lr.append(1)
        if kind == "MULTI_STAGE_MEANFIELD" and widths is not None:
            describe_meanfield(layer, widths, n_iterations)
        elif kind == "CONVOLUTION":
            net.layers.add(name=f"relu_{name}", type=V1_TYPES["RELU"], bottom=[name], top=[name])
    path.write_bytes(net.SerializeToString())


V2_TYPES = {
    "CONVOLUTION": "Convolution",
    "DECONVOLUTION": "Deconvolution",
    "MULTI_STAGE_MEANFIELD": "MultiStageMeanfield",
}


def write_caffe_v2(
    path: Path,
    weights: Weights,
    suffix: str = "",
    *,
    packed: bool = True,
    widths: tuple[float, float, float] | None = WIDTHS,
) -> None:
    net = caffe_messages()["NetParameter" if packed else "LooseNetParameter"](name="TVG_CRFRNN_new")
    net.layer.add(name="input", type="Input", top=["data"])
    for name, kind, blobs in caffe_parameters(weights, suffix):
        layer = net.layer.add(name=name, type=V2_TYPES[kind], phase=1)
        for array in blobs:
            blob = layer.blobs.add(data=array.ravel())
            blob.shape.dim.extend(array.shape)
        if kind == "MULTI_STAGE_MEANFIELD" and widths is not None:
            describe_meanfield(layer, widths)
    path.write_bytes(net.SerializeToString())


def write_fine_tuned_caffe(path: Path, weights: Weights) -> None:
    """As martinkersner's scripts leave it: what depends on the classes is renamed."""
    write_caffe_v1(path, weights, "-ft")


# --- Keras ------------------------------------------------------------------------------------------


def keras_parameters(weights: Weights) -> dict[str, dict[str, Array]]:
    """Give the weights of each layer: convolutions [h, w, in, out], transposed ones [h, w, out, in]."""
    layers: dict[str, dict[str, Array]] = {"input_1": {}}
    for layer, (weight, bias) in weights.layers.items():
        if layer in DECONVOLUTIONS:
            kernel = np.einsum("iohw->hwoi", weight)
        else:
            kernel = np.einsum("oihw->hwio", weight)
        layers[layer] = {"kernel": np.ascontiguousarray(kernel)}
        if bias is not None:
            layers[layer]["bias"] = bias
    names = ("spatial_ker_weights", "bilateral_ker_weights", "compatibility_matrix")
    layers["crfrnn"] = dict(zip(names, weights.crf, strict=True))
    return layers


def write_keras(
    path: Path,
    weights: Weights,
    *,
    root: str | None = None,
    rename: dict[str, str] | None = None,
    keras_1: bool = False,
) -> None:
    """As ``save_weights`` of Keras 2 (or 1) does; within ``root`` as ``save`` does."""
    import h5py

    with h5py.File(path, "w") as file:
        group = file if root is None else file.create_group(root)
        layers = {(rename or {}).get(k, k): v for k, v in keras_parameters(weights).items()}
        group.attrs["layer_names"] = [name.encode() for name in layers]
        group.attrs["backend"] = b"tensorflow"
        group.attrs["keras_version"] = b"1.2.2" if keras_1 else b"2.1.2"
        for layer, parts in layers.items():
            inner = group.create_group(layer)
            if keras_1:
                names = {p: f"{layer}_{ {'kernel': 'W', 'bias': 'b'}.get(p, p) }:0" for p in parts}
            else:
                names = {part: f"{layer}/{part}:0" for part in parts}
            inner.attrs["weight_names"] = [name.encode() for name in names.values()]
            for part, array in parts.items():
                inner.create_dataset(names[part], data=array)


# --- MatConvNet -------------------------------------------------------------------------------------

VGG_MEAN_RGB = (123.68, 116.779, 103.939)


def matconvnet_parameters(weights: Weights) -> list[tuple[str, Array]]:
    """Give the parameters of the FCN part: [h, w, in, out], transposed [h, w, out, in], red first."""
    found = []
    for layer, (weight, bias) in weights.layers.items():
        value = np.einsum("iohw->hwoi" if layer in DECONVOLUTIONS else "oihw->hwio", weight)
        if layer == "conv1_1":
            value = value[:, :, ::-1]
        found.append((f"{layer.replace('-', '_')}f", value))
        if bias is not None:
            found.append((f"{layer.replace('-', '_')}b", bias[None, :]))
    return found


def write_matconvnet(
    path: Path,
    weights: Weights,
    *,
    endings: tuple[str, str] = ("f", "b"),
    mean_rgb: Any = VGG_MEAN_RGB,
    inside_net: bool = False,
    parameters: list[tuple[str, Array]] | None = None,
) -> None:
    import scipy.io

    parameters = matconvnet_parameters(weights) if parameters is None else parameters
    fields = [("name", object), ("value", object), ("learningRate", object)]
    params = np.empty((1, len(parameters)), dtype=fields)
    for place, (name, value) in enumerate(parameters):
        renamed = name[:-1] + (endings[0] if name.endswith("f") else endings[1])
        params[0, place] = (renamed, np.array(value, np.float32, order="F"), np.single(1))
    mean = np.asarray(mean_rgb, np.float32)
    meta = {"normalization": {"averageImage": mean.reshape(1, 1, 3) if mean.ndim == 1 else mean}}
    content = {"params": params, "meta": meta, "layers": np.zeros((1, 0)), "vars": np.zeros((1, 0))}
    scipy.io.savemat(path, {"net": content} if inside_net else content)
