"""Files that are written whole or not at all, tensors in them, locks, and the folder with data."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from engram.errors import UserError

__all__ = [
    "check_folder",
    "check_place",
    "data_folder",
    "held",
    "load_tensors",
    "read_weights",
    "replacing",
    "save_tensors",
    "sha256",
    "write_atomically",
]


def data_folder() -> Path:
    """The folder that `ENGRAM_DATA` names, or `engram` in the user's cache folder."""
    if named := os.environ.get("ENGRAM_DATA"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "engram"


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_place(path: Path) -> None:
    """Refuse a file that cannot be written where it is wanted; for those who compute long for it.

    Raises:
        UserError: there is no such folder, or it is a folder itself.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file in it.")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} for {path}. Make it, or name another.")


def check_folder(path: Path) -> None:
    """Refuse a folder that cannot be made, because there is a file where it or one around it is to
    be; for those who compute long for it.

    Raises:
        UserError: there is.
    """
    there = next(found for found in (path, *path.absolute().parents) if found.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file, and not a folder. Name another place than {path}.")


@contextmanager
def held(path: Path, otherwise: UserError | UserWarning) -> Iterator[None]:
    """Hold the lock that a file stands for: nobody else does meanwhile.

    Args:
        otherwise: what is said where somebody else holds it. An error is raised; after a warning,
            the lock is waited for.
    """
    lock = FileLock(path)
    try:
        taken = lock.acquire(timeout=0)
    except Timeout as error:
        if isinstance(otherwise, UserError):
            raise otherwise from error
        warnings.warn(otherwise, stacklevel=3)
        taken = lock.acquire()
    with taken:
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` when it is whole, or goes if it never is.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException as error:
        # A full disk would get fuller with every attempt.
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step: after a crash it is the old file or the new one.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and a JSON mapping into one safetensors file, atomically.

    Tensors that share storage are written each for itself.
    """
    detached = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    storages = [tensor.untyped_storage().data_ptr() for tensor in detached.values()]
    separate = {
        name: tensor.clone() if storages.count(tensor.untyped_storage().data_ptr()) > 1 else tensor
        for name, tensor in detached.items()
    }
    text = json.dumps(meta)
    about = {"meta": text, "table": _table(separate, text), "values": _values(separate)}
    write_atomically(path, save(separate, about))


def load_tensors(path: Path, *, intact: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote.

    Args:
        intact: refuse values that are not what was written, too; not for those who can tell by
            themselves which ones these are.

    Raises:
        UserError: the file is missing, cut short, damaged, or not of this package.
    """
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    if "table" not in texts:
        raise UserError(f"{path} cannot be read (an older engram wrote it, or it is damaged).")
    meta = texts.get("meta", "")
    whole = texts["table"] == _table(tensors, meta)
    if not whole or (intact and texts.get("values") != _values(tensors)):
        raise UserError(f"{path} cannot be read (it is not what was written).")
    return tensors, json.loads(meta)


def _table(tensors: Mapping[str, Tensor], meta: str) -> str:
    """A checksum of what a file holds but for the values of tensors."""
    found = [(name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()]
    return hashlib.sha256(repr((sorted(found), meta)).encode()).hexdigest()


def _values(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of the values of contiguous tensors."""
    checksum = 0
    for name in sorted(tensors):
        values = tensors[name].reshape(-1).view(torch.uint8)
        checksum = zlib.crc32(values.numpy().data, checksum)
    return str(checksum)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of any safetensors file, or of a NumPy archive (`.npz`).

    Raises:
        UserError: the file is missing or neither.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: torch.from_numpy(archive[name]) for name in archive.files}
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as weights ({error}).") from error
