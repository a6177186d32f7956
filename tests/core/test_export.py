"""A project as a training set: what comes out is what `open_data_set` and other tools read."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.measure import label as connected_components
from typer.testing import CliRunner

from napari_crfasrnn.classes import ClassSpec
from napari_crfasrnn.cli import app
from napari_crfasrnn.imaging import IGNORE_COLOR, open_image, read_image, write_plane
from napari_crfasrnn.progress import Cancelled
from napari_crfasrnn.project import Project, SaveError, export_project
from napari_crfasrnn.training import open_data_set

CLASSES = [
    ClassSpec(name="background", color=(0, 0, 0)),
    ClassSpec(name="cell", color=(9, 200, 30)),
    ClassSpec(name="fine debris", color=(200, 9, 30)),
]
SHAPE = (12, 16)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with Project.create(tmp_path / "larvae", CLASSES) as made:
        yield made


def photograph(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SHAPE, 3), np.uint8)


def plane(value: int) -> np.ndarray:
    return np.full(SHAPE, value, np.uint8)


def some_labels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([0, 1, 2, 255], np.uint8), SHAPE)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class TestRoundTrip:
    def test_open_data_set_reads_what_was_written(self, project: Project, tmp_path: Path) -> None:
        images = {f"photo {n}": photograph(n) for n in range(6)}
        labels = {name: some_labels(n) for n, name in enumerate(images)}
        for name, image in images.items():
            project.add(image, name=name, labels=labels[name])
        project.add(photograph(9), name="nobody labelled it")
        done = export_project(project, tmp_path / "set")
        assert (done.n_images, done.n_left_out) == (6, 1)

        read = open_data_set(tmp_path / "set")
        assert [spec.name for spec in read.classes] == ["background", "cell", "fine debris"]
        assert (len(read.train), len(read.val)) == (done.n_train, done.n_val)
        assert done.n_val >= 1
        samples = {sample.name: sample for sample in (*read.train, *read.val)}
        assert set(samples) == {name.replace(" ", "_") for name in images}
        for name in images:
            image, mask = read.load(samples[name.replace(" ", "_")])
            np.testing.assert_array_equal(image, np.moveaxis(images[name], -1, 0))
            np.testing.assert_array_equal(mask, labels[name])

    def test_masks_have_the_colours_of_the_classes(self, project: Project, tmp_path: Path) -> None:
        project.add(photograph(), name="a", labels=some_labels())
        export_project(project, tmp_path / "set")
        with Image.open(tmp_path / "set" / "masks" / "a.png") as mask:
            assert mask.mode == "P"
            palette = np.array(mask.getpalette()).reshape(-1, 3)
        np.testing.assert_array_equal(palette[:3], [spec.color for spec in CLASSES])
        np.testing.assert_array_equal(palette[255], IGNORE_COLOR)
        assert files(tmp_path / "set") == [
            "classes.txt", "images/a.png", "masks/a.png", "train.txt", "val.txt",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("dtype", "shape", "axes", "suffix"),
        [
            ("uint8", (5, 6), "YX", ".png"),
            ("bool", (5, 6), "YX", ".png"),
            ("uint8", (6, 5, 3), "XYC", ".png"),
            ("uint8", (3, 5, 6), "CYX", ".png"),
            ("uint8", (5, 6, 1), "YXC", ".png"),
            ("uint8", (5, 6, 4), "YXC", ".png"),
            ("uint8", (4, 5, 6), "CYX", ".tif"),
            ("bool", (2, 5, 6), "CYX", ".tif"),
            ("uint16", (5, 6), "YX", ".tif"),
            ("uint16", (1, 3), "YX", ".tif"),
            ("uint16", (5, 6, 3), "YXC", ".tif"),
            ("float32", (4, 6, 4), "YXC", ".tif"),
            ("float64", (5, 4, 6), "YCX", ".tif"),
            ("int16", (7, 3, 4), "CYX", ".tif"),
            ("int64", (5, 6), "YX", ".tif"),
            ("uint64", (5, 6, 2), "YXC", ".tif"),
            ("float16", (5, 6), "YX", ".tif"),
        ],
    )
    def test_every_kind_of_plane_is_read_back(self, tmp_path: Path, dtype, shape, axes, suffix) -> None:
        values = np.random.default_rng(3).integers(0, 2 if dtype == "bool" else 200, shape).astype(dtype)
        path = write_plane(tmp_path, "a.b", values, axes)
        assert path.name == f"a.b{suffix}"
        read = read_image(path)
        if (dtype, axes) != ("bool", "CYX"):  # in channels booleans become bytes, as which they count
            assert read.array.dtype == values.dtype
            assert read.array.size == values.size
        np.testing.assert_array_equal(
            open_image(read.array, read.axes).plane(), open_image(values, axes).plane()
        )


class TestLabels:
    def test_only_what_a_person_settled(self, project: Project, tmp_path: Path) -> None:
        labels, verified = plane(0), plane(0).astype(bool)
        labels[:3] = 1  # corrected
        labels[5] = 255  # erased
        verified[8:] = True
        project.add(photograph(), name="a", labels=labels, baseline=plane(0), verified=verified)
        project.add(photograph(1), name="untouched", labels=plane(2), baseline=plane(2))
        assert export_project(project, tmp_path / "all").n_images == 2
        done = export_project(project, tmp_path / "settled", labels="settled")
        assert (done.n_images, done.n_left_out) == (1, 1)
        (sample,) = open_data_set(tmp_path / "settled").train
        expected = plane(255)
        expected[:3], expected[8:] = 1, 0
        np.testing.assert_array_equal(open_data_set(tmp_path / "settled").labels(sample), expected)

    def test_strokes_where_no_model_was_are_settled(self, project: Project, tmp_path: Path) -> None:
        project.add(photograph(), name="a", labels=some_labels())
        export_project(project, tmp_path / "set", labels="settled")
        read = open_data_set(tmp_path / "set")
        np.testing.assert_array_equal(read.labels(read.train[0]), some_labels())

    def test_a_plane_saved_while_it_is_read_is_read_again(
        self, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between labels and baseline another model may have segmented it: nothing of that is settled."""
        item = project.add(photograph(), name="a", labels=plane(1), baseline=plane(1))
        read, left = type(item).baseline, [True]

        def baseline(self, index=None):
            if left:
                left.clear()
                project.set_labels(item, plane(2), baseline=plane(2))
            return read(self, index)

        monkeypatch.setattr(type(item), "baseline", baseline)
        with pytest.raises(ValueError, match="painted, corrected or verified, got none in 1 image"):
            export_project(project, tmp_path / "set", labels="settled")

    def test_a_stack_gives_a_file_for_each_plane_with_labels(self, project: Project, tmp_path: Path) -> None:
        stack = np.random.default_rng(0).integers(0, 60000, (2, *SHAPE, 3), np.uint16)
        labels = np.full((2, 3, *SHAPE), 255, np.uint8)
        labels[0, 2], labels[1, 0] = 1, some_labels()
        project.add(np.moveaxis(stack, -1, 1), name="brain", axes="TZYX", labels=labels)
        project.add(photograph(), name="brain_t000_z002", labels=some_labels(1))  # as if to confuse
        done = export_project(project, tmp_path / "set", val_share=0)
        assert (done.n_train, done.n_val, done.n_left_out) == (3, 0, 4)
        read = open_data_set(tmp_path / "set")
        assert [sample.name for sample in read.train] == [
            "brain_t000_z002", "brain_t001_z000", "brain_t000_z002_2",
        ]  # fmt: skip
        np.testing.assert_array_equal(read.labels(read.train[1]), labels[1, 0])
        written = read_image(tmp_path / "set" / "images" / "brain_t000_z002.tif")
        np.testing.assert_array_equal(written.array, stack[0, ..., 2])

    def test_more_classes_than_a_palette_holds(self, tmp_path: Path) -> None:
        labels = np.full(SHAPE, 65535, np.uint16)
        labels[0], labels[1] = 299, 255
        with Project.create(tmp_path / "many", [f"kind {n}" for n in range(300)]) as project:
            project.add(photograph(), name="a", labels=labels)
            (note,) = export_project(project, tmp_path / "set").notes
        assert note == "masks have 16 bits for 300 classes; train reads up to 255"
        with Image.open(tmp_path / "set" / "masks" / "a.png") as mask:
            assert mask.mode == "I;16"
            np.testing.assert_array_equal(np.asarray(mask), labels)
        assert len((tmp_path / "set" / "classes.txt").read_text(encoding="utf-8").splitlines()) == 300


class TestNames:
    def test_names_are_safe_distinct_and_read_back(self, project: Project, tmp_path: Path) -> None:
        names = [
            "photo.PNG", "Photo", "a/b:c", "cell 1\tleft", ".hidden", "con", "\u00e9", "e\u0301", "..",
            "字" * 200, "v1.2",
        ]  # fmt: skip
        for n, name in enumerate(names):
            project.add(photograph(n), name=name, labels=some_labels(n))
        export_project(project, tmp_path / "set")
        read = open_data_set(tmp_path / "set")
        found = {sample.name for sample in (*read.train, *read.val)}
        assert found == {
            "photo", "Photo_2", "a_b_c", "cell_1_left", "hidden", "con_", "é", "é_2", "image_9",
            "字" * 60, "v1.2",
        }  # fmt: skip
        assert len({name.casefold() for name in found}) == len(names)

    def test_a_class_of_two_lines_is_refused(self, project: Project, tmp_path: Path) -> None:
        project.set_classes(["background", "two\nlines"])
        project.add(photograph(), labels=plane(1))
        with pytest.raises(ValueError, match=r"one line to be in classes\.txt, got 'two"):
            export_project(project, tmp_path / "set")
        assert not (tmp_path / "set").exists()


class TestSplit:
    def test_an_image_stays_on_its_side(self, project: Project, tmp_path: Path) -> None:
        for n in range(24):
            project.add(plane(n), name=f"image {n}", labels=plane(n % 3))
            if n == 11:
                export_project(project, tmp_path / "first")
        export_project(project, tmp_path / "second")
        first, second = (open_data_set(tmp_path / name) for name in ("first", "second"))
        assert {s.name for s in first.train} <= {s.name for s in second.train}
        assert {s.name for s in first.val} <= {s.name for s in second.val}
        assert 2 <= len(second.val) <= 8

    @pytest.mark.parametrize(
        ("n_images", "val_share", "expected"),
        [(1, 0.9, (1, 0)), (2, 0.01, (1, 1)), (3, 0.99, (1, 2)), (3, 0, (3, 0))],
    )
    def test_none_of_the_lists_is_empty_without_need(
        self, project: Project, tmp_path: Path, n_images, val_share, expected
    ) -> None:
        for n in range(n_images):
            project.add(plane(n), name=f"{n}", labels=plane(1))
        done = export_project(project, tmp_path / "set", val_share=val_share)
        read = open_data_set(tmp_path / "set")
        assert (done.n_train, done.n_val) == (len(read.train), len(read.val)) == expected

    def test_the_planes_of_a_stack_are_on_one_side(self, project: Project, tmp_path: Path) -> None:
        for name in ("a", "b"):
            project.add(np.zeros((5, *SHAPE), np.uint8), name=name, labels=np.ones((5, *SHAPE), np.uint8))
        done = export_project(project, tmp_path / "set")
        assert (done.n_train, done.n_val) == (5, 5)
        read = open_data_set(tmp_path / "set")
        assert len({sample.name[0] for sample in read.val}) == 1


def decoded(segmentation: dict) -> np.ndarray:
    """Decode run lengths as ``pycocotools`` does: column by column, outside first."""
    inside = np.arange(len(segmentation["counts"])) % 2 == 1
    height, width = segmentation["size"]
    return np.repeat(inside, segmentation["counts"]).reshape(width, height).T


class TestCoco:
    @pytest.mark.parametrize("first", ["background", "soil"])
    def test_the_regions_make_up_the_labels(self, tmp_path: Path, first: str) -> None:
        labels = {f"photo {n}": np.kron(some_labels(n)[:4, :8], np.ones((3, 2), np.uint8)) for n in range(4)}
        with Project.create(tmp_path / "larvae", [first, "cell", "debris"]) as project:
            for n, name in enumerate(labels):
                project.add(photograph(n), name=name, labels=labels[name])
            done = export_project(project, tmp_path / "set", layout="coco")
        made = {}
        for part, n_images in (("train", done.n_train), ("val", done.n_val)):
            content = json.loads((tmp_path / "set" / f"{part}.json").read_text(encoding="utf-8"))
            assert len(content["images"]) == n_images
            value_of = {c["id"]: [first, "cell", "debris"].index(c["name"]) for c in content["categories"]}
            assert min(value_of) == 1
            assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
            for image in content["images"]:
                assert (tmp_path / "set" / "images" / image["file_name"]).is_file()
                back = np.full((image["height"], image["width"]), 255, np.uint8)
                for found in content["annotations"]:
                    if found["image_id"] != image["id"]:
                        continue
                    where = decoded(found["segmentation"])
                    assert where.shape == back.shape
                    assert connected_components(where, connectivity=2).max() == 1
                    assert found["area"] == where.sum()
                    y, x = np.nonzero(where)
                    box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
                    assert found["bbox"] == box
                    assert (back[where] == 255).all()
                    back[where] = value_of[found["category_id"]]
                made[image["file_name"]] = back
        for name, expected in labels.items():
            if first == "background":  # of it COCO has no annotation
                expected = np.where(expected == 0, 255, expected)
            np.testing.assert_array_equal(made[f"{name.replace(' ', '_')}.png"], expected)

    def test_without_held_images_there_is_one_file(self, project: Project, tmp_path: Path) -> None:
        project.add(photograph(), name="a", labels=plane(2))
        export_project(project, tmp_path / "set", layout="coco")
        assert files(tmp_path / "set") == ["images/a.png", "train.json"]
        (found,) = json.loads((tmp_path / "set" / "train.json").read_text())["annotations"]
        assert found["segmentation"]["counts"] == [0, 12 * 16]


class TestCommand:
    @pytest.fixture
    def larvae(self, project: Project) -> Path:
        labels = plane(0)
        labels[:3] = 1
        project.add(photograph(), name="a", labels=labels, baseline=plane(0))
        project.add(photograph(1), name="b", labels=plane(2), baseline=plane(2))
        return project.path  # and still open, as in a window

    def run(self, *arguments: object):
        return CliRunner().invoke(app, ["export", *map(str, arguments)])

    def test_a_project_becomes_a_folder_to_train_on(self, larvae: Path, tmp_path: Path) -> None:
        done = self.run(larvae, "-o", tmp_path / "set")
        assert done.exit_code == 0, done.output
        assert done.stdout.strip() == f"{tmp_path / 'set'}: 2 images, 1 to train on and 1 to validate with"
        assert done.stderr == ""
        assert open_data_set(tmp_path / "set").n_labels == 3

    def test_options_and_json(self, larvae: Path, tmp_path: Path) -> None:
        options = ("--labels", "settled", "--val-share", "0", "--layout", "coco", "--json")
        done = self.run(larvae, "-o", tmp_path / "set", *options)
        assert json.loads(done.stdout) == {
            "output": str(tmp_path / "set"), "images": 1, "train": 1, "val": 0, "left out": 1,
            "notes": ["some pixels of the image have no label: in COCO's files they count as background"],
        }  # fmt: skip
        assert files(tmp_path / "set") == ["images/a.png", "train.json"]

    def test_bad_input_is_one_sentence_and_code_two(self, larvae: Path, tmp_path: Path) -> None:
        new = tmp_path / "set"
        for arguments, message in (
            ((tmp_path / "none", "-o", new), "PROJECT must be the folder of a project, but there is none at"),
            ((tmp_path, "-o", new), "path must be a project folder"),
            ((larvae, "-o", larvae), "--output must be a new or empty folder, got"),
            ((larvae, "-o", new, "--labels", "good"), "labels must be 'all' or 'settled', got 'good'"),
            ((larvae, "-o", new, "--val-share", "1"), "val_share must be a share"),
        ):
            done = self.run(*arguments)
            assert done.exit_code == 2
            assert done.stdout == ""
            (line,) = done.stderr.splitlines()
            assert message in line
            assert not new.exists()


class TestWholeOrNothing:
    @pytest.fixture
    def full(self, project: Project) -> Project:
        for n in range(3):
            project.add(photograph(n), name=f"photo {n}", labels=some_labels(n))
        return project

    def test_progress_and_cancel(self, full: Project, tmp_path: Path) -> None:
        told: list[tuple[int, int]] = []
        target = tmp_path / "set"
        target.mkdir()
        before = sorted(tmp_path.iterdir())
        with pytest.raises(Cancelled):
            export_project(
                full, target, progress=lambda *step: told.append(step), cancel=lambda: len(told) == 2
            )
        assert told == [(1, 3), (2, 3)]
        assert sorted(tmp_path.iterdir()) == before  # also the empty folder that was there
        assert not any(target.iterdir())
        assert export_project(full, target).path == target

    def test_a_folder_that_holds_something_is_refused(self, full: Project, tmp_path: Path) -> None:
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "mine.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="must be a new or empty folder, got one that holds"):
            export_project(full, tmp_path / "set")
        assert files(tmp_path / "set") == ["mine.txt"]

    @pytest.mark.parametrize("passes", [0, 1, 4])
    def test_a_full_disk(
        self, full: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes
    ) -> None:
        before, save, left = sorted(tmp_path.iterdir()), Image.Image.save, [None] * passes

        def full_disk(self, *args: object, **kwargs: object) -> None:
            if not left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left.pop()
            save(self, *args, **kwargs)

        monkeypatch.setattr(Image.Image, "save", full_disk)
        with pytest.raises(SaveError, match=r"training set could not be written to .*set \(no space left"):
            export_project(full, tmp_path / "set")
        assert sorted(tmp_path.iterdir()) == before

    def test_classes_changed_meanwhile(self, full: Project, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="classes of the project were changed while it was exported"):
            export_project(
                full, tmp_path / "set", progress=lambda *_: full.set_classes(["background", "cell"])
            )
        assert not (tmp_path / "set").exists()

    def test_nothing_to_export(self, project: Project, tmp_path: Path) -> None:
        project.add(photograph())
        project.add(photograph())
        with pytest.raises(ValueError, match="must hold labels to be exported, got none in 2 images: paint"):
            export_project(project, tmp_path / "set")
        assert not (tmp_path / "set").exists()

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"labels": "some"}, "labels must be 'all' or 'settled', got 'some'"),
            ({"layout": "yolo"}, "layout must be 'plain' or 'coco', got 'yolo'"),
            ({"val_share": 1.0}, "val_share must be a share from 0 up to but not 1, got 1.0"),
        ],
    )
    def test_wrong_arguments(self, full: Project, tmp_path: Path, wrong, message) -> None:
        with pytest.raises(ValueError, match=message):
            export_project(full, tmp_path / "set", **wrong)
