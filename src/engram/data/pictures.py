"""What people have: folders of photographs, files, Pillow images, arrays; as pixels of one size."""

from __future__ import annotations

import io
import os
import re
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image, ImageOps, features
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from engram.data.images import ImageSet
from engram.errors import UserError, install_command

__all__ = [
    "Labelled",
    "NamedImages",
    "Picture",
    "as_png",
    "class_folders",
    "image_files",
    "is_one",
    "normal_name",
    "picture",
    "pixels_of",
    "read_labelled",
    "readable",
]

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".hif"),
}
UNREAD_SUFFIXES = {
    *(".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".rw2", ".orf", ".pef")
}
"""Endings of pictures that are not read: whoever has such files is told, and not left to wonder."""

HEIC_BRANDS = {
    *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
}
AVIF_BRANDS = {b"avif", b"avis"}
"""Brands, which follow `ftyp`, by which files are known whatever they are called."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF", "AVIF")
"""What files are tried as, beside HEIC. Pillow knows more, some of which start other programs."""

MOST_PIXELS = 100_000_000
MOST_DECODED = 50_000_000
"""Larger pictures are not decoded, since a file of a few kilobytes may claim to be one; a JPEG can
be decoded at a part of its size. Those that are decoded at once have no more together: at this
limit they take up to a gigabyte for a moment."""

UNSEEN = {
    *("@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found")
}
"""Folders, in small letters, that systems, file servers and archives put beside pictures, with
smaller copies, what was deleted, or nothing."""
TRAINING, PARTS = (
    {"train", "training"},
    {"train", "training", "test", "testing", "val", "valid", "validation", "eval"},
)
"""Folders of a data set, in small letters, whose classes are in them."""

MOST_SCANS = 100
"""Each goes over the whole picture, and may take a few bytes: a JPEG of many could keep the decoder
busy for hours. Cameras and programs write ten or so."""
SCAN, END = b"\xff\xda", b"\xff\xd9"
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)
"""What begins a segment of a JPEG, or ends the file; the others stand in compressed data."""

Picture = str | Path | bytes | Image.Image | np.ndarray | Tensor
"""A file, the bytes of one, a Pillow image, or an array or tensor (H, W) or (H, W, 3), uint8 or
floats in [0, 1]."""

Labelled = str | Path | Mapping[str, Sequence[Picture]] | tuple[Sequence[Picture], Sequence[Any]]
"""A folder with a folder for each class; pictures by class name; or pictures and their labels."""


@dataclass(frozen=True, eq=False, slots=True)
class NamedImages:
    """Images of named classes.

    Attributes:
        images: labels are positions in `names`.
        names: of the classes, in the order given; those of a folder in alphabetic order.
        skipped: what could not be read, a line each; classes of which nothing could are left out.
    """

    images: ImageSet
    names: tuple[str, ...]
    skipped: tuple[str, ...] = ()


class Room:
    """Room for so many pixels. Whoever wants more than is free waits; who comes first goes first,
    so that a large picture is not kept waiting by ever more small ones."""

    def __init__(self, pixels: int) -> None:
        self.free = pixels
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Room for so many pixels, at most as many as there were at first."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self.free >= pixels)
            self.free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self.free += pixels
                self._changed.notify_all()


ROOM = Room(MOST_DECODED)


def picture(source: Picture, size: int) -> np.ndarray:
    """The middle square of a picture, upright, (size, size, 3) uint8. What is transparent is white.

    Raises:
        UserError: it cannot be read, is too large, or is none.
    """
    if isinstance(source, Tensor):
        source = source.numpy(force=True)
    if isinstance(source, np.ndarray):
        opened = _from_array(source)
    elif isinstance(source, Image.Image):
        opened = source
    elif isinstance(source, bytes):
        return _from_file(io.BytesIO(source), "The picture", size)
    elif isinstance(source, (str, Path)):
        return _from_file(Path(source), readable(str(source)), size)
    else:
        raise UserError(
            f"{source!r:.40} is no picture. Give a file's path, the bytes of one, a Pillow image, "
            "or an array."
        )
    try:
        return _square(opened, size)
    except OSError as error:
        raise UserError(f"A picture cannot be decoded: {error}. Leave it out.") from error


@cache
def _reads_heic() -> bool:
    """Whether Pillow reads HEIC, by pi-heif or by what the program has registered before."""
    if "HEIF" not in Image.OPEN:
        try:
            import pi_heif

            pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
        except ImportError:
            return False
    return True


def _from_file(file: Path | io.BytesIO, name: str, size: int) -> np.ndarray:
    if isinstance(file, Path) and file.suffix.lower() in UNREAD_SUFFIXES:
        raise UserError(f"{name} is of a kind that is not read. Save it as JPEG or PNG.")
    formats = (*FORMATS, "HEIF") if _reads_heic() else FORMATS
    try:
        with Image.open(file, formats=formats) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise _too_large(name, MOST_PIXELS)
            if isinstance(opened, JpegImageFile) and _has_many_scans(file):
                raise UserError(
                    f"{name} has more than {MOST_SCANS} scans, which are the most that are read of "
                    "a JPEG. Save it anew as JPEG or PNG."
                )
            # A large JPEG is decoded at a half, a quarter or an eighth where that is enough.
            opened.draft(None, (2 * size, 2 * size))
            pixels = opened.width * opened.height
            if pixels > MOST_DECODED:
                raise _too_large(name, MOST_DECODED)
            with ROOM.taken(pixels):
                return _square(opened, size)
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, MOST_PIXELS) from error
    except FileNotFoundError as error:
        raise UserError(f"There is no file {name}.") from error
    except IsADirectoryError as error:
        raise UserError(f"{name} is a folder. Give the pictures that are in it.") from error
    except PermissionError as error:
        raise UserError(
            f"{name} may not be read: {error.strerror}. Change its permissions, or leave it out."
        ) from error
    except Exception as error:  # what a damaged file makes Pillow raise depends on its kind
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(
                f"{name} could not be read: {error.strerror}. Try again; it may be sound."
            ) from error
        brand = _brand(file)
        if brand in AVIF_BRANDS and not features.check("avif"):
            raise UserError(
                f"{name} is AVIF, which this Pillow was built without. Save it as JPEG or PNG."
            ) from error
        if brand in HEIC_BRANDS and not _reads_heic():
            raise UserError(
                f"{name} is HEIC, which needs pi-heif. Install it: "
                f"{install_command('engram[heic]')}; or save the picture as JPEG or PNG."
            ) from error
        raise UserError(f"{name} cannot be read as an image. Repair or remove it.") from error


def as_png(pixels: np.ndarray) -> bytes:
    """Pixels (H, W, 3) uint8 as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _brand(file: Path | io.BytesIO) -> bytes:
    """The brand by which a file of the family of MP4 says what it is; empty where there is none."""
    try:
        with file.open("rb") if isinstance(file, Path) else nullcontext(file) as opened:
            opened.seek(0)
            start = opened.read(12)
    except (OSError, ValueError):  # a disk that fails, a name that no file can have
        return b""
    return start[8:] if start[4:8] == b"ftyp" else b""


def _has_many_scans(file: Path | io.BytesIO) -> bool:
    """Whether a JPEG has more than `MOST_SCANS`.

    Those of a thumbnail within a segment do not count, nor what follows the end, such as the
    film that a telephone puts there.
    """
    content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
    if content.count(SCAN) <= MOST_SCANS:
        return False
    scans, place = 0, 2
    while (found := MARKER.search(content, place)) and found[0] != END and scans <= MOST_SCANS:
        scans += found[0] == SCAN
        length = int.from_bytes(content[found.end() : found.end() + 2], "big")
        place = found.end() + max(2, length)
    return scans > MOST_SCANS


def _too_large(name: str, most: int) -> UserError:
    return UserError(
        f"{name} has more than {most:,} pixels, which are the most that are read. Make it smaller."
    )


def _square(opened: Image.Image, size: int) -> np.ndarray:
    upright = _as_rgb(ImageOps.exif_transpose(opened))
    return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Sixteen bits of grey, which Pillow would cut off at 255.
        grey = np.asarray(image) // 257
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    pixels = array
    if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
        pixels = np.round(array * 255).astype(np.uint8)
    shapes = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    if pixels.dtype != np.uint8 or not shapes or 0 in array.shape:
        raise UserError(
            f"An array of {array.dtype} {array.shape} is no image. Give (H, W) or (H, W, 3), uint8 "
            "or floats from 0 to 1."
        )
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels)


def pixels_of(pictures: Sequence[Picture], size: int) -> Tensor:
    """Pictures as (N, size, size, 3) uint8.

    Raises:
        UserError: one cannot be read.
    """
    _check_several(pictures, "What is asked about")
    if not len(pictures):
        return torch.empty((0, size, size, 3), dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        arrays = list(pool.map(lambda source: picture(source, size), pictures))
    return torch.from_numpy(np.stack(arrays))


def read_labelled(source: Labelled, size: int, *, strict: bool = False) -> NamedImages:
    """Pictures with the names of their classes.

    Args:
        source: see `Labelled`. In a folder, each folder at the first level is a class, with its
            images at any depth.
        size: side in pixels.
        strict: refuse what cannot be read, instead of leaving it out.

    Raises:
        UserError: nothing is there that can be read, or something cannot be read and `strict`.
    """
    names: list[str] = []
    skipped, pixels, labels = [], [], []
    with ThreadPoolExecutor() as pool:
        for name, pictures in _by_name(source).items():
            outcomes = list(pool.map(lambda found: _attempt(found, size), pictures))
            read = [outcome for outcome in outcomes if isinstance(outcome, np.ndarray)]
            failed = [outcome for outcome in outcomes if isinstance(outcome, UserError)]
            if strict and failed:
                raise failed[0]
            skipped += [str(error) for error in failed]
            if read:
                pixels += read
                labels += [len(names)] * len(read)
                names.append(name)
            else:
                skipped.append(f"Class {name} has no image that can be read, and is left out.")
    if not names:
        raise UserError(" ".join(["There are no images that can be read.", *skipped[:1]]))
    images = ImageSet(torch.from_numpy(np.stack(pixels)), torch.tensor(labels))
    return NamedImages(images, tuple(names), tuple(skipped))


def _attempt(source: Picture, size: int) -> np.ndarray | UserError:
    try:
        return picture(source, size)
    except UserError as error:
        return error


def _by_name(source: Labelled) -> dict[str, list[Picture]]:
    """Pictures by the names of their classes."""
    if isinstance(source, (str, Path)):
        return _in_folder(Path(source))
    found: dict[str, list[Picture]] = {}
    if isinstance(source, Mapping):
        if folders := [name for name, one in source.items() if isinstance(one, (str, Path))]:
            raise UserError(
                f'Class "{folders[0]}" is given as {source[folders[0]]}, and not as a list of '
                "pictures. Give a list, or name the folder that holds all classes' folders."
            )
        for name, pictures in source.items():
            _check_several(pictures, f'Class "{name}"')
        pairs = [(str(name), one) for name, pictures in source.items() for one in pictures]
        if empty := [str(name) for name, pictures in source.items() if not len(pictures)]:
            raise UserError(f"Class {empty[0]} has no pictures. Add some, or leave it out.")
    else:
        if not isinstance(source, tuple) or len(source) != 2:
            raise UserError(
                "Give a folder, a mapping of class names to pictures, or (pictures, labels), not "
                f"a {type(source).__name__}."
            )
        pictures, labels = source
        _check_several(pictures, "What is learnt")
        if isinstance(labels, str) or not hasattr(labels, "__len__"):
            raise UserError(f"Labels are a list, one for each picture, and not {labels!r}.")
        labels = labels.tolist() if isinstance(labels, (np.ndarray, Tensor)) else labels
        if len(pictures) != len(labels):
            raise UserError(f"There are {len(pictures)} pictures and {len(labels)} labels.")
        pairs = list(zip(map(str, labels), pictures, strict=True))
    for name, one in pairs:
        found.setdefault(normal_name(name), []).append(one)
    return found


def is_one(pictures: Any) -> bool:
    """Whether this is one picture and not several. Of arrays, (H, W), (H, W, 1) and (H, W, 3) are
    one; (N, H, W) and (N, H, W, 3) are several."""
    if isinstance(pictures, (np.ndarray, Tensor)):
        return pictures.ndim < 3 or (pictures.ndim == 3 and pictures.shape[2] in (1, 3))
    return isinstance(pictures, Picture)


def _check_several(pictures: Any, whose: str) -> None:
    """Refuse one picture in the place of several: an array would be taken for its rows, and a path
    for its letters."""
    if is_one(pictures):
        raise UserError(f"{whose} is one picture. Give a list of pictures: [picture].")
    if not hasattr(pictures, "__len__"):
        raise UserError(f"{whose} is a {type(pictures).__name__}, and not a list of pictures.")


def _in_folder(folder: Path) -> dict[str, list[Picture]]:
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}. Give one that has a folder for each class, with its "
            "images: photos/cat/1.jpg."
        )
    folders = class_folders(folder)
    training = [name for name in folders if name.casefold() in TRAINING]
    are_parts = all(name.casefold() in PARTS for name in folders)
    if training and are_parts and class_folders(folder / training[0]):
        others = [name for name in folders if name != training[0]]
        raise UserError(
            f"The folders in {folder} are no classes but parts of a data set: "
            f"{', '.join([training[0], *others])}. Give one of these: {folder / training[0]} to "
            "learn."
        )
    found: dict[str, list[Picture]] = {
        name: [file for path in paths for file in image_files(path)]
        for name, paths in folders.items()
    }
    if empty := [name for name, files in found.items() if not files]:
        raise UserError(
            f"There are no images in {folder}/{empty[0]}. Add some, or remove the folder. Known "
            f"endings: {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    if not found:
        raise UserError(
            f"{folder} has no folders. Make one for each class and put its images there: "
            f"{folder}/cat/1.jpg."
        )
    return found


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """The folders in a folder by the names of classes, in order, without hidden ones.

    A class may have several, where a file system knows several forms of its name.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not _is_hidden(path.name):
            found.setdefault(normal_name(path.name), []).append(path)
    return found


def image_files(folder: Path) -> list[Path]:
    """Files at any depth that are pictures by their names, also of kinds that are not read; none
    that are hidden, or in a hidden folder, such as thumbnails. Links are followed.

    Raises:
        UserError: a folder may not be read.
    """
    found: list[Path] = []
    walked: set[Path] = set()
    for place, folders, files in os.walk(folder, onerror=_not_listed, followlinks=True):
        # A link may lead to where it is.
        if (real := Path(place).resolve()) in walked:
            folders.clear()
            continue
        walked.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        found += [Path(place, name) for name in files if _is_picture(name)]
    return sorted(found)


def _not_listed(error: OSError) -> NoReturn:
    raise UserError(
        f"The folder {readable(str(error.filename))} may not be read: {error.strerror}. Change its "
        "permissions, or move it elsewhere."
    ) from error


def _is_picture(name: str) -> bool:
    known = Path(name).suffix.lower() in IMAGE_SUFFIXES | UNREAD_SUFFIXES
    return known and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in UNSEEN


def normal_name(name: str) -> str:
    """Names as one sequence of characters, however a file system composes accents, with single
    spaces within and none around."""
    return " ".join(unicodedata.normalize("NFC", readable(name)).split())


def readable(name: str) -> str:
    """A file's name as text that can be written anywhere: what is no UTF-8, as its number."""
    return name.encode(errors="backslashreplace").decode()
