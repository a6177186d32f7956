from __future__ import annotations

import pytest
from pydantic import ValidationError

from napari_crfasrnn.config import CrfConfig, ModelConfig, Preprocessing, TrainConfig


def test_bare_crf_defaults_are_the_original_ones() -> None:
    config = CrfConfig()
    assert config == CrfConfig.original()
    assert (config.theta_alpha, config.theta_beta, config.theta_gamma) == (160, 3, 3)
    assert (config.spatial_weight, config.bilateral_weight) == (3, 5)
    assert (config.n_iterations, config.n_iterations_train, config.normalization) == (10, 5, "after")
    assert (config.unary_scale, config.output_scale) == (1, 1)


@pytest.mark.parametrize(
    "model", [CrfConfig(), CrfConfig.starter(), Preprocessing.vgg(), ModelConfig(), TrainConfig()]
)
def test_json_round_trip(model: CrfConfig | Preprocessing | ModelConfig | TrainConfig) -> None:
    assert type(model).model_validate_json(model.model_dump_json()) == model


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"theta_alpha": 0}, "theta_alpha"),
        ({"theta_beta": float("nan")}, "theta_beta"),
        ({"n_iterations": 0}, "n_iterations"),
        ({"normalization": "sideways"}, "normalization"),
        ({"treshold": 2}, "treshold"),
    ],
)
def test_bad_values_name_the_field(kwargs: dict[str, object], name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        CrfConfig(**kwargs)  # type: ignore[arg-type]


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CrfConfig().theta_alpha = 3.0  # type: ignore[misc]


def test_model_without_classes_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least one class"):
        ModelConfig(classes=())
