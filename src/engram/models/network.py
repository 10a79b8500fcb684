"""A backbone and a growing head, and copies that stand still."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from engram.models.heads import LinearHead
from engram.models.resnet import ResNet

__all__ = ["Network", "frozen"]


class Network(nn.Module):
    """Backbone -> features -> linear head."""

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = LinearHead(backbone.dim)
        self.dim = backbone.dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, classes) logits."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


def frozen(network: Network) -> Network:
    """A copy that never changes: no gradients, and BatchNorm folded into the convolutions."""
    copied = Network(network.backbone.folded())
    copied.head = copy.deepcopy(network.head)
    return copied.eval().requires_grad_(False)
