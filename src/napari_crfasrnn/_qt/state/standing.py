"""How the labels stand to the models: which model they are of, and which of them it was taught."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from napari_crfasrnn._qt.state.planes import PlaneIndex
from napari_crfasrnn._qt.state.work import Labels
from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.edits import remap_labels

_MOST = 3  # models whose lessons are remembered: the one in use, the one before it, and what was just learnt


class Standing:
    """How the labels stand to the models. Images go by their keys, models by their names on the shelf."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._model_of: dict[str, dict[PlaneIndex, str]] = {}  # whole stacks have the index ()
        self._lessons: dict[str, dict[str, Labels]] = {}

    def remap_lessons(self, new_values: Sequence[int | None], n_classes: int) -> None:
        """Let what the models were taught follow a change of the class table, as `remap_labels` does."""
        for lessons in self._lessons.values():
            for key, labels in lessons.items():
                lessons[key] = remap_labels(labels, new_values, n_classes)

    def forget(self, key: str) -> None:
        """Forget which model the labels of an image are of: none any more."""
        self._model_of.pop(key, None)

    def segmented(self, key: str, index: PlaneIndex, model: str) -> None:
        """Note that a plane of an image, all of it where the index is empty, has the labels of a model."""
        if not index:
            self._model_of[key] = {}
        self._model_of.setdefault(key, {})[index] = model

    def model_of(self, key: str, index: PlaneIndex) -> str | None:
        """Return the model that segmented a plane; None where nobody knows."""
        planes = self._model_of.get(key, {})
        return planes.get(index, planes.get(()))

    def taught(self, model: str, lessons: dict[str, Labels]) -> None:
        """Note what a model was taught: labels of each image, the ignore value where there were none."""
        self.rename(model, "")  # an earlier one of this name is gone
        self.add_lessons(model, lessons)

    def add_lessons(self, model: str, lessons: dict[str, Labels]) -> None:
        """Note what else a model was taught, of images that were opened just now, say."""
        self._lessons[model] = {**self._lessons.pop(model, {}), **lessons}  # the latest come last
        for name in list(self._lessons)[:-_MOST]:
            del self._lessons[name]

    def n_learnt(self, model: str, key: str, known: Labels) -> int:
        """Count the labels of an image, known to be true, that a model was taught as they are."""
        lesson = self._lessons.get(model, {}).get(key)
        if lesson is None or lesson.shape != known.shape or lesson.dtype != known.dtype:
            return 0
        return int(np.count_nonzero((known == lesson) & (known != ignore_value(known.dtype))))

    def rename(self, old: str, new: str) -> None:
        """Note that a model has another name from now on; "" if it is gone."""
        for planes in self._model_of.values():
            for index, model in planes.items():
                if model == old:
                    planes[index] = new
        lessons = self._lessons.pop(old, None)
        if new and lessons is not None:
            self._lessons[new] = lessons
