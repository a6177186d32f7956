"""``napari-crfasrnn convert``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from foreign_files import pytorch_state, random_weights, write_caffe_v1, write_fine_tuned_caffe
from typer.testing import CliRunner

from napari_crfasrnn.classes import class_table
from napari_crfasrnn.cli import app
from napari_crfasrnn.config import ModelConfig
from napari_crfasrnn.importing import import_model
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.zoo import load_model


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def test_a_converted_model_is_the_imported_one(tmp_path: Path) -> None:
    source, output = tmp_path / "m.caffemodel", tmp_path / "m.safetensors"
    write_caffe_v1(source, random_weights())
    done = run(source, output, "--title", "CRF-RNN", "--licence", "non-commercial")
    assert done.exit_code == 0, done.output
    assert "inference1[2]  -> crf.compatibility  21×21" in done.stdout
    assert f"{source} -> {output}" in done.stdout
    assert done.stderr == ""
    converted, imported = load_model(output), import_model(source).model
    for name, tensor in imported.network.state_dict().items():
        assert torch.equal(converted.network.state_dict()[name], tensor)
    assert torch.equal(converted.crf.compatibility, imported.crf.compatibility)
    assert converted.config == imported.config
    assert converted.provenance["title"] == "CRF-RNN"
    assert converted.provenance["licence"] == "non-commercial"


def test_a_file_that_is_there_is_replaced_only_when_asked_to(tmp_path: Path) -> None:
    source, output = tmp_path / "m.caffemodel", tmp_path / "m.safetensors"
    write_caffe_v1(source, random_weights())
    output.write_text("precious")
    done = run(source, output)
    assert done.exit_code == 2
    assert "is there already: name another file" in " ".join(done.stderr.split())
    assert output.read_text() == "precious"
    assert run(source, output, "--overwrite").exit_code == 0
    assert load_model(output).n_labels == 21


def test_json_holds_the_report(tmp_path: Path) -> None:
    write_fine_tuned_caffe(tmp_path / "m.caffemodel", random_weights(n_labels=4))
    names = "background, bird,bottle,chair"
    done = run(tmp_path / "m.caffemodel", tmp_path / "o.safetensors", "--json", "--classes", names)
    about = json.loads(done.stdout)
    assert about["output"] == str(tmp_path / "o.safetensors")
    assert about["complete"] is True
    assert {"source": "score-fr-ft[1]", "ours": "network.score_fr.bias", "shape": [4]} in about["matched"]
    assert [c.name for c in load_model(tmp_path / "o.safetensors").classes][1:] == ["bird", "bottle", "chair"]


def test_what_does_not_match_is_an_error_unless_allowed(tmp_path: Path) -> None:
    state = pytorch_state(random_weights())
    del state["fc7.bias"]
    torch.save(state, tmp_path / "m.pth")
    output = tmp_path / "o.safetensors"
    done = run(tmp_path / "m.pth", output, "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["missing"] == ["network.fc7.bias"]
    assert done.stderr.startswith("Error: the weights in")
    assert done.stderr.count("\n") == 1
    assert not output.exists()
    done = run(tmp_path / "m.pth", output, "--allow-partial")
    assert done.exit_code == 0
    assert "missing: network.fc7.bias" in done.stdout
    assert "Note: the import is partial: 42 of 43 tensors match" in done.stderr
    assert output.exists()


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("m.pth", "o.pth", "OUT must end in .safetensors, got 'o.pth'"),
        ("ours.safetensors", "o.safetensors", "got 'ours.safetensors', which is one of ours already"),
        ("cut.safetensors", "o.safetensors", "cut.safetensors"),
        ("nothing.safetensors", "o.safetensors", "nothing.safetensors"),
        ("nothing.pth", "o.safetensors", "there is no model file at"),
        ("m.pth", "nowhere/o.safetensors", "the model cannot be saved"),
    ],
)
def test_bad_arguments_are_one_sentence(tmp_path: Path, source: str, output: str, message: str) -> None:
    torch.save(pytorch_state(random_weights()), tmp_path / "m.pth")
    ours = SegmentationModel(ModelConfig(classes=class_table(["a", "b"])))
    ours.save(tmp_path / "ours.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "ours.safetensors").read_bytes()[:1000])
    done = run(tmp_path / source, tmp_path / output)
    assert done.exit_code == 2
    assert ("ours already" in done.stderr) == (source == "ours.safetensors")
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    if "nowhere" not in output:
        assert message in done.stderr
