"""Write the tables in the documentation from the committed measurements in `results/`.

    python docs/generate.py [--check]

Every number stands between two marker comments in a Markdown file; `--check` changes nothing and
fails where a file is not what would be written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engram.errors import UserError
from engram.results.comparison import (
    SHORT_COLUMNS,
    comparison_table,
    find_runs,
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
        for row in comparison_table(summaries)
    ]
    rule = ["---", "---", *["---:"] * len(SHORT_COLUMNS)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [header, rule, *rows])


def curves(summaries: Summaries) -> str:
    """Accuracy after each task, a line for every run and decision rule."""
    lines = [
        f"| {summary['method']} {summary['preset']} {summary['order']} s{summary['seed']} | "
        f"{name} | {' '.join(f'{value:.1f}' for value in rule['accuracy_per_task'])} |\n"
        for summary in summaries
        for name, rule in summary["accuracy_by_classifier"].items()
    ]
    return "| Run | Decision rule | Accuracy after each task, % |\n|---|---|---|\n" + "".join(lines)


TABLES: dict[str, Callable[[Summaries], str]] = {
    "short table": short_table,
    "table": markdown_table,
    "curves": curves,
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
