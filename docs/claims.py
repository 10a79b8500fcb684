"""Comparisons of average accuracy that the documentation judges, seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from measured import AVERAGE_AND_LAST, NOTHING, Summaries

from engram.results.comparison import Estimate, changed_settings
from engram.results.formats import ABSENT, markdown


@dataclass(frozen=True)
class Side:
    """One side of a comparison: the runs of a preset with a memory and these settings.

    Attributes:
        best_rule: take the decision rule that is best on average, and not the one that counts.
    """

    method: str
    preset: str
    codec: str
    budget: str
    changed: tuple[str, ...] = ()
    best_rule: bool = False


@dataclass(frozen=True)
class Claim:
    """A comparison of averages, seed by seed.

    Attributes:
        least: points that are asked for on average; None where what comes out is only told.
    """

    text: str
    side: Side
    other: Side
    least: float | None = None


def judged(claims: Sequence[Claim], summaries: Summaries) -> str:
    """A row for each claim; nothing where no runs can be compared."""
    rows = [_row(claim, summaries) for claim in claims]
    if all(row[1] == ABSENT for row in rows):
        return NOTHING
    header = ["What", "Gain in average accuracy", "Gain in last accuracy", "Seeds"]
    header.append("Verdict, by average accuracy")
    return markdown(header, rows)


def _row(claim: Claim, summaries: Summaries) -> list[str]:
    here, there = _found(summaries, claim.side), _found(summaries, claim.other)
    pairs = [(here[seed], there[seed]) for seed in sorted(here.keys() & there.keys())]
    if not pairs:
        return [claim.text, ABSENT, ABSENT, "0", "not measured"]
    average, last = ([one[key] - other[key] for one, other in pairs] for key in AVERAGE_AND_LAST)
    gains = [str(Estimate.of(values)) for values in (average, last)]
    return [claim.text, *gains, str(len(pairs)), _verdict(claim, average)]


def _verdict(claim: Claim, gains: Sequence[float]) -> str:
    """Whether what is asked is met on average; else whether several seeds agree."""
    if claim.least is not None:
        met = statistics.fmean(gains) >= claim.least
        found = f"{'met' if met else 'missed'}: {claim.least:+g} is asked"
        return found if len(gains) > 1 else f"{found}, one run"
    if len(gains) == 1:
        return "one run, no verdict"
    if min(gains) > 0:
        return "gains"
    return "loses" if max(gains) < 0 else "undecided"


def _found(summaries: Summaries, side: Side) -> dict[tuple[int, str], Mapping[str, Any]]:
    """The runs of one side by seed and class order."""
    wanted = (side.method, side.preset, side.codec, side.budget)
    return {
        (run["seed"], run["order"]): _best_rule(run) if side.best_rule else run
        for run in summaries
        if (run["method"], run["preset"], run["codec"], run["config"]["budget"]) == wanted
        and set(changed_settings(run)) == set(side.changed)
    }


def _best_rule(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """The accuracies of the decision rule that is best on average."""
    rules: Mapping[str, Mapping[str, Any]] = run["accuracy_by_classifier"]
    return max(rules.values(), key=lambda rule: float(rule["average_incremental_accuracy"]))
