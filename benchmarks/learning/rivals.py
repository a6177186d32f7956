"""What annotators have today: random forests on hand-made or on network features, and a dense CRF after them.

The forests are scikit-learn's, the hand-made features scikit-image's `multiscale_basic_features` (colour,
edges and texture at sigmas 1 to 16: the recipe of pixel classification tools), the network features those of
an ImageNet encoder at strides 2, 4 and 8, enlarged to the image (the recipe of convpaint), the dense CRF
that of Krähenbühl and Koltun in the pydensecrf2 library. All work at full resolution.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import pydensecrf.densecrf as dcrf
import torch
import torch.nn.functional as F
from annotator import UNLABELLED, Labels
from numpy.typing import NDArray
from photographs import Photograph
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import RandomForestClassifier

from napari_crfasrnn.encoder import STRIDE
from napari_crfasrnn.fcn import enlarge
from napari_crfasrnn.network import SegmentationModel

FOREST = {"n_estimators": 40, "max_depth": 12, "class_weight": "balanced", "n_jobs": 1}
WIDEST_BLUR = 16.0
BLOCKS = {0: 2, 2: 4, 4: 8}  # of the encoder: outputs of strides 2, 4 and 8
DENSE_PIXELS = 4000  # of a whole mask; drawn by class frequency to the power -1/2
REMEMBERED = 72  # feature images: all that the runs of one set and seed use, some 20 MB each
CRF = {"theta_alpha": 40.0, "theta_beta": 10.0, "compat": 4.0, "theta_gamma": 3.0, "smooth": 3.0, "n": 10}

Features = NDArray[np.float32]  # [H, W, d]


class FeatureStore:
    """Features of images; those used last are remembered."""

    def __init__(self, model: SegmentationModel) -> None:
        self._model = model
        self._known: OrderedDict[tuple[str, str], Features] = OrderedDict()

    def __call__(self, kind: str, photograph: Photograph) -> Features:
        """Return the "classic" or "encoder" features of an image."""
        key = (kind, photograph.name)
        if key not in self._known:
            make = self._encoder if kind == "encoder" else self._classic
            self._known[key] = make(photograph.image)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _classic(self, image: NDArray[np.uint8]) -> Features:
        channel_axis = -1 if image.ndim == 3 else None
        found = multiscale_basic_features(
            image, channel_axis=channel_axis, sigma_min=1.0, sigma_max=WIDEST_BLUR
        )
        return found.astype(np.float32)

    @torch.no_grad()
    def _encoder(self, image: NDArray[np.uint8]) -> Features:
        planes = torch.from_numpy(np.atleast_3d(image)).movedim(-1, 0).float()[None]
        x = self._model.preprocess(planes)
        h, w = x.shape[-2:]
        x = F.pad(x, (0, -w % STRIDE, 0, -h % STRIDE), mode="replicate")
        encoder = self._model.network.encoder
        x = F.relu6(encoder.stem(x))
        maps = []
        for number, block in enumerate(encoder.blocks):
            x = block(x)
            if number in BLOCKS:
                maps.append(enlarge(x, BLOCKS[number])[0, :, :h, :w])
            if number == max(BLOCKS):
                break
        return torch.cat(maps).movedim(0, -1).contiguous().numpy()


def forest(
    kind: str, store: FeatureStore, training: Sequence[tuple[Photograph, Labels]], n_labels: int, seed: int
) -> Callable[[Photograph], NDArray[np.float32]]:
    """Return a function from an image to the probabilities [L, H, W] that a random forest gives."""
    random = np.random.default_rng([seed, 5])
    rows, targets = [], []
    for photograph, labels in training:
        features = store(kind, photograph)
        known = np.argwhere(labels != UNLABELLED)
        values = labels[tuple(known.T)]
        if len(known) > labels.size // 4:
            chance = np.bincount(values)[values] ** -0.5
            n = min(DENSE_PIXELS, len(known))
            known = known[random.choice(len(known), n, replace=False, p=chance / chance.sum())]
        rows.append(features[tuple(known.T)])
        targets.append(labels[tuple(known.T)])
    classifier = RandomForestClassifier(**FOREST, random_state=seed)
    classifier.fit(np.concatenate(rows), np.concatenate(targets))

    def predict(photograph: Photograph) -> NDArray[np.float32]:
        features = store(kind, photograph)
        given = classifier.predict_proba(features.reshape(-1, features.shape[-1]))
        probabilities = np.zeros((n_labels, *features.shape[:2]), np.float32)
        probabilities[classifier.classes_] = given.T.reshape(-1, *features.shape[:2])
        return probabilities

    return predict


def dense_crf(image: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the marginals [L, H, W] of a dense CRF on an image."""
    n_labels, h, w = probabilities.shape
    crf = dcrf.DenseCRF2D(w, h, n_labels)
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(probabilities.clip(1e-5)).reshape(n_labels, -1)))
    crf.addPairwiseGaussian(sxy=CRF["theta_gamma"], compat=CRF["smooth"])
    colours = np.broadcast_to(np.atleast_3d(image), (h, w, 3)).copy()  # the library wants to own it
    crf.addPairwiseBilateral(
        sxy=CRF["theta_alpha"], srgb=CRF["theta_beta"], rgbim=colours, compat=CRF["compat"]
    )
    return np.array(crf.inference(CRF["n"]), np.float32).reshape(n_labels, h, w)
