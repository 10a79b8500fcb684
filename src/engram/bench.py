"""Doing a run: one method on one stream with one seed, into one folder, from where it stopped."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engram.config import read_yaml
from engram.data.stream import ClassStream, create_stream, stream_checksum
from engram.engine.device import resolve_device
from engram.engine.fit import SNAPSHOT_EVERY, EpochReport
from engram.errors import UserError
from engram.memory import PROBED, Budget, ExemplarMemory
from engram.results.record import RunRecord, other_commit
from engram.results.summary import SHOWN_ORIGINALS, run_summary, task_results
from engram.runs import RunConfig, folder_name, recorded
from engram.task_learner import TaskLearner

__all__ = ["Execution", "Progress", "check", "restored", "run"]


class Progress:
    """Hears how a run goes on, and says nothing; `share` is the part of its work that is done."""

    def begin(self, name: str, tasks: int, share: float) -> None:
        """A run of so many tasks begins, or goes on with some of them learnt."""

    def finished(self, name: str, tasks: int, commit: str | None) -> None:
        """A run was finished before, by the code of another `commit` where that is told."""

    def epoch(self, report: EpochReport, share: float) -> None:
        """An epoch of a task's stage is over."""

    def task(self, index: int, results: Mapping[str, Any], share: float) -> None:
        """Task `index`, from 0, is learnt and evaluated, with what `tasks/NN.json` holds."""


def check(config: RunConfig, out: str | Path) -> None:
    """Find out, without writing anything, whether a run can begin or go on.

    Raises:
        UserError: something in the configuration does not exist or does not fit, or the folder
            belongs to another configuration.
    """
    if _record(config, out).finished(config) is None:
        stream = _stream(config)
        _check_fit(_learner(config, stream, Execution()), stream)


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How a run is carried out; an undamaged run has the same result, whatever it is.

    Attributes:
        snapshot_every: least seconds between two snapshots during training.
        batchwise: decode exemplars a batch at a time instead of once a task.
        strict: stop at a damaged exemplar instead of going on without it.
        keep_models: keep the learner as it was after every task, and not after the last alone.
    """

    snapshot_every: float = SNAPSHOT_EVERY
    batchwise: bool = False
    strict: bool = False
    keep_models: bool = False


def run(
    config: RunConfig,
    out: str | Path,
    progress: Progress | None = None,
    execution: Execution | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Do a run, or what is left of it, in its folder under `out`.

    Returns:
        The folder, and the summary as it stands in `summary.json`.

    Raises:
        OccupiedError: another process is at work in the folder.
        UserError: what `check` raises, and then nothing is written; or training diverges.
    """
    progress = progress or Progress()
    record = _record(config, out)
    if finished := record.finished(config):
        progress.finished(record.folder.name, len(finished["task_sizes"]), other_commit(finished))
        return record.folder, finished
    execution = execution or Execution()
    stream = _stream(config)

    def on_epoch(report: EpochReport) -> None:
        record.add_epoch(asdict(report))
        progress.epoch(report, work.share(report.task, (report.epoch + 1) / report.epochs))

    snapshots = record.folder / "snapshots"
    learner = _learner(config, stream, execution, snapshots, on_epoch)
    _check_fit(learner, stream)
    work = _Work.of(stream, learner.memory)
    with record.open(config):
        _restore_newest(learner, record, stream.class_names, execution)
        record.tasks(learner.tasks)  # what the summary will need
        progress.begin(record.folder.name, len(stream), work.share(learner.tasks, 0))
        for index in range(learner.tasks, len(stream)):
            task = stream.task(index)
            effort = learner.learn(task)
            originals = learner.memory.originals(task.train, SHOWN_ORIGINALS)
            results = task_results(learner, stream, task, effort, originals)
            record.add_task(index, results)
            record.add_originals(originals)
            _save_newest(learner, record, execution)
            progress.task(index, results, work.share(index + 1, 0))
        shutil.rmtree(snapshots, ignore_errors=True)
        tasks = record.tasks(len(stream))
        summary = run_summary(config, stream, learner, tasks, record.environment())
        record.finish(summary, stream.class_names, tasks[-1]["confusion"])
    return record.folder, summary


def restored(
    folder: str | Path, task: int | None = None, *, device: str = "auto"
) -> tuple[TaskLearner, ClassStream]:
    """The learner of a run as it was after a task, and the run's stream.

    Args:
        folder: of the run.
        task: from 0; the last one where None. Others are there only of a run that kept its models.
        device: where the learner computes.

    Raises:
        UserError: the folder has no such learner, or not one of these settings.
    """
    folder = Path(folder)
    saved = RunRecord(folder).learners()
    if not saved or (task is not None and task not in saved):
        raise UserError(
            f"{folder} has no learner after {'any task' if task is None else f'task {task}'}; "
            f"present: {', '.join(map(str, saved)) or 'none'}. A run keeps all with --keep-models."
        )
    config = recorded(read_yaml(folder / "config.yaml"), str(folder / "config.yaml"))
    config = replace(config, device=str(resolve_device(device)))
    stream = _stream(config)
    learner = _learner(config, stream, Execution())
    learner.restore(saved[max(saved) if task is None else task], class_names=stream.class_names)
    return learner, stream


def _record(config: RunConfig, out: str | Path) -> RunRecord:
    return RunRecord(Path(out) / folder_name(config), stream_checksum(config.stream))


def _stream(config: RunConfig) -> ClassStream:
    return create_stream(
        config.stream,
        order=config.order,
        evaluate_on=config.evaluate_on,
        image_size=config.image_size,
        images_per_class=config.images_per_class,
    )


def _learner(
    config: RunConfig,
    stream: ClassStream,
    execution: Execution,
    snapshots: Path | None = None,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
) -> TaskLearner:
    """The run's learner, which has learnt nothing yet."""
    return TaskLearner(
        config.method,
        config.settings,
        image_size=stream.image_size,
        budget=Budget.parse(config.budget),
        codec=config.codec,
        batchwise=execution.batchwise,
        infer_through_codec=config.infer_through_codec,
        seed=config.seed,
        mean_over=stream.train_pixels if config.input_mean == "dataset" else None,
        device=config.device,
        precision=config.precision,
        snapshots=snapshots,
        snapshot_every=execution.snapshot_every,
        on_epoch=on_epoch,
    )


def _check_fit(learner: TaskLearner, stream: ClassStream) -> None:
    """Refuse settings that are too small for a stream's first task, and a budget that cannot hold
    an exemplar of each of its classes.

    Raises:
        UserError: they are such.
    """
    learner.method.check(learner.memory.budget, stream.sizes[0])
    learner.memory.check(len(stream.class_names), stream.examples(PROBED))


def _restore_newest(
    learner: TaskLearner, record: RunRecord, class_names: Sequence[str], execution: Execution
) -> None:
    """Go on from the last task that was learnt, where there is one.

    Raises:
        UserError: it is damaged.
    """
    if saved := record.learners():
        newest = saved[max(saved)]
        try:
            learner.restore(newest, strict=execution.strict, class_names=class_names)
        except UserError as error:
            raise UserError(f"{error} To begin this run anew, remove {record.folder}.") from error
        if not execution.keep_models:
            _remove_all_but(newest)


def _save_newest(learner: TaskLearner, record: RunRecord, execution: Execution) -> None:
    """Save the learner after its last task, and then remove older ones if they are not kept."""
    newest = record.learner(learner.tasks - 1)
    learner.save(newest)
    if not execution.keep_models:
        _remove_all_but(newest)


def _remove_all_but(newest: Path) -> None:
    for path in newest.parent.glob("task-*"):
        if path != newest:
            shutil.rmtree(path)


@dataclass(frozen=True, slots=True)
class _Work:
    """How a run's work is spread over its tasks: by the images that each trains on."""

    images: tuple[int, ...]

    @classmethod
    def of(cls, stream: ClassStream, memory: ExemplarMemory) -> _Work:
        """New images, and as many old ones as the memory, empty yet, will hold."""
        new = stream.images_per_task()
        old = itertools.accumulate([0, *new[:-1]])
        classes = len(stream.class_names)
        room = classes * memory.room_each(classes, stream.examples(PROBED))
        kept = [int(min(seen, room)) for seen in old]
        return cls(tuple(a + b for a, b in zip(new, kept, strict=True)))

    def share(self, task: int, part: float) -> float:
        """The share of all work that is done with `task` tasks and `part` of the next."""
        done = sum(self.images[:task]) + (part * self.images[task] if part else 0)
        return done / sum(self.images)
