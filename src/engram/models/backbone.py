"""What a backbone is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from torch import Tensor, nn

__all__ = ["Backbone"]


class Backbone(nn.Module, ABC):
    """Images to features."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Length of the features."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, dim)."""

    @abstractmethod
    def folded(self) -> Self:
        """A copy that never changes, in the form that is the fastest to run."""
