"""Learning the head of a network (and, thawed, its encoder) from labelled pixels.

The loss has three parts. Labelled pixels: cross entropy, classes weighted by frequency^-1/2. Untouched
pixels of the same planes: the divergence from what they should become (`teacher`). Pixels of other
photographs: the divergence from what the network said of them before. The weights are pulled to where they
started (not to zero), which is the knowledge that a few strokes must not wash out. An exponential average of
the weights is what is kept: it is good whenever the training is stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_crfasrnn import metrics
from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.experts.sampling import values_at
from napari_crfasrnn.network import Fcn8s, SegmentationModel
from napari_crfasrnn.training.adamw import AdamW
from napari_crfasrnn.training.head_lessons import Lesson, weighed
from napari_crfasrnn.training.memory_limits import fits
from napari_crfasrnn.training.planes import PixelSample, View
from napari_crfasrnn.training.positions import score_map
from napari_crfasrnn.training.report import LockedScore
from napari_crfasrnn.training.teacher import Advice

_BATCH = 4096  # labelled pixels in an iteration
_UNTOUCHED_BATCH = 1024
_LEAST_ITERATIONS = 100  # for classes that are known: see `n_iterations`
SETTLED = 0.7
"""Share of its iterations after which a head that learns classes that it knows has settled."""
_SHARE_OF_PLANE = 1 / 20  # of all iterations
_WARM_UP = 20  # iterations
_AVERAGE = 0.97  # of the averaged weights stays in an iteration: a memory of some 30
_PULL = 1e-2  # share of the way back to the first weights, in units of the learning rate
_MAX_GRADIENT = 5.0
_ENCODER_SHARE = 0.01  # of the learning rate, for a thawed encoder
_MEASURE_EVERY = 10  # iterations, at least
_BATCH_STREAM = 1  # random stream, beside that which draws the pixels


def n_iterations(max_iterations: int, n_planes: int) -> int:
    """Return how many iterations a head learns classes that it knows already from so many planes.

    What a few images show is soon learnt: on others of their kind, a head that goes on does no better, and
    it forgets more of what these do not show.
    """
    share = min(1.0, n_planes * _SHARE_OF_PLANE)
    return min(max_iterations, max(_LEAST_ITERATIONS, round(share * max_iterations)))


class HeadLearner:
    """Trains a model in place, one iteration per call of `step`.

    Parameters
    ----------
    model
        Its network is changed.
    views
        What to learn from.
    locked
        A view of each plane, and the plane's held-back pixels: what `measure` looks at.
    config
        Learning rate, seed, weight of the old predictions.
    advice
        For each plane, what its untouched pixels should become; empty if nobody knows.
    replay
        Views of other images with what their pixels should stay, one of which takes part in every iteration,
        so that the network does not forget what these labels do not show (Robins, Connection Science 1995).
        So do parts of large planes that hold no labels.
    half
        What a thawed encoder computes in beside 32 bits, as `half_precision` returns it.
    settled_after
        Iterations before which no weights are the best: the few held-back pixels of a few strokes may like
        what has hardly learnt.
    most_cells
        Of the network's finest map in an iteration: larger views of a `LiteNetwork` are cut.

    Attributes
    ----------
    iteration
        How many are done.
    n_halvings
        How often the views were cut into two because a step did not fit into the GPU's memory.
    """

    def __init__(
        self,
        model: SegmentationModel,
        views: Sequence[View],
        locked: Sequence[tuple[View, PixelSample]],
        config: TrainConfig,
        advice: Sequence[Advice],
        replay: Sequence[tuple[View, Advice]] = (),
        half: torch.dtype | None = None,
        settled_after: int = 0,
        most_cells: int | None = None,
    ) -> None:
        self._model = model
        self._half = half if config.thaw else None
        self._scaler = torch.amp.GradScaler(model.device.type, enabled=self._half == torch.float16)
        self._locked = [(view, sample) for view, sample in locked if len(sample)]
        self._random = np.random.default_rng([config.seed, _BATCH_STREAM])
        groups = _parameter_groups(model, config)
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        self._first = [parameter.detach().clone() for parameter in self._parameters]
        self._average = [parameter.detach().clone() for parameter in self._parameters]
        self._best: list[Tensor] | None = None
        self._best_miou = -math.inf
        self._settled_after = settled_after
        self._optimizer = AdamW(groups, max_norm=_MAX_GRADIENT)
        counts = torch.zeros(model.n_labels)
        for view in views:
            counts += torch.bincount(view.training.target.cpu(), minlength=model.n_labels)
        class_weight = counts.clamp_min(1).rsqrt().to(model.device)
        lessons = [
            Lesson(view, class_weight[view.training.target], advice[view.plane] if advice else None)
            for view in views
        ]
        if most_cells is not None:
            lessons = [part for each in lessons for part in each.within(model.network, most_cells)]
        self._lessons = weighed([each for each in lessons if len(each.weight)])
        others = [(each.view, each.advice) for each in lessons if each.advice and not len(each.weight)]
        self._replay, self._next_replay = [*replay, *others], 0
        self._order: list[int] = []
        self._measure_every = max(_MEASURE_EVERY, 2 * len(self._locked))
        self._loss_value, self._sound = math.nan, True  # of the latest iteration
        self.iteration = 0
        self.n_halvings = 0

    def step(self) -> float:
        """Do one iteration and return its loss; when that is not finite, nothing was changed.

        Raises
        ------
        torch.OutOfMemoryError
            If memory does not hold a step on the smallest views.
        """
        warm = min(1.0, (self.iteration + 1) / _WARM_UP)
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * warm
        while not fits(self._forward_and_back):
            self._halve()
        if not self._sound:
            return self._loss_value
        self._scaler.unscale_(self._optimizer)  # type: ignore[arg-type]
        self._scaler.step(self._optimizer)  # type: ignore[arg-type]  # in float16, a step with an overflow is left out
        self._scaler.update()
        self.iteration += 1
        self._pull_and_average()
        return self._loss_value

    def _forward_and_back(self) -> None:
        """Compute loss and gradients of the next lesson."""
        if not self._order:
            self._order = self._random.permutation(len(self._lessons)).tolist()
        self._optimizer.zero_grad()
        with torch.enable_grad():
            loss = self._loss(self._lessons[self._order.pop()])
            if self._replay:
                view, advice = self._replay[self._next_replay % len(self._replay)]
                self._next_replay += 1
                loss = loss + self._divergence(self._scores(view), view, advice)
            self._loss_value = float(loss.detach())
            self._sound = math.isfinite(self._loss_value)
            if self._sound:
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def _halve(self) -> None:
        """Cut all views into two, which the encoder reads one by one."""
        parts = [
            half
            for lesson in self._lessons
            if lesson.view.input is not None
            for half in lesson.split(self._model.network)
            if len(half.weight)
        ]
        if not parts:
            raise torch.OutOfMemoryError(
                "the GPU's memory does not hold a step on the smallest window of an image: free some "
                "of it, or learn on the CPU"
            )
        self._lessons, self._order = weighed(parts), []
        self.n_halvings += 1

    def measure(self) -> float | None:
        """Return the mean IoU of the averaged weights on the held-back pixels, if it is due and can be told.

        The best weights so far are remembered; of two that do equally well, the later.
        """
        if self.iteration % self._measure_every or not self._locked:
            return None
        latest = [parameter.detach().clone() for parameter in self._parameters]
        if not all(bool(average.isfinite().all()) for average in self._average):
            return None
        self._load(self._average)
        miou = self.locked_miou()
        self._load(latest)
        if miou is not None and miou >= self._best_miou and self.iteration > self._settled_after:
            self._best_miou = miou
            self._best = [average.clone() for average in self._average]
        return miou

    @torch.no_grad()
    def locked_miou(self) -> float | None:
        """Return the mean IoU of the present weights on the held-back pixels, without CRF."""
        n_labels = self._model.n_labels
        counts = np.zeros((n_labels, n_labels), np.int64)
        for view, sample in self._locked:
            logits = values_at(self._scores(view), sample.positions)
            given, truth = logits.argmax(1).cpu().numpy(), sample.target.cpu().numpy()
            counts += metrics.confusion(given, truth, n_labels, ignore=None)
        return LockedScore.from_confusion(counts, tuple(spec.name for spec in self._model.classes)).miou

    def finish(self) -> None:
        """Leave the best weights in the network.

        The best by the held-back pixels; where none are the best yet the latest, or the first if the last
        loss was no longer a number.
        """
        latest = self._average if self._sound else self._first
        self._load(latest if self._best is None else self._best)

    @torch.no_grad()
    def _load(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)

    @torch.no_grad()
    def _pull_and_average(self) -> None:
        pull = _PULL * self._optimizer.param_groups[0]["lr"]
        memory = min(_AVERAGE, self.iteration / (self.iteration + 9))  # the first steps are forgotten
        rows = zip(self._parameters, self._first, self._average, strict=True)
        for parameter, first, average in rows:
            parameter.lerp_(first, pull)
            average.lerp_(parameter, 1 - memory)

    def _scores(self, view: View) -> Tensor:  # [L, gh, gw]
        with torch.autocast(self._model.device.type, self._half, enabled=self._half is not None):
            scores = score_map(self._model.network, view.encoded(self._model), view.grid)
        return scores.float()

    def _loss(self, lesson: Lesson) -> Tensor:
        scores = self._scores(lesson.view)
        sample = lesson.view.training
        positions, target, weight = sample.positions, sample.target, lesson.weight
        if len(sample) > _BATCH:
            chosen = self._choose(len(sample), _BATCH)
            positions, target, weight = positions.select(chosen), target[chosen], weight[chosen]
        losses = F.cross_entropy(values_at(scores, positions), target, reduction="none")
        loss = lesson.say * (losses * weight).sum() / weight.sum()
        if lesson.advice is not None and len(lesson.advice.weight):
            loss = loss + self._divergence(scores, lesson.view, lesson.advice)
        return loss

    def _divergence(self, scores: Tensor, view: View, advice: Advice) -> Tensor:
        """Return how far untouched pixels are from what they should become."""
        chosen = self._choose(len(advice.weight), _UNTOUCHED_BATCH)
        now = values_at(scores, view.untouched.positions.select(chosen)).log_softmax(1)
        divergence = F.kl_div(now, advice.marginals[chosen], reduction="none").sum(1)
        return (advice.weight[chosen] * divergence).mean()

    def _choose(self, n: int, size: int) -> Tensor:
        chosen = self._random.choice(n, min(size, n), replace=False)
        return torch.from_numpy(chosen).to(self._model.device)


def _parameter_groups(model: SegmentationModel, config: TrainConfig) -> list[dict[str, Any]]:
    """Return what is trained, with its learning rate: the head, and a thawed encoder more slowly."""
    network = model.network
    if isinstance(network, Fcn8s):
        layers = (*network.score_layers, *network.class_upsamplers)
        head = [parameter for layer in layers for parameter in layer.parameters()]
    else:
        head = network.head_parameters()
    groups: list[dict[str, Any]] = [{"params": head, "lr": 0.0, "rate": config.learning_rate}]
    if config.thaw:
        known = {id(parameter) for parameter in head}
        encoder = [parameter for parameter in network.parameters() if id(parameter) not in known]
        groups.append({"params": encoder, "lr": 0.0, "rate": config.learning_rate * _ENCODER_SHARE})
    return groups
