"""What every method promises, whatever it does inside."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import (
    IN_BFLOAT16,
    TAUGHT_LITTLE,
    VARIANTS,
    InterruptionError,
    StopAfter,
    StopAtTask,
    learner_of,
    same,
    saved_state,
    tiny,
)
from engram.bench import Execution, Progress, run
from engram.data.images import ImageSet
from engram.data.stream import ClassStream, Task, create_stream
from engram.errors import UserError
from engram.files import load_tensors, save_tensors
from engram.memory import DamagedExemplar
from engram.methods import METHODS
from engram.task_learner import TaskLearner

pytestmark = pytest.mark.filterwarnings("ignore:.*only the classifier learns")

METHODS_AND_VARIANTS = [*sorted(METHODS), *VARIANTS]
every_method = pytest.mark.parametrize("method", METHODS_AND_VARIANTS)
in_every_precision = pytest.mark.parametrize("method", [*METHODS_AND_VARIANTS, *IN_BFLOAT16])


def digits(steps: str) -> ClassStream:
    return create_stream(f"digits/{steps}", order="given")


def everything(learner: TaskLearner) -> dict[str, torch.Tensor]:
    return {**learner.method.state_dict(), **learner.memory.state()[0]}


@pytest.mark.parametrize("budget", ["10", "3/class", "2000B", "7kB"])
@every_method
def test_the_budget_is_never_exceeded(method: str, budget: str) -> None:
    if method == "joint":
        with pytest.raises(UserError, match="its budget is all"):
            learner_of(tiny(method), budget=budget)
        return
    learner = learner_of(tiny(method), budget=budget)
    for task in digits("4,1,3"):
        learner.learn(task)
        limit = learner.memory.budget_bytes()
        assert limit is not None
        assert 0 < learner.memory.nbytes <= limit
        assert learner.memory.most_bytes <= limit
        assert set(learner.memory.counts) == set(task.seen)


class Tripwire(ImageSet):
    """Training images that must not be touched once their task is over."""

    __slots__ = ("over",)

    def __getattribute__(self, name: str) -> Any:
        if name in ("pixels", "labels") and getattr(self, "over", False):
            raise AssertionError("the images of a task that is over were read")
        return super().__getattribute__(name)


def images_alive() -> Iterator[torch.Tensor]:
    """Every tensor of uint8 images in the process."""
    gc.collect()
    for found in gc.get_objects():
        if type(found) is torch.Tensor and found.dtype == torch.uint8 and found.dim() == 4:
            yield found


@every_method
def test_nothing_but_the_task_and_the_memory_is_read(method: str) -> None:
    learner = learner_of(tiny(method))
    stream = digits("3,2,2")
    before = sum(1 for _ in images_alive())
    for task in stream:
        train = Tripwire(task.train.pixels, task.train.labels)
        learner.learn(Task(task.index, train, task.new, task.seen))
        object.__setattr__(train, "over", True)
        del task
    del train
    assert sum(1 for _ in images_alive()) <= before, "a copy of the images was kept"


@every_method
def test_scores_cover_the_classes_seen_and_no_other(method: str) -> None:
    learner = learner_of(tiny(method))
    stream = digits("3,2,2")
    for task in stream:
        learner.learn(task)
        images = stream.evaluation(range(7))
        assert learner.scores(images).shape == (len(images), len(task.seen))
        assert all(int(p.max()) < len(task.seen) for p in learner.predict(images).values())


@in_every_precision
def test_a_saved_learner_gives_the_same_scores(method: str, tmp_path: Path) -> None:
    stream = digits("3,2")
    learner = learner_of(tiny(method))
    for task in stream:
        learner.learn(task)
    learner.save(tmp_path / "saved")
    loaded = learner_of(tiny(method))
    loaded.restore(tmp_path / "saved")
    images = stream.evaluation(range(5))
    assert torch.equal(loaded.scores(images), learner.scores(images))
    assert loaded.memory.counts == learner.memory.counts
    assert same(everything(loaded), everything(learner))


@in_every_precision
def test_an_interrupted_run_continues_bit_for_bit(
    method: str, tmp_path: Path, silent: Progress
) -> None:
    config = tiny(method, "digits/3,2", updates=8)
    whole, expected = run(config, tmp_path / "whole", silent)
    record = whole / "metrics.jsonl"
    epochs = len(record.read_text().splitlines()) if record.exists() else 0
    events = epochs + len(expected["task_sizes"])
    state = saved_state(whole)
    for stop in range(1, events + 1, 1 if method in METHODS else 4):
        out = tmp_path / str(stop)
        with pytest.raises(InterruptionError):
            run(config, out, StopAfter(stop), Execution(snapshot_every=0))
        folder, summary = run(config, out, silent, Execution(snapshot_every=0))
        first = first_difference(saved_state(folder), state)
        assert first is None, f"{first} differs after a stop at event {stop} of {events}"
        assert summary["accuracy_by_classifier"] == expected["accuracy_by_classifier"]
        assert summary["updates"] == expected["updates"]


def first_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> str | None:
    """The first name under which two states do not have the same bits."""
    for name in {**one, **other}:
        if not (name in one and name in other and torch.equal(one[name], other[name])):
            return name
    return None


@every_method
def test_exemplars_decoded_batch_by_batch_give_the_same_bits(
    method: str, tmp_path: Path, silent: Progress
) -> None:
    for codec in ("jpeg:60", "klt:16", "resize:6") if method in METHODS else ("resize:6",):
        config = replace(tiny(method), codec=codec)
        once, expected = run(config, tmp_path / "once", silent)
        again, found = run(config, tmp_path / "again", silent, Execution(batchwise=True))
        assert same(saved_state(once), saved_state(again)), codec
        assert found["accuracy_by_classifier"] == expected["accuracy_by_classifier"]


@every_method
def test_a_run_goes_on_without_a_damaged_exemplar_or_stops(
    method: str, tmp_path: Path, silent: Progress
) -> None:
    config = replace(tiny(method), codec="webp-lossless")
    config = config if method == "joint" else replace(config, budget="30")
    with pytest.raises(InterruptionError):
        run(config, tmp_path, StopAtTask())
    (path,) = tmp_path.glob("*/model/task-00/memory.safetensors")
    tensors, table = load_tensors(path)
    tensors["payloads.1"][3] ^= 1
    save_tensors(path, tensors, table)
    name = create_stream(config.stream, order=config.order).class_names[1]
    damaged = rf"Exemplar 1 of class {name} in .*task-00 is damaged"
    with pytest.raises(UserError, match=rf"{damaged}.* To begin this run anew, remove"):
        run(config, tmp_path, silent, Execution(strict=True))
    with pytest.warns(DamagedExemplar, match=damaged):
        _, summary = run(config, tmp_path, silent)
    assert summary["exemplars_lost"] == 1


@every_method
def test_images_may_be_classified_as_the_codec_gives_them_back(method: str) -> None:
    stream = digits("3")
    config = tiny(method)
    plain, through = (
        learner_of(config, codec="jpeg:10", infer_through_codec=option) for option in (False, True)
    )
    for learner in (plain, through):
        learner.learn(stream.task(0))
    images = stream.evaluation(range(3))
    recoded = plain.memory.recode(images)
    assert torch.equal(through.scores(images), plain.scores(recoded))
    assert torch.equal(
        through.scores(images).argmax(1), through.predict(images)[through.method.classifier]
    )
    assert not torch.equal(through.scores(images), plain.scores(images))


@every_method
def test_the_seed_decides(method: str) -> None:
    def learnt(seed: int) -> dict[str, torch.Tensor]:
        learner = learner_of(replace(tiny(method), seed=seed))
        for task in digits("2,2"):
            learner.learn(task)
        return everything(learner)

    first = learnt(0)
    assert same(first, learnt(0))
    assert not same(first, learnt(1))


@every_method
def test_global_random_state_does_not_matter(method: str) -> None:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(everything(learner_of(tiny(method))))
    assert same(*states)


TAUGHT_NOTHING = (
    "A task without new classes taught nothing, or next to nothing. Does the loss weigh by "
    "len(task.new)? Weigh by task.classes."
)


@every_method
def test_known_classes_are_learnt_further(method: str) -> None:
    """New images of old classes alone, and beside a new class; the memory keeps the best of all."""
    stream = digits("3,2,1")
    learner = learner_of(tiny(method))
    first, second, third = stream
    parts = [first.train[start::2] for start in (0, 1)]
    learner.learn(replace(first, train=parts[0]))
    learner.learn(second)
    more = replace(second, index=2, train=parts[1] + second.train[:9], new=range(5, 5))
    counts, images = learner.memory.counts, stream.evaluation(range(5))
    before = learner.scores(images)
    learner.learn(more)
    assert learner.memory.counts.keys() == counts.keys()
    limit = learner.memory.budget_bytes()
    assert limit is None or learner.memory.nbytes <= limit
    assert learner.scores(images).shape == (len(images), 5)
    assert not torch.equal(learner.scores(images), before), TAUGHT_NOTHING
    learner.learn(replace(third, index=3, train=third.train + parts[1][:20]))
    images = stream.evaluation(range(6))
    assert learner.scores(images).isfinite().all()
    assert learner.scores(images).shape == (len(images), 6)


@in_every_precision
def test_known_classes_are_learnt_in_a_new_appearance(method: str) -> None:
    """A task without new classes teaches something: here, two digits as negatives."""
    stream = digits("2")
    learner = learner_of(tiny(method, updates=30))
    first = stream.task(0)
    learner.learn(first)
    images = negatives(stream.evaluation(range(2)))
    before = lead(learner, images)
    learner.learn(replace(first, index=1, train=negatives(first.train), new=range(2, 2)))
    after = lead(learner, images)
    # Scores of a method have no scale of their own.
    assert after.mean() / after.std() > before.mean() / before.std(), TAUGHT_NOTHING
    if method not in TAUGHT_LITTLE:
        assert (after > 0).double().mean() > 0.6, TAUGHT_NOTHING


def negatives(images: ImageSet) -> ImageSet:
    return replace(images, pixels=255 - images.pixels)


def lead(learner: TaskLearner, images: ImageSet) -> torch.Tensor:
    """By how much the score (N,) of the right class is above that of the other one."""
    scores = learner.scores(images)
    return (scores[:, 1] - scores[:, 0]) * (2 * images.labels - 1)


@every_method
def test_a_learner_that_learnt_further_is_restored(method: str, tmp_path: Path) -> None:
    stream = digits("3,2")
    learner = learner_of(tiny(method))
    first, second = stream
    learner.learn(first)
    learner.learn(replace(first, index=1, new=range(3, 3)))
    learner.learn(replace(second, index=2))
    learner.save(tmp_path / "saved")
    loaded = learner_of(tiny(method))
    loaded.restore(tmp_path / "saved")
    assert loaded.task_sizes == [3, 0, 2]
    assert same(everything(loaded), everything(learner))


@every_method
def test_one_class_at_a_time(method: str) -> None:
    learner = learner_of(tiny(method))
    stream = digits("1,1,1")
    for task in stream:
        learner.learn(task)
    assert learner.scores(stream.evaluation(range(3))).isfinite().all()


@every_method
def test_a_class_of_a_single_image(method: str) -> None:
    learner = learner_of(tiny(method))
    stream = digits("2,2")
    for task in stream:
        first = (task.train.labels == task.new[0]).nonzero()[:1, 0]
        rest = (task.train.labels == task.new[1]).nonzero()[:5, 0]
        few = task.train[torch.cat([first, rest])]
        learner.learn(replace(task, train=few))
    assert learner.scores(stream.evaluation(range(4))).isfinite().all()
    assert all(count <= 5 for count in learner.memory.counts.values())


THREE_TASKS = "digits/2,2,2"


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Average incremental accuracy of finetune."""
    config = tiny("finetune", THREE_TASKS, 40)
    _, summary = run(config, tmp_path_factory.mktemp("floor"), Progress())
    return float(summary["average_incremental_accuracy"])


@every_method
def test_it_beats_finetune(method: str, tmp_path: Path, silent: Progress, floor: float) -> None:
    """Finetune itself beats nothing: it stands at its floor, the last task's share. And two
    thousand parameters are too few to promise anything."""
    assert floor < 65
    if method not in ("finetune", "der, bounded to one extractor", *TAUGHT_LITTLE):
        _, result = run(tiny(method, THREE_TASKS, 40), tmp_path, silent)
        assert result["average_incremental_accuracy"] > floor + 10
