"""Differences between settings, over pairs of runs with the same seed, class order and precision:
what these add to both runs cancels out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from engram.results.comparison import ComparisonRow
from engram.results.formats import format_number
from engram.results.found import Summary

__all__ = ["Gain", "gains"]

# Student's t at 97.5 % for 1, 2, ... degrees of freedom; beyond, the last is a little too wide.
# fmt: off
QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Gain:
    """A mean difference, in points.

    Attributes:
        mean: over the pairs.
        margin: half of the 95 % confidence interval, by Student's t; None of one pair.
    """

    mean: float
    margin: float | None

    @classmethod
    def of(cls, differences: Sequence[float]) -> Gain:
        """From a difference a pair, one at least."""
        count = len(differences)
        mean = statistics.fmean(differences)
        if count == 1:
            return cls(mean, None)
        quantile = QUANTILES[min(count - 1, len(QUANTILES)) - 1]
        return cls(mean, quantile * statistics.stdev(differences) / count**0.5)

    def __str__(self) -> str:
        """The mean, and in brackets the interval."""
        if self.margin is None:
            return format_number(self.mean, plus=True)
        mean, low, high = (
            format_number(points, plus=True)
            for points in (self.mean, self.mean - self.margin, self.mean + self.margin)
        )
        return f"{mean} [{low}, {high}]"

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out. One without any width does not: it is of two runs
        or three whose differences happen to be equal."""
        return self.margin is not None and 0 < self.margin < abs(self.mean)


def gains(
    summaries: Sequence[Summary],
    rows: Sequence[ComparisonRow],
    others: Sequence[ComparisonRow],
    measure: str,
) -> list[float]:
    """How much more of a measure the runs of `rows` have than those of `others` with the same seed,
    class order and precision; nothing where there are no such pairs. Where precision alone tells
    the two apart, it is what is compared."""
    by_precision = _but_precision(rows) != _but_precision(others)
    ours, theirs = (_by_run(summaries, side, by_precision) for side in (rows, others))
    return [
        summaries[position][measure] - summaries[theirs[run]][measure]
        for run, position in ours.items()
        if run in theirs
    ]


def _but_precision(rows: Sequence[ComparisonRow]) -> set[tuple[str, ...]]:
    """What tells settings apart beside the precision of training."""
    return {
        (row.method, row.preset, row.budget, row.codec, *row.changed_but_precision) for row in rows
    }


def _by_run(
    summaries: Sequence[Summary], rows: Sequence[ComparisonRow], by_precision: bool
) -> dict[tuple[int, str, str], int]:
    """Runs by what those of a pair have in common."""
    found = {}
    for run in (run for row in rows for run in row.runs):
        summary = summaries[run]
        precision = summary["config"].get("precision", "") if by_precision else ""
        found[summary["seed"], summary["order"], precision] = run
    return found
