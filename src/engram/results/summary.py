"""What is recorded of a run: the results of each task, and the summary of all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from engram.config import as_mapping
from engram.data.images import ImageSet
from engram.data.stream import ClassStream, Task
from engram.engine.cost import latency, multiply_adds
from engram.results import metrics
from engram.runs import RunConfig
from engram.task_learner import TaskEffort, TaskLearner

__all__ = ["SHOWN_ORIGINALS", "run_summary", "task_results"]

SHOWN_ORIGINALS = 10
"""The best exemplars of a new class, by which its codec is judged, and whose originals are recorded
to be looked at beside them."""


def task_results(
    learner: TaskLearner, stream: ClassStream, task: Task, effort: TaskEffort, originals: ImageSet
) -> dict[str, Any]:
    """What there is to record after a task, whose best exemplars were made of `originals`."""
    started = time.perf_counter()
    images = stream.evaluation(task.seen)
    predicted = learner.predict(images)
    seconds = time.perf_counter() - started
    sizes = stream.sizes[: task.index + 1]
    rows = {
        name: metrics.accuracy_row(labels, images.labels, sizes)
        for name, labels in predicted.items()
    }
    mistaken = {
        name: {
            "old_as_new": _rounded(metrics.old_as_new(labels, images.labels, task.new.start)),
            "new_as_old": _rounded(metrics.new_as_old(labels, images.labels, task.new.start)),
        }
        for name, labels in predicted.items()
    }
    counts = metrics.confusion(predicted[learner.method.classifier], images.labels, len(task.seen))
    state = learner.method.state_dict()
    memory = learner.memory
    best = [memory.of(label, SHOWN_ORIGINALS) for label in memory.origins]
    exemplars = sum(best, originals[:0])
    one_image = images[:1].pixels.to(learner.method.device)
    return {
        "classes": len(task.seen),
        "classifier": learner.method.classifier,
        "accuracy": rows,
        "accuracy_seen": {
            name: metrics.accuracy_per_task([row], stream.evaluation_images_per_task())[0]
            for name, row in rows.items()
        },
        "mistaken": mistaken,
        "exemplars": len(memory),
        "exemplars_by_class": list(memory.counts.values()),
        "exemplar_bytes_by_class": list(memory.bytes_of_classes.values()),
        "exemplar_psnr": _rounded(metrics.psnr(exemplars.pixels, originals.pixels)),
        "shared_bytes": len(memory.codec.shared) if len(memory) else 0,
        "memory_bytes": memory.most_bytes,
        "memory_budget_bytes": memory.budget_bytes(),
        "feature_cache_bytes": learner.method.cache_bytes,
        "parameters": learner.method.parameter_count,
        "multiply_adds": multiply_adds(learner.method.scores, one_image),
        "latency_ms": round(1000 * latency(learner.method.scores, one_image), 3),
        "model_bytes": sum(t.numel() * t.element_size() for t in state.values()),
        "measures": learner.method.measures,
        "seconds": {
            "train": round(effort.training.seconds, 3),
            "memory": round(effort.memory_seconds, 3),
            "evaluate": round(seconds, 3),
        },
        "updates": effort.training.updates,
        "images": effort.training.images,
        "confusion": counts.tolist(),
    }


def run_summary(
    config: RunConfig,
    stream: ClassStream,
    learner: TaskLearner,
    tasks: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that is published of a run."""
    task_images = stream.evaluation_images_per_task()
    classifier = learner.method.classifier
    by_classifier = {name: _of_rule(name, tasks, task_images) for name in tasks[-1]["accuracy"]}
    seconds = {
        part: round(sum(task["seconds"][part] for task in tasks), 1)
        for part in ("train", "memory", "evaluate")
    }
    trained = sum(task["images"] for task in tasks)
    return {
        "method": config.method,
        "stream": config.stream,
        "preset": config.preset,
        "seed": config.seed,
        "order": config.order,
        "class_order": list(stream.order),
        "task_sizes": list(stream.sizes),
        "evaluate_on": config.evaluate_on,
        "codec": config.codec,
        "classifier": classifier,
        **by_classifier[classifier],
        "accuracy_by_classifier": by_classifier,
        "memory_budget_bytes": tasks[-1]["memory_budget_bytes"],
        "memory_bytes": tasks[-1]["memory_bytes"],
        "total_bytes": metrics.total_bytes(tasks[-1]["memory_bytes"], tasks[-1]["parameters"]),
        "exemplars": tasks[-1]["exemplars"],
        "exemplars_lost": learner.memory.lost,
        "exemplar_psnr": _mean_psnr(tasks),
        **{
            name: [task[name] for task in tasks]
            for name in ("parameters", "multiply_adds", "latency_ms", "measures")
        },
        "model_bytes": tasks[-1]["model_bytes"],
        "feature_cache_bytes": max(task["feature_cache_bytes"] for task in tasks),
        **learner.method.facts,
        "seconds": {"total": round(sum(seconds.values()), 1), **seconds},
        "updates": sum(task["updates"] for task in tasks),
        "images_per_second": round(trained / max(seconds["train"], 1e-9), 1),
        "config": as_mapping(config),
        "environment": dict(environment),
    }


def _mean_psnr(tasks: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean over the tasks, in dB; None where exemplars are as the images were."""
    values = [task["exemplar_psnr"] for task in tasks if task["exemplar_psnr"] is not None]
    return _rounded(metrics.average(values))


def _of_rule(
    name: str, tasks: Sequence[Mapping[str, Any]], task_images: Sequence[int]
) -> dict[str, Any]:
    """What there is to publish of a decision rule."""
    matrix = [task["accuracy"][name] for task in tasks]
    per_task = metrics.accuracy_per_task(matrix, task_images)
    return {
        "accuracy_per_task": [_rounded(accuracy) for accuracy in per_task],
        "average_incremental_accuracy": _rounded(metrics.average(per_task)),
        "average_without_first_task": _rounded(metrics.average(per_task[1:])),
        "last_accuracy": _rounded(per_task[-1]),
        "forgetting": _rounded(metrics.forgetting(matrix)),
        "backward_transfer": _rounded(metrics.backward_transfer(matrix)),
        "accuracy_matrix": matrix,
        **{
            # Tasks recorded by an older version may lack it.
            kind: [task.get("mistaken", {}).get(name, {}).get(kind) for task in tasks]
            for kind in ("old_as_new", "new_as_old")
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
