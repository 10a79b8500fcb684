"""What methods on a frozen pretrained backbone share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.func import functional_call

from engram.data.images import ImageSet, hashed_share
from engram.methods.base import Method, Trainer
from engram.models.heads import RidgeHead
from engram.models.pretrained import RANDOM, load_backbone
from engram.seeding import generator

__all__ = ["SET_ASIDE", "PretrainedMethod"]

BATCH_ON_CPU = 32

SET_ASIDE = 5
"""One image in this many chooses the ridge weight."""


class PretrainedMethod(Method):
    """A method on a backbone that never changes, and modules beside it that may.

    Args:
        config: with a `BackboneConfig` as `pretrained`.

    Attributes:
        backbone: the network; modules attached to it are all of it that has gradients.
        dim: length of its features.
    """

    def __init__(self, config: Any, image_size: tuple[int, int], seed: int) -> None:
        super().__init__(config, image_size, seed)
        found = load_backbone(config.pretrained, generator(seed, "network"))
        self.normalise = found.normalise
        self.backbone = found.network
        self.dim = found.dim
        self.weights_sha256 = found.sha256

    @classmethod
    def with_weights(cls, settings: Any, weights: str) -> Any:
        """The same settings with another `weights` of the backbone; see `BackboneConfig`."""
        return replace(settings, pretrained=replace(settings.pretrained, weights=weights))

    @classmethod
    def without_weights(cls, settings: Any) -> Any:
        return cls.with_weights(settings, RANDOM)

    def train(self, mode: bool = True) -> Self:
        """The backbone stays as it is in use: nothing in it that would move or draw."""
        super().train(mode)
        self.backbone.eval()
        return self

    @property
    def batch_size(self) -> int:
        """A processor is twice as fast with what fits its caches."""
        return BATCH_ON_CPU if self.device.type == "cpu" else super().batch_size

    def features(self, x: Tensor, modules: Mapping[str, Tensor] | None = None) -> Tensor:
        """(B, 3, H, W) normalised images to (B, dim), in the precision of training.

        Args:
            modules: parameters of the backbone by name that stand in for its own.
        """
        with self.training_precision():
            if modules is None:
                return self.backbone(x).float()  # type: ignore[no-any-return]
            return functional_call(self.backbone, dict(modules), (x,)).float()  # type: ignore[no-any-return]

    @torch.no_grad()
    def add_to(
        self,
        head: RidgeHead,
        images: ImageSet,
        trainer: Trainer,
        modules: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take images into the sums of a ridge head, in one pass over them.

        Which images choose the ridge weight is a property of each, so the sums do not depend on how
        images were cut into tasks.
        """
        features = torch.empty(len(images), self.dim, device=self.device)
        for start in trainer.track("statistics", range(0, len(images), self.batch_size)):
            part = slice(start, start + self.batch_size)
            pixels = images.pixels[part].to(self.device)
            features[part] = self.features(self.normalise(pixels), modules)
        self.cache_bytes = max(self.cache_bytes, features.nbytes)
        aside = hashed_share(images.pixels, SET_ASIDE).to(self.device)
        head.add(features, images.labels.to(self.device), aside)
