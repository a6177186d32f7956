"""Every setting, once: frozen models with the unit and the reason beside each value.

The command line, the Python API, the widget and the checkpoints all read the same models.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from napari_crfasrnn.classes import VOC_CLASSES, ClassSpec, class_table

Normalization = Literal["after", "symmetric", "none"]
Architecture = Literal["fcn-lite", "fcn-8s"]


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
    """How a kernel is normalised by its row sums n: K P / n ("after"), K(P/sqrt n)/sqrt n, or not at all."""
    unary_scale: float = Field(1.0, gt=0)
    """Initial scale of the logits going in: below 1 tempers an over-confident network."""
    output_scale: float = Field(1.0, gt=0)
    """Initial scale of the logits coming out: below 1 gives honest probabilities after the CRF."""

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
    The CRF always works at the image's own size."""

    @classmethod
    def vgg(cls) -> Self:
        """Return the preprocessing of the original FCN-8s (Caffe): BGR minus the training mean."""
        return cls(mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0), channel_order="bgr", long_side=500)


class ModelConfig(_Config):
    """What a `SegmentationModel` is, apart from its weights."""

    architecture: Architecture = "fcn-lite"
    width: float = Field(1.0, gt=0, le=4)
    """Factor on the hidden channels of "fcn-8s", whose published size is 1; "fcn-lite" has one size only."""
    classes: tuple[ClassSpec, ...] = VOC_CLASSES
    preprocessing: Preprocessing = Preprocessing()
    crf: CrfConfig = CrfConfig.starter()

    @field_validator("classes")
    @classmethod
    def _valid_table(cls, classes: tuple[ClassSpec, ...]) -> tuple[ClassSpec, ...]:
        return class_table(classes)


class TrainConfig(_Config):
    """How `fine_tune` learns from a project."""

    seconds: float | None = Field(20.0, gt=0)
    """Stop after this much time, in seconds; None trains all iterations."""
    max_iterations: int = Field(400, ge=1)
    """Stop after this many optimiser iterations of the head."""
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
    keep_weight: float = Field(0.5, ge=0)
    """Weight of the unlabelled pixels of a labelled image, times the certainty of their target, where a
    labelled pixel weighs 1: what keeps the untouched parts of an image as they were."""
