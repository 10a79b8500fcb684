"""What accuracies allow to say of a model, and on how many pictures that stands."""

from __future__ import annotations

from collections.abc import Sequence

from engram.results.outcomes import Change, Evaluation

__all__ = ["evaluation_verdict", "forgetting_verdict"]

SURE = 30
"""Pictures of a class below which a loss of ten points may go unseen."""

NOTICEABLE = 0.5
"""Points of accuracy above which a class lost something: less is rounded to nothing."""


def forgetting_verdict(changes: Sequence[Change]) -> str:
    """A sentence on what the classes known before lost, and whether that can be told."""
    if not changes:
        return "Nothing has been learnt yet."
    before = sum(not change.new for change in changes)
    if not before:
        return "These are its first classes: there was nothing to forget."
    counts = [change.images for change in changes if change.forgotten is not None]
    lost = {change.name: change.forgotten for change in changes if change.forgotten is not None}
    if not lost:
        return "That cannot be told: no class that it knew before has pictures to measure it on."
    pictures = "the one picture" if sum(counts) == 1 else f"the {sum(counts):,} pictures"
    measured = (
        f"{pictures} set aside of {_of_classes(len(lost), before)} that it knew before"
        f"{_note(counts)}"
    )
    losers = sum(points > NOTICEABLE for points in lost.values())
    worst = max(lost, key=lost.__getitem__)
    points = "1 point" if round(lost[worst]) == 1 else f"{lost[worst]:.0f} points"
    if losers == 0:
        return f"No loss was seen on {measured}."
    if losers == 1:
        return f"One class lost something, {worst} {points}, on {measured}."
    return f"{losers} classes lost something, most of all {worst} with {points}, on {measured}."


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
    return f"{found.accuracy:.1f} % of {pictures} recognised{_note(counts)}."


def _note(counts: Sequence[int]) -> str:
    """How many pictures there were of each class, and whether these are too few; in brackets."""
    least, most = min(counts), max(counts)
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    parts = [
        f"{each} a class" if len(counts) > 1 else "",
        "too few to be sure" if least < SURE else "",
    ]
    note = "; ".join(filter(None, parts))
    return f" ({note})" if note else ""
