"""A model at work on one image."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.classes import label_dtype
from napari_crfasrnn.crf import Potential
from napari_crfasrnn.edits import Box
from napari_crfasrnn.frames import FramedImage
from napari_crfasrnn.higher_order import Detection
from napari_crfasrnn.imaging import ImageSource, open_image
from napari_crfasrnn.kernels import PreparedImage
from napari_crfasrnn.lattice import release_memory
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.plane_logits import PlaneLogits
from napari_crfasrnn.progress import Cancel, Progress, raise_if_cancelled
from napari_crfasrnn.segmenter.live import LiveRefinement
from napari_crfasrnn.segmenter.parts import area, inner, parts_of, takes_whole
from napari_crfasrnn.segmenter.plane import Plane
from napari_crfasrnn.segmenter.refining import (
    check_clamp,
    check_detections,
    check_extra_features,
    check_given,
    check_region,
    hold,
    run_crf,
    unary_of_labels,
)
from napari_crfasrnn.segmenter.result import ResultArrays, Segmentation, read_out
from napari_crfasrnn.segmenter.steps import Clock, Steps
from napari_crfasrnn.shortage import require_memory


class Segmenter:
    """A model at work on one image.

    Parameters
    ----------
    model
        Moved to the device, and not changed otherwise.
    device
        "auto" takes the graphics card if torch can use one; "cpu" and "cuda" (or "cuda:1") insist.

    Raises
    ------
    TypeError
        If ``model`` is no `SegmentationModel`.
    ValueError
        If the device is unknown.
    RuntimeError
        If CUDA is asked for and torch cannot use it.
    """

    def __init__(self, model: SegmentationModel, device: str | torch.device = "auto") -> None:
        if not isinstance(model, SegmentationModel):
            raise TypeError(f"model must be a SegmentationModel, got {type(model).__name__}: use load_model")
        self.device = choose_device(device)
        self.model = model.to(self.device)
        self._source: ImageSource | None = None
        self._extra: NDArray[np.float32] | None = None  # [E, *stack, H, W]
        self._plane: Plane | None = None

    @property
    def source(self) -> ImageSource:
        """The image that was set.

        Raises
        ------
        ValueError
            If none was.
        """
        if self._source is None:
            raise ValueError("an image must be set first, with .set_image(array)")
        return self._source

    def set_image(
        self,
        array: Any,
        axes: str | None = None,
        spacing: float | Sequence[float] | None = None,
        *,
        extra_features: Any = None,
    ) -> None:
        """Set the image to work on; nothing is computed yet.

        Parameters
        ----------
        array, axes, spacing
            As `open_image` takes them; or an `ImageSource` alone.
        extra_features
            ``[E, *stack, H, W]``, or ``[*stack, H, W]`` for one: what else tells pixels apart, such as depth
            or a second image, already divided by the width that its differences are measured in. The network
            does not see it; the CRF follows its edges as it follows those of the colours, in prediction and
            in refinement.

        Raises
        ------
        TypeError, ValueError
            If it is no image, see `open_image`, or the features do not fit it; the image set before stays.
        """
        source = array if isinstance(array, ImageSource) else open_image(array, axes, spacing)
        shape = (*source.stack_shape, *source.plane_shape)
        self._extra = check_extra_features(extra_features, shape)
        self._source, self._plane = source, None

    def predict(
        self,
        *,
        crf: bool = True,
        superpixels: bool = False,
        detections: Sequence[Detection] | Mapping[tuple[int, ...], Sequence[Detection]] = (),
        index: int | Sequence[int] | None = None,
        marginals: bool = False,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> Segmentation:
        """Segment the image.

        Parameters
        ----------
        crf
            Whether the CRF refines what the network says.
        superpixels
            Whether the CRF also asks the superpixels of the image to agree, which takes about a second.
        detections
            What a detector found, which the CRF believes as far as the pixels do: of the one plane that is
            segmented, or for a stack by the index of the plane. Their labels are places in the class table or
            names of classes.
        index
            One plane of a stack, along its T and Z axes; None segments all planes.
        marginals
            Whether to keep the probabilities of all classes: L times the memory of a float image.
        progress
            Called as ``progress(done, total)`` after each step: the network, the lattices and each
            iteration of the CRF, of each plane.
        cancel
            Asked between those steps, and again and again while lattices are built.

        Raises
        ------
        ValueError
            If no image is set or ``index`` lies outside, a detection fits neither plane nor classes, or the
            frame of a demo is asked for together with what its CRF did not know.
        Cancelled
            If ``cancel`` said so.
        """
        started = time.perf_counter()
        source = self.source
        if index is None:
            indices, stack_shape = list(source.indices()), source.stack_shape
        else:
            indices, stack_shape = [source.check_index(index)], ()
        found = self._detections(detections, indices)
        if (superpixels or found) and not crf:
            raise ValueError("superpixels and detections need the CRF: leave crf=True")
        frame = self.model.config.preprocessing.frame
        if (superpixels or found or (crf and self._extra is not None)) and frame != "free":
            raise ValueError(
                "superpixels, detections and extra features are of the image as it is, not of one in the "
                f"frame {frame!r}: use model.with_frame('free')"
            )
        arrays = ResultArrays(
            len(indices), source.plane_shape, self.model.classes, before_crf=crf, marginals=marginals
        )
        clock = Clock(self.device)
        with_crf = self.model if crf and frame == "free" else None
        parts = parts_of((0, 0, *source.plane_shape), source.plane_shape, with_crf)
        n_judged = self.model.n_parts(source.plane_shape)
        n_runs = 0 if not crf else 1 if frame != "free" else len(parts)
        n_steps = n_judged + n_runs * (1 + self.model.crf.config.n_iterations)
        steps = Steps(len(indices) * n_steps, progress, cancel)
        for place, at in enumerate(indices):
            plane = self._visit(source, at, parts if with_crf else [])
            with clock("network"):
                logits = plane.logits(cancel, steps)
            steps.reach(place * n_steps + n_judged)
            in_frame = None
            if crf and plane.framed is not None:
                in_frame = self._in_frame(plane, *plane.framed, clock, cancel, steps)
            for part, window in parts:
                raise_if_cancelled(cancel)
                unary = refined = logits.within(window)
                if crf:
                    arrays.write_before_crf(place, part, inner(unary, part, window)[0])
                if in_frame is not None:
                    refined = in_frame.within(window)
                elif crf:
                    further = (superpixels, found.get(at, ()))
                    refined = self._run_part(plane, window, unary, further, clock, cancel, steps)
                arrays.write(place, part, inner(refined, part, window)[0])
                if in_frame is None and crf:
                    steps.done()  # the last iteration, its result written
            steps.reach((place + 1) * n_steps)
            plane.entropy = arrays.entropy(place)
        return arrays.finish(stack_shape, {**clock.seconds, "total": time.perf_counter() - started})

    def refine(
        self,
        labels_or_unary: Any,
        *,
        region: Sequence[int] | None = None,
        clamp: Any = None,
        index: int | Sequence[int] | None = None,
        cancel: Cancel | None = None,
    ) -> Segmentation:
        """Let the CRF snap labels to the edges of one plane.

        Where a label is what the network would say, the network's logits speak; where it differs,
        the label does, with probability 0.9; where it is the ignore value, the logits again. Where a
        clamped label contradicts the network, both fade around it at pixels of like colour, so that the
        clamped labels can spread to the edges of the image. Where some pixels are clamped and others have no
        label, these take a vote, too, with an `FcnLite` or `FcnFine` and on a plane that `LiveRefinement`
        refines as a whole: what looks to the network like the clamped pixels, is predicted to be the same
        and is near leans towards their labels.

        Parameters
        ----------
        labels_or_unary
            Labels ``[H, W]``, integers, places in the class table or the ignore value (255 up to 255 classes;
            65535 in wider types); or logits ``[L, H, W]``, floating point.
        region
            ``(y0, x0, y1, x1)``, the end excluded: nothing changes outside, and what lies far outside is
            not looked at, which makes small regions fast.
        clamp
            Boolean ``[H, W]``: pixels that keep their label exactly (with logits: the likeliest class).
            A clamped pixel without a label has none to keep and is treated as any other.
        index
            Which plane of a stack; required there.
        cancel
            Asked between steps, of which each iteration of the CRF is one.

        Returns
        -------
        Segmentation of the plane, ``[H, W]``, without ``before_crf`` and ``marginals``.

        Raises
        ------
        ValueError
            If no image is set, a stack comes without ``index``, a shape or type does not fit, a label is
            not in the class table, or ``region`` lies outside the plane.
        Cancelled
            If ``cancel`` said so.
        """
        started = time.perf_counter()
        source, at = self.source, self._index_of_one(index)
        given = check_given(labels_or_unary, source.plane_shape, self.model.n_labels)
        box = check_region(region, source.plane_shape)
        held = check_clamp(clamp, source.plane_shape)
        clock, steps = Clock(self.device), Steps(0, None, cancel)

        parts = parts_of(box, source.plane_shape, self.model)
        plane = self._visit(source, at, parts)
        if given.dtype.kind == "f":
            logits = PlaneLogits(torch.from_numpy(given)[None].to(self.device), plane.size)
            old: NDArray[Any] = (
                torch.from_numpy(given).max(0).indices.numpy().astype(label_dtype(self.model.n_labels))
            )
            plane.entropy = None
        else:
            with clock("network"):
                logits = plane.logits(cancel)
            old = given
        steps.done()
        held = held & (old < self.model.n_labels)
        labels, entropy = old.copy(), plane.known_entropy(logits, cancel)
        voted = None  # [1, L, H, W]
        if given.dtype.kind != "f" and held.any() and (given >= self.model.n_labels).any():
            votes = plane.votes(cancel)
            if votes is not None:
                voted = votes.added(logits.within((0, 0, *plane.size)), given, held)

        for part, window in parts:
            seen, inside = _slices(window), _slices(part)
            unary = of_network = logits.within(window)
            if given.dtype.kind != "f":
                unary = unary_of_labels(unary, given[seen])
            if voted is not None:
                of_network = inner(voted, window, (0, 0, *plane.size))
                unlabelled = torch.from_numpy(given[seen] >= self.model.n_labels).to(self.device)
                unary = torch.where(unlabelled, of_network, unary)
            with clock("crf"):
                prepared = plane.prepare(window, cancel, keep=len(parts) == 1)
                steps.done()
                unary = hold(unary, of_network, old[seen], held[seen], prepared)
                refined = self._mean_field(unary, prepared, steps)
            del prepared  # its memory is needed for the next part
            read_out(inner(refined, part, window)[0], labels[inside], entropy[inside], None)
            labels[inside][held[inside]] = old[inside][held[inside]]
            entropy[inside][held[inside]] = 0.0
        plane.entropy = entropy
        return Segmentation(
            labels=labels,
            classes=self.model.classes,
            before_crf=None,
            entropy=entropy,
            timings={**clock.seconds, "total": time.perf_counter() - started},
        )

    def live(
        self, *, index: int | Sequence[int] | None = None, cancel: Cancel | None = None
    ) -> LiveRefinement:
        """Make ready for refining a plane while somebody paints on it.

        Asks the network and builds the lattices of the plane, if that was not done yet.

        Parameters
        ----------
        index
            Which plane of a stack; required there.
        cancel
            Asked between those steps, and again and again while lattices are built.

        Raises
        ------
        ValueError
            If no image is set, or a stack comes without ``index``.
        Cancelled
            If ``cancel`` said so.
        """
        source = self.source
        at = self._index_of_one(index)
        whole: Box = (0, 0, *source.plane_shape)
        is_whole = takes_whole(source.plane_shape)
        plane = self._visit(source, at, [(whole, whole)] if is_whole else [])
        logits = plane.logits(cancel)
        raise_if_cancelled(cancel)
        prepared = plane.prepare(whole, cancel) if is_whole else None
        votes = plane.votes(cancel) if is_whole else None
        return LiveRefinement(self.model, plane.image, logits, prepared, plane.extra, votes)

    def _index_of_one(self, index: int | Sequence[int] | None) -> tuple[int, ...]:
        source = self.source
        if index is None and source.stack_shape:
            raise ValueError(f"index must say which plane of the stack {source.stack_shape} to refine")
        return source.check_index(() if index is None else index)

    def _visit(self, source: ImageSource, index: tuple[int, ...], parts: Sequence[tuple[Box, Box]]) -> Plane:
        """Return what is known of a plane, forgetting the one before if it is another.

        ``parts`` are those that the CRF is to see, with what is around them.
        """
        plane = self._plane
        if plane is None or not plane.is_of(source, index):
            self._plane = None  # its memory is needed now
            if self.device.type == "cpu":  # of a GPU torch says whether there is enough
                largest = max((area(window) for _, window in parts), default=0)
                require_memory(
                    source.plane_shape,
                    self.model.n_labels,
                    largest,
                    is_framed=self.model.config.preprocessing.frame != "free",
                    release=release_memory,
                )
            plane = self._plane = Plane(self.model, source, index, self._extra_of(index))
        return plane

    def _extra_of(self, index: tuple[int, ...]) -> Tensor | None:  # [1, E, H, W]
        if self._extra is None:
            return None
        place: Any = (slice(None), *index)
        return torch.from_numpy(self._extra[place])[None].to(self.device)

    def _detections(
        self,
        detections: Sequence[Detection] | Mapping[tuple[int, ...], Sequence[Detection]],
        indices: Sequence[tuple[int, ...]],
    ) -> dict[tuple[int, ...], list[Detection]]:
        """Return the detections of each plane that is segmented, where it has some."""
        source, classes = self.source, self.model.classes
        if isinstance(detections, Detection):
            raise TypeError("detections must be a list of them, got a single Detection")
        if isinstance(detections, Mapping):
            parts = {source.check_index(index): part for index, part in detections.items()}
        else:
            if detections and len(indices) > 1:
                raise ValueError(
                    f"index must say which plane of the stack {source.stack_shape} the detections are of, or "
                    "detections must map the index of a plane to them"
                )
            parts = {indices[0]: detections}
        checked = {at: check_detections(part, source.plane_shape, classes) for at, part in parts.items()}
        return {at: part for at, part in checked.items() if part and at in set(indices)}

    def _in_frame(
        self,
        plane: Plane,
        framed: FramedImage,
        unary: Tensor,  # [1, L, 500, 500]
        clock: Clock,
        cancel: Cancel | None,
        steps: Steps,
    ) -> PlaneLogits:
        """Run the CRF in the frame of a demo."""
        with clock("crf"):
            prepared = plane.prepare_frame(cancel)
        steps.done()
        with clock("crf"):
            return PlaneLogits(framed.restore(self._mean_field(unary, prepared, steps)), plane.size)

    def _run_part(
        self,
        plane: Plane,
        window: Box,
        unary: Tensor,  # [1, L, h, w]
        further: tuple[bool, Sequence[Detection]],
        clock: Clock,
        cancel: Cancel | None,
        steps: Steps,
    ) -> Tensor:  # [1, L, h, w]
        """Run the CRF on a part of a plane, with its superpixels if asked for, and with detections."""
        with clock("crf"):
            prepared = plane.prepare(window, cancel, keep=False)
            potentials = plane.potentials(window, *further)
        steps.done()
        with clock("crf"):
            return self._mean_field(unary, prepared, steps, potentials)

    def _mean_field(
        self,
        unary: Tensor,
        prepared: PreparedImage,
        steps: Steps,
        potentials: Sequence[Potential] = (),
    ) -> Tensor:
        """Run the CRF; all its iterations but the last are steps that are done when it returns."""
        before = steps.n_done

        def on_iteration(done: int, total: int) -> None:
            steps.reach(before + min(done, total - 1))

        return run_crf(self.model, unary, prepared, on_iteration, potentials=potentials)


def _slices(box: Box) -> tuple[slice, slice]:
    return slice(box[0], box[2]), slice(box[1], box[3])


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device that "auto" (a GPU if there is one), "cpu" or "cuda" stands for.

    Raises
    ------
    ValueError
        If it is none of them.
    RuntimeError
        If there is no such GPU.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {str(device)!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise RuntimeError(
            f"device {str(device)!r} is not available: torch sees {torch.cuda.device_count()} CUDA devices; "
            f"use 'auto' or 'cpu', or install a CUDA build of torch"
        )
    return chosen
