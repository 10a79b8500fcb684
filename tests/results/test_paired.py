"""Differences over pairs of runs, and what may be said of them."""

from __future__ import annotations

import pytest

from engram.results.paired import Gain


@pytest.mark.parametrize(
    ("differences", "is_clear"),
    [([1.0], False), ([1.0, 9.0], False), ([1.0, 1.1], True), ([-1.0, -1.1], True)],
)
def test_an_interval_that_leaves_zero_out_is_clear(
    differences: list[float], is_clear: bool
) -> None:
    assert Gain.of(differences).is_clear is is_clear


def test_differences_that_happen_to_be_equal_are_not() -> None:
    assert not Gain.of([0.25, 0.25]).is_clear
