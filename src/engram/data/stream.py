"""Class-incremental streams: a data set whose classes arrive in instalments.

A stream is named `<data set>/b<base classes>-inc<classes a task>`: `cifar100/b0-inc10` is ten
tasks of ten classes, `cifar100/b50-inc10` fifty classes first and then tens. A list names uneven
tasks: `cifar100/20,30,50`. A list may stop before the last class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from engram.data.benchmarks import data_checksum, load_dataset
from engram.data.images import Dataset, ImageSet
from engram.data.orders import class_order, order_label
from engram.errors import UserError, unknown
from engram.seeding import generator

__all__ = [
    "ClassStream",
    "EvaluatedOn",
    "Task",
    "create_stream",
    "increments",
    "stream_checksum",
]

EvaluatedOn = Literal["validation", "test"]

VALIDATION_IMAGES = 50
"""Training images a class that validation sets aside; at most a fifth of a class."""

CHUNK = 1000


@dataclass(frozen=True, eq=False, slots=True)
class Task:
    """One instalment: all that a method may see of it. Labels are dense, in order of arrival.

    Attributes:
        index: 0 for the first task.
        train: this task's training images.
        new: labels that arrive with this task; none where it only has more images of known ones.
        seen: labels of this and all earlier tasks.
    """

    index: int
    train: ImageSet
    new: range
    seen: range

    @property
    def classes(self) -> tuple[int, ...]:
        """Labels that the images have, ascending: `new`, and known ones that are learnt further."""
        return tuple(self.train.labels.unique().tolist())


class ClassStream:
    """A data set cut into tasks.

    Args:
        dataset: its labels are replaced by positions in `order`.
        order: original labels in order of arrival.
        sizes: classes of each task.
        evaluate_on: "validation" cuts images out of training and evaluates on those, so that
            settings can be chosen without a look at the test set.
        images_per_class: training images of a class that are used, the first ones; all where None.

    Attributes:
        class_names: in order of arrival.

    Raises:
        UserError: a class has no images to train or to evaluate on, there are more classes in the
            sizes than in the order, or `evaluate_on` is neither.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: tuple[int, ...],
        sizes: tuple[int, ...],
        evaluate_on: EvaluatedOn = "test",
        images_per_class: int | None = None,
    ) -> None:
        if evaluate_on not in get_args(EvaluatedOn):
            raise unknown("set of images to evaluate on", evaluate_on, get_args(EvaluatedOn))
        if len(order) < sum(sizes):
            raise UserError(
                f"Tasks of {', '.join(map(str, sizes))} classes want {sum(sizes)}, and the order "
                f"has {len(order)}."
            )
        self.order = order[: sum(sizes)]
        self.sizes = sizes
        self.class_names = tuple(dataset.class_names[label] for label in self.order)
        arrival = torch.full((len(dataset.class_names),), -1)
        arrival[list(self.order)] = torch.arange(len(self.order))
        if evaluate_on == "validation":
            aside = _set_aside(dataset.train.labels)
            self._train = _Part.of(dataset.train, ~aside, arrival)
            self._test = _Part.of(dataset.train, aside, arrival)
        else:
            self._train, self._test = (
                _Part.of(images, torch.ones(len(images), dtype=torch.bool), arrival)
                for images in (dataset.train, dataset.test)
            )
        if images_per_class is not None:
            self._train = self._train.first(images_per_class)
        for images, purpose in ((self._train, "train"), (self._test, "evaluate")):
            counts = torch.bincount(images.labels, minlength=len(self.order))
            if missing := [self.class_names[label] for label in (counts == 0).nonzero()]:
                raise UserError(
                    f"{dataset.name} has no images to {purpose} on of {', '.join(missing)}. "
                    "Add some, or leave these classes out."
                )

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Task]:
        return map(self.task, range(len(self)))

    def task(self, index: int) -> Task:
        first = sum(self.sizes[:index])
        new = range(first, first + self.sizes[index])
        train = self._train.within(new).images()
        return Task(index, train, new, range(new.stop))

    def examples(self, count: int) -> ImageSet:
        """At least `count` training images of the first task, or all, from all over it: for those
        who ask what its images are like, without a copy of them all."""
        first = self._train.within(range(self.sizes[0]))
        return first.every(max(1, len(first.labels) // count)).images()

    def evaluation(self, seen: Iterable[int]) -> ImageSet:
        """The images to evaluate on, of these classes."""
        return self._test.within(seen).images()

    @property
    def image_size(self) -> tuple[int, int]:
        return self._train.source.image_size

    def train_pixels(self) -> Iterator[Tensor]:
        """Every training image's pixels, of future classes too and some at a time: for constants
        that a recipe takes over the whole data set, and that a run records."""
        return self._train.chunks()

    def images_per_task(self) -> list[int]:
        """Training images that each task brings."""
        return self._per_task(self._train)

    def evaluation_images_per_task(self) -> list[int]:
        """Evaluation images of each task's new classes."""
        return self._per_task(self._test)

    def _per_task(self, images: _Part) -> list[int]:
        counts = torch.bincount(images.labels, minlength=len(self.order))
        return [int(part.sum()) for part in counts.split(list(self.sizes))]


@dataclass(frozen=True, eq=False, slots=True)
class _Part:
    """Images of a data set that belong to a stream; none is copied before it is asked for.

    Attributes:
        source: all images of the data set.
        positions: of those that belong.
        labels: of these, in order of arrival.
    """

    source: ImageSet
    positions: Tensor
    labels: Tensor

    @classmethod
    def of(cls, source: ImageSet, chosen: Tensor, arrival: Tensor) -> _Part:
        """Images (N,) `chosen`, if their class arrives: -1 marks one that does not."""
        labels = arrival[source.labels]
        positions = (chosen & (labels >= 0)).nonzero()[:, 0]
        return cls(source, positions, labels[positions])

    def images(self) -> ImageSet:
        """A copy of them."""
        return ImageSet(self.source.pixels[self.positions], self.labels)

    def within(self, classes: Iterable[int]) -> _Part:
        """Those of some classes."""
        chosen = torch.isin(self.labels, torch.tensor(list(classes), dtype=self.labels.dtype))
        return _Part(self.source, self.positions[chosen], self.labels[chosen])

    def every(self, step: int) -> _Part:
        """The first of every `step` images."""
        return _Part(self.source, self.positions[::step], self.labels[::step])

    def first(self, count: int) -> _Part:
        """The first `count` images of every class."""
        chosen = torch.zeros(len(self.labels), dtype=torch.bool)
        for label in self.labels.unique():
            chosen[(self.labels == label).nonzero()[:count, 0]] = True
        return _Part(self.source, self.positions[chosen], self.labels[chosen])

    def chunks(self) -> Iterator[Tensor]:
        """The pixels of all images, some at a time."""
        return (self.source.pixels[positions] for positions in self.positions.split(CHUNK))


def _set_aside(labels: Tensor) -> Tensor:
    """(N,) bool: which training images are for validation; the same in every run."""
    aside = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        positions = (labels == label).nonzero().squeeze(1)
        chosen = torch.randperm(len(positions), generator=generator(0, "validation", label))
        aside[positions[chosen[: min(VALIDATION_IMAGES, len(positions) // 5)]]] = True
    return aside


def increments(text: str, classes: int) -> tuple[int, ...]:
    """Classes of each task from `b<base>-inc<step>` or a list such as `20,30,50`.

    A last task takes what remains where the step does not divide.

    Raises:
        UserError: the text is neither, or asks for more classes than there are.
    """
    if match := re.fullmatch(r"b(\d+)-inc(\d+)", text):
        base, step = int(match[1]), int(match[2])
        if step > 0 and base + step <= classes:
            steps, rest = divmod(classes - base, step)
            sizes = [base, *[step] * steps, rest]
            return tuple(size for size in sizes if size)
        raise UserError(
            f"{text} does not fit {classes} classes: a task needs one class, and the first two "
            f"tasks may have {classes} together."
        )
    if re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        sizes = [int(size) for size in text.split(",")]
        if sum(sizes) <= classes:
            return tuple(sizes)
        raise UserError(f"{text} adds up to {sum(sizes)} classes; this data has {classes}.")
    raise UserError(
        f'"{text}" does not say how classes arrive. Give b<base classes>-inc<classes a task>, '
        "as in b0-inc10 or b50-inc5, or a list such as 20,30,50."
    )


def create_stream(
    name: str,
    *,
    order: str,
    evaluate_on: EvaluatedOn = "test",
    image_size: int | None = None,
    images_per_class: int | None = None,
) -> ClassStream:
    """The stream called `<data set>/<increments>`, as in `cifar100/b0-inc10`.

    The data set may be a folder: `flowers/b0-inc5`.

    Raises:
        UserError: a part of the name is unknown, or the data is missing or damaged.
    """
    dataset_name, separator, steps = name.rpartition("/")
    if not separator:
        raise UserError(
            f'"{name}" is not a stream. Give <data set>/<increments>, as in cifar100/b0-inc10.'
        )
    dataset = load_dataset(dataset_name, image_size)
    classes = len(dataset.class_names)
    arriving, sizes = class_order(order, classes), increments(steps, classes)
    if len(arriving) < sum(sizes):
        raise UserError(
            f"Class order {order_label(order)} has {len(arriving)} classes, and {steps} wants "
            f"{sum(sizes)}. Give the sizes of tasks that add up to no more, as in "
            f"{dataset_name}/{len(arriving)}."
        )
    return ClassStream(dataset, arriving, sizes, evaluate_on, images_per_class)


def stream_checksum(name: str) -> str | None:
    """What tells the images of a stream from those that it may have later; see `data_checksum`."""
    return data_checksum(name.rpartition("/")[0])
