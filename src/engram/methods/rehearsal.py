"""What methods that train on exemplars and new images together share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from engram.config import check_fraction
from engram.data.augment import Augmentation
from engram.data.batches import AugmentedImages, Recoding, apply
from engram.data.images import Images
from engram.data.stream import Task
from engram.memory import ExemplarMemory
from engram.methods.base import Method

__all__ = ["RehearsalConfig", "RehearsalMethod"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RehearsalConfig:
    """What happens to images before they are trained on."""

    augmentation: Augmentation = field(default_factory=Augmentation)
    codec_augmentation: float = 0.0
    """Probability with which a new image is trained on as the memory's codec gives it back, so that
    the network cannot tell old classes from new ones by what a codec leaves behind."""

    def __post_init__(self) -> None:
        check_fraction(self, "codec_augmentation")


class RehearsalMethod(Method):
    """A method that trains on exemplars and new images together.

    Args:
        config: a `RehearsalConfig`.
    """

    config: Any

    def training_images(self, task: Task, memory: ExemplarMemory) -> AugmentedImages:
        """Training batches of exemplars and of the task's images."""
        images, probability = memory + task.train, self.config.codec_augmentation
        if not probability:
            return self.augmented(images, self.config.augmentation)
        memory.prepare(task.train)
        recoding = Recoding.of_last(memory.recode(task.train), len(images), probability)
        return self.augmented(images, self.config.augmentation, recoding)

    def unit_features(
        self, features: Callable[[Tensor], Tensor], images: Images, *, mirrored: bool = False
    ) -> Tensor:
        """Unit-length features (N, dim) of images, by which exemplars are ranked and averaged.

        In float32, as images are classified: near ties decide on ranks.

        Args:
            features: inputs to features (B, dim).
            mirrored: take the images' mirror images.
        """

        def function(pixels: Tensor) -> Tensor:
            x = self.normalise(pixels.flip(2) if mirrored else pixels)
            return F.normalize(features(x))

        return apply(function, images, device=self.device, batch_size=self.batch_size)
