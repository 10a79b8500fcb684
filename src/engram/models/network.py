"""A backbone and a growing head, and copies that stand still."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

from engram.models.heads import LinearHead

__all__ = ["Network", "frozen"]

M = TypeVar("M", bound=nn.Module)


class Network(nn.Module):
    """Backbone -> features -> linear head.

    Args:
        backbone: a module with an attribute `dim` that maps (B, 3, H, W) to (B, dim).
    """

    def __init__(self, backbone: nn.Module, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = LinearHead(dim)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, classes) logits."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


def frozen(module: M) -> M:
    """A copy that never changes: no gradients, and BatchNorm with its running statistics."""
    return copy.deepcopy(module).eval().requires_grad_(False)
