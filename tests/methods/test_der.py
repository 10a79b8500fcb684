"""DER against its formulas and the authors' recipe."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import tiny
from engram.config import from_mapping, load_preset
from engram.data.augment import Augmentation
from engram.data.batches import FeatureDraws, Step
from engram.data.images import ImageSet
from engram.data.stream import ClassStream, Task, create_stream
from engram.engine.fit import EpochReport, Trainer, learning_rate, plan_of
from engram.errors import UserError
from engram.memory import Budget
from engram.methods.der import DER, DERConfig, balanced
from engram.models.masks import weight_share, widths
from engram.runs import preset_settings
from engram.seeding import generator
from engram.task_learner import TaskLearner


def learner_of(settings: DERConfig, budget: str, **options: Any) -> TaskLearner:
    room = Budget.parse(budget)
    return TaskLearner("der", settings, image_size=(8, 8), budget=room, device="cpu", **options)


def learnt(tasks: int) -> tuple[TaskLearner, ClassStream]:
    config = tiny("der", updates=4)
    learner = learner_of(config.settings, "20")
    stream = create_stream("digits/2,2,2", order="given")
    for index in range(tasks):
        learner.learn(stream.task(index))
    return learner, stream


def method_of(learner: TaskLearner) -> DER:
    assert isinstance(learner.method, DER)
    return learner.method


def fresh(seen: int = 0, new: int = 2, **settings: Any) -> DER:
    """A method about to learn `new` classes after `seen` ones of one task."""
    der = DER(DERConfig(backbone="resnet8", **settings), (8, 8), seed=0)
    if seen:
        der.grow(seen)
        der.expand(seen)
        der.freeze(der.dense)
    der.grow(new)
    der.expand(new)
    return der.eval()


def task_of(new: range) -> Task:
    labels = torch.tensor(new)
    images = ImageSet(torch.zeros(len(labels), 8, 8, 3, dtype=torch.uint8), labels)
    return Task(1 if new.start else 0, images, new, range(new.stop))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, 8, 8, generator=generator(0)), torch.tensor([0, 1, 2, 3, 4, 4])


LATER = Step(epoch=5, epochs=10, batch=1, batches=4, done=21, updates=40, warmup=0)
WARM = Step(epoch=9, epochs=170, batch=49, batches=50, done=499, updates=8500, warmup=500)
"""The last of the ten epochs of warm-up."""


def test_old_extractors_are_untouched_to_the_bit() -> None:
    learner, stream = learnt(2)
    der = method_of(learner)
    before = {name: t.clone() for name, t in der.extractors.state_dict().items()}
    pixels = stream.evaluation(range(4)).pixels
    features = der.features(der.normalise(pixels))
    learner.learn(stream.task(2))
    after = der.extractors.state_dict()
    assert len(der.extractors) == 3
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    again = der.features(der.normalise(pixels))[:, :128]
    assert torch.allclose(again, features, atol=1e-6)


def test_every_task_adds_an_extractor_that_starts_from_the_last() -> None:
    learner, _ = learnt(1)
    der = method_of(learner)
    last = {name: t.clone() for name, t in der.dense.state_dict().items()}
    der.grow(2)
    der.expand(2)
    assert all(torch.equal(t, last[name]) for name, t in der.dense.state_dict().items())
    assert der.head.weight.shape == (4, 128)
    assert der.auxiliary.weight.shape == (3, 64)


def test_the_auxiliary_classifier_takes_all_old_classes_for_one(
    batch: tuple[Tensor, Tensor],
) -> None:
    x, y = batch
    der = fresh(seen=3, new=2, auxiliary_weight=0.5)
    parts = der.loss(task_of(range(3, 5)))(x, y, LATER)
    new = der.dense(x)
    logits = der.head(torch.cat([der.features(x), new], dim=1))
    assert torch.allclose(parts["classification"], F.cross_entropy(logits, y))
    among_new = torch.tensor([0, 0, 0, 1, 2, 2])
    expected = 0.5 * F.cross_entropy(der.auxiliary(new), among_new)
    assert torch.allclose(parts["auxiliary"], expected)


def test_the_first_task_has_no_auxiliary_loss(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    assert fresh(new=5).loss(task_of(range(5)))(x, y, LATER).keys() == {"classification"}


def test_the_classifiers_are_drawn_anew_when_the_warm_up_is_over() -> None:
    der = fresh(seen=2)
    drawn = der.head.weight.detach().clone()
    with torch.no_grad():
        der.head.weight.zero_()
        der.auxiliary.weight.zero_()
    for epoch, number in ((9, 48), (10, 0), (10, 49)):
        der.after_step(replace(WARM, epoch=epoch, batch=number, done=epoch * 50 + number))
        assert not der.head.weight.any()
    der.after_step(WARM)
    assert torch.equal(der.head.weight, drawn)
    assert der.auxiliary.weight.all()


@pytest.mark.parametrize("epochs", [20, 30, 40, 50, 170])
def test_they_are_drawn_anew_at_the_last_update_before_the_full_rate(epochs: int) -> None:
    der = fresh(seen=2)
    schedule = replace(der.config.schedule, epochs=epochs)
    plan = plan_of(schedule, 6900)
    for epoch in range(plan.epochs):
        with torch.no_grad():
            der.head.weight.zero_()
        for number in range(plan.batches_in(epoch)):
            der.after_step(plan.step(epoch, number))
        if der.head.weight.any():
            break
    assert learning_rate(schedule, plan, epoch, 0) == pytest.approx(0.1)
    assert learning_rate(schedule, plan, epoch - 1, 0) < 0.1


def test_heads_may_inherit_instead() -> None:
    der = fresh(seen=2, head_init="inherit")
    with torch.no_grad():
        der.head.weight.fill_(7.0)
    der.freeze(der.dense)
    der.grow(2)
    der.expand(2)
    assert (der.head.weight[:4, :128] == 7).all()
    assert (der.head.weight[4:].abs() < 1).all()
    der.after_step(WARM)
    assert (der.head.weight[:4, :128] == 7).all()


def test_the_second_stage_is_cross_entropy_at_temperature() -> None:
    der = fresh(seen=2)
    features, y = torch.randn(5, 128, generator=generator(1)), torch.tensor([0, 1, 2, 3, 3])
    parts = der.balanced_loss(features, y, LATER)
    assert torch.allclose(parts["classification"], F.cross_entropy(der.head(features) / 5, y))


@pytest.mark.parametrize(
    ("kept", "classes", "size"),
    [
        *[(200, 10, 4000), (100, 20, 3000), (66, 30, 2640), (50, 40, 2500), (40, 50, 2400)],
        *[(33, 60, 2310), (28, 70, 2240), (25, 80, 2250), (22, 90, 2200)],
    ],
)
def test_the_balanced_subset_has_the_authors_sizes(kept: int, classes: int, size: int) -> None:
    counts = torch.tensor([kept] * classes + [500] * 10)
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    chosen = balanced(labels, generator(0))
    assert len(chosen) == len(chosen.unique()) == size
    assert (labels[chosen].bincount() == kept).all()


def test_a_class_of_one_image_does_not_cut_the_others_to_one() -> None:
    labels = torch.tensor([0] + [1] * 50 + [2] * 12)
    chosen = balanced(labels, generator(0))
    assert labels[chosen].bincount().tolist() == [20, 20, 20]
    assert [len(chosen[labels[chosen] == label].unique()) for label in range(3)] == [1, 20, 12]


def test_the_balanced_subset_goes_through_the_codec_as_in_the_first_stage() -> None:
    pixels = torch.randint(256, (60, 8, 8, 3), generator=generator(0), dtype=torch.uint8)
    recipe = {"codec_augmentation": 1.0, "augmentation": Augmentation(padding=0, flip=False)}
    der = fresh(**recipe)
    memory = learner_of(der.config, "2000", codec="jpeg:10").memory
    memory.update(ImageSet(pixels[:20], torch.zeros(20).long()))
    new = ImageSet(pixels[20:], torch.ones(40).long())
    source = der.training_images(Task(1, new, range(1, 2), range(2)), memory)
    subset = source[balanced(source.images.labels, generator(1))]
    ((x, y),) = subset.batches(60, generator(2))
    coded = {tuple(image.flatten().tolist()) for image in der.normalise(memory.recode(new).pixels)}
    assert {tuple(image.flatten().tolist()) for image in x[y == 1]} <= coded


def test_learning_rates_are_the_authors_as_they_take_effect() -> None:
    given = load_preset("der", "paper").settings
    schedule = from_mapping(DERConfig, given, "paper").schedule
    plan = plan_of(schedule, 5000)
    rates = [learning_rate(schedule, plan, epoch, batch=0) for epoch in range(170)]
    assert rates[:10] == pytest.approx([0.01 * (epoch + 1) for epoch in range(10)])
    assert set(rates[9:110]) == {0.1}
    assert rates[110:130] == pytest.approx([0.01] * 20)
    assert rates[130:] == pytest.approx([0.001] * 40)
    shorter = replace(schedule, epochs=17)
    assert learning_rate(shorter, plan_of(shorter, 5000), 11, batch=0) == pytest.approx(0.01)


def test_an_epoch_reads_one_version_whole_and_versions_take_turns() -> None:
    features = torch.arange(6.0).reshape(2, 3, 1)
    draws = FeatureDraws(features, torch.tensor([[0, 1, 2], [2, 1, 0]]))
    for epoch in range(4):
        batches = list(draws.batches(2, generator(epoch), epoch))
        values = torch.cat([x for x, _ in batches])[:, 0]
        labels = torch.cat([y for _, y in batches])
        version = epoch % 2
        assert sorted(values.tolist()) == [3.0 * version, 3.0 * version + 1, 3.0 * version + 2]
        assert all(
            draws.labels[version, int(v) % 3] == y for v, y in zip(values, labels, strict=True)
        )
    assert len(draws) == 3


def test_the_second_stage_changes_nothing_but_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, stream = learnt_pruned(1)
    before: dict[str, Tensor] = {}
    renew_head = DER.renew_head

    def remember(der: DER) -> None:
        assert not any(parameter.requires_grad for parameter in der.extractors.parameters())
        before.update({name: tensor.clone() for name, tensor in der.state_dict().items()})
        renew_head(der)

    monkeypatch.setattr(DER, "renew_head", remember)
    learner.learn(stream.task(1))
    after = method_of(learner).state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight"}
    assert all(parameter.grad is None for parameter in method_of(learner).extractors.parameters())


def test_to_keep_everything_is_not_to_prune() -> None:
    whole, all_kept = (
        method_of(learnt_pruned(2, **knobs)[0]).state_dict()
        for knobs in ({"keep": None}, {"keep": 1.0})
    )
    assert all(torch.equal(all_kept[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("images", [501, 1000, 7])
def test_statistics_are_of_batches_of_one_size(
    images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last batch of one image would count as much as one of 500."""
    der = fresh(**PRUNED)
    sizes = []
    monkeypatch.setattr(
        "engram.methods.der.reestimate_norms",
        lambda network, kept, batches: sizes.extend(len(x) for x in batches),
    )
    pixels = torch.randint(256, (images, 8, 8, 3), generator=generator(0), dtype=torch.uint8)
    trainer = Trainer(der, task=0, seed=0, device=torch.device("cpu"))
    found = ImageSet(pixels, torch.zeros(images, dtype=torch.int64))
    assert der.masks is not None
    der.prune(der.masks, der.augmented(found, der.config.augmentation), trainer)
    assert sum(sizes) == images
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 500


def test_a_memory_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="with a budget of 0 it would forget all old ones"):
        fresh().check(Budget.parse("0"))


def test_no_classifier_has_a_bias() -> None:
    names = [
        name for name, _ in fresh(seen=2).named_parameters() if "head" in name or "aux" in name
    ]
    assert names == ["head.weight", "auxiliary.weight"]


def test_masks_that_would_not_become_binary_are_refused() -> None:
    with pytest.raises(UserError, match="mask_steepness must be above 1, not 1"):
        DERConfig(mask_steepness=1.0)


@pytest.mark.parametrize("name", ["temperature", "draws", "head_epochs", "least_channels"])
def test_values_that_make_no_sense_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be above 0"):
        DERConfig(**{name: 0})


PRUNED = {"keep": 0.5, "least_channels": 2}


def learnt_pruned(tasks: int, **knobs: Any) -> tuple[TaskLearner, ClassStream]:
    config = tiny("der", updates=30)
    settings = replace(config.settings, **(knobs or PRUNED))
    learner = learner_of(settings, "20")
    stream = create_stream("digits/2,2,2", order="given")
    for index in range(tasks):
        learner.learn(stream.task(index))
    return learner, stream


def convolution_weights(network: nn.Module) -> int:
    return sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d))


def test_masks_come_down_to_the_share_by_themselves() -> None:
    """Before anything is cut by force; without the controller nine tenths would be left."""
    settings = replace(preset_settings("der", "demo"), keep=0.25, head_epochs=1)
    learner = learner_of(settings, "100")
    learner.learn(create_stream("digits/2", order="given").task(0))
    measures = learner.method.measures
    assert measures["share left by masks"] == pytest.approx(0.25, rel=0.25)
    assert 0.18 < measures["share kept"] <= 0.25


def test_extractors_keep_no_more_than_their_share() -> None:
    learner, stream = learnt_pruned(2)
    der = method_of(learner)
    for extractor in der.extractors:
        share = convolution_weights(extractor) / convolution_weights(der.dense)
        assert 0.3 < share <= 0.5
    assert der.head.weight.shape == (4, der.dim)
    assert der.dim < 2 * der.dense.dim
    assert der.masks is None, "masks are of no use once the channels are gone"
    assert der.parameter_count == sum(
        p.numel() for p in [*der.extractors.parameters(), der.head.weight]
    )
    assert learner.scores(stream.evaluation(range(4))).shape[1] == 4


@pytest.mark.parametrize("multiple", [1, 4])
def test_channels_that_are_left_are_a_multiple(multiple: int) -> None:
    learner, _ = learnt_pruned(1, **PRUNED, round_channels=multiple)
    (extractor,) = method_of(learner).extractors
    channels = [m.weight.shape[0] for m in extractor.modules() if isinstance(m, nn.Conv2d)]
    assert all(count % 4 == 0 for count in channels) is (multiple == 4)


@pytest.mark.parametrize(
    ("steps", "budget", "keep"),
    [("2,2", "40", 0.077), ("4,2", "20/class", None)],
)
def test_the_paper_preset_on_a_shortened_schedule(
    steps: str, budget: str, keep: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of its epochs, with its warm-up, its new heads after that, and its milestones."""
    drawn: list[int] = []
    rates: list[float] = []
    draw = DER.draw_heads
    monkeypatch.setattr(DER, "draw_heads", lambda der: (drawn.append(der.seen), draw(der)))
    settings = preset_settings("der", "paper")
    short = replace(settings.schedule, epochs=17)
    settings = replace(settings, schedule=short, keep=keep, draws=1, head_epochs=2)

    def note(report: EpochReport) -> None:
        if (report.task, report.stage) == (1, "representation"):
            rates.append(report.learning_rate)

    learner = learner_of(settings, budget, on_epoch=note)
    stream = create_stream(f"digits/{steps}", order="given", images_per_class=5)
    for task in stream:
        learner.learn(task)
    der = method_of(learner)
    seen = [stream.sizes[0], sum(stream.sizes)]
    assert drawn == [seen[0]] * 2 + [seen[1]] * 2, "at first, and when the warm-up is over"
    assert rates == pytest.approx([0.1] * 11 + [0.01] * 2 + [0.001] * 4)
    whole = convolution_weights(der.dense)
    sizes = [convolution_weights(each) for each in der.extractors]
    assert len(sizes) == 2
    assert max(sizes) <= (keep or 1.0) * whole
    assert learner.scores(stream.evaluation(range(seen[1]))).isfinite().all()


def test_the_next_extractor_starts_from_the_dense_one_with_fresh_masks() -> None:
    learner, _ = learnt_pruned(1)
    der = method_of(learner)
    assert convolution_weights(der.dense) > convolution_weights(der.extractors[0])
    der.grow(2)
    der.expand(2)
    assert der.masks is not None
    assert all(bool((e == e[0]).all()) for e in der.masks.logits.values())
    assert der.head.weight.shape[1] == der.dim + der.dense.dim


def test_masks_and_their_controller_are_part_of_a_snapshot() -> None:
    der = fresh(**PRUNED)
    names = der.state_dict().keys()
    assert "control.log_weight" in names
    assert {f"masks.logits.{group}" for group in widths(der.dense)} <= names
    assert not any(name.startswith("masks") and name.endswith("weight") for name in names), (
        "masks must have no weight decay"
    )


def test_the_sparsity_loss_is_the_weighted_share(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    der = fresh(new=5, sparsity_weight=0.75)
    assert der.masks is not None
    parts = der.loss(task_of(range(5)))(x, y, LATER)
    share = weight_share(der.dense, der.masks(LATER.batch, LATER.batches))
    assert torch.allclose(parts["sparsity"], 0.75 * share)
    held = fresh(new=5, keep=0.5)
    assert held.masks is not None
    control = copy.deepcopy(held.control)
    assert control is not None
    weight = control(held.masks.left(held.prunable, held.allowance.floor), LATER.progress)
    parts = held.loss(task_of(range(5)))(x, y, LATER)
    assert torch.allclose(parts["sparsity"], weight * share)
    assert "sparsity" not in fresh(new=5).loss(task_of(range(5)))(x, y, LATER)


@pytest.mark.parametrize("limit", [60_000, 4_000])
def test_the_whole_network_stays_within_its_bound(limit: int) -> None:
    config = tiny("der", updates=4)
    settings = replace(config.settings, max_parameters=str(limit), least_channels=2)
    learner = learner_of(settings, "30")
    stream = create_stream("digits/1,1,1,1,1,1,1,1,1,1", order="given")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for task in stream:
            learner.learn(task)
            assert learner.method.parameter_count <= limit
    extractors = len(method_of(learner).extractors)
    assert (extractors == 10) if limit == 60_000 else (1 <= extractors < 10)
    assert sum("only the classifier learns" in str(w.message) for w in said) == 10 - extractors
    assert learner.scores(stream.evaluation(range(10))).shape[1] == 10


def learnt_within(limit: str) -> TaskLearner:
    """A learner that has learnt two classes with all the room that `limit` allows."""
    settings = replace(tiny("der", updates=4).settings, max_parameters=limit, least_channels=2)
    learner = learner_of(settings, "30")
    learner.learn(create_stream("digits/2,2", order="given").task(0))
    return learner


def test_what_learns_further_makes_room_for_itself() -> None:
    """The bound leaves no room for one extractor more, but the last one is learnt over again."""
    learner = learnt_within("1500")
    der = method_of(learner)
    (before,) = der.extractors
    assert not der.allowance.fits(der.allowance.smallest())
    learner.learn(Task(1, task_of(range(2)).train, range(2, 2), range(2)))
    (after,) = der.extractors
    assert after is not before
    assert der.parameter_count <= 1500


def test_what_learns_further_without_room_for_itself_keeps_its_extractor() -> None:
    """An extractor fitted when there were two classes; with ten none would, were it taken away."""
    der = method_of(learnt_within("1500"))
    (before,) = der.extractors
    der.grow(8)
    with pytest.warns(UserWarning, match="only the classifier learns"):
        assert not der.has_room(Task(1, task_of(range(2)).train, range(2, 2), range(2)))
    assert list(der.extractors) == [before]


def test_what_no_longer_fits_at_all_is_refused() -> None:
    der = fresh(max_parameters="4k", least_channels=2)
    der.freeze(der.dense)
    der.grow(50)
    with pytest.raises(UserError, match=r"With 52 classes the network has [\d,]+ parameters"):
        der.has_room(task_of(range(2, 52)))


def test_the_parameters_of_ten_whole_extractors() -> None:
    """61.43 M on average over ten tasks, BatchNorm included, and the classifiers beside."""
    der = DER(DERConfig(), (32, 32), seed=0)
    whole = sum(parameter.numel() for parameter in der.dense.parameters())
    assert whole == 11_168_832
    assert sum(whole * tasks for tasks in range(1, 11)) / 10 == pytest.approx(61.43e6, rel=1e-4)
    norms = [norm for norm in der.dense.modules() if isinstance(norm, nn.BatchNorm2d)]
    folded = whole - sum(norm.weight.numel() for norm in norms)
    for tasks in (1, 2):
        der.grow(10)
        der.expand(10)
        der.freeze(der.dense)
        classifier = 512 * tasks * 10 * tasks
        assert der.parameter_count == tasks * folded + classifier, "a BatchNorm leaves its bias"
        assert der.measures["extractors"] == tasks


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"keep": 0.0}, "keep must be above 0 and at most 1, not 0.0"),
        ({"keep": 1.5}, "keep must be above 0 and at most 1, not 1.5"),
        ({"keep": 0.5, "max_parameters": "6M"}, "Give keep or max_parameters"),
        ({"keep": 0.5, "sparsity_weight": 1.0}, "Give keep or sparsity_weight"),
        ({"sparsity_weight": -1.0}, "sparsity_weight must not be negative"),
        ({"max_parameters": "six million"}, "must be a number such as 6M or 500k"),
        ({"keep": 0.0001}, "keep 0.0001 is too little: with least_channels 4 and round_channels 1"),
        ({"max_parameters": "1k"}, "max_parameters 1k is too .* no classes yet need 10,136 at"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"sparsity_weight": float("nan")}, "sparsity_weight must not be negative"),
    ],
)
def test_sizes_that_cannot_be_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DER(DERConfig(backbone="resnet32", **knobs), (32, 32), seed=0).check(Budget.parse("2000"))


def test_a_transformer_has_no_channels_to_cut() -> None:
    config = DERConfig(backbone="vit_micro_patch4_16", keep=0.5)
    with pytest.raises(UserError, match="cut channels of a ResNet, which vit_micro"):
        DER(config, (8, 8), 0).check(Budget.parse("2000"))
