"""The order in which the classes of a stream arrive: made by name, a paper's, or from a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from engram.config import experiments_folder
from engram.errors import UserError, unknown

__all__ = ["ICARL_RUN0", "class_order", "order_label", "order_names", "resolved_order"]

LISTED = r"[^:]+:\d+(,\d+)*"
"""How an order from a file is recorded."""

# The first run of the iCaRL authors' code: NumPy's legacy generator seeded with 1993, after 100
# shuffles of 500 numbers that their data loader draws, one shuffle of the classes.
# fmt: off
ICARL_RUN0 = (
    87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92, 10, 72, 49, 78, 61, 14, 8, 86,
    84, 96, 18, 24, 32, 45, 88, 11, 4, 67, 69, 66, 77, 47, 79, 93, 29, 50, 57, 83,
    17, 81, 41, 12, 37, 59, 25, 20, 80, 73, 1, 28, 6, 46, 62, 82, 53, 9, 31, 75,
    38, 63, 33, 74, 27, 22, 36, 3, 16, 21, 60, 19, 70, 90, 89, 43, 5, 42, 65, 76,
    40, 30, 23, 85, 2, 95, 56, 48, 71, 64, 98, 13, 99, 7, 34, 55, 54, 26, 35, 39,
)
# fmt: on


def _given(name: str, classes: int) -> tuple[int, ...]:
    return tuple(range(classes))


def _icarl_run0(name: str, classes: int) -> tuple[int, ...]:
    if classes != len(ICARL_RUN0):
        raise UserError(f"Class order {name} is one of 100 classes; this data has {classes}.")
    return ICARL_RUN0


def _shuffled(name: str, classes: int) -> tuple[int, ...]:
    seed = int(name.removeprefix("seed"))
    return tuple(np.random.RandomState(seed).permutation(classes).tolist())


MADE: Mapping[str, Callable[[str, int], tuple[int, ...]]] = {
    "given": _given,
    "icarl_run0": _icarl_run0,
    "seed<number>": _shuffled,
}
"""Orders that are made, whatever files there are: from the name and the number of classes."""


def class_order(name: str, classes: int) -> tuple[int, ...]:
    """Original labels in order of arrival.

    Args:
        name: `icarl_run0` (for 100 classes only) or `seed1993`, the two that the literature calls
            1993; `seed<N>` for NumPy's RandomState(N).permutation, or `given` for the data set's
            own order. `<label>:<numbers>` lists labels, as `resolved_order` writes.

    Raises:
        UserError: no order has that name, or it is one of another number of classes.
    """
    if re.fullmatch(LISTED, name):
        return _listed(name, classes)
    if make := _maker(name):
        return make(name, classes)
    raise unknown("class order", name, order_names())


def _maker(name: str) -> Callable[[str, int], tuple[int, ...]] | None:
    """What makes the order of that name; None of any other."""
    for made, make in MADE.items():
        if re.fullmatch(made.replace("<number>", r"\d{1,9}"), name):
            return make
    return None


def _listed(name: str, classes: int) -> tuple[int, ...]:
    """Labels from `<label>:<numbers>`.

    Raises:
        UserError: a number is no label, or is there twice.
    """
    label, _, numbers = name.partition(":")
    order = tuple(map(int, numbers.split(",")))
    if max(order) >= classes:
        raise UserError(
            f"Class order {label} has a class {max(order)}; this data has {classes} classes, which "
            "count from 0."
        )
    if twice := [number for number in order if order.count(number) > 1]:
        raise UserError(f"Class order {label} has class {twice[0]} twice.")
    return order


def order_names() -> list[str]:
    """What a class order may be called, where it is not in a file of one's own."""
    return [*MADE, *_papers_orders()]


def _papers_orders() -> dict[str, Path]:
    """Files with the class orders of papers, by name."""
    return {path.stem: path for path in sorted((experiments_folder() / "orders").glob("*.txt"))}


def resolved_order(text: str) -> str:
    """A class order as it is recorded: of a file, or of a paper whose order is in one,
    `<its name>:<numbers>`.

    The file has the data set's labels in order of arrival, with commas or spaces between them; what
    follows a # is a comment. Classes that it leaves out do not arrive.

    Raises:
        UserError: there is neither an order nor a file of that name; or the file holds something
            else, or is called as another order is.
    """
    if _maker(text) or re.fullmatch(LISTED, text):
        return text
    papers = _papers_orders()
    path = papers.get(text, Path(text))
    try:
        if not path.is_file():
            raise UserError(
                f"{unknown('class order', text, order_names())} There is no file of that name."
            )
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Class order {text:.200} cannot be read ({error}).") from error
    label = path.stem.replace(":", "-")
    if _maker(label) or not path.samefile(papers.get(label, path)):
        raise UserError(f"{path} is called as another class order is. Give it another name.")
    words = re.split(r"[,\s]+", " ".join(line.partition("#")[0] for line in lines).strip(", "))
    if strange := [word for word in words if not re.fullmatch(r"\d{1,6}", word)]:
        raise UserError(
            f"Class order {path} must hold labels, which are numbers from 0, not "
            f"{strange[0] or 'nothing'}."
        )
    return f"{label}:{','.join(words)}"


def order_label(order: str) -> str:
    """How an order is called where there is no room for its numbers."""
    return order.partition(":")[0]
