"""What the untouched pixels of a labelled plane should become.

Where the model knows the classes, untouched pixels lie between their old prediction and the edits.
Somebody who paints a few strokes into a wrong region means the region, and nothing else. If untouched
pixels were simply held at their old prediction, only the strokes would change; if they were left alone,
a few strokes would change half of the image. So every untouched pixel takes a vote (a Nadaraya-Watson
estimate) among the labelled pixels and the old predictions of other untouched pixels. A vote counts by
how alike two pixels are in the network's eyes, in what they were predicted to be, and in their place;
an old prediction counts a twentieth of a label, times how sure the network was. A pixel that resembles
the strokes more than the rest follows them, and the rest stays.

Where the model was made for one kind of image, it is right in most places, and what somebody leaves there
as it is stays: strokes that correct single errors would draw much with them that was right.

Where the model does not know the classes, its old predictions mean nothing, and a forest reads the
strokes instead (`forest`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.experts.sampling import values_at
from napari_crfasrnn.network import LiteNetwork, SegmentationModel
from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.segmenter.votes import (
    MOST_VOTERS,
    OF_ANY_IMAGE,
    PLACE_UNIT,
    SMALLEST_DEVIATION,
    certainty,
    kernel_place,
    kernel_sums,
)
from napari_crfasrnn.training.forest import forest_marginals
from napari_crfasrnn.training.planes import LabelledPlane, PixelSample, View
from napari_crfasrnn.training.positions import score_map

_NO_VOTE = 1e-6
_VOTE_STREAM = 2  # random stream, beside those that draw the pixels and the batches

_FOREST_WEIGHT = 8.0  # of the forest's advice: strokes alone are soon learnt by heart
_RAREST = 1e-3  # share of a class below which its pixels weigh no more


@dataclass(frozen=True, eq=False)
class Advice:
    """Targets for the untouched pixels of a view.

    Attributes
    ----------
    marginals
        [K, L] what each pixel should become.
    weight
        [K] how much each counts, where all labelled pixels of a plane together count 1: the mean over
        the pixels is what the advice counts.
    """

    marginals: Tensor
    weight: Tensor


@torch.no_grad()
def advise_by_votes(
    model: SegmentationModel,
    views: Sequence[View],
    config: TrainConfig,
    cancel: Cancel | None,
) -> list[Advice]:
    """Return advice for each view, starting from what the model predicts now.

    Raises
    ------
    Cancelled
        When asked to stop.
    """
    generator = np.random.default_rng([config.seed, _VOTE_STREAM])
    advice = []
    for view in views:
        raise_if_cancelled(cancel)
        marginals = _vote(model, view, generator)
        advice.append(Advice(marginals, _evenly(marginals, config.keep_weight)))
    return advice


@torch.no_grad()
def advise_to_stay(model: SegmentationModel, view: View, weight: float) -> Advice:
    """Return the advice that all pixels of a view stay what the model predicts now."""
    scores = score_map(model.network, view.encoded(model), view.grid)
    marginals = values_at(scores, view.untouched.positions).softmax(1)
    return Advice(marginals, _evenly(marginals, weight))


@torch.no_grad()
def advise_by_forest(
    model: SegmentationModel,
    planes: Sequence[LabelledPlane],
    views: Sequence[View],
    config: TrainConfig,
    cancel: Cancel | None,
) -> list[Advice]:
    """Return advice for each view from a forest that learns the labels alone.

    Raises
    ------
    Cancelled
        When asked to stop.
    """
    found = forest_marginals(model, planes, views, config.seed, cancel)
    share = torch.stack([marginals.sum(0) for marginals in found]).sum(0)
    class_weight = (share / share.sum().clamp_min(1)).clamp_min(_RAREST).rsqrt()
    advice = []
    for marginals in found:
        weight = marginals @ class_weight
        advice.append(Advice(marginals, _FOREST_WEIGHT * weight / weight.mean().clamp_min(_RAREST)))
    return advice


def _vote(model: SegmentationModel, view: View, generator: np.random.Generator) -> Tensor:  # [K, L]
    labelled, untouched = _look(model, view, (view.training, view.untouched))
    if not len(view.untouched):  # all of the plane is labelled
        return untouched.marginals
    every = _draw(len(view.training), generator, model.device)
    some = _draw(len(view.untouched), generator, model.device)
    labels = F.one_hot(view.training.target[every], model.n_labels).float()
    before = untouched.marginals[some]
    votes = torch.cat(
        [
            labels * (len(view.training) / max(1, len(every))),
            before * (OF_ANY_IMAGE.old * certainty(before) * view.n_untouched / max(1, len(some)))[:, None],
        ]
    )
    voters = torch.cat([labelled.place[every], untouched.place[some]])
    total = kernel_sums(untouched.place, voters, votes)
    weight = total.sum(1, keepdim=True)
    # A pixel that resembles no voter keeps what it had.
    return torch.where(weight > _NO_VOTE, total / weight.clamp_min(_NO_VOTE), untouched.marginals)


@dataclass(frozen=True, eq=False)
class _Looks:
    """Pixels as the vote sees them.

    Attributes
    ----------
    marginals
        [N, L] what they were predicted to be.
    place
        [N, d] their place in the space of the kernel, which has unit width.
    """

    marginals: Tensor
    place: Tensor


def _look(model: SegmentationModel, view: View, samples: tuple[PixelSample, ...]) -> list[_Looks]:
    features = view.encoded(model)
    scores = score_map(model.network, features, view.grid)
    seen = model.network.level_inputs(features)[-1][0] if isinstance(model.network, LiteNetwork) else scores
    mean, deviation = seen.mean((1, 2)), seen.std((1, 2)).clamp_min(SMALLEST_DEVIATION)
    looks = []
    for sample in samples:
        network = (values_at(seen, sample.positions) - mean) / deviation
        marginals = values_at(scores, sample.positions).softmax(1)
        place = sample.place / (PLACE_UNIT * max(view.grid.image_size))
        looks.append(_Looks(marginals, kernel_place(network, marginals, place, OF_ANY_IMAGE.place)))
    return looks


def _draw(n: int, generator: np.random.Generator, device: torch.device) -> Tensor:
    chosen = np.arange(n) if n <= MOST_VOTERS else np.sort(generator.choice(n, MOST_VOTERS, replace=False))
    return torch.from_numpy(chosen).to(device)


def _evenly(marginals: Tensor, weight: float) -> Tensor:  # [N, L] → [N]
    return torch.full_like(marginals[:, 0], weight)
