"""Weights for another class table: what is known of the classes that stay, and a start for the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_crfasrnn.classes import ClassSpec
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.fcn import Network, bilinear_kernel
from napari_crfasrnn.higher_order import HigherOrder

# A class without a past among two or more with one: their mean logit, give or take this, lest two be alike.
_QUIET = 0.05
# A class without a past among none or one: this much deviation on photographs, so that none takes all.
_LOUD = 2.0

_PROBE_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "coins")
_PROBE_SIDE = 160  # pixels


def origins(
    old: tuple[ClassSpec, ...], new: tuple[ClassSpec, ...], continues: Mapping[str, str]
) -> list[int | None]:
    """Return for each new class its place in the old table, or None."""
    place = {spec.name: value for value, spec in enumerate(old)}
    for name, source in continues.items():
        if name not in {spec.name for spec in new}:
            raise ValueError(f"continues must name classes of the new table, got {name!r}")
        if source not in place:
            raise ValueError(
                f"continues must lead to classes of this model, got {source!r}; it has {', '.join(place)}"
            )
    return [place.get(continues.get(spec.name, spec.name)) for spec in new]


def regrow_network(
    network: Network, old: Network, origin: list[int | None], see: Callable[[Tensor], Tensor]
) -> None:
    """Give a fresh network the weights of an old one, its class layers as ``origin`` says.

    Parameters
    ----------
    network
        Changed in place; of the same architecture as ``old``, with as many classes as ``origin`` has entries.
    old
        Where the weights come from.
    origin
        For each new class its place in the old table, or None.
    see
        Makes what a network reads of photographs [B, 3, H, W], 0..255.
    """
    class_layers = {id(layer) for layer in (*network.score_layers, *network.class_upsamplers)}
    ours = dict(network.named_modules())
    for name, module in old.named_modules():
        if not list(module.children()) and id(ours[name]) not in class_layers:
            ours[name].load_state_dict(module.state_dict())
    for score, old_score in zip(network.score_layers, old.score_layers, strict=True):
        _regrow_rows(score, old_score, origin)
    for up, old_up in zip(network.class_upsamplers, old.class_upsamplers, strict=True):
        _regrow_upsampler(up, old_up, origin)
    network.to(next(old.parameters()).device).eval()
    fresh = [value for value, source in enumerate(origin) if source is None]
    if fresh:
        loud = len(origin) - len(fresh) < 2
        _add_contrasts(network, see(_probe()), fresh, _LOUD if loud else _QUIET)


def _regrow_rows(score: nn.Conv2d, old: nn.Conv2d, origin: list[int | None]) -> None:
    """Copy the rows of the classes that stay; the others get their mean, or zero if none stays."""
    kept = sorted({source for source in origin if source is not None})
    for layer, source_layer in ((score.weight, old.weight), (score.bias, old.bias)):
        assert layer is not None
        assert source_layer is not None
        mean = source_layer[kept].mean(0) if kept else torch.zeros_like(source_layer[0])
        for value, source in enumerate(origin):
            layer[value] = mean if source is None else source_layer[source]


def _regrow_upsampler(up: nn.ConvTranspose2d, old: nn.ConvTranspose2d, origin: list[int | None]) -> None:
    """Copy the kernels between classes that stay; the others are bilinear on their own channel."""
    kernel = bilinear_kernel(up.kernel_size[0])
    up.weight.zero_()
    for i, source_i in enumerate(origin):
        if source_i is None:
            up.weight[i, i] = kernel
        for j, source_j in enumerate(origin):
            if source_i is not None and source_j is not None:
                up.weight[i, j] = old.weight[source_i, source_j]
    if up.bias is not None and old.bias is not None:
        for i, source_i in enumerate(origin):
            up.bias[i] = old.bias.mean() if source_i is None else old.bias[source_i]


def _add_contrasts(network: Network, seen: Tensor, fresh: list[int], deviation: float) -> None:
    """Add random directions of the finest features to the rows of new classes.

    On photographs each has the given standard deviation in logits, and the mean 0.
    """
    features = network.encode(seen)
    x = network.level_inputs(features)[-1].movedim(1, -1).flatten(0, -2)  # [N, C]
    score = network.score_layers[-1]
    assert score.bias is not None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(len(fresh), x.shape[1], generator=generator).to(x)
    z = x @ rows.T  # [N, new]
    rows = rows * (deviation / z.std(0).clamp_min(1e-6))[:, None]
    means = (x @ rows.T).mean(0)
    for row, mean, value in zip(rows, means, fresh, strict=True):
        score.weight[value] += row[:, None, None]
        score.bias[value] -= mean


@cache
def _probe() -> Tensor:
    """Return a few photographs that scikit-image bundles, [B, 3, 160, 160], 0..255."""
    from skimage import data

    photographs = []
    for name in _PROBE_PHOTOGRAPHS:
        pixels = np.atleast_3d(getattr(data, name)())
        photograph = torch.from_numpy(pixels).movedim(-1, 0).float()[None]
        photograph = F.interpolate(photograph, (_PROBE_SIDE, _PROBE_SIDE), mode="bilinear", antialias=True)
        photographs.append(photograph.expand(-1, 3, -1, -1))
    return torch.cat(photographs)


def regrown_crf(old: CrfRnn, origin: list[int | None]) -> CrfRnn:
    """Return a CRF whose matrices keep the entries between classes that stay.

    A new class relates to itself as the others do on average, and to no other class.
    """
    crf = CrfRnn(len(origin), old.config)
    source = dict(old.named_parameters())
    for name, parameter in crf.named_parameters():
        if parameter.ndim == 0:
            parameter.copy_(source[name])
            continue
        matrix = source[name]  # [L, L], or [T, L, L] for untied iterations
        parameter.zero_()
        for i, source_i in enumerate(origin):
            if source_i is None:
                parameter[..., i, i] = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
            for j, source_j in enumerate(origin):
                if source_i is not None and source_j is not None:
                    parameter[..., i, j] = matrix[..., source_i, source_j]
    return crf.eval()


def regrown_higher_order(old: HigherOrder, origin: list[int | None]) -> HigherOrder:
    """Return potentials with the weights of the classes that stay, and their mean for the others."""
    new = HigherOrder(len(origin), old.config)
    for parameter, source in zip(new.parameters(), old.parameters(), strict=True):
        columns = [source.mean(-1) if place is None else source[..., place] for place in origin]
        parameter.copy_(torch.stack(columns, dim=-1))
    return new
