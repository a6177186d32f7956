"""The steps of a job: how long its parts take, how far it is, and whether it is to stop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from napari_crfasrnn.progress import Cancel, Progress, raise_if_cancelled


class Clock:
    """Adds up how long the parts of a job take."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = {"network": 0.0, "crf": 0.0}
        self._device = device

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens inside to a part."""
        started = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[part] += time.perf_counter() - started


class Steps:
    """Counts steps, tells the caller, and stops when asked to."""

    def __init__(self, total: int, progress: Progress | None, cancel: Cancel | None) -> None:
        self._total, self._progress, self._cancel = total, progress, cancel
        self.n_done = 0
        raise_if_cancelled(cancel)

    def done(self) -> None:
        """Count one more."""
        self.reach(self.n_done + 1)

    def reach(self, n_done: int) -> None:
        """Count up to there, if that is any further, and stop when asked to."""
        if n_done != self.n_done and self._progress is not None:
            self._progress(n_done, self._total)
        self.n_done = n_done
        if n_done != self._total:  # a finished job is worth keeping
            raise_if_cancelled(self._cancel)
