"""RanPAC: Random Projections and Pre-trained Models for Continual Learning (McDonnell et al.,
NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from engram.config import Schedule, check_not_negative, check_positive
from engram.data.augment import Augmentation
from engram.data.batches import Loss, Step
from engram.data.stream import Task
from engram.memory import ExemplarMemory
from engram.methods.base import Trainer
from engram.methods.pretrained import PretrainedMethod
from engram.models.adapters import ModuleConfig, attach
from engram.models.heads import CosineHead, RidgeHead
from engram.models.pretrained import BackboneConfig
from engram.seeding import generator

__all__ = ["RanPAC", "RanPACConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RanPACConfig:
    """The settings of RanPAC; the defaults are the paper's for CIFAR-100, on a smaller backbone."""

    pretrained: BackboneConfig = field(default_factory=BackboneConfig)
    projected: int = 10_000
    """Random dimensions that features are projected to; 0 leaves them as they are. Sums of
    2 x 8 bytes x its square are kept: 64 MB for 2,000, 1.6 GB for 10,000."""
    adapt: bool = True
    """Train small modules beside the backbone on the first task, then freeze them too. Without it,
    or where that task is a single class, nothing is trained at all: one pass over the images."""
    modules: ModuleConfig = field(
        default_factory=lambda: ModuleConfig(module="adapter", size=64, place="mlp", blocks="all")
    )
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(padding=0.0, least_area=0.05)
    )
    """What happens to the first task's images while the modules are trained."""
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            epochs=20,
            batch_size=48,
            drop_last=False,
            learning_rate=0.01,
            weight_decay=5e-4,
            decay="cosine",
        )
    )
    """How the modules are trained."""
    temperature: float = 0.05
    """Temperature of the softmax that makes probabilities of scores, to be shown."""

    def __post_init__(self) -> None:
        check_not_negative(self, "projected")
        check_positive(self, "temperature")


class RanPAC(PretrainedMethod):
    """Ridge regression on randomly projected features of a frozen network.

    Its sums over images do not depend on their order: on the same features, learning class by class
    gives what learning everything at once gives.

    Attributes:
        head: the ridge regression.
        adaptation: the classifier with which modules are trained, while they are.
    """

    Config = RanPACConfig
    title = "RanPAC: ridge regression on random projections (McDonnell et al., NeurIPS 2023)"
    resting = ("backbone.", "head.")
    config: RanPACConfig

    def __init__(self, config: RanPACConfig, image_size: tuple[int, int], seed: int) -> None:
        super().__init__(config, image_size, seed)
        if config.adapt:
            attach(self.backbone, config.modules, generator(seed, "modules"))
        self.head = RidgeHead(self.dim, config.projected, generator(seed, "projection"))
        self.adaptation: CosineHead | None = None

    @property
    def classifier(self) -> str:
        return "ridge"

    def learn(self, task: Task, memory: ExemplarMemory, trainer: Trainer) -> None:
        """Algorithm 1: phase 1 on the first task where it is asked for, then phase 2."""
        if self.config.adapt and not self.seen and len(task.new) > 1:
            self.adapt(task, trainer)
        self.grow(len(task.new))
        self.add_to(self.head, task.train, trainer)
        self.head.solve()
        memory.update(task.train)

    def grow(self, new: int) -> None:
        self.head.grow(new)
        self.seen += new

    def adapt(self, task: Task, trainer: Trainer) -> None:
        """Train the modules with a classifier of the first task, then throw it away."""
        self.adaptation = CosineHead(self.dim, len(task.new))
        self.adaptation.draw(generator(self.seed, "adaptation"))
        trainer.fit(
            "adaptation",
            self.augmented(task.train, self.config.augmentation),
            self.loss(self.adaptation),
            self.named_parameters(),
            self.config.schedule,
        )
        self.adaptation = None

    def loss(self, head: CosineHead) -> Loss:
        """Cross-entropy of the classifier with which the modules are trained."""

        def of_batch(x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
            logits = head(self.features(x))
            return {"classification": F.cross_entropy(logits.float(), y)}

        return of_batch

    def scores_by_classifier(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"ridge": self.head(self.features(self.normalise(pixels)))}

    def probabilities(self, scores: Tensor) -> Tensor:
        return (scores / self.config.temperature).softmax(dim=1)

    @property
    def measures(self) -> dict[str, float]:
        return {"ridge weight": float(self.head.ridge)}

    @property
    def parameter_count(self) -> int:
        return super().parameter_count + self.head.parameter_count
