"""Models on disk: one ``.safetensors`` file that holds the weights and, as JSON, everything else.

A file is loaded whole or not at all, and nothing in it is ever executed. It is written beside its
place and renamed, so that the file that was there survives a full disk or a kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from napari_crfasrnn.config import Architecture, ModelConfig
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.experts import Panel
from napari_crfasrnn.higher_order import HigherOrder
from napari_crfasrnn.network import LiteNetwork, Network, SegmentationModel, build_network
from napari_crfasrnn.shared_encoder import PREFIX, encoder_hash, shared_encoder

FORMAT_VERSION = 1
SUFFIX = ".safetensors"

_METADATA_KEY = "napari-crfasrnn"
_NAMED_AT_MOST = 4  # tensors named in one sentence


class CheckpointError(ValueError):
    """A file that is not a model this version can load; the message says what is wrong with it."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself, read without its weights."""

    config: ModelConfig
    provenance: dict[str, Any]
    shared_encoder: Mapping[str, Any] | None = None
    """Where the encoder is not in the file but the starter's: how many "blocks" are read, their "sha256"."""


def save_checkpoint(model: SegmentationModel, path: Path | str, *, borrow_encoder: bool = False) -> None:
    """Write a model to one file, so that loading it gives the same predictions to the last bit.

    A tensor whose values all fit into 16 bits exactly is written so (the shipped encoder), any other
    with 32 bits.

    Parameters
    ----------
    model
        What to write.
    path
        The file, ending in ``.safetensors``. An existing one is replaced in one step at the end.
    borrow_encoder
        Leave out the encoder, which has to be that of the starter model: for the small models in the
        package. Their files are of no use elsewhere.

    Raises
    ------
    ValueError
        If ``path`` ends otherwise, a weight is not finite, or the encoder to leave out is another one.
    OSError
        If the file cannot be written; a file that was there is as it was.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"path must end in {SUFFIX}, got {path.name!r}")
    tensors = {name: _smallest(name, tensor) for name, tensor in _tensors(model).items()}
    about = {
        "format_version": FORMAT_VERSION,
        "config": model.config.model_dump(mode="json"),
        "provenance": model.provenance,
    }
    if borrow_encoder:
        about["shared_encoder"] = _left_out(model.network, tensors)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}
    try:
        metadata = json.dumps(about, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the provenance of a model must hold what JSON can, got {error}") from None
    _write_atomically(path, safetensors.torch.save(tensors, {_METADATA_KEY: metadata}))


def load_checkpoint(path: Path | str) -> SegmentationModel:
    """Read a model from a file.

    Raises
    ------
    FileNotFoundError
        If there is no file at ``path``.
    CheckpointError
        If the file is cut short, is of another kind, version or architecture, or if any tensor is
        missing, unexpected, of another shape, or not finite.
    """
    path = _existing(path)
    with _reading(path), safe_open(path, "pt") as file:
        info = _parse(path, file.metadata())
        # cloned, since the tensors of an open file are views of it
        tensors = {name: file.get_tensor(name).to(torch.float32, copy=True) for name in file.keys()}  # noqa: SIM118
    if info.shared_encoder is not None:
        tensors |= _borrowed(path, info.shared_encoder)
    with torch.device("meta"):  # the weights come from the file: none are drawn
        network = build_network(info.config)
    n_labels = len(info.config.classes)
    crf = CrfRnn(n_labels, info.config.crf)
    panel = None if info.config.panel is None else Panel(info.config.panel, n_labels)
    expected = {f"network.{name}": t for name, t in network.state_dict().items()}
    expected |= {f"crf.{name}": t for name, t in crf.state_dict().items()}
    higher_order = HigherOrder(n_labels, info.config.higher_order)
    if panel is not None:
        expected |= {f"panel.{name}": t for name, t in panel.state_dict().items()}
    if info.config.higher_order is not None:
        expected |= {f"higher_order.{name}": t for name, t in higher_order.state_dict().items()}
    _check_match(path, expected, tensors)
    network.load_state_dict(_part(tensors, "network."), assign=True)
    crf.load_state_dict(_part(tensors, "crf."))
    if panel is not None:
        panel.load_state_dict(_part(tensors, "panel."))
    if info.config.higher_order is not None:
        higher_order.load_state_dict(_part(tensors, "higher_order."))
    return SegmentationModel(info.config, network, crf, info.provenance, panel, higher_order)


def read_info(path: Path | str) -> CheckpointInfo:
    """Read what a file says about its model, without the weights; raises as `load_checkpoint` does."""
    path = _existing(path)
    with _reading(path), safe_open(path, "pt") as file:
        return _parse(path, file.metadata())


def round_to_half(module: torch.nn.Module) -> None:
    """Round the weights of a module to 16 bits in place, so that it is saved in half the space."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half())


def _tensors(model: SegmentationModel) -> dict[str, Tensor]:
    named = {f"network.{name}": t for name, t in model.network.state_dict().items()}
    named |= {f"crf.{name}": t for name, t in model.crf.state_dict().items()}
    if model.panel is not None:
        named |= {f"panel.{name}": t for name, t in model.panel.state_dict().items()}
    if model.config.higher_order is not None:
        named |= {f"higher_order.{name}": t for name, t in model.higher_order.state_dict().items()}
    return named


def _left_out(network: Network, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a file says of the encoder that it leaves out."""
    if not isinstance(network, LiteNetwork):
        raise ValueError(
            f"borrow_encoder is for networks on EfficientNet-Lite0, got a {type(network).__name__}"
        )
    n_blocks = network.feature_blocks[-1] + 1
    own = encoder_hash(tensors, n_blocks)
    if own != encoder_hash(shared_encoder(), n_blocks):
        raise ValueError("borrow_encoder is for models with the encoder of the starter, got another one")
    return {"blocks": n_blocks, "sha256": own}


def _borrowed(path: Path, wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the starter's encoder, if it is the one that a file's head was taught with."""
    encoder = shared_encoder()
    if encoder_hash(encoder, wanted["blocks"]) != wanted["sha256"]:
        raise CheckpointError(
            f"{path} goes with the encoder of another starter model than the one in this package: "
            "use the version of napari-crfasrnn that it came with"
        )
    return {name: tensor.to(torch.float32) for name, tensor in encoder.items()}


def _smallest(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor on the CPU in 16 bits if that loses nothing, else in 32."""
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"a model with weights that are not finite cannot be saved: {name} holds some")
    half = values.half()
    return half if torch.equal(half.float(), values) else values


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no model file at {path}")
    if not path.is_file():
        raise CheckpointError(f"a model is one {SUFFIX} file, but {path} is a folder")
    return path


@contextlib.contextmanager
def _reading(path: Path) -> Any:
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} cannot be read as a {SUFFIX} file, it is cut short or of another kind ({error})"
        ) from None


def _parse(path: Path, metadata: Mapping[str, str] | None) -> CheckpointInfo:
    """Check the metadata in the order in which a sentence about them makes sense."""
    if not metadata or _METADATA_KEY not in metadata:
        raise CheckpointError(f"{path} is a {SUFFIX} file, but not one that napari-crfasrnn has written")
    try:
        about = json.loads(metadata[_METADATA_KEY])
        version, config, provenance = about["format_version"], about["config"], about["provenance"]
        architecture = config["architecture"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"the description of the model in {path} is damaged ({error!r})") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version!r}, this program reads version {FORMAT_VERSION}: "
            "load it with the version of napari-crfasrnn that wrote it"
        )
    if architecture not in get_args(Architecture):
        raise CheckpointError(
            f"{path} holds a network of architecture {architecture!r}, "
            f"this program knows {' and '.join(get_args(Architecture))}"
        )
    try:
        shared = about.get("shared_encoder")
        if shared is not None:
            shared = {"blocks": int(shared["blocks"]), "sha256": str(shared["sha256"])}
        return CheckpointInfo(ModelConfig.model_validate(config), dict(provenance), shared)
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the settings of the model in {path} are not valid: {_in_one_line(error)}"
        ) from None


def _in_one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return str(error)


def _check_match(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise unless every tensor has its counterpart of the same shape, with finite values."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    both = [name for name in expected if name in found]
    misshapen = [
        f"{name} (is {_shape(found[name])}, should be {_shape(expected[name])})"
        for name in both
        if found[name].shape != expected[name].shape
    ]
    if missing or unexpected or misshapen:
        matched = len(both) - len(misshapen)
        parts = [f"{matched} of {len(expected)} tensors match"]
        parts += [_listing("missing", missing)] if missing else []
        parts += [_listing("unexpected", unexpected)] if unexpected else []
        parts += [_listing("of another shape", misshapen)] if misshapen else []
        raise CheckpointError(f"the weights in {path} do not fit its settings: {'; '.join(parts)}")
    broken = [name for name in both if not bool(torch.isfinite(found[name]).all())]
    if broken:
        raise CheckpointError(f"the weights in {path} are damaged: {_listing('not finite', broken)}")


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def _listing(kind: str, names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return f"{len(names)} {kind}: {', '.join(names[:_NAMED_AT_MOST])}{more}"


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _write_atomically(path: Path, data: bytes) -> None:
    """Write beside ``path``, flush to the disk, rename over it."""
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _share_as_usual(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        kept = "; the file that was there is unchanged" if path.exists() else ""
        raise OSError(error.errno, f"the model cannot be saved, {error.strerror}{kept}", str(path)) from None


def _share_as_usual(temporary: str) -> None:
    """Give the file the rights a new file gets: temporary files start private."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)
