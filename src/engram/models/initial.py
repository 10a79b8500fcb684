"""Initial weights from an explicit generator."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["he_normal_"]


def he_normal_(module: nn.Module, generator: torch.Generator) -> None:
    """Fill every convolution with He-normal weights: gain sqrt 2, fan-in (He et al. 2015)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
