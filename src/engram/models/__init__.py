"""Backbones by name, heads, and the modules they are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engram.errors import UserError, unknown
from engram.models.backbone import Backbone
from engram.models.network import Network
from engram.models.normalise import Standardise, SubtractMean
from engram.models.pretrained import RANDOM, vision_transformer
from engram.models.resnet import CifarResNet, ResNet18
from engram.models.vit import MEAN_AND_DEVIATION, VIT

__all__ = ["BACKBONES", "create", "normaliser"]

BACKBONES: dict[str, Callable[[torch.Generator], Backbone]] = {
    "resnet8": lambda generator: CifarResNet(1, generator),
    "resnet20": lambda generator: CifarResNet(3, generator),
    "resnet32": lambda generator: CifarResNet(5, generator),
    "resnet18": ResNet18,
    "resnet18-imagenet": lambda generator: ResNet18(generator, large=True),
}


def create(
    name: str, generator: torch.Generator, image_size: tuple[int, int] = (224, 224)
) -> Network:
    """A network with the backbone called `name` and a head without classes.

    Args:
        name: one of `BACKBONES`, or a vision transformer under timm's name. One that names weights
            after a dot, as vit_tiny_patch16_224.augreg_in21k_ft_in1k does, has these; else they
            are drawn.
        generator: source of the initial weights.
        image_size: height and width of the images; what a vision transformer is made for.

    Raises:
        UserError: no backbone has that name, its weights are not there, or images do not fit it.
    """
    if name.startswith(VIT):
        if image_size[0] != image_size[1]:
            raise UserError(f"{name} wants square images, not {image_size[0]} x {image_size[1]}.")
        weights = None if "." in name else RANDOM
        return Network(*vision_transformer(name, image_size[0], weights, generator))
    if name not in BACKBONES:
        raise unknown("backbone", name, [*BACKBONES, "vit_tiny_patch16_224"])
    return Network(BACKBONES[name](generator))


def normaliser(name: str, image_size: tuple[int, int]) -> SubtractMean | Standardise:
    """What makes pixels the input of the backbone called `name`."""
    if name.startswith(VIT):
        return Standardise(image_size, *MEAN_AND_DEVIATION)
    return SubtractMean(image_size)
