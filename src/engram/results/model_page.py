"""The page of a model: how well each class is recognised, and what was forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from engram.results.formats import ABSENT, format_number, format_percent
from engram.results.markup import number_cells, page, paragraph, section, table
from engram.results.outcomes import Change, Evaluation
from engram.results.verdict import evaluation_verdict, forgetting_verdict

__all__ = ["changes_page", "evaluation_page"]


def changes_page(title: str, changes: Sequence[Change], facts: Sequence[str]) -> str:
    """Accuracy on each class before and after something was learnt.

    Args:
        facts: sentences about what was learnt.
    """
    rows = [
        _row(
            change.name,
            format_percent(change.before, 1),
            format_percent(change.after, 1),
            "new" if change.new else _gained(change),
            str(change.images),
        )
        for change in changes
    ]
    header = ["Class", "Before", "After", "Change", "Measured on"]
    return page(
        title,
        "wide",
        [
            f"<h1>{escape(title)}</h1>",
            *map(paragraph, facts),
            section(
                "What did it forget?",
                paragraph(forgetting_verdict(changes)),
                paragraph(
                    "Accuracy on images that were not learnt from: those given to test, or a few "
                    "of each class that were set aside as they arrived."
                ),
                table(header, rows, texts=(0,)),
            ),
        ],
    )


def _gained(change: Change) -> str:
    """Points, with a minus where they were lost."""
    return ABSENT if change.forgotten is None else format_number(-change.forgotten, 1)


def evaluation_page(title: str, found: Evaluation) -> str:
    """How many images of each class were recognised."""
    rows = [
        _row(
            name,
            format_percent(of_class.accuracy, 1),
            str(of_class.correct),
            str(of_class.images),
        )
        for name, of_class in found.classes.items()
    ]
    header = ["Class", "Accuracy", "Correct", "Measured on"]
    skipped = [paragraph(line) for line in found.skipped]
    return page(
        title,
        "wide",
        [
            f"<h1>{escape(title)}</h1>",
            paragraph(evaluation_verdict(found)),
            section("By class", table(header, rows, texts=(0,))),
            section("Left out", *skipped) if skipped else "",
        ],
    )


def _row(name: str, *cells: str) -> str:
    return f'<tr><th scope="row">{escape(name)}</th>{number_cells(cells)}</tr>'
