"""Runs found in a folder, their summaries checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram.errors import UserError

__all__ = ["Findings", "FoundRun", "Summary", "find_runs", "read_summary"]

Summary = Mapping[str, Any]

# What makes a JSON file a summary, damaged or not: no other file of this package holds it.
SIGN = "accuracy_matrix"
TEXTS = ("method", "stream", "preset", "order", "evaluate_on", "codec", "classifier")
NUMBERS = (
    "average_incremental_accuracy",
    "last_accuracy",
    "memory_bytes",
    "model_bytes",
    "exemplars",
)
NUMBERS_OR_NONE = (
    "average_without_first_task",
    "forgetting",
    "backward_transfer",
    "memory_budget_bytes",
)
KINDS: Mapping[str, Any] = {
    **dict.fromkeys(TEXTS, str),
    **dict.fromkeys(NUMBERS, int | float),
    **dict.fromkeys(NUMBERS_OR_NONE, int | float | None),
    "seed": int,
    **dict.fromkeys(("config", "environment", "accuracy_by_classifier", "seconds"), dict),
    "config.settings": dict,
    "seconds.total": int | float,
}
"""What a summary has to hold; after a point, the key within the mapping before it."""
OF_TASKS_OR_ABSENT = ("multiply_adds", "latency_ms")


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A finished run.

    Attributes:
        path: the JSON file with its summary.
        summary: what is published of it, checked.
    """

    path: Path
    summary: Summary

    @property
    def folder(self) -> Path | None:
        """The run's folder; None where the summary is a copy without one."""
        return self.path.parent if self.path.name == "summary.json" else None

    @property
    def name(self) -> str:
        """The name of the run's folder, or of the file with the copy."""
        return self.path.parent.name if self.folder else self.path.stem


@dataclass(frozen=True, slots=True)
class Findings:
    """What a folder holds.

    Attributes:
        runs: the finished ones.
        left_out: what else was found, and why it is not among them; a sentence each.
    """

    runs: tuple[FoundRun, ...]
    left_out: tuple[str, ...]


def find_runs(folder: Path) -> Findings:
    """The finished runs in a run's folder, or anywhere below a folder.

    A run is a folder with `summary.json`, or any other JSON file that holds a summary (a committed
    copy). A run that is found twice counts once.

    Raises:
        UserError: there is none, or a summary is damaged.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give a run's folder, or one that holds runs.")
    runs: list[FoundRun] = []
    left_out: list[str] = []
    # Copies last: where a run's folder is there too, the copy is what is left out.
    for path in sorted(_candidates(folder), key=lambda path: path.name != "summary.json"):
        place = path.relative_to(folder) if path != folder else Path(folder.name)
        if path.is_dir():
            left_out.append(
                f"{place} has not finished. The engram bench command that began it goes on with it."
            )
        elif (summary := read_summary(path)) is None:
            left_out.append(f"{place} is not the summary of a run.")
        elif same := [run for run in runs if run.summary == summary]:
            left_out.append(f"{place} is the same run as {same[0].path.relative_to(folder)}.")
        else:
            runs.append(FoundRun(path, summary))
    if runs:
        return Findings(tuple(runs), tuple(left_out))
    raise UserError(
        f"No finished run in {folder}. Looked for summary.json there and below it, and for other "
        f"JSON files with a summary. {' '.join([*left_out, 'Run engram bench first.'])}"
    )


def _candidates(folder: Path) -> Iterator[Path]:
    """JSON files that may hold a summary, and the folders of runs that have not finished.

    What else lies in a run's folder is nobody's summary.
    """
    if (folder / "summary.json").exists():
        yield folder / "summary.json"
    elif (folder / "config.yaml").exists() and (folder / "tasks").is_dir():
        yield folder
    else:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.name.startswith("."):
                yield from _candidates(inner)
        yield from sorted(folder.glob("*.json"))


def read_summary(path: Path) -> Summary | None:
    """The summary that a file holds, or None where it clearly holds something else.

    Raises:
        UserError: it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if path.name != "summary.json":
            return None
        raise _damaged(path, f"it cannot be read, {error}") from error
    if not isinstance(content, dict) or SIGN not in content:
        if path.name != "summary.json":
            return None
        raise _damaged(path, f"{SIGN} is missing")
    _check(path, content)
    return content


def _check(path: Path, summary: Mapping[str, Any]) -> None:
    """Refuse a summary that lacks what a report shows."""
    for key, kind in KINDS.items():
        within, _, name = key.rpartition(".")
        if not isinstance((summary[within] if within else summary).get(name, ...), kind):
            raise _damaged(path, f"{key} is missing or of another type")
    tasks = len(summary["task_sizes"]) if isinstance(summary.get("task_sizes"), list) else 0
    if not _numbers(summary.get("task_sizes"), tasks) or tasks == 0:
        raise _damaged(path, "task_sizes is not a list of numbers")
    if not _numbers(summary.get("parameters"), tasks):
        raise _damaged(path, f"parameters is not a list of {tasks} numbers")
    for key in OF_TASKS_OR_ABSENT:
        if key in summary and not _numbers(summary[key], tasks):
            raise _damaged(path, f"{key} is not a list of {tasks} numbers")
    measures = summary.get("measures", [{}] * tasks)
    if not (
        isinstance(measures, list) and len(measures) == tasks and all(map(_named_numbers, measures))
    ):
        raise _damaged(path, f"measures is not a list of {tasks} mappings from names to numbers")
    matrix = summary[SIGN]
    if not isinstance(matrix, list) or len(matrix) != tasks:
        raise _damaged(path, f"{SIGN} does not have {tasks} rows")
    if not all(_numbers(row, index) for index, row in enumerate(matrix, start=1)):
        raise _damaged(path, f"{SIGN} is not a lower triangle of numbers")
    curves = summary["accuracy_by_classifier"]
    if summary["classifier"] not in curves:
        raise _damaged(path, f"accuracy_by_classifier lacks {summary['classifier']}")
    for name, entry in curves.items():
        if not isinstance(entry, dict) or not _numbers(entry.get("accuracy_per_task"), tasks):
            raise _damaged(path, f"accuracy_per_task of {name} is not a list of {tasks} numbers")
        for key in ("old_as_new", "new_as_old"):
            values = entry.get(key, [None] * tasks)
            if not isinstance(values, list) or not _numbers([v or 0 for v in values], tasks):
                raise _damaged(path, f"{key} of {name} is not a list of {tasks} numbers")


def _numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(item, (int, float)) for item in value)
    )


def _named_numbers(value: Any) -> bool:
    return isinstance(value, dict) and _numbers(list(value.values()), len(value))


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged: {reason}. Remove it; where it lies in a run's folder, the same "
        "engram bench command writes it again."
    )
