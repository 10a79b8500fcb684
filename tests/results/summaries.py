"""Runs that were never trained: summaries, and folders written by the package's own writers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engram.config import as_mapping, from_mapping, load_preset
from engram.data.codecs import create_codec
from engram.data.images import ImageSet
from engram.files import save_tensors
from engram.memory import Budget, ExemplarMemory
from engram.methods import method_class
from engram.results import metrics
from engram.results.record import RunRecord, environment
from engram.runs import configured


def make_summary(
    accuracies: Sequence[float] = (90.0, 70.0),
    *,
    method: str = "icarl",
    preset: str = "demo",
    sizes: Sequence[int] | None = None,
    seed: int = 0,
    order: str | None = None,
    evaluate_on: str = "test",
    budget: str = "2000",
    **changed: Any,
) -> dict[str, Any]:
    """A summary in which every task has the same accuracy, given after each task."""
    sizes = list(sizes or [2] * len(accuracies))
    order = order or f"seed{seed}"
    matrix = [[accuracy] * index for index, accuracy in enumerate(accuracies, start=1)]
    kind = method_class(method).Config
    settings = as_mapping(from_mapping(kind, load_preset(method, preset).settings, preset))
    config = {
        "method": method,
        "stream": "toys/b0-inc2",
        "preset": preset,
        "seed": seed,
        "order": order,
        "evaluate_on": evaluate_on,
        "budget": budget,
        "codec": "raw",
        "input_mean": "dataset",
        "image_size": None,
        "device": "cpu",
        "precision": "fp32",
        "settings": settings | changed,
    }
    curve = {
        "accuracy_per_task": list(accuracies),
        "average_incremental_accuracy": metrics.average(accuracies),
        "average_without_first_task": metrics.average(accuracies[1:]),
        "last_accuracy": accuracies[-1],
        "forgetting": metrics.forgetting(matrix),
        "backward_transfer": metrics.backward_transfer(matrix),
        "accuracy_matrix": matrix,
        "old_as_new": [None, *[30.0] * (len(matrix) - 1)],
        "new_as_old": [None, *[5.0] * (len(matrix) - 1)],
    }
    return {
        **{key: config[key] for key in ("method", "stream", "preset", "seed", "order")},
        "class_order": list(range(sum(sizes))),
        "task_sizes": sizes,
        "evaluate_on": evaluate_on,
        "codec": "raw",
        "classifier": "nme",
        **curve,
        "accuracy_by_classifier": {"nme": curve, "network": curve},
        "memory_budget_bytes": 6_144_000,
        "memory_bytes": 0 if budget == "0" else 6_144_000,
        "exemplars": 2000,
        "parameters": [466_000 + 100 * index for index in range(len(sizes))],
        "model_bytes": 10**6,
        "seconds": {"total": 75.0, "train": 60.0, "memory": 10.0, "evaluate": 5.0},
        "updates": 100,
        "images_per_second": 1000.0,
        "config": config,
        "environment": environment(),
    }


CONFIG = configured("icarl", "digits/2,2,2", "demo")


def write_run(
    folder: Path,
    summary: dict[str, Any],
    names: Sequence[str] | None = None,
    *,
    image_size: tuple[int, int] | None = (8, 8),
) -> Path:
    """A finished run's folder; without a memory where `image_size` is None."""
    sizes = summary["task_sizes"]
    classes = sum(sizes)
    record = RunRecord(folder)
    confusion = torch.eye(classes, dtype=torch.int64) * 90
    confusion[:, 0] += 10
    seconds = {"train": 3.0, "memory": 1.0}
    with record.open(CONFIG):
        for index in range(len(sizes)):
            record.add_task(index, {"exemplars": 7 + index, "seconds": seconds})
        record.finish(summary, names or [f"toy {n}" for n in range(classes)], confusion.tolist())
    if image_size is not None:
        memory = ExemplarMemory(Budget("images a class", 12), create_codec("raw", image_size))
        noise = torch.randint(
            256, (classes * 12, *image_size, 3), generator=torch.Generator().manual_seed(0)
        )
        images = ImageSet(noise.to(torch.uint8), torch.arange(classes).repeat_interleave(12))
        memory.update(images)
        model = folder / f"model/task-{len(sizes) - 1:02d}"
        model.mkdir(parents=True)
        save_tensors(model / "memory.safetensors", *memory.state())
    return folder
