"""DER: Dynamically Expandable Representation (Yan, Xie, He, CVPR 2021).

A new feature extractor for every task beside the old ones, which are frozen; a classifier on all
their features together. Learnt masks make each extractor as small as is asked for. Not to be
confused with Dark Experience Replay, which others call DER.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.config import Schedule, check_not_negative, check_positive
from engram.data.augment import Augmentation
from engram.data.batches import AugmentedImages, Loss, Step
from engram.data.images import Images
from engram.data.stream import Task
from engram.errors import UserError
from engram.memory import Budget, ExemplarMemory, herding
from engram.methods.base import Trainer
from engram.methods.der_size import SizeLimit, parameters_of
from engram.methods.rehearsal import RehearsalConfig, RehearsalMethod
from engram.models.backbone import Backbone
from engram.models.heads import BiasFreeHead
from engram.models.masks import (
    Allowance,
    ChannelMasks,
    Floor,
    GradientRule,
    SparsityControl,
    check_cut,
    reestimate_norms,
    shrunk,
    weight_share,
)
from engram.models.resnet import ResNet
from engram.models.shapes import take_shapes
from engram.seeding import generator

__all__ = ["DER", "DERConfig", "balanced"]

LEAST_OF_A_CLASS = 20
"""Images that a class has in the balanced subset, however few the smallest class has."""

CHECKED = 16
"""Images on which a cut extractor is compared with the whole one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DERConfig(RehearsalConfig):
    """The settings of DER; the defaults are those that the authors ship for CIFAR-100."""

    backbone: str = "resnet18"
    auxiliary_weight: float = 1.0
    """Weight of the loss of the auxiliary classifier, which tells the new classes from each other
    and from all old ones by the new extractor alone."""
    head_init: Literal["reset", "inherit"] = "reset"
    """`reset` draws the classifiers anew after the warm-up, as the authors' code does; `inherit`
    keeps the weights between old features and old classes, as the paper says."""
    temperature: float = 5.0
    """Temperature of the softmax while the classifier is trained on the balanced subset."""
    keep: float | None = None
    """Share of its convolution weights that an extractor may keep, in (0, 1]."""
    max_parameters: str | None = None
    """Bound of extractors and classifier together, for any number of tasks: 6M, 500k or 6000000. An
    extractor gets an eighth of what is left; if that is too little, only the classifier learns."""
    sparsity_weight: float | None = None
    """A fixed weight of the sparsity loss, instead of either; the sizes are what comes of it."""
    mask_gradient: GradientRule = "hat"
    """How the gradient of the masks is compensated for their steepness: as in HAT, as the paper of
    DER prints it, or not at all. With the last two, masks hardly move or do not come back, so what
    is too much is cut when training is over."""
    mask_steepness: float = 100.0
    """The largest s of an epoch, at which masks are nearly binary."""
    least_channels: int = 4
    """Channels that every residual stream keeps, whatever the masks say."""
    round_channels: int = 1
    """Numbers of channels that are left are rounded up to a multiple of this."""
    draws: int = 30
    """Augmented versions of the balanced subset whose features are extracted. The classifier is
    trained on these, so that the extractors run once a version and not once an epoch."""
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(brightness=63 / 255))
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            epochs=170,
            drop_last=False,
            learning_rate=0.1,
            weight_decay=5e-4,
            milestones=(110 / 170, 130 / 170),
            factor=0.1,
            warmup=10 / 170,
            warmup_by="epoch",
        )
    )
    """How the representation is trained."""
    head_epochs: int = 30
    """Epochs of the classifier on the balanced subset: at a learning rate of 0.1, in the second
    half 0.01."""

    def __post_init__(self) -> None:
        RehearsalConfig.__post_init__(self)
        check_positive(
            self, "temperature", "draws", "head_epochs", "least_channels", "round_channels"
        )
        if not self.mask_steepness > 1:
            raise UserError(
                f"mask_steepness must be above 1, not {self.mask_steepness}: masks grow from its "
                "inverse to it in every epoch."
            )
        check_not_negative(self, "auxiliary_weight", "sparsity_weight")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise UserError(
                f"keep must be above 0 and at most 1, not {self.keep}: 0.1 keeps a tenth of an "
                "extractor's weights."
            )
        sizes = ("keep", "max_parameters", "sparsity_weight")
        if len(given := [name for name in sizes if getattr(self, name) is not None]) > 1:
            raise UserError(f"Give {' or '.join(given)}: each decides on the size of extractors.")

    @property
    def prunes(self) -> bool:
        """Whether extractors are made smaller; to keep all of one is not to prune it."""
        return (self.keep, self.max_parameters, self.sparsity_weight) not in (
            (None, None, None),
            (1.0, None, None),
        )

    @property
    def size_limit(self) -> SizeLimit:
        return SizeLimit(
            keep=self.keep,
            max_parameters=self.max_parameters,
            floor=Floor(stream=self.least_channels, multiple=self.round_channels),
            backbone=self.backbone,
        )

    @property
    def head_schedule(self) -> Schedule:
        return Schedule(
            epochs=self.head_epochs,
            batch_size=self.schedule.batch_size,
            drop_last=False,
            learning_rate=0.1,
            weight_decay=5e-4,
            milestones=(0.5,),
            factor=0.1,
        )


class DER(RehearsalMethod):
    """An extractor for every task, frozen afterwards, and a classifier on all their features.

    Attributes:
        extractors: of the tasks learnt; their convolutions have taken over their BatchNorm.
        dense: the extractor of the newest task before anything is cut; the next one starts from it.
        masks: of the extractor that is being learnt, where it is to become smaller.
        control: of the weight of their sparsity loss, where a size is given.
        head: the classifier on the features of all extractors.
        auxiliary: the auxiliary classifier of the task that is being learnt; else without rows.
        shares: of the last extractor's weights, what its masks left and what was kept in the end,
            where it was cut. Not saved.
    """

    Config = DERConfig
    title = "DER: Dynamically Expandable Representation (Yan et al., CVPR 2021)"
    resting = ("extractors.",)
    config: DERConfig

    def __init__(self, config: DERConfig, image_size: tuple[int, int], seed: int) -> None:
        super().__init__(config, image_size, seed)
        self.dense = self.create_network().backbone
        self.extractors = nn.ModuleList()
        self.masks: ChannelMasks | None = None
        self.control: SparsityControl | None = None
        self.shares: dict[str, float] = {}
        self.head = BiasFreeHead(0, 0)
        self.auxiliary = BiasFreeHead(0, 0)

    @property
    def classifier(self) -> str:
        return "network"

    def check(self, budget: Budget, classes: int = 0) -> None:
        if budget.none:
            raise UserError(
                "DER tells new classes from old ones by exemplars: with a budget of 0 it would "
                "forget all old ones. Give a budget such as 2000 or 6MB."
            )
        if self.config.prunes:
            self.config.size_limit.check(self.dense, classes)

    def learn(self, task: Task, memory: ExemplarMemory, trainer: Trainer) -> None:
        """The two stages of section 3: a new extractor, then a classifier on balanced data."""
        old = self.seen
        self.grow(len(task.new))
        self.shares = {}
        images = self.training_images(task, memory)
        if self.has_room(task):
            self.learn_representation(task, images, trainer)
        if old:
            self.learn_classifier(images, trainer)
        memory.update(task.train, rank=lambda images: herding(self.embed(images)))

    def learn_representation(self, task: Task, images: AugmentedImages, trainer: Trainer) -> None:
        """The first stage (sections 3.2 to 3.4): an extractor that is trained, pruned, frozen."""
        if not task.new:
            self.reopen()
        self.expand(len(task.classes))
        trainer.fit(
            "representation",
            images,
            self.loss(task),
            self.named_parameters(),
            self.config.schedule,
            self.after_step,
        )
        extractor = self.dense if self.masks is None else self.prune(self.masks, images, trainer)
        self.freeze(extractor)

    def learn_classifier(self, images: AugmentedImages, trainer: Trainer) -> None:
        """The second stage (section 3.5): a new classifier on as many images of every class."""
        self.renew_head()
        subset = images[balanced(images.images.labels, trainer.generator("subset"))]
        draws = min(self.config.draws, self.config.head_epochs)
        trainer.fit(
            "classifier",
            self.kept_features(self.features, self.dim, subset, draws, trainer),
            self.balanced_loss,
            self.head.named_parameters(prefix="head"),
            self.config.head_schedule,
        )

    def grow(self, new: int) -> None:
        self.seen += new

    def has_room(self, task: Task) -> bool:
        """Whether an extractor can learn the task; where no class is new, the last one once more.

        Raises:
            UserError: the extractor is the first, or not even the classifier fits.
        """
        return not self.config.prunes or self.config.size_limit.has_room(
            self.dense, self.frozen_extractors(), self.seen, again=not task.new
        )

    def reopen(self) -> None:
        """Let the last extractor be the one that is trained; it goes on from what it was whole."""
        del self.extractors[-1:]
        self.head.keep_features(torch.arange(self.head.weight.shape[1]) < self.dim)

    def expand(self, classes: int) -> None:
        """Draw both classifiers, and open all masks. The extractor goes on from the last."""
        inherited = self.head.weight.data
        self.head = BiasFreeHead(self.dim + self.dense.dim, self.seen)
        self.auxiliary = BiasFreeHead(self.dense.dim, classes + 1)
        self.draw_heads()
        if self.config.head_init == "inherit":
            rows, columns = inherited.shape
            self.head.weight.data[:rows, :columns] = inherited
        if self.config.prunes:
            self.masks = ChannelMasks(
                self.prunable, steepest=self.config.mask_steepness, rule=self.config.mask_gradient
            )
            if self.config.sparsity_weight is None:
                self.control = SparsityControl(self.allowance.target)

    def draw_heads(self) -> None:
        """Random weights for both classifiers, the same whenever this task's are drawn."""
        self.head.draw(generator(self.seed, "head", self.seen))
        self.auxiliary.draw(generator(self.seed, "auxiliary", self.seen))

    def loss(self, task: Task) -> Loss:
        """The loss of the first stage (section 3.3): classification by all features, and by the new
        ones alone, where all classes but the task's are one."""
        among = torch.zeros(self.seen, dtype=torch.int64, device=self.device)
        among[list(task.classes)] = torch.arange(1, len(task.classes) + 1, device=self.device)
        others = len(task.classes) < self.seen

        def classified(x: Tensor, y: Tensor, new: Tensor) -> dict[str, Tensor]:
            logits = self.head(torch.cat([*self.frozen_features(x), new], dim=1)).float()
            parts = {"classification": F.cross_entropy(logits, y)}
            if others and self.config.auxiliary_weight:
                auxiliary = F.cross_entropy(self.auxiliary(new).float(), among[y])
                parts["auxiliary"] = self.config.auxiliary_weight * auxiliary
            return parts

        masks = self.masks
        if masks is None:
            return lambda x, y, step: classified(x, y, self.dense(x))

        def masked(x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
            gates = masks(step.batch, step.batches)
            parts = classified(x, y, self.prunable(x, gates))
            weight = self.sparsity_weight(masks, step)
            return {**parts, "sparsity": weight * weight_share(self.prunable, gates)}

        return masked

    def sparsity_weight(self, masks: ChannelMasks, step: Step) -> float | Tensor:
        """The weight of the sparsity loss for a batch."""
        if self.control is None:
            return self.config.sparsity_weight or 0.0
        weight: Tensor = self.control(self.share_left(masks), step.progress)
        return weight

    def share_left(self, masks: ChannelMasks) -> Tensor:
        """The share of the new extractor's weights that its masks would leave now."""
        return masks.left(self.prunable, self.config.size_limit.floor)

    def after_step(self, step: Step) -> None:
        """Keep the masks within their limits; draw both classifiers anew when the warm-up is over,
        as the authors' code does."""
        if self.masks is not None:
            self.masks.clamp()
        if self.config.head_init == "reset" and step.done + 1 == step.warmup < step.updates:
            self.draw_heads()

    def prune(self, masks: ChannelMasks, source: AugmentedImages, trainer: Trainer) -> Backbone:
        """Cut the new extractor down to the channels whose masks are open (section 3.4), and let
        the classifier read what features are left; `dense` stays whole, with BatchNorms anew.

        Returns:
            The smaller extractor.
        """
        whole, allowance = self.prunable, self.allowance
        kept = masks.kept(allowance)
        self.shares = {
            "share left by masks": float(self.share_left(masks)),
            "share kept": allowance.share_of(kept),
        }
        reestimate_norms(whole, kept, self.even_batches(source, trainer))
        smaller = shrunk(whole, kept)
        some = source.images[:CHECKED].pixels.to(self.device)
        check_cut(whole, kept, smaller, self.normalise(some))
        old = torch.ones(self.dim, dtype=torch.bool, device=self.device)
        self.head.keep_features(torch.cat([old, kept[whole.features]]))
        return smaller

    def even_batches(self, source: AugmentedImages, trainer: Trainer) -> Iterator[Tensor]:
        """Every image once, in as few batches as can be, of one size or nearly so."""
        size = math.ceil(len(source) / math.ceil(len(source) / self.batch_size))
        return (x for x, _ in source.batches(size, trainer.generator("norms")))

    def freeze(self, extractor: Backbone) -> None:
        """Let the new extractor be one of the old ones; what only its training needed is gone."""
        self.extractors.append(extractor.folded())
        self.auxiliary = BiasFreeHead(0, 0)
        self.masks = self.control = None

    def renew_head(self) -> None:
        """A classifier with random weights, for the second stage."""
        self.head = BiasFreeHead(self.dim, self.seen).to(self.device)
        self.head.draw(generator(self.seed, "classifier", self.seen))

    def balanced_loss(self, features: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
        """The loss of the second stage (section 3.5)."""
        logits = self.head(features).float() / self.config.temperature
        return {"classification": F.cross_entropy(logits, y)}

    @torch.no_grad()
    def frozen_features(self, x: Tensor) -> list[Tensor]:
        return [extractor(x) for extractor in self.frozen_extractors()]

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to the features of all extractors (B, dim)."""
        return torch.cat(self.frozen_features(x), dim=1)

    def embed(self, images: Images) -> Tensor:
        """Unit-length features (N, dim) of images as they are."""
        return self.unit_features(self.features, images)

    def scores_by_classifier(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"network": self.head(self.features(self.normalise(pixels)))}

    def frozen_extractors(self) -> list[Backbone]:
        return cast("list[Backbone]", list(self.extractors))

    @property
    def dim(self) -> int:
        """Length of the features of all frozen extractors together."""
        return sum(extractor.dim for extractor in self.frozen_extractors())

    @property
    def prunable(self) -> ResNet:
        """The newest extractor as one that can become smaller."""
        return self.config.size_limit.prunable(self.dense)

    @property
    def allowance(self) -> Allowance:
        """How large the next extractor may be."""
        return self.config.size_limit.allowance(self.dense, self.frozen_extractors(), self.seen)

    @property
    def measures(self) -> dict[str, float]:
        return {"extractors": len(self.extractors), **self.shares}

    @property
    def parameter_count(self) -> int:
        """Parameters of the extractors and the classifier. The dense copy of the last extractor is
        where the next one starts from, and does not count."""
        return parameters_of(self.frozen_extractors()) + self.head.weight.numel()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Take over a state with its own number of extractors, of its own sizes."""
        numbers = {name.split(".")[1] for name in state_dict if name.startswith("extractors.")}
        while len(self.extractors) < len(numbers):
            self.extractors.append(self.dense.folded())
        take_shapes(self, state_dict)
        return super().load_state_dict(state_dict, strict, assign)


def balanced(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Positions of as many images of every class as the smallest has, chosen at random.

    A class of fewer than 20 does not cut the others down to its size: then every class has 20, and
    the images of the small ones are repeated.

    Args:
        labels: (N,) of all images.
    """
    labels = labels.cpu()
    classes, counts = labels.unique(return_counts=True)
    size = max(int(counts.min()), LEAST_OF_A_CLASS)
    chosen = []
    for label in classes:
        positions = (labels == label).nonzero()[:, 0]
        shuffled = positions[torch.randperm(len(positions), generator=generator)]
        chosen.append(shuffled.repeat(-(-size // len(shuffled)))[:size])
    return torch.cat(chosen)
