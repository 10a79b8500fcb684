"""Metrics against values worked out by hand, for splits of every shape."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import tiny
from engram.bench import Progress, run
from engram.results.metrics import (
    accuracy_per_task,
    accuracy_row,
    average,
    backward_transfer,
    confusion,
    forgetting,
    new_as_old,
    old_as_new,
    psnr,
    total_bytes,
)


def test_forgetting_and_transfer_by_hand() -> None:
    matrix = [[90.0], [70.0, 80.0], [75.0, 60.0, 95.0]]
    assert forgetting(matrix) == pytest.approx(((90 - 75) + (80 - 60)) / 2)
    assert backward_transfer(matrix) == pytest.approx(((75 - 90) + (60 - 80)) / 2)


def test_old_and_new_taken_for_each_other_by_hand() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3])
    predicted = torch.tensor([1, 2, 1, 3, 2, 3, 0])
    assert old_as_new(predicted, labels, 2) == pytest.approx(50)
    assert new_as_old(predicted, labels, 2) == pytest.approx(100 / 3)
    assert old_as_new(predicted, labels, 0) is new_as_old(predicted, labels, 0) is None


def test_forgetting_is_measured_from_the_best_and_transfer_from_the_first() -> None:
    matrix = [[50.0], [80.0, 70.0], [60.0, 70.0, 90.0]]
    assert forgetting(matrix) == pytest.approx((20 + 0) / 2)
    assert backward_transfer(matrix) == pytest.approx((10 + 0) / 2)


def test_a_task_that_only_gains_has_negative_forgetting() -> None:
    assert forgetting([[50.0], [60.0, 90.0]]) == pytest.approx(-10)


def test_one_task_has_neither() -> None:
    assert forgetting([[90.0]]) is None
    assert backward_transfer([[90.0]]) is None
    assert average([]) is None


def test_the_average_includes_the_first_task(tmp_path: Path, silent: Progress) -> None:
    _, summary = run(tiny("finetune", "digits/2,2,2"), tmp_path, silent)
    first, *rest = summary["accuracy_per_task"]
    whole = (first + sum(rest)) / 3
    assert summary["average_incremental_accuracy"] == pytest.approx(whole, abs=1e-3)
    assert summary["average_without_first_task"] == pytest.approx(sum(rest) / 2, abs=1e-3)
    assert whole != pytest.approx(sum(rest) / 2, abs=1)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # b50-inc10 with 100 images a class: 5000 images at 80 %, then 1000 at 50 % and so on.
        ([50, 10], [80.0, (5000 * 70 + 1000 * 50) / 6000]),
        ([20, 20], [80.0, (70 + 50) / 2]),
        ([5, 5], [80.0, (70 + 50) / 2]),
        ([7, 2], [80.0, (700 * 70 + 200 * 50) / 900]),
    ],
)
def test_accuracy_over_all_classes_weights_tasks_by_their_images(
    sizes: list[int], expected: list[float]
) -> None:
    images = [100 * size for size in sizes]
    assert accuracy_per_task([[80.0], [70.0, 50.0]], images) == pytest.approx(expected)


@pytest.mark.parametrize(
    "sizes", [[50, *[10] * 5], [5] * 20, [20] * 5, [50, *[2] * 25], [3, 1, 96]]
)
def test_a_row_counts_each_task_by_itself(sizes: list[int]) -> None:
    """Every image of task t but the first t is right: accuracies differ and are known."""
    labels = torch.arange(100).repeat_interleave(10)
    predicted = labels.clone()
    start, expected = 0, []
    for task, size in enumerate(sizes):
        wrong = min(task, 10 * size)
        predicted[start : start + wrong] = (labels[start : start + wrong] + 1) % 100
        expected.append(round(100 * (1 - wrong / (10 * size)), 4))
        start += 10 * size
    assert accuracy_row(predicted, labels, sizes) == pytest.approx(expected)


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.integers(0, 2**31),
)
def test_the_matrix_and_the_whole_agree(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes = sum(sizes)
    labels = torch.arange(classes).repeat_interleave(7)
    predicted = torch.randint(classes, labels.shape, generator=generator)
    row = accuracy_row(predicted, labels, sizes)
    (whole,) = accuracy_per_task([row], [7 * size for size in sizes])
    assert whole == pytest.approx(100 * (predicted == labels).double().mean().item(), abs=1e-3)
    table = confusion(predicted, labels, classes)
    assert table.sum(dim=1).tolist() == [7] * classes
    assert table.diagonal().sum() == (predicted == labels).sum()


def test_psnr_by_hand() -> None:
    black = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    assert psnr(black, black) is None
    assert psnr(black, black + 255) == pytest.approx(0)
    assert psnr(black + 3, black) == pytest.approx(10 * math.log10(255**2 / 9))


def test_a_million_parameters_weigh_four_million_bytes() -> None:
    assert total_bytes(6_144_000, 10**6) == 10_144_000
