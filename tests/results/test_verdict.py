"""What is said of a model, and the doubt that belongs to few pictures."""

from __future__ import annotations

import pytest

from engram.results.model_page import changes_page, evaluation_page
from engram.results.outcomes import Change, ClassAccuracy, Evaluation
from engram.results.verdict import evaluation_verdict, forgetting_verdict

Counts = tuple[float | None, float | None, int]


def changes(counts: list[Counts]) -> list[Change]:
    """Of classes known before, and a new one."""
    known = [
        Change(f"class {index}", before, after, images)
        for index, (before, after, images) in enumerate(counts)
    ]
    return [*known, Change("new", None, 100, 1, new=True)]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (
            [(100, 100, 1)],
            "No loss was seen on the one picture of the one class that it knew before "
            "(so few that one picture can count for 100 points).",
        ),
        (
            [(100, 100, 1), (50, 100, 4)],
            "No class lost anything and one gained: on average a gain of 25 points, on the 5 "
            "pictures of both classes that it knew before (1 to 4 a class; so few that "
            "one picture can count for 50 points).",
        ),
        (
            [(100, 0, 1), *[(100, 100, 1)] * 7, *[(0, 100, 1)] * 2],
            "One class lost something and 2 gained: on average a gain of 10 points, at worst a "
            "loss of 100 points (class 0), on the 10 pictures of all 10 classes that it "
            "knew before (1 a class; so few that one picture can count for 10 points).",
        ),
        (
            [(100, 80, 15), (80, 100, 15)],
            "One class lost something and one gained: on average no change, at worst a loss of 20 "
            "points (class 0), on the 30 pictures of both classes that it knew before "
            "(15 a class; too few to be sure).",
        ),
        (
            [(100, 0, 1), (100, 100, 100)],
            "One class lost something and none gained: on average a loss of 50 points, at worst a "
            "loss of 100 points (class 0), on the 101 pictures of both classes that it knew before "
            "(1 to 100 a class; so few that one picture can count for 50 points).",
        ),
        (
            [(100, 80, 40)],
            "One class lost something and none gained: on average a loss of 20 points, on the 40 "
            "pictures of the one class that it knew before.",
        ),
        (
            [(100, 100, 400), (100, 100, 800), (98, 98, 800)],
            "No loss was seen on the 2,000 pictures of all 3 classes that it knew before "
            "(400 to 800 a class).",
        ),
        (
            [(100, 50, 2), (100, 100, 2), (None, None, 0)],
            "One class lost something and none gained: on average a loss of 25 points, at worst a "
            "loss of 50 points (class 0), on the 4 pictures of 2 of the 3 classes that "
            "it knew before (2 a class; so few that one picture can count for 25 "
            "points).",
        ),
        (
            [(100, 98, 50), (100, 99, 50), (100, 99.6, 250), (98, 96.5, 200)],
            "3 classes lost something and none gained: on average a loss of 1.2 points, at worst a "
            "loss of 2 points (class 0), on the 550 pictures of all 4 classes that it "
            "knew before (50 to 250 a class).",
        ),
        (
            [(None, None, 0), (None, 40, 9)],
            "That cannot be told: no class that it knew before has pictures to measure it on.",
        ),
        ([], "These are its first classes: there was nothing to forget."),
    ],
)
def test_what_was_forgotten_is_said_with_what_it_stands_on(counts: list[Counts], said: str) -> None:
    assert forgetting_verdict(changes(counts)) == said
    assert said in changes_page("Version 2", changes(counts), [])


def test_of_a_model_that_has_learnt_nothing_nothing_is_said() -> None:
    assert forgetting_verdict([]) == "Nothing has been learnt yet."


@pytest.mark.parametrize(
    ("correct", "said"),
    [
        ({"a": (1, 1)}, "100.0 % of the one picture was recognised (too few to be sure)."),
        ({"a": (30, 40)}, "75.0 % of all 40 pictures were recognised."),
        (
            {"a": (500, 1000), "b": (2, 2)},
            "50.1 % of all 1,002 pictures were recognised (2 to 1,000 a class; too few to be "
            "sure).",
        ),
    ],
)
def test_what_was_recognised_is_said_with_what_it_stands_on(
    correct: dict[str, tuple[int, int]], said: str
) -> None:
    found = Evaluation({name: ClassAccuracy(of, right) for name, (right, of) in correct.items()})
    assert evaluation_verdict(found) == said
    page = evaluation_page("model on photos", found)
    assert said in page
    assert "Measured on" in page
