"""How the core tells a caller how far it is, and how a caller stops it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]  # (done, total)
Cancel = Callable[[], bool]  # True once the caller wants the work stopped


class Cancelled(Exception):  # noqa: N818 - a stop that was asked for is no error
    """Raised by long work that was cancelled; nothing was changed."""


def part_of(progress: Progress | None, number: int, n_parts: int, n_own: int = 1) -> Progress | None:
    """Return what a part of the work calls: it counts its own steps, the caller those of all parts.

    The part is `n_own` of `n_parts` equal ones, after `number` others.
    """
    if progress is None or n_parts == 1:
        return progress
    return lambda done, total: progress(number * total + n_own * done, n_parts * total)


def stop_if(cancel: Cancel | None) -> Progress:
    """Return what work calls that can be stopped between steps; what is finished is worth keeping."""
    return lambda done, total: raise_if_cancelled(cancel) if done < total else None


def let_signals_through(done: int, total: int) -> None:
    """Do nothing: Python looks for Ctrl-C wherever compiled work calls it, and that call raises."""


def raise_if_cancelled(cancel: Cancel | None) -> None:
    """Raise `Cancelled` when the caller has asked for a stop."""
    if cancel is not None and cancel():
        raise Cancelled("cancelled")
