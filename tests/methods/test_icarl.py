"""iCaRL against its formulas."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import tiny
from engram.bench import Progress, run
from engram.data.augment import Augmentation
from engram.data.images import ImageSet
from engram.data.stream import Task, create_stream
from engram.errors import UserError
from engram.files import load_tensors
from engram.memory import Budget
from engram.methods.icarl import ICaRL, ICaRLConfig
from engram.models.network import Network, frozen
from engram.models.normalise import mean_image
from engram.seeding import generator
from engram.task_learner import TaskLearner


def method(seen: int = 0, **settings: Any) -> ICaRL:
    icarl = ICaRL(ICaRLConfig(backbone="resnet8", **settings), (8, 8), seed=0)
    if seen:
        icarl.grow(seen)
    return icarl.eval()


def learner_of(settings: ICaRLConfig, budget: str, **options: Any) -> TaskLearner:
    room = Budget.parse(budget)
    return TaskLearner("icarl", settings, image_size=(8, 8), budget=room, device="cpu", **options)


def blank_task(new: range, count: int) -> Task:
    """As many black images of every new class, `count` in all."""
    labels = torch.tensor(new).repeat(count // len(new))
    pixels = torch.zeros(len(labels), 8, 8, 3, dtype=torch.uint8)
    return Task(1 if new.start else 0, ImageSet(pixels, labels), new, range(new.stop))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, 8, 8, generator=generator(0)), torch.tensor([0, 1, 2, 3, 4, 4])


def test_the_first_loss_is_binary_cross_entropy_over_100_outputs(
    batch: tuple[Tensor, Tensor],
) -> None:
    x, y = batch
    icarl = method(seen=5)
    parts = icarl.loss(None, range(5), torch.ones(5))(x, y, None)
    logits = icarl.network(x)
    labels = F.one_hot(y, 5).float()
    expected = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum() / 600
    assert parts.keys() == {"classification"}
    assert torch.allclose(parts["classification"], expected)


def test_the_gradient_is_that_of_a_head_with_100_outputs(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    icarl = method(seen=5)
    wide = F.pad(icarl.network.head.weight.detach(), (0, 0, 0, 95)).requires_grad_()
    logits = F.linear(icarl.network.backbone(x), wide)
    labels = F.one_hot(y, 100).float()
    F.binary_cross_entropy_with_logits(logits, labels).backward()
    sum(icarl.loss(None, range(5), torch.ones(5))(x, y, None).values()).backward()
    assert icarl.network.head.weight.grad is not None
    assert wide.grad is not None
    assert torch.allclose(icarl.network.head.weight.grad, wide.grad[:5], atol=1e-7)


def test_old_columns_follow_the_teacher_for_every_image(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    icarl = method(seen=3)
    teacher = frozen(icarl.network)
    icarl.grow(2)
    parts = icarl.loss(teacher, (3, 4), torch.ones(5))(x, y, None)
    logits, past = icarl.network(x), teacher(x).sigmoid()
    targets = torch.cat([past, F.one_hot(y, 5)[:, 3:].float()], dim=1)
    whole = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / 600
    assert torch.allclose(parts["classification"] + parts["distillation"], whole)
    doubled = method(seen=3, distillation_weight=2.0)
    doubled.grow(2)
    again = doubled.loss(teacher, (3, 4), torch.ones(5))(x, y, None)
    assert torch.allclose(again["distillation"], 2 * parts["distillation"])


@pytest.mark.parametrize(
    ("settings", "images", "trust", "trust_in_exemplars"),
    [
        ({"exemplar_targets": "label"}, 10, 1.0, 0.0),
        ({"exemplar_targets": "mixed"}, 10, 1.0, 0.5),
        ({"distillation_fades": True}, 10, 0.6, 0.6),
        ({"distillation_fades": True, "exemplar_targets": "mixed"}, 10, 0.6, 0.3),
        ({"distillation_fades": True}, 4, 0.0, 0.0),
    ],
)
def test_old_columns_follow_the_teacher_as_far_as_it_is_trusted(
    batch: tuple[Tensor, Tensor],
    settings: dict[str, Any],
    images: int,
    trust: float,
    trust_in_exemplars: float,
) -> None:
    """Of old classes two exemplars each are kept, of new ones there are 5 images each, or 2."""
    x, y = batch
    icarl = method(seen=3, **settings)
    teacher = frozen(icarl.network)
    memory = learner_of(icarl.config, "6").memory
    memory.update(blank_task(range(3), 9).train)
    icarl.grow(2)
    trusts = icarl.trust(blank_task(range(3, 5), images), memory)
    assert trusts.tolist() == pytest.approx([trust_in_exemplars] * 3 + [trust] * 2)
    parts = icarl.loss(teacher, (3, 4), trusts)(x, y, None)
    labels, past = F.one_hot(y, 5).float(), teacher(x).sigmoid()
    trusted = torch.tensor([trust_in_exemplars if label < 3 else trust for label in y])[:, None]
    targets = torch.cat([trusted * past + (1 - trusted) * labels[:, :3], labels[:, 3:]], dim=1)
    whole = F.binary_cross_entropy_with_logits(icarl.network(x), targets, reduction="sum") / 600
    assert torch.allclose(sum(parts.values()), whole)


def test_classes_that_are_learnt_further_follow_their_labels(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    icarl = method(seen=5)
    teacher = frozen(icarl.network)
    parts = icarl.loss(teacher, (1, 4), torch.ones(5))(x, y, None)
    targets = teacher(x).sigmoid()
    targets[:, [1, 4]] = F.one_hot(y, 5).float()[:, [1, 4]]
    whole = F.binary_cross_entropy_with_logits(icarl.network(x), targets, reduction="sum") / 600
    assert torch.allclose(sum(parts.values()), whole)


def test_the_kept_share_is_exemplars_of_an_old_class_for_each_image_of_a_new_one() -> None:
    icarl = method(seen=2)
    memory = learner_of(icarl.config, "6").memory
    assert icarl.kept_share(blank_task(range(2), 16), memory) == 0
    memory.update(blank_task(range(2), 16).train)
    icarl.grow(2)
    assert icarl.kept_share(blank_task(range(2, 4), 16), memory) == 3 / 8
    assert icarl.kept_share(blank_task(range(2, 4), 2), memory) == 1


@pytest.mark.parametrize("fades", [False, True])
def test_the_loss_is_told_the_trust(fades: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[float]] = []
    loss = ICaRL.loss

    def noted(icarl: ICaRL, teacher: Any, classes: Any, trust: Tensor) -> Any:
        told.append(trust.tolist())
        return loss(icarl, teacher, classes, trust)

    monkeypatch.setattr(ICaRL, "loss", noted)
    settings = replace(tiny("icarl").settings, distillation_fades=fades)
    learner = learner_of(settings, "20")
    stream = create_stream("digits/2,2", order="given")
    for task in stream:
        learner.learn(task)
    kept_share = 10 / (len(stream.task(1).train) / 2)
    assert told == [[1, 1], pytest.approx([1 - kept_share * fades] * 4)]


def test_codec_augmentation_sends_new_images_through_the_codec_and_no_others() -> None:
    pixels = torch.randint(256, (60, 8, 8, 3), generator=generator(0), dtype=torch.uint8)
    settings = {"codec_augmentation": 0.5, "augmentation": Augmentation(padding=0, flip=False)}
    icarl = method(**settings)
    memory = learner_of(icarl.config, "2000", codec="jpeg:10").memory
    old = ImageSet(pixels[:20], torch.zeros(20, dtype=torch.int64))
    memory.update(old)
    new = ImageSet(pixels[20:], torch.ones(40, dtype=torch.int64))
    source = icarl.training_images(Task(1, new, range(1, 2), range(2)), memory)
    drawn = [source.batches(60, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    exemplars, plain, coded = (
        {tuple(image.flatten().tolist()) for image in icarl.normalise(images.pixels)}
        for images in (memory.images(), new, memory.recode(new))
    )
    for ((x, y),) in drawn:
        rows = [tuple(image.flatten().tolist()) for image in x]
        assert {row for row, label in zip(rows, y, strict=True) if label == 0} == exemplars
        counts = len(plain & set(rows)), len(coded & set(rows))
        assert sum(counts) == 40
        assert min(counts) > 8


def test_without_distillation_labels_count_for_all_classes(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    icarl = method(seen=3, distillation="none")
    teacher = frozen(icarl.network)
    icarl.grow(2)
    parts = icarl.loss(teacher, (3, 4), torch.ones(5))(x, y, None)
    labels = F.one_hot(y, 5).float()
    expected = F.binary_cross_entropy_with_logits(icarl.network(x), labels, reduction="sum") / 600
    assert torch.allclose(sum(parts.values()), expected)


def test_softmax_distillation_is_cross_entropy_at_temperature(
    batch: tuple[Tensor, Tensor],
) -> None:
    x, y = batch
    icarl = method(seen=3, distillation="softmax", temperature=2.0)
    teacher = frozen(icarl.network)
    icarl.grow(2)
    parts = icarl.loss(teacher, (3, 4), torch.ones(5))(x, y, None)
    logits = icarl.network(x)
    assert torch.allclose(parts["classification"], F.cross_entropy(logits, y))
    target = (teacher(x) / 2).softmax(1)
    expected = -(target * (logits[:, :3] / 2).log_softmax(1)).sum(1).mean() * 4
    assert torch.allclose(parts["distillation"], expected)


def test_the_teacher_does_not_change_while_the_network_learns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny("icarl")
    learner = learner_of(config.settings, "20")
    stream = create_stream("digits/3,2", order="given")
    learner.learn(stream.task(0))
    teachers: list[tuple[Network, dict[str, Tensor]]] = []

    def watched(network: Network) -> Network:
        teacher = frozen(network)
        teachers.append((teacher, copy.deepcopy(teacher.state_dict())))
        return teacher

    monkeypatch.setattr("engram.methods.icarl.frozen", watched)
    learner.learn(stream.task(1))
    ((teacher, before),) = teachers
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_nme_is_the_nearest_mean_of_exemplars_and_their_mirror_images() -> None:
    icarl = method(seen=3)
    drawn = generator(1)
    pixels = torch.randint(256, (9, 8, 8, 3), generator=drawn, dtype=torch.uint8)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])
    memory = learner_of(icarl.config, "all").memory
    memory.update(ImageSet(pixels, labels))
    icarl.means = icarl.class_means(memory)

    def feature(image: Tensor) -> Tensor:
        return F.normalize(icarl.network.backbone(icarl.normalise(image[None])))[0]

    for label in range(3):
        images = pixels[labels == label]
        both = [*images, *images.flip(2)]
        mean = torch.stack([feature(image) for image in both]).mean(0)
        assert torch.allclose(icarl.means[label], F.normalize(mean, dim=0), atol=1e-6)
    queries = torch.randint(256, (5, 8, 8, 3), generator=drawn, dtype=torch.uint8)
    scores = icarl.scores_by_classifier(queries)["nme"]
    for query, row in zip(queries, scores, strict=True):
        distances = (icarl.means - feature(query)).pow(2).sum(dim=1)
        assert torch.allclose(row, -distances, atol=1e-5)


def test_exemplars_are_ranked_and_averaged_in_float32_however_the_network_is_trained() -> None:
    icarl = method(seen=2)
    pixels = torch.randint(256, (6, 8, 8, 3), generator=generator(0), dtype=torch.uint8)
    images = ImageSet(pixels, torch.zeros(6, dtype=torch.int64))
    exact = icarl.embed(images)
    icarl.precision = "bf16"
    assert torch.equal(icarl.embed(images), exact)
    assert torch.allclose(exact.norm(dim=1), torch.ones(6))


def test_a_class_without_exemplars_is_never_the_nearest() -> None:
    icarl = method(seen=3)
    icarl.means[0] = F.normalize(torch.ones(64), dim=0)
    scores = icarl.scores_by_classifier(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))["nme"]
    assert scores[:, 1:].isneginf().all()


def test_no_memory_needs_the_network_as_classifier(silent: Progress, tmp_path: Any) -> None:
    with pytest.raises(UserError, match="--classifier network"):
        method().check(Budget.parse("0"))
    config = tiny("icarl", budget="0")
    config = replace(config, settings=replace(config.settings, classifier="network"))
    _, summary = run(config, tmp_path, silent)
    assert summary["exemplars"] == summary["memory_bytes"] == 0
    assert summary["accuracy_by_classifier"].keys() == {"network"}


@pytest.mark.parametrize("input_mean", ["dataset", "first-task"])
def test_what_is_subtracted_from_images(input_mean: str, silent: Progress, tmp_path: Path) -> None:
    """The mean of all training images, as in the paper, or of those that have been seen."""
    config = tiny("icarl", input_mean=input_mean)
    folder, _ = run(config, tmp_path, silent)
    (saved,) = folder.glob("model/task-*/weights.safetensors")
    mean = load_tensors(saved)[0]["normalise.mean"]
    stream = create_stream(config.stream, order=config.order)
    expected = {
        "dataset": mean_image(stream.train_pixels()),
        "first-task": mean_image([stream.task(0).train.pixels]),
    }
    same = {name for name, image in expected.items() if torch.equal(image, mean)}
    assert same == {input_mean}


@pytest.mark.parametrize("distillation", ["sigmoid", "softmax", "none"])
def test_every_distillation_learns(distillation: str, silent: Progress, tmp_path: Any) -> None:
    config = tiny("icarl", "digits/3,3", updates=40)
    schedule = config.settings.schedule
    if distillation == "softmax":
        schedule = replace(schedule, learning_rate=0.1)
    settings = replace(config.settings, distillation=distillation, schedule=schedule)
    _, summary = run(replace(config, settings=settings), tmp_path, silent)
    assert summary["last_accuracy"] > 70
    assert summary["accuracy_by_classifier"].keys() == {"network", "nme"}
