"""The floor and the ceiling of class-incremental learning: finetune and joint."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from engram import models
from engram.config import Schedule
from engram.data.augment import Augmentation
from engram.data.batches import Step
from engram.data.stream import Task
from engram.errors import UserError
from engram.memory import Budget, ExemplarMemory
from engram.methods.base import Method, Trainer
from engram.seeding import generator

__all__ = ["Finetune", "FinetuneConfig", "Joint", "JointConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """The settings of plain training."""

    backbone: str = "resnet32"
    augmentation: Augmentation = field(default_factory=Augmentation)
    schedule: Schedule = field(
        default_factory=lambda: Schedule(learning_rate=0.1, weight_decay=5e-4)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class JointConfig(FinetuneConfig):
    """The settings of joint training: those of finetune."""


class Finetune(Method):
    """Cross-entropy on the new images, and on the memory's where it may hold any.

    Without memory this is the floor: what is left when nothing works against forgetting.
    """

    Config = FinetuneConfig
    title = "Finetune: plain training on new images"
    config: FinetuneConfig

    def __init__(self, config: FinetuneConfig, image_size: tuple[int, int], seed: int) -> None:
        super().__init__(config, image_size, seed)
        self.network = self.create_network()

    @property
    def classifier(self) -> str:
        return "network"

    def learn(self, task: Task, memory: ExemplarMemory, trainer: Trainer) -> None:
        self.grow(len(task.new))
        trainer.fit(
            "training",
            self.augmented(memory + task.train, self.config.augmentation),
            self.loss,
            self.network.named_parameters(),
            self.config.schedule,
        )
        memory.update(task.train)

    def grow(self, new: int) -> None:
        self.network.head.grow(new, generator(self.seed, "head", self.seen))
        self.seen += new

    def loss(self, x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
        return {"classification": F.cross_entropy(self.network(x).float(), y)}

    def scores_by_classifier(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"network": self.network(self.normalise(pixels))}


class Joint(Finetune):
    """Finetune on everything seen so far, from new initial weights at every task.

    This is meant as the ceiling: what the network reaches when nothing has to be forgotten. Where
    training is short, other methods may be above it.
    """

    Config = JointConfig
    title = "Joint: training on everything seen so far, anew at each task"

    def check(self, budget: Budget, classes: int = 0) -> None:
        if budget.kind != "all":
            raise UserError("Joint training keeps everything: its budget is all.")

    def grow(self, new: int) -> None:
        seen = self.seen + new
        self.network = models.create(
            self.config.backbone, generator(self.seed, "network", seen), self.image_size
        )
        self.network.head.grow(seen, generator(self.seed, "head", seen))
        self.seen = seen
