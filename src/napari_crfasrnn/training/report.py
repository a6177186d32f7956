"""What learning tells: step by step, and at the end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn import metrics
from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.edits import Contradiction
from napari_crfasrnn.network import SegmentationModel

StoppedBy = Literal["iterations", "time", "cancelled", "diverged"]

MIN_LOCKED_PIXELS = 50  # of a class; IoU on fewer is an accident

# A score on fewer than these is true of these few places, whose other parts were learnt, and of nothing else.
_TELLING_AREAS, _TELLING_PIXELS = 10, 1000


@dataclass(frozen=True)
class TrainStep:
    """One optimiser iteration.

    Attributes
    ----------
    iteration, total
        From 1; how many there are at most.
    loss
        Mean loss of the iteration's pixels; None between iterations, when something else is done that
        takes its time. `TrainReport.history` has no such steps.
    locked_miou
        Mean IoU on the held-back pixels, where it was measured and there are enough of them.
    seconds
        Since learning began.
    """

    iteration: int
    total: int
    loss: float | None
    locked_miou: float | None
    seconds: float


@dataclass(frozen=True)
class LockedScore:
    """How well a model does on the held-back pixels, CRF included.

    Attributes
    ----------
    classes
        Names, in the order of the label values.
    iou
        Of each class; None where too few pixels are held back to tell.
    n_pixels
        Held-back pixels of each class.
    """

    classes: tuple[str, ...]
    iou: tuple[float | None, ...]
    n_pixels: tuple[int, ...]

    @classmethod
    def from_confusion(cls, counts: NDArray[np.int64], classes: tuple[str, ...]) -> LockedScore:
        """Return the score of a confusion matrix [L, L], rows the truth."""
        n_pixels = counts.sum(axis=1)
        values = metrics.iou(counts)
        told = n_pixels >= MIN_LOCKED_PIXELS
        return cls(
            classes=classes,
            iou=tuple(float(value) if ok else None for value, ok in zip(values, told, strict=True)),
            n_pixels=tuple(int(n) for n in n_pixels),
        )

    @property
    def miou(self) -> float | None:
        """Mean over the classes that can be told, or None if there is none."""
        told = [value for value in self.iou if value is not None]
        return sum(told) / len(told) if told else None


@dataclass(frozen=True)
class PlaceOfContradiction:
    """A stroke that contradicts the others, and the image it is in."""

    item_id: int
    index: tuple[int, ...]
    region: Contradiction

    def overlaps(self, other: PlaceOfContradiction) -> bool:
        """Return whether another one may be of the same stroke."""
        if (self.item_id, self.index) != (other.item_id, other.index):
            return False
        (y0, x0, y1, x1), (v0, u0, v1, u1) = self.region.box, other.region.box
        return self.region.label == other.region.label and y0 < v1 and v0 < y1 and x0 < u1 and u0 < x1


@dataclass(frozen=True, eq=False)
class TrainReport:
    """What a round of learning did.

    Attributes
    ----------
    model
        The new model; the one that was given is unchanged.
    before, after
        Scores on the held-back pixels with the model that was given and with the new one; None when
        they were not measured because learning was cancelled.
    history
        Every iteration.
    stopped_by
        "iterations" (all done), "time" (the limit struck), "cancelled", or "diverged" (the loss was no
        longer a number: the best weights from before that were kept).
    n_planes, n_training_pixels, n_locked_pixels
        What it learnt from, and what it held back.
    n_locked_areas
        Of how many labelled areas (a stroke is one) a part is held back: what the scores rest upon.
    strokes_known, strokes_asked
        How many strokes look like what they were painted as to forests that learnt the others alone, and of
        how many that was asked, after a panel was taught: a sign of how other places come out.
    crf_learnt
        Whether the CRF was changed, too: only if that made the held-back pixels no worse.
    contradictions
        Strokes that the new model still sees as another class; after a panel was taught, also those that
        look like another class to what learnt the others alone.
    notes
        What else is worth knowing, in sentences.
    config, seconds
        The settings, and how long it took.
    """

    model: SegmentationModel
    before: LockedScore | None
    after: LockedScore | None
    history: tuple[TrainStep, ...]
    stopped_by: StoppedBy
    n_planes: int
    n_training_pixels: int
    n_locked_pixels: int
    n_locked_areas: int
    crf_learnt: bool
    contradictions: tuple[PlaceOfContradiction, ...]
    notes: tuple[str, ...]
    config: TrainConfig
    seconds: float = field(default=0.0)
    strokes_known: int = 0
    strokes_asked: int = 0

    @property
    def is_telling(self) -> bool:
        """Whether enough was held back for the scores to say something of other places."""
        return self.n_locked_areas >= _TELLING_AREAS and self.n_locked_pixels >= _TELLING_PIXELS

    @property
    def verdict(self) -> str:
        """What the scores say, in a sentence that nobody can take for a score of whole images."""
        if self.before is None or self.after is None:
            return "Whether it is better was not measured."
        before, after = self.before.miou, self.after.miou
        if before is None or after is None:
            return "Too few pixels were held back to tell whether it is better."
        areas = f"{self.n_locked_areas:,} area{'s' * (self.n_locked_areas != 1)} you labelled"
        said = f"IoU {before:.2f} → {after:.2f} on {self.n_locked_pixels:,} px, held back in {areas}"
        if not self.is_telling:
            said += ": too few to tell of the rest"
        return f"{said}."

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the model in JSON values, as a project stores it."""
        score = {
            name: None if value is None else asdict(value) | {"miou": value.miou}
            for name, value in (("before", self.before), ("after", self.after))
        }
        return {
            **score,
            "history": [asdict(step) for step in self.history],
            "stopped_by": self.stopped_by,
            "n_planes": self.n_planes,
            "n_training_pixels": self.n_training_pixels,
            "n_locked_pixels": self.n_locked_pixels,
            "n_locked_areas": self.n_locked_areas,
            "strokes_known": self.strokes_known,
            "strokes_asked": self.strokes_asked,
            "is_telling": self.is_telling,
            "verdict": self.verdict,
            "crf_learnt": self.crf_learnt,
            "contradictions": [asdict(place) for place in self.contradictions],
            "notes": list(self.notes),
            "config": self.config.model_dump(mode="json"),
            "seconds": self.seconds,
        }
