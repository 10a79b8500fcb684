"""LAE against the paper: what is trained when, what accumulates, who votes."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from conftest import tiny
from engram import bench
from engram.bench import Progress
from engram.config import Schedule, from_mapping, load_preset
from engram.data.batches import Step
from engram.data.stream import ClassStream, Task, create_stream
from engram.engine.fit import EpochReport
from engram.errors import UserError
from engram.memory import Budget
from engram.methods.lae import LAE, LAEConfig, flat
from engram.models.pretrained import load_backbone
from engram.models.vit import create_vit
from engram.seeding import generator
from engram.task_learner import TaskLearner

ALL_MERGES = ("ema", "ema-per-task", "mean", "ties", "ties:0.2", "dare", "magnitude", "max-abs")


def learner_of(
    on_epoch: Callable[[EpochReport], None] = lambda report: None, **knobs: Any
) -> TaskLearner:
    config = tiny("lae").settings
    schedule = replace(config.schedule, **knobs.pop("schedule", {}))
    return TaskLearner(
        "lae",
        replace(config, schedule=schedule, **knobs),
        image_size=(8, 8),
        budget=Budget.parse("0"),
        device="cpu",
        on_epoch=on_epoch,
    )


def method_of(learner: TaskLearner) -> LAE:
    assert isinstance(learner.method, LAE)
    return learner.method


def stream() -> ClassStream:
    return create_stream("digits/2,2,2", order="given")


def after(tasks: int, **knobs: Any) -> LAE:
    learner = learner_of(**knobs)
    for index in range(tasks):
        learner.learn(stream().task(index))
    return method_of(learner)


def images() -> Tensor:
    return stream().evaluation(range(6)).pixels[:20]


def test_the_defaults_are_the_paper_s() -> None:
    preset = from_mapping(LAEConfig, load_preset("lae", "paper").settings, "paper")
    own = replace(preset.pretrained, backbone=LAEConfig().pretrained.backbone)
    assert preset.merge[0] == "ema"
    assert replace(preset, pretrained=own, merge=("ema",)) == LAEConfig()
    assert LAEConfig().retention == pytest.approx(0.9999**1040, abs=2e-3)


def test_there_is_no_offline_module_before_the_second_task() -> None:
    lae = after(1)
    assert len(lae.offline) == 0
    scores = lae.scores_by_classifier(images())
    assert torch.equal(scores["online + offline ema"], scores["online"])
    assert len(after(2).offline) == 1


def test_the_offline_module_begins_as_a_copy_of_the_online_one() -> None:
    first, second = after(1), after(2, retention=1.0)
    assert torch.equal(second.offline[0], flat(first.online))
    assert not torch.equal(flat(second.online), flat(first.online))


@pytest.mark.parametrize("batch_size", [16, 64])
@pytest.mark.parametrize("frozen_share", [0.0, 0.5])
def test_the_average_retains_the_same_share_whatever_the_batch_size(
    batch_size: int, frozen_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[float, Tensor]] = []
    average = LAE.average

    def noted(lae: LAE, part: float) -> None:
        if lae.tasks > 1:
            steps.append((0.8**part, flat(lae.online)))
        average(lae, part)

    monkeypatch.setattr(LAE, "average", noted)
    schedule = {"epochs": 4, "updates": None, "batch_size": batch_size}
    knobs: dict[str, Any] = {"frozen_share": frozen_share, "schedule": schedule}
    expected = flat(after(1, retention=0.8, **knobs).online)
    offline = after(2, retention=0.8, **knobs).offline[0]
    assert math.prod(retained for retained, _ in steps) == pytest.approx(0.8)
    for retained, online in steps:
        expected = retained * expected + (1 - retained) * online
    assert torch.allclose(offline, expected, atol=1e-6)
    assert not torch.allclose(offline, steps[0][1], atol=1e-4)


def test_modules_stand_still_while_only_the_classifier_learns() -> None:
    seen: list[tuple[int, str, Tensor]] = []

    def note(report: EpochReport) -> None:
        seen.append((report.task, report.stage, flat(method_of(learner).online)))

    learner = learner_of(note, schedule={"epochs": 5, "updates": None})
    for index in range(2):
        learner.learn(stream().task(index))
    stages = [(task, stage) for task, stage, _ in seen]
    assert stages == [(0, "modules")] * 5 + [(1, "classifier")] * 3 + [(1, "modules")] * 2
    modules = [modules for *_, modules in seen]
    assert all(torch.equal(modules[4], still) for still in modules[5:8])
    assert not torch.equal(modules[7], modules[8])


def test_features_are_cached_once_a_version_and_their_bytes_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedule = {"epochs": 5, "updates": None, "drop_last": False}
    knobs: dict[str, Any] = {"schedule": schedule, "experts": ("online", "offline")}
    images = len(stream().task(1).train)
    assert after(1, **knobs).cache_bytes == 0
    assert after(2, **knobs).cache_bytes == 3 * images * 32 * 4
    passed: list[int] = []
    features = LAE.features

    def counted(lae: LAE, x: Tensor, modules: Any = None) -> Tensor:
        if lae.tasks > 1:
            passed.append(len(x))
        return features(lae, x, modules)

    monkeypatch.setattr(LAE, "features", counted)
    assert after(2, draws=2, **knobs).cache_bytes == 2 * images * 32 * 4
    assert sum(passed) == (2 + 2) * images, "twice for three epochs, and in two that train"


def test_old_classifiers_stay_as_they_are() -> None:
    first, second = after(1), after(2)
    for name, parameter in first.heads[0].named_parameters():
        assert torch.equal(second.heads[0].get_parameter(name), parameter)


def test_a_class_that_comes_alone_is_learnt_among_all() -> None:
    learner = learner_of(schedule={"updates": 40})
    digits = create_stream("digits/2,1", order="given")
    learner.learn(digits.task(0))
    before = flat(method_of(learner).online)
    learner.learn(digits.task(1))
    assert not torch.equal(flat(method_of(learner).online), before)
    found = learner.predict(digits.evaluation(range(2, 3)))["online"]
    assert (found == 2).float().mean() > 0.5


def test_the_loss_is_among_the_task_s_classes_old_and_new() -> None:
    lae = after(2)
    lae.grow(1)
    task = stream().task(1)
    train = task.train + create_stream("digits/5", order="given").task(0).train.of(4)[:9]
    mixed = Task(2, train, range(4, 5), range(5))
    lae.freeze_heads(mixed)
    assert [head.get_parameter("weight").requires_grad for head in lae.heads] == [False, True, True]
    x, y = torch.randn(6, 32), torch.tensor([2, 3, 4, 4, 3, 2])
    step = Step(epoch=0, epochs=1, batch=0, batches=1, done=0, updates=1, warmup=0)
    found = lae.loss(mixed, lambda features: features)(x, y, step)
    expected = F.cross_entropy(lae.logits(x)[:, 2:5], y - 2)
    assert torch.allclose(found["classification"], expected)


def test_the_backbone_never_changes() -> None:
    lae, fresh = after(3), LAE(tiny("lae").settings, (8, 8), seed=0)
    online = lae.online
    for name, tensor in lae.backbone.state_dict().items():
        if name not in online:
            assert torch.equal(tensor, fresh.backbone.state_dict()[name]), name
    plain = load_backbone(lae.config.pretrained, generator(0)).network
    frozen = [each for name, each in lae.backbone.named_parameters() if name not in online]
    assert sum(map(torch.numel, frozen)) == sum(map(torch.numel, plain.parameters()))


def test_online_learning_does_not_depend_on_how_it_accumulates() -> None:
    several, one = after(3, merge=ALL_MERGES), after(3, merge=("ema",))
    assert torch.equal(flat(several.online), flat(one.online))
    assert all(map(torch.equal, several.heads.parameters(), one.heads.parameters()))
    assert torch.equal(several.offline[0], one.offline[0])
    assert len({tuple(row.tolist()) for row in several.offline}) == len(ALL_MERGES)


def test_a_merge_zeroes_no_scale_and_no_bias() -> None:
    lae = after(3, merge=("ties:0.2", "dare", "magnitude", "max-abs"))
    for row in lae.offline:
        offline = lae.named(row)
        for name, parameter in lae.online.items():
            if name.endswith(("scale", "bias")):
                assert offline[name].all() or not parameter.any(), name


def test_ties_works_on_differences_to_the_start() -> None:
    two, three = after(2, merge=("ties",)), after(3, merge=("ties",))
    (merge,) = three.merges.values()
    accumulated = three.named(two.offline[0])
    expected = merge.merged(three.named(three.reference), accumulated, three.online, 2)
    assert torch.equal(three.offline[0], flat(expected))
    fresh = LAE(tiny("lae").settings, (8, 8), seed=0)
    assert torch.equal(three.reference, flat(fresh.online))


def test_a_vote_is_the_highest_probability_or_the_mean() -> None:
    highest, mean = after(2), after(2, vote="mean")
    x = highest.normalise(images())
    experts = highest.experts(x, list(highest.merges))
    assert list(experts) == ["online", "offline ema", "ridge"]
    assert all(torch.allclose(p.sum(1), torch.ones(len(x)), atol=1e-5) for p in experts.values())
    stacked = torch.stack(list(experts.values()))
    assert torch.equal(highest.scores(images()), stacked.amax(0))
    assert torch.equal(mean.scores(images()), stacked.mean(0))
    published = highest.scores_by_classifier(images())["online + offline ema"]
    assert torch.equal(published, stacked[:2].amax(0))


def test_to_classify_takes_no_more_than_the_merge_that_counts() -> None:
    lae = after(2, merge=("mean", "ties"))
    pixels = images()
    asked: list[list[str]] = []
    experts = lae.experts
    lae.experts = lambda x, merges: asked.append([*merges]) or experts(x, merges)  # type: ignore[method-assign]
    counting = lae.scores_by_classifier(pixels)[lae.classifier]
    assert torch.equal(lae.scores(pixels), counting)
    assert asked == [["mean", "ties"], ["mean"]]


def test_the_offline_expert_has_the_offline_module() -> None:
    lae = after(2, merge=("ties",))
    x = lae.normalise(images())
    expected = lae.experts(x, list(lae.merges))["offline ties"]
    other = copy.deepcopy(lae)
    for name, value in lae.named(lae.offline[0]).items():
        other.backbone.get_parameter(name).data.copy_(value)
    assert torch.equal(other.experts(x, list(other.merges))["online"], expected)
    assert not torch.equal(lae.experts(x, list(lae.merges))["online"], expected)


def test_the_ridge_expert_sees_the_modules_of_the_first_task() -> None:
    one, three = after(1), after(3)
    assert torch.equal(three.first, flat(one.online))
    learner = learner_of()
    whole = create_stream("digits/2,4", order="given")
    for task in whole:
        learner.learn(task)
    joint = method_of(learner).ridge
    assert joint is not None
    assert three.ridge is not None
    assert torch.allclose(three.ridge.gram, joint.gram, rtol=1e-4, atol=1e-2)


def test_parameters_count_every_set_of_modules_that_votes() -> None:
    modules = len(after(1).reference)
    online, both = after(2, experts=("online",)), after(2, experts=("online", "offline"))
    assert both.parameter_count == online.parameter_count + modules
    assert after(2, experts=("offline",)).parameter_count == online.parameter_count
    assert after(1, experts=("online", "offline")).parameter_count == (
        after(1, experts=("online",)).parameter_count
    )
    for tasks, more in ((1, 0), (2, modules)):
        third = after(tasks, experts=("online", "ridge"))
        assert third.ridge is not None
        alone = after(tasks, experts=("online",)).parameter_count
        assert third.parameter_count == alone + third.ridge.parameter_count + more


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"merge": ("tie",)}, 'Unknown merge "tie". Perhaps you meant "ties"'),
        ({"merge": ("tie:0.2",)}, 'Unknown merge "tie". Perhaps you meant "ties"'),
        ({"merge": ("ties:2",)}, "density must be above 0 and at most 1, not 2"),
        ({"merge": ("ties:half",)}, 'merge ties:half: "half" is not a density'),
        ({"merge": ("ties:",)}, 'merge ties:: "" is not a density'),
        ({"density": 7.0}, "density must be above 0 and at most 1, not 7"),
        ({"merge": ("ema:0.5",)}, "only ties, dare, magnitude have a density"),
        ({"merge": ("ema", "ema")}, "merge names one twice: ema, ema"),
        ({"merge": ()}, "need one entry each at least"),
        ({"retention": 0.0, "merge": ("mean",)}, "retention must be above 0"),
        ({"frozen_share": 1.0}, r"frozen_share must be in \[0, 1\), not 1.0"),
        (
            {"schedule": Schedule(decay="steps", milestones=(2, 4), epochs=5)},
            "cuts the schedule in two, so the learning rate must not change",
        ),
        ({"ridge_temperature": 0.0}, "ridge_temperature must be above 0"),
    ],
)
def test_bad_settings_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LAEConfig(**knobs)


def test_a_result_names_what_it_stands_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: Progress
) -> None:
    monkeypatch.setenv("ENGRAM_DATA", str(tmp_path))
    name = "vit_micro_patch2_8.of_a_test"
    vit = create_vit(name)
    vit.draw(generator(7))
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / f"{name}.safetensors"
    save_file(vit.state_dict(), path)
    config = tiny("lae")
    pretrained = replace(config.settings.pretrained, backbone=name, weights=None)
    config = replace(config, settings=replace(config.settings, pretrained=pretrained))
    _, summary = bench.run(config, tmp_path / "runs", silent)
    settings = summary["config"]["settings"]
    assert summary["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert settings["pretrained"]["backbone"] == name
    assert settings["pretrained"]["normalisation"] == config.settings.pretrained.normalisation
    assert settings["schedule"]["batch_size"] == 128
    assert settings["retention"] == 0.9
    adapter = (32 * 16 + 16) + (16 * 32 + 32) + 1
    assert summary["module_parameters"] == 4 * adapter, "in two places of two blocks"
