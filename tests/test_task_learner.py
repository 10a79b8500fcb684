"""`TaskLearner` refuses what cannot be learnt, classified or restored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import learner_of, tiny
from engram.data.stream import Task, create_stream
from engram.errors import UserError
from engram.methods.icarl import ICaRLConfig
from engram.task_learner import TaskLearner

FIRST, SECOND = create_stream("digits/3,2", order="given")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (FIRST, "The next task has index 1, and not 0"),
        (
            replace(SECOND, new=range(4, 6)),
            r"2 new ones are range\(3, 5\) and .* not range\(4, 6\)",
        ),
        (replace(SECOND, seen=range(6)), r"seen range\(0, 5\), and not .* and range\(0, 6\)"),
        (replace(SECOND, new=range(3, 4), seen=range(4)), "images of class 4, which it does not"),
        (replace(SECOND, train=SECOND.train.of(3)), "no images of class 4, which is new in it"),
        (
            replace(SECOND, train=replace(SECOND.train, pixels=SECOND.train.pixels[:, :6])),
            r"images of \(6, 8\) pixels, and the learner is for \(8, 8\)",
        ),
    ],
)
def test_a_task_that_does_not_follow_is_refused(task: Task, message: str) -> None:
    learner = learner_of(tiny("finetune", updates=1))
    learner.learn(FIRST)
    before = {name: tensor.clone() for name, tensor in learner.method.state_dict().items()}
    with pytest.raises(UserError, match=message):
        learner.learn(task)
    assert learner.tasks == 1
    after = learner.method.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    learner.learn(SECOND)


def test_the_settings_of_another_method_are_refused() -> None:
    with pytest.raises(UserError, match="der is set by DERConfig, not by ICaRLConfig"):
        TaskLearner("der", ICaRLConfig(), image_size=(8, 8), budget="20")


def test_a_setting_that_does_not_exist_is_refused() -> None:
    settings = ICaRLConfig(distillation="KD")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r'settings of icarl: distillation: "KD"'):
        TaskLearner("icarl", settings, image_size=(8, 8), budget="20")


def interrupt(report: object) -> None:
    raise KeyboardInterrupt


def test_after_an_interruption_another_learner_goes_on(tmp_path: Path) -> None:
    config = tiny("finetune", updates=4)
    options: dict[str, Any] = {"snapshots": tmp_path / "snapshots", "snapshot_every": 0}
    learner = learner_of(config, **options)
    learner.learn(FIRST)
    learner.save(str(tmp_path / "first"))
    learner.on_epoch = interrupt
    with pytest.raises(KeyboardInterrupt):
        learner.learn(SECOND)
    for use in (
        lambda: learner.learn(SECOND),
        lambda: learner.scores(SECOND.train),
        lambda: learner.save(tmp_path / "second"),
        lambda: learner.restore(tmp_path / "first"),
    ):
        with pytest.raises(UserError, match=r"half-way in it\. Make a new one|make a new one"):
            use()
    other = learner_of(config, **options)
    other.restore(tmp_path / "first")
    assert other.learn(SECOND).training.updates == 4
    assert other.scores(SECOND.train).shape[1] == 5


def test_snapshots_of_other_images_are_refused(tmp_path: Path) -> None:
    config = tiny("finetune", updates=1)
    learner_of(config, snapshots=tmp_path).learn(FIRST)
    other = replace(FIRST, train=replace(FIRST.train, pixels=255 - FIRST.train.pixels))
    with pytest.raises(UserError, match="is a snapshot of other training"):
        learner_of(config, snapshots=tmp_path).learn(other)


def test_only_a_new_learner_takes_over_what_was_saved(tmp_path: Path) -> None:
    learner = learner_of(tiny("finetune", updates=1))
    with pytest.raises(UserError, match="Nothing has been learnt yet"):
        learner.predict(FIRST.train)
    learner.learn(FIRST)
    learner.save(tmp_path / "saved")
    with pytest.raises(UserError, match="has learnt already: make a new one to restore into"):
        learner.restore(tmp_path / "saved")
    small = replace(FIRST.train, pixels=FIRST.train.pixels[:, :6])
    with pytest.raises(UserError, match=r"have \(6, 8\) pixels, and the learner is for \(8, 8\)"):
        learner.predict(small)
