"""Edits against a baseline: what a person changed, what that teaches, and what is held back.

The baseline is the prediction as it was shown. A pixel is *edited* where its label differs from the
baseline, and *verified* where a person said "this is right". Both are found by comparing arrays, never by
counting paint events, so they are right after undo, redo and writes from scripts.

Everything here is NumPy on plain arrays: labels are uint8 (255 = unlabelled) or uint16 (65535 = unlabelled).
"""

from __future__ import annotations

from napari_crfasrnn.edits.comparison import (
    Box,
    EditSummary,
    LabelChanges,
    Labels,
    Mask,
    Places,
    as_labels,
    changed_boxes,
    compare_labels,
    edited_mask,
    labelled_mask,
    merge_prediction,
    places_in,
    remap_labels,
    settled_mask,
    summarize,
    targets,
)
from napari_crfasrnn.edits.locked import locked_cells, split_locked
from napari_crfasrnn.edits.patches import Patch, least_certain_patch, patch_side
from napari_crfasrnn.edits.strokes import (
    MIN_STROKE_PIXELS,
    Contradiction,
    contradictions,
    label_regions,
)
from napari_crfasrnn.edits.surroundings import box_about, fits_live, is_about

__all__ = [
    "MIN_STROKE_PIXELS",
    "Box",
    "Contradiction",
    "EditSummary",
    "LabelChanges",
    "Labels",
    "Mask",
    "Patch",
    "Places",
    "as_labels",
    "box_about",
    "changed_boxes",
    "compare_labels",
    "contradictions",
    "edited_mask",
    "fits_live",
    "is_about",
    "label_regions",
    "labelled_mask",
    "least_certain_patch",
    "locked_cells",
    "merge_prediction",
    "patch_side",
    "places_in",
    "remap_labels",
    "settled_mask",
    "split_locked",
    "summarize",
    "targets",
]
