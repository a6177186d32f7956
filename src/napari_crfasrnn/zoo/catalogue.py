"""The list of models, and loading one of them.

A checkpoint put into the user's models folder is in the list from then on, by its file name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from napari_crfasrnn.checkpoint import SUFFIX, CheckpointError, load_checkpoint, read_info
from napari_crfasrnn.classes import VOC_CLASSES, ClassSpec
from napari_crfasrnn.importing import import_model
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.zoo.downloads import download_path, not_here
from napari_crfasrnn.zoo.places import user_models_dir
from napari_crfasrnn.zoo.published import PUBLISHED, Published

STARTER = "starter"

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
    published: Published | None = None
    """For a model that others publish: where it comes from and on which terms."""

    @property
    def is_here(self) -> bool:
        """Whether it is on this computer, or has to be downloaded first."""
        return self.published is None or self.path.exists()


def list_models(*, downloadable: bool = False) -> tuple[ModelEntry, ...]:
    """List the models that can be named: the starter, others of the package, the user's own, downloaded ones.

    Parameters
    ----------
    downloadable
        Whether to list published models that are not on this computer yet, too.
    """
    entries = [_entry(path, shipped=True) for path in _shipped_files()]
    taken = _taken_names()
    entries += [_entry(path, shipped=False) for path in _own_files() if path.stem not in taken]
    entries += [entry for entry in _published_entries() if downloadable or entry.is_here]
    return tuple(entries)


def unreachable_models() -> tuple[Path, ...]:
    """Return the files in the user's folder whose names mean other models.

    The package's names keep their meaning: such a file is reached by its path, or by another name.
    """
    taken = _taken_names()
    return tuple(path for path in _own_files() if path.stem in taken)


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
        If the model has to be downloaded first, which `zoo.download_model` does.
        If ``classes`` are not as many as the outputs of the model, or the file is one of ours.
    CheckpointError
        If the file is not a model that this version can load.
    RuntimeError
        If the library that reads a foreign format is not installed.
    """
    path, found = Path(name_or_path), None
    if isinstance(name_or_path, str):
        for entry in list_models(downloadable=True):
            if entry.name == name_or_path:
                path, found = entry.path, entry.published
                if not entry.is_here and entry.published is not None:
                    raise ValueError(not_here(entry.published))
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
    if found is not None:
        imported.model.provenance |= {"title": found.title, "licence": found.licence.title}
    return imported.model


def _published_entries() -> list[ModelEntry]:
    return [
        ModelEntry(
            name=model.name,
            title=model.title,
            path=download_path(model),
            licence=model.licence.title,
            class_names=tuple(spec.name for spec in VOC_CLASSES),
            shipped=False,
            published=model,
        )
        for model in PUBLISHED
    ]


def _shipped_files() -> list[Path]:
    return sorted(_shipped_dir().glob(f"*{SUFFIX}"), key=lambda path: (path.stem != STARTER, path.stem))


def _own_files() -> list[Path]:
    folder = user_models_dir()
    return sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []


def _taken_names() -> set[str]:
    return {path.stem for path in _shipped_files()} | {model.name for model in PUBLISHED}


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
