"""Which images a model has seen: known by checksums, long after the images themselves are gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["SeenImages"]

CHECKSUMS = 2**32
"""That there are."""


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, eq=False, slots=True)
class SeenImages:
    """Checksums of what was learnt and of what was set aside.

    So an image that is given again is not learnt twice, and one that is set aside never is. The
    same image as another class is news.

    Attributes:
        learnt: (N,) int64, labels and checksums of images that were learnt from, as one number.
        aside: (M,) int64, checksums of images by which is measured what was forgotten.
    """

    learnt: Tensor = field(default_factory=_none)
    aside: Tensor = field(default_factory=_none)

    def were_learnt(self, labels: Tensor, checksums: Tensor) -> Tensor:
        """(B,) bool, of images of these classes."""
        return torch.isin(labels * CHECKSUMS + checksums, self.learnt)

    def are_aside(self, checksums: Tensor) -> Tensor:
        """(B,) bool, of images of whatever classes."""
        return torch.isin(checksums, self.aside)

    def after(self, labels: Tensor, checksums: Tensor, aside: Tensor) -> SeenImages:
        """The same after images of these classes were learnt, and others set aside."""
        return SeenImages(
            torch.cat([self.learnt, labels * CHECKSUMS + checksums]),
            torch.cat([self.aside, aside]),
        )

    def state(self) -> dict[str, Tensor]:
        """All of it, by name."""
        return {"learnt": self.learnt, "aside": self.aside}

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> SeenImages:
        """What `state` gave."""
        return cls(state["learnt"], state["aside"])
