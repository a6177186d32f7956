"""What is said of a segmentation (how long it took, which model may do better), and of what to paint."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from napari_crfasrnn._qt.state.tasks import Line
from napari_crfasrnn.classes import BACKGROUND

if TYPE_CHECKING:
    from napari_crfasrnn._qt.state.engine import Segmented
    from napari_crfasrnn._qt.state.micrographs import Kind

KEPT = 0.002  # seconds: no network is as fast, so what it said of the image before was still there
HINTS: dict[Kind, str] = {
    "grey": "Is this a micrograph? The starter knows everyday photographs; these do better:",
    "stained": "Is this stained tissue? The starter knows everyday photographs; these do better:",
}
# For each kind of micrograph: models of the package, and what is on their buttons.
FITTING: dict[Kind, dict[str, str]] = {
    "grey": {"nuclei-fluorescence": "Nuclei", "em-tissue": "Electron microscopy"},
    "stained": {"nuclei-stained": "Stained nuclei"},
}
NOTHING = (
    "Nothing found: to this model, all of it is background. Choose another model, or paint a little of what "
    "you look for and let it learn."
)
ONLY_BACKGROUND = "Nothing found: all of it is background."
USE = "use:"  # the cure that segments with another model begins with this
OWN_CLASSES = "own-classes"
PAINT_NEW = "Paint a little of it, and Live finds more of it."
BESIDE = f"{PAINT_NEW} For micrographs, classes of your own do better without the starter's."
KNOWS_NONE = "This model knows none of your classes: paint a little of each, and let it learn."
REPLACED = "The image was replaced meanwhile, so nothing of this was taken: do it again."
CHANGED = "The classes were changed meanwhile, so nothing of this was taken: do it again."
PAINT_EACH = (
    "Paint a little of each class and of the background: the rest follows (Live). Then let the model learn."
)
PAINT_ANOTHER = "Now a little of another class, or of the background: then the rest of the image follows."
PAINT_WRONG = "Paint where this is wrong, and it follows anew. Then let the model learn."
PAINT_AROUND = (
    "This image is large, so Live labels what is around a stroke. Paint where that is wrong, or elsewhere. "
    "Then let the model learn, and segment all of it."
)
# What of an image is gone, by its role: {} is its name.
LOST = {
    "class": "“{}” was removed; its pixels are still in the combined labels.",
    "labels": "“{}” was removed; the labels are kept.",
    "shape": "“{}” has another shape now. Its labels are kept in the project, under Images.",
    "pixels": "“{}” is another image now. The labels of the one before are in the project, under Images.",
}
# One after the other, until the first round.
TO_PAINT = (PAINT_EACH, PAINT_NEW, BESIDE, PAINT_ANOTHER, PAINT_WRONG, PAINT_AROUND)


def hint_at(kind: Kind | None, models: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """Return what to ask about an image that may be a micrograph, and the cures; nothing for all else."""
    if kind is None:
        return "", ()
    return HINTS[kind], (*(f"{USE}{name}" for name in FITTING[kind] if name in models), OWN_CLASSES)


def tell(
    result: Segmented,
    *,
    of_photographs: bool,
    kept: Sequence[str],
    names: Sequence[str],
    models: Collection[str],
) -> Line:
    """Return what there is to say of a segmentation.

    Parameters
    ----------
    result
        The segmentation.
    of_photographs
        Whether the model is the one of everyday photographs.
    kept
        Classes of earlier labels that the model does not know.
    names
        The class table.
    models
        The models that may be chosen instead.
    """
    seconds = result.segmentation.timings
    is_empty = set(result.present) <= {0} and names[0] == BACKGROUND
    hint, cures = hint_at(result.kind if of_photographs else None, models)
    network = "as before" if seconds["network"] < KEPT else f"{seconds['network']:.1f}"
    text = f"{seconds['total']:.1f} s · network {network} · CRF {seconds['crf']:.1f}"
    if result.n_boxes:
        text += f" · {result.n_boxes} box{'es' * (result.n_boxes != 1)} heeded"
    if kept:
        text += f" · {', '.join(kept)} kept for what was segmented before"
    if result.n_nonfinite:
        text += f" · {result.n_nonfinite:,} NaN or infinite pixels taken as the darkest"
    if is_empty:
        text = (ONLY_BACKGROUND if hint else NOTHING) + f" {text}" * bool(kept or result.n_nonfinite)
    if hint:
        text = f"{text.removesuffix('.')}. {hint}"
    if result.left_out:
        return Line(f"{result.left_out} {text}", "problem", cures)
    return Line(text, "plain" if is_empty else "quiet", cures)
