"""RanPAC: exact, whatever the order of classes and however they are cut into tasks."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import tiny
from engram.data.images import hashed_share
from engram.data.stream import ClassStream, create_stream
from engram.errors import UserError
from engram.memory import Budget
from engram.methods.pretrained import SET_ASIDE
from engram.methods.ranpac import RanPAC, RanPACConfig
from engram.models.pretrained import load_backbone
from engram.seeding import generator
from engram.task_learner import TaskLearner


def untaught(steps: str, order: str = "given", **knobs: Any) -> tuple[TaskLearner, ClassStream]:
    stream = create_stream(f"digits/{steps}", order=order)
    config = replace(tiny("ranpac").settings, **knobs)
    nothing = Budget.parse("0")
    return TaskLearner("ranpac", config, image_size=(8, 8), budget=nothing, device="cpu"), stream


def learnt(steps: str, order: str = "given", **knobs: Any) -> tuple[TaskLearner, ClassStream]:
    learner, stream = untaught(steps, order, **knobs)
    for task in stream:
        learner.learn(task)
    return learner, stream


def by_name(learner: TaskLearner, stream: ClassStream) -> Tensor:
    """Scores of ten images, classes in the order of their names."""
    _, given = learnt("10")
    columns = [stream.class_names.index(name) for name in given.class_names]
    return learner.scores(given.evaluation(range(10))[::37])[:, columns]


def method_of(learner: TaskLearner) -> RanPAC:
    assert isinstance(learner.method, RanPAC)
    return learner.method


@pytest.mark.parametrize("steps", ["2,2,2,2,2", "1,9", "5,4,1"])
@pytest.mark.parametrize("order", ["given", "seed3"])
@pytest.mark.parametrize("projected", [0, 200])
def test_neither_tasks_nor_the_order_of_classes_matter(
    steps: str, order: str, projected: int
) -> None:
    whole, cut = learnt("10", projected=projected), learnt(steps, order, projected=projected)
    ridges = [float(method_of(learner).head.ridge) for learner, *_ in (cut, whole)]
    assert ridges[0] == pytest.approx(ridges[1], rel=1e-9)
    expected, found = by_name(*whole), by_name(*cut)
    # Features differ in their last bits by the company of an image in its batch, and a weak ridge
    # amplifies that: by how much is the processor's. A class forgotten would be off by tenths.
    assert torch.allclose(found, expected, atol=2e-3)
    assert torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("order", ["given", "seed3"])
@pytest.mark.parametrize("projected", [0, 200])
def test_given_the_same_features_the_solution_is_the_same_to_float64(
    order: str, projected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RanPAC, "batch_size", 1)
    whole = method_of(learnt("10", projected=projected)[0]).head
    learner, stream = learnt("3,3,4", order, projected=projected)
    head, names = method_of(learner).head, stream.class_names
    classes = torch.tensor([names.index(name) for name in sorted(names)])
    assert torch.allclose(head.gram, whole.gram, rtol=1e-12)
    assert torch.allclose(head.targets[:, :, classes], whole.targets, rtol=1e-12)
    assert torch.equal(head.counts, whole.counts)
    # The weights are rounded to float32, and the sums' last bits count some million times.
    assert torch.allclose(head.weight[classes], whole.weight, atol=1e-5 * whole.weight.abs().max())


def test_the_backbone_never_changes() -> None:
    learner, _ = learnt("2,2", adapt=True)
    fresh = RanPAC(learner.method.config, (8, 8), seed=0)
    backbone = method_of(learner).backbone
    for name, parameter in backbone.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, fresh.backbone.get_parameter(name)), name
    plain = load_backbone(learner.method.config.pretrained, generator(0)).network
    frozen = [parameter for parameter in backbone.parameters() if not parameter.requires_grad]
    assert sum(map(torch.numel, frozen)) == sum(map(torch.numel, plain.parameters()))


def test_modules_are_trained_on_the_first_task_alone() -> None:
    learner, _ = learnt("2", adapt=True)
    before = copy.deepcopy(method_of(learner).backbone.state_dict())
    fresh = RanPAC(learner.method.config, (8, 8), seed=0).backbone.state_dict()
    assert any(not torch.equal(before[name], fresh[name]) for name in before)
    whole = create_stream("digits/2,3", order="given")
    learner.learn(whole.task(1))
    after = method_of(learner).backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert method_of(learner).adaptation is None


def test_a_single_class_adapts_nothing() -> None:
    learner, stream = untaught("1,2", adapt=True)
    assert [learner.learn(task).training.updates for task in stream] == [0, 0]


def test_without_adaptation_nothing_is_trained() -> None:
    learner, stream = untaught("2,2")
    assert [learner.learn(task).training.updates for task in stream] == [0, 0]
    assert not any(
        parameter.requires_grad for parameter in method_of(learner).backbone.parameters()
    )


def test_what_is_set_aside_is_a_property_of_the_image() -> None:
    _, stream = learnt("10")
    pixels = stream.task(0).train.pixels
    chosen = hashed_share(pixels, SET_ASIDE)
    assert chosen.float().mean() == pytest.approx(1 / SET_ASIDE, abs=0.05)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    assert torch.equal(hashed_share(pixels[order], SET_ASIDE), chosen[order])


def test_parameters_include_what_is_not_trained() -> None:
    learner, _ = learnt("2,2", projected=200)
    backbone = sum(parameter.numel() for parameter in method_of(learner).backbone.parameters())
    assert learner.method.parameter_count == backbone + 32 * 200 + 4 * 200


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="projected must not be negative, but is -1"):
        RanPACConfig(projected=-1)
