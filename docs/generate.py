"""Write the tables and figures of the documentation from the committed measurements in `results/`.

    python docs/generate.py [--check]

Every number and figure stands between two marker comments in a Markdown file; `--check` changes
nothing and fails where a file is not what would be written, or a figure shows something else.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import der_study
import figures
import lae_study
import memory_study
from measured import (
    ALL_IMAGES,
    NOTHING,
    ROOT,
    Summaries,
    mean_curve,
    missing,
    of_benchmark,
    pooled,
    tests_in_ten_tasks,
)

from engram.config import as_mapping
from engram.errors import UserError
from engram.methods import METHODS
from engram.results.comparison import (
    changed_settings,
    comparison_table,
    in_words,
    markdown_table,
    start_of,
)
from engram.results.formats import ABSENT, format_bytes, markdown
from engram.results.found import find_runs
from engram.runs import read_grid

FIGURES = ROOT / "docs" / "figures"

README_GRID = "grids/published.yaml"

CLASSES_SEEN = tuple(str(count) for count in range(10, 101, 10))
"""After each of ten tasks, in the columns of the tables by task."""


def short_table(summaries: Summaries) -> str:
    """What the README shows: the runs of its grid; those that start alike stand together."""
    header = ["Method", "Preset and class order", "Starts from", "Trained for", "Decides by"]
    header += ["Average", "Last", "Forgetting", "Seeds", "Kept for further learning"]
    rows = [
        [
            row.method,
            ", ".join([row.preset, *in_words(row.changed_but_precision), *row.orders]),
            row.start,
            _training(runs),
            row.classifier,
            *map(str, (row.average, row.last, row.forgetting or ABSENT, len(row.seeds))),
            format_bytes(row.kept_bytes),
        ]
        for row, runs in pooled(_of_readme(summaries))
    ]
    measured = {
        summary["method"]
        for summary in summaries
        if summary["stream"].startswith("cifar100/") and summary["evaluate_on"] == "test"
    }
    others = ", ".join(f"`{name}`" for name in METHODS if name not in measured)
    note = f"\nNot yet measured on the test images of CIFAR-100: {others}.\n" if others else ""
    return markdown(header, rows, texts=5) + note


def _training(runs: Summaries) -> str:
    """Updates of a run, on average, and their precision."""
    updates = statistics.fmean(run["updates"] for run in runs)
    return f"{updates:,.0f} updates in {runs[0]['config']['precision']}" if updates else "nothing"


def _of_readme(summaries: Summaries) -> Summaries:
    """The runs that the README's grid lists, whatever their seed."""
    listed = [as_mapping(run) for run in read_grid(ROOT / "experiments" / README_GRID)]
    settings = [_setting({**run, "config": run}) for run in listed]
    return [summary for summary in summaries if _setting(summary) in settings]


def _setting(summary: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a run is, but for seed, class order and machine."""
    named = [summary[key] for key in ("method", "preset", "stream", "evaluate_on", "codec")]
    return *named, summary["config"]["budget"], changed_settings(summary)


def table(summaries: Summaries) -> str:
    """The runs that the README shows."""
    return _by_start(_of_readme(summaries))


def table_of_studies(summaries: Summaries) -> str:
    """All other runs."""
    shown = _of_readme(summaries)
    return _by_start([summary for summary in summaries if summary not in shown])


def _by_start(summaries: Summaries) -> str:
    """Every run; those that start alike stand together."""
    starts: dict[str, list[dict[str, Any]]] = {}
    for summary in summaries:
        starts.setdefault(start_of(summary), []).append(summary)
    parts = [f"### From {start}\n\n{markdown_table(starts[start])}" for start in sorted(starts)]
    return "\n".join(parts) or NOTHING


def curves(summaries: Summaries) -> str:
    """Accuracy after each task of what the README shows, means over seeds."""
    rows = [
        [
            f"{row.method}, {row.preset_and_changes}",
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


def speed(summaries: Summaries) -> str:
    """What the benchmarks found with `--ratios docs/speed.json`."""
    measured = of_benchmark("speed")
    if measured is None:
        return NOTHING
    rows = [
        [
            row["what"],
            row["baseline"],
            row["environment"]["gpu"] if row["device"] == "cuda" else "CPU",
            row["precision"],
            f"{row['value']:.2f}",
            row["wanted"],
        ]
        for row in measured["ratios"]
    ]
    header = ["Ours", "Divided by the baseline", "On", "In", "Ratio", "Wanted"]
    return markdown(header, rows, texts=4)


def photographs(summaries: Summaries) -> str:
    """What `benchmarks/folders.py` measured on photographs."""
    return _rounds("photos")


def small_pictures(summaries: Summaries) -> str:
    """What `benchmarks/folders.py` measured on CIFAR-100 as PNG files."""
    return _rounds("cifar100")


def _rounds(name: str) -> str:
    """A row for every method: accuracy after each round, the time of all, bytes at the end."""
    measured = of_benchmark("folders") or {"rows": []}
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
    measured = of_benchmark("codecs")
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
    measured = of_benchmark("artefacts")
    if measured is None:
        return NOTHING
    header = ["Run", "Probe", "Decision rule", "Taken for old: as they are", "Through the codec"]
    rows = [
        [run["name"], f"{run['probe']:.1f}", rule, *(f"{share:.1f}" for share in shares)]
        for run in measured["runs"]
        for rule, shares in run["taken_for_old"].items()
    ]
    return markdown(header, rows)


GRIDS = {
    **dict.fromkeys(
        (
            *("memory study", "attempts", "attempts judged", "precisions judged", "float16"),
            *("bytes by network", "bytes by nme"),
        ),
        "memory_study/quick.yaml",
    ),
    "choice": "memory_study/choice.yaml",
    **dict.fromkeys(("best", "best judged"), "memory_study/laptop.yaml"),
    **dict.fromkeys(("pruning", "pruning judged", "curve of pruning"), "pruning/laptop.yaml"),
    "equal bytes": "equal_bytes/quick.yaml",
    "modules": "lae_study/modules.yaml",
    **dict.fromkeys(("merging", "lae claims"), "lae_study/laptop.yaml"),
}
"""The grid that measures what a table or a figure shows, for where it is missing."""

TABLES: dict[str, Callable[[Summaries], str]] = {
    "short table": short_table,
    "table": table,
    "table of studies": table_of_studies,
    "curves": curves,
    "icarl paper": icarl_paper,
    "codecs": codecs,
    "memory study": memory_study.codecs_and_budgets,
    "choice": memory_study.choice,
    "attempts": memory_study.attempts,
    "attempts judged": memory_study.attempts_judged,
    "best": memory_study.best_runs,
    "precisions judged": memory_study.precisions_judged,
    "best judged": memory_study.best_judged,
    "artefacts": artefacts,
    "pruning": der_study.pruning,
    "pruning judged": der_study.pruning_judged,
    "equal bytes": der_study.equal_bytes,
    "der inference": der_study.der_inference,
    "der paper": der_study.der_paper,
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
        if new == path.read_text(encoding="utf-8"):
            continue
        if check:
            sys.exit(f"{path.relative_to(ROOT)} does not show what results/ holds: run make docs.")
        path.write_text(new, encoding="utf-8")
    for name in figures.outdated(FIGURES, summaries):
        if check:
            sys.exit(f"Figure {name} does not show what results/ holds: run make docs.")
        figures.draw(FIGURES, name, summaries)


if __name__ == "__main__":
    main()
