"""What is said of a segmentation (how long it took, which model may do better), and of what to paint."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from napari_crfasrnn._qt.state.table import BACKGROUND
from napari_crfasrnn._qt.state.tasks import Line

if TYPE_CHECKING:
    from napari_crfasrnn._qt.state.engine import Segmented

HINTS = {
    "grey": "Is this a micrograph? The starter knows everyday photographs; these do better:",
    "stained": "Is this stained tissue? The starter knows everyday photographs; these do better:",
}
FITTING = {  # for each kind of micrograph: models of the package, and what is on their buttons
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
BESIDE = "For micrographs, classes of your own do better without the starter's."
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
# One after the other, until the first round.
TO_PAINT = (PAINT_EACH, PAINT_ANOTHER, PAINT_WRONG, PAINT_AROUND)


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
    hint = HINTS.get(result.kind or "", "") if of_photographs else ""
    text = f"{seconds['total']:.1f} s · network {seconds['network']:.1f} · CRF {seconds['crf']:.1f}"
    if result.n_boxes:
        text += f" · {result.n_boxes} box{'es' * (result.n_boxes != 1)} heeded"
    if kept:
        text += f" · {', '.join(kept)} kept for what was segmented before"
    if result.n_nonfinite:
        text += f" · {result.n_nonfinite:,} NaN or infinite pixels taken as the darkest"
    if is_empty:
        text = (ONLY_BACKGROUND if hint else NOTHING) + f" {text}" * bool(kept or result.n_nonfinite)
    cures: tuple[str, ...] = ()
    if hint:
        text = f"{text.removesuffix('.')}. {hint}"
        cures = *(f"{USE}{name}" for name in FITTING[result.kind or ""] if name in models), OWN_CLASSES
    if result.left_out:
        return Line(f"{result.left_out} {text}", "problem", cures)
    return Line(text, "plain" if is_empty else "quiet", cures)
