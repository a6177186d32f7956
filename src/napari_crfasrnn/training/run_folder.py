"""The folder of a training: its state, its models, its logs, each written whole or not at all.

======================  =====================================================================================
``state.pt``            where to go on: weights, optimiser, history; read as data only, never executed
``recipe.toml``         the settings
``best.safetensors``    the model with the best mean IoU on the validation images
``last.safetensors``    the model as it was at the last evaluation
``STAGE.safetensors``   the model at the end of a stage: fcn, crf, joint
``history.json``        losses and scores
``curves.png``          the same, drawn (with matplotlib)
``tensorboard/``        the same for TensorBoard (with tensorboardX)
``training.lock``       empty; locked while a training writes here
======================  =====================================================================================
"""

from __future__ import annotations

import json
import math
import os
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tomli_w
import torch

from napari_crfasrnn.checkpoint import save_checkpoint
from napari_crfasrnn.config import Recipe
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.project.database import WriterLock
from napari_crfasrnn.training.figures import new_figure, save_figure
from napari_crfasrnn.training.history import STAGES, History

STATE_FORMAT = 1


class RunFolder:
    """Where a training keeps what it has reached.

    Parameters
    ----------
    path
        The folder; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: Any = None
        self._lock: WriterLock | None = None

    def claim(self) -> None:
        """Keep other trainings from writing here until `close`; the folder is made if it is not there.

        Raises
        ------
        ValueError
            If another training writes here, or nobody can.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock, reason = WriterLock.acquire(self.path, "training.lock")
        if reason is not None:
            raise ValueError(
                f"output must be a folder that this training alone writes to, but for {self.path} {reason}: "
                "wait for the other training, or choose another folder"
            )

    @property
    def has_state(self) -> bool:
        """Whether a training was here before."""
        return (self.path / "state.pt").exists()

    def read_state(self) -> dict[str, Any]:
        """Return the last state.

        Raises
        ------
        ValueError
            If the file is damaged, or another version wrote it.
        """
        path = self.path / "state.pt"
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
            raise ValueError(
                f"the state of the training in {path} is damaged: start again in another folder"
            ) from None
        if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
            raise ValueError(f"{path} is not the state of a training that this version can go on with")
        return state

    def write_state(self, state: dict[str, Any]) -> None:
        """Replace the state in one step; a kill leaves the old one or the new one."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / ".state.part"
        with temporary.open("wb") as file:
            torch.save({"format": STATE_FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / "state.pt")

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the settings as TOML, from which `Recipe.from_toml` makes the same ones."""
        settings = recipe.model_dump(mode="json", exclude_none=True)
        self._write_text("recipe.toml", tomli_w.dumps(settings))

    def write_model(self, name: str, model: SegmentationModel) -> Path:
        """Write a model under a name and return its file."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / f"{name}.safetensors"
        save_checkpoint(model, path)
        return path

    def write_history(self, history: History) -> None:
        """Write losses and scores, and draw them where matplotlib is installed."""
        self._write_text("history.json", json.dumps(history.as_dict()))
        if find_spec("matplotlib") is not None:
            _draw(history, self.path / "curves.png")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add scalars to the logs for TensorBoard, where tensorboardX is installed.

        Parameters
        ----------
        step
            Counted over all stages. The first one of a run says where it goes on: later ones of an
            earlier run no longer count.
        values
            Name → value.
        """
        if find_spec("tensorboardX") is None:
            return
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
        for name, value in values.items():
            if math.isfinite(value):  # a class that no image shows has no score
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Finish the logs, and let others write here."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _write_text(self, name: str, text: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f".{name}.part"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.path / name)


def _draw(history: History, path: Path) -> None:
    figure = new_figure(10, 4)
    losses, scores = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    first = 0
    for number, stage in enumerate(STAGES):
        values = history.losses[stage]
        if values:
            mean, smooth = values[0], []
            for value in values:
                mean += 0.05 * (value - mean)
                smooth.append(mean)
            steps = range(first + 1, first + len(values) + 1)
            losses.plot(steps, values, color=f"C{number}", alpha=0.25, linewidth=0.7)
            losses.plot(steps, smooth, color=f"C{number}", label=stage)
        first += len(values)
    for name, style in (("before", "o:"), ("after", "o-")):
        scores.plot(
            [history.step(entry.stage, entry.iteration) for entry in history.scores],
            [getattr(entry, name)["mean IoU"] for entry in history.scores],
            style,
            markersize=3,
            label=f"mean IoU {name} the CRF",
        )
    losses.set(xlabel="iteration", ylabel="loss", title="training")
    scores.set(xlabel="iteration", ylabel="mean IoU", title="validation images")
    for axes in (losses, scores):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    save_figure(figure, path)
