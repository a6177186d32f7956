"""Two rounds of learning side by side: what they make of the plane that is shown, and where they differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from napari_crfasrnn._qt.layers import Comparison, shows_planes
from napari_crfasrnn._qt.state import Labels, PlaneIndex
from napari_crfasrnn.classes import ClassSpec
from napari_crfasrnn.edits import LabelChanges, compare_labels

if TYPE_CHECKING:
    from napari_crfasrnn._qt.state.shelf import ModelChoice
    from napari_crfasrnn._qt.workbench import Workbench

MOST_NAMED = 2  # classes in the line; those that changed most
NOW = "The labels now"
WORK = ("segment", "refine", "learn", "open")  # tasks that go on with the work
NO_PLANES = "Rounds are compared on a slice: show the image in 2-D, not turned."


class Comparing:
    """Comparing rounds in one viewer.

    Parameters
    ----------
    bench
        The viewer's workbench.

    Attributes
    ----------
    changes
        Where the two that are shown differ; None while nothing is compared.
    """

    def __init__(self, bench: Workbench) -> None:
        self.changes: LabelChanges | None = None
        self._bench, self._session = bench, bench.session
        self._comparison = Comparison(bench.viewer, self._silently)
        self._where: tuple[str | None, PlaneIndex] | None = None
        bench.changed.connect(self._follow)
        self._session.finished.connect(self._on_finished)

    def start(self, one: str, other: str) -> None:
        """Compare two models on the shelf, by their names: the first is shown on the left."""
        bench, session = self._bench, self._session
        if bench.image is None or session.busy is not None:
            return
        self.end()
        bench.patching.leave()
        bench.doubts.end()
        if not shows_planes(bench.viewer):
            session.tasks.say("learn", NO_PLANES)
            return
        try:
            image = bench.read_image()
        except ValueError as error:
            session.tasks.complain("learn", "Comparing", error)
            return
        key, index = bench.key, bench.index

        def show(choices: tuple[ModelChoice, ModelChoice], first: Labels, second: Labels) -> None:
            if (bench.key, bench.index) != (key, index):
                session.tasks.say("learn", "Another image is shown by now: nothing to compare.")
                return
            classes = session.table.classes
            titles = [choice.title.split(":")[0] for choice in choices]  # what it is for takes much room
            if bench.work is not None and session.table.is_unknown_to(choices[0].class_names):
                # What a model makes of classes that it does not know is nothing that anybody has seen.
                first, titles[0] = bench.work.labels[index].copy(), NOW
            self.changes = compare_labels(first, second, len(classes))
            self._where = key, index
            self._comparison.show(
                bench.image, index, image.shape, (first, second), self.changes.where, classes, titles
            )
            said = f"Left: {titles[0]}. Right: {titles[1]}. {describe(self.changes, classes)}"
            session.tasks.say("learn", said, "plain", "end-comparing")

        session.compare((one, other), image, index, show)

    def end(self) -> None:
        """Show again what was shown before."""
        if self._where is not None:
            self._comparison.hide()
            self.changes = self._where = None
            self._session.tasks.say("learn", "")

    def close(self) -> None:
        """Stop."""
        self._bench.changed.disconnect(self._follow)
        self._session.finished.disconnect(self._on_finished)
        self.end()

    def _follow(self) -> None:
        """End where a person looks at another image or slice, or works on."""
        if self._where is None:
            return
        busy = self._session.busy
        works_on = busy is not None and busy.what in WORK
        elsewhere = self._where != (self._bench.key, self._bench.index)
        if works_on or elsewhere or not shows_planes(self._bench.viewer):
            self.end()

    def _on_finished(self, what: str) -> None:
        if what in WORK:  # it may have been over before anybody looked
            self.end()

    @contextmanager
    def _silently(self) -> Iterator[None]:
        with ExitStack() as stack:
            for group in self._bench.labelling.groups.values():
                stack.enter_context(group.silently())
            yield


def describe(changes: LabelChanges, classes: tuple[ClassSpec, ...]) -> str:
    """Return in one sentence how many pixels differ, and of which classes."""
    if not changes.n_changed:
        return "No pixel differs."
    order = sorted(range(len(classes)), key=lambda value: -(changes.gained[value] + changes.lost[value]))
    named = [value for value in order if changes.gained[value] + changes.lost[value]]
    parts = []
    for value in named[:MOST_NAMED]:
        counts = [f"+{changes.gained[value]:,}"] if changes.gained[value] else []
        counts += [f"−{changes.lost[value]:,}"] if changes.lost[value] else []
        parts.append(f"{classes[value].name} {' '.join(counts)}")
    n_more = len(named) - len(parts)
    more = f" and {n_more} more class{'es' * (n_more != 1)}" if n_more else ""
    share = changes.n_changed / changes.where.size
    return f"{changes.n_changed:,} px differ ({share:.1%}): {', '.join(parts)}{more}."
