"""A backbone and a growing head, and copies that stand still."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from engram.models.backbone import Backbone
from engram.models.heads import LinearHead

__all__ = ["Network", "frozen"]


class Network(nn.Module):
    """Backbone -> features -> linear head.

    Attributes:
        dim: length of the features.
        weights_sha256: of the file that the backbone's weights came from; None where there is none.
    """

    def __init__(self, backbone: Backbone, weights_sha256: str | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.weights_sha256 = weights_sha256
        self.head = LinearHead(backbone.dim)
        self.dim = backbone.dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, classes) logits."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


def frozen(network: Network) -> Network:
    """A copy that never changes: no gradients, and the backbone in its fastest form."""
    copied = Network(network.backbone.folded())
    copied.head = copy.deepcopy(network.head)
    return copied.eval().requires_grad_(False)
