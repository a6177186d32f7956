"""Work in a thread of its own, beside what the calling thread does meanwhile.

What is beside each other here are long runs of small operations, which torch and scikit-learn do outside of
the interpreter's lock. Sharing each such operation among all cores gains less.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

from napari_crfasrnn.progress import Cancel, Cancelled, raise_if_cancelled

_ASK_EVERY = 0.05  # seconds
Result = TypeVar("Result")


class Aside(Generic[Result]):
    """A piece of work that goes on until the end of the `with` block at the latest.

    Until then, the calling thread computes with one core less: threads that wait for each other in
    every operation, as those of torch do, must not wait for one that has to share its core. How many
    there are decides on the order of sums, so it does not depend on how long the work takes.

    Parameters
    ----------
    work
        Is given what to ask whether to stop; then it raises `Cancelled`.
    """

    def __init__(self, work: Callable[[Cancel], Result]) -> None:
        self._work = work
        self._stop = threading.Event()
        self._n_threads = torch.get_num_threads()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aside")

    def __enter__(self) -> Self:
        self._thread.submit(_take_one_core).result()
        torch.set_num_threads(max(1, self._n_threads - 1))
        self._result = self._thread.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            torch.set_num_threads(self._n_threads)

    def wait(self, cancel: Cancel | None) -> Result:
        """Wait for the work, and return what it returns.

        Raises
        ------
        Cancelled
            When asked to stop.
        """
        while not self._result.done():
            raise_if_cancelled(cancel)
            wait([self._result], timeout=_ASK_EVERY)
        return self._result.result()

    def stop(self) -> None:
        """Stop the work; return when it has stopped.

        Raises
        ------
        Exception
            What the work failed with.
        """
        self._stop.set()
        self._thread.shutdown(wait=True)
        error = self._result.exception()
        if error is not None and not isinstance(error, Cancelled):
            raise error

    def _run(self) -> Result:
        with torch.no_grad():  # gradients are a matter of each thread
            return self._work(self._stop.is_set)


def _take_one_core() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first question in a thread sets it to what was set last in any of them
