from __future__ import annotations

from pathlib import Path

import pytest

from napari_crfasrnn.checkpoint import CheckpointError
from napari_crfasrnn.classes import class_table
from napari_crfasrnn.config import ModelConfig
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.zoo import MODELS_VARIABLE, list_models, load_model, user_models_dir


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models folder for this test."""
    models = tmp_path / "models"
    monkeypatch.setenv(MODELS_VARIABLE, str(models))
    return models


def small_model(**provenance: str) -> SegmentationModel:
    config = ModelConfig(architecture="fcn-8s", width=1 / 64, classes=class_table(["soil", "crop"]))
    return SegmentationModel(config, provenance=provenance)


def test_the_starter_is_always_there(folder: Path) -> None:
    entries = list_models()
    assert [entry.name for entry in entries] == [
        "starter", "em-tissue", "nuclei-fluorescence", "nuclei-stained", "road-scenes",
    ]  # fmt: skip
    assert all(entry.shipped and entry.problem is None for entry in entries)
    assert entries[0].shipped
    assert entries[0].problem is None
    assert entries[0].class_names[:2] == ("background", "aeroplane")
    assert "research" in entries[0].licence
    assert load_model("starter").n_labels == 21


def test_own_models_are_listed_by_file_name(folder: Path) -> None:
    folder.mkdir()
    small_model(title="Crops in soil", licence="CC0").save(folder / "crops.safetensors")
    small_model().save(folder / "bare.safetensors")
    (folder / "notes.txt").write_text("not a model")
    bare, crops = (entry for entry in list_models() if not entry.shipped)
    assert (crops.name, crops.title, crops.licence) == ("crops", "Crops in soil", "CC0")
    assert crops.class_names == ("soil", "crop")
    assert (bare.title, bare.licence) == ("bare", "not stated")
    assert load_model("crops").provenance["title"] == "Crops in soil"


def test_a_broken_file_is_listed_with_its_problem(folder: Path) -> None:
    folder.mkdir()
    (folder / "broken.safetensors").write_bytes(b"no")
    entry = next(entry for entry in list_models() if entry.name == "broken")
    assert entry.problem is not None
    assert "cut short" in entry.problem
    with pytest.raises(CheckpointError, match="cut short"):
        load_model("broken")


def test_an_own_starter_does_not_hide_the_shipped_one(folder: Path) -> None:
    folder.mkdir()
    small_model().save(folder / "starter.safetensors")
    assert [entry.shipped for entry in list_models() if entry.name == "starter"] == [True]
    assert all(entry.shipped for entry in list_models())
    assert load_model("starter").n_labels == 21
    assert load_model(folder / "starter.safetensors").n_labels == 2


@pytest.mark.parametrize("as_text", [True, False])
def test_a_file_is_loaded_by_its_path(folder: Path, tmp_path: Path, as_text: bool) -> None:
    path = tmp_path / "elsewhere.safetensors"
    small_model().save(path)
    assert load_model(str(path) if as_text else path).n_labels == 2


def test_an_unknown_name_says_what_to_do(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"got .stater.; the names are: starter, .*scenes; to add") as caught:
        load_model("stater")
    assert str(folder) in str(caught.value)


def test_without_the_variable_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODELS_VARIABLE, raising=False)
    assert user_models_dir().name == "models"
    assert "napari-crfasrnn" in user_models_dir().parts
