"""What a round does for a panel: read the planes, teach the experts, choose the CRF.

Where the network knows some of the classes, the experts learn the others only, and what is none of them: the
rest (`rest`). The network stays as it is, so nothing that it knows is lost: taught a few strokes of
background in one kind of image, it soon sees background everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn import metrics
from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.edits import contradictions
from napari_crfasrnn.experts import REST, FeatureMaps, Head, Memory, Panel
from napari_crfasrnn.experts.features import FINE, GROUPS, columns, parts_to_read
from napari_crfasrnn.network import LiteNetwork, SegmentationModel
from napari_crfasrnn.plane_logits import PlaneLogits
from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.training.aside import Aside
from napari_crfasrnn.training.background import background_rows
from napari_crfasrnn.training.crf_tuning import choose_tiles
from napari_crfasrnn.training.doubts import MAX_STROKE_PIXELS
from napari_crfasrnn.training.encodings import Encodings
from napari_crfasrnn.training.growing import Pixels
from napari_crfasrnn.training.outvoted import ReadPixels, Votes, outvoted
from napari_crfasrnn.training.panel_learner import PanelLearner
from napari_crfasrnn.training.panel_tiles import PanelTile, PanelTiles, are_dense
from napari_crfasrnn.training.panel_windows import Window, draw_windows
from napari_crfasrnn.training.planes import LabelledPlane, any_of, balanced
from napari_crfasrnn.training.report import LockedScore, PlaceOfContradiction
from napari_crfasrnn.training.rest import are_strokes, rest_beside, strokes_beside, sureness

_MAX_PIXELS = 15_000  # to learn, of all planes together; more teach hardly more, and take their time
_READ_AT_ONCE = 4_000  # pixels, between two questions whether to stop
_MIN_PLANE_PIXELS = 200  # of each plane, however many planes there are
_MAX_LOCKED = 4_000  # of all planes, for the scores on the way
_MAX_UNTOUCHED = 400  # of all planes: examples of the rest that nobody labelled
_WORLD = 10.0  # what other photographs count, beside labels of the rest
_ITERATIONS_BESIDE = 60  # of perceptrons beside a network, at most: see `PanelRound.n_iterations`
_REMEMBERED = 250  # pixels of each column that a panel takes along
_ALL = tuple(GROUPS)
_DRAW_STREAM = 4  # random stream, beside those of the head
_UNTOUCHED_STREAM, _MEMORY_STREAM, _WINDOW_STREAM = 5, 6, 7
_MEASURE_EVERY = 25  # iterations
_MEASURE_HEAD_EVERY = 25  # a head looks at whole images
_WINDOWS = 64  # of all planes together, for a head
_SEEN_PIXELS = 150_000  # of planes that a head looks at as a whole in a measurement; of one in any case


@dataclass(frozen=True, eq=False)
class _Labelled:
    """Some labelled pixels of a plane: places, classes [n], features [n, d]."""

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    target: NDArray[np.int64]
    rows: Tensor


@dataclass(eq=False)
class PanelRound:
    """Teaches a panel from labelled planes.

    Parameters
    ----------
    model
        Whose encoder and classes; not changed. What its panel remembers is learnt again.
    planes
        All of them.
    speaks_for
        What the panel is to speak for, as in `PanelConfig`.
    is_foreign
        Whether all that the model's panel remembers is from other projects.
    config
        Seed, iterations, learning rate.
    encodings
        Of the planes.
    cancel
        Asked all the time.
    is_late
        Whether there is no time to read yet another plane.

    Attributes
    ----------
    n_read
        How many planes were read: the first ones, the last of them perhaps in part.
    """

    model: SegmentationModel
    planes: Sequence[LabelledPlane]
    speaks_for: tuple[int, ...] | None
    is_foreign: bool
    config: TrainConfig
    encodings: Encodings
    cancel: Cancel | None
    is_late: Callable[[], bool]
    n_read: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._column_of = np.arange(self.model.n_labels)  # label → column
        if self.speaks_for is not None:
            self._column_of = np.full(self.model.n_labels, self.speaks_for.index(REST))
            for column, value in enumerate(self.speaks_for):
                if value != REST:
                    self._column_of[value] = column
        self._parts = [part for plane in self.planes for part in self._parts_of(plane)]
        boxes = choose_tiles(self._parts, self.model.n_labels)
        self._are_dense = are_dense([(self._parts[place], box) for place, box in boxes])
        random = np.random.default_rng([self.config.seed, _DRAW_STREAM])
        self._training: list[_Labelled] = []
        self._locked: list[_Labelled] = []
        self._untouched: list[Pixels] = []
        self._maps_of: dict[int, FeatureMaps] = {}  # part → what its tiles hold
        tiles: list[PanelTile] = []
        n_parts = len(self._parts)
        for number, plane in enumerate(self._parts):
            raise_if_cancelled(self.cancel)
            if number and self.is_late():
                break
            maps = self._maps(plane)
            limit = max(_MIN_PLANE_PIXELS, _MAX_PIXELS // n_parts)
            self._training.append(_read(maps, plane.training, limit, random, self.cancel))
            self._locked.append(_read(maps, plane.locked, 1 + _MAX_LOCKED // n_parts, None, self.cancel))
            if self.speaks_for is not None:
                self._untouched.append(self._read_untouched(maps, plane))
            own = [PanelTile(plane, box, maps) for place, box in boxes if place == number]
            if own:
                self._maps_of[number] = maps
            tiles += own
        places = {(part.item_id, part.index) for part in self._parts[: len(self._training)]}
        self.n_read = len(places)
        self.tiles = PanelTiles(tiles, self.model, self.encodings, self.cancel)

    def _parts_of(self, plane: LabelledPlane) -> list[LabelledPlane]:
        """Return a large plane in the parts that hold labels; there is no need to read the others."""
        boxes = parts_to_read(plane.size, self.model.expert_size(plane.size))
        if len(boxes) == 1:
            return [plane]
        return [part for part in map(plane.part, boxes) if part.n_training or part.n_locked]

    @cached_property
    def has_head(self) -> bool:
        """Whether a head can learn all that the panel has to know."""
        is_alone = self.speaks_for is None and not len(self._remembered())
        return self._are_dense and is_alone and any(plane.n_training for plane in self._read_planes())

    @property
    def n_iterations(self) -> int:
        """How long the perceptrons learn.

        Beside a network that is not long. A few strokes show little of what a class can look like, and the
        examples of the rest much of what it may not; some of these even are of the class. Perceptrons that
        learn on see it in the end only where it looks just like a stroke.
        """
        n = self.config.max_iterations
        return n if self.speaks_for is None else min(n, _ITERATIONS_BESIDE)

    def start(self, is_late: Callable[[], bool], cancel: Cancel | None) -> PanelLearner:
        """Grow the forests until it is late, and get ready to teach the perceptrons step by step."""
        rows = torch.cat([each.rows for each in self._training])
        column = torch.from_numpy(self._column_of[np.concatenate([each.target for each in self._training])])
        own = Pixels(rows, column, torch.ones(len(rows)))
        if self.speaks_for is not None and are_strokes([_labelled(part) for part in self._parts]):
            own = strokes_beside(own, self.speaks_for.index(REST))
        remembered = self._remembered()
        parts = [own, Pixels(remembered.rows, remembered.column.long(), torch.ones(len(remembered)))]
        if self.speaks_for is not None:
            n_labelled = float(own.weight[own.column == self.speaks_for.index(REST)].sum())
            parts += self._rest(n_labelled, is_late, cancel)
        learner = PanelLearner(
            self.model.n_labels,
            self.speaks_for,
            Pixels.joined(parts),
            self._are_dense,
            self.has_head,
            self.config.model_copy(update={"max_iterations": self.n_iterations}),
            cancel,
            is_late,
            long_side=self.model.expert_side,
        )
        learner.panel.memory = self._memory(own, remembered)
        return learner

    def measure(self, panel: Panel, iteration: int) -> float | None:
        """Return the mean IoU on held-back pixels, without CRF, if it is due and can be told.

        Of a panel that does not speak for all classes: the mean over those it speaks for and the rest.
        """
        read = dict(enumerate(self._locked))
        if panel.heads:
            read = {number: read[number] for number in self._watched()}
        read = {number: each for number, each in read.items() if len(each.target)}
        if iteration % (_MEASURE_HEAD_EVERY if panel.heads else _MEASURE_EVERY) or not read:
            return None
        judged = [
            panel.marginals(each.rows, self._seen(panel, number, each)) for number, each in read.items()
        ]
        given = torch.cat(judged).argmax(1).numpy()
        truth = self._column_of[np.concatenate([each.target for each in read.values()])]
        counts = metrics.confusion(given, truth, panel.n_columns, ignore=None)
        return LockedScore.from_confusion(counts, tuple(map(str, range(panel.n_columns)))).miou

    def votes(self, model: SegmentationModel) -> Votes:
        """Return what is said of strokes by those who learnt the others.

        Its places begin with those that a model with this panel, having learnt them, sees as another class.
        """
        found = []
        assert model.panel is not None
        for number, (plane, read) in enumerate(zip(self._parts, self._training, strict=False)):
            raise_if_cancelled(self.cancel)
            if not 0 < plane.n_training <= MAX_STROKE_PIXELS:
                continue
            logits = model.panel.marginals(read.rows, self._seen(model.panel, number, read)).log()
            if not model.panel.is_alone:
                known = _known(self.encodings.logits(model, plane, self.cancel), read.y, read.x)
                logits = model.panel.joined(logits, known)
            prediction = plane.training.copy()
            prediction[read.y, read.x] = logits.argmax(1).numpy()
            found += [
                PlaceOfContradiction(plane.item_id, plane.index, region)
                for region in contradictions(plane.training, prediction)
            ]
        pixels = [
            ReadPixels(plane, read.y, read.x, columns(read.rows, FINE).numpy())
            for plane, read in zip(self._parts, self._training, strict=False)
        ]
        votes = outvoted(pixels, self.config.seed, self.cancel)
        others = [place for place in votes.places if not any(map(place.overlaps, found))]
        return replace(votes, places=(*found, *others))

    def windows(self, is_late: Callable[[], bool]) -> list[Window]:
        """Return what a head learns from; a thread beside this one draws every second window."""
        planes, seed = self._read_planes(), (self.config.seed, _WINDOW_STREAM)

        def draw(first: int, cancel: Cancel | None) -> dict[int, Window]:
            return draw_windows(self.model, planes, range(first, _WINDOWS, 2), seed, cancel, is_late)

        with Aside(lambda stop: draw(1, stop)) as aside:
            found = draw(0, self.cancel) | aside.wait(self.cancel)
        return [found[number] for number in sorted(found)]

    def _read_planes(self) -> list[LabelledPlane]:
        return [plane for plane in self.planes[: self.n_read] if plane.n_training]

    def _watched(self) -> list[int]:
        """Return the parts on which a panel with heads is measured."""
        found, n_pixels = list[int](), 0
        for number in self._maps_of:
            y0, x0, y1, x1 = self._parts[number].place
            n_pixels += (y1 - y0) * (x1 - x0)
            if found and n_pixels > _SEEN_PIXELS:
                break
            found.append(number)
        return found

    def _seen(self, panel: Panel, number: int, read: _Labelled) -> list[Tensor]:
        """Return what each head of a panel thinks of some pixels of a plane."""
        if not panel.heads:
            return []
        maps = self._maps_of.get(number) or self._maps(self._parts[number])
        found = []
        for head in panel.heads:
            raise_if_cancelled(self.cancel)
            if isinstance(head, Head):
                found.append(head.marginals(maps, read.y, read.x, self.cancel))
        return found

    def _rest(self, n_labelled: float, is_late: Callable[[], bool], cancel: Cancel | None) -> list[Pixels]:
        """Return examples of the rest beside those that are labelled."""
        assert self.speaks_for is not None
        rows = background_rows(self.model, cancel, is_late)
        return rest_beside(
            n_labelled, self.speaks_for.index(REST), Pixels.joined(self._untouched), rows, _WORLD
        )

    def _read_untouched(self, maps: FeatureMaps, plane: LabelledPlane) -> Pixels:
        """Return some pixels without labels as examples of the rest, as far as the network is sure."""
        assert self.speaks_for is not None
        random = np.random.default_rng([self.config.seed, _UNTOUCHED_STREAM, plane.item_id])
        ignore = ignore_value(plane.training.dtype)
        y0, x0, y1, x1 = plane.place
        free = (plane.training == ignore) & (plane.locked == ignore) & ~plane.aside
        y, x = np.nonzero(free[y0:y1, x0:x1])
        some = any_of(len(y), 1 + _MAX_UNTOUCHED // len(self._parts), random)
        y, x = y0 + y[some], x0 + x[some]
        known = _known(self.encodings.logits(self.model, plane, self.cancel), y, x)
        column = torch.full((len(y),), self.speaks_for.index(REST))
        return Pixels(maps.at(y, x, _ALL), column, sureness(known, self.speaks_for))

    def _remembered(self) -> Memory:
        """Return what the model's panel brings from other projects, in this panel's columns."""
        panel = self.model.panel
        if panel is None or not len(panel.memory):
            return Memory()
        values = range(self.model.n_labels) if panel.speaks_for is None else panel.speaks_for
        value = np.array(values)[panel.memory.column.cpu().numpy()]
        wanted = np.ones(len(value), bool)
        if not self.is_foreign:  # labels of this project are all here, and say it better
            here = np.unique(np.concatenate([each.target for each in self._training]))
            wanted = (panel.memory.is_foreign.cpu().numpy() == 1) | ~np.isin(value, [*here, REST])
        if self.speaks_for is None:
            wanted &= value != REST
        kept = panel.memory.select(wanted)
        rest = -1 if self.speaks_for is None else self.speaks_for.index(REST)
        moved = np.where(value == REST, rest, self._column_of[value])[wanted]
        kept.column.copy_(torch.from_numpy(moved))
        return kept

    def _memory(self, own: Pixels, remembered: Memory) -> Memory:
        """Return some of the pixels of each column, those of this project and those of others."""
        random = np.random.default_rng([self.config.seed, _MEMORY_STREAM])
        columns = torch.cat([own.column, remembered.column.long()])
        is_foreign = torch.cat([torch.zeros(len(own.column)), torch.ones(len(remembered))])
        chosen = []
        for group in torch.unique(2 * columns + is_foreign).tolist():
            places = np.flatnonzero((2 * columns + is_foreign).numpy() == group)
            chosen.append(places[any_of(len(places), _REMEMBERED, random)])
        some = torch.from_numpy(np.sort(np.concatenate(chosen)))
        rows = torch.cat([own.rows, remembered.rows])
        return Memory.of(rows[some], columns[some], is_foreign[some])

    def _maps(self, plane: LabelledPlane) -> FeatureMaps:
        network = self.model.network
        assert isinstance(network, LiteNetwork)
        seen = self.model.expert_input(plane.image)
        return FeatureMaps(network, seen, plane.size, self.cancel, plane.box)


def _labelled(plane: LabelledPlane) -> NDArray[np.bool_]:
    """Return where a plane, or a part of it, is labelled, held back or not: [h, w]."""
    ignore, (y0, x0, y1, x1) = ignore_value(plane.training.dtype), plane.place
    known: NDArray[np.bool_] = (plane.training != ignore) | (plane.locked != ignore) | plane.aside
    return known[y0:y1, x0:x1]


def _known(
    logits: PlaneLogits,
    y: NDArray[np.intp],
    x: NDArray[np.intp],
) -> Tensor:  # [n, L]
    """Return what the network says of some pixels."""
    return logits.at(torch.from_numpy(y), torch.from_numpy(x)).T.cpu()


def _read(
    maps: FeatureMaps,
    labels: NDArray[np.integer],
    limit: int,
    random: np.random.Generator | None,
    cancel: Cancel | None,
) -> _Labelled:
    """Return the labelled pixels with their features, or a drawn sample: balanced, or (None) as they come."""
    y, x = np.nonzero(labels != ignore_value(labels.dtype))
    target = labels[y, x].astype(np.int64)
    if random is None:
        chosen = any_of(len(y), limit, np.random.default_rng(0))
    else:
        chosen = balanced(target, limit, random)
    y, x, target = y[chosen], x[chosen], target[chosen]
    parts = []
    for start in range(0, max(1, len(y)), _READ_AT_ONCE):
        raise_if_cancelled(cancel)
        some = slice(start, start + _READ_AT_ONCE)
        parts.append(maps.at(y[some], x[some], _ALL))
    return _Labelled(y, x, target, torch.cat(parts))
