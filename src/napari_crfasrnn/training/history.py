"""What a training from a data set has gone through."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Stage = Literal["fcn", "crf", "joint"]

STAGES: tuple[Stage, ...] = ("fcn", "crf", "joint")


@dataclass(frozen=True)
class ScoreEntry:
    """One look at the validation images.

    Attributes
    ----------
    stage, iteration
        When: after so many iterations of the stage.
    before, after
        The numbers of `evaluation.SUMMARY` of the network alone and with its CRF, which are the same in
        the stage without CRF.
    """

    stage: Stage
    iteration: int
    before: dict[str, float]
    after: dict[str, float]


@dataclass
class History:
    """Losses of every iteration, scores of every evaluation."""

    losses: dict[Stage, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    scores: list[ScoreEntry] = field(default_factory=list)

    def step(self, stage: Stage, iteration: int) -> int:
        """Return the number of an iteration counted over all stages."""
        earlier = STAGES[: STAGES.index(stage)]
        return sum(len(self.losses[name]) for name in earlier) + iteration

    def as_dict(self) -> dict[str, Any]:
        """Return everything in JSON values; what cannot be told is None."""
        return {"losses": dict(self.losses), "scores": [_in_json(asdict(entry)) for entry in self.scores]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """Return what `as_dict` was made of."""
        return cls(values["losses"], [ScoreEntry(**_from_json(entry)) for entry in values["scores"]])


def _in_json(value: Any) -> Any:
    """Return nested values with None in place of NaN, which JSON has not."""
    if isinstance(value, dict):
        return {name: _in_json(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _from_json(inner) for name, inner in value.items()}
    return math.nan if value is None else value
