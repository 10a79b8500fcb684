"""Streams: class orders, increments, validation, and what a task holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engram.data.benchmarks import load_dataset
from engram.data.images import Dataset
from engram.data.stream import (
    ICARL_RUN0,
    ClassStream,
    class_order,
    create_stream,
    increments,
    order_label,
    resolved_order,
)
from engram.errors import UserError

# The order of LUCIR, PyCIL and FACIL, which most papers mean by "seed 1993".
# fmt: off
SEED1993 = (
    68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89, 3, 92, 55, 9, 26, 80, 43, 38,
    58, 70, 77, 1, 85, 19, 17, 50, 28, 53, 13, 81, 45, 82, 6, 59, 83, 16, 15, 44,
    91, 41, 72, 60, 79, 52, 20, 10, 31, 54, 37, 95, 14, 71, 96, 98, 97, 2, 64, 66,
    42, 22, 35, 86, 24, 34, 87, 21, 99, 0, 88, 27, 18, 94, 11, 12, 47, 25, 30, 46,
    62, 69, 36, 61, 7, 63, 75, 5, 32, 4, 51, 48, 73, 93, 39, 67, 29, 49, 57, 33,
)
# fmt: on


def test_the_two_orders_called_1993_are_regenerated() -> None:
    assert class_order("seed1993", 100) == SEED1993
    state = np.random.RandomState(1993)
    images = np.arange(500)
    for _ in range(100):
        state.shuffle(images)
    classes = np.arange(100)
    state.shuffle(classes)
    assert tuple(classes.tolist()) == ICARL_RUN0


def test_orders_by_name() -> None:
    assert class_order("icarl_run0", 100) == ICARL_RUN0
    assert sorted(class_order("seed7", 20)) == list(range(20))
    assert class_order("seed7", 20) != class_order("seed8", 20)
    assert class_order("given", 3) == (0, 1, 2)


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("icarl_run0", 10, "100 classes"),
        ("icarl_run", 100, 'Perhaps you meant "icarl_run0"'),
        ("seed", 100, "seed<number>"),
        ("seed-3", 100, "Unknown class order"),
        ("mine:0,1,5", 5, "has a class 5; this data has 5 classes"),
        ("mine:0,1,0", 5, "has class 0 twice"),
        ("mine:0,x", 5, "Unknown class order"),
        ("no/such.txt", 5, "Unknown class order .* or a file"),
    ],
)
def test_wrong_orders_are_refused(name: str, classes: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_order(name, classes)


def test_an_order_is_read_from_a_file_and_recorded_with_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "my own.txt"
    path.write_text("\ufeff# of a paper\n3, 1\n\n4 0,  # two more\n", encoding="utf-8")
    order = resolved_order(str(path))
    assert order == "my own:3,1,4,0"
    assert resolved_order(order) == order
    assert class_order(order, 5) == (3, 1, 4, 0)
    assert order_label(order) == "my own"
    assert resolved_order("seed1993") == order_label("seed1993") == "seed1993"


@pytest.mark.parametrize("content", [b"", b"# nothing", b"1,2,-3", b"cat\ndog", b"1.5", b"\xff"])
def test_a_file_with_something_else_is_no_order(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "order.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"order\.txt (must hold labels|cannot be read)"):
        resolved_order(str(path))


def test_names_come_before_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("seed0", "given", "der_trial0", "seed1.txt"):
        (tmp_path / name).write_text("3, 1, 0")
    assert resolved_order("seed0") == "seed0"
    assert resolved_order("given") == "given"
    assert len(class_order(resolved_order("der_trial0"), 100)) == 100
    with pytest.raises(UserError, match=r"seed1\.txt is called as another class order is"):
        resolved_order("seed1.txt")


def test_a_list_in_place_of_a_file_is_refused() -> None:
    numbers = ",".join(map(str, range(100)))
    with pytest.raises(UserError, match=r"Class order 0,1,2.* cannot be read|Unknown class order"):
        class_order(resolved_order(numbers), 100)


def test_classes_that_an_order_leaves_out_do_not_arrive() -> None:
    stream = create_stream("digits/2,1", order="mine:7,3,5,1")
    assert stream.class_names == ("7", "3", "5")
    assert stream.images_per_task()[1] == (load_dataset("digits").train.labels == 5).sum()
    with pytest.raises(UserError, match="mine has 4 classes, and b0-inc2 wants 10"):
        create_stream("digits/b0-inc2", order="mine:7,3,5,1")


@pytest.mark.parametrize(
    "name", ["der_trial0", "lae_order2", "lae_order3", "podnet_order2", "podnet_order3"]
)
def test_orders_of_papers_have_every_class_once(name: str) -> None:
    order = resolved_order(name)
    assert order_label(order) == name
    assert sorted(class_order(order, 100)) == list(range(100))


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
