"""The teacher of the starter model: soft predictions of DeepLabV3-MobileNetV2 for any photograph.

The teacher's file outputs hard labels. The logits before them are read from the tensor that holds
them, so a student learns how sure the teacher was and what it took for possible.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from starter_data import Photo

SIDE = 513  # pixels; the teacher's only input size
GREY = 127
_LOGITS = "logits/semantic/BiasAdd"


class Teacher:
    """DeepLabV3-MobileNetV2, 21 PASCAL VOC classes, quantised to 8 bits (a .tflite file)."""

    def __init__(self, path: Path, n_threads: int = 1) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ModuleNotFoundError:
            raise SystemExit(
                "soft targets need the package ai-edge-litert: pip install it, or pass --hard to learn from "
                "the teacher's masks that lie in the data"
            ) from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # keeping all tensors is said to be for debugging only
            self._interpreter = Interpreter(
                str(path), num_threads=n_threads, experimental_preserve_all_tensors=True
            )
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        tensors = [t for t in self._interpreter.get_tensor_details() if t["name"].startswith(_LOGITS)]
        self._output = tensors[-1]["index"]
        self._scale, self._zero = tensors[-1]["quantization"]

    def weights(self) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Return the state of a `DeepLabEncoder`, and the weight [21, 256] and bias [21] of the classifier.

        The file's 8-bit numbers times their scales; its batch norms are folded already.
        """
        details = {tensor["index"]: tensor for tensor in self._interpreter.get_tensor_details()}
        state: dict[str, torch.Tensor] = {}
        for operation in self._interpreter._get_ops_details():
            if operation["op_name"] not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
                continue
            _, weight_at, bias_at = operation["inputs"]
            ours = _our_name(details[bias_at]["name"] + details[weight_at]["name"])
            weight = self._real(details[weight_at])
            depthwise = operation["op_name"] == "DEPTHWISE_CONV_2D"
            order = (3, 0, 1, 2) if depthwise else (0, 3, 1, 2)  # [1, h, w, C] or [out, h, w, in]
            state[f"{ours}.weight"] = weight.permute(order).contiguous()
            state[f"{ours}.bias"] = self._real(details[bias_at])
        return state, state.pop("classes.weight")[..., 0, 0], state.pop("classes.bias")

    def _real(self, tensor: Mapping[str, Any]) -> torch.Tensor:
        scale, zero = tensor["quantization"]
        values = self._interpreter.get_tensor(tensor["index"]).astype(np.float64)
        return torch.from_numpy(((values - zero) * scale).astype(np.float32))

    def _logits(self, window: np.ndarray) -> torch.Tensor:
        """Return the logits [1, 21, 513, 513] of a window, uint8 [<=513, <=513, 3]."""
        padded = np.full((SIDE, SIDE, 3), GREY, np.uint8)
        padded[: window.shape[0], : window.shape[1]] = window
        self._interpreter.set_tensor(self._input, padded[None])
        self._interpreter.invoke()
        quantised = self._interpreter.get_tensor(self._output)  # [1, 33, 33, 21]
        logits = torch.from_numpy((quantised.astype(np.float32) - self._zero) * self._scale)
        # 33 cells lie on the corners and every 16 pixels between them
        return F.interpolate(
            logits.permute(0, 3, 1, 2), size=(SIDE, SIDE), mode="bilinear", align_corners=True
        )

    def marginals(self, photo: Image.Image, zoom: float, *, flip: bool = False) -> torch.Tensor:
        """Return class probabilities [21, h, w] of a photograph whose longer side is zoomed to 513 * zoom.

        Up to a zoom of 1 the whole photograph is one window; beyond, four windows in its corners overlap.
        """
        factor = SIDE * zoom / max(photo.size)
        w, h = (max(1, round(side * factor)) for side in photo.size)
        pixels = np.asarray(photo.resize((w, h), Image.Resampling.BILINEAR))
        if flip:
            pixels = pixels[:, ::-1]
        total, count = torch.zeros(1, 21, h, w), torch.zeros(h, w)
        for y in {0, max(0, h - SIDE)}:
            for x in {0, max(0, w - SIDE)}:
                window = pixels[y : y + SIDE, x : x + SIDE]
                wh, ww = window.shape[:2]
                total[..., y : y + wh, x : x + ww] += self._logits(window)[..., :wh, :ww].softmax(1)
                count[y : y + wh, x : x + ww] += 1
        mean = (total / count)[0]
        return mean.flip(-1) if flip else mean

    def soft_targets(self, photo: Image.Image, step: int = 8) -> np.ndarray:
        """Return mean probabilities of three looks at a photograph, uint8 [21, h, w] in 1/255.

        The looks are the whole photograph, its mirror image and a closer one; the map has one cell for
        ``step`` pixels of the teacher's input.
        """
        looks = [
            self.marginals(photo, 1.0),
            self.marginals(photo, 1.0, flip=True),
            self.marginals(photo, 1.6),
        ]
        h, w = (max(1, side // step) for side in looks[0].shape[-2:])
        mean = sum(F.adaptive_avg_pool2d(look[None], (h, w))[0] for look in looks) / len(looks)
        return (mean * 255).round().to(torch.uint8).numpy()


def _our_name(theirs: str) -> str:
    """Return what `DeepLabEncoder` calls the convolution whose tensors have such names in the file."""
    for name, ours in (
        ("aspp0", "local"), ("image_pooling", "pooled"), ("concat_projection", "projection"),
        ("logits", "classes"), ("MobilenetV2/Conv/", "stem"),
    ):  # fmt: skip
        if theirs.startswith(name):
            return ours
    found = re.search(r"expanded_conv(?:_(\d+))?/(expand|depthwise|project)", theirs)
    assert found is not None, theirs
    return f"blocks.{found[1] or 0}.{found[2]}"


def cached_soft_targets(photo: Photo, folder: Path, teacher: Teacher | None) -> np.ndarray:
    """Return a photograph's soft targets from ``folder``, asking the teacher the first time."""
    path = folder / f"{photo.key}.npy"
    if not path.exists():
        if teacher is None:
            raise FileNotFoundError(f"{path} is not there: run the teacher first")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, teacher.soft_targets(photo.image()))
        part.rename(path)
    return np.load(path)
