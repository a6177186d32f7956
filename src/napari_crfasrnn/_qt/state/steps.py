"""What an undo of labels must take back besides the labels themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn.edits import Box, Mask, Places

if TYPE_CHECKING:
    from napari_crfasrnn._qt.state.work import Work

_MAX_STEPS = 100  # that an undo can take back, as many as napari has


class Step(Protocol):
    """Something that goes with a step in the undo history of the labels."""

    step: object  # what that history knows it by
    in_force: bool

    def put(self, work: Work, *, back: bool) -> None: ...


@dataclass(eq=False)
class VerifiedBox:
    """A part of a plane that a person said to be right."""

    index: tuple[int, ...]
    box: Box
    before: Mask
    after: Mask
    step: object
    in_force: bool = True

    def put(self, work: Work, *, back: bool) -> None:
        """Bring what it says into the verified pixels, or take it out again."""
        y0, x0, y1, x1 = self.box
        for mask in (work.verified[self.index], work.accepted.get(self.index)):
            if mask is not None:
                mask[y0:y1, x0:x1] = self.before if back else self.after


@dataclass(eq=False)
class Verdict:
    """All labels of some planes were said to be right, or no longer.

    For each plane what `Work.verified` and `Work.accepted` hold of it.
    """

    before: dict[tuple[int, ...], tuple[Mask, Mask | None]]
    after: dict[tuple[int, ...], tuple[Mask, Mask | None]]
    step: object
    in_force: bool = True

    def put(self, work: Work, *, back: bool) -> None:
        """Bring it into force, or take it back."""
        for index, (verified, accepted) in (self.before if back else self.after).items():
            work.verified[index] = verified
            if accepted is None:
                work.accepted.pop(index, None)
            else:
                work.accepted[index] = accepted


@dataclass(eq=False)
class BaselineChange:
    """Pixels whose baseline changed: a person painted there what was there, or Refine gave new labels.

    Of a box, ``where`` has those that are its own, eight in a byte.
    """

    places: Places
    before: NDArray[Any]  # labels of these places
    after: NDArray[Any]
    step: object
    where: NDArray[np.uint8] | None = None
    in_force: bool = True

    def put(self, work: Work, *, back: bool) -> None:
        """Bring it into the baseline, or take it out again."""
        values = self.before if back else self.after
        if self.where is None:
            work.baseline[self.places] = values
            return
        own = np.unpackbits(self.where, count=values.size).reshape(values.shape)
        np.copyto(work.baseline[self.places], values, where=own.astype(bool))


class Steps:
    """The steps of one image, the latest last."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    def add(self, step: Step) -> None:
        """Add a step that is in force; those before it that were undone are gone."""
        self._steps = [*(one for one in self._steps if one.in_force), step][-_MAX_STEPS:]

    def follow(self, work: Work, undone: Callable[[object], bool | None]) -> None:
        """Put steps in force, or out of it: ``undone`` says whether the history took one back."""
        for taken_back, steps in ((True, reversed(self._steps)), (False, iter(self._steps))):
            for one in steps:
                if one.in_force == taken_back and undone(one.step) is taken_back:
                    one.in_force = not taken_back
                    one.put(work, back=taken_back)
