from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_crfasrnn.classes import ClassSpec, class_table
from napari_crfasrnn.config import ModelConfig, Preprocessing
from napari_crfasrnn.deeplab import DeepLabEncoder
from napari_crfasrnn.encoder import EfficientNetLite0, fold_batch_norms
from napari_crfasrnn.fcn import Fcn8s, FcnLite, bilinear_kernel, enlarge
from napari_crfasrnn.fcn_fine import FcnFine
from napari_crfasrnn.network import SegmentationModel

SMALL_VGG = ModelConfig(
    architecture="fcn-8s",
    width=1 / 32,
    preprocessing=Preprocessing.vgg(),
    classes=class_table(["background", "cat", "dog"]),
)

# The PyTorch port's tensors, `../shared/CRFRNN.md` section 2, for 21 classes.
PORT_SHAPES = {
    "conv1_1": (64, 3, 3, 3), "conv1_2": (64, 64, 3, 3),
    "conv2_1": (128, 64, 3, 3), "conv2_2": (128, 128, 3, 3),
    "conv3_1": (256, 128, 3, 3), "conv3_2": (256, 256, 3, 3), "conv3_3": (256, 256, 3, 3),
    "conv4_1": (512, 256, 3, 3), "conv4_2": (512, 512, 3, 3), "conv4_3": (512, 512, 3, 3),
    "conv5_1": (512, 512, 3, 3), "conv5_2": (512, 512, 3, 3), "conv5_3": (512, 512, 3, 3),
    "fc6": (4096, 512, 7, 7), "fc7": (4096, 4096, 1, 1),
    "score_fr": (21, 4096, 1, 1), "score_pool4": (21, 512, 1, 1), "score_pool3": (21, 256, 1, 1),
    "upscore2": (21, 21, 4, 4),
}  # fmt: skip


@pytest.fixture(scope="module")
def small_vgg() -> Fcn8s:
    torch.manual_seed(0)
    return Fcn8s(3, width=1 / 32).eval()


@pytest.fixture(scope="module")
def lite() -> SegmentationModel:
    torch.manual_seed(0)
    model = SegmentationModel(ModelConfig(classes=class_table(["background", "cat", "dog", "horse"])))
    for score in model.network.score_layers:  # a trained head tells pixels apart; a fresh one hardly does
        torch.nn.init.normal_(score.weight)
    return model


@pytest.fixture(scope="module")
def photograph() -> torch.Tensor:
    from skimage.data import astronaut

    return torch.from_numpy(astronaut()).permute(2, 0, 1)[None].float()


class TestFcn8s:
    def test_tensors_are_those_of_the_original_port(self) -> None:
        with torch.device("meta"):
            state = Fcn8s(21).state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        expected = {f"{name}.weight": shape for name, shape in PORT_SHAPES.items()}
        expected |= {f"{name}.bias": shape[:1] for name, shape in PORT_SHAPES.items()}
        expected |= {"upscore_pool4.weight": (21, 21, 4, 4), "upscore8.weight": (21, 21, 16, 16)}
        assert shapes == expected
        assert sum(tensor.numel() for tensor in state.values()) == 134_489_780

    def test_sizes_at_500_are_those_of_the_original(self, small_vgg: Fcn8s) -> None:
        seen: dict[str, int] = {}
        pools: list[int] = []
        hooks = [
            small_vgg.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, out, name=name: seen.__setitem__(name, out.shape[-1])
            )
            for name in ("conv1_1", "fc6", "upscore2", "upscore_pool4", "upscore8")
        ]
        hooks.append(small_vgg.pool.register_forward_hook(lambda _m, _i, out: pools.append(out.shape[-1])))
        with torch.inference_mode():
            out = small_vgg(torch.zeros(1, 3, 500, 500))
        for hook in hooks:
            hook.remove()
        assert [seen["conv1_1"], *pools] == [698, 349, 175, 88, 44, 22]
        assert [seen[k] for k in ("fc6", "upscore2", "upscore_pool4", "upscore8")] == [16, 34, 70, 568]
        assert out.shape == (1, 3, 500, 500)

    @settings(max_examples=12, deadline=None)
    @given(h=st.integers(1, 140), w=st.integers(1, 140))
    def test_any_size_comes_back(self, small_vgg: Fcn8s, h: int, w: int) -> None:
        with torch.inference_mode():
            assert small_vgg(torch.zeros(1, 3, h, w)).shape == (1, 3, h, w)

    def test_crops_take_the_offsets_5_9_31(self) -> None:
        """Score maps that hold their own coordinates come out shifted by the crops, and by nothing else."""
        network = Fcn8s(1, width=1 / 32).eval()
        with torch.no_grad():
            for score in network.score_layers:
                score.weight.zero_()
                score.bias.zero_()
            network.score_pool3.weight[0, 0] = 1
        n3, n4, n7 = 88, 44, 16
        pool3 = torch.zeros(1, network.conv3_1.out_channels, n3, n3)
        pool3[0, 0] = torch.arange(n3).float()[None, :]
        pool4 = torch.zeros(1, network.conv4_1.out_channels, n4, n4)
        fc7 = torch.zeros(1, network.fc7.out_channels, n7, n7)
        with torch.inference_mode():
            out = network.decode((pool3, pool4, fc7), (500, 500))[0, 0]
        # column x reads enlarged column x + 31; cell i of the stride-8 map sits at 8 i + 7.5 of it;
        # cell i is column i + 9 of pool3
        expected = (torch.arange(500) + 31 - 7.5) / 8 + 9
        torch.testing.assert_close(out[250], expected, atol=1e-3, rtol=0)

    def test_upsamplers_start_bilinear_on_the_channel_diagonal(self, small_vgg: Fcn8s) -> None:
        for up in small_vgg.class_upsamplers:
            kernel = bilinear_kernel(up.kernel_size[0])
            for i in range(3):
                for j in range(3):
                    expected = kernel if i == j else torch.zeros_like(kernel)
                    assert torch.equal(up.weight[i, j].detach(), expected)

    def test_bilinear_kernel_interpolates(self) -> None:
        one = F.conv_transpose2d(torch.ones(1, 1, 5, 5), bilinear_kernel(16)[None, None], stride=8)
        torch.testing.assert_close(one[0, 0, 8:-8, 8:-8], torch.ones(32, 32))


class TestFcnLite:
    @settings(max_examples=12, deadline=None)
    @given(h=st.integers(1, 100), w=st.integers(1, 100))
    def test_any_size_comes_back(self, lite: SegmentationModel, h: int, w: int) -> None:
        with torch.inference_mode():
            assert lite.network(torch.zeros(1, 3, h, w)).shape == (1, 4, h, w)

    def test_logits_are_planes(self, lite: SegmentationModel) -> None:
        # Kept with their labels side by side, they would be turned anew in every run of the CRF.
        with torch.inference_mode():
            assert lite.network(torch.zeros(1, 3, 50, 41)).is_contiguous()

    def test_features_have_the_stated_channels_and_strides(self, lite: SegmentationModel) -> None:
        with torch.inference_mode():
            features = lite.network.encode(torch.zeros(2, 3, 33, 70))
        assert [tuple(f.shape) for f in features] == [(2, 40, 8, 12), (2, 112, 4, 6), (2, 320, 2, 3)]

    def test_encode_then_decode_is_forward(self, lite: SegmentationModel) -> None:
        x = torch.randn(1, 3, 50, 41, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            assert torch.equal(lite.network.decode(lite.network.encode(x), (50, 41)), lite.network(x))

    def test_head_is_small_and_separate(self, lite: SegmentationModel) -> None:
        network = lite.network
        head = sum(p.numel() for p in network.head_parameters())
        encoder = sum(p.numel() for p in network.encoder.parameters())
        assert head + encoder == sum(p.numel() for p in network.parameters())
        assert head < 150_000 < 2_900_000 < encoder

    def test_distant_pixels_matter(self, lite: SegmentationModel) -> None:
        """Global context: what happens in one corner reaches the opposite one of a large image."""
        f8, f16, f32 = (torch.zeros(1, c, s, s) for c, s in ((40, 128), (112, 64), (320, 32)))
        with torch.inference_mode():
            before = lite.network.decode((f8, f16, f32), (1024, 1024))
            f32[..., -1, -1] = 100.0
            after = lite.network.decode((f8, f16, f32), (1024, 1024))
        assert not torch.equal(before[..., 0, 0], after[..., 0, 0])

    def test_enlarge_keeps_cells_at_their_last_pixel(self) -> None:
        ramp = torch.arange(40.0).expand(1, 1, 40, 40)
        cells = ramp[..., 7::8, 7::8]
        torch.testing.assert_close(enlarge(cells, 8)[..., 7:, 7:], ramp[..., 7:, 7:])

    @pytest.mark.parametrize("factor", [1, 2, 3, 8])
    @pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3)])
    def test_the_gradient_of_enlarge_is_that_of_its_values(self, factor: int, size: tuple[int, int]) -> None:
        cells = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda x: enlarge(x, factor), cells.requires_grad_())


@pytest.fixture(scope="module")
def double() -> FcnLite:
    torch.manual_seed(0)
    return FcnLite(4, second_encoder=True).eval()


class TestSecondEncoder:
    @settings(max_examples=12, deadline=None)
    @given(h=st.integers(1, 100), w=st.integers(1, 100))
    def test_any_size_comes_back(self, double: FcnLite, h: int, w: int) -> None:
        with torch.inference_mode():
            assert double(torch.zeros(1, 3, h, w)).shape == (1, 4, h, w)

    def test_its_map_comes_last_among_the_features(self, double: FcnLite) -> None:
        with torch.inference_mode():
            features = double.encode(torch.zeros(2, 3, 33, 70))
            levels = double.level_inputs(features)
        assert [tuple(f.shape) for f in features] == [
            (2, 40, 8, 12), (2, 112, 4, 6), (2, 320, 2, 3), (2, 256, 4, 6),
        ]  # fmt: skip
        assert torch.equal(levels[1][:, 96:], features[3])
        assert [score.in_channels for score in double.score_layers] == [96, 352, 96]

    def test_encoders_are_apart_from_the_head(self, double: FcnLite) -> None:
        encoders = [p for part in double.encoder_parts() for p in part.parameters()]
        assert {id(p) for p in encoders} | {id(p) for p in double.head_parameters()} == {
            id(p) for p in double.parameters()
        }
        assert len(double.encoder_parts()) == 2
        assert sum(p.numel() for p in double.head_parameters()) < 200_000

    @pytest.mark.parametrize("axis", [-2, -1])
    def test_cells_sit_at_their_last_pixel(self, axis: int) -> None:
        """What a cell sees lies around the last pixel of its stride, as in the other encoder."""
        encoder = DeepLabEncoder()
        with torch.no_grad():
            for parameter in encoder.parameters():  # averages all the way, no cell saturates
                parameter.fill_(1 / parameter[0].numel() if parameter.ndim > 1 else 0.0)
            encoder.pooled.weight.zero_()
        x = torch.full((1, 3, 352, 352), 1e-3, requires_grad=True)
        cell = 11
        found = encoder(x)
        assert found.shape == (1, 256, 22, 22)
        (gradient,) = torch.autograd.grad(found[0, 0, cell, cell], x)
        seen = gradient[0].sum(0).sum(-1 if axis == -2 else -2).double()
        centre = (seen * torch.arange(352)).sum() / seen.sum()
        assert float(centre) == pytest.approx(16 * cell + 15, abs=0.5)

    def test_classes_that_stay_speak_as_before(self) -> None:
        torch.manual_seed(1)
        config = ModelConfig(second_encoder=True, classes=class_table(["soil", "crop", "weed"]))
        model = SegmentationModel(config)
        image = torch.rand(1, 3, 64, 80) * 255
        with torch.inference_mode():
            old = model.logits(image)
            new = model.with_classes(["soil", "weed", "stone"]).logits(image)
        torch.testing.assert_close(new[:, :2], old[:, [0, 2]])

    def test_only_fcn_lite_has_one(self) -> None:
        with pytest.raises(ValueError, match="second_encoder is for fcn-lite only, got it with fcn-fine"):
            ModelConfig(architecture="fcn-fine", second_encoder=True)


@pytest.fixture(scope="module")
def fine() -> FcnFine:
    torch.manual_seed(0)
    return FcnFine(4).eval()


class TestFcnFine:
    @settings(max_examples=12, deadline=None)
    @given(h=st.integers(1, 100), w=st.integers(1, 100))
    def test_any_size_comes_back(self, fine: FcnFine, h: int, w: int) -> None:
        with torch.inference_mode():
            assert fine(torch.zeros(1, 3, h, w)).shape == (1, 4, h, w)

    def test_features_are_those_of_the_early_blocks(self, fine: FcnFine) -> None:
        x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            features = fine.encode(x)
            f8, f16, _ = fine.encoder(x)
        assert [tuple(f.shape[1:]) for f in features] == [
            (16, 32, 48),
            (24, 16, 24),
            (40, 8, 12),
            (112, 4, 6),
        ]
        torch.testing.assert_close(features[2], f8)
        torch.testing.assert_close(features[3], f16)

    def test_levels_are_scored_from_coarse_to_fine(self, fine: FcnFine) -> None:
        with torch.inference_mode():
            features = fine.encode(torch.zeros(1, 3, 64, 96))
            levels = fine.level_inputs(features)
            assert fine.decode_coarse(features).shape == (1, 4, 32, 48)
        assert [tuple(x.shape[1:]) for x in levels] == [
            (64, 2, 3), (64, 4, 6), (64, 8, 12), (32, 16, 24), (24, 32, 48),
        ]  # fmt: skip
        assert [score.in_channels for score in fine.score_layers] == [64, 64, 64, 32, 24]

    def test_head_is_small(self, fine: FcnFine) -> None:
        assert sum(p.numel() for p in fine.head_parameters()) < 200_000

    def test_the_coarsest_level_lies_where_it_belongs(self) -> None:
        """A map of stride 16 that holds its cells' places comes back, through stride 32, as the places."""
        network = FcnFine(1).eval()
        with torch.no_grad():
            for parameter in network.head_parameters():
                parameter.zero_()
            network.laterals[0].weight[0, 0] = 1
            network.scores[0].weight[0, 0] = 1
        places = torch.arange(256.0)[:, None].expand(256, 256)
        f2, f4, f8, f16 = (
            places[s - 1 :: s, s - 1 :: s].expand(1, c, -1, -1)
            for c, s in ((16, 2), (24, 4), (40, 8), (112, 16))
        )
        with torch.inference_mode():
            found = network.decode((f2, f4, f8, f16), (256, 256))[0, 0]
        torch.testing.assert_close(found[31:224], places[31:224])


class TestStretch:
    def model(self) -> SegmentationModel:
        settings = Preprocessing(stretch=(0.0, 100.0))
        return SegmentationModel(ModelConfig(architecture="fcn-fine", preprocessing=settings))

    def test_brightness_means_nothing(self) -> None:
        model = self.model()
        image = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0)) * 200
        dim = image * 0.4 + 30
        with torch.inference_mode():
            torch.testing.assert_close(model.logits(dim), model.logits(image), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(model.crf_image(dim), model.crf_image(image), atol=1e-2, rtol=0)

    def test_range_is_that_of_each_image_over_its_channels(self) -> None:
        image = torch.zeros(2, 3, 4, 4)
        image[0, 1], image[0, 2, 0, 0] = 50, 100
        image[1] = 7  # nothing to be seen: noise is not blown up
        found = self.model().stretched(image)
        assert [float(found[0, c].max()) for c in range(3)] == [0, 127.5, 255]
        assert not found[1].any()
        image[1, 0, 0, 0] = 8
        assert float(self.model().stretched(image)[1].max()) == pytest.approx(255 / 20)

    def test_range_of_a_large_image_is_measured_on_some_of_it(self) -> None:
        image = torch.linspace(20, 120, 900 * 900).reshape(1, 1, 900, 900)
        found = self.model().stretched(image)
        assert 0 <= float(found.min()) < 1
        assert 254 < float(found.max()) <= 255

    @pytest.mark.parametrize("stretch", [(5, 5), (-1, 90), (2, 101), (99, 1)])
    def test_other_percentiles_are_refused(self, stretch: tuple[float, float]) -> None:
        with pytest.raises(ValueError, match="stretch must hold two percentiles"):
            Preprocessing(stretch=stretch)


class TestEncoder:
    @pytest.mark.parametrize("size", [(64, 96), (32, 32)])
    def test_equals_the_published_network(self, size: tuple[int, int]) -> None:
        """Against efficientnet-lite-pytorch, whose random weights and batch norms are folded in."""
        theirs_module = pytest.importorskip("efficientnet_lite_pytorch")
        torch.manual_seed(0)
        theirs = theirs_module.EfficientNet.from_name("efficientnet-lite0").eval()
        for module in theirs.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
                torch.nn.init.uniform_(module.running_var, 0.5, 2)
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.5, 0.5)
        ours = EfficientNetLite0().eval()
        ours.load_state_dict(fold_batch_norms(theirs.state_dict()))
        expected: list[torch.Tensor] = []
        for i in (4, 10, 15):
            theirs._blocks[i].register_forward_hook(lambda _m, _i, out: expected.append(out))
        x = torch.randn(2, 3, *size)
        with torch.inference_mode():
            theirs.extract_features(x)
            for found, wanted in zip(ours(x), expected, strict=True):
                torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)

    def test_foreign_weights_are_refused(self) -> None:
        with pytest.raises(ValueError, match="lacks '_conv_stem"):
            fold_batch_norms({"conv.weight": torch.zeros(1)})


class TestPreprocess:
    @pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
    def test_any_number_of_channels_becomes_three(self, lite: SegmentationModel, channels: int) -> None:
        image = torch.rand(2, channels, 20, 30) * 255
        x = lite.preprocess(image)
        assert x.shape == (2, 3, 20, 30)
        back = x * 128 + 127
        expected = {
            1: lambda: image.expand(-1, 3, -1, -1),
            2: lambda: torch.stack([image[:, 0], image[:, 1], image.mean(1)], 1),
            3: lambda: image,
            4: lambda: torch.stack([image[:, :2].mean(1), image[:, 2], image[:, 3]], 1),
            5: lambda: torch.stack([image[:, :2].mean(1), image[:, 2:4].mean(1), image[:, 4]], 1),
            9: lambda: torch.stack([image[:, i : i + 3].mean(1) for i in (0, 3, 6)], 1),
        }[channels]()
        torch.testing.assert_close(back, expected, atol=1e-3, rtol=0)

    def test_large_images_are_shrunk_and_logits_enlarged(self, lite: SegmentationModel) -> None:
        image = torch.rand(1, 3, 300, 1200) * 255
        assert lite.preprocess(image).shape == (1, 3, 128, 512)
        with torch.inference_mode():
            assert lite.logits(image).shape == (1, 4, 300, 1200)

    def test_vgg_takes_blue_first(self) -> None:
        model = SegmentationModel(SMALL_VGG)
        image = torch.tensor([10.0, 20.0, 30.0])[None, :, None, None].expand(1, 3, 4, 4)
        found = model.preprocess(image)[0, :, 0, 0]
        torch.testing.assert_close(found, torch.tensor([30 - 103.939, 20 - 116.779, 10 - 123.68]))

    def test_bilateral_kernel_sees_the_same_distances_for_many_channels(
        self, lite: SegmentationModel
    ) -> None:
        grey = torch.rand(1, 1, 4, 5) * 255
        assert torch.equal(lite.crf_image(grey), grey)
        assert torch.equal(lite.crf_image(grey.expand(-1, 3, -1, -1)), grey)
        three = torch.rand(1, 3, 4, 5) * 255
        assert torch.equal(lite.crf_image(three), three)
        six = lite.crf_image(three.repeat_interleave(2, 1))
        torch.testing.assert_close(three.square().sum(1), six.square().sum(1))

    def test_very_many_channels_become_some_for_the_crf(self, lite: SegmentationModel) -> None:
        eight = torch.rand(1, 8, 4, 5) * 255
        torch.testing.assert_close(lite.crf_image(eight.repeat_interleave(4, 1)), lite.crf_image(eight))
        assert lite.crf_image(torch.rand(2, 20, 4, 5)).shape == (2, 8, 4, 5)

    def test_a_coloured_spot_makes_a_grey_image_coloured(self, lite: SegmentationModel) -> None:
        image = torch.rand(1, 1, 100, 90).expand(-1, 3, -1, -1).clone()
        assert lite.crf_image(image).shape[1] == 1
        image[0, 2, 70, 33] += 1  # not among the pixels that are looked at first
        assert torch.equal(lite.crf_image(image), image)

    @pytest.mark.parametrize("shape", [(3, 4, 4), (1, 0, 4, 4), (1, 3, 0, 4)])
    def test_other_shapes_are_refused(self, lite: SegmentationModel, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"image must be \[B, C, H, W\]"):
            lite.preprocess(torch.zeros(shape))

    def test_tiny_images_pass(self, lite: SegmentationModel) -> None:
        with torch.inference_mode():
            for shape in ((1, 1, 1, 1), (1, 3, 1, 40), (1, 3, 2000, 1)):
                assert lite.logits(torch.full(shape, 255.0)).shape == (1, 4, *shape[-2:])


class TestModel:
    def test_parts_must_agree(self) -> None:
        with pytest.raises(ValueError, match="network must have as many classes as config, 21, got 4"):
            SegmentationModel(ModelConfig(), FcnLite(4))

    def test_copy_shares_nothing(self, lite: SegmentationModel) -> None:
        before = [p.clone() for p in lite.network.parameters()]
        twin = lite.copy()
        with torch.no_grad():
            for p in [*twin.network.parameters(), *twin.crf.parameters()]:
                p.add_(1)
        twin.provenance["title"] = "changed"
        assert all(torch.equal(p, q) for p, q in zip(before, lite.network.parameters(), strict=True))
        assert torch.equal(lite.crf.compatibility.detach(), -torch.eye(4))
        assert lite.provenance == {}

    def test_to_moves_everything(self, lite: SegmentationModel) -> None:
        for other in (torch.float16, 0):
            with pytest.raises(TypeError, match="device must be a device or its name"):
                lite.to(other)
        moved = lite.copy().to("meta")
        assert moved.device.type == "meta"
        assert {p.device.type for p in [*moved.network.parameters(), *moved.crf.parameters()]} == {"meta"}


def _logits(model: SegmentationModel, image: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(image)[0]


class TestWithClasses:
    def test_classes_that_stay_speak_as_before(
        self, lite: SegmentationModel, photograph: torch.Tensor
    ) -> None:
        with torch.no_grad():
            lite.crf.bilateral_weights.copy_(torch.arange(16.0).reshape(4, 4))
        changed = lite.with_classes(["dog", "unicorn", "background"])
        before, after = _logits(lite, photograph), _logits(changed, photograph)
        torch.testing.assert_close(after[[0, 2]], before[[2, 0]], atol=1e-4, rtol=1e-4)
        kept = changed.crf.bilateral_weights.detach()[[0, 2]][:, [0, 2]]
        assert torch.equal(kept, torch.tensor([[10.0, 8.0], [2.0, 0.0]]))
        assert [spec.name for spec in changed.classes] == ["dog", "unicorn", "background"]

    def test_a_new_class_beside_two_old_ones_waits(
        self, lite: SegmentationModel, photograph: torch.Tensor
    ) -> None:
        changed = lite.with_classes([*lite.classes, "unicorn", "griffin"])
        logits = _logits(changed, photograph)
        labels = logits.argmax(0)
        assert (labels >= 4).float().mean() < 0.02
        assert (logits.softmax(0)[4:].mean((1, 2)) > 1e-3).all()
        old = _logits(lite, photograph).argmax(0)
        assert (labels == old).float().mean() > 0.98

    @pytest.mark.parametrize(
        "classes",
        [["a", "b"], ["background", "nucleus"], ["a", "b", "c", "d", "e"], ["x", "background", "y"]],
    )
    @pytest.mark.parametrize("name", ["astronaut", "coins", "noise"])
    def test_no_class_takes_everything(self, lite: SegmentationModel, classes: list[str], name: str) -> None:
        from skimage import data

        if name == "noise":
            image = np.random.default_rng(0).integers(0, 256, (96, 96, 3))
        else:
            image = np.atleast_3d(getattr(data, name)())
        batch = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        changed = lite.with_classes(classes)
        shares = torch.bincount(_logits(changed, batch).argmax(0).flatten(), minlength=len(classes))
        assert (shares > 0).sum() >= 2

    def test_same_again(self, lite: SegmentationModel, photograph: torch.Tensor) -> None:
        one, two = (lite.with_classes(["a", "b", "c"]) for _ in range(2))
        assert torch.equal(_logits(one, photograph), _logits(two, photograph))

    def test_the_model_itself_stays(self, lite: SegmentationModel) -> None:
        before = {k: v.clone() for k, v in lite.network.state_dict().items()}
        lite.with_classes(["a", "cat"])
        assert all(torch.equal(v, before[k]) for k, v in lite.network.state_dict().items())
        assert lite.n_labels == 4

    def test_colours_are_free_and_renames_are_told(
        self, lite: SegmentationModel, photograph: torch.Tensor
    ) -> None:
        kitten = ClassSpec(name="kitten", color=(1, 2, 3))
        changed = lite.with_classes(["background", kitten, "dog", "horse"], continues={"kitten": "cat"})
        assert torch.equal(_logits(changed, photograph), _logits(lite, photograph))
        assert changed.classes[1].color == (1, 2, 3)

    @pytest.mark.parametrize(
        ("continues", "message"),
        [
            ({"kitten": "tiger"}, "classes of this model, got 'tiger'"),
            ({"tiger": "cat"}, "new table, got 'tiger'"),
        ],
    )
    def test_false_renames_are_refused(
        self, lite: SegmentationModel, continues: dict[str, str], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            lite.with_classes(["background", "kitten"], continues=continues)

    def test_an_empty_table_is_refused(self, lite: SegmentationModel) -> None:
        with pytest.raises(ValueError, match="at least one class"):
            lite.with_classes([])

    def test_the_original_network_follows_too(self) -> None:
        torch.manual_seed(0)
        model = SegmentationModel(SMALL_VGG)
        for score in model.network.score_layers:
            torch.nn.init.normal_(score.weight, std=0.1)
        image = torch.rand(1, 3, 60, 50) * 255
        changed = model.with_classes(["dog", "background", "unicorn"])
        before, after = _logits(model, image), _logits(changed, image)
        torch.testing.assert_close(after[:2], before[[2, 0]], atol=1e-3, rtol=1e-4)
        assert (after.argmax(0) == 2).float().mean() < 0.1
