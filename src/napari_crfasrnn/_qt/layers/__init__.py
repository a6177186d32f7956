"""Everything that touches napari layers: reading images, and the label layers of an image."""

from __future__ import annotations

from napari_crfasrnn._qt.layers.class_layers import ClassLayer, ClassLayers
from napari_crfasrnn._qt.layers.comparison import Comparison
from napari_crfasrnn._qt.layers.drawing import Drawing, shows_planes, united
from napari_crfasrnn._qt.layers.extras import BEFORE, UNCERTAINTY
from napari_crfasrnn._qt.layers.frame import Frame
from napari_crfasrnn._qt.layers.group import LabelGroup
from napari_crfasrnn._qt.layers.images import (
    MARK,
    ImageInput,
    are_same,
    axes_of,
    forget_mark,
    image_arguments,
    image_layers,
    insert_below,
    key_of,
    level_0,
    mark_of,
    may_be_channels,
    placement,
    placement_of,
    plane_index,
    read_image_layer,
    remove_layers,
    says_channels,
    set_mark,
    show_plane,
    visible_region,
)
from napari_crfasrnn._qt.layers.looks import drawn_color
from napari_crfasrnn._qt.layers.store import ClassView, LabelStore
from napari_crfasrnn._qt.layers.strokes import StrokeWatch
from napari_crfasrnn._qt.layers.view import fit, is_lost, raise_above

__all__ = [
    "BEFORE",
    "MARK",
    "UNCERTAINTY",
    "ClassLayer",
    "ClassLayers",
    "ClassView",
    "Comparison",
    "Drawing",
    "Frame",
    "ImageInput",
    "LabelGroup",
    "LabelStore",
    "StrokeWatch",
    "are_same",
    "axes_of",
    "drawn_color",
    "fit",
    "forget_mark",
    "image_arguments",
    "image_layers",
    "insert_below",
    "is_lost",
    "key_of",
    "level_0",
    "mark_of",
    "may_be_channels",
    "placement",
    "placement_of",
    "plane_index",
    "raise_above",
    "read_image_layer",
    "remove_layers",
    "says_channels",
    "set_mark",
    "show_plane",
    "shows_planes",
    "united",
    "visible_region",
]
