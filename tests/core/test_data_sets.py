from __future__ import annotations

import struct
from pathlib import Path
from zlib import compress, crc32

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_crfasrnn.classes import VOC_CLASSES
from napari_crfasrnn.training import open_data_set

MASK = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)


def write_mask(path: Path, values: np.ndarray, colors: list[tuple[int, int, int]] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if colors is not None:
        image.putpalette(np.array(colors, np.uint8).tobytes())
    image.save(path)


def write_image(path: Path, shape: tuple[int, ...] = (2, 4, 3)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.stem)).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def plain(tmp_path) -> Path:
    """A plain folder of six images, three classes, with both lists."""
    for name in "abcdef":
        write_image(tmp_path / "images" / f"{name}.png")
        write_mask(tmp_path / "masks" / f"{name}.png", MASK)
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    (tmp_path / "train.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "val.txt").write_text("e\nf\n")
    return tmp_path


def test_a_plain_folder(plain):
    data = open_data_set(plain)
    assert [spec.name for spec in data.classes] == ["sky", "road", "car"]
    assert [s.name for s in data.train] == list("abcd")
    assert [s.name for s in data.val] == ["e", "f"]
    image, labels = data.load(data.train[0])
    np.testing.assert_array_equal(labels, MASK)
    stored = np.asarray(Image.open(plain / "images" / "a.png"))
    np.testing.assert_array_equal(np.moveaxis(image, 0, -1), stored)


def test_a_voc_folder_with_indexed_and_coloured_masks(tmp_path):
    colors = [spec.color for spec in VOC_CLASSES]
    palette = colors + [(0, 0, 0)] * (255 - len(colors)) + [(224, 224, 192)]
    values = np.array([[0, 15, 12, 255], [15, 0, 20, 7]], np.uint8)
    for name in ("indexed", "coloured"):
        write_image(tmp_path / "JPEGImages" / f"{name}.jpg")
    write_mask(tmp_path / "SegmentationClass" / "indexed.png", values, palette)
    write_mask(tmp_path / "SegmentationClass" / "coloured.png", np.array(palette, np.uint8)[values])
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("indexed 1\n")  # lists of one class have a second column
    (lists / "val.txt").write_text("coloured\n")
    data = open_data_set(tmp_path)
    assert data.classes == VOC_CLASSES
    for sample in (*data.train, *data.val):
        np.testing.assert_array_equal(data.labels(sample), values)


def test_without_lists_a_share_is_held_for_validation(plain):
    for name in ("train.txt", "val.txt"):
        (plain / name).unlink()
    for number in range(60):
        write_image(plain / "images" / f"n{number}.png")
        write_mask(plain / "masks" / f"n{number}.png", MASK)
    first, again = open_data_set(plain), open_data_set(plain)
    assert first.val == again.val
    assert 1 <= len(first.val) <= 15
    assert len(first.train) + len(first.val) == 66
    assert not set(first.train) & set(first.val)


def test_some_classes_only(plain):
    data = open_data_set(plain)
    chosen = data.with_classes(["car", "sky"])
    assert [spec.name for spec in chosen.classes] == ["background", "car", "sky"]
    np.testing.assert_array_equal(
        chosen.labels(chosen.train[0]), [[2, 0, 1, 255], [1, 1, 0, 2]]
    )  # 255 stays unlabelled: the original scripts made background of it
    without = data.with_classes(["car", "sky"], "ignore")
    assert [spec.name for spec in without.classes] == ["car", "sky"]
    np.testing.assert_array_equal(without.labels(without.train[0]), [[1, 255, 0, 255], [0, 0, 255, 1]])


def test_background_stays_where_it_is(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "masks" / "a.png", MASK)
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    chosen = open_data_set(tmp_path).with_classes(["dog"])
    assert [spec.name for spec in chosen.classes] == ["background", "dog"]
    np.testing.assert_array_equal(
        chosen.labels([*chosen.train, *chosen.val][0]), [[0, 0, 1, 255], [1, 1, 0, 0]]
    )


def test_bad_folders_are_one_sentence(plain, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="none at"):
        open_data_set(plain / "nowhere")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match="images and masks"):
        open_data_set(empty)
    (plain / "val.txt").write_text("e\nghost\n")
    with pytest.raises(FileNotFoundError, match="ghost"):
        open_data_set(plain)
    (plain / "val.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"both train.txt and val.txt, got 'a'"):
        open_data_set(plain)
    (plain / "val.txt").unlink()
    (plain / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"classes\.txt"):
        open_data_set(plain)


def test_names_in_lists_may_have_blanks_suffixes_and_a_second_column(plain):
    for name in ("cell 1", "cell 2", "x.y"):
        write_image(plain / "images" / f"{name}.png")
        write_mask(plain / "masks" / f"{name}.tif", MASK)
    (plain / "train.txt").write_text("cell 1\ncell 2.png\na -1\nb.png  1\nx.y\n")
    (plain / "val.txt").write_text("c  0\ncell 1.tif\n")
    with pytest.raises(ValueError, match=r"both train\.txt and val\.txt, got 'cell 1'"):
        open_data_set(plain)
    (plain / "val.txt").write_text("c  0\nd.png\n")
    data = open_data_set(plain)
    assert [s.name for s in data.train] == ["cell 1", "cell 2", "a", "b", "x.y"]
    assert [s.name for s in data.val] == ["c", "d"]
    (plain / "val.txt").write_text("images/c.png\n")
    with pytest.raises(FileNotFoundError, match=r"'images/c\.png': write one name a line, without folders"):
        open_data_set(plain)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_two_files_of_one_name_are_refused(plain, kind):
    write_mask(plain / kind / "a.bmp", MASK)
    with pytest.raises(ValueError, match=rf"{kind} holds both a\.bmp and a\.png"):
        open_data_set(plain)


def test_a_blank_line_does_not_shift_the_classes(plain):
    (plain / "classes.txt").write_text("sky\nroad\ncar\n\n \n")
    assert [spec.name for spec in open_data_set(plain).classes] == ["sky", "road", "car"]
    (plain / "classes.txt").write_text("sky\n\ncar\n")
    with pytest.raises(ValueError, match=r"line 2 is blank: take it out, or name the class of value 1"):
        open_data_set(plain)


@pytest.mark.parametrize("name", ["classes.txt", "train.txt"])
def test_a_text_in_another_encoding_is_named(plain, name):
    (plain / name).write_bytes("fenêtre\nporte\n".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{name} must be a text file in UTF-8"):
        open_data_set(plain)


def test_bad_masks_are_one_sentence(plain):
    (plain / "classes.txt").write_text("sky\nroad\n")
    data = open_data_set(plain)
    with pytest.raises(ValueError, match=r"below 2.*got 2 in .*a\.png"):
        data.labels(data.train[0])
    write_mask(plain / "masks" / "a.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match=r"the size of its image, \(2, 4\), got \(3, 3\)"):
        data.load(data.train[0])
    write_mask(plain / "masks" / "b.png", np.full((2, 4, 3), 77, np.uint8))
    with pytest.raises(ValueError, match=r"those of its classes \(#[0-9a-f]{6}, #[0-9a-f]{6}\), got #4d4d4d"):
        data.labels(data.train[1])
    (plain / "masks" / "c.png").write_bytes(b"no picture at all")
    with pytest.raises(ValueError, match=r"c\.png cannot be read"):
        data.labels(data.train[2])
    with pytest.raises(ValueError, match="among sky, road, got 'boat'"):
        data.with_classes(["boat"])
    with pytest.raises(ValueError, match="at least two classes"):
        data.with_classes(["sky"], "ignore")


class TestMaskFiles:
    """What is read of a mask's file, and what is refused."""

    @staticmethod
    def labels(plain: Path, mask: str = "a.tif") -> np.ndarray:
        (plain / "masks" / "a.png").unlink(missing_ok=True)
        data = open_data_set(plain)
        assert data.train[0].mask_path.name == mask
        return data.labels(data.train[0])

    @pytest.mark.parametrize("dtype", ["int8", "uint16", ">u2", "int32", "uint32", "int64", ">i8"])
    def test_integers_of_any_width_and_order(self, plain, dtype):
        values = np.where(MASK == 255, 2, MASK)
        order = ">" if dtype.startswith(">") else "<"
        tifffile.imwrite(plain / "masks" / "a.tif", values.astype(dtype), byteorder=order)
        np.testing.assert_array_equal(self.labels(plain), values)

    @pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate"])
    def test_compressed(self, plain, compression):
        Image.fromarray(MASK).save(plain / "masks" / "a.tif", compression=compression)
        np.testing.assert_array_equal(self.labels(plain), MASK)

    def test_a_compression_that_nothing_here_knows(self, plain, monkeypatch):
        monkeypatch.setattr("napari_crfasrnn.imaging.stored.can_decompress", lambda _: False)
        tifffile.imwrite(plain / "masks" / "a.tif", MASK.astype(np.int64))  # which Pillow does not know
        with pytest.raises(ValueError, match=r"a\.tif cannot be read: its compression takes .* imagecodecs"):
            self.labels(plain)

    def test_grey_of_four_bits(self, plain):
        def chunk(kind: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc32(kind + content))

        packed = (MASK[:, ::2] % 16) << 4 | (MASK[:, 1::2] % 16)  # 255 becomes 15
        rows = b"".join(b"\0" + row.tobytes() for row in packed)
        header = struct.pack(">IIBBBBB", 4, 2, 4, 0, 0, 0, 0)
        parts = (chunk(b"IHDR", header), chunk(b"IDAT", compress(rows)), chunk(b"IEND", b""))
        (plain / "masks" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
        (plain / "classes.txt").write_text("\n".join(f"class {value}" for value in range(16)))
        data = open_data_set(plain)
        np.testing.assert_array_equal(data.labels(data.train[1]), np.minimum(MASK, 15))

    def test_indices_and_colours(self, plain):
        colors = [spec.color for spec in open_data_set(plain).classes] + [(255, 255, 255)]
        values = np.where(MASK == 255, 3, MASK)
        path = plain / "masks" / "a.tif"
        tifffile.imwrite(path, np.array(colors, np.uint8)[values], photometric="rgb")
        np.testing.assert_array_equal(self.labels(plain), MASK)
        planes = np.moveaxis(np.array(colors, np.uint8)[values], -1, 0).copy()
        tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
        np.testing.assert_array_equal(self.labels(plain), MASK)
        table = np.zeros((3, 256), np.uint16)
        tifffile.imwrite(path, MASK, photometric="palette", colormap=table)
        np.testing.assert_array_equal(self.labels(plain), MASK)

    @pytest.mark.parametrize(
        ("values", "options", "says"),
        [
            (MASK.astype(np.int32) - 1, {}, r"values of 0 to 255, got -1 in .*a\.tif: write 255"),
            (MASK.astype(np.int64) + 255, {}, "values of 0 to 255, got 510"),
            (MASK.astype(np.float32), {}, "got float32 in"),
            (np.stack([MASK, MASK]), {"photometric": "minisblack"}, "holds 2 planes; save one"),
            (MASK, {"photometric": "miniswhite"}, "save it as BlackIsZero"),
            (np.stack([MASK] * 3, -1).astype(np.uint16), {"photometric": "rgb"}, "save 8-bit RGB"),
        ],
    )
    def test_what_is_no_mask_is_named(self, plain, values, options, says):
        tifffile.imwrite(plain / "masks" / "a.tif", values, **options)
        with pytest.raises(ValueError, match=says):
            self.labels(plain)

    def test_pages_of_two_sizes_and_frames(self, plain):
        with tifffile.TiffWriter(plain / "masks" / "a.tif") as writer:
            writer.write(MASK)
            writer.write(MASK[:1])
        with pytest.raises(ValueError, match="holds 2 planes"):
            self.labels(plain)
        (plain / "masks" / "a.tif").unlink()
        pages = [Image.fromarray(MASK), Image.fromarray(MASK[::-1].copy())]
        pages[0].save(plain / "masks" / "a.gif", save_all=True, append_images=pages[1:])
        with pytest.raises(ValueError, match="holds 2 frames"):
            self.labels(plain, "a.gif")

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
    def test_a_mask_of_an_image_that_is_turned(self, plain, orientation, suffix):
        pixels = np.zeros((16, 32), np.uint8)
        pixels[:8, :16] = 250  # one corner
        exif = Image.Exif()
        exif[0x0112] = orientation
        (plain / "images" / "a.png").unlink()
        Image.fromarray(pixels).save(plain / "images" / f"a.{suffix}", exif=exif)
        write_mask(plain / "masks" / "a.png", (pixels > 0).astype(np.uint8))  # drawn on what is stored
        data = open_data_set(plain)
        if 2 <= orientation <= 4:
            with pytest.raises(ValueError, match=rf"EXIF orientation, {orientation}.*save the image upright"):
                data.labels(data.train[0])
            return
        image, labels = data.load(data.train[0])
        np.testing.assert_array_equal(labels, image[0] > 125)
        upright = np.zeros(image.shape[1:], np.uint8)
        upright[0, -1] = 2
        write_mask(plain / "masks" / "a.png", upright)  # drawn on what is seen
        np.testing.assert_array_equal(data.labels(data.train[0]), upright)

    @pytest.mark.parametrize("orientation", [3, 6])
    def test_a_mask_that_is_turned_itself(self, plain, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind, values in (("images", np.stack([MASK * 20] * 3, -1)), ("masks", MASK)):
            Image.fromarray(values).save(plain / kind / "a.png", exif=exif)
        image, labels = (data := open_data_set(plain)).load(data.train[0])
        np.testing.assert_array_equal(labels * np.uint8(20), image[0])

    def test_a_size_that_differs_is_told_by_the_header(self, plain):
        write_mask(plain / "masks" / "a.png", np.zeros((3, 3), np.uint8))
        data = open_data_set(plain)
        with pytest.raises(ValueError, match=r"size of its image, \(2, 4\), got \(3, 3\)"):
            data.labels(data.train[0])
