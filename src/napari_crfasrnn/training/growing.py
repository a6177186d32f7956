"""Growing the forests of experts.

Random ones (Breiman, Machine Learning 2001), and of many kinds of features extremely randomised ones (Geurts,
Ernst and Wehenkel, Machine Learning 2006). They grow beside one another, in threads: trees grow outside of
Python's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from torch import Tensor

from napari_crfasrnn.experts import Forest
from napari_crfasrnn.experts.features import CLASSIC, FINE, columns
from napari_crfasrnn.progress import Cancel, raise_if_cancelled

KINDS = ((CLASSIC,), (2, 4, 8), FINE)
"""The groups of features that the forests read, each a kind of its own: they fail in different places."""
_ASK_SECONDS = 0.02  # between questions whether to go on
_LEAST_TREES = 2  # of each forest, however late it is
_RANDOMISED_FROM = 3  # more groups than this: trees that choose thresholds by chance


@dataclass(frozen=True, eq=False)
class Pixels:
    """Pixels to learn.

    Attributes
    ----------
    rows
        [N, d] their features, all groups of them.
    column
        [N] which column of the experts' judgements is right.
    weight
        [N] how much each counts, where a pixel that somebody labelled counts 1.
    """

    rows: Tensor
    column: Tensor
    weight: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Pixels]) -> Pixels:
        """Return the pixels of several parts as one."""
        rows, column, weight = zip(*((each.rows, each.column, each.weight) for each in parts), strict=True)
        return cls(torch.cat(rows), torch.cat(column), torch.cat(weight))

    def column_weight(self) -> Tensor:  # [N]
        """Return how much all pixels of the same column count together."""
        return torch.bincount(self.column, self.weight.double())[self.column]


def grow_forests(
    pixels: Pixels,
    kinds: Sequence[Sequence[int]],
    n_columns: int,
    n_trees: int,
    seed: int,
    n_threads: int,
    cancel: Cancel | None,
    is_late: Callable[[], bool] = lambda: False,
) -> tuple[list[Forest], bool]:
    """Return a forest of each kind, and whether all have all their trees.

    Parameters
    ----------
    pixels
        What to learn.
    kinds
        The groups of features that each forest reads.
    n_columns
        Number of columns of the experts' judgements.
    n_trees
        Of each forest.
    seed
        Of the trees.
    n_threads
        How many forests may grow beside one another.
    cancel
        Asked while trees grow.
    is_late
        Whether there is no time to grow more trees; there are some of each forest in any case.

    Raises
    ------
    Cancelled
        When asked to stop.
    """
    growing = [_Growing(pixels, tuple(groups), seed) for groups in kinds]
    is_complete = True
    with ThreadPoolExecutor(min(len(growing), n_threads), thread_name_prefix="trees") as pool:
        for n in range(1, n_trees + 1):
            _wait_for([pool.submit(each.grow, n) for each in growing], cancel)
            if _LEAST_TREES <= n < n_trees and is_late():
                is_complete = False
                break
    forests = []
    for each in growing:
        raise_if_cancelled(cancel)
        forests.append(each.planted(n_columns))
    return forests, is_complete


def _wait_for(work: Sequence[Future[None]], cancel: Cancel | None) -> None:
    """Wait until all is done, and ask in between whether to go on; if not, what waits is not begun."""
    left = set(work)
    try:
        while left:
            raise_if_cancelled(cancel)
            done, left = wait(left, timeout=_ASK_SECONDS)
            for each in done:
                each.result()
    finally:
        for each in left:
            each.cancel()


class _Growing:
    """A random forest that grows; of many kinds of features, extremely randomised trees."""

    def __init__(self, pixels: Pixels, groups: tuple[int, ...], seed: int) -> None:
        settings: dict[str, Any] = {
            "n_estimators": 0,
            "random_state": seed % 2**32,
            "warm_start": True,
        }
        if len(groups) > _RANDOMISED_FROM:
            self._forest = ExtraTreesClassifier(max_depth=20, min_samples_leaf=2, **settings)
        else:
            self._forest = RandomForestClassifier(max_depth=12, **settings)
        self._groups = groups
        self._features, self._target = columns(pixels.rows, groups).numpy(), pixels.column.numpy()
        self._weight = (pixels.weight / pixels.column_weight()).numpy()

    def grow(self, n_trees: int) -> None:
        """Grow more trees, until there are so many."""
        self._forest.set_params(n_estimators=n_trees)
        self._forest.fit(self._features, self._target, sample_weight=self._weight)

    def planted(self, n_columns: int) -> Forest:
        """Return the trees that there are."""
        return Forest.planted(self._forest, self._groups, n_columns)
