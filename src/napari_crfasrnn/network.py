"""`SegmentationModel`: a network (offered here, too), a CRF, classes and preprocessing, as one thing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_crfasrnn.classes import ClassSpec, class_table
from napari_crfasrnn.config import Frame, ModelConfig, Preprocessing
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.experts import Panel
from napari_crfasrnn.experts.features import parts_to_read
from napari_crfasrnn.fcn import Fcn8s, FcnLite, Features, LiteNetwork, Network
from napari_crfasrnn.fcn_fine import FcnFine
from napari_crfasrnn.frames import FramedImage, put_in_frame
from napari_crfasrnn.higher_order import HigherOrder
from napari_crfasrnn.kernels import PreparedImage
from napari_crfasrnn.plane_logits import PlaneLogits, enlarged
from napari_crfasrnn.progress import Cancel, Progress
from napari_crfasrnn.regrowing import origins, regrow_network, regrown_crf, regrown_higher_order

__all__ = [
    "Fcn8s",
    "FcnFine",
    "FcnLite",
    "Features",
    "LiteNetwork",
    "Network",
    "SegmentationModel",
    "build_network",
]

EXPERT_SIDE = 2048
"""Images with a longer side are shrunk to it for new experts."""
CRF_CHANNELS = 8
"""More channels are merged for the CRF: in ever more dimensions every pixel is alone with its colour."""
_PERCENTILE_PIXELS = 1 << 16  # about so many pixels of an image tell its range of values
_LEAST_RANGE = 20.0  # of 0..255: an image with less contrast holds noise, or nothing


def build_network(config: ModelConfig) -> Network:
    """Make the network that ``config`` names, with random weights."""
    n_labels = len(config.classes)
    if config.architecture == "fcn-8s":
        return Fcn8s(n_labels, config.width)
    if config.architecture == "fcn-fine":
        return FcnFine(n_labels)
    return FcnLite(n_labels, second_encoder=config.second_encoder)


class SegmentationModel:
    """Everything that turns an image into class logits, and those into logits that follow its edges.

    Parameters
    ----------
    config
        Architecture, classes, preprocessing, CRF settings.
    network, crf
        Made from ``config`` when None: the network with random weights, the CRF as its settings say.
    provenance
        Where the weights come from: anything JSON holds. The keys ``title`` and ``licence`` are shown
        in lists of models.
    panel
        Experts for single pixels, which speak for all classes, so that the network serves by its encoder
        only, or for some of them beside it; the network has to be a `LiteNetwork`.
    higher_order
        The weights of superpixels and detections; made from ``config`` when None, and saved with the model
        where ``config`` says that it has them.

    Raises
    ------
    ValueError
        If the network, the CRF or the panel has another number of classes than ``config``, or there is a
        panel beside another network than a `LiteNetwork`.
    """

    def __init__(
        self,
        config: ModelConfig | None = None,
        network: Network | None = None,
        crf: CrfRnn | None = None,
        provenance: Mapping[str, Any] | None = None,
        panel: Panel | None = None,
        higher_order: HigherOrder | None = None,
    ) -> None:
        config = ModelConfig() if config is None else config
        n_labels = len(config.classes)
        self.network = build_network(config) if network is None else network
        self.crf = CrfRnn(n_labels, config.crf) if crf is None else crf
        self.panel = panel
        if panel is not None and not isinstance(self.network, LiteNetwork):
            raise ValueError(
                "a panel reads the encoder of an FcnLite or FcnFine, got one beside an "
                f"{type(self.network).__name__}"
            )
        for name, module in (("network", self.network), ("crf", self.crf), ("panel", panel)):
            if module is not None and module.n_labels != n_labels:
                raise ValueError(
                    f"{name} must have as many classes as config, {n_labels}, got {module.n_labels}: "
                    "use with_classes to change the classes of a model"
                )
        self.config = config.model_copy(
            update={"crf": self.crf.config, "panel": None if panel is None else panel.config}
        )
        self.higher_order = (
            HigherOrder(n_labels, config.higher_order) if higher_order is None else higher_order
        )
        self.provenance: dict[str, Any] = dict(provenance or {})
        self.network.eval()
        self.crf.eval()
        if panel is not None:
            panel.eval()

    @property
    def classes(self) -> tuple[ClassSpec, ...]:
        """The classes; a class's label value is its place."""
        return self.config.classes

    @property
    def n_labels(self) -> int:
        """Number of classes L."""
        return len(self.config.classes)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device, in place.

        Raises
        ------
        TypeError
            If it is no device: weights stay float32.
        """
        if not isinstance(device, str | torch.device):
            raise TypeError(f"device must be a device or its name, such as 'cpu', got {device!r}")
        self.network.to(device)
        self.crf.to(device)
        if self.panel is not None:
            self.panel.to(device)
        self.higher_order.to(device)
        return self

    def copy(self) -> SegmentationModel:
        """Return a model that shares nothing with this one."""
        return SegmentationModel(
            self.config,
            copy.deepcopy(self.network),
            copy.deepcopy(self.crf),
            copy.deepcopy(self.provenance),
            copy.deepcopy(self.panel),
            copy.deepcopy(self.higher_order),
        )

    def with_frame(self, frame: str) -> SegmentationModel:
        """Return a model that shares all with this one but how it looks at an image in prediction.

        Parameters
        ----------
        frame
            "free", or "caffe" or "pytorch" for what the demos of the original did; see `frames`.

        Raises
        ------
        ValueError
            If there is no such frame.
        """
        if frame not in get_args(Frame):
            raise ValueError(f"frame must be one of {', '.join(get_args(Frame))}, got {frame!r}")
        preprocessing = Preprocessing.model_validate({**dict(self.config.preprocessing), "frame": frame})
        config = self.config.model_copy(update={"preprocessing": preprocessing})
        return SegmentationModel(
            config, self.network, self.crf, self.provenance, self.panel, self.higher_order
        )

    def with_panel(self, panel: Panel | None) -> SegmentationModel:
        """Return a model with other experts (or none) that shares the rest with this one."""
        return SegmentationModel(
            self.config, self.network, self.crf, self.provenance, panel, self.higher_order
        )

    def with_crf(self, crf: CrfRnn) -> SegmentationModel:
        """Return a model with another CRF that shares the rest with this one."""
        return SegmentationModel(
            self.config, self.network, crf, self.provenance, self.panel, self.higher_order
        )

    def preprocess(self, image: Tensor) -> Tensor:  # [B, C, H, W], 0..255
        """Return what the network reads, [B, 3, h, w]: three channels, shrunk, centred, scaled.

        One channel is repeated, two become (first, second, mean), more than three become the means of
        three runs of neighbouring channels. An image whose longer side exceeds the preprocessing's
        ``long_side`` is shrunk to it; none is enlarged. (The frame of a demo is a matter of prediction, and
        not used here.)

        Raises
        ------
        ValueError
            If ``image`` is not [B, C, H, W] with at least one channel and one pixel.
        """
        return self._input(image, self.config.preprocessing.long_side)

    def expert_input(self, image: Tensor) -> Tensor:  # [B, C, H, W], 0..255
        """Return what experts read, [B, 3, h, w]: as `preprocess`, but shrunk less.

        A network has learnt what things look like at some size. Experts learn what somebody paints, which in
        a micrograph may be a few pixels wide.

        Raises
        ------
        ValueError
            If ``image`` is not [B, C, H, W] with at least one channel and one pixel.
        """
        return self._input(image, self.expert_side)

    def expert_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of what experts read of an image of a height and width."""
        return _shrunk(*size, self.expert_side)

    @property
    def expert_side(self) -> int | None:
        """The longest side of an image that its experts read, or new ones would; None: any."""
        side = self.config.preprocessing.long_side
        if self.panel is not None:
            return self.panel.long_side or side
        return None if side is None else max(side, EXPERT_SIDE)

    def _input(self, image: Tensor, long_side: int | None) -> Tensor:  # [B, C, H, W] → [B, 3, h, w]
        x = _three_channels(self.stretched(image))
        size = _shrunk(x.shape[-2], x.shape[-1], long_side)
        if size != x.shape[-2:]:
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        return self._centred(x)

    def _centred(self, x: Tensor) -> Tensor:  # [B, 3, H, W], red first
        settings = self.config.preprocessing
        if settings.channel_order == "bgr":
            x = x.flip(1)
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (settings.mean, settings.std))
        return (x - mean) / std

    def framed(self, image: Tensor) -> FramedImage | None:  # [B, C, H, W], 0..255
        """Return the image in the frame of the demo that the preprocessing names; None if it names none."""
        settings = self.config.preprocessing
        if settings.frame == "free":
            return None
        _check_image(image)
        red, green, blue = settings.mean if settings.channel_order == "rgb" else settings.mean[::-1]
        return put_in_frame(_three_channels(image), settings.frame, (red, green, blue))

    def framed_input(self, framed: FramedImage) -> Tensor:  # [B, 3, 500, 500]
        """Return what both the network and the CRF read in the frame of a demo."""
        return self._centred(framed.image.to(self.device))

    def stretched(self, image: Tensor) -> Tensor:  # [B, C, H, W], 0..255
        """Return each image with the range of values that the preprocessing asks for, float32 on the device.

        All channels are stretched alike, so colours keep their hue; the range is measured on at most
        some 65 000 pixels. Without ``stretch`` in the preprocessing the values stay as they are.

        Raises
        ------
        ValueError
            If ``image`` is not [B, C, H, W] with at least one channel and one pixel.
        """
        _check_image(image)
        x = image.to(self.device, torch.float32)
        stretch = self.config.preprocessing.stretch
        if stretch is None:
            return x
        step = max(1, math.isqrt(x[0, 0].numel() // _PERCENTILE_PIXELS))
        shares = torch.tensor(stretch, device=x.device) / 100
        low, high = torch.quantile(x[..., ::step, ::step].flatten(1), shares, dim=1)[..., None, None, None]
        wide: Tensor = (x - low) * (255 / (high - low).clamp_min(_LEAST_RANGE))
        return wide.clamp(0, 255)

    def crf_image(self, image: Tensor) -> Tensor:  # [B, C, H, W], 0..255
        """Return the image as the bilateral kernel of the CRF sees it, [B, c, H, W].

        More than `CRF_CHANNELS` become the means of so many runs of neighbouring channels: a lattice takes
        no more, beside the place. Squared colour distances grow with the number of channels; more than
        three are scaled by sqrt(3 / c), so that ``theta_beta`` keeps its meaning. Grey stays one channel:
        repeating it would stretch its distances by sqrt(3), so three equal channels become one. Cut it after
        this, not before: the range of values that is stretched is that of the whole image.

        Raises
        ------
        ValueError
            If ``image`` is not [B, C, H, W] with at least one channel and one pixel.
        """
        _check_image(image)
        if image.shape[1] > CRF_CHANNELS:
            image = _means_of_runs(image.to(self.device, torch.float32), CRF_CHANNELS)
        x = self.stretched(image)
        channels = x.shape[1]
        if channels == 3 and _is_grey(x):
            return x[:, :1]
        return x * (3 / channels) ** 0.5 if channels > 3 else x

    def prepare(self, image: Tensor, *, on_step: Progress | None = None) -> PreparedImage:
        """Return the kernels of the CRF for whole images, [B, C, H, W] in 0..255; see `CrfRnn.prepare`."""
        scale = self.crf_scale((image.shape[-2], image.shape[-1]))
        return self.crf.prepare(self.crf_image(image), scale=scale, on_step=on_step)

    def crf_scale(self, size: tuple[int, int], *, with_experts: bool = False) -> float:
        """Return how many times wider, in pixels, the kernels of the CRF are on an image of some size.

        Where the network or the experts see an image shrunk, what they say is so much coarser, and a kernel
        of some pixels of the image would not reach across it. So the kernels keep their width in the pixels
        that were seen. (In the frame of a demo the CRF sees what the network sees.)

        Parameters
        ----------
        size
            H and W.
        with_experts
            Of a model that does not have experts, as if it had.
        """
        judged_by_experts = with_experts or self.panel is not None
        side = self.expert_side if judged_by_experts else self.config.preprocessing.long_side
        seen = _shrunk(*size, side)
        return max(size) / max(seen)

    def n_parts(self, size: tuple[int, int]) -> int:
        """Return in how many parts an image of a height and width is judged by experts; 1 without these."""
        if self.panel is None:
            return 1
        seen = self.expert_size(size)
        return len(parts_to_read(seen, seen))

    def logits(
        self, image: Tensor, cancel: Cancel | None = None, on_part: Callable[[], None] | None = None
    ) -> Tensor:
        """Return the logits before the CRF, [B, L, H, W], enlarged bilinearly where the network saw less.

        In the frame of a demo they are enlarged as the demos enlarged labels: to the nearest.

        Parameters
        ----------
        image
            ``[B, C, H, W]``, 0..255.
        cancel
            Asked while experts judge.
        on_part
            Called after each of the ``n_parts`` that experts judge.

        Raises
        ------
        Cancelled
            When asked to stop.
        """
        framed = self.framed(image)
        if framed is not None:
            return framed.restore(self.network(self.framed_input(framed)))
        return enlarged(self._judged(image, cancel, on_part), (image.shape[-2], image.shape[-1]))

    def plane_logits(
        self,
        image: Tensor,  # [1, C, H, W], 0..255
        cancel: Cancel | None = None,
        on_part: Callable[[], None] | None = None,
    ) -> PlaneLogits:
        """Return the `logits` of one image, asked for in parts; the frame of a demo is not looked at."""
        return PlaneLogits(self._judged(image, cancel, on_part), (image.shape[-2], image.shape[-1]))

    def _judged(
        self, image: Tensor, cancel: Cancel | None, on_part: Callable[[], None] | None
    ) -> Tensor:  # [B, L, h, w]
        if self.panel is None:
            known: Tensor = self.network(self.preprocess(image))
            return known
        assert isinstance(self.network, LiteNetwork)
        seen = self.expert_input(image)
        judged = torch.cat([self.panel.logits(self.network, one, cancel, on_part) for one in seen[:, None]])
        if not self.panel.is_alone:
            known = self.network(self.preprocess(image))
            judged = self.panel.joined(judged, enlarged(known, (judged.shape[-2], judged.shape[-1])))
        return judged

    def network_logits(
        self, features: Features, input_size: tuple[int, int], size: tuple[int, int]
    ) -> PlaneLogits:
        """Return the network's logits of one image of a size (H, W), without a panel.

        ``features`` are what its encoder makes of the image as `preprocess` returns it, in ``input_size``.
        """
        return PlaneLogits(self.network.decode(features, input_size), size)

    def with_classes(
        self, classes: Iterable[str | ClassSpec], *, continues: Mapping[str, str] | None = None
    ) -> SegmentationModel:
        """Return a new model for another class table, knowing what this one knows of the classes that stay.

        Classes are matched by name; colours are free to change. A class that stays keeps its rows in
        the head and its rows and columns in the CRF, so classes that stay compare with each other as
        before. A class without a past gets the mean logit of those that stay: possible everywhere,
        the likeliest nowhere, until it is taught. Where fewer than two stay, the rest get random
        contrasts of the network's features, balanced on photographs, so that no class takes
        everything.

        Parameters
        ----------
        classes
            The new table, in the order of its label values.
        continues
            For renamed classes: new name → the name it has in this model.

        Raises
        ------
        ValueError
            If the table is invalid, or ``continues`` names a class that is not there.
        """
        table = class_table(classes)
        origin = origins(self.classes, table, continues or {})
        config = self.config.model_copy(update={"classes": table})
        with torch.no_grad():
            network = build_network(config)
            regrow_network(network, self.network, origin, self.preprocess)
            crf = regrown_crf(self.crf, origin).to(self.device)
            panel = None if self.panel is None else self.panel.with_origin(origin)
            higher_order = regrown_higher_order(self.higher_order, origin).to(self.device)
        return SegmentationModel(config, network, crf, copy.deepcopy(self.provenance), panel, higher_order)

    def save(self, path: Path | str) -> None:
        """Write the model to one file; see `checkpoint.save_checkpoint`."""
        from napari_crfasrnn.checkpoint import save_checkpoint

        save_checkpoint(self, path)

    def __repr__(self) -> str:
        names = ", ".join(spec.name for spec in self.classes[:4]) + (", …" if self.n_labels > 4 else "")
        return f"SegmentationModel({self.config.architecture!r}, {self.n_labels} classes: {names})"


def _check_image(image: Tensor) -> None:
    if image.ndim != 4 or min(image.shape[1:]) < 1:
        raise ValueError(f"image must be [B, C, H, W] without empty axes, got {tuple(image.shape)}")


def _three_channels(x: Tensor) -> Tensor:
    channels = x.shape[1]
    if channels == 3:
        return x
    if channels == 1:
        return x.expand(-1, 3, -1, -1)
    if channels == 2:
        return torch.cat([x, x.mean(1, keepdim=True)], 1)
    return _means_of_runs(x, 3)


def _means_of_runs(x: Tensor, count: int) -> Tensor:  # [B, C, H, W] → [B, count, H, W]
    return torch.cat([run.mean(1, keepdim=True) for run in x.tensor_split(count, dim=1)], 1)


def _is_grey(x: Tensor) -> bool:  # [B, 3, H, W]
    """Return whether the channels are equal; a colour image is told by a few of its pixels."""
    some = x[..., ::64, ::64]
    if not bool((some[:, :1] == some[:, 1:]).all()):
        return False
    return torch.equal(x[:, 0], x[:, 1]) and torch.equal(x[:, 0], x[:, 2])


def _shrunk(h: int, w: int, long_side: int | None) -> tuple[int, int]:
    if long_side is None or max(h, w) <= long_side:
        return h, w
    factor = long_side / max(h, w)
    return max(1, round(h * factor)), max(1, round(w * factor))
