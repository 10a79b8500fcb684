"""Snapshots: what is written comes back, whole or not at all. Locks are held by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from filelock import FileLock

from engram.errors import UserError
from engram.files import held, load_tensors, save_tensors, write_atomically


def test_tensors_of_every_kind_come_back(tmp_path: Path) -> None:
    base = torch.randn(4, 3, 8, 8)
    tensors = {
        "whole": base,
        "view": base[1:3],
        "channels_last": base.to(memory_format=torch.channels_last),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 5),
        "bytes": torch.arange(9, dtype=torch.uint8),
        "half": torch.randn(3).bfloat16(),
    }
    meta = {"epochs": 3, "name": 'quoted "ü"', "none": None}
    save_tensors(tmp_path / "snapshot", tensors, meta)
    found, found_meta = load_tensors(tmp_path / "snapshot")
    assert found_meta == meta
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "a full disk gets no fuller"


def test_what_cannot_be_written_is_named_as_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "nowhere" / "file", tmp_path / "folder"):
        with pytest.raises(OSError, match=path.name) as caught:
            write_atomically(path, b"new")
        assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_damaged_snapshot_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "snapshot"
    save_tensors(path, {"a": torch.ones(10)}, {"epochs": 1})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"snapshot cannot be read \("):
        load_tensors(path)


def test_a_bit_of_a_value_is_noticed_unless_somebody_else_looks(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    save_tensors(path, {"a": torch.arange(10), "b": torch.ones(2, 3).bfloat16()}, {})
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="it is not what was written"):
        load_tensors(path)
    assert load_tensors(path, intact=False)[0].keys() == {"a", "b"}


def test_a_bit_of_what_a_file_says_of_itself_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    save_tensors(path, {"a": torch.arange(10), "b": torch.ones(2, 3)}, {"epochs": 1})
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in range(header):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="snapshot cannot be read"):
            load_tensors(path)


def test_a_missing_snapshot_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing-here"):
        load_tensors(tmp_path / "nothing-here")


def test_a_lock_is_held_by_one_and_free_once_it_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileLock, "__del__", lambda lock: None)  # which frees what was forgotten
    path, other = tmp_path / "lock", UserError("somebody else has it")
    with held(path, other), pytest.raises(UserError, match="else has it"), held(path, other):
        pass
    with pytest.raises(OSError, match="disk full"), held(path, other):
        raise OSError("disk full")
    with FileLock(path).acquire(timeout=0):
        pass
