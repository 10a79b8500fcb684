"""`TaskLearner`: a method with its memory and what it has learnt; saved to a folder, loaded."""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engram.config import Precision, as_mapping, to_yaml
from engram.data.batches import apply
from engram.data.codecs import create_codec
from engram.data.images import ImageSet
from engram.data.stream import Task
from engram.engine.device import compute_exactly, move, resolve_device, resolve_precision
from engram.engine.fit import SNAPSHOT_EVERY, Effort, EpochReport, Trainer
from engram.errors import UserError
from engram.files import load_tensors, save_tensors, write_atomically
from engram.memory import Budget, ExemplarMemory
from engram.methods import checked_settings, method_class

__all__ = ["TaskEffort", "TaskLearner", "unheard"]

FORMAT = 3

CHUNK = 1000


def unheard(*report: Any) -> None:
    """Nobody wants to know. A function with a name, since learners are copied and pickled."""


@dataclass(frozen=True, slots=True)
class TaskEffort:
    """What learning a task took.

    Attributes:
        training: in the training loop.
        memory_seconds: outside it: choosing exemplars above all; of a method that trains nothing,
            its passes over the images.
    """

    training: Effort
    memory_seconds: float


class TaskLearner:
    """Learns classes task by task with one method, under one memory budget.

    Args:
        method: a method's name.
        config: its settings, of its class `Config`.
        image_size: height and width of the images.
        budget: of the exemplar memory.
        codec: how exemplars are stored: see `engram.data.codecs`.
        batchwise: decode exemplars a batch at a time instead of once a task.
        infer_through_codec: classify images as the codec would give them back.
        seed: of everything random.
        mean_over: gives the images whose mean is subtracted from every image, (N, H, W, 3) uint8
            in parts, when the first task is learnt; those of that task where None.
        device: `auto`, `cpu`, `cuda`, ...
        precision: of training, and of pretrained networks; everything else is float32.
        snapshots: folder for snapshots during training, so that a new learner can go on after an
            interruption; None keeps none.
        snapshot_every: least seconds between two of them; a stage's end is always saved.
        on_epoch: called with a report after every epoch.
        on_progress: called with the name of what is done and the share of it that is.

    Attributes:
        method: what learns and classifies.
        memory: its exemplars.
        task_sizes: new classes of each task learnt.

    Raises:
        UserError: a name or value that does not exist or does not fit.
    """

    def __init__(
        self,
        method: str,
        config: Any,
        *,
        image_size: tuple[int, int],
        budget: Budget | str,
        codec: str = "raw",
        batchwise: bool = False,
        infer_through_codec: bool = False,
        seed: int = 0,
        mean_over: Callable[[], Iterable[Tensor]] | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        snapshots: str | Path | None = None,
        snapshot_every: float = SNAPSHOT_EVERY,
        on_epoch: Callable[[EpochReport], None] = unheard,
        on_progress: Callable[[str, float], None] = unheard,
    ) -> None:
        self.name = method
        self.seed = seed
        budget = Budget.parse(budget) if isinstance(budget, str) else budget
        self.memory = ExemplarMemory(budget, create_codec(codec, image_size), batchwise=batchwise)
        self.infer_through_codec = infer_through_codec
        self.task_sizes: list[int] = []
        self.on_epoch = on_epoch
        self.on_progress = on_progress
        place = resolve_device(device)
        compute_exactly(place)
        self.method = method_class(method)(checked_settings(method, config), image_size, seed)
        self.method.check(budget)
        self.method.eval().to(place)
        self.method.precision = resolve_precision(precision, place)
        self._mean_over = mean_over
        self._snapshots = None if snapshots is None else Path(snapshots)
        self._snapshot_every = snapshot_every
        self._broken = False

    @property
    def tasks(self) -> int:
        """Tasks learnt so far."""
        return len(self.task_sizes)

    def learn(self, task: Task) -> TaskEffort:
        """Learn the next task, from its last snapshot where there is one.

        Where that fails or is interrupted, this learner is in the middle of the task and of no more
        use. A new one, which takes over what was saved last, goes on from the snapshot.

        Raises:
            UserError: the task does not follow those learnt, training diverged, the budget cannot
                hold the classes, or learning has failed before.
        """
        started = time.perf_counter()
        self._check_whole()
        self._check(task)
        trainer = self._trainer(task)
        trainer.discard_other_tasks()
        self._broken = True
        if not self.task_sizes:
            own = task.train.pixels.split(CHUNK)
            self.method.normalise.fit(self._mean_over() if self._mean_over else own)
        self.method.cache_bytes = 0
        self.method.learn(task, self.memory, trainer)
        self.task_sizes.append(len(task.new))
        self._broken = False
        here = trainer.effort.seconds - trainer.restored_seconds
        return TaskEffort(trainer.effort, time.perf_counter() - started - here)

    def _trainer(self, task: Task) -> Trainer:
        """What trains the method on a task."""
        return Trainer(
            self.method,
            task=task.index,
            seed=self.seed,
            device=self.method.device,
            precision=self.method.precision,
            resting=self.method.resting,
            folder=self._snapshots,
            made_with=self._made_with(task) if self._snapshots else {},
            snapshot_every=self._snapshot_every,
            on_epoch=self.on_epoch,
            on_progress=self.on_progress,
        )

    def _made_with(self, task: Task) -> dict[str, Any]:
        """What tells a snapshot of this training from those of another; see `Trainer`."""
        return {
            "method": self.name,
            "settings": as_mapping(self.method.config),
            "budget": str(self.memory.budget),
            "codec": self.memory.codec.name,
            "images": _checksum(task.train),
        }

    def _check_whole(self) -> None:
        """Refuse to go on with what is in the middle of a task."""
        if self._broken:
            raise UserError(
                f"Learning task {self.tasks + 1} has failed or was interrupted, so this learner is "
                "half-way in it. Make a new one, and restore what was saved last."
            )

    def _check(self, task: Task) -> None:
        """Refuse a task that cannot be the next one, before anything is learnt of it."""
        if task.index != self.tasks:
            raise UserError(f"The next task has index {self.tasks}, and not {task.index}.")
        known = sum(self.task_sizes)
        seen = range(known + len(task.new))
        if (task.new, task.seen) != (seen[known:], seen):
            raise UserError(
                f"{known} classes are known, so the labels of {len(task.new)} new ones are "
                f"{seen[known:]} and those of all that are seen {seen}, and not {task.new} and "
                f"{task.seen}."
            )
        if strange := [label for label in task.classes if label not in seen]:
            raise UserError(f"The task has images of class {strange[0]}, which it does not name.")
        if lacking := [label for label in task.new if label not in task.classes]:
            raise UserError(f"The task has no images of class {lacking[0]}, which is new in it.")
        if task.train.image_size != self.method.image_size:
            raise UserError(
                f"The task has images of {task.train.image_size} pixels, and the learner is for "
                f"{self.method.image_size}."
            )

    @torch.no_grad()
    def predict(self, images: ImageSet) -> dict[str, Tensor]:
        """Predicted labels (N,) of every decision rule that the method has, in one pass.

        Args:
            images: N of the learner's image size.

        Raises:
            UserError: nothing has been learnt, learning has failed, or they are of another size.
        """
        parts: dict[str, list[Tensor]] = {}
        for pixels in self._as_seen(images).pixels.split(self.method.batch_size):
            scores = self.method.scores_by_classifier(pixels.to(self.method.device))
            for name, values in scores.items():
                parts.setdefault(name, []).append(values.argmax(dim=1).cpu())
        return {name: torch.cat(labels) for name, labels in parts.items()}

    def scores(self, images: ImageSet) -> Tensor:
        """Scores (N, seen) of the decision rule that counts; see `predict`."""
        return apply(
            self.method.scores,
            self._as_seen(images),
            device=self.method.device,
            batch_size=self.method.batch_size,
        )

    def _as_seen(self, images: ImageSet) -> ImageSet:
        """Images as they are classified, if they can be."""
        self._check_whole()
        if not self.task_sizes:
            raise UserError("Nothing has been learnt yet: learn a task first.")
        if images.image_size != self.method.image_size:
            raise UserError(
                f"The images have {images.image_size} pixels, and the learner is for "
                f"{self.method.image_size}."
            )
        return self.memory.recode(images) if self.infer_through_codec else images

    def save(self, folder: str | Path) -> None:
        """Write everything learnt into a new folder, which appears whole or not at all.

        Raises:
            UserError: the folder exists, or learning has failed.
        """
        self._check_whole()
        folder = Path(folder)
        if folder.exists():
            raise UserError(f"{folder} exists. Choose another folder, or remove it.")
        unfinished = folder.with_name(folder.name + ".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        state = {
            "format": FORMAT,
            "method": self.name,
            "image_size": self.method.image_size,
            "seed": self.seed,
            "task_sizes": self.task_sizes,
        }
        save_tensors(unfinished / "weights.safetensors", self.method.state_dict(), {})
        save_tensors(unfinished / "memory.safetensors", *self.memory.state())
        write_atomically(unfinished / "learner.json", json.dumps(state, indent=2).encode())
        settings = to_yaml(as_mapping(self.method.config))
        write_atomically(unfinished / "config.yaml", settings.encode())
        unfinished.rename(folder)

    def restore(
        self, folder: str | Path, *, strict: bool = False, class_names: Sequence[str] = ()
    ) -> None:
        """Take over what `save` wrote, by a learner of the same method and settings; this one is to
        have learnt nothing.

        Args:
            strict: refuse a memory with a damaged exemplar, instead of leaving that one out.
            class_names: by which messages call classes, in order of arrival; see `ExemplarMemory`.

        Warns:
            DamagedExemplar: one is not what was written.

        Raises:
            UserError: the folder is incomplete or from another method, or this learner has learnt
                already.
        """
        folder = Path(folder)
        if self.task_sizes or self._broken:
            raise UserError("This learner has learnt already: make a new one to restore into.")
        try:
            state = json.loads((folder / "learner.json").read_text())
            task_sizes = state["task_sizes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} is not a saved learner ({error}).") from error
        expected = {
            "format": FORMAT,
            "method": self.name,
            "image_size": list(self.method.image_size),
            "seed": self.seed,
        }
        for key, value in expected.items():
            if state.get(key) != value:
                raise UserError(f"{folder} has {key} {state.get(key)}, this learner has {value}.")
        if class_names and len(class_names) < sum(task_sizes):
            raise UserError(
                f"{folder} has learnt {sum(task_sizes)} classes, and {len(class_names)} are named."
            )
        weights, _ = load_tensors(folder / "weights.safetensors")
        exemplars, table = load_tensors(folder / "memory.safetensors", intact=False)
        self._broken = True
        for size in task_sizes:
            self.method.grow(size)
        try:
            self.method.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"The weights in {folder} are of another network.") from error
        # As in training: weights would else be laid out anew in every forward pass.
        move(self.method.eval(), self.method.device)
        self.memory.load_state(
            exemplars, table, strict=strict, where=str(folder), class_names=class_names
        )
        self.task_sizes = task_sizes
        self._broken = False


def _checksum(images: ImageSet) -> int:
    """Of all labels, and of some images from all over: enough to tell one task from another."""
    some = images.pixels[:: max(1, len(images) // CHUNK)]
    return zlib.crc32(some.numpy().tobytes(), zlib.crc32(images.labels.numpy().tobytes()))
