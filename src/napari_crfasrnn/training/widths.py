"""Choosing the kernel widths of a CRF on a few images, before its matrices are trained."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch

from napari_crfasrnn import metrics
from napari_crfasrnn.config import CrfConfig
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.training.data_sets import DataSet, Sample
from napari_crfasrnn.training.evaluation import BAND
from napari_crfasrnn.training.mask_files import IGNORE

# theta_alpha, theta_beta: from the reach of one cell of stride 8 to what the original took.
WIDTHS = ((10.0, 5.0), (10.0, 8.0), (20.0, 8.0), (40.0, 5.0), (80.0, 5.0), (160.0, 3.0))
BILATERAL_WEIGHTS = (1.0, 2.0, 4.0)


@torch.no_grad()
def search_widths(
    model: SegmentationModel,
    data: DataSet,
    samples: Sequence[Sample],
    base: CrfConfig,
    cancel: Cancel | None = None,
) -> CrfConfig:
    """Return the settings of a CRF that helps the model's network most on some images.

    Tried are all `WIDTHS` with all `BILATERAL_WEIGHTS`. What counts is the mean of the mean IoU of all pixels
    and of that near true edges.

    Parameters
    ----------
    model
        Its network stays as it is.
    data, samples
        Images that the network has not learnt from.
    base
        All other settings.
    cancel
        Asked before every image.

    Raises
    ------
    Cancelled
        When asked to stop.
    """
    candidates = [
        base.model_copy(update={"theta_alpha": alpha, "theta_beta": beta, "bilateral_weight": weight})
        for alpha, beta in WIDTHS
        for weight in BILATERAL_WEIGHTS
    ]
    n_labels = model.n_labels
    counts = np.zeros((len(candidates), 2, n_labels, n_labels), np.int64)
    for sample in samples:
        raise_if_cancelled(cancel)
        pixels, truth = data.load(sample)
        image = torch.from_numpy(pixels)[None]
        logits, crf_image = model.logits(image), model.crf_image(image)
        scale = model.crf_scale((pixels.shape[1], pixels.shape[2]))
        places = enumerate(candidates)
        for _, group in groupby(places, lambda pair: (pair[1].theta_alpha, pair[1].theta_beta)):
            prepared = None
            for place, config in group:
                crf = CrfRnn(n_labels, config).to(model.device).eval()
                if prepared is None:  # it hangs on the widths, not on the weights
                    prepared = crf.prepare(crf_image, scale=scale)
                given = crf(logits, prepared=prepared)[0].argmax(0).to(torch.uint8).cpu().numpy()
                counts[place, 0] += metrics.confusion(given, truth, n_labels, IGNORE)
                counts[place, 1] += metrics.band_confusion(given, truth, n_labels, BAND, IGNORE)
    merits = [np.nan_to_num((metrics.miou(whole) + metrics.miou(band)) / 2) for whole, band in counts]
    return candidates[int(np.argmax(merits))]
