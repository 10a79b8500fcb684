"""Write the tables and figures of the documentation from the committed measurements in `results/`.

    python docs/generate.py [--check]

Every number and figure stands between two marker comments in a Markdown file; `--check` changes
nothing and fails where a file is not what would be written, or a figure shows something else.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import figures
import lae_study
import memory_study
from claims import Claim, Side, judged
from measured import NOTHING, Summaries, mean_curve, pooled, processors, tests_in_ten_tasks

from engram.config import as_mapping
from engram.errors import UserError
from engram.methods import METHODS
from engram.results.comparison import (
    ABSENT,
    ComparisonRow,
    changed_settings,
    comparison_table,
    find_runs,
    format_bytes,
    format_count,
    format_seconds,
    markdown,
    markdown_table,
)
from engram.runs import read_grid

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"

README_GRID = "grids/published.yaml"

COSTS = ("parameters", "multiply_adds", "latency_ms")

ALL_IMAGES = 50_000
"""Training images of CIFAR-100: no memory holds more."""

CLASSES_SEEN = tuple(str(count) for count in range(10, 101, 10))
"""After each of ten tasks, in the columns of the tables by task."""

EQUAL_BYTES = (10_000_000, 20_000_000, 40_000_000)
CLOSE_ENOUGH = 1.1
"""Of a number of bytes, what still counts as it."""


def short_table(summaries: Summaries) -> str:
    """What the README shows: the runs of its grid; those that start alike stand together."""
    header = ["Method", "Preset and class order", "Starts from", "Decides by", "Average", "Last"]
    header += ["Forgetting", "Seeds", "Exemplars", "All that is kept to learn on", "Time a run"]
    rows = [
        [
            row.method,
            ", ".join([row.setting, *row.orders]),
            start_of(runs[0]),
            row.classifier,
            *map(str, (row.average, row.last, row.forgetting or ABSENT, len(row.seeds))),
            *map(format_bytes, (row.memory_bytes, row.kept_bytes)),
            format_seconds(row.seconds),
        ]
        for row, runs in pooled(_of_readme(summaries))
    ]
    measured = {row[0] for row in rows}
    others = ", ".join(f"`{name}`" for name in METHODS if name not in measured)
    note = f"\nNot measured on test images yet: {others}.\n" if others else ""
    return markdown(header, sorted(rows, key=lambda row: row[2]), texts=4) + note


def _of_readme(summaries: Summaries) -> Summaries:
    """The runs that the README's grid lists, whatever their seed."""
    listed = [as_mapping(run) for run in read_grid(ROOT / "experiments" / README_GRID)]
    settings = [_setting({**run, "config": run}) for run in listed]
    return [summary for summary in summaries if _setting(summary) in settings]


def _setting(summary: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a run is, but for seed, class order and machine."""
    named = [summary[key] for key in ("method", "preset", "stream", "evaluate_on", "codec")]
    return *named, summary["config"]["budget"], changed_settings(summary)


def start_of(summary: dict[str, Any]) -> str:
    """The weights that a run started from."""
    settings = summary["config"]["settings"]
    architecture, _, tag = settings.get("pretrained", settings)["backbone"].partition(".")
    checksum = summary.get("weights_sha256")
    if checksum is None:
        return "random weights"
    file = settings.get("pretrained", {}).get("weights")
    return f"{architecture}, pretrained ({f'sha256 {checksum[:12]}' if file or not tag else tag})"


def table(summaries: Summaries) -> str:
    """Every run; those that start alike stand together."""
    starts: dict[str, list[dict[str, Any]]] = {}
    for summary in summaries:
        starts.setdefault(start_of(summary), []).append(summary)
    parts = [f"## From {start}\n\n{markdown_table(starts[start])}" for start in sorted(starts)]
    return "\n".join(parts)


def curves(summaries: Summaries) -> str:
    """Accuracy after each task of what the README shows, means over seeds."""
    rows = [
        [
            f"{row.method}, {row.setting}",
            row.classifier,
            str(len(row.seeds)),
            *(f"{value:.1f}" for value in mean_curve(row)),
        ]
        for row in comparison_table(_of_readme(summaries))
    ]
    return markdown(["Run", "Decides by", "Seeds", *CLASSES_SEEN], rows, texts=2)


def icarl_paper(summaries: Summaries) -> str:
    """iCaRL as its authors ran it: both decision rules of the reproduction, task by task."""
    rows = [
        [
            f"{summary['order']}, seed {summary['seed']}",
            name,
            *(f"{rule[key]:.2f}" for key in ("average_incremental_accuracy", "last_accuracy")),
            *(f"{value:.1f}" for value in rule["accuracy_per_task"]),
        ]
        for summary in tests_in_ten_tasks(summaries)
        if (summary["method"], summary["preset"]) == ("icarl", "paper")
        for name, rule in summary["accuracy_by_classifier"].items()
    ]
    header = ["Class order", "Decision rule", "Average", "Last", *CLASSES_SEEN]
    return markdown(header, rows, texts=2) if rows else NOTHING


def _of_benchmark(name: str) -> dict[str, Any] | None:
    """What a benchmark wrote into `docs/`; None where it was not run."""
    path = ROOT / "docs" / f"{name}.json"
    return dict(json.loads(path.read_text())) if path.exists() else None


def speed(summaries: Summaries) -> str:
    """What the benchmarks found with `--ratios docs/speed.json`."""
    measured = _of_benchmark("speed")
    if measured is None:
        return NOTHING
    rows = [
        [row["what"], row["baseline"], f"{row['value']:.2f}", row["wanted"]]
        for row in measured["ratios"]
    ]
    return markdown(["Ours", "Divided by the baseline", "Ratio", "Wanted"], rows, texts=2)


def photographs(summaries: Summaries) -> str:
    """What `benchmarks/folders.py` measured on photographs."""
    return _rounds("photos")


def small_pictures(summaries: Summaries) -> str:
    """What `benchmarks/folders.py` measured on CIFAR-100 as PNG files."""
    return _rounds("cifar100")


def _rounds(name: str) -> str:
    """A row for every method: accuracy after each round, the time of all, bytes at the end."""
    measured = _of_benchmark("folders") or {"rows": []}
    rows = [row for row in measured["rows"] if row["set"] == name]
    if not rows:
        return NOTHING
    header = ["Method", *(f"{found['classes']} classes" for found in rows[0]["rounds"])]
    cells = [
        [
            row["name"],
            *(f"{found['accuracy']:.1f}" for found in row["rounds"]),
            f"{sum(found['seconds'] for found in row['rounds']):,.0f} s",
            f"{row['rounds'][-1]['bytes_of_images'] / 1e6:.1f} MB",
        ]
        for row in rows
    ]
    return markdown([*header, "Time of all rounds", "Pictures kept"], cells)


def codecs(summaries: Summaries) -> str:
    """What `benchmarks/codecs.py --json` measured."""
    measured = _of_benchmark("codecs")
    if measured is None:
        return NOTHING
    header = ["Codec", "Bytes an image", "Shared", "PSNR, dB", "Encode, µs", "Decode, µs"]
    header += [f"In {budget:,} B" for budget in measured["budgets"]]
    rows = [
        [
            f"`{row['codec']}`",
            f"{row['bytes_each']:,.0f}",
            f"{row['shared']:,}",
            "lossless" if row["psnr"] is None else f"{row['psnr']:.1f}",
            *(f"{row[key]:,.0f}" for key in ("encode", "decode")),
            *("all" if count >= ALL_IMAGES else f"{count:,}" for count in row["exemplars"]),
        ]
        for row in measured["codecs"]
    ]
    return markdown(header, rows)


def artefacts(summaries: Summaries) -> str:
    """What `benchmarks/artefacts.py --json` measured."""
    measured = _of_benchmark("artefacts")
    if measured is None:
        return NOTHING
    header = ["Run", "Probe", "Decision rule", "Taken for old: as they are", "Through the codec"]
    rows = [
        [run["name"], f"{run['probe']:.1f}", rule, *(f"{share:.1f}" for share in shares)]
        for run in measured["runs"]
        for rule, shares in run["taken_for_old"].items()
    ]
    return markdown(header, rows)


def pruning(summaries: Summaries) -> str:
    """DER whole and cut: accuracy, and what it costs to classify after the last task."""
    found = [
        summary
        for summary in summaries
        if (summary["method"], summary["codec"], summary["evaluate_on"]) == ("der", "raw", "test")
        and not summary["config"]["budget"].endswith("B")
    ]
    header = ["Stream, preset", "Size", "Seeds", "Average", "Last", "Parameters at the end"]
    header += ["On average", "Multiply-adds", "One image, ms", "Time a run", "Processor"]
    rows = []
    for row, runs in pooled(found):
        end = [statistics.fmean(run[name][-1] for run in runs) for name in COSTS]
        average = statistics.fmean(statistics.fmean(run["parameters"]) for run in runs)
        rows.append(
            [
                f"{row.stream}, {row.preset}",
                ", ".join(row.differences) or "whole",
                str(len(row.seeds)),
                str(row.average),
                str(row.last),
                format_count(end[0]),
                format_count(average),
                format_count(end[1]),
                f"{end[2]:.1f}",
                format_seconds(row.seconds),
                processors(runs),
            ]
        )
    return markdown(header, rows, texts=2) if rows else NOTHING


WHOLE = Side("der", "laptop", "raw", "2000")

PRUNING = (
    Claim(
        "DER, whole, for the better rule of iCaRL, in as many epochs",
        WHOLE,
        Side("icarl", "laptop", "raw", "2000", best_rule=True),
        least=3.0,
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
    measured = _of_benchmark("codecs") or {"codecs": []}
    sizes = [row["bytes_each"] for row in measured["codecs"] if row["codec"] == codec]
    return ALL_IMAGES * sizes[0] if sizes else math.inf


def equal_bytes(summaries: Summaries) -> str:
    """Accuracy by exemplars and parameters together, near one of EQUAL_BYTES."""
    found = [
        summary
        for summary in tests_in_ten_tasks(summaries)
        if summary["config"]["budget"].endswith("B")
        and summary["config"]["budget"] not in memory_study.BUDGETS
    ]
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for row, runs in pooled(found):
        scale = "laptop" if row.preset in ("laptop", "best") else "quick"
        name = (scale, f"{row.method}, {row.setting}", row.codec)
        nearest = min(EQUAL_BYTES, key=lambda step: abs(step - row.total_bytes))
        updates = statistics.fmean(run["updates"] for run in runs)
        held = f"{row.total_bytes / 1e6:.1f} MB, {updates:,.0f} updates, n = {len(runs)}"
        cells = rows.setdefault(name, {})
        cells[nearest] = f"{row.average} / {row.last} in {held}"
        own = 4 * row.parameters
        for step in EQUAL_BYTES:
            if step < own:
                cells[step] = f"cannot be: {own / 1e6:.1f} MB are parameters"
            elif step > (own + _all_images(row.codec)) * CLOSE_ENOUGH:
                cells[step] = f"cannot be: all images take {_all_images(row.codec) / 1e6:.1f} MB"
    header = [
        "Compares",
        "Method, preset",
        "Codec",
        *(f"{step // 10**6} MB" for step in EQUAL_BYTES),
    ]
    lines = [
        [scale, method, f"`{codec}`", *(cells.get(step, ABSENT) for step in EQUAL_BYTES)]
        for (scale, method, codec), cells in sorted(rows.items())
    ]
    missing_ones = [
        missing(f"equal_bytes/{scale}.yaml")
        for scale in ("quick", "laptop")
        if not any(line[0] == scale for line in lines)
    ]
    return "\n".join([markdown(header, lines, texts=3), *missing_ones]) if lines else NOTHING


def der_paper(summaries: Summaries) -> str:
    """The curves of DER's authors, and ours beside them, or that there is none yet."""
    rows = []
    for stream, curves in (_of_benchmark("authors") or {})["der"].items():
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
    parameters = statistics.fmean(statistics.fmean(run["parameters"]) for run in runs)
    told = format_count(parameters)
    if name == "pruned" and "/b0-" in stream:
        met = "within" if parameters <= MOST_PARAMETERS else "not within"
        told = f"{told}: {met} {format_count(MOST_PARAMETERS)}"
    curve = mean_curve(row)
    return [stream, size, who, *_curve(curve), _beside(curve, authors), told]


MOST_PARAMETERS = 5_000_000
"""On average over ten tasks: what a pruned ResNet-18 is to need."""
MOST_BESIDE = 0.7
"""Points by which a reproduction may differ from what was published."""


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
    measured = _of_benchmark("der_inference")
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


GRIDS = {
    **dict.fromkeys(
        ("memory study", "attempts", "attempts judged", "bytes", "float16"),
        "memory_study/quick.yaml",
    ),
    "choice": "memory_study/choice.yaml",
    **dict.fromkeys(("best", "best judged"), "memory_study/laptop.yaml"),
    **dict.fromkeys(("pruning", "pruning judged", "curve of pruning"), "pruning/laptop.yaml"),
    "equal bytes": "equal_bytes/quick.yaml",
    "modules": "lae_study/modules.yaml",
    **dict.fromkeys(("merging", "lae claims"), "lae_study/laptop.yaml"),
}
"""What measures that which a table or a figure lacks."""

TABLES: dict[str, Callable[[Summaries], str]] = {
    "short table": short_table,
    "table": table,
    "curves": curves,
    "icarl paper": icarl_paper,
    "codecs": codecs,
    "memory study": memory_study.codecs_and_budgets,
    "choice": memory_study.choice,
    "attempts": memory_study.attempts,
    "attempts judged": memory_study.attempts_judged,
    "best": memory_study.best_runs,
    "best judged": memory_study.best_judged,
    "artefacts": artefacts,
    "pruning": pruning,
    "pruning judged": pruning_judged,
    "equal bytes": equal_bytes,
    "der inference": der_inference,
    "der paper": der_paper,
    "speed": speed,
    "photographs": photographs,
    "small pictures": small_pictures,
    "lae votes": lae_study.lae_votes,
    "lae claims": lae_study.lae_claims,
}


def filled(path: Path, summaries: Summaries) -> str:
    """A document with what stands between its markers written anew."""

    def written(match: re.Match[str]) -> str:
        name = match[1]
        if name in figures.FIGURES:
            content = embedded(name, path.parent, summaries)
        else:
            content = TABLES[name](summaries) if summaries else NOTHING
        if content == NOTHING and name in GRIDS:
            content = missing(GRIDS[name])
        return f"<!-- {name} -->\n{content}<!-- end -->"

    text = path.read_text(encoding="utf-8")
    return re.sub(r"<!-- ([\w ]+) -->\n.*?<!-- end -->", written, text, flags=re.DOTALL)


def missing(grid: str) -> str:
    """What measures that which is not there, and how long that takes, if the grid says so."""
    path = ROOT / "experiments" / grid
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    said = re.search(r"(\w[^.:]* on two cores)\.", " ".join(line[1:].strip() for line in comments))
    time = f" ({said[1][0].lower()}{said[1][1:]})" if said else ""
    command = f"engram bench --grid experiments/{grid} --publish results"
    return f"_Not measured yet: `{command}`{time}._\n"


def embedded(name: str, folder: Path, summaries: Summaries) -> str:
    """A figure as a document in `folder` shows it; a single curve has nothing to stand beside."""
    drawing = figures.FIGURES[name]
    if not figures.is_drawn(drawing.curves(summaries)):
        return NOTHING
    place = os.path.relpath(figures.path_of(FIGURES, name), folder)
    image = f"![{drawing.caption}]({Path(place).as_posix()})\n"
    return f"{image}\n{note}\n" if (note := drawing.note(summaries)) else image


def committed() -> Summaries:
    """All committed summaries."""
    try:
        return [dict(run.summary) for run in find_runs(ROOT / "results").runs]
    except UserError:
        return []


def main() -> None:
    """Fill every document, or check that it is filled."""
    check = "--check" in sys.argv[1:]
    summaries = committed()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        new = filled(path, summaries)
        if check and new != path.read_text(encoding="utf-8"):
            sys.exit(f"{path.relative_to(ROOT)} does not show what results/ holds: run make docs.")
        path.write_text(new, encoding="utf-8")
    for name in figures.outdated(FIGURES, summaries):
        if check:
            sys.exit(f"Figure {name} does not show what results/ holds: run make docs.")
        figures.draw(FIGURES, name, summaries)


if __name__ == "__main__":
    main()
