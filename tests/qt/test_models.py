"""Models of other systems in the widget: opened from a file, or downloaded once their licence is accepted."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_files import (
    pytorch_state,
    random_weights,
    write_caffe_v1,
    write_keras,
    write_matconvnet,
    write_pytorch,
)
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QInputDialog, QMessageBox

from napari_crfasrnn._qt.state.micrographs import kind_of
from napari_crfasrnn._qt.state.telling import (
    BESIDE,
    FITTING,
    HINTS,
    KNOWS_NONE,
    NOTHING,
    PAINT_EACH,
    PAINT_NEW,
)
from napari_crfasrnn._qt.widget import MODEL_FILES
from napari_crfasrnn.imaging import open_image
from napari_crfasrnn.importing import SUFFIXES
from napari_crfasrnn.samples import SAMPLES, cell, tissue
from napari_crfasrnn.zoo import published_dir

NAME, FILE = "crfrnn-pytorch", "crfasrnn_weights.pth"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A server with the PyTorch weights, which stops in the middle until the event is set."""
    write_pytorch(tmp_path / FILE, random_weights(n_labels=3, width=1 / 64))
    content = (tmp_path / FILE).read_bytes()
    go_on = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", '"1"')
            self.end_headers()
            middle = len(content) // 2
            self.wfile.write(content[:middle])
            self.wfile.flush()
            go_on.wait(20)
            try:
                self.wfile.write(content[middle:])
            except OSError:
                self.close_connection = True  # the other side has gone

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("NAPARI_CRFASRNN_MIRROR", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr("napari_crfasrnn.zoo.fetching.CHUNK", 1024)
    yield go_on
    go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


def choose(user: Any, name: str) -> None:
    user.wait(lambda: not user.session.shelf.loading and user.session.shelf.choice is not None)
    combo = user.widget.start.model
    user.wait(lambda: combo.findData(name) >= 0)
    combo.setCurrentIndex(combo.findData(name))
    combo.activated.emit(combo.findData(name))


def test_a_licence_is_accepted_before_the_download(user: Any, mirror: threading.Event) -> None:
    mirror.set()
    choose(user, NAME)
    start = user.widget.start
    user.wait(lambda: "non-commercial" in user.line("start"))
    assert f"Download {FILE}?" in user.line("start")
    user.wait(lambda: start.model.currentData() == "starter")  # nothing is chosen by asking
    assert "to download; non-commercial use only" in start.model.itemText(start.model.findData(NAME))
    assert not published_dir().exists()
    assert user.do(lambda: start.cured.emit("download")) == "load"
    assert (published_dir() / FILE).is_file()
    assert user.session.shelf.choice.name == NAME
    assert user.session.shelf.choice.class_names == ("background", "class 1", "class 2")
    assert user.line("start") == "All 43 tensors of the file found their place."
    user.wait(lambda: "to download" not in start.model.itemText(start.model.findData(NAME)))


def test_a_download_can_be_cancelled(user: Any, mirror: threading.Event) -> None:
    choose(user, NAME)
    user.wait(lambda: user.session.shelf.wanted is not None)
    user.session.shelf.download()
    user.wait(lambda: (published_dir() / f"{FILE}.part").is_file())
    assert user.do(user.widget.cancel) == "cancelled"
    mirror.set()
    assert user.session.shelf.choice.name == "starter"
    assert not (published_dir() / FILE).exists()


@pytest.mark.parametrize(
    ("name", "write", "n_tensors"),
    [
        ("m.caffemodel", write_caffe_v1, 43),
        ("m.pth", write_pytorch, 43),
        ("m.h5", write_keras, 43),
        ("m.mat", write_matconvnet, 40),
    ],
)
def test_files_of_other_systems_are_opened(
    user: Any, tmp_path: Path, name: str, write: Any, n_tensors: int
) -> None:
    write(tmp_path / name, random_weights(n_labels=3, width=1 / 64))
    assert user.do(lambda: user.session.shelf.open(tmp_path / name)) == "load"
    assert user.session.shelf.choice.source == tmp_path / name
    assert user.line("start") == f"All {n_tensors} tensors of the file found their place."
    user.widget.start.cured.emit("import-report")
    [box] = user.widget.findChildren(QMessageBox)
    assert f"matched {n_tensors}, missing 0" in box.detailedText()
    box.close()


def test_a_doubtful_file_says_so_and_a_partial_one_is_refused(user: Any, tmp_path: Path) -> None:
    state = pytorch_state(random_weights(n_labels=3, width=1 / 64))
    state["crfrnn.compatibility_matrix"] *= -1
    torch.save(state, tmp_path / "m.pth")
    assert user.do(lambda: user.session.shelf.open(tmp_path / "m.pth")) == "load"
    assert user.line("start").startswith("3 of 3 diagonal entries of the compatibility matrix")
    del state["fc7.bias"]
    torch.save(state, tmp_path / "n.pth")
    assert user.do(lambda: user.session.shelf.open(tmp_path / "n.pth")) == "failed"
    assert "42 of 43 tensors match" in user.line("start")


def test_the_dialog_offers_every_kind() -> None:
    assert {f"*{suffix}" for suffix in SUFFIXES} - {"*.binaryproto"} < set(MODEL_FILES.split())


def test_the_starter_says_where_it_may_be_the_wrong_one(user: Any, photograph: np.ndarray) -> None:
    first = user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    assert HINTS["grey"] not in user.line("start")
    grey = user.viewer.add_image(photograph[:64, :64, 0], name="grey")
    assert user.do(user.widget.segment) == "segment"
    assert HINTS["grey"] in user.line("start")
    assert user.session.tasks.lines["start"].tone == "quiet"

    # It is said of this image, also after another was looked at, until another model is chosen.
    user.viewer.layers.selection.active = first
    user.wait(lambda: HINTS["grey"] not in user.widget.start.message.label.text())
    user.viewer.layers.selection.active = grey
    user.wait(lambda: HINTS["grey"] in user.widget.start.message.label.text())
    assert [button.text() for button in user.widget.start.message.buttons][-1] == "My classes…"
    user.session.choose_model("road-scenes")
    user.viewer.layers.selection.active = first
    user.viewer.layers.selection.active = grey
    user.wait(lambda: HINTS["grey"] not in user.widget.start.message.label.text())


def test_stained_tissue_has_a_model_at_hand_and_photographs_do_not(user: Any) -> None:
    user.viewer.add_image(tissue(), name="tissue")
    assert user.do(user.widget.segment) == "segment"
    assert HINTS["stained"] in user.line("start")
    buttons = {button.text(): button for button in user.widget.start.message.buttons}
    assert list(buttons) == ["Stained nuclei", "My classes…"]
    assert user.do(lambda: user.click(buttons["Stained nuclei"])) == "segment"
    assert user.session.table.names == ("background", "nucleus")
    assert (user.labels == 1).any()
    assert not user.widget.start.message.buttons
    for name, image in SAMPLES.items():
        if name not in ("tissue", "cell"):
            assert kind_of(open_image(image()), ()) is None, name


def test_a_micrograph_is_asked_about_before_it_is_segmented(user: Any, photograph: np.ndarray) -> None:
    """A first look at bottles in a micrograph helps nobody."""
    user.viewer.add_image(photograph, name="photograph")
    user.wait(lambda: not user.session._looker.busy)
    assert user.line("start") == ""
    for image, text, button in (
        (photograph[..., 0], HINTS["grey"], "Nuclei"),
        (tissue(), HINTS["stained"], "Stained nuclei"),
    ):
        user.viewer.add_image(image)
        user.wait(lambda said=text: user.line("start") == said)
        QTest.qWait(20)  # the widget is shown anew a little later
        assert button in [each.text() for each in user.widget.start.message.buttons]
    user.viewer.layers.selection.active = user.viewer.layers["photograph"]
    user.wait(lambda: not user.session._looker.busy)
    assert user.line("start") == ""
    user.viewer.add_image(photograph[..., 1])  # two files at once: it is not the one that is worked on
    user.viewer.add_image(photograph[::-1])
    user.wait(lambda: not user.session._looker.busy)
    QTest.qWait(20)
    assert user.line("start") == ""


def test_it_is_said_that_nothing_was_found(user: Any, photograph: np.ndarray) -> None:
    bare = photograph[40:72, 120:152] // 16 + 120  # a bit of the wall
    user.viewer.add_image(bare, name="wall")
    assert user.do(user.widget.segment) == "segment"
    assert set(np.unique(user.labels)) == {0}
    assert user.line("start") == NOTHING
    assert user.session.tasks.lines["start"].tone == "plain"
    user.viewer.add_image(bare[..., 0], name="grey wall")
    assert user.do(user.widget.segment) == "segment"
    assert user.line("start").startswith("Nothing found")
    assert user.line("start").endswith(HINTS["grey"])


def test_another_model_leaves_what_was_segmented_on_other_images(user: Any, photograph: np.ndarray) -> None:
    user.wait(lambda: user.session.shelf.get("nuclei-fluorescence") is not None)
    user.session.shelf.choose("nuclei-fluorescence")
    user.viewer.add_image(cell()[::2, ::2], name="cell")
    assert user.do(user.widget.segment) == "segment"
    nucleus = user.labels == user.session.table.names.index("nucleus")
    assert nucleus.any()
    user.session.shelf.choose("starter")
    (first,) = user.session.works
    user.viewer.add_image(photograph, name="astronaut")
    assert user.do(user.widget.segment) == "segment"
    names = user.session.table.names
    assert "person" in names
    assert "nucleus" in names
    assert "nucleus" in user.line("start")  # and says why it is there
    kept = user.session.works[first].labels == names.index("nucleus")
    assert np.array_equal(kept, nucleus)


def test_the_hint_has_the_fitting_models_at_hand(user: Any) -> None:
    user.viewer.add_image(cell()[::2, ::2], name="cell")
    assert user.do(user.widget.segment) == "segment"
    buttons = {button.text(): button for button in user.widget.start.message.buttons}
    assert list(buttons) == [*FITTING["grey"].values(), "My classes…"]
    assert user.do(lambda: user.click(buttons["Nuclei"])) == "segment"
    user.settle()
    assert user.session.shelf.choice.name == "nuclei-fluorescence"
    assert user.session.table.names == ("background", "nucleus", "border")
    assert 0.001 < np.mean(user.labels == 1) < 0.3  # one cell
    assert not user.widget.start.message.buttons


def test_classes_of_ones_own_are_two_steps_away(user: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QInputDialog, "getText", lambda *args, **kwargs: (" cell, debris ", True))
    user.viewer.add_image(cell()[::2, ::2], name="cell")
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    user.click(user.widget.start.message.buttons[-1])
    user.settle()
    assert user.session.table.names == ("background", "cell", "debris")
    assert set(np.unique(user.labels)) <= {0, 255}  # of what the starter saw, the background stays
    assert user.line("classes") == PAINT_EACH
    correct = user.widget.correct
    assert correct.patch.property("primary") == "false"  # the starter is no judge of what is uncertain here
    assert user.line("start") == ""
    assert [row.key for row in user.widget.classes.table.rows.rows] == [1, 2, 0]
    # The starter would make these up.
    assert not user.widget.start.task.button.isEnabled()
    assert KNOWS_NONE in user.widget.start.task.button.toolTip()
    assert user.widget.start.message.label.text() == ""  # what to do is said beside the classes
    assert user.do(user.widget.segment) == "failed"
    assert user.line("start") == KNOWS_NONE
    user.bench.paint_with(1)
    user.drag((200, 210), (215, 220))
    user.settle()

    # Begun once more, what was labelled is lost only if the person says so, and as another class.
    asked: list[str] = []
    answers = [QMessageBox.StandardButton.No, QMessageBox.StandardButton.Yes]
    monkeypatch.setattr(
        QMessageBox, "question", lambda *args: asked.append(args[-1]) or answers[len(asked) - 1]
    )
    monkeypatch.setattr(QInputDialog, "getText", lambda *args, **kwargs: ("nucleus, cell", True))
    painted = user.labels == 1
    assert painted.any()
    user.widget.classes.own.click()
    assert user.session.table.names == ("background", "cell", "debris")
    user.widget.classes.own.click()
    user.settle()
    assert user.session.table.names == ("background", "nucleus", "cell")
    np.testing.assert_array_equal(user.labels == 2, painted)
    assert "unlabelled" in asked[0]
    with pytest.raises(ValueError, match="must hold a class beside"):
        user.session.classes.begin(["background"])
    with pytest.raises(ValueError, match="'a' twice"):
        user.session.classes.begin(["a", "a"])
    assert user.session.table.names == ("background", "nucleus", "cell")


def test_a_class_beside_those_of_photographs_brings_the_advice_once(user: Any) -> None:
    user.widget.classes.add_wanted.emit("nucleus")
    assert user.line("classes") == BESIDE
    QTest.qWait(50)
    assert [button.text() for button in user.widget.classes.message.buttons] == ["My classes…"]
    assert user.session.table.own_names == ("nucleus",)  # what the dialog begins with
    user.widget.classes.add_wanted.emit("border")
    assert user.line("classes") == PAINT_NEW
