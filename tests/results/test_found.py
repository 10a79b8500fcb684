"""What is found in folders with runs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from summaries import CONFIG, make_summary, write_run

from engram.errors import UserError
from engram.results.found import find_runs
from engram.results.record import RunRecord


def test_a_run_and_its_copy_are_one(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a", make_summary())
    (tmp_path / "copy.json").write_text(json.dumps(make_summary()))
    findings = find_runs(tmp_path)
    assert [run.name for run in findings.runs] == ["a"]
    assert findings.left_out == ("copy.json is the same run as runs/a/summary.json.",)


def test_an_unfinished_run_is_no_run(tmp_path: Path) -> None:
    with RunRecord(tmp_path / "begun").open(CONFIG):
        pass
    for folder in (tmp_path, tmp_path / "begun"):
        with pytest.raises(UserError, match="begun has not finished"):
            find_runs(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy_matrix": [[90.0]]}, "accuracy_matrix does not have 2 rows"),
        ({"accuracy_matrix": [[90.0], [70.0]]}, "lower triangle"),
        ({"seed": None}, "seed is missing"),
        ({"config": {}}, r"config\.settings"),
        ({"classifier": "other"}, "lacks other"),
        (
            {"accuracy_by_classifier": {"nme": {"accuracy_per_task": [9, 7], "old_as_new": [1]}}},
            "old_as_new of nme is not a list of 2 numbers",
        ),
        ({"parameters": [1]}, "parameters is not a list of 2 numbers"),
        ({"latency_ms": ["fast", "slow"]}, "latency_ms is not a list of 2 numbers"),
        ({"measures": [{}, {"extractors": "two"}]}, "measures is not a list of 2 mappings"),
    ],
)
def test_a_damaged_summary_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    run = write_run(tmp_path, make_summary(), image_size=None)
    (run / "summary.json").write_text(json.dumps(make_summary() | change))
    with pytest.raises(UserError, match=rf"summary\.json is damaged: .*{message}"):
        find_runs(run)


def test_a_summary_cut_short_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, make_summary(), image_size=None)
    text = (run / "summary.json").read_text()
    (run / "summary.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"summary\.json is damaged: it cannot be read"):
        find_runs(run)
