"""What is counted on the images, in a thread: shares of classes, edits, and what of these was learnt."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_crfasrnn._qt.worker import Report, Task, Worker

if TYPE_CHECKING:
    from napari_crfasrnn._qt.state.planes import PlaneIndex
    from napari_crfasrnn._qt.state.standing import Standing
    from napari_crfasrnn._qt.state.table import ClassTable
    from napari_crfasrnn._qt.state.work import Work
    from napari_crfasrnn.edits import EditSummary

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Numbers:
    """What is counted on an image: the shares on the plane that is shown, the rest on all of it."""

    shares: tuple[float, ...]
    present: tuple[int, ...]
    summary: EditSummary
    n_learnt: int = 0
    """Labels that the chosen model was taught as they are."""

    @property
    def n_new(self) -> int:
        """Labels to learn from that the chosen model was not taught."""
        return self.summary.n_labelled - self.n_learnt


class Counts:
    """Counts what is on images, in a thread.

    Attributes
    ----------
    numbers
        The last `Numbers` of each image, by its key.
    """

    counted = Signal(str)  # key of an image whose `Numbers` are new

    def __init__(
        self, worker: Worker, works: Mapping[str, Work], table: ClassTable, standing: Standing
    ) -> None:
        self.numbers: dict[str, Numbers] = {}
        self._works, self._table, self._standing = works, table, standing
        self._worker = worker
        self._counting: set[str] = set()
        self._counted: dict[str, PlaneIndex] = {}  # which plane of an image was counted last
        self._count_again: dict[str, tuple[PlaneIndex, str]] = {}  # changed meanwhile: the plane, the model

    @property
    def busy(self) -> bool:
        """Whether `Numbers` are on their way."""
        return bool(self._counting)

    @property
    def is_settled(self) -> bool:
        """Whether there are labels that a person gave, or said to be right."""
        return any(numbers.summary.n_labelled for numbers in self.numbers.values())

    def forget(self, key: str) -> None:
        """Forget the `Numbers` of an image, whose classes have other values now, say."""
        self.numbers.pop(key, None)

    def clear(self) -> None:
        """Forget all of them."""
        self.numbers.clear()

    def count(self, key: str, index: PlaneIndex, model: str) -> None:
        """Count anew what is on an image, its shares on a plane, and what a model was taught of it."""
        work = self._works.get(key)
        if work is None:
            return
        if key in self._counting:
            self._count_again[key] = index, model
            return
        self._counting.add(key)
        self._counted[key] = index
        n_classes = len(self._table.classes)

        def run(task: Task, report: Report) -> Numbers:
            shares = work.shares(index, n_classes)
            n_learnt = self._standing.n_learnt(model, key, work.known())
            return Numbers(shares, tuple(work.present(n_classes)), work.summary(), n_learnt)

        def done(numbers: Numbers) -> None:
            if self._works.get(key) is work and n_classes == len(self._table.classes):
                self.numbers[key] = numbers
                by_share = sorted(numbers.present, key=lambda value: -numbers.shares[value])
                self._table.give_keys(by_share)
                self.counted.emit(key)
            go_on()

        def failed(error: Exception) -> None:
            _log.error("counting failed", exc_info=error)
            go_on()

        def go_on() -> None:
            self._counting.discard(key)
            if key in self._count_again:
                self.count(key, *self._count_again.pop(key))

        self._worker.start("count", run, done, failed)

    def count_learnt(self, model: str, keys: Iterable[str] | None = None) -> None:
        """Count anew what a model was taught of images that were counted before: all, or those given."""
        for key in list(self.numbers) if keys is None else keys:
            if key in self._counted:
                self.count(key, self._counted[key], model)
