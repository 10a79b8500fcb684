"""What accuracies allow to say of a model, and on how many pictures that stands."""

from __future__ import annotations

from collections.abc import Sequence

from engram.results.formats import format_range
from engram.results.outcomes import Change, Evaluation, mean_forgetting

__all__ = ["evaluation_verdict", "forgetting_verdict"]

SURE = 30
"""Pictures of a class below which a loss of ten points may go unseen."""

ROUGH = 100 / 30
"""Where one picture counts for more points of the average over classes than this, that is told. One
of thirty pictures, equally many of each class, counts for as many; one of ten, of a class each, for
ten."""

NOTICEABLE = 0.5
"""Points of accuracy above which a class lost or gained something: less is rounded to nothing."""


def forgetting_verdict(changes: Sequence[Change]) -> str:
    """A sentence on what the classes known before lost and gained, and whether that can be told."""
    if not changes:
        return "Nothing has been learnt yet."
    before = sum(not change.new for change in changes)
    if not before:
        return "These are its first classes: there was nothing to forget."
    counts = [change.images for change in changes if change.forgotten is not None]
    lost = {change.name: change.forgotten for change in changes if change.forgotten is not None}
    mean = mean_forgetting(changes)
    if mean is None:
        return "That cannot be told: no class that it knew before has pictures to measure it on."
    pictures = "the one picture" if sum(counts) == 1 else f"the {sum(counts):,} pictures"
    measured = (
        f"{pictures} of {_of_classes(len(lost), before)} that it knew before"
        f"{_note(counts, _roughness(counts))}"
    )
    losers = sum(points > NOTICEABLE for points in lost.values())
    gainers = sum(points < -NOTICEABLE for points in lost.values())
    if not losers and not gainers:
        return f"No loss was seen on {measured}."
    worst = max(lost, key=lost.__getitem__)
    at_worst = f", at worst {_change(lost[worst])} ({worst})" if losers and len(lost) > 1 else ""
    return f"{_moved(losers, gainers)}: on average {_change(mean)}{at_worst}, on {measured}."


def _moved(losers: int, gainers: int) -> str:
    """How many classes are recognised less than before, and how many more."""
    gained = {0: "none", 1: "one"}.get(gainers, f"{gainers:,}")
    if not losers:
        return f"No class lost anything and {gained} gained"
    lost = "One class" if losers == 1 else f"{losers:,} classes"
    return f"{lost} lost something and {gained} gained"


def _change(lost: float) -> str:
    if round(lost, 1) == 0:
        return "no change"
    return f"a {'loss' if lost > 0 else 'gain'} of {_points(abs(lost))}"


def _points(value: float) -> str:
    return "1 point" if round(value, 1) == 1 else f"{round(value, 1):g} points"


def _of_classes(count: int, known: int) -> str:
    if count < known:
        return f"{count} of the {known} classes"
    if known == 1:
        return "the one class"
    return "both classes" if known == 2 else f"all {known} classes"


def evaluation_verdict(found: Evaluation) -> str:
    """A sentence on how many labelled pictures were recognised."""
    counts = [of_class.images for of_class in found.classes.values()]
    pictures = "the one picture was" if sum(counts) == 1 else f"all {sum(counts):,} pictures were"
    return f"{found.accuracy:.1f} % of {pictures} recognised{_note(counts, _doubt(counts))}."


def _doubt(counts: Sequence[int]) -> str:
    """Whether there were too few pictures of a class; empty where there were not."""
    return "too few to be sure" if min(counts) < SURE else ""


def _roughness(counts: Sequence[int]) -> str:
    """`_doubt`, and how rough an average over classes is."""
    most = 100 / (min(counts) * len(counts))
    if most <= ROUGH:
        return _doubt(counts)
    return f"so few that one picture can count for {_points(most)}"


def _note(counts: Sequence[int], doubt: str) -> str:
    """How many pictures there were of each class, with a doubt, if any; in brackets."""
    parts = [f"{format_range(counts)} a class" if len(counts) > 1 else "", doubt]
    note = "; ".join(filter(None, parts))
    return f" ({note})" if note else ""
