"""How values are written in tables of every kind."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = [
    "ABSENT",
    "format_bytes",
    "format_count",
    "format_number",
    "format_percent",
    "format_range",
    "format_seconds",
    "markdown",
    "several",
]

ABSENT = "\N{EN DASH}"
"""Stands for a measure that does not exist, such as the forgetting of a single task."""


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table: the first `texts` columns to the left, the others to the right."""
    rule = ["---"] * texts + ["---:"] * (len(header) - texts)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [header, rule, *rows])


def format_number(value: float, digits: int = 2, *, plus: bool = False) -> str:
    """With a minus sign in place of the hyphen, which is too short among numbers.

    Args:
        plus: whether a positive value has its sign too, as differences have.
    """
    return f"{value:{'+' if plus else '-'}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def format_percent(value: float | None, digits: int = 2) -> str:
    """With its unit; `ABSENT` where there is no value."""
    return ABSENT if value is None else f"{format_number(value, digits)} %"


def format_range(numbers: Collection[int]) -> str:
    """`12`, or `1,000 to 1,200` where they differ."""
    least, most = min(numbers), max(numbers)
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def format_bytes(count: float) -> str:
    """`6.14 MB`; units are powers of ten, as in budgets."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def format_count(count: float) -> str:
    """`5.55 G`, `0.46 M`; below 10 000, all digits."""
    if count >= 10**9:
        return f"{count / 10**9:.2f} G"
    return f"{count / 10**6:.2f} M" if count >= 10_000 else f"{count:.0f}"


def several(count: int, one: str, many: str) -> str:
    """A count with what it counts: `1 class`, `1,200 classes`."""
    return f"{count:,} {one if count == 1 else many}"


def format_seconds(seconds: float) -> str:
    """`6.4 s`, `12 min 03 s` or `2 h 05 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
