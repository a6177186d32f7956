"""The class table as the person edits it, and where each class comes from in the chosen model."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from napari_crfasrnn.classes import BACKGROUND, ClassSpec, class_table
from napari_crfasrnn.palette import Color

N_KEYS = 9  # number keys 1 to 9; 0 is the background's


@dataclass(frozen=True)
class TableChange:
    """Another class table, and what becomes of the classes there are.

    Attributes
    ----------
    classes, origins
        The new ones, as in `ClassTable`.
    mapping
        Old name → new one, or None where the class goes; of the classes whose names do not stay.
    new_values
        For each old class its new value or None; None where values stay.
    """

    classes: tuple[str | ClassSpec, ...]
    origins: tuple[str | None, ...]
    mapping: Mapping[str, str | None] = field(default_factory=dict)
    new_values: tuple[int | None, ...] | None = None


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
        self._former: dict[str, tuple[str, ...]] = {}  # what classes were called before, the latest first

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(spec.name for spec in self.classes)

    @property
    def own_names(self) -> tuple[str, ...]:
        """Names of the classes that the chosen model does not know."""
        return tuple(name for name, origin in zip(self.names, self.origins, strict=True) if origin is None)

    @property
    def own_values(self) -> tuple[int, ...]:
        """Values of the classes that the chosen model does not know."""
        return tuple(value for value, origin in enumerate(self.origins) if origin is None)

    @property
    def is_unknown(self) -> bool:
        """Whether there are classes beside the first, and the chosen model knows none of these."""
        return len(self.classes) > 1 and not any(self.origins[1:])

    def is_unknown_to(self, model_names: Sequence[str]) -> bool:
        """Whether a model with classes of these names knows none of those beside the first."""
        return len(self.classes) > 1 and not any(self._origins_in(model_names)[1:])

    def key_of(self, value: int) -> int | None:
        """Return the number key of a class."""
        return next((key for key, v in self.keys.items() if v == value), None)

    def follow(self, model_names: Sequence[str]) -> None:
        """Take another model: its classes, or what it knows of ours."""
        if self.locked:
            self.origins = self._origins_in(model_names)
        else:
            self.replace(model_names, model_names, None)
            self.keys.clear()
            self.give_keys(())

    def values_of(self, names: Sequence[str]) -> tuple[int | None, ...]:
        """Return the values that classes of these names have here by now; None for those that are gone."""
        value_of = {origin: value for value, origin in enumerate(self._origins_in(names))}
        return tuple(value_of.get(name) for name in names)

    def _origins_in(self, model_names: Sequence[str]) -> tuple[str | None, ...]:
        """Return what a model with classes of these names calls each class; None where it knows none."""
        known = set(model_names)
        gone = known - set(self.names)  # a former name that is another class's by now says nothing
        former = {name: [old for old in self._former.get(name, ()) if old in gone] for name in self.names}
        return tuple(name if name in known else next(iter(former[name]), None) for name in self.names)

    def note_renames(self, mapping: Mapping[str, str | None]) -> None:
        """Note that classes have other names from now on: old name → new one, or None where a class goes."""
        former = {new: (old, *self._former.get(old, ())) for old, new in mapping.items() if new is not None}
        for old in mapping:
            self._former.pop(old, None)
        self._former.update(former)

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

    def added(self, name: str) -> TableChange:
        """Return the table with one more class, at its end."""
        return TableChange((*self.classes, name), (*self.origins, None))

    def renamed(self, value: int, name: str) -> TableChange:
        """Return the table with another name for a class."""
        old = self.classes[value]
        new = ClassSpec(name=name, color=old.color)
        return TableChange(self._with(value, new), self.origins, {old.name: new.name})

    def recolored(self, value: int, color: Color) -> TableChange:
        """Return the table with another colour for a class."""
        return TableChange(
            self._with(value, ClassSpec(name=self.classes[value].name, color=color)), self.origins
        )

    def without(self, value: int) -> TableChange:
        """Return the table without a class.

        Raises
        ------
        ValueError
            If it is the background.
        """
        if value == 0:
            raise ValueError("the first class stands for the background and stays: rename it instead")
        values = range(len(self.classes))
        return TableChange(
            tuple(self.classes[v] for v in values if v != value),
            tuple(self.origins[v] for v in values if v != value),
            {self.classes[value].name: None},
            tuple(None if v == value else v - (v > value) for v in values),
        )

    def begun(self, names: Sequence[str]) -> TableChange:
        """Return a table of the background and some names; of those that are here already, all stays.

        Raises
        ------
        ValueError
            If there is no name.
        """
        old = {name: value for value, name in enumerate(self.names)}
        wanted = [name.strip() for name in names if name.strip() != BACKGROUND]
        if not wanted:
            raise ValueError("a table of your own must hold a class beside the background: name one")
        new = [BACKGROUND, *wanted]
        return TableChange(
            tuple(self.classes[old[name]] if name in old else name for name in new),
            tuple(self.origins[old[name]] if name in old else None for name in new),
            {name: None for name in old if name not in new},
            tuple(new.index(name) if name in new else None for name in old),
        )

    def adopting(
        self, classes: Sequence[ClassSpec], held: Container[int]
    ) -> tuple[TableChange, tuple[ClassSpec, ...]]:
        """Return the table of a model, and which classes stay behind its own: those held that it lacks."""
        values = {spec.name: value for value, spec in enumerate(classes)}
        kept = tuple(
            spec for value, spec in enumerate(self.classes) if value in held and spec.name not in values
        )
        values |= {spec.name: value for value, spec in enumerate(kept, len(classes))}
        origins = (*(spec.name for spec in classes), *(None for _ in kept))
        new_values = tuple(values.get(name) for name in self.names)
        return TableChange((*classes, *kept), origins, new_values=new_values), kept

    def _with(self, value: int, spec: ClassSpec) -> tuple[ClassSpec, ...]:
        return (*self.classes[:value], spec, *self.classes[value + 1 :])

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
        """Return the renamed classes: name here, name in the chosen model."""
        return self._renamed(self.origins)

    def continues_in(self, model_names: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Return the renamed classes: name here, name in a model with classes of these names."""
        return self._renamed(self._origins_in(model_names))

    def _renamed(self, origins: Sequence[str | None]) -> tuple[tuple[str, str], ...]:
        pairs = zip(self.names, origins, strict=True)
        return tuple((name, origin) for name, origin in pairs if origin is not None and origin != name)
