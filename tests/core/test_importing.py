"""Weights of the original systems: every route gives the same model, and no trap of a layout goes unseen."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import (
    CONVOLUTIONS,
    Weights,
    caffe_messages,
    caffe_parameters,
    keras_parameters,
    legacy_shape,
    matconvnet_parameters,
    pytorch_name,
    pytorch_state,
    random_weights,
    write_caffe_v1,
    write_caffe_v2,
    write_fine_tuned_caffe,
    write_keras,
    write_matconvnet,
    write_old_pytorch,
    write_pytorch,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_crfasrnn.checkpoint import CheckpointError, load_checkpoint
from napari_crfasrnn.classes import VOC_CLASSES
from napari_crfasrnn.config import CrfConfig, ModelConfig, Preprocessing
from napari_crfasrnn.importing import ImportMismatchError, file_format, import_model
from napari_crfasrnn.importing.caffe_schema import net_parameter
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.zoo import load_model

Writer = Callable[[Path, Weights], None]

WITH_CRF: dict[str, tuple[str, str, Writer]] = {
    "pytorch": ("pytorch", "crfasrnn_weights.pth", write_pytorch),
    "pytorch before 1.6": ("pytorch", "crfasrnn_weights.pth", write_old_pytorch),
    "caffe v1": ("caffe", "TVG_CRFRNN_COCO_VOC.caffemodel", write_caffe_v1),
    "caffe v2": ("caffe", "new.caffemodel", write_caffe_v2),
    "caffe, not packed": ("caffe", "loose.caffemodel", lambda p, w: write_caffe_v2(p, w, packed=False)),
    "caffe, fine-tuned": ("caffe", "train_iter_1000.caffemodel", write_fine_tuned_caffe),
    "keras": ("keras", "crfrnn_keras_model.h5", write_keras),
    "keras, whole model": ("keras", "model.h5", lambda p, w: write_keras(p, w, root="model_weights")),
    "keras 1": ("keras", "old.h5", lambda p, w: write_keras(p, w, keras_1=True)),
}  # fmt: skip
FCN_ONLY: dict[str, tuple[str, str, Writer]] = {
    "matconvnet": ("matconvnet", "pascal-fcn8s-tvg-dag.mat", write_matconvnet),
    "matconvnet, names of today": (
        "matconvnet",
        "dag.mat",
        lambda p, w: write_matconvnet(p, w, endings=("_filter", "_bias")),
    ),
    "matconvnet, one variable": ("matconvnet", "n.mat", lambda p, w: write_matconvnet(p, w, inside_net=True)),
}  # fmt: skip
ROUTES = WITH_CRF | FCN_ONLY


def expected_model(weights: Weights, width: float = 1 / 32, *, crf: bool = True) -> SegmentationModel:
    """The model put together by hand, without any importer."""
    config = ModelConfig(
        architecture="fcn-8s", width=width, preprocessing=Preprocessing.vgg(), crf=CrfConfig.original()
    )
    if weights.n_labels != 21:
        names = ["background", *(f"class {i}" for i in range(1, weights.n_labels))]
        config = SegmentationModel(config).with_classes(names).config
    model = SegmentationModel(config)
    state = {
        f"{pytorch_name(layer)}.{part}": torch.from_numpy(array)
        for layer, pair in weights.layers.items()
        for part, array in zip(("weight", "bias"), pair, strict=True)
        if array is not None
    }
    model.network.load_state_dict(state)
    if crf:
        with torch.no_grad():
            matrices = (model.crf.spatial_weights, model.crf.bilateral_weights, model.crf.compatibility)
            for parameter, array in zip(matrices, weights.crf, strict=True):
                parameter.copy_(torch.from_numpy(array))
    return model


def photograph(height: int = 48, width: int = 61) -> torch.Tensor:
    from skimage.data import astronaut

    return (
        torch.from_numpy(astronaut()[40 : 40 + height, 180 : 180 + width].copy())
        .permute(2, 0, 1)[None]
        .float()
    )


def predict(model: SegmentationModel) -> torch.Tensor:
    image = photograph()
    with torch.inference_mode():
        return model.crf(model.logits(image), model.crf_image(image))


@cache
def expected_prediction(n_labels: int = 21, *, crf: bool = True) -> torch.Tensor:
    return predict(expected_model(random_weights(n_labels), crf=crf))


class TestRoutes:
    @pytest.mark.parametrize("route", ROUTES)
    def test_predictions_are_identical(self, tmp_path: Path, route: str) -> None:
        file_format_, name, write = ROUTES[route]
        weights = random_weights()
        write(tmp_path / name, weights)
        imported = import_model(tmp_path / name)
        expected = expected_model(weights, crf=route in WITH_CRF)
        found = predict(imported.model)
        assert torch.equal(found, expected_prediction(crf=route in WITH_CRF))
        assert len(found.argmax(1).unique()) > 2, "the weights of this test segment nothing"
        report = imported.report
        assert report.format == file_format_
        assert report.is_complete
        assert not report.warnings
        assert len(report.matched) == (43 if route in WITH_CRF else 40)
        assert imported.model.config == expected.config
        assert imported.model.classes == VOC_CLASSES

    @pytest.mark.parametrize("route", WITH_CRF)
    def test_other_numbers_of_classes(self, tmp_path: Path, route: str) -> None:
        _, name, write = WITH_CRF[route]
        weights = random_weights(n_labels=4)
        write(tmp_path / name, weights)
        model = load_model(tmp_path / name)
        assert torch.equal(predict(model), expected_prediction(weights.n_labels))
        assert [c.name for c in model.classes] == ["background", "class 1", "class 2", "class 3"]

    def test_classes_may_be_named(self, tmp_path: Path) -> None:
        write_fine_tuned_caffe(tmp_path / "m.caffemodel", random_weights(n_labels=4))
        names = ["background", "bird", "bottle", "chair"]
        model = import_model(tmp_path / "m.caffemodel", classes=names).model
        assert [c.name for c in model.classes] == names
        with pytest.raises(ValueError, match=r"as many as the outputs of the model in .*, 4, got 2"):
            import_model(tmp_path / "m.caffemodel", classes=["a", "b"])

    def test_an_imported_model_is_saved_and_loaded_like_any(self, tmp_path: Path) -> None:
        write_caffe_v1(tmp_path / "m.caffemodel", random_weights())
        model = load_model(tmp_path / "m.caffemodel")
        model.save(tmp_path / "m.safetensors")
        loaded = load_checkpoint(tmp_path / "m.safetensors")
        assert torch.equal(predict(loaded), predict(model))
        assert loaded.provenance["imported"] == {"file": "m.caffemodel", "format": "caffe", "complete": True}
        assert all(p.requires_grad for p in model.network.parameters())

    def test_a_file_outlives_its_model(self, tmp_path: Path) -> None:
        """Memory of the file must not be that of the model."""
        for route, (_, name, write) in ROUTES.items():
            path = tmp_path / f"{route}-{name}"
            write(path, random_weights())
            model = import_model(path).model
            before = predict(model)
            path.write_bytes(b"\xff" * path.stat().st_size)
            assert torch.equal(predict(model), before), route

    @pytest.mark.slow
    def test_the_published_size(self, tmp_path: Path) -> None:
        """134,491,103 numbers in a Caffe V1 file; layer by layer, to need little memory."""
        path = tmp_path / "TVG_CRFRNN_COCO_VOC.caffemodel"
        with torch.device("meta"):
            from napari_crfasrnn.fcn import Fcn8s

            state = Fcn8s(21).state_dict()

        def numbers(name: str, shape: tuple[int, ...]) -> torch.Tensor:
            generator = torch.Generator().manual_seed(len(name) * 1000 + sum(name.encode()))
            return torch.empty(shape).uniform_(-0.5, 0.5, generator=generator)

        def write_layer(name: str, kind: int, blobs: dict[str, tuple[int, ...]]) -> int:
            # messages that are joined byte by byte are one with the layers of both
            net = net_parameter(numbers_as_bytes=True)()
            layer = net.layers.add(name=name, type=kind)
            for key, shape in blobs.items():
                values = numbers(key, shape)
                n, c, h, w = legacy_shape(values.numpy())
                layer.blobs.add(num=n, channels=c, height=h, width=w, data=[values.numpy().tobytes()])
            with path.open("ab") as file:
                file.write(net.SerializeToString())
            return sum(int(np.prod(shape)) for shape in blobs.values())

        written = 0
        for layer in CONVOLUTIONS:
            ours = pytorch_name(layer)
            keys = [f"{ours}.{part}" for part in ("weight", "bias") if f"{ours}.{part}" in state]
            written += write_layer(layer, 4, {key: tuple(state[key].shape) for key in keys})
        matrices = ("spatial_weights", "bilateral_weights", "compatibility")
        written += write_layer("inference1", 42, dict.fromkeys(matrices, (21, 21)))
        assert written == 134_491_103
        imported = import_model(path)
        path.unlink()
        assert imported.model.config.width == 1.0
        assert len(imported.report.matched) == 43
        for key, tensor in imported.model.network.state_dict().items():
            assert torch.equal(tensor, numbers(key, tuple(tensor.shape))), key
        for key in matrices:
            assert torch.equal(getattr(imported.model.crf, key).detach(), numbers(key, (21, 21))), key


class TestTraps:
    """What goes wrong silently, since the shapes fit, or used to in other importers."""

    def test_keras_kernels_have_the_outputs_last(self, tmp_path: Path) -> None:
        weights = random_weights()
        write_keras(tmp_path / "m.h5", weights)
        ours = import_model(tmp_path / "m.h5").model.network.conv1_2.weight
        stored = keras_parameters(weights)["conv1_2"]["kernel"]  # square: 4 in, 4 out
        assert ours[1, 2, 0, 1] == stored[0, 1, 2, 1] != stored[0, 1, 1, 2]

    def test_keras_transposed_kernels_have_the_inputs_last(self, tmp_path: Path) -> None:
        weights = random_weights()
        write_keras(tmp_path / "m.h5", weights)
        ours = import_model(tmp_path / "m.h5").model.network.upscore2.weight
        stored = keras_parameters(weights)["score2"]["kernel"]  # h, w, out, in
        assert ours[3, 7, 0, 1] == stored[0, 1, 7, 3] != stored[0, 1, 3, 7]

    def test_matconvnet_transposed_kernels_too(self, tmp_path: Path) -> None:
        weights = random_weights()
        write_matconvnet(tmp_path / "m.mat", weights)
        ours = import_model(tmp_path / "m.mat").model.network.upscore8.weight
        stored = dict(matconvnet_parameters(weights))["upsamplef"]
        assert ours[3, 7, 0, 1] == stored[0, 1, 7, 3] != stored[0, 1, 3, 7]

    def test_caffe_transposed_kernels_stay(self, tmp_path: Path) -> None:
        weights = random_weights()
        write_caffe_v1(tmp_path / "m.caffemodel", weights)
        ours = import_model(tmp_path / "m.caffemodel").model.network.upscore_pool4.weight
        assert np.array_equal(ours.detach().numpy(), weights.layers["score4"][0])

    def test_matconvnet_takes_red_first(self, tmp_path: Path) -> None:
        weights = random_weights()
        write_matconvnet(tmp_path / "m.mat", weights)
        imported = import_model(tmp_path / "m.mat")
        stored = dict(matconvnet_parameters(weights))["conv1_1f"]
        assert imported.model.network.conv1_1.weight[1, 0, 2, 0] == stored[2, 0, 2, 1] != stored[2, 0, 0, 1]
        assert imported.model.config.preprocessing.channel_order == "bgr"
        assert "red first, turned to blue first" in imported.report.preprocessing

    @pytest.mark.parametrize("as_image", [False, True])
    def test_matconvnet_brings_its_mean(self, tmp_path: Path, as_image: bool) -> None:
        published = (122.67891434, 116.66876762, 104.00698793)
        mean = np.broadcast_to(published, (5, 4, 3)) if as_image else published
        write_matconvnet(tmp_path / "m.mat", random_weights(), mean_rgb=mean)
        imported = import_model(tmp_path / "m.mat")
        assert imported.model.config.preprocessing.mean == pytest.approx(published[::-1], abs=1e-4)
        assert "red 122.679" in imported.report.preprocessing

    def test_a_mean_that_grows_says_blue_first(self, tmp_path: Path) -> None:
        weights = random_weights()
        parameters = [
            (name, value[:, :, ::-1] if name == "conv1_1f" else value)
            for name, value in matconvnet_parameters(weights)
        ]
        write_matconvnet(
            tmp_path / "m.mat", weights, parameters=parameters, mean_rgb=(103.939, 116.779, 123.68)
        )
        imported = import_model(tmp_path / "m.mat")
        stored = weights.layers["conv1_1"][0]
        assert np.array_equal(imported.model.network.conv1_1.weight.detach().numpy(), stored)
        assert imported.model.config.preprocessing.mean == pytest.approx((103.939, 116.779, 123.68))

    def test_matlab_drops_axes_of_length_1_at_the_end(self, tmp_path: Path) -> None:
        weights = random_weights(n_labels=1)
        parameters = [
            (n, v[..., 0] if v.shape[-1:] == (1,) else v) for n, v in matconvnet_parameters(weights)
        ]
        assert any(value.ndim == 3 for _, value in parameters)
        write_matconvnet(tmp_path / "m.mat", weights, parameters=parameters)
        network = import_model(tmp_path / "m.mat").model.network
        assert np.array_equal(network.score_fr.weight.detach().numpy(), weights.layers["score-fr"][0])

    def test_old_caffe_blobs_have_four_axes(self, tmp_path: Path) -> None:
        path = tmp_path / "m.caffemodel"
        write_caffe_v1(path, random_weights())
        net = caffe_messages()["NetParameter"]()
        net.ParseFromString(path.read_bytes())
        blobs = {layer.name: layer.blobs for layer in net.layers}
        assert [(b.num, b.channels, b.height, b.width) for b in blobs["conv1_1"]] == [
            (4, 3, 3, 3),
            (1, 1, 1, 4),
        ]
        assert (blobs["inference1"][0].channels, blobs["inference1"][0].width) == (1, 21)
        model = import_model(path).model
        assert model.network.conv1_1.bias is not None
        assert model.network.conv1_1.bias.shape == (4,)
        assert model.crf.compatibility.shape == (21, 21)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_fc6_as_a_fully_connected_layer(self, tmp_path: Path, legacy: bool) -> None:
        """VGG-16 before it became convolutional: [4096, 25088], input channels outermost."""
        weights = random_weights()
        net = caffe_messages()["NetParameter"]()
        for name, kind, blobs in caffe_parameters(weights):
            layer = net.layers.add(name=name, type=14 if name.startswith("fc") else 4)
            assert kind
            for array in blobs:
                stored = array.reshape(len(array), -1) if name.startswith("fc") and array.ndim > 1 else array
                if legacy:
                    n, c, h, w = legacy_shape(stored)
                    layer.blobs.add(num=n, channels=c, height=h, width=w, data=stored.ravel())
                else:
                    layer.blobs.add(data=stored.ravel()).shape.dim.extend(stored.shape)
        (tmp_path / "m.caffemodel").write_bytes(net.SerializeToString())
        model = import_model(tmp_path / "m.caffemodel").model
        assert torch.equal(predict(model), expected_prediction(weights.n_labels))

    def test_the_port_to_pytorch_adds_where_caffe_subtracts(self, tmp_path: Path) -> None:
        weights = random_weights()
        write_pytorch(tmp_path / "m.pth", weights)
        imported = import_model(tmp_path / "m.pth")
        assert np.array_equal(imported.model.crf.compatibility.detach().numpy(), weights.crf[2])
        assert pytorch_state(weights)["crfrnn.compatibility_matrix"].diagonal().mean() > 0
        sign = imported.report.compatibility
        assert (sign.negative, sign.positive, sign.verdict) == (21, 0, "as expected")

    def test_zeros_of_the_port_have_no_sign(self, tmp_path: Path) -> None:
        state = pytorch_state(random_weights())
        state["crfrnn.compatibility_matrix"] = torch.eye(21)
        torch.save(state, tmp_path / "m.pth")
        found = import_model(tmp_path / "m.pth").model.crf.compatibility.detach()
        assert torch.equal(found, -torch.eye(21))
        assert not torch.signbit(found - torch.diag(found.diagonal())).any()

    @pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
    def test_state_dicts_may_be_wrapped(self, tmp_path: Path, wrapper: str | None) -> None:
        state = {f"module.{name}": t for name, t in pytorch_state(random_weights()).items()}
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "m.pth")
        assert import_model(tmp_path / "m.pth").report.is_complete

    def test_keras_layers_of_any_name_are_known_by_order_and_shape(self, tmp_path: Path) -> None:
        weights = random_weights()
        rename = {name: f"conv2d_{place}" for place, name in enumerate([*CONVOLUTIONS, "crfrnn"])}
        write_keras(tmp_path / "m.h5", weights, rename=rename)
        imported = import_model(tmp_path / "m.h5")
        assert torch.equal(predict(imported.model), expected_prediction(weights.n_labels))
        assert "recognised by their order" in imported.report.notes[0]

    def test_a_renamed_layer_does_not_hide_the_real_one(self, tmp_path: Path) -> None:
        state = pytorch_state(random_weights())
        extra = {"score_fr_old.weight": state["score_fr.weight"] + 1}
        torch.save(extra | state, tmp_path / "m.pth")
        with pytest.raises(ImportMismatchError, match=r"43 of 43 .* 1 unexpected: score_fr_old\."):
            import_model(tmp_path / "m.pth")


class TestCaffeSchema:
    def test_unknown_fields_and_types_survive(self, tmp_path: Path) -> None:
        path = tmp_path / "m.caffemodel"
        write_caffe_v1(path, random_weights(n_labels=2, width=1 / 64))
        for as_bytes in (False, True):
            net = net_parameter(numbers_as_bytes=as_bytes)()
            net.ParseFromString(path.read_bytes())
            assert net.layers[-1].type == 42
            again = caffe_messages()["NetParameter"]()
            again.ParseFromString(net.SerializeToString())
            assert again.layers[-1].multi_stage_meanfield_param.spatial_filter_weight == 3
            assert list(again.input_dim) == [1, 3, 500, 500]
            original = caffe_messages()["NetParameter"]()
            original.ParseFromString(path.read_bytes())
            assert again == original

    def test_numbers_of_double_precision(self, tmp_path: Path) -> None:
        weights = random_weights()
        net = caffe_messages()["NetParameter"]()
        for name, _, blobs in caffe_parameters(weights):
            layer = net.layer.add(name=name, type="Convolution")
            for array in blobs:
                layer.blobs.add(double_data=array.ravel()).shape.dim.extend(array.shape)
        (tmp_path / "m.caffemodel").write_bytes(net.SerializeToString())
        assert torch.equal(
            predict(import_model(tmp_path / "m.caffemodel").model), expected_prediction(weights.n_labels)
        )

    def test_a_blob_with_too_few_numbers(self, tmp_path: Path) -> None:
        net = caffe_messages()["NetParameter"]()
        net.layers.add(name="conv1_1", type=4).blobs.add(num=2, channels=3, height=3, width=3, data=[1, 2])
        (tmp_path / "m.caffemodel").write_bytes(net.SerializeToString())
        with pytest.raises(CheckpointError, match=r"conv1_1\[0\] should hold 2×3×3×3 numbers, but has 2$"):
            import_model(tmp_path / "m.caffemodel")


class TestKernelWidths:
    @pytest.mark.parametrize("write", [write_caffe_v1, write_caffe_v2], ids=["v1", "v2"])
    def test_those_of_the_file_are_taken(self, tmp_path: Path, write: Callable[..., None]) -> None:
        path = tmp_path / "m.caffemodel"
        write(path, random_weights(), widths=(80.0, 13.0, 2.5))
        imported = import_model(path)
        crf = imported.model.crf.config
        assert (crf.theta_alpha, crf.theta_beta, crf.theta_gamma) == (80, 13, 2.5)
        assert (crf.n_iterations, crf.n_iterations_train) == (10, 5)
        said = "of the file, 80, 13 and 2.5; it was saved from a net of 5 mean-field iterations, 10 are used"
        assert f"kernel widths: {said}" in imported.report.lines()
        assert imported.report.as_dict()["kernels"] == said
        # and they matter
        assert not torch.equal(predict(imported.model), expected_prediction())

    def test_a_file_that_leaves_its_iterations_out(self, tmp_path: Path) -> None:
        write_caffe_v1(tmp_path / "m.caffemodel", random_weights(), n_iterations=None)
        kernels = import_model(tmp_path / "m.caffemodel").report.kernels
        assert kernels == "of the file, 160, 3 and 3; 10 mean-field iterations are used"

    @pytest.mark.parametrize("write", [write_caffe_v1, write_caffe_v2], ids=["v1", "v2"])
    def test_without_them_those_of_the_original_are(self, tmp_path: Path, write: Callable[..., None]) -> None:
        path = tmp_path / "m.caffemodel"
        write(path, random_weights(), widths=None)
        imported = import_model(path)
        assert torch.equal(predict(imported.model), expected_prediction())
        assert imported.report.kernels == "of the original, 160, 3 and 3 (the file does not say)"

    def test_widths_that_are_none(self, tmp_path: Path) -> None:
        path = tmp_path / "m.caffemodel"
        write_caffe_v1(path, random_weights(), widths=(160.0, 0.0, 3.0))
        with pytest.raises(CheckpointError, match=r"inference1 must be positive, got 160, 0 and 3$"):
            import_model(path)


class TestReport:
    def without(self, path: Path, *names: str, **more: torch.Tensor) -> Path:
        state = pytorch_state(random_weights())
        torch.save({k: v for k, v in state.items() if k not in names} | more, path)
        return path

    def test_missing_tensors_are_an_error(self, tmp_path: Path) -> None:
        path = self.without(tmp_path / "m.pth", "fc7.bias", "crfrnn.compatibility_matrix")
        message = r"41 of 43 tensors match; 2 missing: network\.fc7\.bias, crf\.compatibility \(allow"
        with pytest.raises(ImportMismatchError, match=message) as caught:
            import_model(path)
        assert caught.value.report.missing == ("network.fc7.bias", "crf.compatibility")
        assert "\n" not in str(caught.value)

    def test_unexpected_and_misshapen_ones_too(self, tmp_path: Path) -> None:
        more = {"score_pool3.weight": torch.zeros(21, 9, 1, 1), "momentum.weight": torch.zeros(2)}
        path = self.without(tmp_path / "m.pth", "score_pool3.weight", **more)
        with pytest.raises(
            ImportMismatchError, match=r"1 unexpected: momentum\.weight; 1 of another shape: "
        ) as e:
            import_model(path)
        assert "score_pool3.weight (is 21×9×1×1, should make 21×8×1×1)" in str(e.value)

    def test_a_partial_import_starts_the_rest_anew_and_says_so(self, tmp_path: Path) -> None:
        path = self.without(tmp_path / "m.pth", "fc7.bias", "crfrnn.compatibility_matrix")
        one, two = (import_model(path, allow_partial=True) for _ in range(2))
        assert torch.equal(predict(one.model), predict(two.model))
        assert torch.equal(one.model.crf.compatibility.detach(), -torch.eye(21))
        assert "the import is partial" in one.report.warnings[-1]
        assert one.model.provenance["imported"]["complete"] is False
        with pytest.warns(UserWarning, match=r"partial: 41 of 43 tensors match"):
            load_model(path, allow_partial=True)

    def test_nothing_that_matches_is_an_error_anyway(self, tmp_path: Path) -> None:
        torch.save({"a.weight": torch.zeros(2)}, tmp_path / "m.pth")
        with pytest.raises(ImportMismatchError, match="0 of 43 tensors match"):
            import_model(tmp_path / "m.pth", allow_partial=True)

    def test_zero_layers_and_a_reversed_sign_are_told(self, tmp_path: Path) -> None:
        state = pytorch_state(random_weights())
        state["conv3_2.weight"] = torch.zeros_like(state["conv3_2.weight"])
        state["conv3_2.bias"] = torch.zeros_like(state["conv3_2.bias"])
        state["crfrnn.compatibility_matrix"] *= -1
        torch.save(state, tmp_path / "m.pth")
        report = import_model(tmp_path / "m.pth").report
        assert report.all_zero == ("network.conv3_2.weight", "network.conv3_2.bias")
        assert report.compatibility.verdict == "reversed"
        zero, sign = report.warnings
        assert zero.startswith("1 tensors are zero throughout: network.conv3_2.weight")
        assert "21 of 21 diagonal entries" in sign

    def test_lines_and_json_name_every_tensor(self, tmp_path: Path) -> None:
        write_caffe_v1(tmp_path / "m.caffemodel", random_weights())
        report = import_model(tmp_path / "m.caffemodel").report
        text = "\n".join(report.lines())
        assert "score2[0]      -> network.upscore2.weight  21×21×4×4" in text
        assert "matched 43, missing 0, unexpected 0" in text
        assert "compatibility matrix: as expected (21 negative, 0 positive on the diagonal)" in text
        about = report.as_dict()
        assert {"source": "inference1[2]", "ours": "crf.compatibility", "shape": [21, 21]} in about["matched"]
        assert len(about["matched"]) == 43


class TestBadFiles:
    @pytest.mark.parametrize("name", ["m.pth", "m.caffemodel", "m.h5", "m.mat", "m.weights"])
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty$"),
            (b"<!DOCTYPE html><html>not found</html>", "is a text, not a model"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "is a text, not a model"),
        ],
    )
    def test_what_servers_send_instead(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path / name)

    @pytest.mark.parametrize("suffix", ["pth", "caffemodel", "h5", "mat"])
    @pytest.mark.parametrize("content", [b"\x00" * 999, b"\xff\xd8\xff\xe0 picture", bytes(range(256)) * 9])
    def test_other_kinds_under_a_known_name(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        path = tmp_path / f"m.{suffix}"
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("route", ["pytorch", "pytorch before 1.6", "caffe v1", "keras", "matconvnet"])
    @settings(max_examples=12, deadline=None)
    @given(share=st.floats(0, 1, exclude_max=True))
    def test_a_file_cut_short_anywhere(
        self, tmp_path_factory: pytest.TempPathFactory, route: str, share: float
    ) -> None:
        _, name, write = ROUTES[route]
        path = tmp_path_factory.mktemp("cut") / name
        write(path, random_weights(n_labels=2, width=1 / 64))
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(CheckpointError) as caught:
            import_model(path)
        assert "\n" not in str(caught.value)

    def test_formats_are_told_apart_by_content(self, tmp_path: Path) -> None:
        for file_format_, name, write in ROUTES.values():
            write(tmp_path / name, random_weights(n_labels=2, width=1 / 64))
            if file_format_ != "caffe":  # protobuf has no mark
                (tmp_path / name).rename(tmp_path / "unnamed")
                assert file_format(tmp_path / "unnamed") == file_format_
        (tmp_path / "unnamed").write_bytes(b"anything")
        with pytest.raises(CheckpointError, match=r"none of the files that can be read: .*\.caffemodel"):
            file_format(tmp_path / "unnamed")

    def test_a_pickle_that_runs_code_is_refused(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[object, ...]:
                return (open, (str(tmp_path / "pwned"), "w"))

        torch.save({"conv1_1.weight": Evil()}, tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match="Python objects, which could run code"):
            import_model(tmp_path / "m.pth")
        assert not (tmp_path / "pwned").exists()
        (tmp_path / "n.pth").write_bytes(pickle.dumps(Evil()))
        with pytest.raises(CheckpointError):
            import_model(tmp_path / "n.pth")
        assert not (tmp_path / "pwned").exists()

    @pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(2)])
    def test_no_state_dict(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match="must hold a state dict"):
            import_model(tmp_path / "m.pth")

    def test_no_keras_and_no_dagnn(self, tmp_path: Path) -> None:
        import h5py
        import scipy.io

        with h5py.File(tmp_path / "m.h5", "w") as file:
            file["x"] = [1]
        with pytest.raises(CheckpointError, match="none that Keras 1 or 2 wrote"):
            import_model(tmp_path / "m.h5")
        with h5py.File(tmp_path / "m.caffemodel.h5", "w") as file:
            file["data/conv1_1/0"] = [1.0]
            file.create_group("data/relu1_1")
        with pytest.raises(CheckpointError, match=r"a snapshot of Caffe in HDF5, .*net\.save"):
            import_model(tmp_path / "m.caffemodel.h5")
        with h5py.File(tmp_path / "m.weights.h5", "w") as file:
            file["layers/conv2d/vars/0"] = [1.0]
        with pytest.raises(CheckpointError, match=r"a weights file of Keras 3, .*model\.save\('model\.h5'\)"):
            import_model(tmp_path / "m.weights.h5")
        with h5py.File(tmp_path / "matlab.h5", "w") as file:
            file["net"] = [1.0]
            file["net"].attrs["MATLAB_class"] = np.bytes_("double")
        with pytest.raises(CheckpointError, match=r"a MATLAB 7\.3 file, .*'-v7'"):
            import_model(tmp_path / "matlab.h5")
        scipy.io.savemat(tmp_path / "m.mat", {"x": [1]})
        with pytest.raises(CheckpointError, match="no variable 'params'"):
            import_model(tmp_path / "m.mat")
        (tmp_path / "new.mat").write_bytes(
            b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM" + b"\0" * 400
        )
        with pytest.raises(CheckpointError, match=r"save it in MATLAB with save\(..., '-v7'\)"):
            import_model(tmp_path / "new.mat")

    def test_values_that_are_not_finite(self, tmp_path: Path) -> None:
        state = pytorch_state(random_weights())
        state["fc6.bias"] = torch.full_like(state["fc6.bias"], float("nan"))
        torch.save(state, tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match=r"damaged: 1 not finite: network\.fc6\.bias$"):
            import_model(tmp_path / "m.pth")

    @pytest.mark.parametrize(("module", "name"), [("h5py", "m.h5"), ("google.protobuf", "m.caffemodel")])
    def test_a_missing_library_is_one_sentence(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
    ) -> None:
        {"m.h5": write_keras, "m.caffemodel": write_caffe_v1}[name](tmp_path / name, random_weights())
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            RuntimeError, match=r'takes the library .*: pip install "napari-crfasrnn\[legacy\]"$'
        ):
            import_model(tmp_path / name)
