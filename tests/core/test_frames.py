"""The demos' ways to look at an image, against a straightforward re-computation of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from napari_crfasrnn.classes import class_table
from napari_crfasrnn.config import CrfConfig, ModelConfig, Preprocessing
from napari_crfasrnn.frames import framed_size
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.segmenter import Segmenter

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    config = ModelConfig(
        architecture="fcn-8s",
        width=1 / 64,
        classes=class_table(["a", "b", "c"]),
        preprocessing=Preprocessing.vgg(),
        crf=CrfConfig.original().model_copy(update={"n_iterations": 3}),
    )
    torch.manual_seed(0)
    model = SegmentationModel(config)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
        for score in model.network.score_layers:
            score.weight.mul_(8)
    return model


def photograph(height: int, width: int) -> Pixels:
    picture = Image.fromarray(data.astronaut()).resize((width, height), Image.Resampling.LANCZOS)
    return np.array(picture)


def demo(model: SegmentationModel, pixels: Pixels, resize: bool) -> Pixels:
    """Resize, subtract the mean, blue first, pad, network, CRF, argmax, crop, resize the labels."""
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    if resize:
        ratio = min(500.0 / width, 500.0 / height)
        image = image.resize((int(width * ratio), int(height * ratio)), resample=Image.Resampling.BILINEAR)
    im = np.array(image).astype(np.float32) - np.array([123.68, 116.779, 103.939], np.float32)
    im = im[:, :, ::-1]
    h, w = im.shape[:2]
    im = np.pad(im, ((0, 500 - h), (0, 500 - w), (0, 0)))
    x = torch.from_numpy(np.ascontiguousarray(im.transpose(2, 0, 1))[None])
    with torch.no_grad():
        refined = model.crf(model.network(x), x)[0].numpy()
    labels = Image.fromarray(refined.argmax(0).astype(np.uint8)[:h, :w]).convert("P")
    return np.array(labels.resize((width, height), Image.Resampling.NEAREST))


def segmented(model: SegmentationModel, pixels: Pixels, frame: str) -> Pixels:
    segmenter = Segmenter(model.with_frame(frame), "cpu")
    segmenter.set_image(pixels)
    return segmenter.predict().labels


# longer and shorter than 500, upright, odd, and one whose ratio is cut to 499
SIZES = [(512, 640), (300, 220), (601, 333), (377, 500)]


@pytest.mark.parametrize("size", SIZES)
def test_pytorch_and_keras_demo(model: SegmentationModel, size: tuple[int, int]) -> None:
    pixels = photograph(*size)
    found = segmented(model, pixels, "pytorch")
    assert np.array_equal(found, demo(model, pixels, resize=True))
    assert len(np.unique(found)) == 3, "the weights of this test segment nothing"


@pytest.mark.parametrize("size", SIZES)
def test_caffe_demo(model: SegmentationModel, size: tuple[int, int]) -> None:
    pixels = photograph(*size)
    found = segmented(model, pixels, "caffe")
    assert np.array_equal(found, demo(model, pixels, resize=max(size) > 500))


def test_they_differ(model: SegmentationModel) -> None:
    """Small images are enlarged by the one, left by the other; without a frame nothing is padded."""
    pixels = photograph(300, 220)
    pytorch, caffe, free = (segmented(model, pixels, frame) for frame in ("pytorch", "caffe", "free"))
    assert (pytorch != caffe).any()
    assert (caffe != free).any()
    assert pytorch.shape == caffe.shape == free.shape == (300, 220)


def test_without_a_frame_it_is_as_it_is_said(model: SegmentationModel) -> None:
    """The default: shrunk for the network alone and only if too large, CRF at the image's own size."""
    pixels = photograph(250, 700)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    mean = torch.tensor([103.939, 116.779, 123.68])[:, None, None]
    small = torch.nn.functional.interpolate(image, (179, 500), mode="bilinear", antialias=True).flip(1) - mean
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(model.network(small), (250, 700), mode="bilinear")
        kernels = model.crf.prepare(image, scale=700 / 500)  # as much larger as the network saw it smaller
        labels = model.crf(logits, prepared=kernels)[0].argmax(0).numpy()
    assert np.array_equal(segmented(model, pixels, "free"), labels)


def test_sizes_are_cut_not_rounded() -> None:
    assert framed_size(300, 220, "caffe") == (300, 220)
    assert framed_size(300, 220, "pytorch") == (500, 366)  # 366.67
    assert framed_size(512, 640, "caffe") == framed_size(512, 640, "pytorch") == (400, 500)
    sides = [max(framed_size(height, 10, "pytorch")) for height in range(11, 2000)]
    assert set(sides) == {499, 500}  # 500 / h * h is now and then a little below 500
    assert framed_size(1, 2000, "caffe") == (1, 500)  # where the demos gave up


def test_before_the_crf_and_probabilities_too(model: SegmentationModel) -> None:
    pixels = photograph(512, 640)
    segmenter = Segmenter(model.with_frame("pytorch"), "cpu")
    segmenter.set_image(pixels)
    result = segmenter.predict(marginals=True)
    assert result.before_crf is not None
    assert result.marginals is not None
    assert np.array_equal(result.marginals.argmax(0), result.labels)
    with torch.no_grad():
        logits = segmenter.model.logits(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())
    assert np.array_equal(result.before_crf, logits[0].argmax(0).numpy())
    refined = segmenter.refine(result.labels)  # at the image's own size
    assert refined.labels.shape == (512, 640)


def test_the_frame_is_kept_in_the_file(model: SegmentationModel, tmp_path) -> None:
    from napari_crfasrnn.checkpoint import load_checkpoint

    model.with_frame("caffe").save(tmp_path / "m.safetensors")
    assert load_checkpoint(tmp_path / "m.safetensors").config.preprocessing.frame == "caffe"
    assert model.config.preprocessing.frame == "free"
    with pytest.raises(ValueError, match="frame must be one of free, caffe, pytorch, got 'keras'"):
        model.with_frame("keras")


def test_grey_and_many_channels(model: SegmentationModel) -> None:
    grey = photograph(90, 120)[..., 0]
    segmenter = Segmenter(model.with_frame("pytorch"), "cpu")
    segmenter.set_image(grey)
    labels = segmenter.predict().labels
    assert np.array_equal(labels, demo(model, np.dstack([grey] * 3), resize=True))
