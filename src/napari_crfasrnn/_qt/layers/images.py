"""What a napari image layer is to the core: array, axes, spacing; and where it sits in the world."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from napari.layers import Image, Layer
from napari.utils.colormaps import AVAILABLE_COLORMAPS

if TYPE_CHECKING:
    from napari.components import LayerList, ViewerModel

_SETTINGS = (
    "rgb", "scale", "translate", "rotate", "shear", "affine", "units", "axis_labels", "contrast_limits",
    "colormap",
)  # fmt: skip

MARK = "napari_crfasrnn"  # the key of our notes in the metadata of a layer
MAX_CHANNELS = 5  # a first axis longer than this is taken for a stack without asking


@dataclass(frozen=True)
class ImageInput:
    """An image as the core takes it.

    Attributes
    ----------
    key
        What identifies the image layer in this viewer, also after it was renamed.
    name
        Name of the layer.
    array
        The pixels: NumPy, dask, zarr, …
    axes
        A letter for each axis of the array, such as ``"ZYX"`` or ``"YXC"``.
    spacing
        Size of a voxel along the Z, Y and X axes that there are.
    stack_shape
        Sizes of the T and Z axes; ``()`` for a single plane.
    plane_shape
        Height and width, in pixels.
    units
        Unit of each axis of ``axes``.
    settings
        How napari shows the image, in JSON values, so that a project can show it like that again.
    """

    key: str
    name: str
    array: Any
    axes: str
    spacing: tuple[float, ...]
    stack_shape: tuple[int, ...]
    plane_shape: tuple[int, int]
    units: tuple[str | None, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of its labels: ``[*stack, H, W]``."""
        return (*self.stack_shape, *self.plane_shape)


def image_layers(layers: LayerList) -> list[Any]:
    """Return the image layers that a person may want to segment, topmost first.

    Images that we made ourselves (the uncertainty) are left out.
    """
    return [layer for layer in reversed(layers) if isinstance(layer, Image) and "role" not in mark_of(layer)]


def mark_of(layer: Any) -> dict[str, Any]:
    """Return our notes in the metadata of a layer; empty when there are none."""
    mark = layer.metadata.get(MARK)
    return mark if isinstance(mark, dict) else {}


def set_mark(layer: Any, **notes: Any) -> None:
    """Add to our notes in the metadata of a layer."""
    layer.metadata[MARK] = {**mark_of(layer), **notes}


def forget_mark(layer: Any, *notes: str) -> None:
    """Remove our notes from the metadata of a layer: those named, or all of them."""
    left = {name: note for name, note in mark_of(layer).items() if notes and name not in notes}
    layer.metadata.pop(MARK, None)
    if left:
        layer.metadata[MARK] = left


def key_of(layer: Any) -> str:
    """Return what identifies an image layer, noting it in the layer when it is new."""
    key = mark_of(layer).get("image")
    if key is None:
        key = uuid4().hex
        set_mark(layer, image=key)
    return str(key)


def may_be_channels(layer: Any) -> bool:
    """Whether the first axis of an image may hold channels or slices alike, so that a person must say."""
    return bool(not layer.rgb and layer.ndim == 3 and level_0(layer).shape[0] <= MAX_CHANNELS)


def says_channels(layer: Any) -> bool:
    """Whether the first axis of an image is called a channel axis."""
    return bool(not layer.rgb and layer.ndim >= 3 and _is_channel(layer.axis_labels[0]))


def axes_of(layer: Any, first_is_channels: bool = False) -> str:
    """Return a letter for each axis of an image layer's array.

    Raises
    ------
    ValueError
        If the layer has more axes than a time series of volumes, or channels where napari cannot show
        labels under them.
    """
    n_lead = layer.ndim - 2
    labels = list(layer.axis_labels[:n_lead])
    channels = first_is_channels or says_channels(layer)
    if any(_is_channel(label) for label in labels[1:]):
        raise ValueError(
            f"the channels of {layer.name!r} must be its first axis: move that axis to the front"
        )
    lead = ["C"] if channels and n_lead else []
    rest = labels[len(lead) :]
    if len(rest) > 2:
        raise ValueError(
            f"{layer.name!r} has {n_lead} axes besides rows and columns, at most time and depth can be "
            "segmented: open a part of it"
        )
    times = ["T" if str(label).lower() in ("t", "time") else "Z" for label in rest]
    if times == ["Z", "Z"]:
        times = ["T", "Z"]
    elif times == ["T", "T"]:
        raise ValueError(f"{layer.name!r} has two axes called time: rename one of them")
    return "".join([*lead, *times, "Y", "X", *(["C"] if layer.rgb else [])])


def read_image_layer(layer: Any, first_is_channels: bool = False) -> ImageInput:
    """Return an image layer as the core takes it.

    Raises
    ------
    ValueError
        As `axes_of`.
    """
    axes = axes_of(layer, first_is_channels)
    array = level_0(layer)
    size = dict(zip(axes, array.shape, strict=True))
    spatial = axes.replace("C", "")
    scale = dict(zip(spatial, np.abs(layer.scale)[-len(spatial) :], strict=True))
    return ImageInput(
        key=key_of(layer),
        name=layer.name,
        array=array,
        axes=axes,
        spacing=tuple(float(scale[letter]) for letter in spatial if letter != "T"),
        stack_shape=tuple(int(size[letter]) for letter in axes if letter in "TZ"),
        plane_shape=(int(size["Y"]), int(size["X"])),
        units=_units(layer, axes),
        settings=_settings(layer),
    )


def image_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an image layer from the settings of an `ImageInput`."""
    arguments = {name: settings[name] for name in _SETTINGS if settings.get(name) is not None}
    if arguments.get("colormap") not in AVAILABLE_COLORMAPS:
        arguments.pop("colormap", None)
    return arguments


def level_0(layer: Any) -> Any:
    """Return the array of an image layer, at full resolution."""
    return layer.data[0] if layer.multiscale else layer.data


def plane_index(viewer: ViewerModel, layer: Any, stack_shape: Sequence[int]) -> tuple[int, ...]:
    """Return which plane of a stack the viewer shows."""
    if not stack_shape:
        return ()
    point = np.asarray(layer.world_to_data(viewer.dims.point))
    lead = point[layer.ndim - 2 - len(stack_shape) : layer.ndim - 2]
    return tuple(
        int(np.clip(round(float(p)), 0, size - 1)) for p, size in zip(lead, stack_shape, strict=True)
    )


def show_plane(viewer: ViewerModel, layer: Any, index: Sequence[int]) -> None:
    """Move the sliders to a plane of a stack."""
    first = layer.ndim - 2 - len(index)
    point = np.asarray(layer.world_to_data(viewer.dims.point))
    point[first : layer.ndim - 2] = index
    world = layer.data_to_world(point)
    axes = range(viewer.dims.ndim - layer.ndim + first, viewer.dims.ndim - 2)
    viewer.dims.set_point(list(axes), [world[first + i] for i in range(len(axes))])


def visible_region(
    viewer: ViewerModel, layer: Any, plane_shape: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Return the part of a plane that is on the screen as (y0, x0, y1, x1), or None for all of it."""
    if viewer.dims.ndisplay != 2 or tuple(viewer.dims.displayed) != (
        viewer.dims.ndim - 2,
        viewer.dims.ndim - 1,
    ):
        return None
    corners = np.asarray(layer.corner_pixels)[:, -2:]  # of the level that is drawn
    if layer.multiscale:
        corners = corners * layer.downsample_factors[layer.data_level][-2:]
    y0, x0 = (int(v) for v in np.clip(np.floor(corners[0]), 0, plane_shape))
    y1, x1 = (int(v) for v in np.clip(np.ceil(corners[1]) + 1, 0, plane_shape))
    hidden = max(y0, x0, plane_shape[0] - y1, plane_shape[1] - x1)
    if y1 <= y0 or x1 <= x0 or hidden <= 2:  # pixels; napari's own rounding hides that much
        return None
    return y0, x0, y1, x1


def placement(layer: Any, ndim: int) -> dict[str, Any]:
    """Return how a layer of ``ndim`` axes lies over an image: scale, translate, …, units, axis names.

    The axes are the last ones of the image, so an image whose first axis holds channels gives the place
    of each of its channels.
    """
    keep = slice(layer.ndim - ndim, None)
    return {
        "scale": np.asarray(layer.scale)[keep],
        "translate": np.asarray(layer.translate)[keep],
        "rotate": np.asarray(layer.rotate)[keep, keep],
        "shear": _shear_matrix(layer.shear, layer.ndim)[keep, keep],
        "affine": _tail_of_affine(np.asarray(layer.affine), ndim),
        "units": tuple(layer.units)[keep],
        "axis_labels": tuple(layer.axis_labels)[keep],
    }


def placement_of(
    axes: str, spacing: Sequence[float] | None, units: Sequence[str | None] | None
) -> dict[str, Any]:
    """Return scale and units for the layer of an image that was never in napari."""
    letters = axes.removesuffix("C")
    arguments: dict[str, Any] = {}
    if spacing is not None:
        sizes = iter(spacing)
        arguments["scale"] = [next(sizes) if letter in "ZYX" else 1.0 for letter in letters]
    if units is not None:
        arguments["units"] = [unit or "pixel" for unit in units[: len(letters)]]
    return arguments


def are_same(one: Any, other: Any) -> bool:
    """Whether two arrays are one, or hold the same; lazy ones are not read for that."""
    if one is other:
        return True
    if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)):
        return False
    return bool(np.array_equal(one, other, equal_nan=np.issubdtype(one.dtype, np.inexact)))


def remove_layers(viewer: ViewerModel, layers: Iterable[Any]) -> None:
    """Remove layers, also locked ones, as far as they are in the viewer.

    All at once: for each removal on its own, napari lets Python look through all objects there are for
    unreachable ones, a fifth of a second in which the window stands still.
    """
    there = [layer for layer in layers if layer in viewer.layers]
    if not there:
        return
    # Nothing else within: what is drawn before its end is not there any more.
    with viewer.layers.batched_update():
        for layer in there:
            layer.locked = False
            viewer.layers.remove(layer)


def insert_above(viewer: ViewerModel, image: Any, layer: Layer, *, above: Sequence[Any] = ()) -> None:
    """Put a layer above an image and the given layers, without changing what is selected."""
    places = [viewer.layers.index(other) for other in (image, *above) if other in viewer.layers]
    _insert(viewer, max(places, default=len(viewer.layers) - 1) + 1, layer)


def insert_below(viewer: ViewerModel, other: Any, layer: Layer) -> None:
    """Put a layer below another one, or at the bottom, without changing what is selected."""
    _insert(viewer, viewer.layers.index(other) if other in viewer.layers else 0, layer)


def _insert(viewer: ViewerModel, place: int, layer: Layer) -> None:
    layers = viewer.layers
    active = layers.selection.active
    selected = set(layers.selection)
    # napari selects what is inserted, and shows its controls, which takes longer than all the rest.
    with layers.selection.events.blocker_all():
        layers.insert(place, layer)
        layers.selection.intersection_update(selected)
        layers.selection.update(selected)
        if active is not None:
            layers.selection.active = active


def _settings(layer: Any) -> dict[str, Any]:
    return {
        "rgb": bool(layer.rgb),
        "scale": np.asarray(layer.scale).tolist(),
        "translate": np.asarray(layer.translate).tolist(),
        "rotate": np.asarray(layer.rotate).tolist(),
        "shear": np.asarray(layer.shear).tolist(),
        "affine": np.asarray(layer.affine).tolist(),
        "units": [str(unit) for unit in layer.units],
        "axis_labels": list(layer.axis_labels),
        "contrast_limits": None if layer.rgb else [float(limit) for limit in layer.contrast_limits],
        "colormap": None if layer.rgb else str(layer.colormap.name),
        "sample": mark_of(layer).get("sample"),  # its name, if it is one of ours
    }


def _units(layer: Any, axes: str) -> tuple[str | None, ...]:
    names = iter([str(unit) for unit in layer.units])
    last_is_color = bool(layer.rgb)
    return tuple(
        None if last_is_color and place == len(axes) - 1 else next(names) for place in range(len(axes))
    )


def _is_channel(label: Any) -> bool:
    return str(label).lower() in ("c", "channel", "channels")


def _shear_matrix(shear: Any, ndim: int) -> np.ndarray:
    values = np.asarray(shear, dtype=float)
    if values.ndim == 2:
        return values
    matrix = np.eye(ndim)
    matrix[np.triu_indices(ndim, k=1)] = values
    return matrix


def _tail_of_affine(matrix: np.ndarray, ndim: int) -> np.ndarray:
    """Return the affine matrix of the last axes, in homogeneous coordinates."""
    keep = [*range(matrix.shape[0] - 1 - ndim, matrix.shape[0])]
    return matrix[np.ix_(keep, keep)]
