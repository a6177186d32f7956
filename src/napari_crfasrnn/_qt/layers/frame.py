"""A frame around a part of an image, drawn over the layers: it is no layer, so nobody saves or paints it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari._vispy.overlays.base import ViewerOverlayMixin, VispySceneOverlay
from napari._vispy.utils.visual import overlay_to_visual
from napari.components.overlays import SceneOverlay
from numpy.typing import NDArray
from vispy.scene.visuals import Mesh

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_crfasrnn._qt.layers.drawing import Box

NAME = "crfasrnn_patch"  # of the overlay in the viewer
CANVAS_SHARE = 0.82  # of the canvas that a framed square fills, so that what is around it is seen, too
VEIL = (0.0, 0.0, 0.0, 0.45)  # over what is not framed
# A dark and a light line next to each other are seen on any image.
BANDS = ((0.0, (1.0, 0.84, 0.2, 1.0)), (0.006, (0.0, 0.0, 0.0, 1.0)))  # where they begin, in sides; colour
END_OF_BANDS = 0.012

Rectangle = tuple[float, float, float, float]


class FrameOverlay(SceneOverlay):  # type: ignore[misc]
    """What napari knows of a frame: triangles in the world.

    Attributes
    ----------
    corners
        (y, x) in the world; three after three are a triangle.
    colors
        Red, green, blue, alpha of each triangle, 0..1.
    """

    corners: tuple[tuple[float, float], ...] = ()
    colors: tuple[tuple[float, float, float, float], ...] = ()


class _VispyFrame(ViewerOverlayMixin, VispySceneOverlay):  # type: ignore[misc]
    overlay: FrameOverlay

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(node=Mesh(), **kwargs)
        self.overlay.events.colors.connect(self._on_change)  # set after the corners
        self._on_change()
        self.reset()

    def _on_change(self) -> None:
        if self.overlay.colors:
            vertices = np.array(self.overlay.corners, np.float32)[:, ::-1]
            faces = np.arange(len(vertices)).reshape(-1, 3)
            self.node.set_data(vertices, faces, face_colors=np.array(self.overlay.colors, np.float32))


overlay_to_visual[FrameOverlay] = _VispyFrame


class Frame:
    """The frame of one viewer, and the view of what is in it.

    Parameters
    ----------
    viewer
        Where it is drawn.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self._view: tuple[Any, float] | None = None  # center and zoom before the first frame

    @property
    def is_shown(self) -> bool:
        """Whether there is a frame."""
        return NAME in self._viewer.scene.overlays

    def show(self, image: Any, shape: tuple[int, int], box: Box) -> None:
        """Frame a part of the plane of an image layer, and zoom to it.

        Parameters
        ----------
        image
            The layer.
        shape
            Height and width of its planes.
        box
            (y0, x0, y1, x1) in it.
        """
        camera = self._viewer.scene.camera
        if self._view is None:
            self._view = camera.center, camera.zoom
        triangles, colors = _drawn(shape, box)
        world = _to_world(image, triangles)
        overlays = self._viewer.scene.overlays
        if NAME not in overlays:
            overlays[NAME] = FrameOverlay()
        overlay = overlays[NAME]
        overlay.corners = tuple((float(y), float(x)) for y, x in world)
        overlay.colors = colors
        overlay.visible = True
        corners = _to_world(image, _corners(_outline(box)))
        extent = corners.max(0) - corners.min(0)
        middle = (corners.max(0) + corners.min(0)) / 2
        camera.center = (*camera.center[:-2], float(middle[0]), float(middle[1]))
        camera.zoom = CANVAS_SHARE * float(np.min(np.array(self._viewer.canvas.size) / extent))

    def hide(self, *, restore: bool) -> None:
        """Take the frame away; with ``restore`` show again what was shown before the first."""
        if self.is_shown:
            self._viewer.scene.overlays[NAME].visible = False
            del self._viewer.scene.overlays[NAME]
        view, self._view = self._view, None
        if restore and view is not None:
            self._viewer.scene.camera.center, self._viewer.scene.camera.zoom = view


def _outline(box: Box) -> Rectangle:
    y0, x0, y1, x1 = box
    return y0 - 0.5, x0 - 0.5, y1 - 0.5, x1 - 0.5  # a pixel lies around its place


def _corners(rectangle: Rectangle) -> NDArray[np.float64]:
    y0, x0, y1, x1 = rectangle
    return np.array([(y0, x0), (y0, x1), (y1, x1), (y1, x0)])


def _drawn(shape: tuple[int, int], box: Box) -> tuple[NDArray[np.float64], tuple[Any, ...]]:
    """Return triangles [n, 2] of a frame around a box of a plane, and the colour of each."""
    inner = _outline(box)
    side = max(box[2] - box[0], box[3] - box[1])
    starts = [start for start, _ in BANDS] + [END_OF_BANDS]
    rings = [
        (_grown(inner, end * side), _grown(inner, start * side), color)
        for (start, color), end in zip(BANDS, starts[1:], strict=True)
    ]
    band = rings[-1][0]
    whole = _outline((0, 0, *shape))
    veiled = (min(whole[0], band[0]), min(whole[1], band[1]), max(whole[2], band[2]), max(whole[3], band[3]))
    rings.append((veiled, band, VEIL))
    triangles: list[NDArray[np.float64]] = []
    colors: list[Any] = []
    for outside, inside, color in rings:
        outer, edge = _corners(outside), _corners(inside)
        for one in range(4):
            other = (one + 1) % 4
            triangles += [outer[one], outer[other], edge[other], outer[one], edge[other], edge[one]]
            colors += [color, color]
    return np.array(triangles), tuple(colors)


def _grown(rectangle: Rectangle, by: float) -> Rectangle:
    y0, x0, y1, x1 = rectangle
    return y0 - by, x0 - by, y1 + by, x1 + by


def _to_world(image: Any, places: NDArray[np.float64]) -> NDArray[np.float64]:  # both [n, 2]
    """Return where places of a plane lie in the world; an affine map is known by three of them."""
    lead = (0,) * (image.ndim - 2)
    origin, down, right = (
        np.asarray(image.data_to_world((*lead, *place)))[-2:] for place in ((0, 0), (1, 0), (0, 1))
    )
    moved: NDArray[np.float64] = origin + places[:, :1] * (down - origin) + places[:, 1:] * (right - origin)
    return moved
