"""Labels as COCO's JSON has them: ``train.json`` and ``val.json``, one annotation for each connected region.

Regions are run lengths (RLE, uncompressed) and not polygons, since they are exact, holes included, and
``pycocotools`` and what builds on it read both. COCO knows no unlabelled pixels: what has no annotation
counts as background, so images for it should be labelled all over; a note says where they are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import regionprops

from napari_crfasrnn.classes import ClassSpec, has_background, ignore_value
from napari_crfasrnn.edits import Labels, label_regions


class CocoWriter:
    """Gathers the regions of all images.

    Parameters
    ----------
    folder
        Where the files go.
    classes
        The class table. A first one called "background" is what has no annotation. With it the id of a
        category is the label value, without it one more: in COCO they begin with 1.
    """

    def __init__(self, folder: Path, classes: Sequence[ClassSpec]) -> None:
        self._folder = folder
        self._has_background = has_background(classes)
        self._categories = [
            {"id": self._category(value), "name": spec.name, "supercategory": ""}
            for value, spec in enumerate(classes)
            if self._category(value)
        ]
        self._n_partial = 0
        self._found: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}

    def _category(self, value: int) -> int:
        return value if self._has_background else value + 1

    def add(self, image: Path, labels: Labels) -> None:
        """Take the labels of an image."""
        height, width = labels.shape
        self._n_partial += bool((labels == ignore_value(labels.dtype)).any())
        regions = []
        for region in regionprops(label_regions(labels)):
            y, x = region.coords[0]
            category = self._category(int(labels[y, x]))
            if category:
                y0, x0, y1, x1 = (int(end) for end in region.bbox)
                regions.append(
                    {
                        "category_id": category,
                        "segmentation": {
                            "size": [height, width],
                            "counts": run_lengths(region.coords, (height, width)),
                        },
                        "area": len(region.coords),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "iscrowd": 0,
                    }
                )
        self._found[image.stem] = ({"file_name": image.name, "height": height, "width": width}, regions)

    def finish(self, lists: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """Write a file for each list that names an image."""
        for list_name, names in lists.items():
            if not names:
                continue
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for image_id, name in enumerate(names, start=1):
                image, regions = self._found[name]
                images.append({"id": image_id, **image})
                for region in regions:
                    annotations.append({"id": len(annotations) + 1, "image_id": image_id, **region})
            content = {"images": images, "annotations": annotations, "categories": self._categories}
            (self._folder / f"{list_name}.json").write_text(
                json.dumps(content, ensure_ascii=False), encoding="utf-8"
            )
        if not self._n_partial:
            return ()
        where = f"{self._n_partial} of the images" if len(self._found) > 1 else "the image"
        return (f"some pixels of {where} have no label: in COCO's files they count as background",)


def run_lengths(
    places: NDArray[np.integer],  # [N, 2], rows and columns
    shape: tuple[int, int],
) -> list[int]:
    """Return COCO's run lengths of pixels: column by column, first those outside, then inside, and so on."""
    height, width = shape
    order = np.sort(places[:, 1].astype(np.int64) * height + places[:, 0])
    is_start = np.diff(order, prepend=-2) > 1
    is_end = np.append(is_start[1:], True)
    borders = np.stack([order[is_start], order[is_end] + 1], axis=1).reshape(-1)
    counts = np.diff(borders, prepend=0, append=height * width)
    return [int(count) for count in (counts if counts[-1] else counts[:-1])]
