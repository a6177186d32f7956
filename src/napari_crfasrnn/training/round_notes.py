"""What a round says about itself beside its scores, in words for the person who pressed Learn."""

from __future__ import annotations

from collections.abc import Sequence

from napari_crfasrnn.classes import ClassSpec
from napari_crfasrnn.experts import REST
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.project import Project
from napari_crfasrnn.training.known_classes import TAUGHT, told_apart
from napari_crfasrnn.training.report import LockedScore

DIVERGED = "the loss was no longer a number, so learning stopped and the best weights before that were kept"
_TITLE = "Fine-tuned from "


def left_out(n_planes: int, n_read: int) -> str:
    """Return the note on planes that there was no time to read."""
    left = f"{n_planes - n_read} of {n_planes} labelled images"
    return f"{left} were left out for lack of time: give it more seconds"


def missing_classes(
    student: SegmentationModel, labelled: Sequence[bool], known: Sequence[bool], has_network: bool
) -> list[str]:
    """Return notes where all labels are of one class, or where nothing is labelled of unknown ones."""
    classes = student.classes
    names = [spec.name for spec, is_there in zip(classes, labelled, strict=True) if is_there]
    if len(names) == 1:
        return [
            f"only {names[0]!r} is labelled: label a little of what is not {names[0]!r}, too, "
            "or it may spread over everything"
        ]
    rows = zip(classes, labelled, told_apart(student, known, has_network), strict=True)
    missing = [repr(spec.name) for spec, is_there, is_known in rows if not (is_there or is_known)]
    if not missing:
        return []
    them = "it" if len(missing) == 1 else "them"
    return [f"nothing is labelled {' or '.join(missing)} yet, so the model does not know {them}"]


def unlearnt(classes: Sequence[ClassSpec], values: Sequence[int]) -> list[str]:
    """Return a note on known classes of which the network, taught carefully, sees labels otherwise."""
    if not values:
        return []
    names = ", ".join(repr(classes[value].name) for value in values)
    return [
        f"labels of {names} are still seen otherwise in places: another round teaches more of what the model "
        "knew before"
    ]


def untold(
    after: LockedScore, classes: Sequence[ClassSpec], labelled: Sequence[bool], known: Sequence[bool]
) -> list[str]:
    """Return notes on the new classes of which nothing was held back: no score says how they do."""
    rows = zip(classes, after.n_pixels, labelled, known, strict=True)
    return [
        f"nothing of {spec.name!r} was held back: look at the image"
        for spec, held, is_there, is_known in rows
        if is_there and not is_known and not held
    ]


def out_of_time(limit: float, done: int, total: int) -> list[str]:
    """Return a note on how far learning came in its time."""
    what = f"ended it after {done} of {total} steps" if done < total else "cut a part of it short"
    return [f"the limit of {limit:g} s {what}; more seconds may teach it better"]


def write_provenance(model: SegmentationModel, project: Project, known: Sequence[bool]) -> None:
    """Write into a model that learnt in a project where it comes from, and what it knows from there only."""
    about = model.provenance
    title = str(about.get("title", "a model"))
    about["title"] = title if title.startswith(_TITLE) else _TITLE + title
    beside = () if model.panel is None or model.panel.speaks_for is None else model.panel.speaks_for
    if beside or sum(known) <= 1:
        taught = [value for value in beside or range(model.n_labels) if not known[value]]
        names = [model.classes[value].name for value in taught if value != REST]
        about[TAUGHT] = {"project": project.id, "classes": names}
