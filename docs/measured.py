"""What tables and figures of the documentation read of the committed summaries."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engram.config import as_mapping
from engram.models.adapters import ModuleConfig
from engram.results.comparison import (
    ComparisonRow,
    Estimate,
    changed_settings,
    comparison_table,
    in_words,
)
from engram.results.formats import ABSENT

ROOT = Path(__file__).parents[1]

ALL_IMAGES = 50_000
"""Training images of CIFAR-100: no memory holds more."""

TEN_TASKS = "cifar100/b0-inc10"

NOTHING = "_Nothing measured yet._\n"

PLACES = {"msa": "msa", "mlp": "mlp", "both": "msa and mlp"}

AVERAGE_AND_LAST = ("average_incremental_accuracy", "last_accuracy")

Summaries = Sequence[dict[str, Any]]


def pooled(summaries: Summaries) -> list[tuple[ComparisonRow, Summaries]]:
    """Rows of the comparison, each with the summaries that it stands for."""
    return [(row, [summaries[run] for run in row.runs]) for row in comparison_table(summaries)]


def by_rule(runs: Summaries, rule: str) -> str:
    """Average and last accuracy of a decision rule, means over runs with their spread; absent where
    one of the runs lacks the rule."""
    if any(rule not in run["accuracy_by_classifier"] for run in runs):
        return ABSENT
    found = [run["accuracy_by_classifier"][rule] for run in runs]
    return " / ".join(str(Estimate.of([each[name] for each in found])) for name in AVERAGE_AND_LAST)


def mean_curve(row: ComparisonRow) -> list[float]:
    """Accuracy after each task, mean over seeds."""
    return [statistics.fmean(values) for values in zip(*row.accuracies, strict=True)]


def processors(summaries: Summaries) -> str:
    """Where the runs were done, and in which precision: times compare on one processor alone."""
    found = {
        f"{run['environment'].get('processor', '?')} in {run['config']['precision']}"
        for run in summaries
    }
    return " and ".join(sorted(found))


def tests_in_ten_tasks(summaries: Summaries) -> Summaries:
    """Runs on CIFAR-100 in ten tasks that were measured on the test images."""
    published = (TEN_TASKS, "test")
    return [s for s in summaries if (s["stream"], s["evaluate_on"]) == published]


def changes_but_of_modules(summary: Mapping[str, Any]) -> list[str]:
    """What of a run of LAE differs from its preset, but for its modules."""
    return in_words(
        [
            each
            for each in changed_settings(summary)
            if each.partition("=")[0] not in as_mapping(ModuleConfig())
        ]
    )


def lae_runs(summaries: Summaries, preset: str, images: str) -> Summaries:
    """Runs of LAE on CIFAR-100 in ten tasks, which differ from their preset in modules alone."""
    wanted = ("lae", preset, images, TEN_TASKS)
    return [
        summary
        for summary in summaries
        if tuple(summary[key] for key in ("method", "preset", "evaluate_on", "stream")) == wanted
        and not changes_but_of_modules(summary)
    ]


def modules_in_words(summary: Mapping[str, Any]) -> str:
    """The modules of a run of LAE: `adapter 5, msa`; and what else differs from its preset."""
    modules = summary["config"]["settings"]["modules"]
    usual = as_mapping(ModuleConfig())
    where = [] if modules["module"] in ("lora", "prefix") else [PLACES[modules["place"]]]
    blocks = modules["blocks"]
    if blocks != usual["blocks"]:
        where.append("all blocks" if blocks == "all" else f"blocks {blocks}")
    rare = [
        f"{name}={modules[name]}"
        for name in ("kernel", "convolution", "class_token")
        if modules[name] != usual[name]
    ]
    name = f"{modules['module']} {modules['size']}"
    return ", ".join([name, *where, *rare, *changes_but_of_modules(summary)])


def of_benchmark(name: str) -> dict[str, Any] | None:
    """What a benchmark wrote into `docs/`; None where it was not run."""
    path = ROOT / "docs" / f"{name}.json"
    return dict(json.loads(path.read_text())) if path.exists() else None


def missing(grid: str) -> str:
    """The command that measures what is not there, and how long it takes if the grid says so."""
    path = ROOT / "experiments" / grid
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    said = re.search(r"(\w[^.:]* on two cores)\.", " ".join(line[1:].strip() for line in comments))
    time = f" ({said[1][0].lower()}{said[1][1:]})" if said else ""
    command = f"engram bench --grid experiments/{grid} --publish results"
    return f"_Not measured yet: `{command}`{time}._\n"
