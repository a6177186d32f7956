"""Keys of the canvas. napari's own come first, but for the digits on our own label layers.

On a labels layer napari's digits 1 to 7 repeat what letters do as well (E eraser, P brush, F fill, L
picker, Z move), and on ours they choose a class instead; the polygon tool, which has no letter, gets G.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from napari_crfasrnn._qt.workbench import Workbench

HELP = (
    ("1 … 9", "paint with a class"),
    ("0", "paint with the background"),
    ("Shift+X", "paint unlabelled"),
    ("S", "segment"),
    ("R", "refine the view"),
    ("Shift+L", "learn from the edits"),
    ("N", "correct the least certain patch; the next one"),
    ("Shift+A", "all of this patch is right; the next one"),
    ("Shift+N", "leave the patches"),
    ("A", "accept the image or slice"),
    ("Page Down", "the next image; Page Up: the one before"),
    ("U", "uncertainty on or off"),
    ("Shift+B", "before the CRF, while held"),
    ("C", "outlines or regions"),
    ("G", "polygon"),
    ("Ctrl+Z", "undo; Ctrl+Shift+Z: redo"),
)


class Keys:
    """Binds the keys of one viewer, and lets go of them again."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._layers: WeakSet[Any] = WeakSet()
        self._bound: list[str] = []
        viewer_keys: dict[str, Callable[[Any], Any]] = {
            "S": lambda _: bench.segment(),
            "R": lambda _: bench.refine(),
            "Shift-L": lambda _: bench.learn_if_possible(),
            "N": lambda _: bench.patching.next(),
            "Shift-A": lambda _: bench.patching.approve(),
            "Shift-N": lambda _: bench.patching.leave(),
            "A": lambda _: bench.accept(),
            "U": lambda _: bench.show_uncertainty(not bench.uncertainty_on),
            "PageDown": lambda _: bench.order.step(1),
            "PageUp": lambda _: bench.order.step(-1),
            "Shift-B": self._hold_before,
            "Shift-X": lambda _: bench.paint_unlabelled(),
            "Control-Z": lambda _: bench.undo(),  # on a label layer napari's own comes first
            "Control-Shift-Z": lambda _: bench.redo(),
        }
        for key, action in viewer_keys.items():
            try:
                bench.viewer.bind_key(key, action)
            except ValueError:  # a person or another plugin has it
                continue
            self._bound.append(key)

    def bind_layer(self, layer: Any) -> None:
        """Let digits on a label layer choose classes."""
        if layer in self._layers:
            return
        self._layers.add(layer)
        bench = self._bench
        for digit in range(10):
            layer.bind_key(str(digit), lambda _, digit=digit: self._choose(digit), overwrite=True)
        layer.bind_key("C", lambda _: bench.labelling.toggle_contour(), overwrite=True)
        layer.bind_key("G", _polygon, overwrite=True)

    def unbind(self) -> None:
        """Let go of every key."""
        for key in self._bound:
            self._bench.viewer.bind_key(key, None)
        for layer in self._layers:
            for key in (*map(str, range(10)), "C", "G"):
                layer.bind_key(key, None)
        self._bound.clear()
        self._layers.clear()

    def _choose(self, digit: int) -> None:
        value = 0 if digit == 0 else self._bench.session.table.keys.get(digit)
        if value is not None:
            self._bench.paint_with(value)

    def _hold_before(self, _: Any) -> Iterator[None]:
        self._bench.show_before(True)
        yield
        self._bench.show_before(False)


def _polygon(layer: Any) -> None:
    layer.mode = "polygon"
