"""Pieces of a page: sections, tables, figures with their keys, and the whole document.

Titles, captions and cells of headers are texts, escaped here; what is called a part, a row or a
picture is markup that its maker has made safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from pathlib import Path

from engram.results.figures import Line, heat_level, swatch

__all__ = [
    "MOST_CELLS_WITH_NUMBERS",
    "ClassNames",
    "detail_list",
    "figure",
    "heat_table",
    "legend",
    "number_cells",
    "page",
    "page_header",
    "paragraph",
    "section",
    "table",
]

MOST_CELLS_WITH_NUMBERS = 15
"""Columns beyond which a heat table has no room for numbers."""


@dataclass(frozen=True, slots=True)
class ClassNames:
    """What the classes of a run are called, and in which tasks they came.

    Attributes:
        names: in order of arrival.
        task_sizes: classes of each task.
    """

    names: Sequence[str]
    task_sizes: Sequence[int]

    @classmethod
    def numbered(cls, task_sizes: Sequence[int]) -> ClassNames:
        """Names for classes whose own are not known."""
        return cls([f"class {index + 1}" for index in range(sum(task_sizes))], task_sizes)

    def label(self, index: int) -> str:
        """A class's name and the task that it came with, as markup."""
        task = 1 + sum(index >= end for end in accumulate(self.task_sizes))
        return f'{escape(self.names[index])} <span class="task">task {task}</span>'


def page(title: str, kind: str, parts: Sequence[str]) -> str:
    """The whole document. Its policy forbids the browser to run, fetch or send anything.

    Args:
        kind: a class of `report.css`, which gives the width.
    """
    body = "\n".join(filter(None, parts))
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f'<body>\n<main class="{kind}">\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def page_header(kind: str, title: str, lead: str) -> str:
    """What a report begins with: its kind, its title, and a text on what there is to see."""
    return (
        f'<header>\n<p class="eyebrow">engram · {kind}</p>\n<h1>{escape(title)}</h1>\n'
        f"{paragraph(lead, 'lead')}\n</header>"
    )


def section(title: str, *parts: str) -> str:
    """A part of the page under a heading of its own."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{chr(10).join(parts)}\n</section>"


def paragraph(text: str, kind: str = "") -> str:
    """A text, perhaps with a class of `report.css`."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(
    header: Sequence[str], rows: Sequence[str], *, texts: Sequence[int] = (), kind: str = ""
) -> str:
    """A table of numbers, but for the columns at `texts`.

    Args:
        rows: `<tr>` elements.
        kind: a class of `report.css`.
    """
    names = "".join(
        f'<th scope="col"{"" if index in texts else " class=number"}>{escape(name)}</th>'
        for index, name in enumerate(header)
    )
    body = "\n".join(rows)
    return _scroll(
        f'<table class="data {kind}">\n<thead><tr>{names}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table>"
    )


def number_cells(cells: Iterable[str]) -> str:
    """Cells of a table's row for numbers, which are markup."""
    return "".join(f'<td class="number">{cell}</td>' for cell in cells)


def _scroll(table: str) -> str:
    """A frame in which what is too wide for the screen moves alone, by touch or by keyboard."""
    return f'<div class="scroll" tabindex="0">{table}</div>'


def detail_list(details: Iterable[tuple[str, str]]) -> str:
    """Texts, each under its name, which is markup."""
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>" for name, text in details)
    return f'<dl class="details">{items}</dl>'


def figure(picture: str, key: str, caption: str) -> str:
    """A picture with the key to it, which may be empty, and a caption."""
    return (
        f"<figure>\n{picture}\n{key}\n<figcaption>{escape(caption.strip())}</figcaption>\n</figure>"
    )


def legend(lines: Sequence[Line]) -> str:
    """The key to a chart: every line with its last value."""
    items = "".join(
        f"<li>{swatch(line)}<span>{escape(line.label)}</span><b>{line.y[-1]:.1f}&nbsp;%</b></li>"
        for line in lines
    )
    return f'<ul class="legend">{items}</ul>'


def heat_table(
    corner: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    steps: Sequence[int],
    kind: str,
) -> str:
    """A table with coloured cells; they lose their numbers where there are too many of them.

    Args:
        corner: what the rows are.
        values: in percent; rows may end early.
        steps: of the colours.
        kind: a class of `report.css`.
    """
    crowded = len(columns) > MOST_CELLS_WITH_NUMBERS
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = [
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(_heat_cell(value, heat_level(value, steps), crowded) for value in row)
        + "</tr>"
        for name, row in zip(rows, values, strict=True)
    ]
    return _scroll(
        f'<table class="{kind}{" crowded" if crowded else ""}">\n'
        f"<thead><tr><th>{escape(corner)}</th>{heads}</tr></thead>\n"
        f"<tbody>\n{chr(10).join(body)}\n</tbody></table>"
    )


def _heat_cell(value: float, level: int, crowded: bool) -> str:
    if crowded:
        return f'<td class="heat h{level}" title="{value:.1f} %"></td>'
    return f'<td class="heat h{level}">{f"{value:.1f}" if value else "0"}</td>'
