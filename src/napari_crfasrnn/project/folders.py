"""A project's folder as a whole: made new, or copied, all of it or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from napari_crfasrnn.classes import ClassSpec
from napari_crfasrnn.project.database import Database, create_database
from napari_crfasrnn.project.files import copy_file, publish_folder, require_free, saving
from napari_crfasrnn.project.records import write_classes, write_event

ARRAYS = "arrays"
MODELS = "models"


def create_folder(path: Path, table: Sequence[ClassSpec]) -> None:
    """Make the folder of a project without images.

    Raises
    ------
    FileExistsError
        If there is anything at that place.
    SaveError
        If it cannot be written.
    """
    require_free(path)

    def fill(folder: Path) -> None:
        _make_rooms(folder)
        create_database(folder)
        database = Database(folder, read_only=False)
        try:
            with database.transaction():
                write_classes(database, table)
                write_event(database, "create", {"classes": [spec.name for spec in table]})
        finally:
            database.close()

    with saving(path):
        publish_folder(path, fill)


def copy_folder(
    source: Path, target: Path, database: Database, arrays: Sequence[str], models: Sequence[str]
) -> None:
    """Copy a project that is open.

    Parameters
    ----------
    source, target
        Its folder, and where to.
    database
        The open one.
    arrays, models
        Names of the files that belong to it.

    Raises
    ------
    FileExistsError, SaveError
        As `create_folder`.
    """
    require_free(target)

    def fill(folder: Path) -> None:
        _make_rooms(folder)
        database.copy_to(folder)
        for place, names in ((ARRAYS, arrays), (MODELS, models)):
            for name in names:
                copy_file(source / place / name, folder / place / name)

    with saving(target):
        publish_folder(target, fill)


def _make_rooms(folder: Path) -> None:
    (folder / ARRAYS).mkdir()
    (folder / MODELS).mkdir()
