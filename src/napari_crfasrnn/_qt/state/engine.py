"""What runs in the worker's thread: the core, with the model and the image that were used last kept ready.

Everything here is slow and knows neither Qt nor napari. Torch is imported when it is first needed, in
the worker's thread, so that opening the widget does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_crfasrnn._qt.state.boxes import Outline, heed
from napari_crfasrnn._qt.state.micrographs import Kind, kind_of
from napari_crfasrnn.classes import ClassSpec
from napari_crfasrnn.edits import Box
from napari_crfasrnn.progress import Cancel, Progress, raise_if_cancelled

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers import ImageInput
    from napari_crfasrnn._qt.state.planes import PlaneIndex
    from napari_crfasrnn._qt.state.work import Labels, Mask
    from napari_crfasrnn.config import TrainConfig
    from napari_crfasrnn.importing import ImportReport
    from napari_crfasrnn.network import SegmentationModel
    from napari_crfasrnn.project import Project
    from napari_crfasrnn.segmenter import LiveRefinement, Segmentation, Segmenter
    from napari_crfasrnn.training import LiveBeside, LiveClassifier, StrokeLesson, TrainReport, TrainStep
    from napari_crfasrnn.zoo import ModelEntry

# napari's label layers take pandas; the others are ours, and the plot of learning.
WANTED_SOON = ("pandas", "napari_crfasrnn.segmenter", "napari_crfasrnn.training", "pyqtgraph")


@dataclass(frozen=True)
class ModelRequest:
    """A model, for a class table.

    Attributes
    ----------
    source
        Its file, or the model itself.
    classes
        The class table it has to have; None for its own.
    continues
        For renamed classes: new name, name in the source.
    """

    source: Path | SegmentationModel
    classes: tuple[ClassSpec, ...] | None = None
    continues: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Segmented:
    """A segmentation, and what else there is to say about it."""

    segmentation: Segmentation
    n_nonfinite: int
    present: tuple[int, ...]
    n_boxes: int = 0
    """Boxes that it heeded."""
    left_out: str = ""
    """Why it did not heed others, a sentence."""
    kind: Kind | None = None
    """Which micrograph it may be."""

    def remapped(self, new_values: Sequence[int | None], classes: tuple[ClassSpec, ...]) -> Segmented:
        """Return it for another class table: for each class its value there, or None if it is gone."""
        present = (new_values[value] for value in self.present)
        return replace(
            self,
            segmentation=self.segmentation.remapped(new_values, classes),
            present=tuple(sorted(value for value in present if value is not None)),
        )


@dataclass(frozen=True)
class ReadModel:
    """What there is to say about a model file that was read; the report is of one of another system."""

    class_names: tuple[str, ...]
    report: ImportReport | None


class Engine:
    """The core at work. Used by one thread at a time."""

    def __init__(self) -> None:
        self._request: ModelRequest | None = None
        self._model: SegmentationModel | None = None
        self._segmenter: Segmenter | None = None
        self._image: ImageInput | None = None
        self._report: ImportReport | None = None  # of the file that was loaded last

    def list_models(self) -> tuple[ModelEntry, ...]:
        """Return the models that can be had by name, downloads too."""
        from napari_crfasrnn.zoo import list_models

        return list_models(downloadable=True)

    def download(self, name: str, progress: Progress, cancel: Cancel) -> tuple[Path, ReadModel]:
        """Bring a published model here, whose licence was accepted, and load it."""
        from napari_crfasrnn.zoo import download_model

        shown = -1

        def in_steps(done: int, total: int) -> None:
            nonlocal shown
            step = done >> 20  # megabytes: a signal for each piece would be too many
            if step != shown:
                shown = step
                progress(step, total >> 20)

        path = download_model(name, accept_licence=True, progress=in_steps, cancel=cancel).path
        return path, self.check(path)

    def warm_up(self) -> None:
        """Import what will be wanted soon, so that nobody waits for it then."""
        for name in WANTED_SOON:
            import_module(name)

    def names(self, path: Path) -> tuple[str, ...]:
        """Return the names of the classes of the model in a file, without loading its weights."""
        from napari_crfasrnn.checkpoint import read_info

        return tuple(spec.name for spec in read_info(path).config.classes)

    def check(self, path: Path) -> ReadModel:
        """Load all of the model in a file; return its classes' names, and what became of its tensors."""
        names = tuple(spec.name for spec in self.model(ModelRequest(path)).classes)
        return ReadModel(names, self._report)

    def model(self, request: ModelRequest) -> SegmentationModel:
        """Return a model, loaded and with the class table asked for."""
        if self._model is not None and self._request == request:
            return self._model
        self._request = self._segmenter = None
        model = request.source
        if isinstance(model, Path):
            model, self._report = _load(model)
        if request.classes is not None and request.classes != model.classes:
            model = model.with_classes(request.classes, continues=dict(request.continues))
        self._request, self._model = request, model
        return model

    def segment(
        self,
        request: ModelRequest,
        image: ImageInput,
        index: PlaneIndex | None,
        progress: Progress,
        cancel: Cancel,
        boxes: Sequence[Outline] = (),
    ) -> Segmented:
        """Segment a plane of an image, or all of it where ``index`` is None, heeding boxes around objects."""
        segmenter = self._ready(request, image, cancel)
        source = segmenter.source
        planes = list(source.indices()) if index is None else [index]
        heeded = heed(boxes, planes, source.plane_shape, segmenter.model.classes)
        result = segmenter.predict(detections=heeded.by_plane, index=index, progress=progress, cancel=cancel)
        present = tuple(value for value, share in enumerate(result.shares()) if share > 0)
        kind = kind_of(source, planes[0])
        return Segmented(result, source.n_nonfinite, present, heeded.n_boxes, heeded.left_out, kind)

    def refine(
        self,
        request: ModelRequest,
        image: ImageInput,
        labels: Labels,
        held: Mask,
        index: PlaneIndex,
        region: tuple[int, int, int, int] | None,
        cancel: Cancel,
    ) -> Segmentation:
        """Let the CRF snap the labels of a plane to the edges of the image, but for those held."""
        segmenter = self._ready(request, image, cancel)
        return segmenter.refine(labels, region=region, clamp=held, index=index, cancel=cancel)

    def live(
        self, request: ModelRequest, image: ImageInput, index: PlaneIndex, cancel: Cancel
    ) -> LiveRefinement:
        """Make ready for refining a plane while somebody paints on it."""
        return self._ready(request, image, cancel).live(index=index, cancel=cancel)

    def live_classifier(
        self,
        request: ModelRequest,
        image: ImageInput,
        index: PlaneIndex,
        box: Box,
        elsewhere: Sequence[StrokeLesson],
        cancel: Cancel,
    ) -> LiveClassifier | LiveRefinement:
        """Make ready for labelling a box of a plane by its strokes; for refining, where that cannot be."""
        from napari_crfasrnn.training import LiveClassifier

        segmenter = self._ready(request, image, cancel)
        if not LiveClassifier.takes(segmenter.model):
            return segmenter.live(index=index, cancel=cancel)
        plane = segmenter.source.plane(segmenter.source.check_index(index))
        return LiveClassifier(segmenter.model, plane, elsewhere, cancel, box)

    def live_beside(
        self,
        request: ModelRequest,
        image: ImageInput,
        index: PlaneIndex,
        box: Box,
        new: Sequence[int],
        elsewhere: Sequence[StrokeLesson],
        cancel: Cancel,
    ) -> LiveBeside | LiveRefinement:
        """Make ready for refining a plane, with new classes in a box of it, where those can be learnt."""
        from napari_crfasrnn.training import LiveBeside

        segmenter = self._ready(request, image, cancel)
        live = segmenter.live(index=index, cancel=cancel)
        if not LiveBeside.takes(segmenter.model):
            return live
        plane = segmenter.source.plane(segmenter.source.check_index(index))
        return LiveBeside(segmenter.model, plane, live, new, elsewhere, None if live.is_whole else box)

    def learn(
        self,
        request: ModelRequest,
        project: Project,
        config: TrainConfig,
        report: Callable[[TrainStep], None],
        cancel: Cancel,
        base: ModelRequest | None = None,
    ) -> TrainReport:
        """Teach a copy of a model what a project holds; ``base`` is what its first round began with."""
        from napari_crfasrnn.training import fine_tune

        model = _with_names_of(request)
        first = None if base is None else _with_names_of(base)
        raise_if_cancelled(cancel)
        return fine_tune(model, project, config, progress=report, cancel=cancel, base=first)

    def compare(
        self,
        requests: tuple[ModelRequest, ModelRequest],
        image: ImageInput,
        index: PlaneIndex,
        progress: Progress,
        cancel: Cancel,
    ) -> tuple[Labels, Labels]:
        """Segment a plane with two models, without a look at anybody's corrections."""
        labels: list[Labels] = []
        for request in requests:
            progress(len(labels), len(requests))
            labels.append(self._ready(request, image, cancel).predict(index=index, cancel=cancel).labels)
        return labels[0], labels[1]

    def save(self, request: ModelRequest, path: Path) -> Path:
        """Write a model to a file."""
        self.model(request).save(path)
        return path

    def _ready(self, request: ModelRequest, image: ImageInput, cancel: Cancel) -> Segmenter:
        from napari_crfasrnn.segmenter import Segmenter

        model = self.model(request)
        raise_if_cancelled(cancel)
        if self._segmenter is None:
            self._segmenter, self._image = Segmenter(model), None
        if self._image is None or not _same_pixels(self._image, image):
            self._image = None
            self._segmenter.set_image(image.array, image.axes, image.spacing)
            self._image = image
        return self._segmenter


def _with_names_of(request: ModelRequest) -> SegmentationModel:
    """Return a model with the classes that it has by itself, under their names in the class table asked for.

    What the table adds is not among them: experts learn what a model does not know, so it must not seem to.
    """
    model = request.source
    if isinstance(model, Path):
        model, _ = _load(model)
    if not request.continues:
        return model
    name_of = {origin: name for name, origin in request.continues}
    taken = set(name_of.values())
    renamed = [
        spec.model_copy(update={"name": name_of.get(spec.name, spec.name)})
        for spec in model.classes
        if spec.name in name_of or spec.name not in taken
    ]
    return model.with_classes(renamed, continues=dict(request.continues))


def _load(path: Path) -> tuple[SegmentationModel, ImportReport | None]:
    from napari_crfasrnn.checkpoint import SUFFIX, load_checkpoint
    from napari_crfasrnn.importing import import_model

    if path.suffix == SUFFIX or path.is_dir():
        return load_checkpoint(path), None
    imported = import_model(path)
    return imported.model, imported.report


def _same_pixels(a: ImageInput, b: ImageInput) -> bool:
    # Arrays that a script wrote to in place are not noticed; napari itself does not notice them either.
    mine: Any = a.array
    return mine is b.array and a.axes == b.axes
