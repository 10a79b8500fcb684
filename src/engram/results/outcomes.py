"""What came out of learning and of classifying: accuracies, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Change", "ClassAccuracy", "Evaluation", "mean_forgetting"]


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """How many of a class's images were recognised."""

    images: int
    correct: int

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * self.correct / self.images


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out of classifying labelled pictures.

    Attributes:
        classes: by name.
        skipped: pictures that could not be read, a line each.
    """

    classes: dict[str, ClassAccuracy]
    skipped: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """In percent, of all images together."""
        images = sum(found.images for found in self.classes.values())
        return 100 * sum(found.correct for found in self.classes.values()) / max(1, images)


@dataclass(frozen=True, slots=True)
class Change:
    """Accuracy on a class before and after something was learnt, in percent.

    Attributes:
        before: None of a class that is new, or of which there was nothing to measure it on.
        after: None of a class of which there is nothing to measure it on.
        images: that it was measured on afterwards.
        new: whether the class was not known before.
    """

    name: str
    before: float | None
    after: float | None
    images: int
    new: bool = False

    @property
    def forgotten(self) -> float | None:
        """Points lost; None where that is not known."""
        if self.before is None or self.after is None:
            return None
        return self.before - self.after


def mean_forgetting(changes: Sequence[Change]) -> float | None:
    """Points of accuracy that known classes lost on average; None where that was measured of
    none."""
    lost = [change.forgotten for change in changes if change.forgotten is not None]
    return sum(lost) / len(lost) if lost else None
