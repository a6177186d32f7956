"""The published weights of the CRF-RNN: where they are, how they are recognised, on which terms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Licence:
    """Terms that a person has to accept before a download."""

    key: str
    """By which an acceptance is remembered."""
    title: str
    text: str
    """The terms in plain words."""


@dataclass(frozen=True)
class Published:
    """A model that others publish and that is not part of the package."""

    name: str
    """What `load_model` takes."""
    title: str
    file_name: str
    urls: tuple[str, ...]
    """Where the authors offer it, tried in this order."""
    licence: Licence
    known_hash: str | None = None
    """"algorithm:digest" where the authors publish one."""
    size: int | None = None
    """Bytes, where it is known."""


TVG_LICENCE = Licence(
    key="tvg-crfrnn-weights",
    title="Non-commercial use only",
    text=(
        "The weights of the CRF-RNN (Torr Vision Group, University of Oxford; Zheng et al., ICCV 2015) may "
        "be used for non-commercial purposes only. For other uses ask their authors: crfasrnn.torr.vision. "
        "The licence of napari-crfasrnn does not extend to them."
    ),
)

PUBLISHED: tuple[Published, ...] = (
    Published(
        name="crfrnn-caffe",
        title="CRF-RNN, PASCAL VOC + COCO (the original, Caffe)",
        file_name="TVG_CRFRNN_COCO_VOC.caffemodel",
        urls=("https://goo.gl/j7PrPZ", "https://bit.ly/2bbOwIb"),
        licence=TVG_LICENCE,
        known_hash="sha1:bfda5c5149d566aa56695789fa9a08e7a7f3070a",
        size=537_968_303,
    ),
    Published(
        name="crfrnn-pytorch",
        title="CRF-RNN, PASCAL VOC + COCO (port to PyTorch)",
        file_name="crfasrnn_weights.pth",
        urls=("https://github.com/sadeepj/crfasrnn_pytorch/releases/download/0.0.1/crfasrnn_weights.pth",),
        licence=TVG_LICENCE,
    ),
    Published(
        name="crfrnn-keras",
        title="CRF-RNN, PASCAL VOC + COCO (port to Keras)",
        file_name="crfrnn_keras_model.h5",
        urls=(
            "https://github.com/sadeepj/crfasrnn_keras/releases/download/v1.0/crfrnn_keras_model.h5",
            "https://goo.gl/ciEYZi",
        ),
        licence=TVG_LICENCE,
    ),
    Published(
        name="fcn8s-matconvnet",
        title="FCN-8s part of the CRF-RNN (MatConvNet)",
        file_name="pascal-fcn8s-tvg-dag.mat",
        urls=("https://www.vlfeat.org/matconvnet/models/pascal-fcn8s-tvg-dag.mat",),
        licence=TVG_LICENCE,
        known_hash="md5:b0f7bd5833b555c6241dd0c05897ca41",
    ),
)


def published_model(name: str) -> Published:
    """Return a published model by its name.

    Raises
    ------
    ValueError
        If there is none.
    """
    for model in PUBLISHED:
        if model.name == name:
            return model
    raise ValueError(
        f"name must be that of a model that can be downloaded, got {name!r}; there are: "
        f"{', '.join(model.name for model in PUBLISHED)}"
    )
