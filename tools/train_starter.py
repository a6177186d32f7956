"""Train the starter model from scratch, or measure one.

    python tools/train_starter.py ../shared/data --without voc_coco128 -o starter.safetensors
    python tools/train_starter.py ../shared/data --without voc_coco128 --evaluate \
        -o src/napari_crfasrnn/data/starter.safetensors

The first one makes the model in the package: it learns from no photograph of COCO128, so that all of them
can measure it.

The folder of data and the terms of its sources are described in docs/models.md. Needs the
dependency group "train". Steps: ask the teacher for soft targets; take an encoder with ImageNet's weights,
and the teacher's for the second one; encode views of all photographs with both, frozen; train the
head; take back a share of what it learnt; fit the CRF on photographs held out from that; save; measure.

Results of the first steps are kept in the work folder and used again. The same seed, data, number
of threads and iterations give the same model.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from napari_crfasrnn.checkpoint import load_checkpoint, round_to_half, save_checkpoint
from napari_crfasrnn.config import ModelConfig
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.fcn import HEAD_CHANNELS, FcnLite
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.training.starts import imagenet_encoder
from starter_crf import CrfRecipe, fit_crf
from starter_data import HUMAN_SETS, N_LABELS, TEACHER_SET, Photo, fit_and_cal
from starter_evaluate import VALIDATION_SETS, evaluate, evaluate_on, evaluate_teacher, photographs, table
from starter_teacher import Teacher, cached_soft_targets
from starter_training import go_back, train
from starter_views import build_views, one_hot

TEACHER_FILE = "deeplabv3_mnv2_pascal_quant.tflite"
RATE = 5e-4
CLASS_WEIGHT_POWER = 0.0
# The photographs hold few things of many classes, and what the teacher knows of them wears off: so much of
# what was learnt on them is taken back. Chosen on COCO128's training list, without learning from it.
TAKEN_BACK = 0.2

# Matrices learn which classes the held-out photographs hold: fitted on MSRC alone, they cost
# accuracy on COCO128. One weight for each kernel is good everywhere.
CRF_RECIPE = CrfRecipe(weight_form="scalar")

TITLE = "Starter: everyday photographs, the 21 PASCAL VOC classes"
LICENCE = (
    "Weights for research, teaching and evaluation, not for commercial use: several of the data sets they "
    "were trained on are for research only (see STARTER_LICENSE.md). The program has its own licence."
)
SOURCES = {
    "EfficientNet-Lite0, ImageNet weights": "Apache-2.0",
    "DeepLabV3-MobileNetV2 (second encoder, teacher)": "Apache-2.0",
    "ImageNet sample photographs": "non-commercial research",
    "Weizmann horses": "research use",
    "PASCAL VOC 2012 photographs": "Flickr terms",
    "MSRC v2": "non-commercial research",
    "COCO128": "annotations CC BY 4.0, photographs under their Flickr licences",
}
SOURCE_OF = {"msrc21": "MSRC v2", "voc_coco128": "COCO128"}


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


def new_network(args: argparse.Namespace) -> FcnLite:
    """Return a network with the encoders it keeps, which says what the teacher says.

    Without the teacher there is one encoder only, and it says nothing yet.
    """
    network = FcnLite(N_LABELS, second_encoder=not args.hard)
    network.encoder.load_state_dict(imagenet_encoder())
    if network.deeplab is not None:
        state, weight, bias = Teacher(args.data / TEACHER_SET / TEACHER_FILE).weights()
        network.deeplab.load_state_dict(state)
        with torch.no_grad():
            for layer in network.score_layers:
                layer.weight.zero_()
            network.score16.weight[:, HEAD_CHANNELS:, 0, 0] = weight
            network.score16.bias.copy_(bias)
    for encoder in network.encoder_parts():
        round_to_half(encoder)
    return network


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

    network = new_network(args)
    say("views")
    about, folder = "masks" if args.hard else "teacher", args.work / "views"
    store = build_views(fit, network, soft_targets, about, folder, args.seed, without=args.without, say=say)
    say(f"head, {len(store)} views")
    before = copy.deepcopy(network)
    train(
        network,
        store,
        iterations=args.iterations,
        seed=args.seed,
        rate=RATE,
        class_weight_power=CLASS_WEIGHT_POWER,
        say=say,
    )
    if network.deeplab is not None:
        go_back(network, before, TAKEN_BACK)
    torch.save(network.state_dict(), kept(args, "network"))
    return finish(network, cal, args)


def kept(args: argparse.Namespace, what: str) -> Path:
    """Return where the work folder keeps the weights of a step, by what was left out."""
    return Path(args.work, "-without-".join([what, *args.without]) + ".pt")


def finish(network: FcnLite, cal: list[Photo], args: argparse.Namespace) -> SegmentationModel:
    """Fit the CRF to a trained network, measure both, save the model."""
    round_to_half(network.encoder)
    model = SegmentationModel(ModelConfig(second_encoder=network.deeplab is not None), network)
    say("CRF")
    used = [photo for photo in cal if photo.dataset not in args.without]
    crf = with_matrices(fit_crf(model, used, args.seed, say, CRF_RECIPE))
    model = SegmentationModel(model.config, network, crf)
    scores = [evaluate(model, args.data, name, whole=name in args.without) for name in VALIDATION_SETS]
    say(f"measured\n{table(scores)}")
    left_out = [SOURCE_OF[name] for name in args.without]
    model.provenance = {
        "title": TITLE,
        "licence": LICENCE,
        "sources": {name: terms for name, terms in SOURCES.items() if name not in left_out},
        "trained_on": [TEACHER_SET, *(f"{name} train" for name in HUMAN_SETS if name not in args.without)],
        "validation": {score.name: score.as_json() for score in scores},
        "command": " ".join(
            ["python tools/train_starter.py ../shared/data", *(f"--without {name}" for name in args.without)]
        ),
        "seed": args.seed,
    }
    save_checkpoint(model, args.out)
    say(f"saved {args.out}, {args.out.stat().st_size / 1e6:.1f} MB")
    return model


@torch.no_grad()
def with_matrices(crf: CrfRnn) -> CrfRnn:
    """Return a CRF that does the same with full matrices, so that a model taught further can learn them."""
    full = CrfRnn(crf.n_labels, crf.config.model_copy(update={"weight_form": "full"}))
    full.load_state_dict(crf.state_dict())
    for matrix in (full.spatial_weights, full.bilateral_weights):
        matrix.copy_(matrix.diagonal().mean() * torch.eye(crf.n_labels))
    return full.eval()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train or measure the starter model.")
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the model, a .safetensors file")
    parser.add_argument("--evaluate", action="store_true", help="measure the model in --out and stop")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=HUMAN_SETS,
        help="a set to learn nothing from; all of it is measured then, not its validation list only",
    )
    parser.add_argument("--teacher", action="store_true", help="with --evaluate: measure the teacher instead")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "train-starter", help="folder for caches"
    )
    parser.add_argument(
        "--hard", action="store_true", help="do without the teacher: use its masks in the data"
    )
    parser.add_argument("--iterations", type=int, default=800)
    parser.add_argument(
        "--crf-only", action="store_true", help="take the network of the last run's work folder"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=max(1, min(4, os.cpu_count() or 1)))
    return parser.parse_args()


def main() -> None:
    """Do what the command line says."""
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.evaluate:
        some = [photographs(args.data, name, whole=name in args.without) for name in VALIDATION_SETS]
        if args.teacher:
            teacher = Teacher(args.data / TEACHER_SET / TEACHER_FILE, args.threads)
            scores = [evaluate_teacher(teacher, name, photos) for name, photos in some]
        else:
            model = load_checkpoint(args.out)
            scores = [evaluate_on(model, name, photos) for name, photos in some]
        print(table(scores))
    elif args.crf_only:
        network = FcnLite(N_LABELS, second_encoder=not args.hard)
        network.load_state_dict(torch.load(kept(args, "network"), weights_only=True))
        finish(network, fit_and_cal(args.data)[1], args)
    else:
        run(args)


if __name__ == "__main__":
    main()
