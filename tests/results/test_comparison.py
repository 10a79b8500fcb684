"""Summaries of runs that were never done, in the rows of a comparison."""

from __future__ import annotations

import re
from typing import Any

import pytest
from summaries import make_summary

from engram.console import print_comparison
from engram.results.comparison import comparison_table, in_words, markdown_table, start_of


def test_seeds_are_pooled_to_mean_and_sample_deviation() -> None:
    runs = [make_summary([90, last], seed=seed) for seed, last in enumerate([60.0, 66.0, 72.0])]
    [row] = comparison_table(runs)
    assert row.seeds == (0, 1, 2)
    assert row.last.mean == pytest.approx(66)
    assert row.last.deviation == pytest.approx(6)  # squares 36 + 0 + 36, over n - 1
    assert row.average.mean == pytest.approx((75 + 78 + 81) / 3)
    assert row.average.deviation == pytest.approx(3)
    assert row.average_without_first_task == row.last
    assert row.forgetting is not None
    assert row.forgetting.mean == pytest.approx(24)
    assert row.backward_transfer is not None
    assert row.backward_transfer.mean == pytest.approx(-24)
    assert "66.00 ± 6.00" in markdown_table(runs)


def test_the_terminal_shows_names_that_look_like_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_comparison([make_summary(classifier="[b]") | {"stream": "a[/x]/b0-inc2"}])
    found = capsys.readouterr().out
    assert "a[/x]/b0-inc2, test images" in found
    assert "classifier=[b]" in found


def test_a_single_seed_has_no_deviation() -> None:
    assert "±" not in markdown_table([make_summary()])


def test_a_single_task_has_no_forgetting() -> None:
    [row] = comparison_table([make_summary([80.0])])
    assert (row.forgetting, row.backward_transfer, row.average_without_first_task) == (None,) * 3
    assert row.average.mean == 80


def test_fixed_class_orders_are_not_pooled() -> None:
    runs = [make_summary(seed=seed, order=order) for seed in (0, 1) for order in ("given", "seed7")]
    rows = comparison_table(runs)
    assert sorted((row.orders, row.seeds) for row in rows) == [
        (("given",), (0, 1)),
        (("seed7",), (0, 1)),
    ]


def test_each_seeds_own_order_is_pooled_and_stated() -> None:
    runs = [make_summary(seed=seed) for seed in (2, 0)] + [make_summary(seed=1, order="given")]
    rows = {row.orders: row.seeds for row in comparison_table(runs)}
    assert rows == {("seed0", "seed2"): (0, 2), ("given",): (1,)}
    assert "| seed0, seed2 |" in markdown_table(runs)


def test_an_order_that_seeds_share_is_apart_from_each_seeds_own() -> None:
    runs = [make_summary(seed=0), make_summary(seed=1, order="seed0"), make_summary(seed=1)]
    rows = {row.orders: row.seeds for row in comparison_table(runs)}
    assert rows == {("seed0",): (0, 1), ("seed1",): (1,)}


def test_a_seed_that_ran_twice_counts_once() -> None:
    again = make_summary([90, 40])
    again["config"]["device"] = "cuda"
    rows = comparison_table([make_summary(), again])
    assert [len(row.seeds) for row in rows] == [1, 1]


@pytest.mark.parametrize(
    "other",
    [{"evaluate_on": "validation"}, {"budget": "1000"}, {"preset": "paper"}, {"temperature": 3.0}],
)
def test_what_differs_is_not_pooled(other: dict[str, Any]) -> None:
    runs = [make_summary(seed=0), make_summary(seed=1, **other)]
    assert [len(row.seeds) for row in comparison_table(runs)] == [1, 1]


def test_changed_settings_are_named() -> None:
    rows = comparison_table([make_summary(), make_summary(temperature=3.0)])
    assert sorted(row.changed for row in rows) == [(), ("temperature=3.0",)]


def test_changed_settings_of_an_unknown_preset_are_those_that_vary() -> None:
    runs = [make_summary(), make_summary(temperature=3.0)]
    for run in runs:
        run["preset"] = run["config"]["preset"] = "gone"
    assert {row.changed for row in comparison_table(runs)} == {
        ("temperature=2.0",),
        ("temperature=3.0",),
    }


def test_markdown_has_as_many_cells_in_every_line() -> None:
    table = markdown_table([make_summary(), make_summary(budget="a|b"), make_summary([50.0])])
    title, _, *lines = table.splitlines()
    assert title == "#### toys/b0-inc2, test images"
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert cells == [11] * 5 + [0] + [9] * 5


def test_markdown_parts_streams_and_images() -> None:
    runs = [make_summary(), make_summary(evaluate_on="validation")]
    titles = re.findall(r"^#### .*", markdown_table(runs), re.MULTILINE)
    assert titles == [f"#### toys/b0-inc2, {images} images" for images in ("test", "validation")]


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"backbone": "vit_tiny.augreg"}, "vit_tiny, pretrained (augreg)"),
        ({"backbone": "vit_tiny"}, "vit_tiny, pretrained (sha256 0123456789ab)"),
        ({"pretrained": {"backbone": "vit_tiny.augreg"}}, "vit_tiny, pretrained (augreg)"),
        (
            {"pretrained": {"backbone": "vit_tiny.augreg", "weights": "mine.npz"}},
            "vit_tiny, pretrained (sha256 0123456789ab)",
        ),
        ({}, "unknown, pretrained (sha256 0123456789ab)"),
    ],
)
def test_the_weights_that_a_run_started_from_are_named(
    settings: dict[str, Any], start: str
) -> None:
    summary = {"config": {"settings": settings}, "weights_sha256": "0123456789abcdef"}
    assert start_of(summary) == start
    assert start_of({"config": {"settings": settings}}) == "random weights"


def test_runs_of_different_weights_are_not_pooled() -> None:
    runs = [make_summary(seed=seed) | {"weights_sha256": str(seed) * 64} for seed in (0, 1)]
    assert [row.seeds for row in comparison_table(runs)] == [(0,), (1,)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("epochs=None", "updates=1693"), ["1,693 updates a task"]),
        (("epochs=2", "updates=None"), ["epochs=2"]),
        (("keep=None",), ["keep=None"]),
    ],
)
def test_of_epochs_and_updates_the_one_given_is_shown(
    changed: tuple[str, ...], words: list[str]
) -> None:
    assert in_words(changed) == words


def test_a_knob_that_is_newer_than_a_run_does_not_set_it_apart() -> None:
    old, new = make_summary(seed=0), make_summary(seed=1)
    new["config"]["infer_through_codec"] = False
    new["config"]["settings"]["exemplar_targets"] = "soft"
    (row,) = comparison_table([old, new])
    assert row.seeds == (0, 1)
    new["config"]["settings"]["exemplar_targets"] = "label"
    assert len(comparison_table([old, new])) == 2
