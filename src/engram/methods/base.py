"""What a method of class-incremental learning is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from engram import models
from engram.config import Schedule
from engram.data.augment import Augmentation
from engram.data.batches import (
    AugmentedImages,
    FeatureDraws,
    Loss,
    Recoding,
    Source,
    Step,
    resting_place,
)
from engram.data.images import Images, images_at_once
from engram.data.stream import Task
from engram.memory import Budget, ExemplarMemory
from engram.models.network import Network
from engram.models.normalise import Standardise, SubtractMean
from engram.seeding import generator

__all__ = ["Method", "Trainer"]

Part = TypeVar("Part")


class Trainer(Protocol):
    """What a method calls to train: see `engram.engine.fit.Trainer`."""

    def fit(
        self,
        stage: str,
        data: Source,
        loss: Loss,
        parameters: Iterable[tuple[str, nn.Parameter]],
        schedule: Schedule,
        after_step: Callable[[Step], None] = ...,
    ) -> None: ...

    def track(self, stage: str, parts: Sequence[Part]) -> Iterator[Part]: ...

    def generator(self, name: str) -> torch.Generator: ...


class Method(nn.Module, ABC):
    """A network that learns classes task by task, with a rule that decides among all it has seen.

    Args:
        config: the method's settings, of the class `Config`.
        image_size: height and width of the images.
        seed: of the initial weights.

    Attributes:
        Config: the dataclass of the settings; its defaults are the paper's.
        title: what the method is called in full, and where it was published.
        resting: prefixes of names in the state that training never changes, but for what it is
            given to train; its snapshots leave the rest out.
        normalise: pixels to the network's input; set by the method itself, when it is made.
        precision: of training. Where nothing is trained, methods compute in float32, but for those
            that say otherwise.
        seen: classes learnt so far.
        cache_bytes: the most of features that were kept at once while the last task was learnt.
        weights_sha256: of the file that pretrained weights came from; None where there is none.
        batch_size: images that go through the network at a time where nothing is trained.
    """

    Config: ClassVar[type[Any]]
    title: ClassVar[str]
    resting: ClassVar[tuple[str, ...]] = ()
    normalise: SubtractMean | Standardise

    def __init__(self, config: Any, image_size: tuple[int, int], seed: int) -> None:
        super().__init__()
        self.config = config
        self.precision: Literal["bf16", "fp32"] = "fp32"
        self.image_size = image_size
        self.seed = seed
        self.seen = 0
        self.cache_bytes = 0
        self.weights_sha256: str | None = None

    def create_network(self) -> Network:
        """The network that the settings' `backbone` names, with the initial weights of the seed.

        What makes its input (`normalise`) and where its weights came from are set with it.
        """
        self.normalise = models.normaliser(self.config.backbone, self.image_size)
        source = generator(self.seed, "network")
        network = models.create(self.config.backbone, source, self.image_size)
        self.weights_sha256 = network.weights_sha256
        return network

    @classmethod
    def without_weights(cls, settings: Any) -> Any:
        """The same settings, but weights are drawn and none are looked for."""
        return replace(settings, backbone=settings.backbone.partition(".")[0])

    @abstractmethod
    def grow(self, new: int) -> None:
        """Make room for `new` more classes. Depends on the seed and the classes seen, and on
        nothing learnt, so that loading can repeat it."""

    @abstractmethod
    def learn(self, task: Task, memory: ExemplarMemory, trainer: Trainer) -> None:
        """Learn one task from `task.train` and `memory`, and update the memory."""

    @abstractmethod
    def scores_by_classifier(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, H, W, 3) uint8 to (B, seen) scores of every decision rule that the method has."""

    @property
    @abstractmethod
    def classifier(self) -> str:
        """The decision rule that counts."""

    def scores(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, seen) scores; the highest names the class."""
        return self.scores_by_classifier(pixels)[self.classifier]

    def probabilities(self, scores: Tensor) -> Tensor:
        """(B, seen) scores to what is shown to people: not negative, with the sum 1."""
        return scores.softmax(dim=1)

    @property
    def parameter_count(self) -> int:
        """Parameters that classification needs; what only training needs is left out."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def batch_size(self) -> int:
        return images_at_once(self.normalise.size)

    @property
    def facts(self) -> dict[str, Any]:
        """What a result depends on beside the configuration, by name."""
        return {"weights_sha256": self.weights_sha256} if self.weights_sha256 else {}

    @property
    def measures(self) -> dict[str, float]:
        """What there is to tell of the task learnt last beside accuracy and cost, by name."""
        return {}

    def check(self, budget: Budget, classes: int = 0) -> None:
        """Refuse what the method cannot work with.

        Args:
            classes: of the first task; 0 where that is not known yet.

        Raises:
            UserError: with the way out.
        """

    @property
    def device(self) -> torch.device:
        return self.normalise.mean.device

    def training_precision(self) -> torch.autocast:
        """Where networks compute as they do in training."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def kept_features(
        self,
        function: Callable[[Tensor], Tensor],
        dim: int,
        source: Source,
        draws: int,
        trainer: Trainer,
    ) -> FeatureDraws:
        """Features of `draws` augmented versions of a source, in the precision of training and on
        the method's device. Their bytes are counted.

        Args:
            function: inputs to features (B, dim).
        """

        def reduced(x: Tensor) -> Tensor:
            with self.training_precision():
                return function(x)

        found = FeatureDraws.of(
            reduced, source, draws, trainer.generator, dim, self.device, self.batch_size
        )
        self.cache_bytes = max(self.cache_bytes, found.nbytes)
        return found

    def augmented(
        self,
        images: Images,
        augmentation: Augmentation,
        recoding: Recoding | None = None,
    ) -> AugmentedImages:
        """Training batches of `images`, normalised and augmented on the method's device; see
        `AugmentedImages`."""
        count = len(images) + (0 if recoding is None else len(recoding.images))
        there = resting_place(count, images.image_size, self.device)
        recoding = None if recoding is None else recoding.to(there)
        return AugmentedImages(images.to(there), self.normalise, augmentation, recoding)
