"""What methods that train on exemplars and new images together share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engram.data.augment import Augmentation
from engram.data.batches import AugmentedImages, Recoding
from engram.data.stream import Task
from engram.errors import UserError
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
        if not 0 <= self.codec_augmentation <= 1:
            raise UserError(f"codec_augmentation must be in [0, 1], not {self.codec_augmentation}.")


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
