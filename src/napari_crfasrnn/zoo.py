"""Models by name: the starter in the package, and the user's own in a folder.

A checkpoint put into the user's models folder is in the list from then on, by its file name.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import platformdirs

from napari_crfasrnn.checkpoint import SUFFIX, CheckpointError, load_checkpoint, read_info
from napari_crfasrnn.classes import ClassSpec
from napari_crfasrnn.importing import import_model
from napari_crfasrnn.network import SegmentationModel

STARTER = "starter"
MODELS_VARIABLE = "NAPARI_CRFASRNN_MODELS"
"""Environment variable that names another folder for the user's models."""

_NOT_STATED = "not stated"


@dataclass(frozen=True)
class ModelEntry:
    """One model of the list."""

    name: str
    """What `load_model` takes."""
    title: str
    """What people read."""
    path: Path
    licence: str
    """Terms of the weights, which are not those of the program."""
    class_names: tuple[str, ...]
    shipped: bool
    """Whether it came with the package."""
    problem: str | None = None
    """Why it cannot be loaded, if it cannot."""


def user_models_dir() -> Path:
    """Return the folder of the user's models; it need not exist yet."""
    override = os.environ.get(MODELS_VARIABLE)
    if override:
        return Path(override)
    return Path(platformdirs.user_data_path("napari-crfasrnn", appauthor=False)) / "models"


def list_models() -> tuple[ModelEntry, ...]:
    """List every model that can be named, those of the package first."""
    shipped = sorted(_shipped_dir().glob(f"*{SUFFIX}"))
    folder = user_models_dir()
    own = sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
    taken = {path.stem for path in shipped}
    entries = [_entry(path, shipped=True) for path in shipped]
    # the package's names keep their meaning: a file of the same name is reached by its path
    entries += [_entry(path, shipped=False) for path in own if path.stem not in taken]
    return tuple(entries)


def load_model(
    name_or_path: str | Path,
    *,
    classes: Iterable[str | ClassSpec] | None = None,
    allow_partial: bool = False,
) -> SegmentationModel:
    """Load a model by its name in `list_models`, or from a file.

    Parameters
    ----------
    name_or_path
        A name; or a file of ours, or one of another system that `importing.import_model` reads. What is
        doubtful about such an import is a ``UserWarning``.
    classes
        For a file of another system: its classes, in the order of its outputs. (To change the classes of
        a model, use `SegmentationModel.with_classes`.)
    allow_partial
        For a file of another system: take what matches, though something is missing or left over.

    Raises
    ------
    ValueError
        If there is neither a model of that name nor a file at that path; the message lists the names.
        If ``classes`` are not as many as the outputs of the model, or the file is one of ours.
    CheckpointError
        If the file is not a model that this version can load.
    RuntimeError
        If the library that reads a foreign format is not installed.
    """
    path = Path(name_or_path)
    if isinstance(name_or_path, str):
        for entry in list_models():
            if entry.name == name_or_path:
                path = entry.path
    if not path.exists():
        names = ", ".join(entry.name for entry in list_models()) or "none"
        raise ValueError(
            f"name_or_path must be the name of a model or the path of a {SUFFIX} file, "
            f"got {str(name_or_path)!r}; the names are: {names}; to add one, put its file into "
            f"{user_models_dir()}"
        )
    if path.suffix == SUFFIX or path.is_dir():
        if classes is not None:
            raise ValueError(f"classes are for files of other systems, got {path}: use with_classes instead")
        return load_checkpoint(path)
    imported = import_model(path, classes=classes, allow_partial=allow_partial)
    for warning in imported.report.warnings:
        warnings.warn(f"{path.name}: {warning}", UserWarning, stacklevel=2)
    return imported.model


def _shipped_dir() -> Path:
    with as_file(files("napari_crfasrnn") / "data") as folder:
        return folder


def _entry(path: Path, *, shipped: bool) -> ModelEntry:
    try:
        info = read_info(path)
    except (CheckpointError, OSError) as error:
        return ModelEntry(path.stem, path.stem, path, _NOT_STATED, (), shipped, problem=str(error))
    provenance = info.provenance
    return ModelEntry(
        name=path.stem,
        title=str(provenance.get("title", path.stem)),
        path=path,
        licence=str(provenance.get("licence", _NOT_STATED)),
        class_names=tuple(spec.name for spec in info.config.classes),
        shipped=shipped,
    )
