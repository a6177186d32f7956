"""The projects that were open before: where they lie, and what they are called."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import platformdirs

from napari_crfasrnn.edits import summarize
from napari_crfasrnn.project import Item, Project
from napari_crfasrnn.project.database import DATABASE

_log = logging.getLogger(__name__)

DATA_VARIABLE = "NAPARI_CRFASRNN_DATA"
"""Environment variable that names another folder for the projects that were not saved by name."""

NAMED = "named.json"  # in the folder of projects: where those are that were saved by name
MOST_NAMED = 20


@dataclass(frozen=True)
class Recent:
    """A project that can be opened again."""

    path: Path
    title: str
    modified: datetime


def data_dir() -> Path:
    """Return the folder of the projects that were not saved by name."""
    override = os.environ.get(DATA_VARIABLE)
    base = Path(override) if override else platformdirs.user_data_path("napari-crfasrnn", appauthor=False)
    return base / "projects"


def is_named(path: Path) -> bool:
    """Return whether a person chose the place of a project."""
    return path.parent != data_dir().absolute()


def remember(path: Path) -> None:
    """Put a folder that a person chose at the head of the list of these; others are found anyway."""
    path = path.absolute()
    if not is_named(path):
        return
    places = [path, *(other for other in _named() if other != path)][:MOST_NAMED]
    try:
        data_dir().mkdir(parents=True, exist_ok=True)
        (data_dir() / NAMED).write_text(json.dumps([str(place) for place in places]), encoding="utf-8")
    except OSError as error:
        _log.warning("the list of projects cannot be written: %s", error)


def recent_projects(but: Path | None = None, limit: int = 8) -> list[Recent]:
    """Return the projects that were open before, the one changed last first, without the one at ``but``.

    Those that were not saved by name go by their images, and are left out where they hold samples alone
    that nobody corrected.
    """
    named = [place for place in _named() if (place / DATABASE).is_file()]
    known = {_identity(place) for place in named}  # the folders that these were begun in are stale
    places = [*named, *(file.parent for file in data_dir().glob(f"*/{DATABASE}"))]
    changed = {place: (place / DATABASE).stat().st_mtime for place in places if place != but}
    recents: list[Recent] = []
    for place in sorted(changed, key=changed.__getitem__, reverse=True):
        if len(recents) == limit:
            break
        title = place.name
        if place not in named:
            identity, title = _about(place)
            if identity in known:
                continue
        if title:
            recents.append(Recent(place, title, datetime.fromtimestamp(changed[place])))
    return recents


def _named() -> list[Path]:
    """Return the folders that a person chose for projects, the latest first."""
    try:
        found = json.loads((data_dir() / NAMED).read_text(encoding="utf-8"))
        return [Path(place) for place in found]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:  # a list for convenience: nobody's work depends on it
        _log.warning("the list of projects cannot be read: %s", error)
        return []


def _is_work(project: Project) -> bool:
    """Return whether somebody may want to go on with a project: it is of no sample, or something was done."""
    return bool(project.rounds) or any(
        not item.metadata.get("sample") or _is_corrected(item) for item in project.items
    )


def _is_corrected(item: Item) -> bool:
    done = summarize(item.labels(), item.baseline(), item.verified())
    return bool(done.n_edited or done.n_verified)


def _identity(path: Path) -> str:
    """Return the identity of a project, which copies share; "" where it cannot be read."""
    try:
        with Project.open(path, read_only=True) as project:
            return project.id
    except (ValueError, OSError):
        return ""


def _about(path: Path) -> tuple[str, str]:
    """Return the identity of a project, which copies share, and what it is called by its images.

    The latter is "" where nobody may want to go on with it.
    """
    try:
        with Project.open(path, read_only=True) as project:
            identity = project.id
            names = [item.name for item in project.items] if _is_work(project) else []
    except (ValueError, OSError):
        return "", ""  # not ours to repair; opening it by hand says what is wrong
    return identity, ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
