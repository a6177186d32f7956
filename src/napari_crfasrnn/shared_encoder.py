"""The encoder that the small models of the package share: it is in the starter's file, once.

A small model's file says how many blocks of that encoder its head reads, and their hash, so that it is
never joined to other weights. The blocks behind them come along, unread by the head: should they change in
a later starter, the small model stays what it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import as_file, files

from safetensors import safe_open
from torch import Tensor

PREFIX = "network.encoder."
_FILE = "starter.safetensors"


def shared_encoder() -> dict[str, Tensor]:
    """Read the tensors of the starter's encoder, with the names they have in its file."""
    with as_file(files("napari_crfasrnn") / "data" / _FILE) as path, safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(PREFIX)}  # noqa: SIM118


def encoder_hash(tensors: Mapping[str, Tensor], n_blocks: int) -> str:
    """Return the SHA-256 of an encoder's stem and first blocks as 16-bit numbers, by the order of names.

    Minus zero counts as zero: tiny weights that were rounded away say the same, whatever their sign was.
    """
    found = hashlib.sha256()
    for name in sorted(tensors):
        part = name.removeprefix(PREFIX)
        if part != name and (not part.startswith("blocks.") or int(part.split(".")[1]) < n_blocks):
            found.update(part.encode())
            found.update((tensors[name].detach().cpu().half().contiguous() + 0).numpy().tobytes())
    return found.hexdigest()
