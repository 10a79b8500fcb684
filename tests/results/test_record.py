"""The folder of a run belongs to one process at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock
from summaries import CONFIG

from engram.results.record import OccupiedError, RunRecord


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
