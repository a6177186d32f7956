from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from napari_crfasrnn.checkpoint import (
    CheckpointError,
    load_checkpoint,
    read_info,
    round_to_half,
    save_checkpoint,
)
from napari_crfasrnn.classes import ClassSpec, class_table
from napari_crfasrnn.config import CrfConfig, ModelConfig, Preprocessing
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.shared_encoder import encoder_hash
from napari_crfasrnn.zoo import load_model

KEY = "napari-crfasrnn"


def small_model(n_labels: int = 3) -> SegmentationModel:
    """A model of a few hundred kilobytes with weights that are not its initial ones."""
    config = ModelConfig(
        architecture="fcn-8s",
        width=1 / 32,
        classes=class_table([f"class {i}" for i in range(n_labels)]),
        preprocessing=Preprocessing(mean=(1, 2, 3), std=(4, 5, 6), channel_order="bgr", long_side=64),
        crf=CrfConfig(theta_alpha=7.5, n_iterations=2),
    )
    generator = torch.Generator().manual_seed(0)
    model = SegmentationModel(config, provenance={"title": "Fjäll ☃", "rounds": [1, 2]})
    with torch.no_grad():
        for p in [*model.network.parameters(), *model.crf.parameters()]:
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return small_model()


@pytest.fixture
def saved(model: SegmentationModel, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path)
    return path


def rewrite(path: Path, change: Any) -> None:
    """Write a checkpoint again after ``change(tensors, about)`` has had its way with it."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(tensors, about)
    safetensors.torch.save_file(tensors, path, {KEY: json.dumps(about)})


def predict(model: SegmentationModel) -> torch.Tensor:
    image = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(1)) * 255
    with torch.inference_mode():
        return model.crf(model.logits(image), model.crf_image(image))


class TestRoundTrip:
    def test_predictions_are_identical(self, model: SegmentationModel, saved: Path) -> None:
        assert torch.equal(predict(load_checkpoint(saved)), predict(model))

    def test_settings_and_provenance_come_back(self, model: SegmentationModel, saved: Path) -> None:
        loaded = load_checkpoint(saved)
        assert loaded.config == model.config
        assert loaded.crf.config == model.config.crf
        assert loaded.provenance == {"title": "Fjäll ☃", "rounds": [1, 2]}
        assert read_info(saved).config == model.config
        assert not loaded.network.training
        assert all(p.requires_grad for p in loaded.network.parameters())

    def test_the_small_encoder_too(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = SegmentationModel(ModelConfig(classes=class_table(["a", "b"])))
        round_to_half(model.network)
        model.save(tmp_path / "lite.safetensors")
        assert (tmp_path / "lite.safetensors").stat().st_size < 6_500_000
        assert torch.equal(predict(load_checkpoint(tmp_path / "lite.safetensors")), predict(model))

    @settings(max_examples=10, deadline=None)
    @given(
        names=st.lists(
            st.text(min_size=1).filter(lambda s: s == s.strip()), min_size=1, max_size=4, unique=True
        ),
        color=st.tuples(*[st.integers(0, 255)] * 3),
    )
    def test_any_class_table(
        self, tmp_path_factory: pytest.TempPathFactory, names: list[str], color: tuple[int, int, int]
    ) -> None:
        table = tuple(ClassSpec(name=name, color=color) for name in names)
        path = tmp_path_factory.mktemp("table") / "model.safetensors"
        SegmentationModel(ModelConfig(architecture="fcn-8s", width=1 / 64, classes=table)).save(path)
        assert load_checkpoint(path).classes == table

    def test_weights_that_fit_take_16_bits(self, model: SegmentationModel, tmp_path: Path) -> None:
        rounded = model.copy()
        round_to_half(rounded.network)
        for kind in (model, rounded):
            kind.save(tmp_path / "m.safetensors")
            with safe_open(tmp_path / "m.safetensors", "pt") as file:
                dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
            expected = torch.float16 if kind is rounded else torch.float32
            assert dtypes["network.conv1_1.weight"] == expected
            assert dtypes["crf.compatibility"] == torch.float32
        assert torch.equal(predict(load_checkpoint(tmp_path / "m.safetensors")), predict(rounded))

    def test_a_loaded_model_outlives_its_file(self, saved: Path) -> None:
        loaded = load_checkpoint(saved)
        before = predict(loaded)
        saved.write_bytes(b"\xff" * saved.stat().st_size)
        assert torch.equal(predict(loaded), before)


def lacks(tensors: dict[str, torch.Tensor], _about: Any) -> None:
    del tensors["network.fc7.bias"]


def has_more(tensors: dict[str, torch.Tensor], _about: Any) -> None:
    tensors["network.surplus"] = torch.zeros(1)


def has_another_shape(tensors: dict[str, torch.Tensor], _about: Any) -> None:
    tensors["crf.compatibility"] = torch.zeros(5, 5)


def is_not_finite(tensors: dict[str, torch.Tensor], _about: Any) -> None:
    tensors["network.fc6.bias"][0] = float("nan")


def is_of_tomorrow(_tensors: Any, about: dict[str, Any]) -> None:
    about["format_version"] = 99


def is_of_another_architecture(_tensors: Any, about: dict[str, Any]) -> None:
    about["config"]["architecture"] = "transformer"


def has_no_classes(_tensors: Any, about: dict[str, Any]) -> None:
    about["config"]["classes"] = []


def has_no_settings(_tensors: Any, about: dict[str, Any]) -> None:
    del about["config"]


class TestBadFiles:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lacks, r"44 of 45 tensors match; 1 missing: network\.fc7\.bias$"),
            (has_more, r"45 of 45 tensors match; 1 unexpected: network\.surplus$"),
            (has_another_shape, r"1 of another shape: crf\.compatibility \(is 5×5, should be 3×3\)$"),
            (is_not_finite, r"damaged: 1 not finite: network\.fc6\.bias$"),
            (is_of_tomorrow, "has format version 99, this program reads version 1"),
            (
                is_of_another_architecture,
                "architecture 'transformer', this program knows fcn-lite and fcn-fine and fcn-8s",
            ),
            (has_no_classes, "settings .* not valid: classes: .*at least one class"),
            (has_no_settings, "description .* is damaged"),
        ],
    )
    def test_one_sentence_says_what_is_wrong(self, saved: Path, change: Any, message: str) -> None:
        rewrite(saved, change)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_checkpoint(saved)
        assert "\n" not in str(caught.value)
        assert str(saved) in str(caught.value)

    def test_many_missing_tensors_are_counted_not_listed(self, saved: Path) -> None:
        def keep_only_the_crf(tensors: dict[str, torch.Tensor], _about: Any) -> None:
            for name in [name for name in tensors if name.startswith("network.")]:
                del tensors[name]

        rewrite(saved, keep_only_the_crf)
        with pytest.raises(CheckpointError, match=r"5 of 45 tensors match; 40 missing: .* and 36 more"):
            load_checkpoint(saved)

    @settings(max_examples=25, deadline=None)
    @given(share=st.floats(0, 1, exclude_max=True))
    def test_a_file_cut_short_anywhere(self, tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
        path = tmp_path_factory.mktemp("cut") / "model.safetensors"
        whole = _small_file()
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError, match="cut short or of another kind"):
            load_checkpoint(path)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"PK\x03\x04" + b"\0" * 100,
            struct.pack("<Q", 2**62) + b"{}",
            b"\0" * 4096,
        ],
    )
    def test_files_of_other_kinds(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "other.safetensors"
        path.write_bytes(content)
        for read in (load_checkpoint, read_info):
            with pytest.raises(CheckpointError, match="of another kind"):
                read(path)

    def test_a_foreign_safetensors_file(self, tmp_path: Path) -> None:
        path = tmp_path / "foreign.safetensors"
        safetensors.torch.save_file({"weight": torch.zeros(2)}, path, {"format": "pt"})
        with pytest.raises(CheckpointError, match="not one that napari-crfasrnn has written"):
            load_checkpoint(path)

    def test_no_file_and_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="there is no model file at"):
            load_checkpoint(tmp_path / "nothing.safetensors")
        with pytest.raises(CheckpointError, match="is a folder"):
            load_checkpoint(tmp_path)


_cached: list[bytes] = []


def _small_file() -> bytes:
    if not _cached:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            small_model().save(path)
            _cached.append(path.read_bytes())
    return _cached[0]


@pytest.fixture
def head() -> SegmentationModel:
    """A small model on the encoder of the starter."""
    config = ModelConfig(architecture="fcn-fine", classes=class_table(["soil", "crop"]))
    head = SegmentationModel(config)
    encoder = load_model("starter").network.encoder
    head.network.encoder.load_state_dict(encoder.state_dict())
    return head


class TestSharedEncoder:
    def test_comes_back_from_a_small_file(self, head: SegmentationModel, tmp_path: Path) -> None:
        path = tmp_path / "head.safetensors"
        save_checkpoint(head, path, borrow_encoder=True)
        assert path.stat().st_size < 1_000_000
        loaded = load_checkpoint(path)
        assert torch.equal(predict(loaded), predict(head))
        assert read_info(path).shared_encoder is not None

    def test_whoever_saves_it_again_has_all_of_it(self, head: SegmentationModel, tmp_path: Path) -> None:
        path, again = tmp_path / "head.safetensors", tmp_path / "again.safetensors"
        save_checkpoint(head, path, borrow_encoder=True)
        load_checkpoint(path).save(again)
        assert again.stat().st_size > 5_000_000
        assert read_info(again).shared_encoder is None
        assert torch.equal(predict(load_checkpoint(again)), predict(head))

    def test_another_encoder_is_not_left_out(self, head: SegmentationModel, tmp_path: Path) -> None:
        with torch.no_grad():
            head.network.encoder.stem.weight[0, 0, 0, 0] += 1
        with pytest.raises(ValueError, match="encoder of the starter, got another one"):
            save_checkpoint(head, tmp_path / "head.safetensors", borrow_encoder=True)
        assert not list(tmp_path.iterdir())

    def test_blocks_that_no_head_reads_do_not_matter(self, head: SegmentationModel, tmp_path: Path) -> None:
        with torch.no_grad():
            head.network.encoder.blocks[11].project.bias += 1
        save_checkpoint(head, tmp_path / "head.safetensors", borrow_encoder=True)
        assert torch.equal(predict(load_checkpoint(tmp_path / "head.safetensors")), predict(head))

    def test_a_head_of_another_encoder_is_refused(self, head: SegmentationModel, tmp_path: Path) -> None:
        path = tmp_path / "head.safetensors"
        save_checkpoint(head, path, borrow_encoder=True)

        def learnt_elsewhere(_tensors: Any, about: dict[str, Any]) -> None:
            about["shared_encoder"]["sha256"] = "0" * 64

        rewrite(path, learnt_elsewhere)
        with pytest.raises(CheckpointError, match="goes with the encoder of another starter"):
            load_checkpoint(path)

    def test_the_sign_of_a_zero_is_not_told_apart(self) -> None:
        encoder = {
            "network.encoder.stem.weight": torch.tensor([0.0, -1.0]),
            "network.score.bias": torch.ones(1),
        }
        minus = {**encoder, "network.encoder.stem.weight": torch.tensor([-0.0, -1.0])}
        other = {**encoder, "network.encoder.stem.weight": torch.tensor([0.0, -1.5])}
        assert encoder_hash(minus, 1) == encoder_hash(encoder, 1) != encoder_hash(other, 1)

    def test_the_original_network_has_none(self, model: SegmentationModel, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="networks on EfficientNet-Lite0, got a Fcn8s"):
            save_checkpoint(model, tmp_path / "model.safetensors", borrow_encoder=True)


class TestSaving:
    def test_a_full_disk_leaves_the_old_file(
        self, model: SegmentationModel, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = saved.read_bytes()

        def full(_handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        other = model.copy()
        other.provenance["title"] = "never written"
        with pytest.raises(
            OSError, match="cannot be saved, No space left on device; the file that was"
        ) as caught:
            other.save(saved)
        assert caught.value.errno == errno.ENOSPC
        assert saved.read_bytes() == before
        assert [p.name for p in saved.parent.iterdir()] == ["model.safetensors"]

    def test_a_really_full_disk(self, model: SegmentationModel) -> None:
        """Some systems offer a file that is always full; the rename must not happen there either."""
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        with pytest.raises(OSError, match="cannot be saved"):
            model.save(Path("/dev/full/model.safetensors"))

    def test_a_missing_folder(self, model: SegmentationModel, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="the model cannot be saved, No such file or directory"):
            model.save(tmp_path / "nowhere" / "model.safetensors")

    def test_another_suffix_is_refused(self, model: SegmentationModel, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"path must end in \.safetensors, got 'model\.pth'"):
            model.save(tmp_path / "model.pth")

    def test_weights_that_are_not_finite_are_refused(self, model: SegmentationModel, saved: Path) -> None:
        before = saved.read_bytes()
        broken = model.copy()
        with torch.no_grad():
            broken.crf.compatibility[0, 0] = float("inf")
        with pytest.raises(ValueError, match=r"not finite cannot be saved: crf\.compatibility"):
            broken.save(saved)
        assert saved.read_bytes() == before

    def test_provenance_must_be_json(self, model: SegmentationModel, saved: Path) -> None:
        broken = model.copy()
        broken.provenance["title"] = object()
        with pytest.raises(ValueError, match="what JSON can"):
            broken.save(saved)

    @pytest.mark.skipif(os.name == "nt", reason="rights are another thing on Windows")
    def test_others_may_read_the_file(self, model: SegmentationModel, tmp_path: Path) -> None:
        old = os.umask(0o022)
        try:
            model.save(tmp_path / "model.safetensors")
        finally:
            os.umask(old)
        assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644
