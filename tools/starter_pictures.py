"""Draw what the starter makes of photographs that scikit-image bundles, its mistakes among them.

    python tools/starter_pictures.py docs/images/starter.jpg

Above each photograph, below its labels over it, with the classes that take a hundredth of it or more. None of
them was trained on. The last one is a made-up scene: a person at 40, 80 and 160 pixels on grass.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image, ImageDraw

from napari_crfasrnn.checkpoint import load_checkpoint
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.zoo import load_model

WIDTH = 220  # pixels of a photograph on the sheet
NOTE = 30  # of the names below it
LEAST_SHARE = 0.01
SMALL_SIDES = (40, 80, 160)


def photographs() -> list[np.ndarray]:
    """Return the photographs, uint8 [H, W, 3]."""
    found = [
        np.asarray(getattr(skimage.data, name)()) for name in ("chelsea", "astronaut", "coffee", "rocket")
    ]
    folder = Path(skimage.data.__file__).parent
    with Image.open(folder / "motorcycle_left.png") as image:
        found.append(np.array(image.convert("RGB")))
    return [*found, small_people()]


def small_people() -> np.ndarray:
    """Return one person at several sizes on grass, uint8 [300, 400, 3]."""
    grass = np.asarray(skimage.data.grass())[:300, :400, None]
    scene = Image.fromarray((grass * np.array([0.5, 0.8, 0.4])).astype(np.uint8))
    person = Image.fromarray(skimage.data.astronaut()).crop((110, 0, 350, 512))
    x = 30
    for side in SMALL_SIDES:
        small = person.resize((round(person.width * side / person.height), side), Image.Resampling.LANCZOS)
        scene.paste(small, (x, 280 - side))
        x += small.width + 60
    return np.asarray(scene)


@torch.inference_mode()
def labels_of(model: SegmentationModel, pixels: np.ndarray) -> np.ndarray:
    """Return the labels [H, W] after the CRF."""
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float()
    return model.crf(model.logits(image), prepared=model.prepare(image))[0].argmax(0).numpy()


def column(model: SegmentationModel, pixels: np.ndarray) -> Image.Image:
    """Return a photograph above its labels."""
    labels = labels_of(model, pixels)
    colors = np.array([spec.color for spec in model.classes], np.float32)[labels]
    mixed = np.where(labels[..., None] == 0, 0.6 * pixels, 0.35 * pixels + 0.65 * colors).astype(np.uint8)
    height = round(pixels.shape[0] * WIDTH / pixels.shape[1])
    sheet = Image.new("RGB", (WIDTH, 2 * height + NOTE), "white")
    for row, shown in enumerate((pixels, mixed)):
        sheet.paste(Image.fromarray(shown).resize((WIDTH, height)), (0, row * height))
    shares = np.bincount(labels.ravel(), minlength=model.n_labels) / labels.size
    order = [int(v) for v in np.argsort(-shares) if v and shares[v] >= LEAST_SHARE]
    names = ", ".join(f"{model.classes[v].name} {shares[v]:.0%}" for v in order[:3])
    more = ", ".join(f"{model.classes[v].name} {shares[v]:.0%}" for v in order[3:6])
    ImageDraw.Draw(sheet).multiline_text((2, 2 * height + 2), f"{names or 'nothing'}\n{more}", fill="black")
    return sheet


def main() -> None:
    """Draw the sheet that the command line names."""
    parser = argparse.ArgumentParser(description="Draw what the starter makes of some photographs.")
    parser.add_argument("picture", type=Path, help="the file to write")
    parser.add_argument("--model", type=Path, help="a model's file instead of the shipped one")
    args = parser.parse_args()
    model = load_model("starter") if args.model is None else load_checkpoint(args.model)
    columns = [column(model, pixels) for pixels in photographs()]
    sheet = Image.new("RGB", (len(columns) * (WIDTH + 6) - 6, max(c.height for c in columns)), "white")
    for place, part in enumerate(columns):
        sheet.paste(part, (place * (WIDTH + 6), 0))
    sheet.save(args.picture, quality=82, optimize=True)


if __name__ == "__main__":
    main()
