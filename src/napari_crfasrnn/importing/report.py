"""What became of each tensor of a foreign file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from napari_crfasrnn.checkpoint import CheckpointError
from napari_crfasrnn.importing.source import Format

FORMAT_TITLES: dict[Format, str] = {
    "pytorch": "PyTorch state dict",
    "caffe": "Caffe model",
    "keras": "Keras weights",
    "matconvnet": "MatConvNet model",
}
Verdict = Literal["as expected", "reversed", "undecided", "not in the file"]

_NAMED_AT_MOST = 4


@dataclass(frozen=True)
class Match:
    """A tensor that found its place."""

    source: str
    """Its name in the file."""
    ours: str
    shape: tuple[int, ...]
    """In our layout."""


@dataclass(frozen=True)
class Mismatch:
    """A tensor whose place has another shape."""

    source: str
    ours: str
    found: tuple[int, ...]
    """In the layout of the file."""
    wanted: tuple[int, ...]
    """In ours."""


@dataclass(frozen=True)
class CompatibilityCheck:
    """Whether the compatibility matrix has the sign that a trained one has, negative on its diagonal."""

    negative: int
    """Negative entries of the diagonal, after conversion."""
    positive: int
    verdict: Verdict


@dataclass(frozen=True)
class ImportReport:
    """What became of each tensor of a foreign file."""

    path: str
    format: Format
    n_labels: int
    matched: tuple[Match, ...]
    missing: tuple[str, ...]
    """Tensors of the model that the file does not have; ours."""
    unexpected: tuple[str, ...]
    """Tensors of the file that the model does not have."""
    misshapen: tuple[Mismatch, ...]
    all_zero: tuple[str, ...]
    """Tensors of ours, among the matched, that are zero throughout."""
    compatibility: CompatibilityCheck
    preprocessing: str
    """What is known of the input the file wants."""
    kernels: str
    """What is known of the widths of the CRF's kernels."""
    notes: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every tensor of the file and of the model has its counterpart."""
        return not (self.missing or self.unexpected or self.misshapen)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What one should know before trusting the model, a sentence each."""
        found = []
        weights = [name for name in self.all_zero if not name.endswith(".bias")]
        if weights:
            found.append(f"{_listing('tensors are zero throughout', weights)}: was this model trained?")
        if self.compatibility.verdict == "reversed":
            found.append(
                f"{self.compatibility.positive} of {self.n_labels} diagonal entries of the compatibility "
                "matrix are positive, where a trained one is negative: its sign may be of another "
                "convention, and the CRF would then drive neighbours apart"
            )
        if not self.is_complete:
            found.append(f"the import is partial: {self.problems()}")
        return tuple(found)

    def problems(self) -> str:
        """Return what does not match, in one phrase."""
        wrong = [
            f"{m.source} (is {shape_text(m.found)}, should make {shape_text(m.wanted)})"
            for m in self.misshapen
        ]
        parts = [f"{len(self.matched)} of {len(self.matched) + len(self.missing) + len(wrong)} tensors match"]
        parts += [_listing("missing", self.missing)] if self.missing else []
        parts += [_listing("unexpected", self.unexpected)] if self.unexpected else []
        parts += [_listing("of another shape", wrong)] if wrong else []
        return "; ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        return {
            "path": self.path,
            "format": self.format,
            "n_labels": self.n_labels,
            "complete": self.is_complete,
            "matched": [{"source": m.source, "ours": m.ours, "shape": list(m.shape)} for m in self.matched],
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "misshapen": [
                {"source": m.source, "ours": m.ours, "found": list(m.found), "wanted": list(m.wanted)}
                for m in self.misshapen
            ],
            "all_zero": list(self.all_zero),
            "compatibility": {
                "negative": self.compatibility.negative,
                "positive": self.compatibility.positive,
                "verdict": self.compatibility.verdict,
            },
            "preprocessing": self.preprocessing,
            "kernels": self.kernels,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }

    def lines(self) -> list[str]:
        """Return the report as people read it."""
        width = max((len(m.source) for m in self.matched), default=0)
        sign = self.compatibility
        found = [f"{FORMAT_TITLES[self.format]} of {self.n_labels} classes: {self.path}"]
        found += [f"  {m.source:<{width}} -> {m.ours}  {shape_text(m.shape)}" for m in self.matched]
        found += [f"  missing: {name}" for name in self.missing]
        found += [f"  unexpected: {name}" for name in self.unexpected]
        found += [
            f"  of another shape: {m.source} -> {m.ours} (is {shape_text(m.found)}, "
            f"should make {shape_text(m.wanted)})"
            for m in self.misshapen
        ]
        found += [f"  zero throughout: {name}" for name in self.all_zero]
        found += [
            f"matched {len(self.matched)}, missing {len(self.missing)}, unexpected {len(self.unexpected)}, "
            f"of another shape {len(self.misshapen)}, zero throughout {len(self.all_zero)}",
            f"sign of the compatibility matrix: {sign.verdict}"
            + (f" ({sign.negative} negative, {sign.positive} positive on the diagonal)" if sign.negative
               + sign.positive else ""),
            f"preprocessing: {self.preprocessing}",
            f"kernel widths: {self.kernels}",
        ]  # fmt: skip
        return found + list(self.notes)


class ImportMismatchError(CheckpointError):
    """A foreign file whose tensors are not those of the model.

    Attributes
    ----------
    report
        What became of each tensor.
    """

    def __init__(self, report: ImportReport) -> None:
        self.report = report
        super().__init__(
            f"the weights in {report.path} are not those of an FCN-8s with a CRF-RNN: {report.problems()} "
            "(allow a partial import to take what matches)"
        )


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as people write it."""
    return "×".join(map(str, shape)) or "a number"


def _listing(kind: str, names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return f"{len(names)} {kind}: {', '.join(names[:_NAMED_AT_MOST])}{more}"
