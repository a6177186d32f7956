from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from napari_crfasrnn.training.adamw import AdamW


def groups_of(weights: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": weights[:2], "lr": 0.05}, {"params": weights[2:], "lr": 0.002}]


def loss_of(weights: list[nn.Parameter], x: Tensor) -> Tensor:
    first, second, third = weights
    return ((x @ first + second).relu() @ third).square().mean()


@given(
    seed=st.integers(0, 2**31),
    weight_decay=st.sampled_from([0.0, 0.1]),
    beta2=st.sampled_from([0.9, 0.99, 0.999]),
    max_norm=st.sampled_from([math.inf, 0.5]),
)
def test_steps_are_those_of_torch(seed: int, weight_decay: float, beta2: float, max_norm: float) -> None:
    random = torch.Generator().manual_seed(seed)
    start = [torch.randn(shape, generator=random) for shape in ((4, 3), (3,), (3, 2))]
    ours, theirs = ([nn.Parameter(each.clone()) for each in start] for _ in range(2))
    settings = {"betas": (0.9, beta2), "weight_decay": weight_decay}
    optimizer = AdamW(groups_of(ours), max_norm=max_norm, **settings)  # type: ignore[arg-type]
    truth = torch.optim.AdamW(groups_of(theirs), **settings)  # type: ignore[arg-type]
    for number in range(6):
        x = torch.randn(5, 4, generator=random)
        for group in (*optimizer.param_groups, *truth.param_groups):
            group["lr"] *= 1 + 0.1 * number
        optimizer.zero_grad()
        loss_of(ours, x).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        truth.zero_grad()
        loss_of(theirs, x).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(theirs, max_norm)
        truth.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_a_weight_without_gradient_stays() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = AdamW([{"params": [used, unused], "lr": 0.1}])
    (2 * used).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert torch.allclose(used, torch.full((2,), 0.9))
    assert torch.equal(unused, torch.ones(3))


ROUND = """
import sys
import numpy as np
from napari_crfasrnn import Project, TrainConfig, fine_tune, load_model

model = load_model("starter")
with Project.create(sys.argv[1], [spec.name for spec in model.classes]) as project:
    labels = np.full((96, 96), 255, np.uint8)
    labels[:40], labels[60:] = 0, 15
    project.add(np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8), labels=labels)
    report = fine_tune(model, project, TrainConfig(max_iterations=2, crf_iterations=1, seconds=None))
print(len(report.history), "torch._dynamo" in sys.modules)
"""


def test_a_round_does_not_import_the_compiler_of_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ROUND, str(tmp_path / "project")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "False"]
