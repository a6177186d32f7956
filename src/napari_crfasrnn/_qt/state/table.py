"""The class table as the person edits it, and where each class comes from in the chosen model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from napari_crfasrnn.classes import ClassSpec, class_table

N_KEYS = 9  # number keys 1 to 9; 0 is the background's


class ClassTable:
    """Classes, number keys, and the names that the chosen model knows the classes by.

    Attributes
    ----------
    classes
        The table; empty until a model is chosen.
    origins
        For each class its name in the chosen model, or None.
    keys
        Number key → class value. A class keeps its key once it has one, so that fingers learn it.
    locked
        Whether models have to follow this table; else the table follows the model.
    edited
        Whether a person changed it.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.classes: tuple[ClassSpec, ...] = ()
        self.origins: tuple[str | None, ...] = ()
        self.keys: dict[int, int] = {}
        self.locked = False
        self.edited = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(spec.name for spec in self.classes)

    def key_of(self, value: int) -> int | None:
        """Return the number key of a class."""
        return next((key for key, v in self.keys.items() if v == value), None)

    def follow(self, model_names: Sequence[str]) -> None:
        """Take another model: its classes, or what it knows of ours."""
        if self.locked:
            known = set(model_names)
            self.origins = tuple(name if name in known else None for name in self.names)
        else:
            self.replace(model_names, model_names, None)
            self.keys.clear()
            self.give_keys(())

    def replace(
        self,
        classes: Iterable[str | ClassSpec],
        origins: Sequence[str | None],
        new_values: Sequence[int | None] | None,
    ) -> None:
        """Take another table.

        Parameters
        ----------
        classes, origins
            The new ones.
        new_values
            For each old class its new value or None; None where values stay.

        Raises
        ------
        ValueError
            If the table is empty, or repeats a name or has a blank one.
        """
        self.classes = class_table(classes)
        self.origins = tuple(origins)
        if new_values is not None:
            moved = {key: new_values[value] for key, value in self.keys.items() if value < len(new_values)}
            self.keys = {key: value for key, value in moved.items() if value is not None}
        self.give_keys(())

    def give_keys(self, present: Iterable[int]) -> None:
        """Give number keys to classes that have none: all of a short table, else those that are present."""
        self.keys = {key: value for key, value in self.keys.items() if value < len(self.classes)}
        short = len(self.classes) <= N_KEYS + 1
        wanted = range(1, len(self.classes)) if short else present
        for value in wanted:
            free = [key for key in range(1, N_KEYS + 1) if key not in self.keys]
            if value > 0 and free and self.key_of(value) is None:
                self.keys[value if short and value in free else free[0]] = value

    def continues(self) -> tuple[tuple[str, str], ...]:
        """Return the renamed classes: name here, name in the model."""
        pairs = zip(self.names, self.origins, strict=True)
        return tuple((name, origin) for name, origin in pairs if origin is not None and origin != name)
