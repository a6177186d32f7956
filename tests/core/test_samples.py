from __future__ import annotations

import socket

import numpy as np
import pytest

from napari_crfasrnn import samples

SHAPES = {
    "astronaut": (512, 512, 3),
    "chelsea": (300, 451, 3),
    "motorcycle": (500, 741, 3),
    "coffee": (400, 600, 3),
    "cell": (660, 550),
    "tissue": (512, 512, 3),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a sample image must not be downloaded")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_every_sample_is_there():
    assert dict.fromkeys(samples.SAMPLES) == dict.fromkeys(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_a_sample_is_the_image_and_opens_as_a_layer(name):
    image = samples.sample(name)
    assert image.shape == SHAPES[name]
    assert image.dtype == np.uint8
    assert np.ptp(image) > 100  # a picture, not a flat card
    [(data, arguments, kind)] = getattr(samples, f"open_{name}")()
    np.testing.assert_array_equal(data, image)
    assert arguments["name"] == name
    assert kind == "image"


def test_an_unknown_sample_is_named():
    with pytest.raises(ValueError, match=r"name must be one of astronaut, chelsea.*got 'lena'"):
        samples.sample("lena")
