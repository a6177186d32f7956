"""How well the starter segments photographs of more pixels than its network sees.

    python benchmarks/enlarged.py ../shared/data/voc_coco128 [--write NAME]

The validation images, enlarged (bicubic) by 1, 2 and 4, and their masks with them. The network sees 512
pixels on the long side in any case; the CRF sees all pixels, with its kernels as wide in pixels as they were
learnt, or as many times wider as the network saw the image smaller, which is what the product does. The band
is 5 pixels of the image before it was enlarged, to either side of true edges.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from napari_crfasrnn import Segmenter, load_model
from napari_crfasrnn.metrics import band_confusion, confusion, miou
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.training.data_sets import open_data_set

TIMES = (1, 2, 4)
BAND = 5
IGNORE = 255


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/results/NAME.md")
    arguments = parser.parse_args()
    data, model = open_data_set(arguments.data), load_model("starter")
    lines: list[str] = []

    def say(line: str = "") -> None:
        lines.append(line)
        print(line, flush=True)

    written = f" --write {arguments.write}" if arguments.write else ""
    say("# Photographs of more pixels than the network sees")
    say()
    command = f"python benchmarks/enlarged.py ../shared/data/{arguments.data.name}{written}"
    say(f"{datetime.now(UTC):%Y-%m-%d}. `{command}`")
    say()
    columns = ("enlarged", "images", "without CRF", "kernels as learnt", "kernels as much wider")
    for cells in (columns, ["---"] * len(columns)):
        say(f"| {' | '.join(cells)} |")
    n_labels = model.n_labels
    for times in TIMES:
        counts = np.zeros((3, 2, n_labels, n_labels), np.int64)
        for sample in data.val:
            pixels, truth = data.load(sample)
            image = enlarged(pixels, times)
            wanted = truth.repeat(times, 0).repeat(times, 1)
            segmenter = Segmenter(model, "cpu")
            segmenter.set_image(image, axes="CYX")
            result = segmenter.predict()
            assert result.before_crf is not None
            for place, labels in enumerate((result.before_crf, as_learnt(model, image), result.labels)):
                counts[place, 0] += confusion(labels, wanted, n_labels, IGNORE)
                counts[place, 1] += band_confusion(labels, wanted, n_labels, BAND * times, IGNORE)
        scores = [" / ".join(f"{miou(part):.3f}" for part in parts) for parts in counts]
        say(f"| {times} x | {len(data.val)} | {' | '.join(scores)} |")
    say()
    say("Mean IoU over all classes: of all pixels / of the band.")
    if arguments.write:
        path = Path(__file__).parent / "results" / f"{arguments.write}.md"
        path.write_text("\n".join(lines) + "\n")
        print(f"written to {path}")


def enlarged(pixels: np.ndarray, times: int) -> np.ndarray:  # [3, h, w] → [3, H, W], uint8
    image = Image.fromarray(np.rint(pixels).astype(np.uint8).transpose(1, 2, 0))
    size = (image.width * times, image.height * times)
    return np.array(image.resize(size, Image.Resampling.BICUBIC)).transpose(2, 0, 1)


@torch.no_grad()
def as_learnt(model: SegmentationModel, image: np.ndarray) -> np.ndarray:  # [H, W]
    seen: Tensor = torch.from_numpy(np.ascontiguousarray(image))[None].float()
    refined = model.crf(model.logits(seen), prepared=model.crf.prepare(model.crf_image(seen)))
    return np.asarray(refined[0].argmax(0).numpy())


if __name__ == "__main__":
    main()
