"""The state dict of the PyTorch port, ``crfasrnn_weights.pth``: 43 tensors under the names we use too."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from napari_crfasrnn.checkpoint import CheckpointError
from napari_crfasrnn.importing.source import CRF_ROLES, Role, Source, SourceTensor, damaged_if

_MAGIC = (b"PK\x03\x04", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46")
"""How files of torch begin: since 1.6 as a zip, before as a pickle of torch's magic number."""
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIX = "module."  # of models saved from inside torch.nn.DataParallel
_ROLES: dict[str, Role] = {"weight": "weight", "bias": "bias", **CRF_ROLES}


def read_pytorch(path: Path) -> Source:
    """Read a state dict, of today's torch or one before 1.6; nothing in it is executed.

    Raises
    ------
    CheckpointError
        If the file is damaged, holds more than tensors, or is no state dict.
    """
    with path.open("rb") as file:
        if not file.read(8).startswith(_MAGIC):
            raise CheckpointError(f"{path} cannot be read as a PyTorch state dict, it is of another kind")
    errors = (
        RuntimeError, OSError, EOFError, pickle.UnpicklingError, struct.error, ValueError, KeyError,
        IndexError, TypeError, AttributeError, AssertionError, OverflowError,
    )  # fmt: skip
    with damaged_if(path, "a PyTorch state dict", *errors):
        try:
            # only the zip files of torch >= 1.6 can be mapped; that halves the memory
            mapped = zipfile.is_zipfile(path)
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            if "Unsupported global" not in str(error) and "Unsupported class" not in str(error):
                raise
            raise CheckpointError(
                f"{path} holds Python objects, which could run code when loaded, and is not read: "
                "save the state dict of the model alone, with torch.save(model.state_dict(), path)"
            ) from None
    return Source("pytorch", tuple(_tensors(path, loaded)))


def _tensors(path: Path, loaded: Any) -> list[SourceTensor]:
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise CheckpointError(
            f"{path} must hold a state dict, tensors by name, got {type(loaded).__name__}: "
            "save one with torch.save(model.state_dict(), path)"
        )
    found = []
    for name, tensor in loaded.items():
        layer, _, part = str(name).removeprefix(_PREFIX).rpartition(".")
        values = tensor.detach().to(torch.float32).numpy()
        found.append(SourceTensor(str(name), layer, _ROLES.get(part), values))
    return found
