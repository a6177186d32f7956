"""`train`: from a folder of images with masks to a model, killed and resumed as often as it may be.

Three stages, as in Zheng et al. (ICCV 2015, section 5.2): the network alone; the CRF; both end to end.
Nothing random is carried from one iteration to the next: every draw is made by a generator of its
own, seeded by the recipe's seed, the stage, the iteration and the place in the batch. So the state of
a training is its weights, its optimiser and its place; and several processes, each of which does some
places of a batch, draw what one process would.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from napari_crfasrnn import metrics
from napari_crfasrnn.config import CrfConfig, Recipe
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.progress import Cancel, Cancelled
from napari_crfasrnn.training.data_sets import DataSet, Sample, open_data_set
from napari_crfasrnn.training.evaluation import Score, judge
from napari_crfasrnn.training.history import STAGES, History, ScoreEntry, Stage
from napari_crfasrnn.training.mask_files import IGNORE
from napari_crfasrnn.training.material import Material, fingerprint, spread
from napari_crfasrnn.training.memory_limits import Portions
from napari_crfasrnn.training.optimizers import StageOptimizer
from napari_crfasrnn.training.pipeline import Pipeline, half_precision
from napari_crfasrnn.training.processes import Processes, joined
from napari_crfasrnn.training.run_folder import RunFolder
from napari_crfasrnn.training.starts import starting_model
from napari_crfasrnn.training.widths import search_widths
from napari_crfasrnn.training.windows import draw_window, stack

_READERS = 2  # threads that read the next batch while this one is learnt
_DRAW, _ORDER, _DROPOUT = range(3)  # what a generator is for


class DivergedError(RuntimeError):
    """The loss was no longer a number; the message says when and what to do."""


@dataclass(frozen=True)
class Iteration:
    """One optimiser iteration.

    Attributes
    ----------
    stage, number, total
        Which one: from 1 to the total of the stage.
    loss
        Mean over the labelled pixels.
    at_once
        Windows of a batch that are computed at a time, since memory ran out; None: all of them.
    """

    stage: Stage
    number: int
    total: int
    loss: float
    at_once: int | None = None


@dataclass(frozen=True, eq=False)
class DataTraining:
    """What a training from a data set gave.

    Attributes
    ----------
    model
        As it was after the last iteration.
    folder
        Where everything is; see `run_folder`.
    history
        Losses and scores.
    best
        Mean IoU of ``best.safetensors`` on the validation images; None without such images.
    """

    model: SegmentationModel
    folder: Path
    history: History
    best: float | None


def train(
    data: DataSet | Path | str,
    output: Path | str,
    recipe: Recipe | None = None,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[Iteration], None] | None = None,
    cancel: Cancel | None = None,
) -> DataTraining:
    """Train a model on images with masks.

    Started by ``torchrun``, several processes do it together, each on its GPU. On a CPU, with one number of
    threads, the same recipe and data give the same weights, interrupted or not.

    Parameters
    ----------
    data
        A data set or its folder.
    output
        Folder for state, models and logs.
    recipe
        Settings; None: the defaults.
    resume
        Go on with the training in ``output`` if there is one.
    device
        "cpu" or "cuda".
    progress
        Called after every iteration, in the first process only.
    cancel
        Asked before every iteration; with several processes all must give the same answer.

    Raises
    ------
    ValueError
        If data or recipe are not fit for training, ``output`` holds another training or one is writing
        there, or a file is damaged.
    DivergedError
        If the loss is no longer a number.
    Cancelled
        When asked to stop; the state was saved.
    torch.OutOfMemoryError
        If the GPU's memory does not hold one window. As long as it holds one, a batch for which there is not
        enough is computed in halves, which gives the same step (with several processes it is an error, too).
    """
    if not isinstance(recipe, Recipe | None):
        raise TypeError(f"recipe must be a Recipe, got {recipe!r}: write Recipe(**recipe) for a dict")
    recipe = Recipe() if recipe is None else recipe
    data = data if isinstance(data, DataSet) else open_data_set(data)
    with joined(torch.device(device)) as processes:
        training = _Training(data, RunFolder(Path(output)), recipe, processes, progress, cancel)
        return training.run(resume=resume)


class _Training:
    """A training on its way; `run` brings it to its end."""

    def __init__(
        self,
        data: DataSet,
        folder: RunFolder,
        recipe: Recipe,
        processes: Processes,
        progress: Callable[[Iteration], None] | None,
        cancel: Cancel | None,
    ) -> None:
        for name, count in (("batch", recipe.batch), ("crf_batch", recipe.crf_batch)):
            if count % processes.size:
                raise ValueError(f"{name} must be a multiple of the {processes.size} processes, got {count}")
        self._data, self._folder, self._recipe = data, folder, recipe
        self._processes, self._progress, self._cancel = processes, progress, cancel
        self._material = Material(data, recipe.held_out, cancel)
        self._uses_crf = recipe.crf_iterations + recipe.joint_iterations > 0
        self._half = half_precision(recipe.precision, processes.device)
        self._history = History()
        self._best: float | None = None
        self._stage: Stage = "fcn"
        self._done = 0  # iterations of the stage
        self._optimizer_state: dict[str, Any] | None = None
        # Several processes wait for each other's gradients: one cannot take its part in more pieces.
        self._portions = Portions(may_halve=processes.size == 1)
        self._weight = self._material.weights(recipe.class_balance).to(processes.device)

    def run(self, *, resume: bool) -> DataTraining:
        """Do what is left to do."""
        self._model = starting_model(self._recipe, self._data.classes).to(self._processes.device)
        try:
            if self._processes.is_first:
                self._folder.claim()
            self._begin(resume=resume)
            for stage in STAGES[STAGES.index(self._stage) :]:
                self._run_stage(stage)
            if self._processes.is_first:
                self._folder.write_model("last", self._described())
        finally:
            self._folder.close()
        return DataTraining(self._model, self._folder.path, self._history, self._best)

    def _begin(self, *, resume: bool) -> None:
        """Go on from the state in the folder, if there is one and that was asked for."""
        if self._folder.has_state and not resume:
            raise ValueError(
                f"the folder {self._folder.path} holds a training already: resume it, or choose another one"
            )
        if self._folder.has_state:
            self._load(self._folder.read_state())
        elif self._processes.is_first:
            self._folder.write_recipe(self._recipe)

    def _run_stage(self, stage: Stage) -> None:
        total = self._iterations(stage)
        if stage != self._stage:
            self._stage, self._done, self._optimizer_state = stage, 0, None
        if total == 0 or self._done == total:
            return
        is_first_with_crf = stage == "crf" or (stage == "joint" and not self._history.losses["crf"])
        if self._done == 0 and is_first_with_crf and self._recipe.search_images:
            self._choose_crf()
        network, crf = self._model.network, self._model.crf
        optimizer = StageOptimizer(
            network if stage != "crf" else None,
            crf if stage != "fcn" else None,
            self._recipe,
            self._recipe.joint_share if stage == "joint" else 1.0,
            torch.amp.GradScaler(self._processes.device.type, enabled=self._half == torch.float16),
        )
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
        pipeline = self._processes.parallel(Pipeline(self._model, stage, self._half))
        known = self._material.known_pairs(self._samples()).to(self._processes.device)
        with ThreadPoolExecutor(_READERS) as readers:
            coming = self._read(readers, self._done)
            while self._done < total:
                if self._cancel is not None and self._cancel():
                    self._save(optimizer)
                    raise Cancelled("cancelled")
                images, labels = stack([future.result() for future in coming])
                if self._done + 1 < total:
                    coming = self._read(readers, self._done + 1)
                loss = self._learn(pipeline, optimizer, images, labels, known, total)
                self._done += 1
                self._tell(stage, total, loss)
                is_last = self._done == total
                if is_last or self._done % self._recipe.evaluate_every == 0:
                    self._evaluate()
                if is_last and self._processes.is_first:
                    self._folder.write_model(stage, self._described())
                if is_last or self._done % self._recipe.save_every == 0:
                    self._save(optimizer)

    def _iterations(self, stage: Stage) -> int:
        recipe = self._recipe
        counts = (recipe.fcn_iterations, recipe.crf_iterations, recipe.joint_iterations)
        return dict(zip(STAGES, counts, strict=True))[stage]

    def _samples(self) -> tuple[Sample, ...]:
        """Return what the present stage learns from."""
        if self._stage == "joint" or not self._uses_crf or not self._material.held:
            return self._material.train
        return self._material.fit if self._stage == "fcn" else self._material.held

    def _batch(self) -> int:
        return self._recipe.batch if self._stage == "fcn" else self._recipe.crf_batch

    def _rng(self, purpose: int, *place: int) -> np.random.Generator:
        return np.random.default_rng([self._recipe.seed, STAGES.index(self._stage), purpose, *place])

    def _read(self, readers: ThreadPoolExecutor, iteration: int) -> list[Future[Any]]:
        """Begin to draw this process's windows of an iteration."""
        samples, batch = self._samples(), self._batch()
        futures = []
        for place in self._processes.mine(batch):
            epoch, number = divmod(iteration * batch + place, len(samples))
            sample = samples[int(self._rng(_ORDER, epoch).permutation(len(samples))[number])]
            futures.append(readers.submit(self._window, sample, self._rng(_DRAW, iteration, place)))
        return futures

    def _window(self, sample: Sample, rng: np.random.Generator) -> Any:
        image, labels = self._data.load(sample)
        return draw_window(
            image,
            labels,
            self._recipe.augmentation,
            rng,
            largest=self._model.config.preprocessing.long_side,
            keep_scale=self._stage != "fcn",
        )

    def _learn(
        self,
        pipeline: nn.Module,
        optimizer: StageOptimizer,
        images: Tensor,
        labels: Tensor,
        known: Tensor,
        total: int,
    ) -> float:
        """Do one iteration and return its loss, a mean over the labelled pixels of the whole batch."""
        device = self._processes.device
        images, labels = images.to(device), labels.to(device)
        self._model.network.train(self._stage != "crf")
        self._model.crf.train()
        pixels = self._weight[labels[labels != IGNORE]].sum()
        weight = float(self._processes.total(pixels))
        losses: list[Tensor] = []
        seed = int(self._rng(_DROPOUT, self._done, self._processes.rank).integers(2**31))

        def begin() -> None:
            losses.clear()
            optimizer.forget()
            torch.manual_seed(seed)

        def learn(part: slice) -> None:
            sums = F.cross_entropy(
                pipeline(images[part]), labels[part], self._weight, ignore_index=IGNORE, reduction="sum"
            )
            losses.append(sums.detach() / weight)
            # data parallelism averages over the processes, where the loss is a sum over them
            optimizer.backward(sums / weight * self._processes.size)

        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            self._portions.run(len(images), begin, learn)
        value = float(self._processes.total(torch.stack(losses).sum()))
        stays_finite = math.isfinite(value)
        if stays_finite:
            for matrix in self._model.crf.parameters():
                if matrix.grad is not None and matrix.ndim >= 2:
                    matrix.grad *= known
            progress = self._done / total
            warm = min(1.0, (self._done + 1) / max(self._recipe.warm_up, 1))
            stays_finite = optimizer.step(warm * (1 - progress) ** 0.9)
        if not stays_finite:
            raise DivergedError(self._why_diverged())
        return value

    def _why_diverged(self) -> str:
        rate = "crf_learning_rate" if self._stage == "crf" else "learning_rate"
        return (
            f"the loss was no longer a number in iteration {self._done + 1} of stage {self._stage}, so "
            f"training stopped; {self._folder.path} keeps what was reached before: start again with a lower "
            f"{rate} than {getattr(self._recipe, rate):g}"
        )

    def _tell(self, stage: Stage, total: int, loss: float) -> None:
        self._history.losses[stage].append(loss)
        if self._processes.is_first:
            self._folder.log(self._history.step(stage, self._done), {f"loss/{stage}": loss})
            if self._progress is not None:
                self._progress(Iteration(stage, self._done, total, loss, self._portions.limit))

    def _choose_crf(self) -> None:
        """Give the model a new CRF with the widths that help most on some held-out images."""
        pool = self._material.held or self._material.train
        samples = spread(pool, self._recipe.search_images)
        self._model.network.eval()
        found = search_widths(self._model, self._data, samples, self._recipe.crf, self._cancel)
        chosen = self._processes.from_first(  # the others have found the same, but for rounding
            torch.tensor(
                [found.theta_alpha, found.theta_beta, found.bilateral_weight],
                dtype=torch.float64,
                device=self._processes.device,
            )
        ).tolist()
        widths = dict(zip(("theta_alpha", "theta_beta", "bilateral_weight"), chosen, strict=True))
        self._set_crf(self._recipe.crf.model_copy(update=widths))

    def _set_crf(self, config: CrfConfig) -> None:
        crf = CrfRnn(self._data.n_labels, config).to(self._processes.device)
        self._model = self._model.with_crf(crf)

    def _evaluate(self) -> None:
        """Score the model on the validation images and keep it if it is the best."""
        samples = spread(self._data.val, self._recipe.evaluate_images or len(self._data.val))
        if samples:
            self._model.network.eval()
            self._model.crf.eval()
            before = after = Score.nothing(self._data.n_labels)
            mine = [samples[place] for place in self._processes.mine(len(samples))]
            for judged in judge(self._model, self._data, mine, crf=self._stage != "fcn"):
                before += Score.of(judged.before, judged.truth, self._data.n_labels)
                after += Score.of(judged.after, judged.truth, self._data.n_labels)
            before, after = self._summed(before), self._summed(after)
            entry = ScoreEntry(self._stage, self._done, before.summary(), after.summary())
            self._history.scores.append(entry)
            merit = metrics.miou(after.confusion)
            is_best = not math.isnan(merit) and (self._best is None or merit > self._best)
            if is_best:
                self._best = merit
            if self._processes.is_first:
                step = self._history.step(self._stage, self._done)
                for when, score in (("before CRF", entry.before), ("after CRF", entry.after)):
                    self._folder.log(step, {f"{name}/{when}": value for name, value in score.items()})
                if is_best:
                    self._folder.write_model("best", self._described())
        if self._processes.is_first:
            self._folder.write_model("last", self._described())
            self._folder.write_history(self._history)

    def _summed(self, score: Score) -> Score:
        parts = (
            torch.from_numpy(x).to(self._processes.device) for x in (score.confusion, score.band, score.rims)
        )
        return Score(*(self._processes.total(part).cpu().numpy() for part in parts))

    def _described(self) -> SegmentationModel:
        """Return the model with a word on where it comes from."""
        model = self._model
        trained = {
            "title": f"Trained on {self._data.folder.resolve().name}",
            "trained_on": self._data.folder.resolve().name,
            "stage": self._stage,
            "iterations": {stage: len(losses) for stage, losses in self._history.losses.items()},
            "recipe": self._recipe.model_dump(mode="json"),
        }
        return SegmentationModel(
            model.config,
            model.network,
            model.crf,
            model.provenance | trained,
            model.panel,
            model.higher_order,
        )

    def _save(self, optimizer: StageOptimizer) -> None:
        if not self._processes.is_first:
            return
        self._folder.write_state(
            {
                "recipe": self._recipe.model_dump_json(),
                "data": fingerprint(self._data),
                "stage": self._stage,
                "done": self._done,
                "network": self._model.network.state_dict(),
                "crf": self._model.crf.state_dict(),
                "crf_config": self._model.crf.config.model_dump_json(),
                "optimizer": optimizer.state_dict(),
                "history": json.dumps(self._history.as_dict()),
                "best": self._best,
            }
        )

    def _load(self, state: dict[str, Any]) -> None:
        """Go on from a state, if it belongs to this recipe and these data."""
        try:
            theirs = Recipe.model_validate_json(state["recipe"]).model_dump()
        except ValidationError:
            raise ValueError(
                f"the training in {self._folder.path} was begun with the settings of another version: start "
                "again in another folder"
            ) from None
        ours = self._recipe.model_dump()
        other = [
            f"{name} ({theirs[name]} there, {ours[name]} here)" for name in ours if ours[name] != theirs[name]
        ]
        if other:
            raise ValueError(
                f"the training in {self._folder.path} has another recipe, it differs in {', '.join(other)}: "
                "resume it with its own recipe.toml, or choose another folder"
            )
        if state["data"] != fingerprint(self._data):
            raise ValueError(
                f"the training in {self._folder.path} is on other data: other images or classes than in "
                f"{self._data.folder}"
            )
        self._set_crf(CrfConfig.model_validate_json(state["crf_config"]))
        self._model.network.load_state_dict(state["network"])
        self._model.crf.load_state_dict(state["crf"])
        self._stage, self._done = state["stage"], state["done"]
        self._optimizer_state = state["optimizer"]
        self._history = History.from_dict(json.loads(state["history"]))
        self._best = state["best"]
