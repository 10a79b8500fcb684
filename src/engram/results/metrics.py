"""Measures of class-incremental learning, all from one accuracy matrix.

The matrix has a row for every task learnt: row i holds the accuracy, in percent, on the evaluation
images of tasks 0 to i after task i was learnt. Tasks may differ in size, so accuracy over all
classes seen weights each task by its images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "AccuracyMatrix",
    "accuracy_per_task",
    "accuracy_row",
    "average",
    "backward_transfer",
    "confusion",
    "forgetting",
    "new_as_old",
    "old_as_new",
    "psnr",
    "total_bytes",
]

AccuracyMatrix = Sequence[Sequence[float]]


def accuracy_row(predicted: Tensor, labels: Tensor, task_sizes: Sequence[int]) -> list[float]:
    """Accuracy in percent on each task seen, to four decimals.

    Args:
        predicted: (N,) labels, dense in order of arrival.
        labels: (N,) true ones.
        task_sizes: classes of each task seen.
    """
    ends = torch.tensor(task_sizes).cumsum(0)
    task = torch.bucketize(labels, ends, right=True)
    images = torch.bincount(task, minlength=len(task_sizes))
    correct = torch.bincount(task[predicted == labels], minlength=len(task_sizes))
    return [round(float(value), 4) for value in 100 * correct / images]


def accuracy_per_task(matrix: AccuracyMatrix, images: Sequence[int]) -> list[float]:
    """After each task, accuracy in percent over the images of all tasks seen so far.

    Args:
        images: evaluation images of each task.
    """
    return [
        sum(a * n for a, n in zip(row, images, strict=False)) / sum(images[: len(row)])
        for row in matrix
    ]


def average(accuracies: Sequence[float]) -> float | None:
    """The plain mean; None of nothing. Over all of `accuracy_per_task` it is the average
    incremental accuracy of Rebuffi et al. 2017; some papers leave the first task out."""
    return sum(accuracies) / len(accuracies) if accuracies else None


def forgetting(matrix: AccuracyMatrix) -> float | None:
    """Mean drop, over all tasks but the last, from a task's best accuracy to its final one.

    The best is over all rows before the last (Chaudhry et al. 2018, eq. 3). None with one task.
    """
    last = matrix[-1]
    drops = [
        max(row[task] for row in matrix[task:-1]) - last[task] for task in range(len(matrix) - 1)
    ]
    return average(drops)


def backward_transfer(matrix: AccuracyMatrix) -> float | None:
    """Mean change, over all tasks but the last, since a task was just learnt.

    Lopez-Paz and Ranzato 2017, eq. 3; negative where there is forgetting. None with one task.
    """
    last = matrix[-1]
    return average([last[task] - matrix[task][task] for task in range(len(matrix) - 1)])


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(classes, classes) counts; rows are true classes, columns predicted ones."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(
        classes, classes
    )


def old_as_new(predicted: Tensor, labels: Tensor, first_new: int) -> float | None:
    """Percent of the images of old classes that are mistaken for new ones, the bias towards what
    was learnt last; None where no class is old.

    Args:
        predicted: (N,) labels, dense in order of arrival.
        labels: (N,) true ones.
        first_new: the label of the newest task's first class.
    """
    return _share(predicted >= first_new, labels < first_new)


def new_as_old(predicted: Tensor, labels: Tensor, first_new: int) -> float | None:
    """Percent of the images of new classes that are mistaken for old ones; see `old_as_new`."""
    return _share(predicted < first_new, labels >= first_new) if first_new else None


def _share(chosen: Tensor, among: Tensor) -> float | None:
    return 100 * float(chosen[among].double().mean()) if among.any() else None


def psnr(pixels: Tensor, originals: Tensor) -> float | None:
    """Peak signal-to-noise ratio of uint8 images in dB, from the mean error of all; None of none
    and where every pixel is as it was.

    Args:
        pixels: (N, H, W, 3).
        originals: of the same shape.
    """
    if torch.equal(pixels, originals):
        return None
    error = (pixels.float() - originals.float()).square().mean()
    return float(10 * torch.log10(255**2 / error))


def total_bytes(memory_bytes: int, parameters: int) -> int:
    """Exemplars, and the parameters that classify in float32, so that methods that grow and methods
    that store can be compared (Zhou et al., MEMO, ICLR 2023)."""
    return memory_bytes + 4 * parameters
