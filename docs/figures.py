"""The figures of the documentation, drawn from the committed measurements in `results/`.

Each figure carries a digest of what it shows, so that an outdated one is found without drawing it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lae_study
import matplotlib
import memory_study
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measured import (
    Summaries,
    lae_runs,
    mean_curve,
    modules_in_words,
    pooled,
    tests_in_ten_tasks,
)

from engram.results.comparison import changed_settings, comparison_table

Curve = tuple[list[float], list[float]]
Curves = dict[str, Curve]
Groups = Mapping[str, Summaries]

FLOATS = ("float16", "float32")

PUBLISHED_MODULES = "adapter 5, msa"

LONGEST_BESIDE = 20
"""Letters of a line's name for which there is room beside the axes; else names stand below."""

COLOURS = (
    *("#0067a8", "#c94f00", "#00805c", "#a64d8c", "#8a6d00"),
    *("#5b5bd6", "#b3303b", "#4a7a8c", "#6b6b6b", "#2f2f2f"),
)
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "<")

# Text stays text, and the same data give the same file.
matplotlib.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "engram",
        "font.family": "sans-serif",
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e3e3e3",
        "axes.axisbelow": True,
    }
)


@dataclass(frozen=True)
class Drawing:
    """What a figure shows: nothing, as long as `curves` finds nothing among the summaries.

    Attributes:
        note: a sentence to stand below it, where caption and legend do not say all.
    """

    caption: str
    curves: Callable[[Summaries], Curves]
    furnish: Callable[[Axes], None]
    note: Callable[[Summaries], str] = lambda summaries: ""


def float_curves(summaries: Summaries) -> Curves:
    """Accuracy of iCaRL as published by classes seen, with float32 and with float16 exemplars in
    the same bytes: means over the seeds that both have."""
    runs = [
        run
        for run in memory_study.as_published(summaries)
        if run["config"]["budget"] == memory_study.FLOAT32
    ]
    half, single = ([run for run in runs if run["codec"] == name] for name in FLOATS)
    seeds = {run["seed"] for run in half} & {run["seed"] for run in single}
    shared = [run for run in (*half, *single) if run["seed"] in seeds]
    return {
        f"{row.codec}, n = {len(row.seeds)}": (
            [float(n) for n in itertools.accumulate(row.task_sizes)],
            mean_curve(row),
        )
        for row in comparison_table(shared)
    }


def byte_curves(rule: str) -> Callable[[Summaries], Curves]:
    """Average incremental accuracy by a decision rule over the most bytes that exemplars
    took, for every codec that was measured at several budgets."""

    def curves(summaries: Summaries) -> Curves:
        points: dict[str, list[tuple[float, float]]] = {}
        for row, runs in pooled(memory_study.by_memory(summaries)):
            point = row.memory_bytes / 1e6, memory_study.average_by(rule, runs)
            points.setdefault(row.codec, []).append(point)
        return {
            codec: ([size for size, _ in sorted(found)], [value for _, value in sorted(found)])
            for codec, found in sorted(points.items())
            if len(found) > 1
        }

    return curves


def _by_classes(axes: Axes) -> None:
    axes.set_xlabel("classes seen")
    axes.set_ylabel("accuracy over all classes seen, %")


def _gains_by_classes(over: str) -> Callable[[Axes], None]:
    def furnish(axes: Axes) -> None:
        axes.set_xlabel("classes seen")
        axes.set_ylabel(f"gain over {over}, points of accuracy")

    return furnish


def _draw_bytes(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("exemplars, at most, MB")
    axes.set_ylabel("average incremental accuracy, %")
    axes.set_xticks([1.536, 6.144, 24.576], ["1.5", "6.1", "24.6"])
    axes.minorticks_off()


LAE_PRESETS = (
    *((preset, "test") for preset in ("paper", "paper-tiny", "laptop")),
    ("quick", "validation"),
)
"""What figures of LAE may be of: the preset with most lines, and of equals the most demanding."""


def _by_modules(summaries: Summaries, preset: str, images: str) -> Groups:
    """Runs of LAE with the published vote, by their modules."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in lae_runs(summaries, preset, images):
        if lae_study.PUBLISHED_VOTE in run["accuracy_by_classifier"]:
            groups.setdefault(modules_in_words(run), []).append(run)
    return groups


def _by_task(runs: Summaries, rule: str) -> Curve:
    """Mean accuracy of a decision rule by classes seen."""
    curves = [run["accuracy_by_classifier"][rule]["accuracy_per_task"] for run in runs]
    seen = [float(n) for n in itertools.accumulate(runs[0]["task_sizes"])]
    return seen, [statistics.fmean(values) for values in zip(*curves, strict=True)]


def _gains(curves: Curves, base: Curve) -> Curves:
    """Differences to a curve: accuracies themselves would lie on top of one another."""
    return {
        name: (seen, [round(value - of, 3) for value, of in zip(values, base[1], strict=True)])
        for name, (seen, values) in curves.items()
    }


def _richest(summaries: Summaries, gains: Callable[[Groups], Curves]) -> Groups:
    """The runs of the preset that has most lines."""
    groups = [_by_modules(summaries, *preset) for preset in LAE_PRESETS]
    return max(groups, key=lambda each: len(gains(each)))


def _module_gains(groups: Groups) -> Curves:
    """By modules, over the class orders of the published ones; of others that have all of these."""
    orders = {run["order"] for run in groups.get(PUBLISHED_MODULES, [])}
    shared = {
        name: [run for run in runs if run["order"] in orders] for name, runs in groups.items()
    }
    whole = {
        name: _by_task(runs, lae_study.PUBLISHED_VOTE)
        for name, runs in shared.items()
        if orders and {run["order"] for run in runs} == orders
    }
    return _gains(whole, whole[PUBLISHED_MODULES]) if whole else {}


def _merge_gains(groups: Groups) -> Curves:
    """By merges of the published modules."""
    runs = groups.get(PUBLISHED_MODULES, [])
    prefix = lae_study.VOTE.format("")
    curves = {
        rule.removeprefix(prefix): _by_task(runs, rule)
        for rule in (runs[0]["accuracy_by_classifier"] if runs else ())
        if rule.startswith(prefix) and "ridge" not in rule
    }
    return _gains(curves, curves["ema"]) if curves else {}


def _of_lae(caption: str, gains: Callable[[Groups], Curves], over: str) -> Drawing:
    """What something gains, in the runs of the preset that has most lines."""
    return Drawing(
        caption,
        lambda summaries: gains(_richest(summaries, gains)),
        _gains_by_classes(over),
        lambda summaries: _note(_richest(summaries, gains)),
    )


def _note(groups: Groups) -> str:
    """What the lines are of."""
    runs = groups[PUBLISHED_MODULES]
    count = len({run["order"] for run in runs})
    orders = "one class order" if count == 1 else f"means over {count} class orders"
    chance = " With one order, differences below a point may be chance." if count == 1 else ""
    return f"Preset {runs[0]['preset']}, {runs[0]['evaluate_on']} images, {orders}.{chance}"


def pruning_curves(summaries: Summaries) -> Curves:
    """Accuracy of DER on ResNet-32 by the share of weights that extractors keep."""
    found = [
        summary
        for summary in tests_in_ten_tasks(summaries)
        if (summary["method"], summary["preset"], summary["codec"]) == ("der", "laptop", "raw")
        and summary["config"]["budget"] == "2000"
        and all(each.startswith("keep=") for each in changed_settings(summary))
    ]
    points = sorted(
        (found[row.runs[0]]["config"]["settings"]["keep"] or 1.0, row.average.mean, row.last.mean)
        for row in comparison_table(found)
    )
    if len(points) < 2:
        return {}
    keep, averages, lasts = map(list, zip(*points, strict=True))
    return {"average over tasks": (keep, averages), "after the last task": (keep, lasts)}


def _by_size(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("share of its convolution weights that an extractor keeps")
    axes.set_ylabel("accuracy over all classes seen, %")
    axes.set_xticks([0.1, 0.25, 0.5, 1.0], ["0.1", "0.25", "0.5", "1"])
    axes.minorticks_off()


FIGURES = {
    "float16": Drawing(
        "Accuracy by classes seen, with 2,000 float32 and with 4,000 float16 exemplars.",
        float_curves,
        _by_classes,
    ),
    **{
        f"bytes by {rule}": Drawing(
            f"Average accuracy by {words} over the most memory held, a line a codec, one run each.",
            byte_curves(rule),
            _draw_bytes,
        )
        for rule, words in memory_study.DECIDERS.items()
    },
    "curve of pruning": Drawing(
        "Accuracy of DER by the share of weights that its extractors keep.",
        pruning_curves,
        _by_size,
    ),
    "modules": _of_lae(
        "What kinds of modules gain over LAE's published one, by classes seen.",
        _module_gains,
        PUBLISHED_MODULES,
    ),
    "merging": _of_lae(
        "What merges of LAE's modules gain over the published moving average, ema, by classes seen."
        " ties:D keeps the share D of the largest differences.",
        _merge_gains,
        "ema",
    ),
}


def path_of(folder: Path, name: str) -> Path:
    """Where a figure is drawn."""
    return folder / f"{name.replace(' ', '-')}.svg"


def is_drawn(curves: Curves) -> bool:
    """Whether there is something to compare."""
    return len(curves) > 1


def outdated(folder: Path, summaries: Summaries) -> list[str]:
    """Names of figures that do not show what was measured."""
    return [
        name
        for name, drawing in FIGURES.items()
        if is_drawn(data := drawing.curves(summaries))
        and not ((path := path_of(folder, name)).exists() and _digest(data) in path.read_text())
    ]


def draw(folder: Path, name: str, summaries: Summaries) -> None:
    """Draw a figure anew."""
    drawing = FIGURES[name]
    data = drawing.curves(summaries)
    names_beside = max(map(len, data)) <= LONGEST_BESIDE
    height = 4.2 if names_beside else 4.2 + 0.12 * len(data)
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.add_subplot()
    # The legend names lines from the highest end to the lowest, as they lie beside it.
    ordered = sorted(data.items(), key=lambda line: -line[1][1][-1])
    # Colours and markers are of different number, so that no two lines look alike; they go by the
    # order in which lines are given, so that a line looks the same in figures of the same lines.
    styles = dict(zip(data, zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS)), strict=False))
    for label, (x, y) in ordered:
        colour, marker = styles[label]
        axes.plot(x, y, color=colour, marker=marker, label=label, markersize=5, linewidth=1.8)
    drawing.furnish(axes)
    if names_beside:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    folder.mkdir(exist_ok=True)
    metadata = {"Date": None, "Description": _digest(data)}
    figure.savefig(path_of(folder, name), metadata=metadata, facecolor="white")


def _digest(curves: Curves) -> str:
    return hashlib.sha256(json.dumps(curves, sort_keys=True).encode()).hexdigest()
