"""What tables and figures of the documentation read of the committed summaries."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from engram.results.comparison import ComparisonRow, comparison_table

TEN_TASKS = "cifar100/b0-inc10"

NOTHING = "_Nothing measured yet._\n"

Summaries = Sequence[dict[str, Any]]


def pooled(summaries: Summaries) -> list[tuple[ComparisonRow, Summaries]]:
    """Rows of the comparison, each with the summaries that it stands for."""
    return [(row, [summaries[run] for run in row.runs]) for row in comparison_table(summaries)]


def mean_curve(row: ComparisonRow) -> list[float]:
    """Accuracy after each task, mean over seeds."""
    return [statistics.fmean(values) for values in zip(*row.accuracies, strict=True)]


def tests_in_ten_tasks(summaries: Summaries) -> Summaries:
    """Runs on CIFAR-100 in ten tasks that were measured on the test images."""
    published = (TEN_TASKS, "test")
    return [s for s in summaries if (s["stream"], s["evaluate_on"]) == published]
