"""How the core tells a caller how far it is, and how a caller stops it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]  # (done, total)
Cancel = Callable[[], bool]  # True once the caller wants the work stopped


class Cancelled(Exception):  # noqa: N818 - a stop that was asked for is no error
    """Raised by long work that was cancelled; nothing was changed."""


def raise_if_cancelled(cancel: Cancel | None) -> None:
    """Raise `Cancelled` when the caller has asked for a stop."""
    if cancel is not None and cancel():
        raise Cancelled("cancelled")
