"""LAE: Learning, Accumulation, Ensemble (Gao et al., "A Unified Continual Learning Framework with
General Parameter-Efficient Tuning", ICCV 2023).

Modules beside a frozen transformer learn online; what they have learnt is accumulated offline; both
vote. How modules accumulate is a choice (the paper's moving average, a plain mean, TIES, ...), and
since online learning does not depend on it, one run yields several. A third expert is ours: ridge
regression in closed form, on the backbone as it is after the first task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.config import Schedule, check_fraction, check_not_negative, check_positive
from engram.data.augment import Augmentation
from engram.data.batches import FeatureDraws, Loss, Step
from engram.data.stream import Task
from engram.errors import UserError
from engram.memory import ExemplarMemory
from engram.methods.base import Trainer
from engram.methods.pretrained import PretrainedMethod
from engram.models.adapters import ModuleConfig, attach
from engram.models.heads import LinearHead, RidgeHead
from engram.models.merging import Merge, MergeSettings, create_merge
from engram.models.pretrained import BackboneConfig
from engram.seeding import generator

__all__ = ["LAE", "LAEConfig"]

Expert = Literal["online", "offline", "ridge"]

HEAD_DEVIATION = 1e-3
"""Standard deviation of a new classifier's weights, as in the authors' code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LAEConfig:
    """The settings of LAE; the defaults are the paper's for CIFAR-100, on a smaller backbone."""

    pretrained: BackboneConfig = field(default_factory=lambda: BackboneConfig(normalisation="none"))
    modules: ModuleConfig = field(default_factory=ModuleConfig)
    merge: tuple[str, ...] = ("ema",)
    """How the offline module takes in the online one: ema (after every step), ema-per-task, mean,
    ties, dare, magnitude or max-abs; ties:0.2 gives another density than `density`. Several are
    kept beside the same online module and all reported; the first one decides."""
    retention: float = 0.9
    """The share of itself that a moving average retains over a task, whatever the number of steps:
    0.9999 a step over the 1,040 steps that the paper has on CIFAR-100."""
    density: float = 0.5
    """The share of entries that ties, dare and magnitude keep."""
    strength: float = 1.0
    """Factor of what TIES merges."""
    experts: tuple[Expert, ...] = ("online", "offline")
    """Who votes: the online module, the offline one, and a ridge regression on features that do not
    change after the first task."""
    vote: Literal["max", "mean"] = "max"
    """How the probabilities of the experts are combined: by the highest of each class, or by the
    mean."""
    frozen_share: float = 0.6
    """Share of the schedule, at its beginning, in which only the new classifier learns, from the
    second task on: 3 of 5 epochs in the paper."""
    draws: int = 3
    """Augmented versions of the images whose features are extracted for that; it runs through the
    backbone once a version and not once an epoch."""
    projected: int = 2000
    """Random dimensions of the ridge regression; 0 leaves features as they are."""
    ridge_temperature: float = 0.02
    """Temperature of the softmax that makes probabilities of the ridge regression's scores. Half
    the maximum-likelihood temperature, to match the overconfidence of the other experts."""
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(padding=0.0, least_area=0.08)
    )
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            epochs=5,
            batch_size=24,
            optimizer="adam",
            learning_rate=0.0028125,
            weight_decay=0.0,
            decay="constant",
        )
    )

    def __post_init__(self) -> None:
        if not self.merge or not self.experts:
            raise UserError("merge and experts need one entry each at least.")
        for name in ("merge", "experts"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise UserError(f"{name} names one twice: {', '.join(getattr(self, name))}.")
        check_positive(self, "draws", "ridge_temperature", "strength")
        check_fraction(self, "frozen_share", below_one=True)
        check_not_negative(self, "projected")
        if self.frozen_share and (self.schedule.decay != "constant" or self.schedule.warmup):
            raise UserError(
                f"frozen_share {self.frozen_share} cuts the schedule in two, so the learning rate "
                "must not change: take decay constant and warmup 0, or frozen_share 0."
            )
        self.merges(seed=0)

    def merges(self, seed: int) -> dict[str, Merge]:
        """The merges by what they are called in `merge`.

        Raises:
            UserError: there is no such merge, or its density is not in (0, 1].
        """
        settings = MergeSettings(
            retention=self.retention, density=self.density, strength=self.strength, seed=seed
        )
        return {name: create_merge(name, settings) for name in self.merge}


class LAE(PretrainedMethod):
    """Modules that learn online beside a frozen transformer, and accumulations of them.

    Attributes:
        online: parameters of the modules, by their names in the backbone.
        heads: a classifier of each task, for all experts but the ridge regression. Those without
            classes of the task that is learnt are frozen.
        reference: the modules at the start, as one vector.
        first: the modules after the first task; the ridge regression's features are theirs.
        offline: (merges, parameters), accumulated modules; no rows before the second task.
        ridge: the third expert, where it is asked for.
    """

    Config = LAEConfig
    title = "LAE: Learning, Accumulation, Ensemble (Gao et al., ICCV 2023)"
    resting = ("backbone.", "reference", "first", "ridge.")
    config: LAEConfig

    def __init__(self, config: LAEConfig, image_size: tuple[int, int], seed: int) -> None:
        super().__init__(config, image_size, seed)
        attach(self.backbone, config.modules, generator(seed, "modules"))
        self.heads = nn.ModuleList()
        self.merges = config.merges(seed)
        self.tasks = 0
        start = flat(self.online)
        self.register_buffer("reference", start)
        self.register_buffer("first", start.clone())
        self.register_buffer("offline", start.new_zeros(0, len(start)))
        self.reference: Tensor
        self.first: Tensor
        self.offline: Tensor
        self.ridge: RidgeHead | None = None
        if "ridge" in config.experts:
            self.ridge = RidgeHead(self.dim, config.projected, generator(seed, "projection"))

    @property
    def online(self) -> dict[str, Tensor]:
        named = self.backbone.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def learn(self, task: Task, memory: ExemplarMemory, trainer: Trainer) -> None:
        """Section 3: learning and accumulation. The ensemble is in `scores_by_classifier`."""
        self.grow(len(task.new))
        if self.tasks == 2:
            self.offline.copy_(flat(self.online))
        self.learn_online(task, trainer)
        if self.tasks == 1:
            self.first.copy_(flat(self.online))
        else:
            self.accumulate()
        if self.ridge is not None:
            self.add_to(self.ridge, task.train, trainer, self.named(self.first))
            self.ridge.solve()
        memory.update(task.train)

    def learn_online(self, task: Task, trainer: Trainer) -> None:
        """Train the classifier, then the modules with it; moving averages go along."""
        self.freeze_heads(task)
        frozen, moving = self.config.schedule.split(
            self.config.frozen_share if self.tasks > 1 else 0.0
        )
        moving_share = moving.length / self.config.schedule.length
        if frozen is not None:
            trainer.fit(
                "classifier",
                self.feature_draws(task, frozen, trainer),
                self.loss(task, nn.Identity()),
                self.heads.named_parameters(prefix="heads"),
                frozen,
            )
            self.average(1 - moving_share)
        trainer.fit(
            "modules",
            self.augmented(task.train, self.config.augmentation),
            self.loss(task, self.features),
            self.named_parameters(),
            moving,
            after_step=lambda step: self.average(moving_share / step.updates),
        )

    def grow(self, new: int) -> None:
        if new:
            head = LinearHead(self.dim)
            head.grow(new, generator(self.seed, "head", self.seen), HEAD_DEVIATION)
            self.heads.append(head.to(self.device))
        if self.ridge is not None:
            self.ridge.grow(new)
        self.seen += new
        self.tasks += 1
        if self.tasks == 2:
            self.offline = self.reference.new_zeros(len(self.merges), len(self.reference))

    def freeze_heads(self, task: Task) -> None:
        """Let the classifiers learn that have classes of the task, and no others."""
        first = 0
        for head in self.heads:
            rows = range(first, first + len(head.get_parameter("weight")))
            head.requires_grad_(any(label in rows for label in task.classes))
            first = rows.stop

    def feature_draws(self, task: Task, schedule: Schedule, trainer: Trainer) -> FeatureDraws:
        """Features of several augmented versions of the images, while modules are frozen."""
        source = self.augmented(task.train, self.config.augmentation)
        draws = min(self.config.draws, schedule.epochs or self.config.draws)
        return self.kept_features(self.features, self.dim, source, draws, trainer)

    def loss(self, task: Task, features: Callable[[Tensor], Tensor]) -> Loss:
        """Cross-entropy among the task's classes alone (the paper's local loss).

        Of a single class that loss would be constant; then all classes seen are told apart.
        """
        among = task.classes if len(task.classes) > 1 else tuple(task.seen)
        classes = torch.tensor(among, device=self.device)

        def local(x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
            logits = self.logits(features(x))[:, classes].float()
            return {"classification": F.cross_entropy(logits, torch.searchsorted(classes, y))}

        return local

    def average(self, part: float) -> None:
        """Equation 3, for that part of a task, where an offline module averages as it goes; in the
        first task there is none.

        While modules are frozen, to average step by step is to average once.
        """
        if not len(self.offline):
            return
        for offline, merge in zip(self.offline, self.merges.values(), strict=True):
            if merge.retention is not None:
                offline.lerp_(flat(self.online), 1 - merge.retained(part))

    @torch.no_grad()
    def accumulate(self) -> None:
        """Merge the online module into the offline ones that do not average as they go."""
        reference, online = self.named(self.reference), self.online
        for offline, merge in zip(self.offline, self.merges.values(), strict=True):
            if merge.retention is None:
                accumulated = self.named(offline)
                offline.copy_(flat(merge.merged(reference, accumulated, online, self.tasks - 1)))

    def scores_by_classifier(self, pixels: Tensor) -> dict[str, Tensor]:
        """Probabilities of every expert, and votes: `online + offline ema` is the published one."""
        experts = self.experts(self.normalise(pixels), list(self.merges))
        votes = {
            " + ".join(names): self.vote([experts[name] for name in names])
            for merge in self.merges
            for names in self.voters(merge)
        }
        return experts | votes

    def scores(self, pixels: Tensor) -> Tensor:
        """The vote that counts, without the merges that are only compared with its own."""
        experts = self.experts(self.normalise(pixels), [self.deciding_merge])
        everybody, *_ = self.voters(self.deciding_merge)
        return self.vote([experts[name] for name in everybody])

    @property
    def classifier(self) -> str:
        everybody, *_ = self.voters(self.deciding_merge)
        return " + ".join(everybody)

    @property
    def deciding_merge(self) -> str:
        """The merge whose vote counts; the others are compared with it."""
        return self.config.merge[0]

    def voters(self, merge: str) -> list[list[str]]:
        """Who votes together: all experts; and all but the ridge regression."""
        names = {"online": "online", "offline": f"offline {merge}", "ridge": "ridge"}
        everybody = [names[expert] for expert in self.config.experts]
        others = [name for name in everybody if name != "ridge"]
        return [everybody, others] if others and others != everybody else [everybody]

    def experts(self, x: Tensor, merges: Sequence[str]) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised images to the probabilities (B, seen) that each expert gives; an
        offline one for each of `merges`."""

        @cache
        def online() -> Tensor:
            return self.logits(self.features(x)).softmax(dim=1)

        found: dict[str, Tensor] = {}
        if "online" in self.config.experts:
            found["online"] = online()
        if "offline" in self.config.experts:
            for merge in merges:
                found[f"offline {merge}"] = self.offline_expert(x, merge, online)
        if self.ridge is not None:
            scores = self.ridge(self.features(x, self.named(self.first)))
            found["ridge"] = (scores / self.config.ridge_temperature).softmax(dim=1)
        return found

    def offline_expert(self, x: Tensor, merge: str, online: Callable[[], Tensor]) -> Tensor:
        """Probabilities (B, seen) by what a merge has accumulated; by the online module before."""
        if not len(self.offline):
            return online()
        modules = self.named(self.offline[list(self.merges).index(merge)])
        return self.logits(self.features(x, modules)).softmax(dim=1)

    def logits(self, features: Tensor) -> Tensor:
        """(B, dim) features to (B, seen), of the classifiers of all tasks; in float32, in training
        as in use."""
        with torch.autocast(self.device.type, enabled=False):
            return torch.cat([head(features) for head in self.heads], dim=1)

    def vote(self, probabilities: Sequence[Tensor]) -> Tensor:
        """(B, seen), of several experts' probabilities."""
        stacked = torch.stack(list(probabilities))
        return stacked.amax(dim=0) if self.config.vote == "max" else stacked.mean(dim=0)

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores / scores.sum(dim=1, keepdim=True)

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector as parameters of the modules."""
        online = self.online
        parts = vector.split([parameter.numel() for parameter in online.values()])
        return {
            name: part.view_as(parameter)
            for (name, parameter), part in zip(online.items(), parts, strict=True)
        }

    @property
    def facts(self) -> dict[str, Any]:
        return super().facts | {"module_parameters": len(self.reference)}

    @property
    def measures(self) -> dict[str, float]:
        return {} if self.ridge is None else {"ridge weight": float(self.ridge.ridge)}

    @property
    def parameter_count(self) -> int:
        """Parameters of the backbone, of all modules that vote, and of the classifiers."""
        # After the first task the modules of the others are the online ones.
        same = {} if self.tasks > 1 else {"offline": "online", "ridge": "online"}
        voting = {same.get(expert, expert) for expert in self.config.experts}
        more = (len(voting) - 1) * len(self.reference)
        ridge = 0 if self.ridge is None else self.ridge.parameter_count
        return super().parameter_count + more + ridge


def flat(module: Mapping[str, Tensor]) -> Tensor:
    """Parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in module.values()])
