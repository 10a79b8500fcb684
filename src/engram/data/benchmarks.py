"""Data sets by name: CIFAR-10 and -100 from the official files, scikit-learn's digits, ImageNet.

`ENGRAM_DATA` names the folder with data sets; the default is `engram` in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import pickle
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from rich.progress import wrap_file

from engram.data.folders import checksum, imagenet, photographs
from engram.data.images import Dataset, ImageSet
from engram.errors import UserError, install_command, unknown
from engram.files import data_folder

__all__ = ["DATASETS", "DOWNLOADED", "IMAGENETS", "data_checksum", "load_dataset"]


def load_dataset(name: str, image_size: int | None = None) -> Dataset:
    """A data set by name, or from a folder with `train/<class>/...` and `test/<class>/...`.

    Args:
        image_size: side in pixels that photographs are brought to: 64 where None, and 224 for
            ImageNet. CIFAR and the digits come in their own size and take none.

    Raises:
        UserError: no such name or folder, missing or altered files, or an image that cannot be
            read.
    """
    if image_size is not None and not 8 <= image_size <= 1024:
        raise UserError(f"An image size must be from 8 to 1024 pixels, not {image_size}.")
    if name in IMAGENETS:
        return imagenet(data_folder() / name, IMAGENETS[name], image_size or 224)
    if name in DATASETS:
        if image_size is not None:
            raise UserError(f"{name} comes in its own image size; leave --image-size out.")
        return DATASETS[name](data_folder())
    if "/" in name or Path(name).is_dir():
        return photographs(Path(name), image_size or 64)
    raise UserError(
        f"{unknown('data set', name, [*DATASETS, *IMAGENETS])} Or name a folder with train/ and "
        "test/, in both of which every class has a folder of images."
    )


def data_checksum(name: str) -> str | None:
    """What tells a folder's photographs from others that may be in it later; None for data sets
    that are the same everywhere, and for what is no folder.

    Raises:
        UserError: the folder lacks what `load_dataset` wants.
    """
    if not name or name in DATASETS or name in IMAGENETS or not Path(name).is_dir():
        return None
    return checksum(Path(name))


@dataclass(frozen=True, slots=True)
class _Cifar:
    """Where a CIFAR archive comes from, and what its files must be (md5)."""

    archive: str
    archive_md5: str
    folder: str
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]
    meta: tuple[str, str]
    labels: bytes
    names: bytes

    @property
    def url(self) -> str:
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"


_CIFAR10 = _Cifar(
    archive="cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train=(
        ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
        ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
        ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        ("data_batch_4", "634d18415352ddfa80567beed471001a"),
        ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
    ),
    test=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
    meta=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
    labels=b"labels",
    names=b"label_names",
)
_CIFAR100 = _Cifar(
    archive="cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    train=(("train", "16019d7e3df5f24257cddd939b257f8d"),),
    test=(("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
    meta=("meta", "7973b15100ade9c7d40fb424638fde48"),
    labels=b"fine_labels",
    names=b"fine_label_names",
)


@lru_cache(maxsize=1)
def _cifar(name: str, source: _Cifar, data: Path) -> Dataset:
    folder = data / source.folder
    if not folder.is_dir():
        _download(source, data)
    names = _unpickle(folder / source.meta[0], source.meta[1])[source.names]
    return Dataset(
        name,
        _cifar_images(folder, source.train, source.labels),
        _cifar_images(folder, source.test, source.labels),
        tuple(label.decode() for label in names),
    )


def _cifar_images(folder: Path, files: tuple[tuple[str, str], ...], labels: bytes) -> ImageSet:
    """The images of one split; the files hold rows of 3072 bytes, plane by plane."""
    contents = [_unpickle(folder / file, md5) for file, md5 in files]
    planes = np.concatenate([content[b"data"] for content in contents]).reshape(-1, 3, 32, 32)
    return ImageSet(
        torch.from_numpy(np.ascontiguousarray(planes.transpose(0, 2, 3, 1))),
        torch.tensor([label for content in contents for label in content[labels]]),
    )


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays of numbers, and nothing else that a pickle could build or call."""

    def find_class(self, module: str, name: str) -> object:
        # NumPy moved its `core` to `_core`; the files were written long before.
        admitted = {
            ("numpy.core.multiarray", "_reconstruct"): "numpy._core.multiarray",
            ("numpy._core.multiarray", "_reconstruct"): "numpy._core.multiarray",
            ("numpy", "ndarray"): "numpy",
            ("numpy", "dtype"): "numpy",
        }
        if (module, name) not in admitted:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted")
        found: object = super().find_class(admitted[module, name], name)
        return found


def _unpickle(path: Path, md5: str) -> dict[bytes, list[bytes]]:
    """The dictionary in an official CIFAR file, after its md5 was compared."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}). Remove {path.parent} to have it "
            "downloaded again, or point ENGRAM_DATA to a folder that has it."
        ) from error
    found = hashlib.md5(content).hexdigest()
    if found != md5:
        raise UserError(
            f"{path} is not the official file: {len(content)} bytes, md5 {found}, expected {md5}. "
            f"Remove {path.parent} to have it downloaded again."
        )
    unpickler = _ArrayUnpickler(io.BytesIO(content), encoding="bytes")
    loaded: dict[bytes, list[bytes]] = unpickler.load()
    return loaded


def _download(source: _Cifar, folder: Path) -> None:
    """Fetch and unpack a CIFAR archive, so that its folder appears whole or not at all."""
    if os.environ.get("ENGRAM_DATA") and not folder.is_dir():
        raise UserError(f"ENGRAM_DATA names {folder}, which is not a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        archive = Path(work, source.archive)
        try:
            with urllib.request.urlopen(source.url, timeout=30) as answer:
                size = int(answer.headers.get("Content-Length", 0))
                shown = wrap_file(answer, size, description=source.archive)
                with shown as stream, archive.open("wb") as file:
                    shutil.copyfileobj(stream, file)
        except (http.client.HTTPException, OSError) as error:
            raise UserError(
                f"{source.folder} is not in {folder} and could not be downloaded from "
                f"{source.url} ({error}). Put that archive's folder {source.folder} into {folder}, "
                "or point ENGRAM_DATA to a folder that has it."
            ) from error
        found = hashlib.md5(archive.read_bytes()).hexdigest()
        if found != source.archive_md5:
            raise UserError(
                f"The download of {source.url} is damaged: md5 {found}, expected "
                f"{source.archive_md5}. Try again."
            )
        with tarfile.open(archive) as packed:
            packed.extractall(work, filter="data")
        if not (folder / source.folder).is_dir():  # another process may have been faster
            Path(work, source.folder).rename(folder / source.folder)


def _digits(data: Path) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8; every fifth image of a class is for testing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            f"The digits come with scikit-learn. Install it: {install_command('engram[demo]')}."
        ) from error
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = ImageSet(
        torch.from_numpy(np.repeat(grey[..., None], 3, axis=3)),
        torch.from_numpy(digits.target.astype(np.int64)),
    )
    test = torch.zeros(len(images), dtype=torch.bool)
    for label in range(10):
        test[(images.labels == label).nonzero()[::5]] = True
    return Dataset("digits", images[~test], images[test], tuple(map(str, range(10))))


DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "cifar10": lambda data: _cifar("cifar10", _CIFAR10, data),
    "cifar100": lambda data: _cifar("cifar100", _CIFAR100, data),
    "digits": _digits,
}

DOWNLOADED = {"cifar10": _CIFAR10.folder, "cifar100": _CIFAR100.folder}
"""Data sets that are fetched when they are missing, and their folders below the data folder."""

IMAGENETS = {"imagenet100": 100, "imagenet1000": 1000}
"""Their folders below the data folder, and how many classes these must have."""
