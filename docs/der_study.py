"""The tables of DER: what pruning costs, equal bytes, and the authors' curves beside ours."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import memory_study
from claims import Claim, Side, judged
from measured import (
    ALL_IMAGES,
    NOTHING,
    Summaries,
    mean_curve,
    missing,
    of_benchmark,
    pooled,
    processors,
    tests_in_ten_tasks,
)

from engram.results.comparison import ComparisonRow, changed_settings
from engram.results.formats import ABSENT, format_count, format_seconds, markdown

COSTS = ("parameters", "multiply_adds", "latency_ms")

EQUAL_BYTES = (10_000_000, 20_000_000, 40_000_000)
CLOSE_ENOUGH = 1.1
"""Times a number of bytes: what is held up to here still counts as that number."""

MOST_PARAMETERS = 5_000_000
"""On average over ten tasks: what a pruned ResNet-18 is to need."""
MOST_BESIDE = 0.7
"""Points by which a reproduction may differ from what was published."""


def pruning(summaries: Summaries) -> str:
    """DER whole and cut: accuracy, and what it costs to classify after the last task."""
    found = [
        summary
        for summary in summaries
        if (summary["method"], summary["codec"], summary["evaluate_on"]) == ("der", "raw", "test")
        and not summary["config"]["budget"].endswith("B")
    ]
    header = ["Stream, preset", "Size", "Seeds", "Average", "Last", "Parameters at the end"]
    header += ["On average", "Multiply-adds", "One image, ms", "Time a run"]
    header += ["Processor and precision"]
    rows = []
    for row, runs in pooled(found):
        parameters, multiply_adds, milliseconds = (
            statistics.fmean(run[name][-1] for run in runs) for name in COSTS
        )
        rows.append(
            [
                f"{row.stream}, {row.preset}",
                ", ".join(row.differences) or "whole",
                str(len(row.seeds)),
                str(row.average),
                str(row.last),
                format_count(parameters),
                format_count(_average_parameters(runs)),
                format_count(multiply_adds),
                f"{milliseconds:.1f}",
                format_seconds(row.seconds),
                processors(runs),
            ]
        )
    return markdown(header, rows, texts=2) if rows else NOTHING


def _average_parameters(runs: Summaries) -> float:
    """Over tasks and runs."""
    return statistics.fmean(statistics.fmean(run["parameters"]) for run in runs)


WHOLE = Side("der", "laptop", "raw", "2000")

PRUNING = (
    *(
        Claim(
            f"DER, whole, for iCaRL by {words}, in as many epochs",
            WHOLE,
            replace(memory_study.LAPTOP, rule=rule),
            least=3.0,
        )
        for rule, words in memory_study.DECIDERS.items()
    ),
    *(
        Claim(
            f"{keep:g} of the weights for all",
            replace(WHOLE, changed=(f"keep={keep}",)),
            WHOLE,
            least,
        )
        for keep, least in ((0.5, -1.0), (0.25, -2.5), (0.1, None))
    ),
)


def pruning_judged(summaries: Summaries) -> str:
    """DER beside iCaRL, and cut beside whole."""
    return judged(PRUNING, tests_in_ten_tasks(summaries))


def _all_images(codec: str) -> float:
    """Bytes that all training images take, as `benchmarks/codecs.py` measured; no memory can use
    more."""
    measured = of_benchmark("codecs") or {"codecs": []}
    sizes = [row["bytes_each"] for row in measured["codecs"] if row["codec"] == codec]
    return ALL_IMAGES * sizes[0] if sizes else math.inf


def equal_bytes(summaries: Summaries) -> str:
    """Accuracy by exemplars and parameters together, near one of EQUAL_BYTES."""
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for row, runs in pooled(_in_bytes(summaries)):
        scale = "laptop" if row.preset in ("laptop", "best") else "quick"
        name = (scale, f"{row.method}, {row.preset_and_changes}", row.codec)
        rows.setdefault(name, {}).update(_measured_cell(row, runs) | _impossible_cells(row))
    steps = [f"{step // 10**6} MB" for step in EQUAL_BYTES]
    lines = [
        [scale, method, f"`{codec}`", *(cells.get(step, ABSENT) for step in EQUAL_BYTES)]
        for (scale, method, codec), cells in sorted(rows.items())
    ]
    missing_ones = [
        missing(f"equal_bytes/{scale}.yaml")
        for scale in ("quick", "laptop")
        if not any(line[0] == scale for line in lines)
    ]
    table = markdown(["Compares", "Method, preset", "Codec", *steps], lines, texts=3)
    return "\n".join([table, *missing_ones]) if lines else NOTHING


def _in_bytes(summaries: Summaries) -> Summaries:
    """Runs whose budget is in bytes, and none of the memory study's."""
    return [
        summary
        for summary in tests_in_ten_tasks(summaries)
        if summary["config"]["budget"].endswith("B")
        and summary["config"]["budget"] not in memory_study.BUDGETS
    ]


def _measured_cell(row: ComparisonRow, runs: Summaries) -> dict[int, str]:
    """Accuracy, in the column that is nearest to what is held."""
    nearest = min(EQUAL_BYTES, key=lambda step: abs(step - row.total_bytes))
    updates = statistics.fmean(run["updates"] for run in runs)
    held = f"{row.total_bytes / 1e6:.1f} MB, {updates:,.0f} updates, n = {len(runs)}"
    return {nearest: f"{row.average} / {row.last} in {held}"}


def _impossible_cells(row: ComparisonRow) -> dict[int, str]:
    """Columns below what the parameters take, and beyond what all images take with them."""
    parameters, images = 4 * row.parameters, _all_images(row.codec)
    cells = {}
    for step in EQUAL_BYTES:
        if step < parameters:
            cells[step] = f"cannot be: {parameters / 1e6:.1f} MB are parameters"
        elif step > (parameters + images) * CLOSE_ENOUGH:
            cells[step] = f"cannot be: all images take {images / 1e6:.1f} MB"
    return cells


def der_paper(summaries: Summaries) -> str:
    """The curves of DER's authors, and ours beside them, or that there is none yet."""
    authors = of_benchmark("authors")
    if authors is None:
        return NOTHING
    rows = []
    for stream, curves in authors["der"].items():
        budget = "2000" if "/b0-" in stream else "20/class"
        for name, curve in curves.items():
            rows.append([stream, name, "authors, 3 orders", *_curve(curve), ABSENT, ABSENT])
            ours = [s for s in summaries if _as_authors(s, stream, budget, pruned=name == "pruned")]
            rows += [_our_row(stream, name, row, runs, curve) for row, runs in pooled(ours)]
            if not ours:
                rows.append([stream, name, "engram: not yet measured", *[ABSENT] * 5])
    header = ["Stream", "Size", "Who", "Average", "Without first task", "After each task, %"]
    header += ["Average / last, beside the authors'", "Parameters on average"]
    command = "engram bench --grid experiments/pruning/paper.yaml --publish results"
    return f"{markdown(header, rows, texts=3)}\n`{command}` measures ours; it wants a GPU.\n"


def _as_authors(summary: Mapping[str, Any], stream: str, budget: str, *, pruned: bool) -> bool:
    """Whether a run is one that compares with the authors': nothing differs but its size."""
    changed = [each for each in changed_settings(summary) if not each.startswith("keep=")]
    return (
        (summary["method"], summary["preset"], summary["stream"]) == ("der", "paper", stream)
        and (summary["evaluate_on"], summary["codec"]) == ("test", "raw")
        and summary["config"]["budget"] == budget
        and not changed
        and (summary["config"]["settings"]["keep"] is not None) == pruned
    )


def _our_row(
    stream: str, name: str, row: ComparisonRow, runs: Summaries, authors: Sequence[float]
) -> list[str]:
    """Our curve, by how much it differs, and how many parameters it takes."""
    size = ", ".join([name, *row.differences])
    who = f"engram, {', '.join(row.orders)}, n = {len(runs)}"
    parameters = _average_parameters(runs)
    told = format_count(parameters)
    if name == "pruned" and "/b0-" in stream:
        met = "within" if parameters <= MOST_PARAMETERS else "not within"
        told = f"{told}: {met} {format_count(MOST_PARAMETERS)}"
    curve = mean_curve(row)
    return [stream, size, who, *_curve(curve), _beside(curve, authors), told]


def _beside(curve: Sequence[float], authors: Sequence[float]) -> str:
    """By how much two curves differ, and whether that is little."""
    gaps = statistics.fmean(curve) - statistics.fmean(authors), curve[-1] - authors[-1]
    within = "within" if max(map(abs, gaps)) <= MOST_BESIDE else "not within"
    return f"{gaps[0]:+.2f} / {gaps[1]:+.2f}: {within} {MOST_BESIDE}"


def _curve(curve: Sequence[float]) -> list[str]:
    averages = (statistics.fmean(curve), statistics.fmean(curve[1:]))
    return [*(f"{value:.2f}" for value in averages), " ".join(f"{value:.2f}" for value in curve)]


def der_inference(summaries: Summaries) -> str:
    """What `benchmarks/der_inference.py --json` measured."""
    measured = of_benchmark("der_inference")
    if measured is None:
        return NOTHING
    header = ["Network", "Weights kept", "Channels in multiples of", "Parameters", "Multiply-adds"]
    header += ["Fewer by", f"Latency, ms a batch of {measured['batch']}", "Faster by"]
    rows = [
        [
            row["backbone"],
            f"{row['keep']:g}",
            str(row["multiple"]),
            *(format_count(row[name]) for name in ("parameters", "multiply_adds")),
            f"{row['multiply_adds_ratio']:.2f}",
            f"{row['latency_ms']:.0f}",
            f"{row['latency_ratio']:.2f}",
        ]
        for row in measured["rows"]
    ]
    return markdown(header, rows)
