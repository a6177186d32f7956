"""Potentials of many pixels at once, as terms of the mean field: superpixels and detections.

Arnab, Jayasumana, Zheng, Torr, "Higher Order Conditional Random Fields in Deep Neural Networks", ECCV
2016. Both are modules with learnable weights; bound to a batch of images they are what `CrfRnn` takes
as `potentials`, differentiable with respect to its marginals and to their weights.

Letters: B batch, K cuts into superpixels, L labels, N pixels, D detections, S the space axes.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from napari_crfasrnn.config import HigherOrderConfig
from napari_crfasrnn.crf import Potential

_EPSILON = 1e-4  # scores of detections keep this distance from 0 and 1, as in the original
_LEAST_LOG = -60.0  # of a probability: the exponential of far smaller numbers takes long and adds nothing
_SMOOTHING = 0.8  # pixels, before Felzenszwalb's method, as its authors recommend
_COMPACTNESS_LAB, _COMPACTNESS = 10.0, 0.1  # of SLIC: for colours in Lab, for channels in 0..1


def cut_into_superpixels(
    image: NDArray[np.floating[Any]],  # [C, *S], 0..255
    method: str,
    sizes: Sequence[int],
) -> NDArray[np.int64]:  # [K, *S]
    """Return the number of each pixel's superpixel, from 0, for each size.

    Parameters
    ----------
    image
        ``[C, *S]`` in 0..255, with two space axes, or three for "slic".
    method
        "slic" or "felzenszwalb", both of scikit-image.
    sizes
        About how many pixels a superpixel has; a tendency only for "felzenszwalb".

    Raises
    ------
    ValueError
        For another method or number of axes.
    """
    from skimage.segmentation import felzenszwalb, slic

    if method not in ("slic", "felzenszwalb"):
        raise ValueError(f"method must be 'slic' or 'felzenszwalb', got {method!r}")
    n_axes = image.ndim - 1
    if n_axes not in ((2, 3) if method == "slic" else (2,)):
        raise ValueError(f"image must have 2 space axes (or 3 with 'slic'), got shape {image.shape}")
    pixels = np.moveaxis(np.asarray(image, np.float64), 0, -1) / 255
    is_colour = pixels.shape[-1] == 3
    cuts = []
    for size in sizes:
        if method == "slic":
            numbers = slic(
                pixels,
                n_segments=max(1, round(pixels[..., 0].size / size)),
                compactness=_COMPACTNESS_LAB if is_colour else _COMPACTNESS,
                convert2lab=is_colour,
                channel_axis=-1,
                start_label=0,
            )
        else:
            least = max(1, size // 4)
            with warnings.catch_warnings():  # of more than three channels, which are meant
                warnings.simplefilter("ignore", RuntimeWarning)
                numbers = felzenszwalb(pixels, scale=size, sigma=_SMOOTHING, min_size=least, channel_axis=-1)
        # Some methods leave numbers out.
        cuts.append(np.unique(numbers, return_inverse=True)[1].reshape(pixels.shape[:-1]))
    return np.array(cuts, np.int64).reshape(len(cuts), *pixels.shape[:-1])


class SuperpixelPotential(nn.Module):
    """Superpixels whose pixels should agree: the robust P^n Potts model of Kohli et al. (CVPR 2008).

    Of a superpixel c with n pixels, N_l of which do not have label l, the energy is

        psi_c(x) = - sum_l weights_l max(0, Q - N_l),    Q = max(1, round(share n))

    up to a constant. With ``share`` 0, where Q is 1, it is the P^n Potts model that Arnab et al. use: a
    superpixel gains weights_l if all its pixels have label l and nothing otherwise. The mean field adds to
    label l of pixel i

        weights_l P(at most Q - 1 of the other pixels of c do not have label l).

    For Q = 1 that is the product of their marginals. Otherwise the number is a sum of independent
    coins; its distribution is taken as normal with that sum's mean and variance, corrected for steps of one.

    Parameters
    ----------
    n_labels
        L.
    n_cuts
        K, into how many kinds of superpixels an image is cut.
    weight
        Initial value of ``weights``.
    share
        0..1, see above.

    Attributes
    ----------
    weights
        Parameter ``[K, L]``, in logits.
    """

    def __init__(self, n_labels: int, n_cuts: int, weight: float = 0.5, share: float = 0.3) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(f"share must be from 0 to below 1, got {share}")
        self.share = share
        self.weights = nn.Parameter(torch.full((n_cuts, n_labels), float(weight)))

    def on(
        self,
        superpixels: ArrayLike | Tensor,  # [B, K, *S]
    ) -> Potential:
        """Return the potential of a batch of images, given the number of each pixel's superpixel, from 0.

        Raises
        ------
        ValueError
            For another number of cuts, or numbers that are negative or no integers.
        """
        numbers = torch.as_tensor(superpixels)
        if numbers.ndim < 3 or numbers.shape[1] != len(self.weights):
            raise ValueError(
                f"superpixels must be [B, {len(self.weights)}, *space], got shape {tuple(numbers.shape)}"
            )
        if numbers.is_floating_point() or (numbers.numel() and int(numbers.min()) < 0):
            raise ValueError(
                f"superpixels must be integers from 0, got {numbers.dtype} from {numbers.min().item()}"
            )
        return _BoundSuperpixels(self, numbers.to(self.weights.device, torch.int64).flatten(2))


@dataclass(frozen=True, eq=False)
class _BoundSuperpixels:
    module: SuperpixelPotential
    numbers: Tensor  # [B, K, N]

    def begin(self, image: int) -> None:
        """Nothing is carried from iteration to iteration."""

    def support(
        self,
        image: int,
        marginals: Tensor,  # [N, L]
        state: None,
    ) -> tuple[Tensor, None]:  # [N, L]
        _check_pixels("superpixels", self.numbers.shape[2], marginals)
        total = torch.zeros_like(marginals)
        for weights, numbers in zip(self.module.weights.to(marginals), self.numbers[image], strict=True):
            total = total + weights * _agreement(marginals, numbers, self.module.share)
        return total, None


def _agreement(
    marginals: Tensor,  # [N, L]
    number: Tensor,  # [N]
    share: float,
) -> Tensor:  # [N, L]
    """Return how probable it is that enough of the other pixels of a superpixel have each label."""
    size = torch.bincount(number)  # [R]
    limit = (share * size).round().clamp_min(1)  # Q

    def of_others(values: Tensor) -> Tensor:  # [N, L], summed over the superpixel without the pixel itself
        sums = values.new_zeros(len(size), values.shape[1]).index_add(0, number, values)
        return sums[number] - values

    is_strict = (limit == 1)[number]
    if bool(is_strict.any()):
        logs = of_others(marginals.clamp_min(torch.finfo(marginals.dtype).tiny).log())
        all_agree = logs.clamp_min(_LEAST_LOG).exp()
        if bool(is_strict.all()):
            return all_agree
    mean = of_others(1 - marginals)
    variance = of_others(marginals * (1 - marginals)).clamp_min(0)
    # A normal variable stands for a whole number: half a step up, and the variance of a step.
    margin = limit.to(marginals)[number][:, None] - 0.5 - mean
    most_agree: Tensor = torch.special.ndtr(margin * (variance + 1 / 12).rsqrt())
    if bool(is_strict.any()):
        return torch.where(is_strict[:, None], all_agree, most_agree)
    return most_agree


@dataclass(frozen=True, eq=False)
class Detection:
    """What a detector says: pixels that it takes for an object of a class.

    Attributes
    ----------
    label
        Place in the class table; `Segmenter` takes names too.
    score
        0..1, how probable it is.
    mask
        Boolean, the space axes of the image: the pixels of the object; anything NumPy makes an array of.
    """

    label: int | str
    score: float
    mask: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ValueError(f"score must be from 0 to 1, got {self.score}")
        mask = np.asarray(self.mask)
        if mask.dtype != bool:
            raise ValueError(f"mask must be boolean, got {mask.dtype}")
        object.__setattr__(self, "mask", mask)
        if not isinstance(self.label, str):
            try:
                object.__setattr__(self, "label", operator.index(self.label))
            except TypeError:
                raise TypeError(
                    f"label must be the name of a class or its place in the class table, got {self.label!r}"
                ) from None

    @classmethod
    def box(cls, label: int | str, score: float, corners: Sequence[float], shape: tuple[int, ...]) -> Self:
        """Return a detection of all pixels in a box, the part of it that lies in the image.

        Parameters
        ----------
        label, score
            As above.
        corners
            The lower corner, then the upper one, in pixels, end excluded: ``(y0, x0, y1, x1)``.
        shape
            Size of the space axes of the image.
        """
        if len(corners) != 2 * len(shape) or not np.isfinite(corners).all():
            raise ValueError(f"corners must be {2 * len(shape)} finite numbers, got {tuple(corners)}")
        mask = np.zeros(shape, bool)
        first, last = corners[: len(shape)], corners[len(shape) :]
        mask[tuple(slice(max(0, round(a)), max(0, round(b))) for a, b in zip(first, last, strict=True))] = (
            True
        )
        return cls(label, score, mask)

    @classmethod
    def polygon(
        cls,
        label: int | str,
        score: float,
        corners: ArrayLike,  # [n, 2]
        shape: tuple[int, int],
    ) -> Self:
        """Return a detection of all pixels whose middle lies in a polygon, the part of it in the image.

        Parameters
        ----------
        label, score
            As above.
        corners
            ``[n, 2]``, rows and columns in pixels; the middle of the first pixel is (0, 0). It may turn
            either way round.
        shape
            Height and width of the image.
        """
        from skimage.draw import polygon2mask

        points = np.asarray(corners, np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
            raise ValueError(f"corners must be [n, 2] finite numbers, n at least 3, got shape {points.shape}")
        # Far outside, as little as needed: the coordinates become integers on the way.
        points = points.clip(-1e6, 1e6)
        return cls(label, score, np.asarray(polygon2mask(shape, points), bool))


class DetectionPotential(nn.Module):
    """Detections, each with a hidden variable Y that says whether it is true (Arnab et al., section 3.2).

    A detection d of label l on n pixels with score s has the energy

        psi_d(x, Y) = (evidence_l s / n) (number of its pixels without label l)    for Y = 1
                      (evidence_l s / n) (number of its pixels with label l)       for Y = 0

    and Y = 1 the prior s. Its mean field has for Y the log odds

        log(s / (1 - s)) + evidence_l s (2 m - 1)

    with m the mean marginal of l on its pixels, and adds ``weights_l s (2 Q(Y = 1) - 1)`` to label l of each
    of them: support if it is true, opposition if it is not. One energy has weights = evidence / n; like the
    authors' program this one has two weights to learn, since 1 / n of the evidence is nothing to a pixel.

    Parameters
    ----------
    n_labels
        L.
    weight, evidence
        Initial values.

    Attributes
    ----------
    weights, evidence
        Parameters ``[L]``, in logits.
    """

    def __init__(self, n_labels: int, weight: float = 2.0, evidence: float = 2.0) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((n_labels,), float(weight)))
        self.evidence = nn.Parameter(torch.full((n_labels,), float(evidence)))

    def on(self, detections: Sequence[Sequence[Detection]]) -> Potential:
        """Return the potential of a batch of images, given the detections of each.

        Raises
        ------
        ValueError
            If a label is no place in the class table.
        """
        n_labels = len(self.weights)
        for detection in (d for each in detections for d in each):
            if isinstance(detection.label, str) or not 0 <= detection.label < n_labels:
                raise ValueError(
                    f"label of a detection must be from 0 to {n_labels - 1}, got {detection.label!r}"
                )
        for each in detections:
            shapes = {detection.mask.shape for detection in each}
            if len(shapes) > 1:
                raise ValueError(
                    f"masks of the detections of an image must all be as large as it is, got {sorted(shapes)}"
                )
        return _BoundDetections(self, tuple(_Members.of(each, self.weights.device) for each in detections))


@dataclass(frozen=True, eq=False)
class _Members:
    """The detections of one image that have pixels, and those pixels, P in all."""

    n_pixels: int | None  # of the image; None without detections
    label: Tensor  # [D]
    score: Tensor  # [D]
    size: Tensor  # [D], pixels
    pixel: Tensor  # [P]
    detection: Tensor  # [P]

    @classmethod
    def of(cls, detections: Sequence[Detection], device: torch.device) -> Self:
        pixels = [torch.from_numpy(np.flatnonzero(detection.mask)) for detection in detections]
        sizes = torch.tensor([len(p) for p in pixels], dtype=torch.int64)
        score = torch.tensor([d.score for d in detections], dtype=torch.float64)
        return cls(
            n_pixels=detections[0].mask.size if detections else None,
            label=torch.tensor([int(d.label) for d in detections], dtype=torch.int64, device=device),
            score=score.clamp(_EPSILON, 1 - _EPSILON).to(device, torch.float32),
            size=sizes.to(device),
            pixel=torch.cat([*pixels, torch.empty(0, dtype=torch.int64)]).to(device),
            detection=torch.repeat_interleave(sizes).to(device),
        )


@dataclass(frozen=True, eq=False)
class _BoundDetections:
    module: DetectionPotential
    members: tuple[_Members, ...]

    def begin(self, image: int) -> Tensor:  # [D]
        """Return how probable each detection is before a look at the pixels: its score."""
        return self.members[image].score

    def support(
        self,
        image: int,
        marginals: Tensor,  # [N, L]
        state: Tensor,  # [D]
    ) -> tuple[Tensor, Tensor]:  # [N, L], [D]
        members = self.members[image]
        if members.n_pixels is None:
            return torch.zeros_like(marginals), state
        _check_pixels("detections", members.n_pixels, marginals)
        score = members.score.to(marginals)
        weights = self.module.weights.to(marginals)[members.label]
        evidence = self.module.evidence.to(marginals)[members.label]
        gain = weights * score * (2 * state.to(marginals) - 1)  # [D]
        label = members.label[members.detection]
        support = torch.zeros_like(marginals).index_put(
            (members.pixel, label), gain[members.detection], accumulate=True
        )
        found = torch.zeros_like(score).index_add(0, members.detection, marginals[members.pixel, label])
        agreement = found / members.size.clamp_min(1)
        has_pixels = members.size > 0
        odds = torch.logit(score) + torch.where(has_pixels, evidence * score * (2 * agreement - 1), 0.0)
        return support, odds.sigmoid()


class HigherOrder(nn.Module):
    """Both kinds of potentials with the weights of a model.

    Parameters
    ----------
    n_labels
        L.
    config
        Initial weights, and how images are cut up.
    """

    def __init__(self, n_labels: int, config: HigherOrderConfig | None = None) -> None:
        super().__init__()
        self.config = HigherOrderConfig() if config is None else config
        sizes = self.config.superpixel_sizes
        self.superpixels = SuperpixelPotential(
            n_labels, len(sizes), self.config.superpixel_weight, self.config.superpixel_share
        )
        self.detections = DetectionPotential(
            n_labels, self.config.detection_weight, self.config.detection_evidence
        )

    def cut(
        self,
        image: Tensor,  # [B, C, *S], 0..255
    ) -> Tensor:  # [B, K, *S]
        """Return the superpixels of a batch of images; see `cut_into_superpixels`."""
        pixels = image.detach().cpu().float().numpy()
        config = self.config
        cuts = [cut_into_superpixels(each, config.superpixels, config.superpixel_sizes) for each in pixels]
        return torch.from_numpy(np.stack(cuts)).to(image.device)

    def potentials(
        self,
        superpixels: Tensor | None = None,  # [B, K, *S]
        detections: Sequence[Sequence[Detection]] = (),
    ) -> list[Potential]:
        """Return the potentials for `CrfRnn` of what `cut` returned and of the detections of each image."""
        bound = [] if superpixels is None else [self.superpixels.on(superpixels)]
        return [*bound, self.detections.on(detections)] if any(detections) else bound


def _check_pixels(name: str, n_pixels: int, marginals: Tensor) -> None:
    if n_pixels != len(marginals):
        raise ValueError(
            f"{name} must have the size of the image, {len(marginals)} pixels, got {n_pixels} pixels"
        )
