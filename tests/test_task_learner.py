"""`TaskLearner` refuses a task that cannot be the next one, before anything is learnt of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from conftest import learner_of, tiny
from engram.data.stream import Task, create_stream
from engram.errors import UserError
from engram.memory import Budget
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
        TaskLearner("der", ICaRLConfig(), image_size=(8, 8), budget=Budget.parse("20"))
