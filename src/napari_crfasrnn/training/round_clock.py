"""How much of a round's time is gone."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class RoundClock:
    """Time since a round began, and its limit.

    Attributes
    ----------
    limit
        Seconds; None: there is none.
    start
        When it began, in seconds of `time.monotonic`.
    """

    limit: float | None
    start: float

    def seconds(self) -> float:
        """Return the seconds since the round began."""
        return time.monotonic() - self.start

    def is_over(self, reserve: float = 0.0) -> bool:
        """Return whether only a reserve of seconds is left, or less."""
        return self.is_past(1.0, reserve)

    def is_past(self, share: float, reserve: float = 0.0) -> bool:
        """Return whether a share of the time without a reserve is gone."""
        return self.limit is not None and self.seconds() >= share * (self.limit - reserve)
