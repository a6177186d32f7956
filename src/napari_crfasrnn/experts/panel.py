"""A panel of experts: forests, perceptrons and heads judge every pixel, and their judgements are averaged."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_crfasrnn.config import PanelConfig
from napari_crfasrnn.experts.features import FINE, FeatureMaps, Layer, parts_to_read
from napari_crfasrnn.experts.forest import Forest
from napari_crfasrnn.experts.heads import NEVER, Head
from napari_crfasrnn.experts.memory import Memory
from napari_crfasrnn.experts.perceptrons import Perceptrons
from napari_crfasrnn.fcn import LiteNetwork
from napari_crfasrnn.progress import Cancel, raise_if_cancelled

_EVERY_PIXEL_UP_TO = 80_000  # pixels; of larger images every second row and column is judged
_MOST_JUDGED = 100_000  # pixels of a large image, for a quick look
_CHUNK = 8_192  # pixels at a time, for the memory that their features take
_LEAST = 1e-3  # marginal: an expert that never saw a class cannot exclude it
REST = -1
"""In `PanelConfig.speaks_for`: what is none of the classes that the experts know."""


@dataclass(frozen=True)
class Sieve:
    """Every pixel of a box, or every so many rows and columns of it.

    Attributes
    ----------
    box
        (y0, x0, y1, x1) in the image, the end excluded.
    step
        1 for every pixel, 2 for every second row and column.
    """

    box: tuple[int, int, int, int]
    step: int

    @classmethod
    def of_image(cls, size: tuple[int, int], quick: bool = False) -> Sieve:
        """Return what is judged of an image of a height and width; for a quick look less of a large one."""
        n_pixels = size[0] * size[1]
        step = 1 if n_pixels <= _EVERY_PIXEL_UP_TO else 2
        return cls((0, 0, *size), max(step, math.ceil(math.sqrt(n_pixels / _MOST_JUDGED))) if quick else step)

    def pixels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and columns of the pixels."""
        y, x = np.meshgrid(*self.axes(), indexing="ij")
        return y.ravel(), x.ravel()

    def spread(self, marginals: Tensor) -> Tensor:  # [N, K] → [1, K, h, w]
        """Return the logarithms of marginals, enlarged to the box."""
        rows, columns = self.axes()
        logits = marginals.clamp_min(_LEAST).log().T.reshape(1, -1, len(rows), len(columns))
        if self.step == 1:
            return logits
        # The first pixel of each step is judged: with the last one repeated, interpolation from corner to
        # corner fits.
        size = (self.step * len(rows) + 1, self.step * len(columns) + 1)
        padded = F.pad(logits, (0, 1, 0, 1), mode="replicate")
        enlarged = F.interpolate(padded, size=size, mode="bilinear", align_corners=True)
        y0, x0, y1, x1 = self.box
        return enlarged[..., : y1 - y0, : x1 - x0]

    def axes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows and the columns that are judged."""
        y0, x0, y1, x1 = self.box
        return np.arange(y0, y1, self.step), np.arange(x0, x1, self.step)


@dataclass(frozen=True, eq=False)
class Look:
    """What the experts of a panel make of an image as a whole.

    Attributes
    ----------
    parts
        Of each set of perceptrons: what they read of coarse maps (`Perceptrons.deep_part`).
    scores
        Of each head: its logits (`Head.judge`).
    """

    parts: Sequence[Layer | None]
    scores: Sequence[tuple[Layer, Layer]]


class Panel(nn.Module):
    """Experts with the weights of their votes.

    They speak for all classes of a model, or for some of them beside its network. Then they tell these from
    each other and from the rest, p(class) and p(rest), and p(rest) is shared out among the classes that the
    network knows as it says (`joined`).

    Parameters
    ----------
    config
        What experts there are, and what they speak for.
    n_labels
        Number of classes L of the model.
    """

    votes: Tensor

    def __init__(self, config: PanelConfig, n_labels: int) -> None:
        super().__init__()
        self.speaks_for, self.long_side = config.speaks_for, config.long_side
        self.n_labels = n_labels
        k = self.n_columns
        self.forests = nn.ModuleList(Forest(each, k) for each in config.forests)
        self.perceptrons = nn.ModuleList(Perceptrons(each, k) for each in config.perceptrons)
        self.heads = nn.ModuleList(Head(k) for _ in range(config.n_heads))
        self.memory = Memory(config.n_remembered)
        n_experts = len(self.forests) + len(self.perceptrons) + len(self.heads)
        self.register_buffer("votes", torch.ones(n_experts))

    @classmethod
    def of(
        cls,
        experts: Sequence[Forest | Perceptrons] | Sequence[Forest | Perceptrons | Head],
        votes: Sequence[float],
        n_labels: int,
        speaks_for: tuple[int, ...] | None = None,
        long_side: int | None = None,
    ) -> Panel:
        """Return a panel of some experts: forests, then perceptrons, then heads."""
        panel = cls(PanelConfig(speaks_for=speaks_for, long_side=long_side), n_labels)
        panel.forests.extend(each for each in experts if isinstance(each, Forest))
        panel.perceptrons.extend(each for each in experts if isinstance(each, Perceptrons))
        panel.heads.extend(each for each in experts if isinstance(each, Head))
        panel.votes = torch.tensor(votes, dtype=torch.float32)
        return panel.eval()

    @property
    def config(self) -> PanelConfig:
        """What experts there are."""
        return PanelConfig(
            forests=tuple(each.config for each in self.forests),
            perceptrons=tuple(each.config for each in self.perceptrons),
            n_heads=len(self.heads),
            speaks_for=self.speaks_for,
            n_remembered=len(self.memory),
            long_side=self.long_side,
        )

    @property
    def experts(self) -> list[Forest | Perceptrons | Head]:
        """Forests, perceptrons and heads, in the order of their votes."""
        return [*self._forests(), *self._perceptrons(), *self._heads()]

    @property
    def n_columns(self) -> int:
        """Number of columns K of the experts' judgements: L, or the classes they know and the rest."""
        return self.n_labels if self.speaks_for is None else len(self.speaks_for)

    @property
    def is_alone(self) -> bool:
        """Whether the experts speak for all classes."""
        return self.speaks_for is None

    def joined(self, judged: Tensor, known: Tensor) -> Tensor:  # [B, K, …], [B, L, …] → [B, L, …]
        """Return the logits of all classes.

        Parameters
        ----------
        judged
            Logarithms of the experts' marginals.
        known
            The network's logits, of which those of the experts' classes do not count.
        """
        if self.speaks_for is None:
            return judged
        judged = judged.log_softmax(1)
        own = {value: column for column, value in enumerate(self.speaks_for) if value != REST}
        rest = [column for column, value in enumerate(self.speaks_for) if value == REST]
        others = [value for value in range(self.n_labels) if value not in own]
        logits = torch.empty_like(known)
        logits[:, others] = known[:, others].log_softmax(1) + judged[:, rest].logsumexp(1, keepdim=True)
        logits[:, list(own)] = judged[:, list(own.values())]
        return logits

    @torch.no_grad()
    def look(self, maps: FeatureMaps, cancel: Cancel | None = None) -> Look:
        """Return what the experts make of an image as a whole, before they judge its pixels.

        Raises
        ------
        Cancelled
            When asked to stop.
        """
        parts = []
        for perceptrons in self._perceptrons():
            raise_if_cancelled(cancel)
            parts.append(perceptrons.deep_part(maps))
        return Look(parts, [each.judge(maps, cancel) for each in self._heads()])

    @torch.no_grad()
    def judge(
        self, maps: FeatureMaps, sieve: Sieve, cancel: Cancel | None = None, look: Look | None = None
    ) -> Tensor:  # [N, K]
        """Return what the panel thinks of the pixels of a sieve.

        Parameters
        ----------
        maps
            Features of the image.
        sieve
            Which pixels.
        cancel
            Asked all the time.
        look
            What `look` gave for the image, where several parts of it are judged.

        Raises
        ------
        Cancelled
            When asked to stop.
        """
        rows, columns = sieve.axes()
        votes = self.votes.tolist()
        look = look or self.look(maps, cancel)
        n_pixelwise = len(self.forests) + len(self.perceptrons)
        fine_groups = FINE if self._perceptrons() or self._forests() else ()
        n_rows = max(1, _CHUNK // len(columns))
        found = []
        for start in range(0, len(rows), n_rows):
            raise_if_cancelled(cancel)
            band = rows[start : start + n_rows]
            fine = maps.on_grid(band, columns, fine_groups)
            total = fine.new_zeros(len(fine), self.n_columns)
            for vote, forest in zip(votes, self._forests(), strict=False):
                total.add_(forest(fine), alpha=vote)
            on_device = fine.to(self.votes.device)
            total = total.to(self.votes.device)
            members = zip(
                votes[len(self.forests) : n_pixelwise], self._perceptrons(), look.parts, strict=True
            )
            for vote, perceptrons, part in members:
                total.add_(perceptrons.on_grid(maps, part, band, columns, on_device), alpha=vote)
            for vote, layers in zip(votes[n_pixelwise:], look.scores, strict=True):
                for layer in layers:
                    seen = maps.spread(layer, band, columns).flatten(0, 1).softmax(1)
                    total.add_(seen.to(total.device), alpha=vote / len(layers))
            found.append(total / self.votes.sum())
        return torch.cat(found)

    def _forests(self) -> list[Forest]:
        return [each for each in self.forests if isinstance(each, Forest)]

    def _perceptrons(self) -> list[Perceptrons]:
        return [each for each in self.perceptrons if isinstance(each, Perceptrons)]

    def _heads(self) -> list[Head]:
        return [each for each in self.heads if isinstance(each, Head)]

    def marginals(self, rows: Tensor, seen: Sequence[Tensor] = ()) -> Tensor:  # [N, d] → [N, K]
        """Return what the panel thinks of some pixels.

        Parameters
        ----------
        rows
            Their features, all groups of them.
        seen
            [N, K] what each head thinks of them (`Head.marginals`), which rows cannot tell.
        """
        total = rows.new_zeros(len(rows), self.n_columns)
        pixelwise = [expert(rows) for expert in (*self.forests, *self.perceptrons)]
        for vote, judged in zip(self.votes.tolist(), (*pixelwise, *seen), strict=True):
            total += vote * judged
        return total / self.votes.sum()

    @torch.no_grad()
    def logits(
        self,
        network: LiteNetwork,
        seen: Tensor,
        cancel: Cancel | None = None,
        on_part: Callable[[], None] | None = None,
    ) -> Tensor:  # [1, 3, h, w] → [1, K, h, w]
        """Return the logarithms of what the panel thinks of every pixel.

        Parameters
        ----------
        network
            Whose encoder gives features.
        seen
            What the experts read.
        cancel
            Asked all the time.
        on_part
            Called after each of the `parts_to_read`.

        Raises
        ------
        Cancelled
            When asked to stop.
        """
        size = (int(seen.shape[-2]), int(seen.shape[-1]))
        step = Sieve.of_image(size).step
        logits = torch.empty(1, self.n_columns, *size, device=seen.device)
        for box in parts_to_read(size, size):
            y0, x0, y1, x1 = box
            sieve = Sieve(box, step)
            judged = self.judge(FeatureMaps(network, seen, size, cancel, box), sieve, cancel)
            logits[..., y0:y1, x0:x1] = sieve.spread(judged)
            if on_part is not None:
                on_part()
        return logits

    def with_origin(self, origin: Sequence[int | None]) -> Panel | None:
        """Return a copy for another class table: each new class is an old one, or one that nobody knows.

        None if the panel spoke for some classes only, and all of them are gone.
        """
        if self.speaks_for is not None:
            place = {source: value for value, source in enumerate(origin) if source is not None}
            panel = copy.deepcopy(self)
            panel.n_labels = len(origin)
            # What was a class that is no longer there is for the network to name.
            panel.speaks_for = tuple(place.get(value, REST) for value in self.speaks_for)
            return panel if any(value != REST for value in panel.speaks_for) else None
        kept = [source for source in origin if source is not None]
        places = [value for value, source in enumerate(origin) if source is not None]
        forests, perceptrons = [], []
        for forest in self.forests:
            assert isinstance(forest, Forest)
            planted = Forest(forest.config, len(origin)).to(forest.share.device)
            for name in ("feature", "threshold", "child", "root"):
                getattr(planted, name).copy_(getattr(forest, name))
            planted.share[:, places] = forest.share[:, kept]
            forests.append(planted)
        for old in self.perceptrons:
            assert isinstance(old, Perceptrons)
            grown = Perceptrons(old.config, len(origin)).to(old.centre.device)
            with torch.no_grad():
                for name in ("centre", "deviation", "weight1", "bias1"):
                    getattr(grown, name).copy_(getattr(old, name))
                grown.bias2.fill_(NEVER)
                grown.weight2[..., places] = old.weight2[..., kept]
                grown.bias2[..., places] = old.bias2[..., kept]
            perceptrons.append(grown)
        heads = [head.with_origin(origin) for head in self._heads()]
        panel = Panel.of(
            [*forests, *perceptrons, *heads], self.votes.tolist(), len(origin), long_side=self.long_side
        )
        panel.memory = self.memory.with_origin(origin)
        return panel.to(self.votes.device)
