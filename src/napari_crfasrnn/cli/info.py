"""``napari-crfasrnn info``."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from napari_crfasrnn.cli.models import model_facts, without_name
from napari_crfasrnn.cli.reporting import one_sentence, print_json

PACKAGES = (
    "torch", "numpy", "scipy", "scikit-image", "pydantic", "safetensors", "tifffile", "pillow",
    "napari", "magicgui", "superqt", "qtpy", "PyQt6", "PySide6",
)  # fmt: skip
AsJson = Annotated[bool, typer.Option("--json", help="Print for machines.")]


def info(as_json: AsJson = False) -> None:
    """Print versions, devices, models and folders: what a report of a problem should hold."""
    with one_sentence():
        facts = _facts()
    if as_json:
        print_json(facts)
        return
    for title, entries in facts.items():
        typer.echo(title)
        lines = (
            entries.items()
            if isinstance(entries, dict)
            else ((e["name"], without_name(e["title"], e["name"])) for e in entries)
        )
        for name, value in lines:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            typer.echo(f"  {name}: {'-' if shown in (None, '') else shown}")


def _facts() -> dict[str, Any]:
    import torch

    from napari_crfasrnn import __version__
    from napari_crfasrnn.lattice import build_config
    from napari_crfasrnn.zoo import unreachable_models, user_models_dir

    cuda = range(torch.cuda.device_count())
    return {
        "versions": {
            "napari-crfasrnn": __version__,
            "python": f"{platform.python_version()} ({sys.executable})",
            "system": platform.platform(),
            **{name: _version_of(name) for name in PACKAGES},
        },
        "lattice": build_config(),
        "devices": {
            "processors": os.cpu_count(),
            "torch threads": torch.get_num_threads(),
            "torch built for CUDA": torch.version.cuda,
            "CUDA devices": [torch.cuda.get_device_name(number) for number in cuda],
        },
        "folders": {
            "your models": str(user_models_dir()),
            "not used, names taken": [path.name for path in unreachable_models()],
        },
        "models": model_facts(),
    }


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
