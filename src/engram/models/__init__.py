"""Backbones by name, heads, and the modules they are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engram.errors import unknown
from engram.models.network import Network
from engram.models.resnet import CifarResNet, ResNet, ResNet18

__all__ = ["BACKBONES", "create"]

BACKBONES: dict[str, Callable[[torch.Generator], ResNet]] = {
    "resnet8": lambda generator: CifarResNet(1, generator),
    "resnet20": lambda generator: CifarResNet(3, generator),
    "resnet32": lambda generator: CifarResNet(5, generator),
    "resnet18": ResNet18,
    "resnet18-imagenet": lambda generator: ResNet18(generator, large=True),
}


def create(name: str, generator: torch.Generator) -> Network:
    """A network with the backbone called `name` and a head without classes.

    Args:
        generator: source of the initial weights.

    Raises:
        UserError: no backbone has that name.
    """
    if name not in BACKBONES:
        raise unknown("backbone", name, BACKBONES)
    return Network(BACKBONES[name](generator))
