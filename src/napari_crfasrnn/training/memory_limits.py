"""What training does when the GPU's memory does not hold a step: half of it at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial

import torch


def fits(work: Callable[[], None]) -> bool:
    """Do some work; return False if memory ran out, with all that it held given back."""
    try:
        work()
    except torch.OutOfMemoryError:
        pass  # only once the handler has ended are the tensors of its traceback free
    else:
        return True
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False


class Portions:
    """Computes a batch at once, or in parts of it when memory ran out, from then on.

    Parameters
    ----------
    may_halve
        Whether parts are allowed.

    Attributes
    ----------
    limit
        Windows in a part at most; None as long as memory has not run out.
    """

    def __init__(self, *, may_halve: bool) -> None:
        self.limit: int | None = None
        self._may_halve = may_halve

    def run(self, n: int, begin: Callable[[], None], compute: Callable[[slice], None]) -> None:
        """Compute all ``n`` windows.

        Parameters
        ----------
        begin
            Called before the first part, each time that it is tried.
        compute
            Called with each part of the batch.

        Raises
        ------
        torch.OutOfMemoryError
            If there is not enough memory for a single window, or for all where parts are not allowed.
        """

        def attempt(size: int) -> None:
            begin()
            for start in range(0, n, size):
                compute(slice(start, start + size))

        size = n if self.limit is None else min(self.limit, n)
        while not fits(partial(attempt, size)):
            begin()
            if size == 1 or not self._may_halve:
                raise torch.OutOfMemoryError(
                    f"the GPU's memory does not hold {size} of the {n} windows of a batch: choose a smaller "
                    f"{'crop' if size == 1 else 'batch'}"
                )
            self.limit = size = -(-size // 2)
