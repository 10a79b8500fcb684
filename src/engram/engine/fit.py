"""`Trainer.fit`: the only training loop of the package.

It knows no method, no memory and no stream: it draws batches from a source, asks for the named
parts of a loss, and steps. A fit continues from its last snapshot, bit for bit on one machine,
because every random number comes from (seed, task, stage, epoch).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engram import seeding
from engram.config import Schedule, as_mapping
from engram.data.batches import Loss, Source, Step
from engram.engine.device import move
from engram.engine.optimizer import create_optimizer, optimizer_state, restore_optimizer
from engram.errors import UserError
from engram.files import load_tensors, save_tensors

__all__ = [
    "SNAPSHOT_EVERY",
    "Effort",
    "EpochReport",
    "Plan",
    "Trainer",
    "learning_rate",
    "plan_of",
]

Part = TypeVar("Part")

SNAPSHOT_EVERY = 20.0
"""Seconds between two snapshots, where nothing else is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochReport:
    """What happened in an epoch.

    Attributes:
        losses: mean of every part of the loss over the epoch's batches.
        learning_rate: of the last batch.
        seconds: of this epoch.
    """

    task: int
    stage: str
    epoch: int
    epochs: int
    losses: dict[str, float]
    learning_rate: float
    images: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Effort:
    """What training took; adds up over interruptions."""

    seconds: float = 0.0
    updates: int = 0
    images: int = 0

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            self.seconds + other.seconds, self.updates + other.updates, self.images + other.images
        )


class Trainer:
    """Trains a method's parameters on sources of batches, in the fits of one task.

    Args:
        method: whose state is trained and saved.
        task: its number, from 0.
        seed: of everything random in training.
        device: where to compute.
        precision: bf16 runs the forward pass under autocast; weights stay float32.
        resting: prefixes of names in the method's state that no fit changes, unless it trains
            them; snapshots leave them out.
        folder: where snapshots go; None keeps none.
        made_with: plain values that training depends on beside seed, precision, schedule and number
            of samples; a snapshot that was made with others is refused.
        on_epoch: called with a report after every epoch.
        on_progress: called with the name of what is done and the share of it that is.
        snapshot_every: least seconds between two snapshots of a stage; its end is always saved.

    Attributes:
        effort: of the task so far, with what was spent before an interruption.
        restored_seconds: the part of `effort.seconds` that was spent before the interruption.
    """

    def __init__(
        self,
        method: nn.Module,
        *,
        task: int,
        seed: int,
        device: torch.device,
        precision: str = "fp32",
        resting: tuple[str, ...] = (),
        folder: Path | None = None,
        made_with: Mapping[str, Any] = MappingProxyType({}),
        on_epoch: Callable[[EpochReport], None] = lambda report: None,
        on_progress: Callable[[str, float], None] = lambda stage, share: None,
        snapshot_every: float = SNAPSHOT_EVERY,
    ) -> None:
        self.method = method
        self.task = task
        self.seed = seed
        self.device = device
        self.precision = precision
        self.resting = resting
        self.folder = folder
        self.made_with = dict(made_with)
        self.on_epoch = on_epoch
        self.on_progress = on_progress
        self.snapshot_every = snapshot_every
        self.effort = Effort()
        self.restored_seconds = 0.0
        self._stages: set[str] = set()

    def discard_other_tasks(self) -> None:
        """Remove the snapshots of all other tasks, which nothing goes on from any more."""
        paths = self.folder.glob("task[0-9]*-*.safetensors*") if self.folder else ()
        for path in paths:
            if not path.name.startswith(f"task{self.task:03d}-"):
                path.unlink()

    def generator(self, name: str) -> torch.Generator:
        """Randomness for what a method does between fits; the same again after a resume."""
        return seeding.generator(self.seed, "task", self.task, name)

    def track(self, stage: str, parts: Sequence[Part]) -> Iterator[Part]:
        """The parts of a pass without training, one by one; how many are done is reported."""
        for done, part in enumerate(parts, start=1):
            yield part
            self.on_progress(stage, done / len(parts))

    def fit(
        self,
        stage: str,
        data: Source,
        loss: Loss,
        parameters: Iterable[tuple[str, nn.Parameter]],
        schedule: Schedule,
        after_step: Callable[[Step], None] = lambda step: None,
    ) -> None:
        """Train `parameters` for the whole schedule, from the last snapshot where there is one.

        Args:
            stage: name of this fit, unique within a task.
            data: drawn anew every epoch.
            loss: the named parts of the loss of a batch; their sum is minimised.
            parameters: of the method, with their names, which tell what has no weight decay.
            after_step: called after every step of the optimiser, without gradients; what it
                changes belongs to the method, and is saved with it.

        Raises:
            UserError: there is one sample, and BatchNorm; the loss is no longer a finite number; or
                the snapshot is not of this fit.
            ValueError: this task has had a stage of that name, two parameters have one name, or one
                is not of the method, and would be lost in an interruption.
        """
        if stage in self._stages:
            raise ValueError(f'Two fits of a task are called "{stage}": give each its own name.')
        self._stages.add(stage)
        if len(data) == 1 and any(isinstance(each, _BatchNorm) for each in self.method.modules()):
            raise UserError(
                f"Task {self.task + 1} has one image, and this network trains on two at least. "
                "Give more images, or take a method with a pretrained network: ranpac or lae."
            )
        move(self.method, self.device)
        names = {parameter: name for name, parameter in parameters if parameter.requires_grad}
        if len(set(names.values())) < len(names):
            raise ValueError("Two parameters have one name: give named_parameters(prefix=...).")
        if strange := [names[each] for each in names.keys() - set(self.method.parameters())]:
            raise ValueError(
                f"{strange[0]} is trained and no part of the method: make its module an attribute."
            )
        run = _Stage(
            name=stage,
            schedule=schedule,
            plan=plan_of(schedule, len(data)),
            names=names,
            optimizer=create_optimizer(names, schedule),
            identity={
                "seed": self.seed,
                "precision": self.precision,
                "samples": len(data),
                "schedule": as_mapping(schedule),
                **self.made_with,
            },
        )
        done, spent = self._restore(run)
        self.effort += spent
        self.restored_seconds += spent.seconds
        saved_at = time.perf_counter()
        self.method.train()
        for epoch in range(done, run.plan.epochs):
            report = self._epoch(run, epoch, data, loss, after_step)
            used = Effort(report.seconds, run.plan.batches_in(epoch), report.images)
            self.effort += used
            spent += used
            self.on_epoch(report)
            self.on_progress(stage, (epoch + 1) / run.plan.epochs)
            last = epoch + 1 == run.plan.epochs
            if last or time.perf_counter() - saved_at >= self.snapshot_every:
                self._save(run, epoch + 1, spent)
                saved_at = time.perf_counter()
        self.method.eval()

    def _epoch(
        self,
        run: _Stage,
        epoch: int,
        data: Source,
        loss: Loss,
        after_step: Callable[[Step], None],
    ) -> EpochReport:
        started = time.perf_counter()
        rate, images, batches = 0.0, 0, run.plan.batches_in(epoch)
        sums: dict[str, Tensor] = {}
        for batch, (x, y) in enumerate(self._batches(run, epoch, data)):
            rate = learning_rate(run.schedule, run.plan, epoch, batch)
            for group in run.optimizer.param_groups:
                group["lr"] = rate
            step = run.plan.step(epoch, batch)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                parts = loss(x, y, step)
            run.optimizer.zero_grad()
            torch.stack(list(parts.values())).sum().backward()
            run.optimizer.step()
            with torch.no_grad():
                after_step(step)
            images += len(y)
            for name, part in parts.items():
                sums[name] = sums.get(name, 0) + part.detach()
        # One wait for the device, and not one for every batch.
        losses = {name: float(total) / batches for name, total in sums.items()}
        if not all(map(math.isfinite, losses.values())):
            raise UserError(
                f"The loss of stage {run.name} is no longer finite in epoch {epoch + 1} of task "
                f"{self.task + 1}. Choose a learning rate below {run.schedule.learning_rate:g}."
            )
        seconds = round(time.perf_counter() - started, 3)
        return EpochReport(
            task=self.task,
            stage=run.name,
            epoch=epoch,
            epochs=run.plan.epochs,
            losses=losses,
            learning_rate=rate,
            images=images,
            seconds=seconds,
        )

    def _batches(self, run: _Stage, epoch: int, data: Source) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, as many as the plan has."""
        generator = seeding.generator(self.seed, "task", self.task, run.name, "epoch", epoch)
        drawn = data.batches(run.schedule.batch_size, generator, epoch)
        return itertools.islice(drawn, run.plan.batches_in(epoch))

    def _path(self, run: _Stage) -> Path | None:
        return self.folder and self.folder / f"task{self.task:03d}-{run.name}.safetensors"

    def _save(self, run: _Stage, epochs: int, spent: Effort) -> None:
        if path := self._path(run):
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = {f"method:{name}": tensor for name, tensor in self._moving(run).items()}
            state = optimizer_state(run.optimizer, run.names)
            tensors |= {f"optimizer:{name}": tensor for name, tensor in state.items()}
            meta = {"of": run.identity, "epochs": epochs, "effort": asdict(spent)}
            save_tensors(path, tensors, meta)

    def _moving(self, run: _Stage) -> dict[str, Tensor]:
        """What a fit can change: the parameters that it trains, and all else that does not rest."""
        named = self.method.named_parameters()
        trained = {name for name, parameter in named if parameter in run.names}
        return {
            name: tensor
            for name, tensor in self.method.state_dict().items()
            if name in trained or not name.startswith(self.resting)
        }

    def _restore(self, run: _Stage) -> tuple[int, Effort]:
        """Take over the stage's snapshot; how many epochs are done, and what they took."""
        path = self._path(run)
        if path is None or not path.exists():
            return 0, Effort()
        try:
            tensors, meta = load_tensors(path)
        except UserError as error:
            raise UserError(f"{error} Remove it to train this stage anew.") from error
        # What a snapshot does not tell was not recorded yet when it was written.
        if {**run.identity, **meta["of"]} != run.identity:
            raise UserError(f"{path} is a snapshot of other training. Remove it to train anew.")
        saved = _part(tensors, "method:")
        self.method.load_state_dict({**self.method.state_dict(), **saved})
        restore_optimizer(run.optimizer, run.names, _part(tensors, "optimizer:"))
        return meta["epochs"], Effort(**meta["effort"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A schedule laid over data of a known size.

    Attributes:
        batches: in a full epoch.
        updates: in all.
        warmup: of these, the first in which the learning rate rises.
    """

    epochs: int
    batches: int
    updates: int
    warmup: int

    def batches_in(self, epoch: int) -> int:
        """Batches of an epoch; a fixed number of updates may end within the last one."""
        return min(self.batches, self.updates - epoch * self.batches)

    def step(self, epoch: int, batch: int) -> Step:
        """Where a batch stands."""
        return Step(
            epoch=epoch,
            epochs=self.epochs,
            batch=batch,
            batches=self.batches_in(epoch),
            done=epoch * self.batches + batch,
            updates=self.updates,
            warmup=self.warmup,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stage:
    """A fit under way.

    Attributes:
        names: of the parameters that are trained.
        identity: what a snapshot must have been written by to be taken over.
    """

    name: str
    schedule: Schedule
    plan: Plan
    names: dict[nn.Parameter, str]
    optimizer: torch.optim.Optimizer
    identity: dict[str, Any]


def plan_of(schedule: Schedule, samples: int) -> Plan:
    """How a schedule trains on that many samples.

    A last batch of one sample is left out where there are others: BatchNorm has nothing to
    normalise a single one by.
    """
    whole, rest = divmod(samples, schedule.batch_size)
    left_out = rest <= 1 or schedule.drop_last
    batches = whole if left_out and whole else whole + (rest > 0)
    updates = schedule.updates or schedule.length * batches
    epochs = math.ceil(updates / batches)
    if schedule.warmup_by == "epoch":
        warmup = min(updates, round(schedule.warmup * epochs) * batches)
    else:
        warmup = round(schedule.warmup * updates)
    return Plan(epochs=epochs, batches=batches, updates=updates, warmup=warmup)


def learning_rate(schedule: Schedule, plan: Plan, epoch: int, batch: int) -> float:
    """The learning rate of a batch."""
    progress = (epoch * plan.batches + batch + 1) / plan.updates
    if schedule.warmup_by == "epoch" and epoch * plan.batches < plan.warmup:
        # The last of its epochs may be cut short by the number of updates.
        return schedule.learning_rate * min(1.0, (epoch + 1) * plan.batches / plan.warmup)
    if schedule.warmup_by == "update" and progress < schedule.warmup:
        return schedule.learning_rate * progress / schedule.warmup
    match schedule.decay:
        case "constant":
            return schedule.learning_rate
        case "steps":
            shares = [m if m >= 1 else m * plan.epochs for m in schedule.milestones]
            epochs = [max(1, round(share)) for share in shares]
            passed = sum(epoch >= milestone for milestone in epochs)
            return schedule.learning_rate * schedule.factor**passed
        case "cosine":
            by_epoch = schedule.warmup_by == "epoch"
            rising = plan.warmup / plan.updates if by_epoch else schedule.warmup
            falling = (progress - rising) / (1 - rising)
            return schedule.learning_rate * (1 + math.cos(math.pi * falling)) / 2
