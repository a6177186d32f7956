"""Videos for ``napari-crfasrnn segment``: frame by frame through PyAV, which the extra ``video`` brings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn.classes import has_background
from napari_crfasrnn.cli.output import overlay, replacing, save_labels_png

if TYPE_CHECKING:
    from napari_crfasrnn.progress import Progress
    from napari_crfasrnn.segmenter import Segmenter

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
_CODEC = "libx264"
_QUALITY = "20"  # of H.264, lower is better; 18 looks like the original


def segment_video(
    segmenter: Segmenter,
    video: Path,
    labels_folder: Path | None,
    overlay_file: Path | None,
    *,
    crf: bool,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Segment every frame of a video and return what is to be told about it.

    Parameters
    ----------
    segmenter
        Its image is replaced by each frame in turn.
    video
        The file.
    labels_folder
        Gets ``000000.png``, ``000001.png``, …: indexed, of the size of the frames; when all are there, and
        instead of those of an earlier run. The first comes last, so that a folder with it is whole.
        None: none.
    overlay_file
        A video of the frames with the classes' colours over them; None: none.
    crf
        Whether the CRF refines what the network says.
    progress
        Called after each frame.

    Raises
    ------
    RuntimeError
        If PyAV is not installed, or knows no H.264.
    ValueError
        If the file is no video, or damaged.
    """
    started = time.perf_counter()
    classes = segmenter.model.classes
    if len(classes) > 255:
        raise ValueError(f"frames are written for models of up to 255 classes, got {len(classes)}")
    colors = [spec.color for spec in classes]
    background = 0 if has_background(classes) else None
    counts = np.zeros(256, np.int64)
    shape: tuple[int, ...] = ()
    number = 0
    with (
        _reading(video) as (frames, total, rate),
        _writing(overlay_file, rate) as write,
        _gathering(labels_folder) as gathered,
    ):
        for number, frame in enumerate(frames, start=1):
            segmenter.set_image(frame, "YXC")
            labels = segmenter.predict(crf=crf).labels
            if gathered is not None:
                save_labels_png(gathered / f"{number - 1:06d}.png", labels, colors)
            plane = np.moveaxis(frame, -1, 0).astype(np.float32)
            write(overlay(plane, labels, colors, background=background))
            counts += np.bincount(labels.reshape(-1), minlength=256)
            shape = labels.shape
            if progress is not None:
                progress(min(number, total), max(total, 1))
        if number == 0:
            raise ValueError(f"a video must hold a frame, got none in {video}")
    shares = counts / counts.sum()
    return {
        "image": str(video),
        "axes": "TYXC",
        "shape": [number, *shape],
        "classes": [
            {"value": value, "name": spec.name, "share": float(shares[value])}
            for value, spec in enumerate(classes)
        ],
        "nonfinite": 0,
        "seconds": {"total": time.perf_counter() - started},
    }


def _pyav() -> Any:
    try:
        import av
    except ImportError:
        raise RuntimeError(
            'videos take PyAV, which is not installed: pip install "napari-crfasrnn[video]"'
        ) from None
    return av


@contextmanager
def _reading(path: Path) -> Iterator[tuple[Iterator[NDArray[np.uint8]], int, Fraction]]:
    """Give the frames [H, W, 3] of a video upright, about how many there are, and how many a second."""
    av = _pyav()
    if not path.is_file():
        raise FileNotFoundError(f"video file not found: {path}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"a video must have pictures, got none in {path}")
            stream = container.streams.video[0]
            rate = stream.average_rate or Fraction(25)
            total = stream.frames or round(float(container.duration or 0) / av.time_base * rate)

            def frames() -> Iterator[NDArray[np.uint8]]:
                for frame in container.decode(stream):
                    turns = round(frame.rotation / 90) % 4  # as phones note down how they were held
                    yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))

            yield frames(), int(total), Fraction(rate)
    except av.FFmpegError as error:
        raise ValueError(f"the video {path} cannot be read: {error.strerror or error}") from None


@contextmanager
def _gathering(folder: Path | None) -> Iterator[Path | None]:
    """Give a folder for frames, which go to the one named when all of them are there."""
    if folder is None:
        yield None
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-part-") as gathered:
        yield Path(gathered)
        folder.mkdir(exist_ok=True)
        # The first frame goes first and comes last: whatever is interrupted here is seen to be so.
        for old in sorted(folder.glob("[0-9][0-9][0-9][0-9][0-9][0-9].png")):
            old.unlink()
        for frame in sorted(Path(gathered).iterdir(), reverse=True):
            frame.replace(folder / frame.name)


@contextmanager
def _writing(path: Path | None, rate: Fraction) -> Iterator[Any]:
    """Give a function that adds a picture to a video, which appears under its name when it is whole."""
    if path is None:
        yield lambda picture: None
        return
    av = _pyav()
    stream: Any = None
    with replacing(path) as temporary, av.open(str(temporary), "w") as container:

        def write(picture: NDArray[np.uint8]) -> None:
            nonlocal stream
            height, width = (side - side % 2 for side in picture.shape[:2])  # H.264 takes even sides
            if stream is None:
                stream = container.add_stream(_CODEC, rate=rate, options={"crf": _QUALITY})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            even = np.ascontiguousarray(picture[:height, :width])
            for packet in stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")):
                container.mux(packet)

        yield write
        if stream is not None:
            for packet in stream.encode(None):
                container.mux(packet)
