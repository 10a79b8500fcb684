"""The folder of a run belongs to one process at a time, and tells what it was done with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from filelock import FileLock
from summaries import CONFIG

from engram.results import record as module
from engram.results.record import OccupiedError, RunRecord, environment


def test_a_run_is_one_process_s_until_it_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileLock, "__del__", lambda lock: None)  # which frees what was forgotten
    record = RunRecord(tmp_path / "run")
    with (
        record.open(CONFIG),
        pytest.raises(OccupiedError, match="Another process is at work in "),
        record.open(CONFIG),
    ):
        pass
    with FileLock(tmp_path / "run" / ".lock").acquire(timeout=0):
        pass


def test_saved_learners_stand_in_the_order_of_their_tasks(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    assert record.learners() == {}
    for task in (99, 100, 7):
        record.learner(task).mkdir(parents=True)
    (tmp_path / "model" / "task-101.partial").mkdir()
    assert list(record.learners().items()) == [
        (7, tmp_path / "model/task-07"),
        (99, tmp_path / "model/task-99"),
        (100, tmp_path / "model/task-100"),
    ]


def test_a_checkout_of_something_else_is_no_commit_of_this_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lib" / "engram" / "results"
    package.mkdir(parents=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git[:3], "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "theirs"], check=True)
    monkeypatch.setattr(module, "__file__", str(package / "record.py"))
    assert environment()["commit"] is None
    (tmp_path / "src" / "engram" / "results").mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "src/engram/results/record.py"))
    assert environment()["commit"]
