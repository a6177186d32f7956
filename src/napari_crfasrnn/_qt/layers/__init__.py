"""Everything that touches napari layers: reading images, and the label layers of an image."""

from __future__ import annotations

from napari_crfasrnn._qt.layers.class_layers import ClassLayer, ClassLayers
from napari_crfasrnn._qt.layers.group import LabelGroup
from napari_crfasrnn._qt.layers.images import (
    ImageInput,
    axes_of,
    forget_mark,
    image_arguments,
    image_layers,
    key_of,
    mark_of,
    may_be_channels,
    placement,
    plane_index,
    read_image_layer,
    says_channels,
    set_mark,
    visible_region,
)
from napari_crfasrnn._qt.layers.store import ClassView, LabelStore

__all__ = [
    "ClassLayer",
    "ClassLayers",
    "ClassView",
    "ImageInput",
    "LabelGroup",
    "LabelStore",
    "axes_of",
    "forget_mark",
    "image_arguments",
    "image_layers",
    "key_of",
    "mark_of",
    "may_be_channels",
    "placement",
    "plane_index",
    "read_image_layer",
    "says_channels",
    "set_mark",
    "visible_region",
]
