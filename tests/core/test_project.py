"""The project on disk: what goes in comes out, and nothing is ever lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage import data

from napari_crfasrnn.classes import VOC_CLASSES, ClassSpec
from napari_crfasrnn.project import Project, SaveError
from napari_crfasrnn.project.database import DATABASE, SCHEMA_VERSION

CLASSES = ["background", "cell", "debris"]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with Project.create(tmp_path / "larvae", CLASSES) as made:
        yield made


def plane(value: int, shape: tuple[int, ...] = (20, 30)) -> np.ndarray:
    return np.full(shape, value, np.uint8)


class TestRoundTrip:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        image=st.one_of(
            hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=5, max_side=5))
            for dtype in (np.bool_, np.uint8, np.uint16, np.int16, np.int64, np.float32, np.float64)
        )
    )
    def test_an_image_comes_back_exactly(self, project: Project, image: np.ndarray) -> None:
        item = project.add(image)
        back = item.image()
        assert back.dtype == image.dtype
        assert back.shape == image.shape == item.shape
        np.testing.assert_array_equal(back, image)
        assert item.labels().shape == item.label_shape
        project.remove(item)

    @pytest.mark.parametrize("axes", ["YXC", "CYX", "XYC", "CXY"])
    def test_any_axes_order(self, project: Project, axes: str) -> None:
        size = {"Y": 6, "X": 9, "C": 3}
        image = np.arange(6 * 9 * 3, dtype=np.uint16).reshape([size[letter] for letter in axes])
        item = project.add(image, axes=axes)
        np.testing.assert_array_equal(item.image(), image)
        assert item.plane_shape == (6, 9)

    def test_big_endian_and_strided_arrays(self, project: Project) -> None:
        image = np.arange(400, dtype=">u2").reshape(20, 20)[::2, ::-1]
        np.testing.assert_array_equal(project.add(image).image(), image)

    def test_everything_survives_closing_and_opening(self, tmp_path: Path) -> None:
        labels, baseline, verified = plane(1), plane(0), plane(0).astype(bool)
        labels[3:5] = 255
        verified[7] = True
        with Project.create(tmp_path / "p", CLASSES) as made:
            made.add(
                data.coins()[:20, :30],
                name="coins",
                spacing=(0.5, 0.25),
                units=("um", "um"),
                metadata={"scale": np.float32(0.5), "translate": (1, 2), "axis_labels": ["y", "x"]},
                labels=labels,
                baseline=baseline,
                verified=verified,
            )
        with Project.open(tmp_path / "p") as project:
            assert not project.read_only
            assert [spec.name for spec in project.classes] == CLASSES
            (item,) = project.items
            assert (item.name, item.axes, item.spacing, item.units) == (
                "coins",
                "YX",
                (0.5, 0.25),
                ("um", "um"),
            )
            assert item.metadata == {"scale": 0.5, "translate": [1, 2], "axis_labels": ["y", "x"]}
            np.testing.assert_array_equal(item.image(), data.coins()[:20, :30])
            np.testing.assert_array_equal(item.labels(), labels)
            np.testing.assert_array_equal(item.baseline(), baseline)
            np.testing.assert_array_equal(item.verified(), verified)
            assert item.verified().dtype == np.bool_
            assert [event["action"] for event in project.events] == ["create", "add"]

    def test_what_was_not_given_is_unlabelled(self, project: Project) -> None:
        item = project.add(np.zeros((4, 5, 6), np.uint16), axes="ZYX")
        assert (item.labels() == 255).all()
        assert item.labels().dtype == np.uint8
        assert item.baseline() is None
        assert not item.verified().any()

    def test_ordinary_programs_read_the_arrays(self, project: Project) -> None:
        project.add(data.chelsea(), labels=plane(1, data.chelsea().shape[:2]))
        arrays = {path.name.split("_")[1]: tifffile.imread(path) for path in project.path.glob("arrays/*")}
        np.testing.assert_array_equal(arrays["image"], data.chelsea())
        assert (arrays["labels"] == 1).all()

    def test_sixteen_bit_labels_with_many_classes(self, tmp_path: Path) -> None:
        with Project.create(tmp_path / "many", [f"class {n}" for n in range(300)]) as project:
            labels = np.full((8, 8), 65535, np.uint16)
            labels[0] = 255
            labels[1] = 299
            item = project.add(np.zeros((8, 8)), labels=labels)
            np.testing.assert_array_equal(item.labels(), labels)


class TestLabels:
    def test_baseline_and_verified_stay_unless_given(self, project: Project) -> None:
        item = project.add(plane(0), labels=plane(1), baseline=plane(0), verified=plane(1))
        item = project.set_labels(item, plane(2))
        assert (item.labels() == 2).all()
        assert (item.baseline() == 0).all()
        assert item.verified().all()
        project.set_labels(item, plane(2), baseline=plane(2), verified=plane(0))
        assert (item.baseline() == 2).all()
        assert not item.verified().any()

    def test_images_of_other_projects_are_refused(self, project: Project, tmp_path: Path) -> None:
        own = project.add(plane(0), labels=plane(1))
        with Project.create(tmp_path / "other", CLASSES) as other:
            for foreign in (other.add(plane(0), labels=plane(2)), other.add(plane(0, (9, 8)))):
                changes = (
                    lambda item=foreign: project.set_labels(item, plane(2, item.plane_shape)),
                    lambda item=foreign: project.verify(item),
                    lambda item=foreign: project.describe(item, name="x"),
                    lambda item=foreign: project.remove(item),
                )
                for change in changes:
                    with pytest.raises((ValueError, KeyError), match=r"must be of this project|has no item"):
                        change()
        assert (project.items[0].labels() == 1).all()
        assert project.items == (own,)
        with pytest.raises(TypeError, match="item must be an image of the project"):
            project.set_labels(1, plane(0))  # type: ignore[arg-type]

    def test_a_square_is_verified(self, project: Project) -> None:
        labels = np.zeros((2, 20, 30), np.uint8)
        labels[1, 5, 6] = 255
        item = project.add(np.zeros((2, 20, 30), np.uint8), axes="ZYX", labels=labels, baseline=labels)
        item = project.verify(item, (4, 6, 10, 12), index=(1,))
        expected = np.zeros(labels.shape, bool)
        expected[1, 4:10, 6:12] = True
        expected[1, 5, 6] = False  # unlabelled
        np.testing.assert_array_equal(item.verified(), expected)
        item = project.verify(item)
        np.testing.assert_array_equal(item.verified(), labels != 255)
        for box in ((0, 0, 21, 30), (3, 3, 3, 9), (-1, 0, 4, 4)):
            with pytest.raises(ValueError, match="box must lie in the plane"):
                project.verify(item, box, index=(0,))

    def test_one_plane_of_a_stack(self, project: Project) -> None:
        item = project.add(np.zeros((2, 3, 20, 30), np.uint8), axes="TZYX")
        project.set_labels(item, plane(2), verified=plane(1), index=(1, 2))
        assert (item.labels((1, 2)) == 2).all()
        assert item.labels().shape == (2, 3, 20, 30)
        assert (item.labels() == 2).sum() == item.verified().sum() == 600
        assert item.baseline() is None
        with pytest.raises(IndexError, match=r"index must be a place in the stack of shape \(2, 3\)"):
            project.set_labels(item, plane(2), index=(2, 0))
        with pytest.raises(IndexError, match="index must be a place"):
            item.labels((0,))

    def test_only_changed_planes_are_written(self, project: Project) -> None:
        item = project.add(np.zeros((5, 20, 30), np.uint8), labels=np.stack([plane(n % 3) for n in range(5)]))
        before = set(os.listdir(project.path / "arrays"))
        labels = item.labels()
        labels[3, 2, 2] = 1
        project.set_labels(item, labels)
        after = set(os.listdir(project.path / "arrays"))
        assert len(before - after) == len(after - before) == 1
        np.testing.assert_array_equal(item.labels(), labels)

    def test_erasing_everything_leaves_no_file(self, project: Project) -> None:
        item = project.add(plane(0), labels=plane(1))
        project.set_labels(item, plane(255))
        assert [name for name in os.listdir(project.path / "arrays") if "labels" in name] == []
        assert (item.labels() == 255).all()

    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            ({"labels": plane(3)}, ValueError, "labels must hold values from 0 to 2, or 255"),
            ({"labels": plane(0).astype(float)}, TypeError, "labels must hold integers, got float64"),
            (
                {"labels": plane(0, (3, 3))},
                ValueError,
                r"labels must have the shape .* \(20, 30\), got \(3, 3\)",
            ),
            ({"labels": plane(0), "baseline": plane(7)}, ValueError, "baseline must hold values"),
            (
                {"labels": plane(0), "verified": plane(0).astype(float)},
                TypeError,
                "verified must hold booleans",
            ),
        ],
    )
    def test_wrong_labels_are_refused_and_change_nothing(
        self, project: Project, change: dict, error: type[Exception], match: str
    ) -> None:
        item = project.add(plane(0), labels=plane(1))
        with pytest.raises(error, match=match):
            project.set_labels(item, **change)
        assert (item.labels() == 1).all()
        assert item.baseline() is None

    def test_numbers_are_never_used_twice(self, project: Project) -> None:
        first = project.add(plane(0))
        project.remove(first)
        second = project.add(plane(0))
        assert second.id == first.id + 1
        assert project.items == (second,)
        with pytest.raises(KeyError, match=f"no item {first.id}"):
            project.set_labels(first, plane(0))
        assert {name.split("_")[0] for name in os.listdir(project.path / "arrays")} == {f"{second.id:06d}"}

    def test_bad_images_are_refused(self, project: Project) -> None:
        with pytest.raises((TypeError, ValueError), match="image"):
            project.add(np.zeros(5))
        with pytest.raises(ValueError, match="units must hold one entry for each axis of 'YX'"):
            project.add(plane(0), units=["um"])
        with pytest.raises(TypeError, match="metadata must hold JSON values"):
            project.add(plane(0), metadata={"layer": object()})
        assert project.items == ()
        assert os.listdir(project.path / "arrays") == []

    def test_threads_share_a_project(self, project: Project) -> None:
        item = project.add(plane(0), labels=plane(0))
        torn: list[np.ndarray] = []
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                labels = item.labels()
                if not (labels == labels[0, 0]).all():
                    torn.append(labels)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for value in range(30):
            project.set_labels(item, plane(value % 3))
        stop.set()
        for reader in readers:
            reader.join()
        assert torn == []


class TestClasses:
    @pytest.fixture
    def labelled(self, project: Project) -> Project:
        labels, baseline = plane(0), plane(0)
        labels[0:4], baseline[2:8] = 1, 1
        labels[8:12], baseline[10:14] = 2, 2
        labels[14:16] = 255
        project.add(plane(9), labels=labels, baseline=baseline, verified=labels == 2)
        project.add(plane(9))
        return project

    def test_renaming_recolouring_and_adding_keep_the_labels(self, labelled: Project) -> None:
        before = labelled.items[0].labels()
        files = set(os.listdir(labelled.path / "arrays"))
        table = ["background", ClassSpec(name="nucleus", color=(1, 2, 3)), "debris", "border"]
        labelled.set_classes(table, {"cell": "nucleus"})
        assert [spec.name for spec in labelled.classes] == ["background", "nucleus", "debris", "border"]
        assert labelled.classes[1].color == (1, 2, 3)
        np.testing.assert_array_equal(labelled.items[0].labels(), before)
        assert set(os.listdir(labelled.path / "arrays")) == files

    def test_a_deleted_class_becomes_unlabelled(self, labelled: Project) -> None:
        before = labelled.items[0].labels()
        labelled.set_classes(["background", "debris"])
        after = labelled.items[0].labels()
        assert (after[before == 1] == 255).all()
        assert (after[before == 2] == 1).all()
        assert (after[before == 255] == 255).all()
        baseline = labelled.items[0].baseline()
        assert baseline is not None
        assert 2 not in baseline

    def test_merged_classes_keep_what_was_known(self, labelled: Project) -> None:
        item = labelled.items[0]
        before = item.labels()
        labelled.set_classes(["background", "cell"], {"debris": "cell"})
        after = item.labels()
        assert (after[(before == 1) | (before == 2)] == 1).all()
        # Rows 10 and 11 were verified; rows 0 and 1 are still edits.
        assert item.verified()[10:12].all()
        assert (item.labels() != item.baseline())[0:2].all()

    def test_an_edit_that_a_merge_hides_is_still_known(self, project: Project) -> None:
        item = project.add(plane(9), labels=plane(1), baseline=plane(2))
        project.set_classes(["background", "cell"], {"debris": "cell"})
        assert (item.labels() == item.baseline()).all()
        assert item.verified().all()

    def test_reordering_moves_the_values(self, labelled: Project) -> None:
        before = labelled.items[0].labels()
        labelled.set_classes(["debris", "background", "cell"])
        after = labelled.items[0].labels()
        for old, new in enumerate((1, 2, 0)):
            np.testing.assert_array_equal(after == new, before == old)

    def test_a_long_table_widens_the_labels(self, labelled: Project) -> None:
        before = labelled.items[0].labels().astype(int)
        labelled.set_classes([*CLASSES, *(f"class {n}" for n in range(300))])
        after = labelled.items[0].labels()
        assert after.dtype == np.uint16
        np.testing.assert_array_equal(after, np.where(before == 255, 65535, before))
        labelled.set_classes(CLASSES)
        np.testing.assert_array_equal(labelled.items[0].labels(), before)

    @pytest.mark.parametrize(
        ("mapping", "match"),
        [({"nucleus": "cell"}, "from classes of the project, got 'nucleus'"), ({"cell": "x"}, "got 'x'")],
    )
    def test_a_mapping_of_unknown_classes_is_refused(
        self, labelled: Project, mapping: dict[str, str], match: str
    ) -> None:
        with pytest.raises(ValueError, match=match):
            labelled.set_classes(CLASSES, mapping)
        with pytest.raises(ValueError, match="at least one class"):
            labelled.set_classes([])
        assert [spec.name for spec in labelled.classes] == CLASSES


class StubFile:
    """Anything that can write itself to a path, as a model does."""

    def __init__(self, contents: bytes) -> None:
        self.contents = contents

    def save(self, path: Path) -> None:
        path.write_bytes(self.contents)


class TestRounds:
    def test_rounds_are_numbered_and_keep_report_and_model(self, project: Project) -> None:
        assert project.rounds == ()
        assert project.latest_model() is None
        project.add_round({"miou": np.float32(0.5), "history": ({"loss": float("nan")},)}, StubFile(b"one"))
        second = project.add_round({"miou": None}, StubFile(b"two"))
        assert [done.number for done in project.rounds] == [1, 2]
        assert project.rounds[0].report == {"miou": 0.5, "history": [{"loss": None}]}
        assert project.rounds[0].model_path.read_bytes() == b"one"
        assert second.model_path.name == "round_002.safetensors"
        with pytest.raises(KeyError, match="no round 3"):
            project.model(3)

    def test_what_a_round_was_taught_is_noted_and_follows_the_class_table(
        self, project: Project, tmp_path: Path
    ) -> None:
        item = project.add(np.zeros((4, 5), np.uint8), name="one")
        lesson = np.full(item.label_shape, 255, np.uint8)
        lesson.flat[:3] = (0, 1, 2)
        done = project.add_round({}, StubFile(b"one"), taught={item.id: lesson})
        assert list(project.taught(1)) == [item.id]
        np.testing.assert_array_equal(project.taught(1)[item.id], lesson)
        project.add_round({}, StubFile(b"two"))
        assert project.taught(2) == {}

        # It goes with the project, and with its round; classes are known by their names.
        copy = project.save_as(tmp_path / "copy")
        project.close()
        with Project.open(copy) as other:
            other.set_classes(["background", "debris", "more"])
            assert [int(value) for value in other.taught(1)[item.id].flat[:4]] == [0, 255, 1, 255]
            other.set_classes(["background", "rubbish", "debris"], {"debris": "rubbish", "more": None})
            assert [int(value) for value in other.taught(1)[item.id].flat[:4]] == [0, 255, 1, 255]
            other.set_classes(["background", "rubbish", "debris"])  # a new class of an old name
            assert [int(value) for value in other.taught(1)[item.id].flat[:4]] == [0, 255, 1, 255]
            note = other.rounds[0].model_path.with_suffix(".taught.npz")
            assert note.is_file()
            note.write_bytes(b"no archive")
            with pytest.raises(ValueError, match="cannot be read"):
                other.taught(1)
            other.remove_round(1)
            assert not note.exists()
        assert done.model_path.with_suffix(".taught.npz").is_file()

    def test_a_round_is_undecided_until_somebody_chooses(self, project: Project) -> None:
        assert project.undecided_round is None
        project.add_round({}, StubFile(b"one"))
        assert project.undecided_round is None
        second = project.add_round({}, StubFile(b"two"), use=False)
        assert project.undecided_round == second
        project.roll_back(2)
        assert project.undecided_round is None
        project.add_round({}, StubFile(b"three"), use=False)
        project.remove_round(3)
        assert project.undecided_round is None
        third = project.add_round({}, StubFile(b"another three"), use=False)
        project.add_round({}, StubFile(b"four"), use=False)
        project.remove_round(4)
        assert project.undecided_round == third  # it still waits
        project.roll_back(1)  # somebody went on without it
        assert project.undecided_round is None

    def test_rolling_back_loses_no_round(self, project: Project) -> None:
        assert project.current_round is None
        for text in (b"one", b"two", b"three"):
            project.add_round({}, StubFile(text))
        assert project.current_round.number == 3
        assert project.roll_back(1).number == 1
        with Project.open(project.path, read_only=True) as again:
            assert again.current_round.number == 1
        fourth = project.add_round({}, StubFile(b"four"), use=False)
        assert (fourth.number, project.current_round.number) == (4, 1)
        assert project.roll_back(4).number == 4
        assert project.roll_back(0) is None
        assert project.current_round is None
        assert project.latest_model() is None
        assert [done.model_path.read_bytes() for done in project.rounds] == [
            b"one",
            b"two",
            b"three",
            b"four",
        ]
        with pytest.raises(KeyError, match="no round 7"):
            project.roll_back(7)
        assert [event["detail"]["round"] for event in project.events if event["action"] == "roll back"] == [
            1,
            4,
            0,
        ]

    def test_the_last_round_is_in_force_in_projects_that_do_not_say(self, project: Project) -> None:
        project.add_round({}, StubFile(b"one"))
        project.add_round({}, StubFile(b"two"))
        project._database.execute("DELETE FROM meta WHERE key = 'current_round'")  # as written before
        assert project.current_round.number == 2

    def test_a_discarded_round_goes_with_its_model(self, project: Project) -> None:
        project.add_round({}, StubFile(b"one"))
        dropped = project.add_round({}, StubFile(b"two"), use=False)
        project.remove_round(dropped.number)
        assert not dropped.model_path.exists()
        assert [done.number for done in project.rounds] == [1]
        assert project.current_round.number == 1
        with pytest.raises(ValueError, match="round 1 is in force: roll back"):
            project.remove_round(1)
        assert project.add_round({}, StubFile(b"again")).number == 2

    def test_a_report_that_is_no_json_is_refused(self, project: Project) -> None:
        with pytest.raises(TypeError, match="report must hold JSON values"):
            project.add_round({"model": object()}, StubFile(b""))
        assert project.rounds == ()
        assert list((project.path / "models").iterdir()) == []


class TestOpening:
    def test_a_project_is_made_only_where_nothing_is(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="new or empty folder, got one that holds something"):
            Project.create(tmp_path, CLASSES)
        with pytest.raises(FileExistsError, match="got a file"):
            Project.create(tmp_path / "notes.txt", CLASSES)
        assert os.listdir(tmp_path) == ["notes.txt"]
        (tmp_path / "empty").mkdir()
        Project.create(tmp_path / "empty", CLASSES).close()
        with pytest.raises(FileExistsError):
            Project.create(tmp_path / "empty", CLASSES)

    def test_a_table_without_classes_leaves_nothing_behind(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="at least one class"):
            Project.create(tmp_path / "p", [])
        assert os.listdir(tmp_path) == []

    def test_the_default_table_is_that_of_the_starter(self, tmp_path: Path) -> None:
        with Project.create(tmp_path / "p") as project:
            assert project.classes == VOC_CLASSES

    def test_what_is_no_project_is_refused_in_a_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="does not exist"):
            Project.open(tmp_path / "nowhere")
        with pytest.raises(
            ValueError, match=r"path must be a project folder \(one that holds project.sqlite\)"
        ):
            Project.open(tmp_path)
        (tmp_path / DATABASE).write_bytes(b"this is not a database, whatever its name says" * 50)
        with pytest.raises(ValueError, match="cannot be read"):
            Project.open(tmp_path)
        (tmp_path / DATABASE).write_bytes(b"")
        with pytest.raises(ValueError, match="is no project"):
            Project.open(tmp_path)

    def test_a_newer_format_asks_for_an_update(self, tmp_path: Path) -> None:
        Project.create(tmp_path / "p", CLASSES).close()
        connection = sqlite3.connect(tmp_path / "p" / DATABASE)
        with connection:
            newer = (str(SCHEMA_VERSION + 1),)
            connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", newer)
        connection.close()
        with pytest.raises(ValueError, match=f"has format {SCHEMA_VERSION + 1}.*update napari-crfasrnn"):
            Project.open(tmp_path / "p")

    def test_a_closed_project_says_so(self, project: Project) -> None:
        project.close()
        project.close()
        with pytest.raises(ValueError, match="is closed: open it again"):
            _ = project.items
        with pytest.raises(ValueError, match="is closed"):
            project.add(plane(0))

    def test_a_second_one_reads_only_and_is_told(self, project: Project) -> None:
        item = project.add(plane(0), labels=plane(1))
        with Project.open(project.path) as second:
            assert second.read_only
            assert second.notice is not None
            assert "open in another window or program" in second.notice
            assert (second.items[0].labels() == 1).all()
            for change in (
                lambda: second.add(plane(0)),
                lambda: second.set_labels(second.items[0], plane(0)),
                lambda: second.remove(second.items[0]),
                lambda: second.set_classes(CLASSES),
                lambda: second.add_round({}, StubFile(b"")),
            ):
                with pytest.raises(PermissionError, match="opened read-only, because it is open in another"):
                    change()
            project.set_labels(item, plane(2))  # the reader neither blocks the writer nor sees half of it
            assert (second.items[0].labels() == 2).all()
        project.close()
        with Project.open(project.path) as third:
            assert not third.read_only

    def test_another_process_reads_only(self, project: Project) -> None:
        project.add(plane(0), labels=plane(2))
        code = (
            "import sys; from napari_crfasrnn import Project; p = Project.open(sys.argv[1]); "
            "print(p.read_only, int(p.items[0].labels().min()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, project.path], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["True", "2"]

    def test_read_only_on_request(self, project: Project) -> None:
        project.add(plane(0))
        project.close()
        with Project.open(project.path, read_only=True) as reader:
            assert len(reader.items) == 1
            with Project.open(project.path) as writer:
                assert not writer.read_only

    def test_a_damaged_array_is_named(self, project: Project) -> None:
        item = project.add(plane(0))
        (file,) = (project.path / "arrays").iterdir()
        file.write_bytes(file.read_bytes()[:40])
        with pytest.raises(ValueError, match=file.name):
            item.image()


class TestSaveAs:
    def test_the_copy_is_a_project_of_its_own(self, project: Project, tmp_path: Path) -> None:
        item = project.add(data.coins(), labels=plane(1, data.coins().shape))
        project.add_round({"miou": 0.5}, StubFile(b"model"))
        path = project.save_as(tmp_path / "deep" / "copy")
        project.set_labels(item, plane(2, data.coins().shape))
        with Project.open(path) as copy:
            assert not copy.read_only
            assert (copy.items[0].labels() == 1).all()
            np.testing.assert_array_equal(copy.items[0].image(), data.coins())
            assert copy.rounds[0].model_path.read_bytes() == b"model"
            assert copy.rounds[0].model_path.is_relative_to(path)
        assert (item.labels() == 2).all()

    def test_a_reader_can_save_a_copy(self, project: Project, tmp_path: Path) -> None:
        project.add(plane(0))
        with (
            Project.open(project.path) as reader,
            Project.open(reader.save_as(tmp_path / "copy")) as copy,
        ):
            assert not copy.read_only
            assert len(copy.items) == 1

    def test_what_is_there_is_not_overwritten(self, project: Project, tmp_path: Path) -> None:
        with pytest.raises(FileExistsError):
            project.save_as(project.path)
        with pytest.raises(FileExistsError):
            project.save_as(tmp_path)


class FaultyDisk:
    """Lets the first ``n`` calls that reach the disk pass and fails all others as a full disk does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, passes: int) -> None:
        self.left = passes
        self.struck = False
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))
        monkeypatch.setattr(tifffile, "imwrite", self._wrap(tifffile.imwrite))
        monkeypatch.setattr(Path, "mkdir", self._wrap(Path.mkdir))
        monkeypatch.setattr(shutil, "copyfileobj", self._wrap(shutil.copyfileobj))

    def _wrap(self, function: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            if self.left == 0:
                self.struck = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.left -= 1
            return function(*args, **kwargs)

        return call


def fingerprint(path: Path) -> str:
    """Everything a project says about itself."""
    with Project.open(path) as project:
        assert not project.read_only
        said = {
            "classes": [spec.name for spec in project.classes],
            "items": [
                (item.name, int(item.image().sum()), item.labels().tolist(), item.verified().tolist())
                for item in project.items
            ],
            "current": project.current_round and project.current_round.number,
            "rounds": [(done.report, done.model_path.read_bytes().decode()) for done in project.rounds],
        }
        assert {p.name for p in (path / "arrays").iterdir()} == set(project._arrays.files())
    return json.dumps(said)


CHANGES: dict[str, Callable[[Project], object]] = {
    "add": lambda p: p.add(plane(7), labels=plane(0), baseline=plane(1), verified=plane(1)),
    "set_labels": lambda p: p.set_labels(p.items[0], plane(2), verified=plane(1)),
    "set_classes": lambda p: p.set_classes(["cell", "background"]),
    "add_round": lambda p: p.add_round({"miou": 1.0}, StubFile(b"round two")),
    "roll_back": lambda p: p.roll_back(0),
    "verify": lambda p: p.verify(p.items[0], (0, 0, 5, 5)),
    "remove": lambda p: p.remove(p.items[0]),
    "save_as": lambda p: p.save_as(p.path.parent / "copy"),
}


def attempt(change: Callable[[], object]) -> SaveError | None:
    try:
        change()
    except SaveError as failure:
        return failure
    return None


NOTE = "x" * 20000
LARGE_CHANGES: dict[str, Callable[[Project], object]] = {
    "add": lambda p: p.add(plane(7), labels=plane(0), metadata={"note": NOTE}),
    "set_classes": lambda p: p.set_classes([*CLASSES, *(f"class {n} {NOTE[:90]}" for n in range(200))]),
    "add_round": lambda p: p.add_round({"note": NOTE}, StubFile(b"two")),
}


class TestFullDisk:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        with Project.create(tmp_path / "p", CLASSES) as project:
            project.add(plane(3), labels=plane(1), verified=plane(0))
            project.add_round({"miou": 0.5}, StubFile(b"round one"))
        return tmp_path / "p"

    @pytest.mark.parametrize("change", CHANGES)
    def test_a_disk_full_at_any_step_loses_nothing(
        self, path: Path, change: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = fingerprint(path)
        for passes in range(60):
            with Project.open(path) as project, monkeypatch.context() as patch:
                disk = FaultyDisk(patch, passes)
                failure = attempt(lambda: CHANGES[change](project))
            if failure is None:
                break
            assert disk.struck
            assert "could not be saved (no space left on device)" in str(failure)
            assert str(path.parent) in str(failure)
            assert failure.errno == errno.ENOSPC
            assert fingerprint(path) == before
            assert [p.name for p in path.parent.iterdir()] == ["p"]
        else:
            pytest.fail("the change never went through")
        assert passes > 0 or change in ("remove", "roll_back")
        assert (fingerprint(path) != before) == (change != "save_as")

    @pytest.mark.parametrize("change", LARGE_CHANGES)
    def test_a_disk_full_in_the_database_loses_nothing(self, path: Path, change: str) -> None:
        before = fingerprint(path)
        with Project.open(path) as project:
            # SQLite itself answers "database or disk is full" from its present size on.
            pages = project._database.rows("PRAGMA page_count")[0][0]
            project._database.execute(f"PRAGMA max_page_count = {pages}")
            with pytest.raises(SaveError, match=r"could not be saved \(database or disk is full\)"):
                LARGE_CHANGES[change](project)
        assert fingerprint(path) == before

    @pytest.mark.skipif(sys.platform == "win32", reason="needs a limit that POSIX has")
    def test_a_real_limit_on_file_sizes(self, path: Path) -> None:
        code = """
import resource, signal, sys
import numpy as np
from napari_crfasrnn.project import Project, SaveError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Project.open(sys.argv[1]) as project:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    noise = np.random.default_rng(0).integers(0, 256, (900, 900), dtype=np.uint8)
    try:
        project.add(noise)
    except SaveError as error:
        print(error)
"""
        before = fingerprint(path)
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        assert "could not be saved (file too large)" in done.stdout
        assert done.stdout.count("\n") == 1
        assert fingerprint(path) == before

    def test_creating_on_a_full_disk_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for passes in range(40):
            with monkeypatch.context() as patch:
                FaultyDisk(patch, passes)
                failure = attempt(lambda: Project.create(tmp_path / "new", CLASSES).close())
            if failure is None:
                break
            assert str(tmp_path / "new") in str(failure)
            assert os.listdir(tmp_path) == []
        assert passes > 2


_SAVE_FOREVER = """
import sys
import numpy as np
from napari_crfasrnn.project import Project
with Project.open(sys.argv[1]) as project:
    assert not project.read_only, project.notice
    item = project.items[0]
    value = int(item.labels()[0, 0, 0])
    while True:
        value = (value + 1) % 200
        labels = np.full(item.label_shape, value, np.uint8)
        project.set_labels(item, labels, baseline=labels, verified=labels % 2)
        print(value, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_kill_while_saving_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "p"
    with Project.create(path, [f"class {n}" for n in range(200)]) as project:
        project.add(np.zeros((3, 64, 64), np.uint8), axes="ZYX", labels=np.zeros((3, 64, 64), np.uint8))
    rng = np.random.default_rng(0)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", _SAVE_FOREVER, path], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        said = [process.stdout.readline()]
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read().splitlines(keepends=True)
        process.stdout.close()
        process.wait()
        acknowledged = [int(line) for line in said if line.endswith("\n")]
        with Project.open(path) as project:
            assert not project.read_only  # the lock died with its owner
            (item,) = project.items
            labels = item.labels()
            value = int(labels[0, 0, 0])
            assert (labels == value).all()  # all three planes of one save, never a mixture
            if acknowledged:
                assert value in (acknowledged[-1], (acknowledged[-1] + 1) % 200)
                assert (item.baseline() == value).all()
            assert (item.verified() == value % 2).all()
            assert len(os.listdir(path / "arrays")) <= 10
