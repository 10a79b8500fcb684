"""iCaRL: Incremental Classifier and Representation Learning (Rebuffi et al., CVPR 2017).

Settings that reproduce the paper's own comparisons:

| the paper's name    | classifier | distillation | budget |
|---------------------|------------|--------------|--------|
| iCaRL               | nme        | sigmoid      | 2000   |
| hybrid1             | network    | sigmoid      | 2000   |
| hybrid2             | nme        | none         | 2000   |
| hybrid3 (rehearsal) | network    | none         | 2000   |
| LwF.MC              | network    | sigmoid      | 0      |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.config import Schedule, check_positive
from engram.data.batches import Loss, Step
from engram.data.images import Images
from engram.data.stream import Task
from engram.errors import UserError
from engram.memory import Budget, ExemplarMemory, herding
from engram.methods.base import Trainer
from engram.methods.rehearsal import RehearsalConfig, RehearsalMethod
from engram.models.network import Network, frozen
from engram.seeding import generator

__all__ = ["ICaRL", "ICaRLConfig"]

TRUST = {"soft": 1.0, "mixed": 0.5, "label": 0.0}
"""How far the old network's outputs stand for an exemplar's label."""

NME_TEMPERATURE = 0.1
"""Squared distances of unit vectors are in [0, 4]: a tenth of one tells classes apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ICaRLConfig(RehearsalConfig):
    """The settings of iCaRL; the defaults are the paper's for CIFAR-100."""

    backbone: str = "resnet32"
    classifier: Literal["nme", "network"] = "nme"
    """Nearest mean of exemplars, or the network's own outputs. Both are always reported."""
    distillation: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    """What keeps old outputs in place: binary cross-entropy to the old network's sigmoids (the
    paper), cross-entropy to its softened softmax beside a softmax classification loss, or
    nothing."""
    distillation_weight: float = 1.0
    temperature: float = 2.0
    """Temperature of a softmax distillation; without effect otherwise."""
    exemplar_targets: Literal["soft", "label", "mixed"] = "soft"
    """What an exemplar teaches the outputs of old classes under sigmoid distillation: the old
    network's outputs (the paper), its own label, or the mean of both."""
    distillation_fades: bool = False
    """Trust the old network the less, the larger the memory: by the share of an old class's
    images that is kept. With everything kept this is joint training."""
    outputs: int = 100
    """The summed binary loss is divided by this. The paper's head has 100 outputs from the start;
    dividing by the classes seen instead would make the first task's steps ten times longer."""
    mirror_means: bool = True
    """Class means average exemplars and their mirror images. Wrong for digits and letters."""
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        RehearsalConfig.__post_init__(self)
        check_positive(self, "temperature", "outputs")
        if self.distillation != "sigmoid" and (
            self.exemplar_targets != "soft" or self.distillation_fades
        ):
            raise UserError(
                "exemplar_targets and distillation_fades are about the sigmoid distillation; with "
                f"distillation {self.distillation} exemplars are taught their labels anyway."
            )


class ICaRL(RehearsalMethod):
    """Nearest mean of exemplars on a representation trained by rehearsal and distillation.

    Attributes:
        means: (seen, dim) unit vectors, the means of each class's exemplars; a class without
            exemplars has none and is never chosen by `nme`.
    """

    Config = ICaRLConfig
    title = "iCaRL: Incremental Classifier and Representation Learning (Rebuffi et al., CVPR 2017)"
    config: ICaRLConfig

    def __init__(self, config: ICaRLConfig, image_size: tuple[int, int], seed: int) -> None:
        super().__init__(config, image_size, seed)
        self.network = self.create_network()
        self.register_buffer("means", torch.zeros(0, self.network.dim))
        self.means: Tensor

    @property
    def classifier(self) -> str:
        return self.config.classifier

    def check(self, budget: Budget, classes: int = 0) -> None:
        if budget.none and self.config.classifier == "nme":
            raise UserError(
                "The nearest mean of exemplars needs exemplars: a budget of 0 works with "
                "--classifier network only."
            )

    def learn(self, task: Task, memory: ExemplarMemory, trainer: Trainer) -> None:
        """Algorithms 2 to 5: update the representation, then the exemplar sets."""
        teacher = frozen(self.network) if self.seen else None
        self.grow(len(task.new))
        trainer.fit(
            "representation",
            self.training_images(task, memory),
            self.loss(teacher, task.classes, self.trust(task, memory)),
            self.network.named_parameters(),
            self.config.schedule,
        )
        memory.update(task.train, rank=lambda images: herding(self.embed(images)))
        self.means = self.class_means(memory)

    def grow(self, new: int) -> None:
        self.network.head.grow(new, generator(self.seed, "head", self.seen))
        self.seen += new
        self.means = self.means.new_zeros(self.seen, self.network.dim)

    def trust(self, task: Task, memory: ExemplarMemory) -> Tensor:
        """How far the old network's outputs replace the labels of old classes, for an image of each
        class: (seen,) in [0, 1]. `exemplar_targets` and `distillation_fades` lower it from 1."""
        trust = 1 - self.kept_share(task, memory) if self.config.distillation_fades else 1.0
        by_class = torch.full((self.seen,), trust * TRUST[self.config.exemplar_targets])
        by_class[list(task.classes)] = trust
        return by_class.to(self.device)

    def kept_share(self, task: Task, memory: ExemplarMemory) -> float:
        """Exemplars of an old class for each image of one of the task's, at most 1."""
        old, new = self.seen - len(task.new), len(task.train) / len(task.classes)
        return min(1.0, len(memory) / old / new) if old else 0.0

    def loss(self, teacher: Network | None, classes: Sequence[int], trust: Tensor) -> Loss:
        """The loss of Algorithm 3: classification for the task's classes, distillation for others.

        As in the authors' code, the old network sees the same augmented batch, and its outputs
        replace the labels of old classes for every image, exemplars included.

        Args:
            teacher: the network as it was before this task; None at the first.
            classes: those of the task.
            trust: see `trust`; without effect on softmax distillation.
        """
        if self.config.distillation == "softmax":
            return self.softmax_loss(teacher)
        is_taught = torch.zeros(self.seen, dtype=torch.bool, device=self.device)
        is_taught[list(classes)] = True
        taught, others = is_taught.nonzero()[:, 0], (~is_taught).nonzero()[:, 0]
        weight = self.config.distillation_weight

        def binary(x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
            logits, labels = self.network(x).float(), F.one_hot(y, self.seen).float()
            if teacher is None or self.config.distillation == "none":
                return {"classification": self._binary(logits, labels)}
            past = teacher(x)[:, others].float().sigmoid()
            trusted = trust[y][:, None]
            targets = trusted * past + (1 - trusted) * labels[:, others]
            return {
                "classification": self._binary(logits[:, taught], labels[:, taught]),
                "distillation": weight * self._binary(logits[:, others], targets),
            }

        return binary

    def softmax_loss(self, teacher: Network | None) -> Loss:
        """Cross-entropy, and cross-entropy to the old network's softened softmax.

        Args:
            teacher: the network as it was before this task; None at the first.
        """
        weight, temperature = self.config.distillation_weight, self.config.temperature

        def softmax(x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
            logits = self.network(x).float()
            parts = {"classification": F.cross_entropy(logits, y)}
            if teacher is not None:
                past = (teacher(x).float() / temperature).softmax(dim=1)
                soft = F.cross_entropy(logits[:, : past.shape[1]] / temperature, past)
                parts["distillation"] = weight * temperature**2 * soft
            return parts

        return softmax

    def _binary(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy, summed over classes, divided by `outputs`, mean over images."""
        total = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        return total / (len(logits) * self.config.outputs)

    def embed(self, images: Images, *, mirrored: bool = False) -> Tensor:
        """Unit-length features (N, dim) of whole images, as they are or mirrored."""
        return self.unit_features(self.network.backbone, images, mirrored=mirrored)

    def class_means(self, memory: ExemplarMemory) -> Tensor:
        """Unit means (seen, dim) of the exemplars' features and their mirror images' (Alg. 1)."""
        exemplars = memory.images()
        features = self.embed(exemplars)
        if self.config.mirror_means:
            features += self.embed(exemplars, mirrored=True)
        sums = torch.zeros(self.seen, self.network.dim).index_add(0, exemplars.labels, features)
        return F.normalize(sums).to(self.device)

    def probabilities(self, scores: Tensor) -> Tensor:
        return (scores / NME_TEMPERATURE if self.classifier == "nme" else scores).softmax(dim=1)

    def scores(self, pixels: Tensor) -> Tensor:
        features = self.network.backbone(self.normalise(pixels))
        return self.network.head(features) if self.classifier == "network" else self.nme(features)

    def scores_by_classifier(self, pixels: Tensor) -> dict[str, Tensor]:
        """`nme`: nearest mean of exemplars, where there are any; `network`: logits."""
        features = self.network.backbone(self.normalise(pixels))
        scores = {"network": self.network.head(features)}
        if self.classifier == "nme" or self.means.any():
            scores["nme"] = self.nme(features)
        return scores

    def nme(self, features: Tensor) -> Tensor:
        """Minus the squared distances (B, seen) of directions to the class means (Algorithm 1)."""
        similarities = F.normalize(features) @ self.means.T
        return (2 * similarities - 2).where(self.means.any(dim=1), -torch.inf)
