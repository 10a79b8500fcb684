"""Heads: from features to one score a class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LinearHead", "UniformHead"]


class LinearHead(nn.Module):
    """A linear layer that gains rows as classes arrive and keeps the ones it has.

    Attributes:
        weight: (classes, dim).
        bias: (classes,).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, dim))
        self.bias = nn.Parameter(torch.empty(0))

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Append `classes` rows: He-normal with gain 1, standard deviation 1/sqrt(dim), bias 0."""
        dim = self.weight.shape[1]
        rows = torch.randn(classes, dim, generator=generator).div_(dim**0.5)
        self.weight = nn.Parameter(torch.cat([self.weight.data, rows.to(self.weight.device)]))
        self.bias = nn.Parameter(
            torch.cat([self.bias.data, torch.zeros(classes, device=self.bias.device)])
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, dim) features to (B, classes) logits."""
        return F.linear(features, self.weight, self.bias)


class UniformHead(nn.Module):
    """A linear layer of fixed size, drawn as PyTorch draws its own: uniform in +-1/sqrt(dim).

    Attributes:
        weight: (classes, dim).
        bias: (classes,), or None.
    """

    def __init__(self, dim: int, classes: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, dim))
        self.bias = nn.Parameter(torch.zeros(classes)) if bias else None

    def draw(self, generator: torch.Generator) -> None:
        """New random weights in place of those there are."""
        for parameter in self.parameters():
            values = torch.rand(parameter.shape, generator=generator)
            reach = max(1, self.weight.shape[1]) ** -0.5
            parameter.data.copy_((2 * values - 1) * reach)

    def keep_features(self, kept: Tensor) -> None:
        """Read only those of the features where `kept` (dim,) is true; the others are gone."""
        self.weight = nn.Parameter(self.weight.data[:, kept])

    def forward(self, features: Tensor) -> Tensor:
        """(B, dim) features to (B, classes) logits."""
        return F.linear(features, self.weight, self.bias)
