"""The rounds of learning of a project: their reports and models, and which one is in force."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from zipfile import BadZipFile

import numpy as np

from napari_crfasrnn.edits import Labels, remap_labels
from napari_crfasrnn.project.database import Database, now
from napari_crfasrnn.project.files import remove_files, save_file
from napari_crfasrnn.project.items import Round
from napari_crfasrnn.project.records import read_events, read_renames, to_json, write_event

if TYPE_CHECKING:
    from napari_crfasrnn.network import SegmentationModel

_CLASSES = "classes"  # in the file of what a round was taught, beside the labels of images by their ids
_CURRENT = "current_round"  # key in the table "meta"; without it the last round is in force

_PARENT, _STARTED_FROM = "parent", "started_from"  # keys in a stored report, beside those of the training


class SavableModel(Protocol):
    """A model that can write itself to a file, such as `SegmentationModel`."""

    def save(self, path: Path) -> None: ...  # noqa: D102


class SavableReport(Protocol):
    """A report that can say itself in JSON values, such as `TrainReport`."""

    def as_dict(self) -> dict[str, Any]: ...  # noqa: D102


class ProjectRounds:
    """The rounds of one project.

    Parameters
    ----------
    folder
        Where the models are.
    database
        The project's.
    """

    def __init__(self, folder: Path, database: Database) -> None:
        self._folder, self._database = folder, database

    def all(self) -> tuple[Round, ...]:
        """Return the rounds, oldest first."""
        rows = self._database.rows("SELECT number, created, report, model_file FROM rounds ORDER BY number")
        return tuple(
            _round(number, created, json.loads(report), self._folder / file)
            for number, created, report, file in rows
        )

    def current(self) -> Round | None:
        """Return the round in force: the one chosen last, or else the last one; None before the first."""
        rounds = self.all()
        chosen = self._database.rows("SELECT value FROM meta WHERE key = ?", (_CURRENT,))
        if not chosen:
            return rounds[-1] if rounds else None
        return next((done for done in rounds if done.number == int(chosen[0][0])), None)

    def get(self, number: int) -> Round:
        """Return a round by its number.

        Raises
        ------
        KeyError
            If there is no such round.
        """
        for done in self.all():
            if done.number == number:
                return done
        raise KeyError(f"the project has no round {number}")

    def add(
        self,
        report: SavableReport | Mapping[str, Any],
        model: SavableModel,
        *,
        use: bool,
        parent: int | None = None,
        started_from: str = "",
        taught: Mapping[int, Labels] | None = None,
    ) -> Round:
        """Store a round, whole or not at all; without a parent, it is the round in force."""
        current = self.current()
        if parent is None:
            parent = current.number if current else 0
        if parent:
            started_from = started_from or self.get(parent).started_from
        values = dict(report) if isinstance(report, Mapping) else report.as_dict()
        text = to_json("report", values | {_PARENT: parent, _STARTED_FROM: started_from})
        number = 1 + max((done.number for done in self.all()), default=0)
        path = self._folder / f"round_{number:03d}.safetensors"
        with ExitStack() as undo:
            undo.callback(remove_files, path.parent, [path.name, _lesson(path).name])
            save_file(path, model.save)
            if taught is not None:
                save_file(_lesson(path), lambda part: self._write_lesson(part, taught))
            with self._database.transaction():
                self._database.execute(
                    "INSERT INTO rounds VALUES (?, ?, ?, ?)", (number, now(), text, path.name)
                )
                self._choose(number if use else current.number if current else 0)
                write_event(self._database, "round", {"round": number, "used": use})
            undo.pop_all()
        return self.get(number)

    def choose(self, number: int) -> Round | None:
        """Put a round in force; 0 for none."""
        chosen = self.get(number) if number else None
        with self._database.transaction():
            self._choose(number)
            write_event(self._database, "roll back", {"round": number})
        return chosen

    def remove(self, number: int) -> None:
        """Forget a round that is not in force, and its model."""
        done, current = self.get(number), self.current()
        if current is not None and current.number == number:
            raise ValueError(f"round {number} is in force: roll back to another one before it is removed")
        with self._database.transaction():
            self._choose(current.number if current else 0)
            self._database.execute("DELETE FROM rounds WHERE number = ?", (number,))
            write_event(self._database, "remove round", {"round": number})
        remove_files(self._folder, [done.model_path.name, _lesson(done.model_path).name])

    def load(self, number: int) -> SegmentationModel:
        """Return the model of a round."""
        # Only who asks for a model pays for loading torch.
        from napari_crfasrnn.checkpoint import load_checkpoint

        return load_checkpoint(self.get(number).model_path)

    def taught(self, number: int) -> dict[int, Labels]:
        """Return what a round was taught, in the values of the present class table."""
        path = _lesson(self.get(number).model_path)
        if not path.exists():
            return {}
        try:
            with np.load(path) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, BadZipFile) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        values = {name: value for value, (name,) in enumerate(self._names())}
        names: list[str | None] = [str(name) for name in arrays.pop(_CLASSES)]
        for mapping in read_renames(self._database, number):
            names = [None if name is None else mapping.get(name, name) for name in names]
        new_values = [None if name is None else values.get(name) for name in names]
        return {int(item): remap_labels(labels, new_values, len(values)) for item, labels in arrays.items()}

    def undecided(self) -> Round | None:
        """Return the last round if it was stored without being put in force, and nobody chose since."""
        rounds, is_open = self.all(), False
        last = rounds[-1].number if rounds else 0
        for event in read_events(self._database):
            if event["action"] == "round" and event["detail"]["round"] == last:
                is_open = not event["detail"]["used"]
            elif event["action"] == "roll back":
                is_open = False
        return rounds[-1] if is_open else None

    def files(self) -> list[str]:
        """Return the names of the files of models and of what they were taught."""
        models = [done.model_path for done in self.all()]
        return [path.name for model in models for path in (model, _lesson(model)) if path.exists()]

    def _write_lesson(self, path: Path, taught: Mapping[int, Labels]) -> None:
        names = np.array([name for (name,) in self._names()], dtype=str)
        arrays: dict[str, Any] = {str(item): labels for item, labels in taught.items()} | {_CLASSES: names}
        np.savez_compressed(path, **arrays)

    def _names(self) -> list[tuple[Any, ...]]:
        return self._database.rows("SELECT name FROM classes ORDER BY value")

    def _choose(self, number: int) -> None:
        self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_CURRENT, str(number)))


def _lesson(model: Path) -> Path:
    """Return where it is noted what the round of a model was taught."""
    return model.with_suffix(".taught.npz")


def _round(number: int, created: str, report: dict[str, Any], path: Path) -> Round:
    # Rounds of earlier versions know no parent: each went on from the one before.
    parent = report.pop(_PARENT, number - 1)
    return Round(number, created, report, path, parent, report.pop(_STARTED_FROM, ""))
