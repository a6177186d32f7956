"""Train the starter model from scratch, or measure one.

    python tools/train_starter.py ../shared/data -o starter.safetensors
    python tools/train_starter.py ../shared/data -o src/napari_crfasrnn/data/starter.safetensors --evaluate

The folder of data and the terms of its sources are described in docs/models.md. Needs the
dependency group "train". Steps: ask the teacher for soft targets; encode views of all photographs
with the frozen ImageNet encoder; train the head; train the head and the later half of the encoder;
fit the CRF on photographs held out from that; save; measure.

Results of the first steps are kept in the work folder and used again. The same seed, data, number
of threads and iterations give the same model; the time limit may cut the iterations.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from napari_crfasrnn.checkpoint import load_checkpoint, round_to_half, save_checkpoint
from napari_crfasrnn.config import ModelConfig
from napari_crfasrnn.fcn import FcnLite
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.training.starts import imagenet_encoder
from starter_crf import fit_crf
from starter_data import HUMAN_SETS, TEACHER_SET, Photo, fit_and_cal
from starter_evaluate import VALIDATION_SETS, evaluate, table
from starter_teacher import Teacher, cached_soft_targets
from starter_training import train
from starter_views import build_views, one_hot

TEACHER_FILE = "deeplabv3_mnv2_pascal_quant.tflite"
HEAD_RATE = 2e-3
LATE_HEAD_RATE = 7e-4
ENCODER_RATE = 2e-3  # relative to the size of each channel's weights
# Rare classes weigh more while the head finds them at all, then nearly as their pixels are: a network
# that was always paid for them sees them everywhere.
HEAD_CLASS_WEIGHT_POWER, LATE_CLASS_WEIGHT_POWER = 0.25, 0.1

TITLE = "Starter: everyday photographs, the 21 PASCAL VOC classes"
LICENCE = (
    "Weights for research, teaching and evaluation, not for commercial use: several of the data sets they "
    "were trained on are for research only (see STARTER_LICENSE.md). The program has its own licence."
)
SOURCES = {
    "EfficientNet-Lite0, ImageNet weights": "Apache-2.0",
    "DeepLabV3-MobileNetV2 (teacher)": "Apache-2.0",
    "ImageNet sample photographs": "non-commercial research",
    "Weizmann horses": "research use",
    "PASCAL VOC 2012 photographs": "Flickr terms",
    "MSRC v2": "non-commercial research",
    "COCO128": "annotations CC BY 4.0, photographs under their Flickr licences",
}


def say(text: str) -> None:
    """Print with the time of day, at once."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def ask_teacher(photos: list[Photo], data: Path, folder: Path) -> None:
    """Make the soft targets of every photograph but MSRC's, whose human masks leave nothing open."""
    asked = [p for p in photos if p.dataset != "msrc21" and not (folder / f"{p.key}.npy").exists()]
    if asked:
        teacher = Teacher(data / TEACHER_SET / TEACHER_FILE, torch.get_num_threads())
        for i, photo in enumerate(asked):
            cached_soft_targets(photo, folder, teacher)
            if i % 100 == 99:
                say(f"  {i + 1}/{len(asked)} photographs shown to the teacher")


def run(args: argparse.Namespace) -> SegmentationModel:
    """Train a model as the command line says and save it."""
    torch.manual_seed(args.seed)
    fit, cal = fit_and_cal(args.data)
    say(f"{len(fit)} photographs to train on, {len(cal)} held out for the CRF")
    soft_folder = args.work / "soft"
    if not args.hard:
        say("teacher")
        ask_teacher(fit, args.data, soft_folder)

    def soft_targets(photo: Photo) -> np.ndarray:
        if args.hard or photo.dataset == "msrc21":
            return one_hot(photo.mask())
        return cached_soft_targets(photo, soft_folder, None)

    network = FcnLite(len(ModelConfig().classes))
    network.encoder.load_state_dict(imagenet_encoder())
    say("views")
    about = "masks" if args.hard else "teacher"
    store = build_views(fit, network, soft_targets, about, args.work / "views", args.seed, say=say)
    say(f"head, {len(store)} views")
    head = args.work / "head.pt"
    if args.resume and head.exists():
        network.load_state_dict(torch.load(head, weights_only=True))
    else:
        train(
            network,
            store,
            iterations=args.head_iterations,
            seed=args.seed,
            head_rate=HEAD_RATE,
            class_weight_power=HEAD_CLASS_WEIGHT_POWER,
            say=say,
        )
        torch.save(network.state_dict(), head)
    if args.late_iterations:
        say("head and last stages of the encoder")
        train(
            network,
            store,
            iterations=args.late_iterations,
            seed=args.seed + 1,
            head_rate=LATE_HEAD_RATE,
            class_weight_power=LATE_CLASS_WEIGHT_POWER,
            encoder_rate=ENCODER_RATE,
            seconds=args.late_minutes * 60,
            say=say,
        )
    torch.save(network.state_dict(), args.work / "network.pt")
    return finish(network, cal, args)


def finish(network: FcnLite, cal: list[Photo], args: argparse.Namespace) -> SegmentationModel:
    """Fit the CRF to a trained network, measure both, save the model."""
    round_to_half(network.encoder)
    model = SegmentationModel(ModelConfig(), network)
    say("CRF")
    model = SegmentationModel(model.config, network, fit_crf(model, cal, args.seed, say))
    scores = [evaluate(model, args.data, name) for name in VALIDATION_SETS]
    say(f"measured\n{table(scores)}")
    model.provenance = {
        "title": TITLE,
        "licence": LICENCE,
        "sources": SOURCES,
        "trained_on": [TEACHER_SET, *(f"{name} train" for name in HUMAN_SETS)],
        "validation": {score.name: score.as_json() for score in scores},
        "command": "python tools/train_starter.py ../shared/data",
        "seed": args.seed,
    }
    save_checkpoint(model, args.out)
    say(f"saved {args.out}, {args.out.stat().st_size / 1e6:.1f} MB")
    return model


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train or measure the starter model.")
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the model, a .safetensors file")
    parser.add_argument("--evaluate", action="store_true", help="measure the model in --out and stop")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "train-starter", help="folder for caches"
    )
    parser.add_argument(
        "--hard", action="store_true", help="do without the teacher: use its masks in the data"
    )
    parser.add_argument("--head-iterations", type=int, default=1000)
    parser.add_argument("--late-iterations", type=int, default=2000, help="0: the encoder stays as it is")
    parser.add_argument("--late-minutes", type=float, default=30.0)
    parser.add_argument(
        "--crf-only", action="store_true", help="take the network of the last run's work folder"
    )
    parser.add_argument("--resume", action="store_true", help="take the head of the last run's work folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=max(1, min(4, os.cpu_count() or 1)))
    return parser.parse_args()


def main() -> None:
    """Do what the command line says."""
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.evaluate:
        model = load_checkpoint(args.out)
        print(table([evaluate(model, args.data, name) for name in VALIDATION_SETS]))
    elif args.crf_only:
        network = FcnLite(len(ModelConfig().classes))
        network.load_state_dict(torch.load(args.work / "network.pt", weights_only=True))
        finish(network, fit_and_cal(args.data)[1], args)
    else:
        run(args)


if __name__ == "__main__":
    main()
