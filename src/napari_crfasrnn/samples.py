"""Sample images that come with scikit-image; nothing is downloaded.

The functions named ``open_...`` are what the plugin's manifest lists as sample data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

LayerData = tuple[NDArray[Any], dict[str, Any], str]  # (data, keyword arguments of the layer, its type)
Sample = Callable[[], NDArray[np.uint8]]


def astronaut() -> NDArray[np.uint8]:
    """Return a photograph of a person, ``[512, 512, 3]``."""
    from skimage import data

    return np.asarray(data.astronaut())


def chelsea() -> NDArray[np.uint8]:
    """Return a photograph of a cat, ``[300, 451, 3]``."""
    from skimage import data

    return np.asarray(data.chelsea())


def motorcycle() -> NDArray[np.uint8]:
    """Return a photograph of a motorcycle, ``[500, 741, 3]``."""
    from skimage import data

    return np.asarray(data.stereo_motorcycle()[0])


def coffee() -> NDArray[np.uint8]:
    """Return a photograph of a cup of coffee on a table, ``[400, 600, 3]``."""
    from skimage import data

    return np.asarray(data.coffee())


def cell() -> NDArray[np.uint8]:
    """Return a micrograph of one cell, grey, ``[660, 550]``."""
    from skimage import data

    return np.asarray(data.cell())


def tissue() -> NDArray[np.uint8]:
    """Return a micrograph of stained colon tissue (immunohistochemistry), ``[512, 512, 3]``."""
    from skimage import data

    return np.asarray(data.immunohistochemistry())


SAMPLES: Mapping[str, Sample] = MappingProxyType(
    {
        "astronaut": astronaut,
        "chelsea": chelsea,
        "motorcycle": motorcycle,
        "coffee": coffee,
        "cell": cell,
        "tissue": tissue,
    }
)

FITTING_MODELS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(SAMPLES, "starter") | {"cell": "nuclei-fluorescence", "tissue": "nuclei-stained"}
)
"""For each sample the model of the package to try first."""


def sample(name: str) -> NDArray[np.uint8]:
    """Return a sample image by its name, one of `SAMPLES`.

    Raises
    ------
    ValueError
        If there is no such sample.
    """
    if name not in SAMPLES:
        raise ValueError(f"name must be one of {', '.join(SAMPLES)}, got {name!r}")
    return SAMPLES[name]()


def _layer(name: str, **arguments: Any) -> list[LayerData]:
    # The widget looks at this note: a sample that nobody corrected is no work to go on with.
    arguments["metadata"] = {"napari_crfasrnn": {"sample": name}}
    return [(sample(name), {"name": name, **arguments}, "image")]


def open_astronaut() -> list[LayerData]:
    """Return the photograph of a person as an image layer."""
    return _layer("astronaut")


def open_chelsea() -> list[LayerData]:
    """Return the photograph of a cat as an image layer."""
    return _layer("chelsea")


def open_motorcycle() -> list[LayerData]:
    """Return the photograph of a motorcycle as an image layer."""
    return _layer("motorcycle")


def open_coffee() -> list[LayerData]:
    """Return the photograph of a cup of coffee as an image layer."""
    return _layer("coffee")


def open_cell() -> list[LayerData]:
    """Return the micrograph of a cell as an image layer; a pixel is 0.107 µm wide."""
    return _layer("cell", scale=(0.107, 0.107), units=("um", "um"))


def open_tissue() -> list[LayerData]:
    """Return the micrograph of stained tissue as an image layer."""
    return _layer("tissue")
