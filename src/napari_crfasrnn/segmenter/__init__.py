"""Set an image once, segment and refine it often.

`Segmenter` is what the widget, the command line and scripts all call.
"""

from __future__ import annotations

from napari_crfasrnn.segmenter.live import LiveRefinement
from napari_crfasrnn.segmenter.refined import Refined
from napari_crfasrnn.segmenter.result import Segmentation
from napari_crfasrnn.segmenter.segmenter import Segmenter, choose_device

__all__ = ["LiveRefinement", "Refined", "Segmentation", "Segmenter", "choose_device"]
