"""Write the tables in the documentation from the committed measurements in `results/`.

    python docs/generate.py [--check]

Every number stands between two marker comments in a Markdown file; `--check` changes nothing and
fails where a file is not what would be written.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engram.errors import UserError
from engram.memory import Budget
from engram.results.comparison import (
    SHORT_COLUMNS,
    comparison_table,
    find_runs,
    markdown,
    markdown_table,
    short_cells,
)

ROOT = Path(__file__).parents[1]
NOTHING = "_Nothing measured yet._\n"

Summaries = Sequence[dict[str, Any]]


def short_table(summaries: Summaries) -> str:
    """What the README shows of every method."""
    header = ["Method", "Preset and class order", *map(str.capitalize, SHORT_COLUMNS)]
    rows = [
        [
            " ".join([row.method, *row.changed]),
            f"{row.preset}, {', '.join(row.orders)}",
            *short_cells(row),
        ]
        for row in comparison_table(_usual_memory(summaries))
    ]
    return markdown(header, rows, texts=2)


def _usual_memory(summaries: Summaries) -> Summaries:
    """Runs with their preset's memory: those of the memory study have tables of their own."""
    return [
        summary
        for summary in summaries
        if summary["codec"] == "raw" and not summary["config"]["budget"].endswith("B")
    ]


def curves(summaries: Summaries) -> str:
    """Accuracy after each task, a line for every run and decision rule."""
    rows = [
        [
            f"{summary['method']} {summary['preset']} {summary['order']} s{summary['seed']}",
            name,
            " ".join(f"{value:.1f}" for value in rule["accuracy_per_task"]),
        ]
        for summary in _usual_memory(summaries)
        for name, rule in summary["accuracy_by_classifier"].items()
    ]
    return markdown(["Run", "Decision rule", "Accuracy after each task, %"], rows, texts=3)


def codecs(summaries: Summaries) -> str:
    """What `benchmarks/codecs.py --json` measured."""
    path = ROOT / "docs" / "codecs.json"
    if not path.exists():
        return NOTHING
    measured = json.loads(path.read_text())
    header = ["Codec", "Bytes an image", "Shared", "PSNR, dB", "Encode, µs", "Decode, µs"]
    header += [f"In {budget:,} B" for budget in measured["budgets"]]
    rows = [
        [
            f"`{row['codec']}`",
            f"{row['bytes_each']:,.0f}",
            f"{row['shared']:,}",
            "lossless" if row["psnr"] is None else f"{row['psnr']:.1f}",
            *(f"{row[key]:,.0f}" for key in ("encode", "decode")),
            *(f"{count:,}" for count in row["exemplars"]),
        ]
        for row in measured["codecs"]
    ]
    return markdown(header, rows)


def memory_study(summaries: Summaries) -> str:
    """iCaRL with budgets in bytes: a row for each codec and setting, a column for each budget."""
    rows = [
        row
        for row in comparison_table([s for s in summaries if s["evaluate_on"] == "test"])
        if row.method == "icarl" and row.budget.endswith("B") and row.stream == "cifar100/b0-inc10"
    ]
    budgets = sorted({row.budget for row in rows}, key=lambda budget: Budget.parse(budget).amount)
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        setting = (", ".join([row.preset, *row.changed]), row.codec)
        cell = f"{row.average.mean:.2f} / {row.last.mean:.2f} ({len(row.seeds)})"
        lines.setdefault(setting, {})[row.budget] = cell
    if not lines:
        return NOTHING
    cells = [
        [preset, f"`{codec}`", *(found.get(budget, "") for budget in budgets)]
        for (preset, codec), found in sorted(lines.items())
    ]
    return markdown(["Preset", "Codec", *budgets], cells, texts=2)


TABLES: dict[str, Callable[[Summaries], str]] = {
    "short table": short_table,
    "table": markdown_table,
    "curves": curves,
    "codecs": codecs,
    "memory study": memory_study,
}


def filled(text: str, summaries: Summaries) -> str:
    """A document with what stands between its markers written anew."""

    def table(match: re.Match[str]) -> str:
        content = TABLES[match[1]](summaries) if summaries else NOTHING
        return f"<!-- {match[1]} -->\n{content}<!-- end -->"

    return re.sub(r"<!-- ([\w ]+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def measured() -> Summaries:
    """All committed summaries."""
    try:
        return [dict(run.summary) for run in find_runs(ROOT / "results").runs]
    except UserError:
        return []


def main() -> None:
    """Fill every document, or check that it is filled."""
    check = "--check" in sys.argv[1:]
    summaries = measured()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        new = filled(text, summaries)
        if check and new != text:
            sys.exit(f"{path.relative_to(ROOT)} does not show what results/ holds: run make docs.")
        path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
