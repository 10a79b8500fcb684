"""What methods train on, and what they keep of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import learner_of, tiny
from engram.data.augment import Augmentation
from engram.data.batches import AugmentedImages, FeatureDraws
from engram.data.stream import create_stream
from engram.engine.fit import Trainer
from engram.memory import herding
from engram.methods import METHODS, Method
from engram.seeding import generator

TRAINED = {
    "finetune": ["training"] * 2,
    "joint": ["training"] * 2,
    "icarl": ["representation"] * 2,
    "der": ["representation", "representation", "classifier"],
    "lae": ["modules", "classifier", "modules"],
    "ranpac, adapted": ["adaptation"],
}
"""The stages of two tasks; none of a method that trains nothing."""


def rows(x: Tensor) -> set[tuple[float, ...]]:
    """Samples, whatever their order."""
    return {tuple(sample.flatten().tolist()) for sample in x}


@pytest.mark.parametrize("method", TRAINED)
def test_images_are_augmented_as_configured_and_anew_in_every_epoch(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Augmentation(padding=0.25, flip=True, least_area=0.75, brightness=0.25)
    stages: list[tuple[str, Any]] = []
    sources: list[AugmentedImages] = []
    fit, kept_features = Trainer.fit, Method.kept_features

    def fitted(trainer: Trainer, stage: str, data: Any, *others: Any, **named: Any) -> None:
        stages.append((stage, data))
        fit(trainer, stage, data, *others, **named)

    def kept(self: Method, function: Any, dim: int, source: Any, *others: Any) -> FeatureDraws:
        sources.append(source)
        return kept_features(self, function, dim, source, *others)

    monkeypatch.setattr(Trainer, "fit", fitted)
    monkeypatch.setattr(Method, "kept_features", kept)
    config = tiny(method)
    if hasattr(config.settings, "augmentation"):
        config = replace(config, settings=replace(config.settings, augmentation=recipe))
    learner = learner_of(config)
    for task in create_stream("digits/2,2", order="given"):
        learner.learn(task)
    assert [stage for stage, _ in stages] == TRAINED[method]
    draws = [data for _, data in stages if isinstance(data, FeatureDraws)]
    sources += [data for _, data in stages if isinstance(data, AugmentedImages)]
    assert len(sources) == len(stages)
    assert all(rows(found.features[0]) != rows(found.features[1]) for found in draws)
    for source in sources:
        assert source.augmentation == recipe
        first, second = (
            torch.cat([x for x, _ in source.batches(128, generator(0, epoch), epoch)])
            for epoch in range(2)
        )
        assert rows(first) != rows(second)


def test_every_method_is_among_these() -> None:
    assert {name.partition(",")[0] for name in TRAINED} == METHODS.keys()


@pytest.mark.parametrize("method", ["icarl", "der"])
def test_the_exemplars_of_a_class_are_those_that_herding_picks_first(method: str) -> None:
    learner = learner_of(tiny(method, budget="24"))
    for task in create_stream("digits/2,2", order="given"):
        learner.learn(task)
        for label in task.new:
            images, kept = task.train.of(label), learner.memory.of(label)
            ranked = herding(learner.method.embed(images))  # type: ignore[operator]
            picks = list(islice(ranked, len(kept)))
            assert len(kept) == 24 // len(task.seen)
            assert torch.equal(kept.pixels, images[torch.tensor(picks)].pixels)
            assert picks != list(range(len(picks)))
