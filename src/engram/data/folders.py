"""Photographs, a folder a class: read into memory, or prepared once and mapped from disk."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from rich.markup import escape
from rich.progress import track
from torch import Tensor

from engram.data.images import Dataset, ImageSet
from engram.data.pictures import class_folders, image_files, picture, pixels_of
from engram.errors import UserError
from engram.files import held

__all__ = ["checksum", "imagenet", "photographs"]

AT_ONCE = 256
"""Photographs that are decoded before they are written."""


def photographs(folder: Path, image_size: int) -> Dataset:
    """Everything below `train/<class>/` and `test/<class>/`, in memory.

    Args:
        image_size: side in pixels.

    Raises:
        UserError: folders are missing, or an image cannot be read.
    """
    splits = _photographs(folder)
    train, test = (split.read(image_size) for split in splits)
    return Dataset(folder.name, train, test, splits[0].names)


def checksum(folder: Path) -> str:
    """What `photographs` would read, told by the names and sizes of its files; none is opened.

    Raises:
        UserError: folders are missing.
    """
    sizes = [
        (split.folder.name, name, path.stat().st_size)
        for split in _photographs(folder)
        for name, path in zip(split.listing(), split.files, strict=True)
    ]
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()


def _photographs(folder: Path) -> tuple[_Split, _Split]:
    return _splits(folder, "train", "test")


def imagenet(folder: Path, classes: int, image_size: int) -> Dataset:
    """ImageNet or a part of it, as it is usually laid out: `train/<class>/` and `val/<class>/`.

    Too large to be decoded at every start, or to be held in memory: decoded once into files beside
    these folders, image_size x image_size x 3 bytes an image, of which later only what is needed
    is read.

    Args:
        classes: how many folders there must be.
        image_size: side in pixels.

    Raises:
        UserError: folders are missing or of another number, or an image cannot be read.
    """
    splits = _splits(folder, "train", "val")
    if len(splits[0].names) != classes:
        raise UserError(
            f"{folder}/train has {len(splits[0].names)} class folders; {folder.name} has {classes}."
        )
    prepared = folder / f"prepared-{image_size}px"
    if not prepared.exists():
        waiting = UserWarning(f"Another process makes {prepared}: waiting for it.")
        with held(prepared.with_suffix(".lock"), waiting):
            # Whoever had the lock before may have prepared it.
            if not prepared.exists():
                _prepare(splits, prepared, image_size)
    train, test = (split.mapped(prepared, image_size) for split in splits)
    return Dataset(folder.name, train, test, splits[0].names)


@dataclass(frozen=True, slots=True)
class _Split:
    """The files below one of a data set's two folders.

    Attributes:
        names: of all classes, in the order of their labels.
        files: class by class.
        labels: of each file.
    """

    folder: Path
    names: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]

    @classmethod
    def of(
        cls, folder: Path, classes: Mapping[str, Sequence[Path]], names: Sequence[str]
    ) -> _Split:
        """The files in the folders of classes."""
        found = [
            (path, label)
            for label, name in enumerate(names)
            for of_class in classes.get(name, ())
            for path in image_files(of_class)
        ]
        if not found:
            raise UserError(f"No images under {folder}. Expected {folder}/<class name>/*.jpg.")
        files, labels = zip(*found, strict=True)
        return cls(folder, tuple(names), files, labels)

    def read(self, image_size: int) -> ImageSet:
        """All images, in memory."""
        changed = tuple(path.stat().st_mtime_ns for path in self.files)
        return ImageSet(_decoded(self.files, changed, image_size), torch.tensor(self.labels))

    def write(self, folder: Path, image_size: int) -> None:
        """Decode all images, on all cores, into a file in `folder`, with what tells them apart."""
        shown = track(self.files, f"Preparing {escape(str(self.folder))}", len(self.files))
        data = (folder / f"{self.folder.name}.uint8").open("wb")
        with data, ThreadPoolExecutor() as pool:
            for paths in _batched(shown, AT_ONCE):
                for pixels in pool.map(picture, paths, itertools.repeat(image_size)):
                    data.write(pixels.tobytes())
        (folder / f"{self.folder.name}.json").write_text(json.dumps(self.listing()))

    def mapped(self, folder: Path, image_size: int) -> ImageSet:
        """All images, in a file that `write` wrote; nothing is read before it is asked for.

        Raises:
            UserError: it was written of other images, or it is not whole.
        """
        if json.loads((folder / f"{self.folder.name}.json").read_text()) != self.listing():
            raise UserError(
                f"{folder} was prepared when {self.folder} held other images. Remove {folder} to "
                "have it prepared again."
            )
        shape = (len(self.files), image_size, image_size, 3)
        written = folder / f"{self.folder.name}.uint8"
        if written.stat().st_size != math.prod(shape):
            raise UserError(f"{written} is not whole. Remove {folder} to have it prepared again.")
        pixels = np.memmap(written, np.uint8, "r", shape=shape)
        with warnings.catch_warnings():
            # Tensors know no read-only memory, and a writable mapping would count as memory in use.
            warnings.filterwarnings("ignore", message=".*not writable")
            return ImageSet(torch.from_numpy(pixels), torch.tensor(self.labels))

    def listing(self) -> list[str]:
        """The files' paths within the folder."""
        return [path.relative_to(self.folder).as_posix() for path in self.files]


@lru_cache(maxsize=2)
def _decoded(files: tuple[Path, ...], changed: tuple[int, ...], image_size: int) -> Tensor:
    """The pixels of files, last `changed` then; kept for the next run on the same data set."""
    return pixels_of(files, image_size)


def _splits(folder: Path, training: str, testing: str) -> tuple[_Split, _Split]:
    """Both folders of a data set; testing knows no other classes than training."""
    train = _class_folders(folder / training, testing)
    test = _class_folders(folder / testing, training)
    names = sorted(train)
    if strange := test.keys() - train.keys():
        raise UserError(
            f"{folder}/{testing} has classes that {folder}/{training} has not: "
            f"{', '.join(sorted(strange))}."
        )
    return (
        _Split.of(folder / training, train, names),
        _Split.of(folder / testing, test, names),
    )


def _prepare(splits: Sequence[_Split], prepared: Path, image_size: int) -> None:
    """Write the files of all splits, which appear together or not at all."""
    partial = prepared.with_name(prepared.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    need = sum(len(split.files) for split in splits) * image_size**2 * 3
    if (free := shutil.disk_usage(prepared.parent).free) < need:
        raise UserError(
            f"{prepared} needs {need / 1e9:.1f} GB of disk space; {free / 1e9:.1f} GB are free. "
            "Make room, or choose a smaller --image-size."
        )
    partial.mkdir()
    for split in splits:
        split.write(partial, image_size)
    partial.rename(prepared)


def _class_folders(folder: Path, beside: str) -> dict[str, list[Path]]:
    """The folders of each class by its name.

    Raises:
        UserError: there are none.
    """
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}. Expected {folder}/<class name>/*.jpg, beside a folder "
            f"{beside} of the same form."
        )
    if found := class_folders(folder):
        return found
    raise UserError(f"{folder} has no folders. Expected {folder}/<class name>/*.jpg.")


def _batched(paths: Iterable[Path], count: int) -> Iterator[list[Path]]:
    remaining = iter(paths)
    while batch := list(itertools.islice(remaining, count)):
        yield batch
