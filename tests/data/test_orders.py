"""Class orders: by name, a paper's, from a file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from engram.data.orders import ICARL_RUN0, class_order, order_label, resolved_order
from engram.errors import UserError

ROOT = Path(__file__).parents[2]
PAPERS = {path.stem: path for path in sorted((ROOT / "experiments" / "orders").glob("*.txt"))}

# The order of LUCIR, PyCIL and FACIL, which most papers mean by "seed 1993".
# fmt: off
SEED1993 = (
    68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89, 3, 92, 55, 9, 26, 80, 43, 38,
    58, 70, 77, 1, 85, 19, 17, 50, 28, 53, 13, 81, 45, 82, 6, 59, 83, 16, 15, 44,
    91, 41, 72, 60, 79, 52, 20, 10, 31, 54, 37, 95, 14, 71, 96, 98, 97, 2, 64, 66,
    42, 22, 35, 86, 24, 34, 87, 21, 99, 0, 88, 27, 18, 94, 11, 12, 47, 25, 30, 46,
    62, 69, 36, 61, 7, 63, 75, 5, 32, 4, 51, 48, 73, 93, 39, 67, 29, 49, 57, 33,
)
# fmt: on


def test_the_two_orders_called_1993_are_regenerated() -> None:
    assert class_order("seed1993", 100) == SEED1993
    state = np.random.RandomState(1993)
    images = np.arange(500)
    for _ in range(100):
        state.shuffle(images)
    classes = np.arange(100)
    state.shuffle(classes)
    assert tuple(classes.tolist()) == ICARL_RUN0


def test_orders_by_name() -> None:
    assert class_order("icarl_run0", 100) == ICARL_RUN0
    assert sorted(class_order("seed7", 20)) == list(range(20))
    assert class_order("seed7", 20) != class_order("seed8", 20)
    assert class_order("given", 3) == (0, 1, 2)


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("icarl_run0", 10, "100 classes"),
        ("icarl_run", 100, 'Perhaps you meant "icarl_run0"'),
        ("seed", 100, "seed<number>"),
        ("seed-3", 100, "Unknown class order"),
        ("mine:0,1,5", 5, "has a class 5; this data has 5 classes"),
        ("mine:0,1,0", 5, "has class 0 twice"),
        ("mine:0,x", 5, "Unknown class order"),
    ],
)
def test_wrong_orders_are_refused(name: str, classes: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_order(name, classes)


def test_an_order_is_read_from_a_file_and_recorded_with_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "my own.txt"
    path.write_text("\ufeff# of a paper\n3, 1\n\n4 0,  # two more\n", encoding="utf-8")
    order = resolved_order(str(path))
    assert order == "my own:3,1,4,0"
    assert resolved_order(order) == order
    assert class_order(order, 5) == (3, 1, 4, 0)
    assert order_label(order) == "my own"
    assert resolved_order("seed1993") == order_label("seed1993") == "seed1993"


@pytest.mark.parametrize("content", [b"", b"# nothing", b"1,2,-3", b"cat\ndog", b"1.5", b"\xff"])
def test_a_file_with_something_else_is_no_order(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "order.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"order\.txt (must hold labels|cannot be read)"):
        resolved_order(str(path))


def test_names_come_before_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("seed0", "given", "der_trial0", "seed1.txt"):
        (tmp_path / name).write_text("3, 1, 0")
    assert resolved_order("seed0") == "seed0"
    assert resolved_order("given") == "given"
    assert len(class_order(resolved_order("der_trial0"), 100)) == 100
    with pytest.raises(UserError, match=r"seed1\.txt is called as another class order is"):
        resolved_order("seed1.txt")


def test_no_other_file_is_called_as_the_order_of_a_paper_is(tmp_path: Path) -> None:
    path = PAPERS["lae_order2"]
    assert resolved_order(str(path)) == resolved_order("lae_order2")
    other = tmp_path / path.name
    other.write_text("3, 1, 0")
    with pytest.raises(UserError, match=r"lae_order2\.txt is called as another class order is"):
        resolved_order(str(other))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no/such.txt", 'no/such.txt". Known: .*, podnet_order3, .* There is no file of that name'),
        ("or a fil", 'or a fil". Known: '),
    ],
)
def test_what_is_neither_an_order_nor_a_file_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"Unknown class order .*{message}"):
        resolved_order(text)


def test_a_list_in_place_of_a_file_is_refused() -> None:
    numbers = ",".join(map(str, range(100)))
    with pytest.raises(UserError, match=r"Class order 0,1,2.* cannot be read|Unknown class order"):
        resolved_order(numbers)


@pytest.mark.parametrize("name", PAPERS)
def test_orders_of_papers_have_every_class_once(name: str) -> None:
    order = resolved_order(name)
    assert order_label(order) == name
    classes = order.count(",") + 1
    assert sorted(class_order(order, classes)) == list(range(classes))


def test_the_page_about_runs_names_the_orders_of_papers() -> None:
    named = re.findall(r"`(\w+)`", (ROOT / "docs" / "runs.md").read_text())
    assert PAPERS.keys() <= set(named)
