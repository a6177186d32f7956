"""Rows of the database turned into values, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from napari_crfasrnn.classes import ClassSpec
from napari_crfasrnn.project.database import Database, now
from napari_crfasrnn.project.items import ArrayStore, Item

ITEM_COLUMNS = (
    "id", "name", "axes", "shape", "dtype", "spacing", "units", "metadata",
    "stack_shape", "plane_shape", "created", "modified",
)  # fmt: skip


def read_item(row: tuple[Any, ...], store: ArrayStore) -> Item:
    """Return the item of a row of `ITEM_COLUMNS`."""
    values = dict(zip(ITEM_COLUMNS, row, strict=True))
    spacing, units = json.loads(values["spacing"]), json.loads(values["units"])
    height, width = json.loads(values["plane_shape"])
    return Item(
        id=values["id"],
        name=values["name"],
        axes=values["axes"],
        shape=tuple(json.loads(values["shape"])),
        dtype=values["dtype"],
        spacing=None if spacing is None else tuple(spacing),
        units=None if units is None else tuple(units),
        metadata=json.loads(values["metadata"]),
        stack_shape=tuple(json.loads(values["stack_shape"])),
        plane_shape=(height, width),
        created=values["created"],
        modified=values["modified"],
        _store=store,
    )


def write_item(database: Database, values: Mapping[str, Any]) -> None:
    """Enter a new item, inside the caller's transaction; lists and mappings are stored as JSON."""
    stored = {
        key: value if isinstance(value, str | int) else to_json(key, value) for key, value in values.items()
    }
    stored |= {"created": now(), "modified": now()}
    database.execute(
        f"INSERT INTO items ({', '.join(stored)}) VALUES ({', '.join('?' * len(stored))})",
        tuple(stored.values()),
    )


def last_item_id(database: Database) -> int:
    """Return the highest number that an item ever had."""
    rows = database.rows("SELECT seq FROM sqlite_sequence WHERE name = 'items'")
    return int(rows[0][0]) if rows else 0


def read_classes(database: Database) -> tuple[ClassSpec, ...]:
    """Return the class table."""
    rows = database.rows("SELECT name, color FROM classes ORDER BY value")
    return tuple(ClassSpec(name=name, color=json.loads(color)) for name, color in rows)


def write_classes(database: Database, table: Sequence[ClassSpec]) -> None:
    """Replace the class table, inside the caller's transaction."""
    database.execute("DELETE FROM classes")
    for value, spec in enumerate(table):
        database.execute("INSERT INTO classes VALUES (?, ?, ?)", (value, spec.name, json.dumps(spec.color)))


def map_classes(
    old: Sequence[ClassSpec],
    new: Sequence[ClassSpec],
    mapping: Mapping[str, str | None],
) -> list[int | None]:
    """Return the new value of each old class, None for "unlabelled".

    Raises
    ------
    ValueError
        If the mapping names a class that neither table has.
    """
    old_names = [spec.name for spec in old]
    value_of = {spec.name: value for value, spec in enumerate(new)}
    for source, target in mapping.items():
        if source not in old_names:
            raise ValueError(
                f"mapping must go from classes of the project, got {source!r}: it has {old_names}"
            )
        if target is not None and target not in value_of:
            raise ValueError(
                f"mapping must lead to classes of the new table, got {target!r}: add it to classes"
            )
    new_values: list[int | None] = []
    for name in old_names:
        target = mapping.get(name, name)
        new_values.append(None if target is None else value_of.get(target))
    return new_values


def write_event(database: Database, action: str, detail: Mapping[str, Any]) -> None:
    """Note what was done, inside the caller's transaction."""
    database.execute(
        "INSERT INTO events (time, action, detail) VALUES (?, ?, ?)", (now(), action, json.dumps(detail))
    )


def read_events(database: Database) -> tuple[Mapping[str, Any], ...]:
    """Return what was done, oldest first."""
    rows = database.rows("SELECT time, action, detail FROM events ORDER BY id")
    return tuple(
        {"time": time, "action": action, "detail": json.loads(detail)} for time, action, detail in rows
    )


def read_renames(database: Database, since: int = 0) -> tuple[Mapping[str, str | None], ...]:
    """Return what became of classes since a round was stored, or ever, change after change."""
    found: list[Mapping[str, str | None]] = []
    for event in read_events(database):
        if since and event["action"] == "round" and event["detail"]["round"] == since:
            found.clear()
        elif event["action"] == "classes":
            found.append(event["detail"]["mapping"])
    return tuple(found)


def to_json(name: str, values: object) -> str:
    """Return values as JSON text; NumPy numbers and arrays become numbers and lists, NaN becomes null.

    Raises
    ------
    TypeError
        If something in them has no JSON form.
    """
    return json.dumps(_plain(name, values), allow_nan=False)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(name, entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, entry) for entry in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    raise TypeError(
        f"{name} must hold JSON values (numbers, text, lists, mappings), got {type(value).__name__}"
    )
