"""The tables of the study of LAE: experts and votes, and what is claimed of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import figures
from measured import NOTHING, TEN_TASKS, Summaries, pooled

from engram.results.comparison import (
    ABSENT,
    ComparisonRow,
    Estimate,
    changed_settings,
    markdown,
)

ALL_AT_ONCE = "cifar100/100"


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a decision rule of runs with these settings."""

    rule: str
    changed: tuple[str, ...] = ()
    method: str = "lae"


PUBLISHED = Side(figures.PUBLISHED_VOTE)
CONVOLUTIONS = ("module=conv-adapter", "place=both")
WITH_RIDGE = f"{figures.PUBLISHED_VOTE} + ridge"

CLAIMS = (
    ("a branch beside the MLP too", Side(PUBLISHED.rule, ("place=both",)), PUBLISHED),
    (
        "convolution, one branch",
        Side(PUBLISHED.rule, ("module=conv-adapter", "size=10")),
        PUBLISHED,
    ),
    (
        "convolution, both branches, beside plain adapters of both",
        Side(PUBLISHED.rule, CONVOLUTIONS),
        Side(PUBLISHED.rule, ("place=both",)),
    ),
    *(
        (f"{merge} in place of the moving average", Side(f"online + offline {merge}"), PUBLISHED)
        for merge in ("mean", "ties:0.2", "ties:0.5", "ties:1")
    ),
    (
        "convolution on both branches, and ties:0.5",
        Side("online + offline ties:0.5", CONVOLUTIONS),
        PUBLISHED,
    ),
    ("ridge regression as third expert", Side(WITH_RIDGE), PUBLISHED),
    ("all of it", Side("online + offline ties:0.5 + ridge", CONVOLUTIONS), PUBLISHED),
    (
        "third expert, beside RanPAC as it is",
        Side(WITH_RIDGE),
        Side("ridge", ("adapt=False",), "ranpac"),
    ),
    (
        "third expert, beside RanPAC on modules of the first task",
        Side(WITH_RIDGE),
        Side("ridge", ("adapt=True",), "ranpac"),
    ),
)


def lae_votes(summaries: Summaries) -> str:
    """Last / average accuracy by modules and merge; and of what there is once for all merges."""
    found = [s for s in summaries if s["stream"] in (TEN_TASKS, ALL_AT_ONCE)]
    rows = []
    for row, runs in pooled([s for s in found if s["method"] == "lae"]):
        rules = runs[0]["accuracy_by_classifier"]
        name = [
            row.stream,
            f"{row.preset}, {row.evaluate_on}",
            ", ".join([row.method, *row.changed]),
        ]
        start = [*name, str(len(runs)), *(_cell(runs, rule) for rule in ("online", "ridge"))]
        if row.stream == ALL_AT_ONCE:
            rows.append([*start, *[ABSENT] * 4])
            continue
        for rule in (rule for rule in rules if rule.startswith("offline ")):
            votes = (rule, f"online + {rule}", f"online + {rule} + ridge")
            merge = rule.removeprefix("offline ")
            rows.append([*start, merge, *(_cell(runs, vote) for vote in votes)])
            start = [""] * len(start)
    header = ["Stream", "Preset, images", "Method, modules", "Orders", "Online", "Ridge"]
    header += ["Merge", "Offline", "Online + offline", "All three"]
    alone = pooled([s for s in found if s["method"] == "ranpac"])
    lines = [_beside(row, _cell(runs, row.classifier), rows) for row, runs in alone]
    return "\n".join([markdown(header, rows, texts=3), *lines])


def _beside(row: ComparisonRow, accuracy: str, rows: Sequence[list[str]]) -> str:
    """RanPAC alone, which has no votes, in a line; and whether it compares with the table."""
    of = f"{row.preset}, {row.evaluate_on}"
    name = ", ".join(["RanPAC alone", row.stream, f"{of} images", *row.changed])
    orders = "one class order" if len(row.orders) == 1 else f"{len(row.orders)} class orders"
    compares = any(cells[:2] == [row.stream, of] for cells in rows)
    warning = "" if compares else " The table above has no such runs: do not compare."
    return f"{name}, {orders}: {accuracy}.{warning}\n"


def _cell(runs: Summaries, rule: str) -> str:
    if any(rule not in run["accuracy_by_classifier"] for run in runs):
        return ABSENT
    found = [run["accuracy_by_classifier"][rule] for run in runs]
    measures = ("last_accuracy", "average_incremental_accuracy")
    return " / ".join(str(Estimate.of([each[name] for each in found])) for name in measures)


def lae_claims(summaries: Summaries) -> str:
    """Differences in points of last accuracy, class order by class order."""
    tests = [
        summary
        for summary in summaries
        if (summary["preset"], summary["evaluate_on"]) == ("laptop", "test")
    ]
    ten_tasks = [summary for summary in tests if summary["stream"] == TEN_TASKS]
    joint = _last([s for s in tests if s["stream"] == ALL_AT_ONCE], Side("online"))
    rows = []
    for text, side, other in CLAIMS:
        here, there = _last(ten_tasks, side), _last(ten_tasks, other)
        orders = sorted(here.keys() & there.keys())
        if not orders:
            continue
        differences = [here[order] - there[order] for order in orders]
        gap = _share_of_gap(differences, [there[order] for order in orders], list(joint.values()))
        above = sum(difference > 0 for difference in differences)
        rows.append([text, str(Estimate.of(differences)), f"{above} of {len(orders)}", gap])
    header = ["What", "Gain, points of last accuracy", "Orders in which it gains"]
    header += ["Share of the gap to all at once"]
    return markdown(header, rows) if rows else NOTHING


def _last(summaries: Summaries, side: Side) -> dict[str, float]:
    """Last accuracy by class order."""
    return {
        summary["order"]: summary["accuracy_by_classifier"][side.rule]["last_accuracy"]
        for summary in summaries
        if summary["method"] == side.method
        and set(_settings(summary)) == set(side.changed)
        and side.rule in summary["accuracy_by_classifier"]
    }


def _settings(summary: dict[str, Any]) -> list[str]:
    """What tells runs apart; RanPAC always says whether it has adapted."""
    changed = list(changed_settings(summary))
    adapted = f"adapt={summary['config']['settings'].get('adapt')}"
    return sorted({*changed, adapted}) if summary["method"] == "ranpac" else changed


def _share_of_gap(gains: list[float], bases: list[float], ceilings: list[float]) -> str:
    if not ceilings:
        return ABSENT
    gap = statistics.fmean(ceilings) - statistics.fmean(bases)
    return f"{100 * statistics.fmean(gains) / gap:.0f} %"
