"""Planes that are too large to be seen as a whole."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from napari_crfasrnn import plane_logits, shortage
from napari_crfasrnn.classes import class_table
from napari_crfasrnn.config import CrfConfig, ModelConfig
from napari_crfasrnn.higher_order import Detection
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.plane_logits import PlaneLogits
from napari_crfasrnn.progress import Cancelled
from napari_crfasrnn.samples import sample
from napari_crfasrnn.segmenter import Segmenter, parts

CRF = CrfConfig.starter().model_copy(update={"theta_alpha": 6.0, "n_iterations": 3})
N_LABELS = 3
NOTHING = 255


def new_model(long_side: int | None = 512) -> SegmentationModel:
    torch.manual_seed(0)
    classes = class_table([f"c{i}" for i in range(N_LABELS)])
    config = ModelConfig(classes=classes, crf=CRF)
    preprocessing = config.preprocessing.model_copy(update={"long_side": long_side})
    model = SegmentationModel(config.model_copy(update={"preprocessing": preprocessing}))
    with torch.no_grad():
        for layer in model.network.score_layers:
            layer.weight.mul_(4)
        image = torch.from_numpy(sample("chelsea")[::2, ::2].transpose(2, 0, 1).astype(np.float32))
        model.network.score_layers[-1].bias -= model.logits(image[None]).mean((0, 2, 3))
    return model


PHOTO = sample("chelsea")[40:240, 90:390].copy()  # [200, 300, 3]


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return new_model()


def cut(monkeypatch: pytest.MonkeyPatch, n_pixels: int) -> None:
    """Let so many pixels be the most that are worked on at a time."""
    for module in (plane_logits, parts):
        monkeypatch.setattr(module, "WHOLE_PIXELS", n_pixels)
    monkeypatch.setattr(parts, "_LEAST_SIDE", 32)


def segmenter_of(model: SegmentationModel, image: np.ndarray = PHOTO) -> Segmenter:
    segmenter = Segmenter(model, "cpu")
    segmenter.set_image(image)
    return segmenter


class TestPlaneLogits:
    @given(
        small=st.tuples(st.integers(1, 12), st.integers(1, 12)),
        times=st.tuples(st.floats(1, 9), st.floats(1, 9)),
        data=st.data(),
    )
    def test_a_part_is_that_of_the_whole(self, small, times, data) -> None:
        size = (int(small[0] * times[0]), int(small[1] * times[1]))
        judged = torch.randn(1, 2, *small, generator=torch.Generator().manual_seed(0))
        whole = F.interpolate(judged, size, mode="bilinear", align_corners=False)
        y0, x0 = (data.draw(st.integers(0, n - 1)) for n in size)
        y1, x1 = (data.draw(st.integers(start + 1, n)) for start, n in zip((y0, x0), size, strict=True))
        with pytest.MonkeyPatch.context() as patch:
            for most in (0, 1 << 22):
                patch.setattr(plane_logits, "WHOLE_PIXELS", most)
                logits = PlaneLogits(judged, size)
                part = logits.within((y0, x0, y1, x1))
                torch.testing.assert_close(part, whole[..., y0:y1, x0:x1], atol=1e-5, rtol=0)
                rows, columns = torch.arange(y0, y1), torch.arange(x0, x1)
                points = torch.cartesian_prod(rows, columns)
                torch.testing.assert_close(logits.at(*points.T), part[0].flatten(1), atol=1e-5, rtol=0)

    def test_a_large_plane_is_never_enlarged_as_a_whole(self, monkeypatch) -> None:
        cut(monkeypatch, 1000)
        monkeypatch.setattr(F, "interpolate", None)
        logits = PlaneLogits(torch.zeros(1, 2, 8, 8), (4000, 4000))
        assert logits.within((3990, 0, 4000, 10)).shape == (1, 2, 10, 10)


class TestScale:
    def test_kernels_keep_their_width_in_what_the_network_saw(self, model: SegmentationModel) -> None:
        assert model.crf_scale((400, 512)) == 1
        assert model.crf_scale((1024, 300)) == 2
        assert model.crf_scale((1024, 300), with_experts=True) == 1  # they see it as it is
        assert model.crf_scale((1024, 4096), with_experts=True) == 2
        assert new_model(None).crf_scale((5000, 300)) == 1

    def test_an_image_enlarged_gets_the_labels_of_the_image_enlarged(self) -> None:
        """The same picture in twice as many pixels means the same."""
        model = new_model(300)
        big = PHOTO.repeat(4, 0).repeat(4, 1)
        small = segmenter_of(model).predict().labels
        expected = small.repeat(4, 0).repeat(4, 1)
        assert (segmenter_of(model, big).predict().labels == expected).mean() > 0.98
        unscaled = model.crf.prepare(model.crf_image(torch.from_numpy(big).permute(2, 0, 1)[None].float()))
        scaled = model.crf.prepare(
            model.crf_image(torch.from_numpy(big).permute(2, 0, 1)[None].float()), scale=4
        )
        spread = torch.zeros(1, 1, *big.shape[:2])
        spread[..., 400, 600] = 1
        near = [kernels.bilateral_sums(spread)[0, 0] > 1e-3 for kernels in (unscaled, scaled)]
        assert near[1].sum() > 2 * near[0].sum()

    @pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
    def test_a_senseless_scale_is_refused(self, model: SegmentationModel, scale: float) -> None:
        with pytest.raises(ValueError, match="scale must be above 0"):
            model.crf.prepare(torch.zeros(1, 3, 4, 4), scale=scale)


class TestParts:
    @given(
        height=st.integers(1, 700),
        width=st.integers(1, 700),
        most=st.integers(64**2, 400**2),
        with_crf=st.booleans(),
        data=st.data(),
    )
    def test_they_make_up_the_region_and_are_small_enough(
        self, height: int, width: int, most: int, with_crf: bool, data
    ) -> None:
        model = MODEL if with_crf else None
        y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        y1, x1 = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))
        with pytest.MonkeyPatch.context() as patch:
            cut(patch, most)
            found = parts.parts_of((y0, x0, y1, x1), (height, width), model)
        times = np.zeros((height, width), int)
        for (top, left, bottom, right), window in found:
            times[top:bottom, left:right] += 1
            reach = 12 if with_crf else 0  # twice theta_alpha
            assert window[0] <= max(0, top - reach)
            assert window[1] <= max(0, left - reach)
            assert window[2] >= min(height, bottom + reach)
            assert window[3] >= min(width, right + reach)
            assert window[0] >= 0
            assert window[1] >= 0
            assert window[2] <= height
            assert window[3] <= width
            # A part of the least side, with what its kernels reach, may be larger than what is worked on.
            assert parts.area(window) <= max(most, (32 + 2 * (reach + 31) + 31) ** 2)
        assert (times[y0:y1, x0:x1] == 1).all()
        assert times.sum() == (y1 - y0) * (x1 - x0)

    def test_a_small_plane_is_one(self, model: SegmentationModel) -> None:
        whole = (0, 0, 1024, 2048)
        assert parts.parts_of(whole, (1024, 2048), model) == [(whole, whole)]
        assert len(parts.parts_of((0, 0, 1025, 2048), (1025, 2048), model)) > 1

    def test_halos_of_ever_larger_images_end(self, model: SegmentationModel) -> None:
        """A region is not seen with a whole large image around it."""
        seen = parts.with_halo((30_000, 30_000, 30_064, 30_064), (60_000, 60_000), model)
        assert parts.area(seen) < 700**2
        assert parts.kernel_reach(model, (60_000, 60_000)) == pytest.approx(6 * 60_000 / 512)


MODEL = new_model()


class TestPrediction:
    def test_it_is_nearly_that_of_the_whole(self, model: SegmentationModel, monkeypatch) -> None:
        whole = segmenter_of(model).predict(marginals=True)
        cut(monkeypatch, 150 * 150)
        steps: list[tuple[int, int]] = []
        in_parts = segmenter_of(model).predict(
            marginals=True, progress=lambda done, total: steps.append((done, total))
        )
        assert whole.before_crf is not None
        assert in_parts.before_crf is not None
        assert (whole.labels != whole.before_crf).mean() > 0.02  # the CRF does something
        assert (in_parts.before_crf == whole.before_crf).mean() > 0.9999  # but for ties
        # The lattice of a part lies otherwise than that of the whole, whatever halo the part has.
        assert (in_parts.labels == whole.labels).mean() > 0.995
        assert np.abs(in_parts.entropy - whole.entropy).mean() < 0.005
        assert in_parts.marginals is not None
        np.testing.assert_array_equal(in_parts.marginals.argmax(0), in_parts.labels)
        np.testing.assert_allclose(in_parts.marginals.sum(0), 1, atol=1e-5)
        n_parts = len(parts.parts_of((0, 0, *PHOTO.shape[:2]), PHOTO.shape[:2], model))
        assert n_parts >= 4
        total = 1 + n_parts * (1 + CRF.n_iterations)
        assert steps == [(done, total) for done in range(1, total + 1)]

    def test_without_the_crf_it_is_that_of_the_whole(self, model: SegmentationModel, monkeypatch) -> None:
        whole = segmenter_of(model).predict(crf=False).labels
        cut(monkeypatch, 150 * 150)
        assert (segmenter_of(model).predict(crf=False).labels == whole).mean() > 0.9999

    def test_in_the_frame_of_a_demo_it_is_that_of_the_whole(self, monkeypatch) -> None:
        torch.manual_seed(0)
        classes = class_table([f"c{i}" for i in range(N_LABELS)])
        framed = SegmentationModel(ModelConfig(architecture="fcn-8s", width=0.02, classes=classes, crf=CRF))
        framed = framed.with_frame("pytorch")
        whole = segmenter_of(framed).predict()
        cut(monkeypatch, 150 * 150)
        in_parts = segmenter_of(framed).predict()
        np.testing.assert_array_equal(in_parts.labels, whole.labels)
        np.testing.assert_array_equal(in_parts.before_crf, whole.before_crf)

    def test_a_detection_speaks_where_it_is(self, model: SegmentationModel, monkeypatch) -> None:
        cut(monkeypatch, 150 * 150)
        plain = segmenter_of(model).predict(superpixels=True).labels
        mask = np.zeros(PHOTO.shape[:2], bool)
        mask[10:60, 10:80] = True
        # of the class that fewest pixels there have
        label = int(np.bincount(plain[mask], minlength=N_LABELS).argmin())
        detection = Detection(label, 0.99, mask)
        told = segmenter_of(model).predict(superpixels=True, detections=[detection]).labels
        assert (told[mask] == label).sum() > (plain[mask] == label).sum()
        np.testing.assert_array_equal(told[:, 250:], plain[:, 250:])  # another part, without any of it

    def test_a_cancel_ends_it_at_any_step(self, model: SegmentationModel, monkeypatch) -> None:
        cut(monkeypatch, 150 * 150)
        segmenter = segmenter_of(model)
        for patience in (0, 1, 5, 11):
            left = iter([False] * patience)
            with pytest.raises(Cancelled):
                segmenter.predict(cancel=lambda left=left: next(left, True))
        np.testing.assert_array_equal(segmenter.predict().labels, segmenter_of(model).predict().labels)

    def test_parts_fit_into_memory_where_the_whole_does_not(
        self, model: SegmentationModel, monkeypatch
    ) -> None:
        n_bytes = 150 * PHOTO.shape[0] * PHOTO.shape[1]
        monkeypatch.setattr(shortage.psutil, "virtual_memory", lambda: SimpleNamespace(available=n_bytes))
        monkeypatch.setattr(shortage.psutil, "swap_memory", lambda: SimpleNamespace(free=0))
        with pytest.raises(MemoryError, match="200 x 300 pixels"):
            segmenter_of(model).predict()
        cut(monkeypatch, 130 * 130)
        segmenter_of(model).predict()


class TestRefinement:
    def strokes(self) -> np.ndarray:
        strokes = np.full(PHOTO.shape[:2], NOTHING, np.uint8)
        strokes[20:180, 148:154] = 1
        strokes[90:96, 20:280] = 2
        return strokes

    def test_it_is_nearly_that_of_the_whole(self, model: SegmentationModel, monkeypatch) -> None:
        strokes = self.strokes()
        held = strokes != NOTHING
        whole = segmenter_of(model).refine(strokes, clamp=held)
        cut(monkeypatch, 150 * 150)
        in_parts = segmenter_of(model).refine(strokes, clamp=held)
        np.testing.assert_array_equal(in_parts.labels[held], strokes[held])
        assert (in_parts.entropy[held] == 0).all()
        assert (in_parts.labels == whole.labels).mean() > 0.99  # without what lies around, 0.965

    def test_logits_are_refined_in_parts_too(self, model: SegmentationModel, monkeypatch) -> None:
        logits = model.logits(torch.from_numpy(PHOTO).permute(2, 0, 1)[None].float())[0].detach().numpy()
        whole = segmenter_of(model).refine(logits).labels
        cut(monkeypatch, 150 * 150)
        assert (segmenter_of(model).refine(logits).labels == whole).mean() > 0.995

    def test_live_answers_a_long_stroke_as_refine_does(self, model: SegmentationModel, monkeypatch) -> None:
        monkeypatch.setattr(parts, "LIVE_PIXELS", 100)
        cut(monkeypatch, 150 * 150)
        strokes, box = self.strokes(), (20, 20, 180, 280)
        at_work = segmenter_of(model).live()
        assert not at_work.is_whole
        window, changing = at_work.exact_window(box), at_work.exact_box(box)
        assert len(parts.parts_of(changing, PHOTO.shape[:2], model)) > 1
        seen = strokes[window[0] : window[2], window[1] : window[3]]
        answer = at_work.exact(box, seen, np.full_like(seen, NOTHING))
        refined = segmenter_of(model).refine(strokes, clamp=strokes != NOTHING, region=changing)
        inside = (slice(changing[0], changing[2]), slice(changing[1], changing[3]))
        np.testing.assert_array_equal(answer.labels, refined.labels[inside])
        np.testing.assert_array_equal(
            answer.entropy()[strokes[inside] == NOTHING], refined.entropy[inside][strokes[inside] == NOTHING]
        )
        assert answer.changed.any()
        preview_window = at_work.preview_window((90, 100, 96, 130))
        painted = strokes[preview_window[0] : preview_window[2], preview_window[1] : preview_window[3]]
        preview = at_work.preview((90, 100, 96, 130), painted, np.full_like(painted, NOTHING))
        assert (preview.labels[painted != NOTHING] == painted[painted != NOTHING]).all()
