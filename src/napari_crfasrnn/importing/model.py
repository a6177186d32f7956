"""From a foreign file to a model of ours, with a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from napari_crfasrnn.checkpoint import CheckpointError
from napari_crfasrnn.classes import VOC_CLASSES, ClassSpec, class_table
from napari_crfasrnn.config import CrfConfig, ModelConfig, Preprocessing
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.fcn import Fcn8s
from napari_crfasrnn.importing.caffe import read_caffe
from napari_crfasrnn.importing.keras import read_keras
from napari_crfasrnn.importing.matconvnet import read_matconvnet
from napari_crfasrnn.importing.pytorch import read_pytorch
from napari_crfasrnn.importing.report import (
    FORMAT_TITLES,
    CompatibilityCheck,
    ImportMismatchError,
    ImportReport,
    Match,
    Mismatch,
    Verdict,
)
from napari_crfasrnn.importing.source import Format, Source, SourceTensor
from napari_crfasrnn.importing.table import converted, our_name
from napari_crfasrnn.network import SegmentationModel

_READERS = {
    "pytorch": read_pytorch,
    "caffe": read_caffe,
    "keras": read_keras,
    "matconvnet": read_matconvnet,
}
_SUFFIXES: dict[str, Format] = {
    ".pth": "pytorch", ".pt": "pytorch", ".caffemodel": "caffe", ".binaryproto": "caffe",
    ".h5": "keras", ".hdf5": "keras", ".mat": "matconvnet",
}  # fmt: skip
SUFFIXES = tuple(_SUFFIXES)
"""How the files that can be imported usually end."""

_MAGIC: tuple[tuple[bytes, Format], ...] = (
    (b"PK\x03\x04", "pytorch"),  # torch since 1.6: a zip
    (
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46",
        "pytorch",
    ),  # before: a pickle with torch's number
    (b"\x89HDF\r\n\x1a\n", "keras"),
    (b"MATLAB ", "matconvnet"),
)
_TEXT = (b"<!", b"<html", b"<HTML", b"<?xml", b"version https://git-lfs")

_CRF_NAMES = ("crf.spatial_weights", "crf.bilateral_weights", "crf.compatibility")
_WITHOUT_CRF = "MatConvNet keeps the FCN part only: the CRF starts with the original's initial weights"


@dataclass(frozen=True, eq=False)
class Imported:
    """A model, and how it came about."""

    model: SegmentationModel
    report: ImportReport


def file_format(path: Path) -> Format:
    """Say which foreign format a file has, by its first bytes and, where these say nothing, by its name.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    CheckpointError
        If it is none of them.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no model file at {path}")
    if not path.is_file():
        raise CheckpointError(f"a model is one file, but {path} is a folder")
    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        raise CheckpointError(f"{path} is empty")
    if head.startswith(_TEXT):
        raise CheckpointError(
            f"{path} is a text, not a model: perhaps the page that stood where the model should be; "
            "download it again"
        )
    for magic, found in _MAGIC:
        if head.startswith(magic):
            return found
    by_name = _SUFFIXES.get(path.suffix.lower())
    if by_name is None:
        raise CheckpointError(
            f"{path} is none of the files that can be read: .safetensors of napari-crfasrnn, "
            f"{', '.join(SUFFIXES)}"
        )
    return by_name


def import_model(
    path: Path | str,
    *,
    classes: Iterable[str | ClassSpec] | None = None,
    allow_partial: bool = False,
) -> Imported:
    """Read a CRF-RNN of another system.

    Parameters
    ----------
    path
        A PyTorch state dict, a Caffe model (V1 or V2), Keras weights, or a MatConvNet DagNN.
    classes
        The classes in the order of the model's outputs; if None, those of PASCAL VOC for 21 outputs, and
        "background", "class 1", ... otherwise.
    allow_partial
        Whether to take what matches; the rest starts as in a new model, with the same numbers each time.

    Raises
    ------
    FileNotFoundError
        If there is no file at ``path``.
    ImportMismatchError
        If a tensor of the file or of the model has no counterpart and ``allow_partial`` is not set.
    CheckpointError
        If the file is damaged, of another kind, or holds values that are not finite.
    ValueError
        If ``classes`` are not as many as the outputs of the model.
    RuntimeError
        If the library that reads the format is not installed.
    """
    path = Path(path)
    source = _READERS[file_format(path)](path)
    chosen, unexpected = _chosen(source)
    n_labels = _n_labels(chosen)
    config = _config(path, source, chosen, n_labels, classes)
    with torch.device("meta"):  # the weights come from the file: none are drawn
        network = Fcn8s(n_labels, config.width)
    crf = CrfRnn(n_labels, config.crf)
    # MatConvNet has no CRF layer: its models are the FCN part, and whole without it
    has_crf = source.format != "matconvnet"
    wanted = {f"network.{name}": tuple(t.shape) for name, t in network.state_dict().items()}
    wanted |= dict.fromkeys(_CRF_NAMES if has_crf else (), (n_labels, n_labels))
    for ours in [name for name in chosen if name not in wanted]:
        unexpected.append(chosen.pop(ours).name)

    values: dict[str, NDArray[np.float32]] = {}
    matched, misshapen = [], []
    for ours in sorted(chosen, key=list(wanted).index):
        tensor = chosen.pop(ours)  # let go of each once it is converted: they are large
        array = converted(tensor, ours, wanted[ours], source.format, blue_first=source.blue_first)
        if array is None:
            misshapen.append(Mismatch(tensor.name, ours, tensor.values.shape, wanted[ours]))
        else:
            values[ours] = array
            matched.append(Match(tensor.name, ours, array.shape))
    _check_finite(path, values)
    report = ImportReport(
        path=str(path),
        format=source.format,
        n_labels=n_labels,
        matched=tuple(matched),
        missing=tuple(n for n in wanted if n not in values and n not in {m.ours for m in misshapen}),
        unexpected=tuple(unexpected),
        misshapen=tuple(misshapen),
        all_zero=tuple(name for name, array in values.items() if not array.any()),
        compatibility=_sign(values.get("crf.compatibility")),
        preprocessing=_preprocessing_text(source),
        kernels=_kernels_text(source, config.crf),
        notes=source.notes + (() if has_crf else (_WITHOUT_CRF,)),
    )
    if not (report.is_complete or (allow_partial and matched)):
        raise ImportMismatchError(report)
    if not report.is_complete:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = Fcn8s(n_labels, config.width)
    _fill(network, _part(values, "network."))
    _fill(crf, _part(values, "crf."))
    provenance = {
        "title": f"{path.stem} ({FORMAT_TITLES[source.format]})",
        "imported": {"file": path.name, "format": source.format, "complete": report.is_complete},
    }
    return Imported(SegmentationModel(config, network, crf, provenance), report)


def _chosen(source: Source) -> tuple[dict[str, SourceTensor], list[str]]:
    """Return the tensor for each name of ours, and the names of those that are for none.

    Where a file has a layer under a known name and under one with more words, the known one counts.
    """
    chosen: dict[str, tuple[bool, SourceTensor]] = {}
    unexpected = []
    for tensor in source.tensors:
        ours = our_name(tensor)
        if ours is None:
            unexpected.append(tensor.name)
            continue
        name, exact = ours
        if name not in chosen:
            chosen[name] = (exact, tensor)
        elif exact and not chosen[name][0]:
            unexpected.append(chosen[name][1].name)
            chosen[name] = (exact, tensor)
        else:
            unexpected.append(tensor.name)
    return {name: tensor for name, (_, tensor) in chosen.items()}, unexpected


def _size(chosen: Mapping[str, SourceTensor], name: str) -> int | None:
    """Return how many outputs a layer has, which its bias says whatever the layout."""
    tensor = chosen.get(f"network.{name}.bias")
    return None if tensor is None or tensor.values.size == 0 else tensor.values.size


def _n_labels(chosen: Mapping[str, SourceTensor]) -> int:
    for layer in ("score_fr", "score_pool4", "score_pool3", "upscore2"):
        size = _size(chosen, layer)
        if size is not None:
            return size
    for name in _CRF_NAMES:
        if name in chosen:
            return math.isqrt(chosen[name].values.size) or 1
    return len(VOC_CLASSES)


def _config(
    path: Path,
    source: Source,
    chosen: Mapping[str, SourceTensor],
    n_labels: int,
    classes: Iterable[str | ClassSpec] | None,
) -> ModelConfig:
    full = {"fc6": 4096, "fc7": 4096, "conv5_3": 512, "conv1_1": 64}
    widths = [size / n for name, n in full.items() if (size := _size(chosen, name)) is not None]
    if classes is not None:
        table = class_table(classes)
        if len(table) != n_labels:
            raise ValueError(
                f"classes must be as many as the outputs of the model in {path}, {n_labels}, got {len(table)}"
            )
    elif n_labels == len(VOC_CLASSES):
        table = VOC_CLASSES
    else:
        table = class_table(["background", *(f"class {value}" for value in range(1, n_labels))])
    preprocessing = Preprocessing.vgg()
    if source.mean_rgb is not None:
        mean = (source.mean_rgb[2], source.mean_rgb[1], source.mean_rgb[0])
        preprocessing = preprocessing.model_copy(update={"mean": mean})
    try:
        return ModelConfig(
            architecture="fcn-8s",
            width=widths[0] if widths else 1.0,
            classes=table,
            preprocessing=preprocessing,
            crf=_crf_config(source),
        )
    except ValidationError as error:
        said = "; ".join(str(e["msg"]) for e in error.errors())
        raise CheckpointError(f"the model in {path} is no FCN-8s: {said}") from None


def _crf_config(source: Source) -> CrfConfig:
    """Return the original's settings with the widths that the file states.

    Not with its number of iterations: a snapshot has that of training, and was made for more in prediction.
    """
    config, stated = CrfConfig.original(), source.crf
    if stated is None:
        return config
    names = ("theta_alpha", "theta_beta", "theta_gamma")
    return config.model_copy(update={name: getattr(stated, name) for name in names})


def _kernels_text(source: Source, crf: CrfConfig) -> str:
    widths = f"{crf.theta_alpha:g}, {crf.theta_beta:g} and {crf.theta_gamma:g}"
    if source.crf is None:
        return f"of the original, {widths} (the file does not say)"
    saved = source.crf.n_iterations  # 0 where the file leaves it out
    if not saved:
        return f"of the file, {widths}; {crf.n_iterations} mean-field iterations are used"
    return (
        f"of the file, {widths}; it was saved from a net of {saved} mean-field iterations, "
        f"{crf.n_iterations} are used"
    )


def _sign(compatibility: NDArray[np.float32] | None) -> CompatibilityCheck:
    if compatibility is None:
        return CompatibilityCheck(0, 0, "not in the file")
    diagonal = np.diagonal(compatibility)
    negative, positive = int((diagonal < 0).sum()), int((diagonal > 0).sum())
    verdict: Verdict = "undecided"
    if 2 * negative > len(diagonal):
        verdict = "as expected"
    elif 2 * positive > len(diagonal):
        verdict = "reversed"
    return CompatibilityCheck(negative, positive, verdict)


def _preprocessing_text(source: Source) -> str:
    if source.mean_rgb is None:
        return "of the original: blue first, minus the mean of VGG-16 (the file does not say)"
    red, green, blue = (f"{value:.3f}" for value in source.mean_rgb)
    order = "blue" if source.blue_first else "red"
    turned = "" if source.blue_first else ", turned to blue first"
    return f"{order} first{turned}, minus the mean of the file: red {red}, green {green}, blue {blue}"


def _check_finite(path: Path, values: Mapping[str, NDArray[np.float32]]) -> None:
    broken = [name for name, array in values.items() if not np.isfinite(array).all()]
    if broken:
        raise CheckpointError(
            f"the weights in {path} are damaged: {len(broken)} not finite: {', '.join(broken[:4])}"
        )


def _part(values: Mapping[str, NDArray[np.float32]], prefix: str) -> dict[str, NDArray[np.float32]]:
    return {name.removeprefix(prefix): v for name, v in values.items() if name.startswith(prefix)}


def _fill(module: torch.nn.Module, values: Mapping[str, NDArray[np.float32]]) -> None:
    """Put the arrays into the module, without copies."""
    state = {name: torch.from_numpy(array) for name, array in values.items()}
    module.load_state_dict(state, strict=False, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
