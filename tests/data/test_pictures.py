"""Pictures as people have them: modes, sizes, orientation, and everything wrong with them."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pi_heif
import pillow_heif
import pytest
import torch
from PIL import ExifTags, Image, features

from engram.data import pictures
from engram.data.pictures import Room, picture, pixels_of, read_labelled
from engram.errors import UserError


def write(path: Path, colour: Any = (200, 0, 0), mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (30, 20), colour).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (200, 0, 0), (200, 0, 0)),
        ("L", 77, (77, 77, 77)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 100, 0, 255), (0, 100, 0)),
        ("LA", (10, 0), (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 50, (50, 50, 50)),
    ],
)
def test_every_mode_becomes_colours(
    tmp_path: Path, mode: str, colour: Any, expected: tuple[int, ...]
) -> None:
    found = picture(write(tmp_path / "a.png", colour, mode), 8)
    assert found.shape == (8, 8, 3)
    assert found.dtype == np.uint8
    assert (found == expected).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif", "avif"])
def test_files_of_every_kind(tmp_path: Path, suffix: str) -> None:
    found = picture(write(tmp_path / f"a.{suffix}"), 8).astype(int)
    assert abs(found - np.array([200, 0, 0])).max() < 12


def test_the_orientation_that_a_camera_notes_is_undone(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 20))
    image.paste((255, 255, 255), (0, 0, 20, 10))
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    found = picture(tmp_path / "turned.png", 20)
    assert found[:, 12:].min() == 255
    assert found[:, :8].max() == 0


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (np.full((6, 9, 3), 7, np.uint8), 7),
        (np.full((6, 9), 7, np.uint8), 7),
        (np.full((6, 9, 1), 7, np.uint8), 7),
        (np.full((6, 9, 3), 0.2), 51),
    ],
)
def test_arrays(array: np.ndarray, value: int) -> None:
    assert (picture(array, 4) == value).all()


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 5, 6), np.uint8), np.zeros((5, 6), np.int64), np.full((5, 6, 3), 3.0)],
)
def test_arrays_that_are_no_images_are_refused(array: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"is no image\. Give"):
        picture(array, 4)


@pytest.mark.parametrize("damage", ["not an image", "", "cut"])
def test_a_broken_file_is_named(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "b.jpg")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else damage.encode())
    with pytest.raises(UserError, match=r"b.jpg cannot be read as an image"):
        picture(path, 8)


def test_a_picture_of_too_many_pixels_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MOST_PIXELS", 599)
    with pytest.raises(UserError, match=r"bomb.png has more than 599 pixels.* Make it smaller"):
        picture(write(tmp_path / "bomb.png"), 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(UserError, match=r"bomb.png has more than 599 pixels.* Make it smaller"):
        picture(tmp_path / "bomb.png", 8)


def progressive(scans: int, *, comment: bytes = b"", behind: bytes = b"") -> bytes:
    """A JPEG whose last scan is repeated so often, with a comment, and something behind its end."""
    file = io.BytesIO()
    Image.new("L", (64, 48), 128).save(file, "JPEG", progressive=True, comment=comment)
    content = file.getvalue()[:-2]
    return content + content[content.rindex(b"\xff\xda") :] * scans + b"\xff\xd9" + behind


def test_a_jpeg_of_very_many_scans_is_not_decoded(tmp_path: Path) -> None:
    many = progressive(100)
    (tmp_path / "many.jpg").write_bytes(many)
    for source in (many, tmp_path / "many.jpg"):
        with pytest.raises(UserError, match=r"has more than 100 scans.* Save it anew as JPEG"):
            picture(source, 8)
    assert picture(progressive(90), 8).shape == (8, 8, 3)


def test_what_only_looks_like_scans_does_not_count() -> None:
    like_scans = b"\xff\xda" * 200
    assert picture(progressive(0, comment=like_scans), 8).shape == (8, 8, 3)
    assert picture(progressive(0, behind=like_scans), 8).shape == (8, 8, 3)


def test_a_class_is_a_folder_with_images_at_any_depth(tmp_path: Path) -> None:
    write(tmp_path / "red" / "deep" / "er" / "a.jpg")
    write(tmp_path / "red" / "b.JPG", format="JPEG")
    write(tmp_path / "blue" / "c.png", (0, 0, 200))
    write(tmp_path / "Blue" / "d.png", (0, 0, 100))
    write(tmp_path / ".hidden" / "e.png")
    (tmp_path / "red" / "notes.txt").write_text("no image")
    found = read_labelled(tmp_path, 8)
    assert found.names == ("Blue", "blue", "red")
    assert found.images.labels.tolist() == [0, 1, 2, 2]
    assert not found.skipped


def test_hidden_folders_hold_no_pictures_of_a_class(tmp_path: Path) -> None:
    hidden = ("cat/.thumbnails/a.png", ".hidden/a.png", "cat/@eaDir/a.jpg/b.png", "__MACOSX/a.png")
    hidden += ("$RECYCLE.BIN/a.png", "#recycle/a.png", "System Volume Information/a.png")
    for place in ("cat/a.png", *hidden):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / place)
    given = read_labelled(tmp_path, 8)
    assert (given.names, len(given.images)) == (("cat",), 1)


def test_links_to_folders_are_followed_and_no_picture_is_read_twice(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere" / "a.png").parent
    write(tmp_path / "photos" / "cat" / "b.png")
    (tmp_path / "photos" / "cat" / "more").symlink_to(elsewhere)
    (elsewhere / "itself").symlink_to(elsewhere)
    (tmp_path / "photos" / "dog").symlink_to(elsewhere)
    found = read_labelled(tmp_path / "photos", 8)
    assert (found.names, found.images.labels.tolist()) == (("cat", "dog"), [0, 0, 1])


def test_a_folder_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "cat" / "a.png")
    locked = write(tmp_path / "cat" / "locked" / "b.png").parent
    listed = os.scandir

    def scandir(place: str) -> Any:
        if Path(place) == locked:
            raise PermissionError(13, "Permission denied", str(place))
        return listed(place)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"cat/locked may not be read: Permission denied\. Change"):
        read_labelled(tmp_path, 8)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are characters")
def test_names_that_are_no_characters_stay_apart(tmp_path: Path) -> None:
    for name in (b"caf\xe9", b"caf\xe8"):
        write(tmp_path / os.fsdecode(name) / "a.png")
    assert read_labelled(tmp_path, 8).names == ("caf\\udce8", "caf\\udce9")


def test_parts_of_a_data_set_are_no_classes(tmp_path: Path) -> None:
    for place in ("train/cat/a.png", "train/dog/a.png", "test/cat/a.png", "test/dog/a.png"):
        write(tmp_path / place)
    with pytest.raises(UserError, match=r"parts of a data set: train, test\. Give .*/train to"):
        read_labelled(tmp_path, 8)
    assert read_labelled(tmp_path / "train", 8).names == ("cat", "dog")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for place in ("one/train/a.png", "one/test/a.png", "two/train/b/a.png", "two/car/a.png"):
        write(tmp_path / place)
    assert read_labelled(tmp_path / "one", 8).names == ("test", "train")
    assert read_labelled(tmp_path / "two", 8).names == ("car", "train")


def test_names_are_one_sequence_of_characters(tmp_path: Path) -> None:
    write(tmp_path / unicodedata.normalize("NFD", "café") / "a.png")
    assert read_labelled(tmp_path, 8).names == (unicodedata.normalize("NFC", "café"),)


def test_a_broken_file_is_skipped_and_told_or_ends_it(tmp_path: Path) -> None:
    write(tmp_path / "red" / "a.png")
    (tmp_path / "red" / "b.png").write_text("broken")
    found = read_labelled(tmp_path, 8)
    assert len(found.images) == 1
    assert len(found.skipped) == 1
    assert "b.png cannot be read" in found.skipped[0]
    with pytest.raises(UserError, match=r"b.png cannot be read"):
        read_labelled(tmp_path, 8, strict=True)


def test_a_class_of_which_nothing_can_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    write(tmp_path / "red" / "a.png")
    (tmp_path / "blue").mkdir()
    (tmp_path / "blue" / "b.png").write_text("broken")
    found = read_labelled(tmp_path, 8)
    assert found.names == ("red",)
    assert found.images.labels.tolist() == [0]
    assert found.skipped[1] == "Class blue has no image that can be read, and is left out."


def test_files_of_kinds_that_are_not_read_are_told(tmp_path: Path) -> None:
    write(tmp_path / "red" / "a.JFIF", format="JPEG")
    (tmp_path / "red" / "b.DNG").write_bytes(b"what a camera writes")
    found = read_labelled(tmp_path, 8)
    assert len(found.images) == 1
    assert [
        line.endswith("b.DNG is of a kind that is not read. Save it as JPEG or PNG.")
        for line in found.skipped
    ] == [True]


def heic(image: Image.Image, orientation: int = 1) -> bytes:
    """A file as a telephone writes it, which notes how it was held."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, exif=exif.tobytes(), quality=90)
    return file.getvalue()


def test_heic_is_read_upright_whatever_it_is_called(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 60), (20, 40, 200))
    image.paste((200, 40, 20), (0, 0, 60, 30))
    held = image.transpose(Image.Transpose.ROTATE_90)
    file = tmp_path / "photo.jpg"
    file.write_bytes(heic(held, orientation=6))  # to be turned clockwise
    expected = picture(image, 10).astype(int)
    assert abs(picture(file, 10) - expected).max() < 12
    (tmp_path / "class").mkdir()
    file.rename(tmp_path / "class" / "photo.HEIC")
    assert len(read_labelled(tmp_path, 10).images) == 1


def test_damaged_heic_is_told() -> None:
    content = heic(Image.effect_noise((64, 64), 100).convert("RGB"))
    for damaged in (content[: len(content) // 2], content[:400] + bytes(len(content) - 400)):
        with pytest.raises(UserError, match=r"The picture cannot be read as an image\. Repair"):
            picture(damaged, 8)


def test_heic_larger_than_is_decoded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_DECODED", 64 * 64)
    assert picture(heic(Image.new("RGB", (64, 64))), 8).shape == (8, 8, 3)
    with pytest.raises(UserError, match="has more than 4,096 pixels"):
        picture(heic(Image.new("RGB", (65, 64))), 8)


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_that_cannot_be_read_here_names_what_reads_it(
    tmp_path: Path, brand: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_reads_heic", lambda: False)
    content = b"\x00\x00\x00\x18ftyp" + brand + b"\x00" * 40
    (tmp_path / "photo.jpg").write_bytes(content)
    for source in (content, tmp_path / "photo.jpg"):
        with pytest.raises(UserError, match=r"is HEIC, which needs pi-heif\. Install .*\[heic\]"):
            picture(source, 8)
    with pytest.raises(UserError, match="cannot be read as an image"):
        picture(content.replace(brand, b"isom"), 8)


def test_whether_heic_is_read_follows_from_what_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(**options: object) -> None:
        raise ImportError("its library does not fit this system")

    asked = pictures._reads_heic.__wrapped__
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(pi_heif, "register_heif_opener", broken)
        assert not asked()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pi_heif", None)
        assert not asked()
    assert asked()
    theirs = Image.OPEN["HEIF"]
    assert asked()
    assert Image.OPEN["HEIF"] is theirs, "a reader that is there is not replaced"


def test_avif_that_cannot_be_read_here_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda feature: False)
    with pytest.raises(UserError, match=r"is AVIF, which this Pillow was built without\. Save it"):
        picture(b"\x00\x00\x00\x18ftypavif" + b"\x00" * 40, 8)


def test_what_is_no_file_or_is_locked_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UserError, match=r"folder\.jpg is a folder\. Give the pictures"):
        picture(tmp_path / "folder.jpg", 8)
    with pytest.raises(UserError, match="cannot be read as an image"):
        picture("no\0name.png", 8)

    def locked(*arguments: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", locked)
    with pytest.raises(UserError, match=r"a\.png may not be read: Permission denied\. Change its"):
        picture(tmp_path / "a.png", 8)


@pytest.mark.parametrize(
    ("error", "told", "message"),
    [
        (
            OSError(5, "Input/output error"),
            UserError,
            r"a\.png could not be read: Input/output error",
        ),
        (MemoryError("none left"), MemoryError, "none left"),
    ],
)
def test_what_is_not_the_fault_of_a_file_is_not_told_as_that(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: type[Exception],
    message: str,
) -> None:
    def fail(image: Image.Image) -> Image.Image:
        raise error

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    with pytest.raises(told, match=message):
        picture(write(tmp_path / "a.png"), 8)


def test_whatever_goes_wrong_in_a_file_is_told_as_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(image: Image.Image) -> Image.Image:
        raise AttributeError("a tag of another type")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", stumble)
    with pytest.raises(UserError, match=r"a.png cannot be read as an image"):
        picture(write(tmp_path / "a.png"), 8)


def test_a_name_that_is_no_text_is_made_one(tmp_path: Path) -> None:
    named = os.fsdecode(b"gr\xfcn")
    write(tmp_path / named / "a.png")
    (tmp_path / named / os.fsdecode(b"\xfc.png")).write_text("broken")
    found = read_labelled(tmp_path, 8)
    assert found.names == ("gr\\udcfcn",)
    assert "gr\\udcfcn/\\udcfc.png cannot be read" in found.skipped[0].encode().decode()


@pytest.mark.parametrize(("room", "together"), [(600, 1), (1800, 3), (2399, 3)])
def test_pictures_that_are_decoded_at_once_have_bounded_pixels(
    room: int, together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        write(tmp_path / "red" / f"{number}.png")  # 600 pixels each
    inside = list[int]()
    met = threading.Barrier(together, timeout=60)
    square = pictures._square

    def watched(opened: Image.Image, size: int) -> np.ndarray:
        inside.append(1)
        met.wait()
        assert len(inside) <= together
        inside.pop()
        met.wait()
        return square(opened, size)

    monkeypatch.setattr(pictures, "_square", watched)
    monkeypatch.setattr(pictures, "ROOM", Room(room))
    assert len(read_labelled(tmp_path, 8, strict=True).images) == 6
    assert room == pictures.ROOM.free


def test_a_large_picture_waits_for_those_before_it_alone() -> None:
    room, order = Room(10), list[int]()

    def decode(pixels: int) -> None:
        with room.taken(pixels):
            order.append(pixels)

    large, small = (threading.Thread(target=decode, args=[pixels]) for pixels in (10, 1))
    with room.taken(5):
        large.start()
        while not room._turn.locked():
            time.sleep(0.001)
        small.start()
        time.sleep(0.05)
        assert order == []
    for each in (large, small):
        each.join()
    assert order == [10, 1]


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        read_labelled(tmp_path / "nowhere", 8)
    with pytest.raises(UserError, match="has no folders"):
        read_labelled(tmp_path, 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"There are no images in .*/empty"):
        read_labelled(tmp_path, 8)
    (tmp_path / "empty" / "a.png").write_text("broken")
    with pytest.raises(UserError, match=r"There are no images that can be read\. .*a\.png cannot"):
        read_labelled(tmp_path, 8)


def test_pictures_by_name_and_with_labels() -> None:
    grey, white = np.full((5, 5, 3), 99, np.uint8), Image.new("L", (9, 9), 255)
    by_name = read_labelled({"b": [grey], "a": [white, grey]}, 4)
    labelled = read_labelled(([grey, white, grey], ["b", "a", "a"]), 4)
    for found in (by_name, labelled):
        assert found.names == ("b", "a")
        assert found.images.labels.tolist() == [0, 1, 1]
        assert torch.equal(found.images.pixels[0], torch.full((4, 4, 3), 99, dtype=torch.uint8))
    with pytest.raises(UserError, match="There are 1 pictures and 2 labels"):
        read_labelled(([grey], [1, 2]), 4)
    with pytest.raises(UserError, match="Class b has no pictures"):
        read_labelled({"a": [grey], "b": []}, 4)
    with pytest.raises(UserError, match='"cat" is given as photos/cat, and not as a list'):
        read_labelled({"cat": "photos/cat"}, 4)
    with pytest.raises(UserError, match=r"or \(pictures, labels\), not a list"):
        read_labelled(["a.png"], 4)  # type: ignore[arg-type]
    assert read_labelled({1: [grey]}, 4).names == ("1",)  # type: ignore[dict-item]
    with pytest.raises(UserError, match="There are no images that can be read"):
        read_labelled({}, 4)


def test_no_pictures_are_no_pixels() -> None:
    assert pixels_of([], 4).shape == (0, 4, 4, 3)


def test_a_large_jpeg_is_read_at_a_part_of_its_size(tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    large = Image.fromarray(coarse).resize((1200, 800), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.jpg", quality=95)
    whole = picture(large, 32).astype(int)
    assert np.abs(picture(tmp_path / "large.jpg", 32) - whole).mean() < 2
    assert np.array_equal(
        picture((tmp_path / "large.jpg").read_bytes(), 32), picture(tmp_path / "large.jpg", 32)
    )


def test_one_picture_is_not_taken_for_its_rows() -> None:
    one = np.full((16, 16, 3), 99, np.uint8)
    for alone in (one, one[:, :, 0], Image.fromarray(one), b"...", torch.tensor(one)):
        with pytest.raises(UserError, match=r'Class "a" is one picture\. Give a list'):
            read_labelled({"a": alone}, 4)  # type: ignore[dict-item]
    with pytest.raises(UserError, match="What is asked about is one picture"):
        pixels_of(one, 4)  # type: ignore[arg-type]
    assert len(pixels_of(np.stack([one, one]), 4)) == 2  # type: ignore[arg-type]
    with pytest.raises(UserError, match="one for each picture, and not 'cat'"):
        read_labelled(([one, one, one], "cat"), 4)
    with pytest.raises(UserError, match="one for each picture, and not None"):
        read_labelled(([one], None), 4)  # type: ignore[arg-type]
    assert read_labelled(([one, one], torch.tensor([7, 8])), 4).names == ("7", "8")
    for path in ("one.png", Path("one.png")):
        with pytest.raises(UserError, match="What is asked about is one picture"):
            pixels_of(path, 4)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is a generator, and not a list of pictures"):
        pixels_of((one for _ in range(2)), 4)  # type: ignore[arg-type]


def test_tensors_are_pictures_as_arrays_are() -> None:
    pixels = torch.randint(256, (3, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(pixels_of(pixels, 8), pixels)  # type: ignore[arg-type]
    assert torch.equal(pixels_of(list(pixels / 255), 8), pixels)


@pytest.mark.parametrize("thing", [None, 5, bytearray(b"...")])
def test_what_is_no_picture_is_told(thing: Any) -> None:
    with pytest.raises(UserError, match=r"is no picture\. Give a file's path, the bytes of one"):
        picture(thing, 8)


def test_parts_of_a_data_set_are_known_however_they_are_written(tmp_path: Path) -> None:
    for part in ("Train", "Test"):
        write(tmp_path / part / "cat" / "a.png")
    with pytest.raises(UserError, match=r"parts of a data set: Train, Test\. Give .*/Train"):
        read_labelled(tmp_path, 8)


def test_spaces_in_the_names_of_folders_make_no_other_class(tmp_path: Path) -> None:
    for number, name in enumerate(("my  mug", " my mug")):
        write(tmp_path / name / f"{number}.png")
    found = read_labelled(tmp_path, 8)
    assert found.names == ("my mug",)
    assert len(found.images) == 2
