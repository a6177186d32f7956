"""What a model knows of a project's classes, by their names and by what they were called before."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from napari_crfasrnn.experts import REST
from napari_crfasrnn.network import LiteNetwork, SegmentationModel
from napari_crfasrnn.project import Project

TAUGHT = "taught"
"""In a model's provenance: the classes that it knows from the labels of one project only."""


def known_classes(model: SegmentationModel, project: Project) -> list[bool]:
    """Return for each of a project's classes whether the network of a model knows it from elsewhere.

    What it learnt from the labels of this very project does not count: they are all here, and say it better.
    Nor does what experts speak for.
    """
    known = {spec.name for spec in model.classes}
    if model.panel is not None:
        own = range(model.n_labels) if model.panel.speaks_for is None else model.panel.speaks_for
        known -= {model.classes[value].name for value in own if value != REST}
    taught = model.provenance.get(TAUGHT, {})
    if taught.get("project") == project.id:
        known -= set(taught["classes"])
    renamed = _renamed(model, project)
    return [renamed.get(spec.name, spec.name) in known for spec in project.classes]


def told_apart(student: SegmentationModel, known: Sequence[bool], has_network: bool) -> list[bool]:
    """Return for each class whether a model can tell it before it learnt a label of it.

    Where experts speak for all classes, the network, which knows a background, has no say; what they
    remember of other projects they learn again.
    """
    remembered = set[int]()
    if student.panel is not None:
        speaks_for = student.panel.speaks_for or range(student.n_labels)
        remembered = {speaks_for[column] for column in student.panel.memory.column.tolist()}
    return [value in remembered or (is_known and has_network) for value, is_known in enumerate(known)]


def with_classes_of(model: SegmentationModel, project: Project) -> SegmentationModel:
    """Return a copy of a model with a project's classes."""
    classes = project.classes
    if [spec.name for spec in classes] == [spec.name for spec in model.classes]:
        return model.copy()
    # Growing a head draws random numbers; the caller's must not move on.
    with torch.random.fork_rng(devices=[]):
        return model.with_classes(classes, continues=_renamed(model, project))


def may_begin_anew(model: SegmentationModel, base: SegmentationModel) -> bool:
    """Return whether a head may be taught from ``base`` on, with what was read of images for ``model``.

    Both must read images alike, by the same encoder and the same kernels of the CRF.
    """
    if model.config != base.config.model_copy(update={"classes": model.classes}):
        return False
    network, first = model.network, base.network
    if not (isinstance(network, LiteNetwork) and isinstance(first, LiteNetwork)):
        return False
    parts = zip(network.encoder_parts(), first.encoder_parts(), strict=True)
    weights = ((one.state_dict(), other.state_dict()) for one, other in parts)
    return all(torch.equal(one[name], other[name].to(model.device)) for one, other in weights for name in one)


def _renamed(model: SegmentationModel, project: Project) -> dict[str, str]:
    """Return the classes that the project has renamed: name in the project → name in the model."""
    names = {spec.name for spec in project.classes}
    renames = project.renames
    continues: dict[str, str] = {}
    for spec in model.classes:
        name: str | None = spec.name
        for mapping in renames:
            if name is not None:
                name = mapping.get(name, name)
        if name is not None and name != spec.name and name in names:
            continues.setdefault(name, spec.name)
    return {new: old for new, old in continues.items() if new not in {spec.name for spec in model.classes}}
