"""Streams: increments, validation, and what a task holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from engram.data.benchmarks import load_dataset
from engram.data.images import Dataset, ImageSet
from engram.data.orders import ICARL_RUN0
from engram.data.stream import ClassStream, create_stream, increments
from engram.errors import UserError


def test_classes_that_an_order_leaves_out_do_not_arrive() -> None:
    stream = create_stream("digits/2,1", order="mine:7,3,5,1")
    assert stream.class_names == ("7", "3", "5")
    assert stream.images_per_task()[1] == (load_dataset("digits").train.labels == 5).sum()
    with pytest.raises(UserError, match="mine has 4 classes, and b0-inc2 wants 10"):
        create_stream("digits/b0-inc2", order="mine:7,3,5,1")


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("b0-inc10", (10,) * 10),
        ("b0-inc20", (20,) * 5),
        ("b0-inc5", (5,) * 20),
        ("b0-inc2", (2,) * 50),
        ("b50-inc10", (50, *[10] * 5)),
        ("b50-inc5", (50, *[5] * 10)),
        ("b0-inc30", (30, 30, 30, 10)),
        ("20,30,50", (20, 30, 50)),
        ("10", (10,)),
        ("b0-inc100", (100,)),
    ],
)
def test_increments(text: str, sizes: tuple[int, ...]) -> None:
    assert increments(text, 100) == sizes


@pytest.mark.parametrize(
    "text", ["b0-inc0", "b100-inc10", "b0-inc101", "60,60", "0,10", "10,,10", "b50", "", "10-10"]
)
def test_wrong_increments_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        increments(text, 100)


@pytest.fixture
def dataset(random_images: Any) -> Dataset:
    names = tuple("abcde")
    return Dataset("letters", random_images(*[60] * 5), random_images(*[7] * 5, seed=1), names)


def test_images_to_evaluate_on_are_those_of_the_classes_that_are_named(dataset: Dataset) -> None:
    stream = ClassStream(dataset, (3, 0, 4, 1, 2), (2, 1, 2))
    assert stream.evaluation([0, 3]).labels.unique().tolist() == [0, 3]
    assert stream.evaluation(range(0, 5, 2)).labels.unique().tolist() == [0, 2, 4]
    assert len(stream.evaluation(range(0))) == 0
    with pytest.raises(UserError, match=r'"val"\. Known: test, validation'):
        ClassStream(dataset, (0, 1), (2,), "val")  # type: ignore[arg-type]


def test_labels_are_dense_in_order_of_arrival(dataset: Dataset) -> None:
    stream = ClassStream(dataset, (3, 0, 4, 1, 2), (2, 1, 2))
    assert stream.class_names == ("d", "a", "e", "b", "c")
    first, second, third = stream
    assert (first.new, second.new, third.new) == (range(2), range(2, 3), range(3, 5))
    assert [len(task.seen) for task in stream] == [2, 3, 5]
    assert torch.equal(first.train.of(0).pixels, dataset.train.of(3).pixels)
    assert torch.equal(second.train.of(2).pixels, dataset.train.of(4).pixels)
    assert set(third.train.labels.tolist()) == {3, 4}
    assert torch.equal(stream.evaluation(range(3)).of(2).pixels, dataset.test.of(4).pixels)
    assert set(stream.evaluation(range(3)).labels.tolist()) == {0, 1, 2}
    assert stream.images_per_task() == [120, 60, 120]
    assert stream.evaluation_images_per_task() == [14, 7, 14]


def test_examples_come_from_all_over_the_first_task(dataset: Dataset) -> None:
    stream = ClassStream(dataset, order=(2, 0, 3, 1), sizes=(2, 2))
    first = stream.task(0).train
    assert torch.equal(stream.examples(10**6).pixels, first.pixels)
    some = stream.examples(5)
    assert 5 <= len(some) < 10
    assert set(some.labels.tolist()) == {0, 1}
    assert torch.equal(some.pixels, first.pixels[:: len(first) // 5])


def test_a_stream_may_stop_early(dataset: Dataset) -> None:
    stream = ClassStream(dataset, (3, 0, 4, 1, 2), (1, 1))
    assert stream.class_names == ("d", "a")
    assert len(stream.evaluation(range(2))) == 14


def test_a_class_without_images_is_refused(random_images: Any) -> None:
    names = ("one", "two")
    lacks_test = Dataset("numbers", random_images(4, 4), random_images(3), names)
    with pytest.raises(UserError, match="no images to evaluate on of two"):
        ClassStream(lacks_test, (0, 1), (2,))
    lacks_train = Dataset("numbers", random_images(4), random_images(3, 3), names)
    with pytest.raises(UserError, match="no images to train on of two"):
        ClassStream(lacks_train, (0, 1), (2,))
    with pytest.raises(UserError, match="no images to evaluate on of one, two"):
        ClassStream(lacks_test, (0, 1), (2,), "validation")


def test_an_order_that_is_too_short_is_refused(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="Tasks of 2, 3 classes want 5, and the order has 4"):
        ClassStream(dataset, (0, 1, 2, 3), (2, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ("cat", "dog", "cat")}, "two classes of one name"),
        ({"class_names": ("cat", "dog")}, "has label 2; those of its 2 classes are 0 to 1"),
        ({"test": ImageSet.empty((5, 4))}, r"\(4, 4\) pixels, and test images of \(5, 4\)"),
    ],
)
def test_a_data_set_fits_together(random_images: Any, change: dict[str, Any], message: str) -> None:
    images = random_images(2, 2, 2)
    whole = Dataset("animals", images, images, ("cat", "dog", "cow"))
    with pytest.raises(ValueError, match=message):
        replace(whole, **change)


def test_validation_is_cut_out_of_training(dataset: Dataset) -> None:
    plain = ClassStream(dataset, (0, 1, 2, 3, 4), (5,))
    held_out = ClassStream(dataset, (0, 1, 2, 3, 4), (5,), "validation")
    train = held_out.task(0).train
    aside = held_out.evaluation(range(5))
    assert [len(aside.of(label)) for label in range(5)] == [12] * 5
    assert len(train) + len(aside) == len(plain.task(0).train)
    rows = {tuple(image.flatten().tolist()) for image in train.pixels}
    assert not any(tuple(image.flatten().tolist()) in rows for image in aside.pixels)
    other = ClassStream(dataset, (4, 3, 2, 1, 0), (5,), "validation").evaluation(range(5))
    assert torch.equal(other.of(4).pixels, aside.of(0).pixels)


def test_only_the_first_images_of_a_class_may_be_used() -> None:
    everything = create_stream("digits/3,2", order="seed0")
    few = create_stream("digits/3,2", order="seed0", images_per_class=7)
    for whole, part in zip(everything, few, strict=True):
        for label in whole.new:
            assert torch.equal(part.train.of(label).pixels, whole.train.of(label).pixels[:7])
    assert few.images_per_task() == [21, 14]
    assert len(few.evaluation(range(5))) == len(everything.evaluation(range(5)))


def test_digits_come_whole() -> None:
    stream = create_stream("digits/b0-inc2", order="seed0")
    assert len(stream) == 5
    assert sum(stream.images_per_task()) + sum(stream.evaluation_images_per_task()) == 1797
    assert stream.image_size == (8, 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits", "is not a stream"),
        ("digitz/b0-inc2", 'Perhaps you meant "digits"'),
        ("digits/b0inc2", "how classes arrive"),
    ],
)
def test_wrong_streams_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_stream(name, order="given")


def test_cifar100_as_published(cifar100: Dataset) -> None:
    assert len(cifar100.train) == 50_000
    assert len(cifar100.test) == 10_000
    assert torch.bincount(cifar100.train.labels).tolist() == [500] * 100
    assert (cifar100.class_names[0], cifar100.class_names[99]) == ("apple", "worm")
    stream = ClassStream(cifar100, ICARL_RUN0, increments("b50-inc10", 100), "validation")
    assert stream.images_per_task() == [22_500, *[4_500] * 5]
    assert stream.evaluation_images_per_task() == [2_500, *[500] * 5]
