"""The training loop: learning rates, weight decay, what it refuses, and the step it takes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import InterruptionError
from engram.config import Schedule
from engram.engine.fit import EpochReport, Step, Trainer, learning_rate, plan_of
from engram.errors import UserError
from engram.files import load_tensors

SCHEDULE = Schedule(epochs=2, batch_size=4, learning_rate=0.1, decay="constant", weight_decay=0.0)


class Points:
    """Ten fixed samples in a random order."""

    def __init__(self, count: int = 10) -> None:
        self.x = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
        self.y = (self.x.sum(dim=1) > 0).long()

    def __len__(self) -> int:
        return len(self.y)

    def batches(
        self, batch_size: int, generator: torch.Generator, epoch: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(self), generator=generator).split(batch_size):
            yield self.x[chosen], self.y[chosen]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.5)

    def loss(self, x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
        return {"classification": F.cross_entropy(self.norm(self.layer(x)), y)}


def trainer(model: nn.Module, task: int = 0, **options: object) -> Trainer:
    device = torch.device("cpu")
    return Trainer(model, task=task, seed=0, device=device, **options)  # type: ignore[arg-type]


def rates(schedule: Schedule, samples: int) -> list[float]:
    plan = plan_of(schedule, samples)
    return [
        learning_rate(schedule, plan, epoch, batch)
        for epoch in range(plan.epochs)
        for batch in range(plan.batches_in(epoch))
    ]


def test_the_paper_s_learning_rates_by_epoch() -> None:
    by_epoch = rates(Schedule(), samples=128)
    assert len(by_epoch) == 70
    assert by_epoch[:49] == [2.0] * 49
    assert by_epoch[49:63] == pytest.approx([0.4] * 14)
    assert by_epoch[63:] == pytest.approx([0.08] * 7)


def test_the_paper_s_number_of_updates() -> None:
    quotas = [200, 100, 66, 50, 40, 33, 28, 25, 22]
    sizes = [5000] + [5000 + 10 * t * quota for t, quota in enumerate(quotas, start=1)]
    assert sum(len(rates(Schedule(), size)) for size in sizes) == 36_750


def test_one_cycle_rises_and_falls_to_zero() -> None:
    cycle = rates(replace(SCHEDULE, epochs=10, decay="cosine", warmup=0.25), samples=40)
    peak = cycle.index(max(cycle))
    assert peak == 24
    assert max(cycle) == pytest.approx(0.1, rel=0.01)
    assert cycle[:peak] == sorted(cycle[:peak])
    assert cycle[peak:] == sorted(cycle[peak:], reverse=True)
    assert cycle[-1] == pytest.approx(0)


def test_after_a_warm_up_of_whole_epochs_the_rate_falls_from_its_peak() -> None:
    schedule = replace(SCHEDULE, epochs=4, decay="cosine", warmup=0.4, warmup_by="epoch")
    by_epoch = rates(schedule, samples=SCHEDULE.batch_size)
    assert by_epoch == pytest.approx([0.05, 0.1, 0.05, 0.0])


def test_a_warm_up_that_the_number_of_updates_cuts_short_rises_no_higher() -> None:
    schedule = replace(SCHEDULE, epochs=None, updates=5, warmup=0.9, warmup_by="epoch")
    found = rates(schedule, samples=2 * SCHEDULE.batch_size)
    assert len(found) == 5
    assert found == sorted(found)
    assert max(found) == SCHEDULE.learning_rate


@pytest.mark.parametrize(
    ("samples", "drop_last", "batches"),
    [(10, True, 2), (10, False, 3), (3, True, 1), (8, False, 2), (9, False, 2)],
)
def test_the_last_batch(samples: int, drop_last: bool, batches: int) -> None:
    reports: list[EpochReport] = []
    model = Model()
    loop = trainer(model, on_epoch=reports.append)
    schedule = replace(SCHEDULE, drop_last=drop_last)
    loop.fit("training", Points(samples), model.loss, model.named_parameters(), schedule)
    assert loop.effort.updates == 2 * batches
    assert [report.images for report in reports] == [
        min(samples, 4 * batches) if drop_last or samples % 4 == 1 else samples
    ] * 2


def test_a_single_sample_is_refused_where_there_is_batchnorm() -> None:
    model = Model()
    loop = trainer(model)
    with pytest.raises(UserError, match="Task 1 has one image, and this network trains on two"):
        loop.fit("training", Points(1), model.loss, model.named_parameters(), SCHEDULE)


def test_a_milestone_never_falls_on_the_start() -> None:
    short = replace(SCHEDULE, epochs=2, decay="steps", milestones=(0.1,), factor=0.5)
    assert rates(short, samples=4) == pytest.approx([0.1, 0.05])


def test_a_fixed_number_of_updates_ends_within_an_epoch() -> None:
    model = Model()
    loop = trainer(model)
    schedule = replace(SCHEDULE, epochs=None, updates=5)
    loop.fit("training", Points(), model.loss, model.named_parameters(), schedule)
    assert loop.effort.updates == 5


def test_weight_decay_spares_biases_and_batchnorm_shifts() -> None:
    model = Model()
    before = copy.deepcopy(model.state_dict())
    loop = trainer(model)
    schedule = replace(SCHEDULE, epochs=1, batch_size=10, learning_rate=1, weight_decay=0.1)
    schedule = replace(schedule, momentum=0)

    def nothing(x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
        return {"nothing": 0 * sum(parameter.sum() for parameter in model.parameters())}

    loop.fit("training", Points(), nothing, model.named_parameters(), schedule)
    after = model.state_dict()
    for name in ("layer.weight", "norm.weight"):
        assert torch.allclose(after[name], 0.9 * before[name])
    for name in ("layer.bias", "norm.bias"):
        assert torch.equal(after[name], before[name])


def test_one_step_is_sgd_by_hand() -> None:
    model = Model()
    expected = copy.deepcopy(model)
    points = Points(4)
    F.cross_entropy(expected.norm(expected.layer(points.x)), points.y).backward()
    loop = trainer(model)
    loop.fit("t", points, model.loss, model.named_parameters(), replace(SCHEDULE, epochs=1))
    for parameter, before in zip(model.parameters(), expected.parameters(), strict=True):
        assert before.grad is not None
        assert torch.allclose(parameter, before - 0.1 * before.grad, atol=1e-6)


def gradients(model: Model, points: Points) -> list[Tensor]:
    """Of the loss of all points, by the parameters as they are."""
    loss = F.cross_entropy(model.norm(model.layer(points.x)), points.y)
    return list(torch.autograd.grad(loss, list(model.parameters())))


@torch.no_grad()
def stepped(model: Model, change: Callable[[int, Tensor], Tensor], found: list[Tensor]) -> None:
    """Let every parameter change, by its number and its gradient."""
    for number, (parameter, gradient) in enumerate(zip(model.parameters(), found, strict=True)):
        parameter += change(number, gradient)


def trained(schedule: Schedule, points: Points) -> Model:
    """A model after a step an epoch, each on all points."""
    model = Model()
    loop = trainer(model)
    loop.fit("training", points, model.loss, model.named_parameters(), schedule)
    return model


@pytest.mark.parametrize("nesterov", [False, True])
def test_three_steps_are_sgd_with_momentum_by_hand(nesterov: bool) -> None:
    points, expected = Points(4), Model()
    velocities = [torch.zeros_like(parameter) for parameter in expected.parameters()]

    def change(number: int, gradient: Tensor) -> Tensor:
        velocities[number] = 0.8 * velocities[number] + gradient
        ahead = gradient + 0.8 * velocities[number]
        return -0.1 * (ahead if nesterov else velocities[number])

    for _ in range(3):
        stepped(expected, change, gradients(expected, points))
    found = trained(replace(SCHEDULE, epochs=3, momentum=0.8, nesterov=nesterov), points)
    for parameter, by_hand in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(parameter, by_hand, atol=1e-5)


def test_three_steps_are_adam_by_hand() -> None:
    points, expected = Points(4), Model()
    means = [torch.zeros_like(parameter) for parameter in expected.parameters()]
    squares = [torch.zeros_like(parameter) for parameter in expected.parameters()]
    for step in range(1, 4):

        def change(number: int, gradient: Tensor, step: int = step) -> Tensor:
            means[number] = 0.9 * means[number] + 0.1 * gradient
            squares[number] = 0.999 * squares[number] + 0.001 * gradient**2
            mean, square = means[number] / (1 - 0.9**step), squares[number] / (1 - 0.999**step)
            return -0.1 * mean / (square.sqrt() + 1e-8)

        stepped(expected, change, gradients(expected, points))
    found = trained(replace(SCHEDULE, epochs=3, optimizer="adam"), points)
    named = zip(found.named_parameters(), expected.parameters(), strict=True)
    for (name, parameter), by_hand in named:
        # A bias before BatchNorm has a gradient of rounding errors alone, which Adam makes large.
        if name != "layer.bias":
            assert torch.allclose(parameter, by_hand, atol=1e-4)


@pytest.mark.parametrize(
    ("precision", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_the_forward_pass_is_in_the_precision_of_training(
    precision: str, expected: torch.dtype
) -> None:
    model, found = Model(), set[torch.dtype]()

    def loss(x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
        logits = model.layer(x)
        found.add(logits.dtype)
        return {"classification": F.cross_entropy(logits.float(), y)}

    loop = trainer(model, precision=precision)
    loop.fit("training", Points(), loss, model.named_parameters(), SCHEDULE)
    assert found == {expected}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_samples_come_in_another_order_in_every_epoch() -> None:
    model, orders = Model(), list[Tensor]()

    def loss(x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
        orders.append(x)
        return model.loss(x, y, step)

    loop = trainer(model)
    schedule = replace(SCHEDULE, batch_size=10)
    loop.fit("training", Points(10), loss, model.named_parameters(), schedule)
    first, second = orders
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(dim=0).values, second.sort(dim=0).values)


def test_the_parts_of_the_loss_are_summed_and_reported() -> None:
    model, reports = Model(), list[EpochReport]()
    steps: list[Step] = []

    def loss(x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
        steps.append(step)
        return {"one": model.layer(x).sum() * 0 + 1, "two": torch.tensor(2.0 * step.epoch)}

    loop = trainer(model, task=3, on_epoch=reports.append)
    loop.fit("training", Points(8), loss, model.named_parameters(), SCHEDULE)
    assert [report.losses for report in reports] == [{"one": 1, "two": 0}, {"one": 1, "two": 2}]
    assert [report.task for report in reports] == [3, 3]
    assert steps == [
        Step(
            epoch=epoch,
            epochs=2,
            batch=batch,
            batches=2,
            done=2 * epoch + batch,
            updates=4,
            warmup=0,
        )
        for epoch in (0, 1)
        for batch in (0, 1)
    ]


def test_progress_counts_updates_where_the_last_epoch_is_cut_short() -> None:
    model, shares = Model(), list[float]()
    loop = trainer(model)
    schedule = replace(SCHEDULE, epochs=None, updates=5)
    loop.fit(
        "training",
        Points(16),
        model.loss,
        model.named_parameters(),
        schedule,
        after_step=lambda step: shares.append(step.progress),
    )
    assert shares == [0, 0.2, 0.4, 0.6, 0.8]


def test_a_loss_that_explodes_is_named() -> None:
    model = Model()
    loop = trainer(model)

    def loss(x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
        return {"bad": model.layer(x).sum() * torch.inf}

    with pytest.raises(UserError, match="no longer finite in epoch 1 of task 1"):
        loop.fit("training", Points(), loss, model.named_parameters(), SCHEDULE)


def test_parameters_that_need_no_gradient_stay(tmp_path: Path) -> None:
    model = Model()
    model.layer.requires_grad_(False)
    before = model.layer.weight.clone()
    loop = trainer(model, folder=tmp_path)
    loop.fit("training", Points(), model.loss, model.named_parameters(), SCHEDULE)
    assert torch.equal(model.layer.weight, before)


def test_a_finished_stage_is_taken_from_its_snapshot(tmp_path: Path) -> None:
    first = Model()
    loop = trainer(first, folder=tmp_path)
    loop.fit("one", Points(), first.loss, first.named_parameters(), SCHEDULE)
    loop.fit("two", Points(), first.loss, first.named_parameters(), SCHEDULE)

    def never(x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
        raise AssertionError("the stage was trained again")

    again = Model()
    replay = trainer(again, folder=tmp_path)
    replay.fit("one", Points(), never, again.named_parameters(), SCHEDULE)
    replay.fit("two", Points(), never, again.named_parameters(), SCHEDULE)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    assert replay.effort.updates == loop.effort.updates == 8
    assert replay.restored_seconds == pytest.approx(loop.effort.seconds)


def test_an_interrupted_stage_goes_on_from_its_last_snapshot(tmp_path: Path) -> None:
    schedule = replace(SCHEDULE, epochs=5)

    def stop(report: EpochReport) -> None:
        if report.epoch == 3:
            raise InterruptionError

    first = Model()
    loop = trainer(first, folder=tmp_path, snapshot_every=0, on_epoch=stop)
    with pytest.raises(InterruptionError):
        loop.fit("training", Points(), first.loss, first.named_parameters(), schedule)

    again, epochs = Model(), list[int]()

    def counted(x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
        epochs.append(step.epoch)
        return again.loss(x, y, step)

    replay = trainer(again, folder=tmp_path)
    replay.fit("training", Points(), counted, again.named_parameters(), schedule)
    assert epochs == [3, 3, 4, 4]
    whole = trained(schedule, Points())
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True)
    )
    assert replay.effort.updates == 10


def test_snapshots_are_no_closer_than_is_asked_for(tmp_path: Path) -> None:
    saved: list[bool] = []
    model = Model()
    loop = trainer(
        model,
        folder=tmp_path,
        snapshot_every=3600,
        on_epoch=lambda report: saved.append(any(tmp_path.iterdir())),
    )
    loop.fit("one", Points(), model.loss, model.named_parameters(), replace(SCHEDULE, epochs=4))
    assert saved == [False] * 4
    assert any(tmp_path.iterdir()), "the end is always saved"


def test_what_changes_beside_the_parameters_that_are_trained_is_saved_too(tmp_path: Path) -> None:
    """As a teacher that is a moving average of the network."""

    def averaged(folder: Path, stop: int | None = None) -> Model:
        model = Model()
        model.average = copy.deepcopy(model.layer).requires_grad_(False)

        def follow(step: Step) -> None:
            model.average.weight.lerp_(model.layer.weight, 0.5)
            if step.done == stop:
                raise InterruptionError

        fit = trainer(model, folder=folder, snapshot_every=0).fit
        fit("it", Points(), model.loss, model.layer.named_parameters(), SCHEDULE, follow)
        return model

    whole = averaged(tmp_path / "whole")
    with pytest.raises(InterruptionError):
        averaged(tmp_path / "stopped", stop=3)
    again = averaged(tmp_path / "stopped")
    assert torch.equal(again.average.weight, whole.average.weight)
    assert not torch.equal(again.average.weight, again.layer.weight)


def test_what_is_trained_is_part_of_the_method() -> None:
    model, head = Model(), nn.Linear(2, 2)
    parameters = [*model.named_parameters(), *head.named_parameters(prefix="head")]
    with pytest.raises(
        ValueError, match=r"head\.(weight|bias) is trained and no part of the method"
    ):
        trainer(model).fit("it", Points(), model.loss, parameters, SCHEDULE)


def test_a_snapshot_leaves_out_what_a_fit_does_not_change(tmp_path: Path) -> None:
    model = Model()
    loop = trainer(model, folder=tmp_path, resting=("norm.running_var", "norm.weight", "layer."))
    named = list(model.layer.named_parameters(prefix="layer"))
    loop.fit("one", Points(), model.loss, named, SCHEDULE)
    (snapshot,) = tmp_path.iterdir()
    tensors, _ = load_tensors(snapshot)
    names = {name.removeprefix("method:") for name in tensors if name.startswith("method:")}
    moving = {"layer.weight", "layer.bias", "norm.bias"}
    moving |= {"norm.running_mean", "norm.num_batches_tracked"}
    assert names == moving
    again = Model()
    replay = trainer(again, folder=tmp_path)
    parameters = again.layer.named_parameters(prefix="layer")
    replay.fit("one", Points(), again.loss, parameters, SCHEDULE)
    assert all(torch.equal(again.state_dict()[name], model.state_dict()[name]) for name in moving)


def test_another_task_starts_without_old_snapshots(tmp_path: Path) -> None:
    model = Model()
    loop = trainer(model, folder=tmp_path)
    loop.fit("one", Points(), model.loss, model.named_parameters(), SCHEDULE)
    assert len(list(tmp_path.iterdir())) == 1
    trainer(model, task=1, folder=tmp_path).discard_other_tasks()
    assert list(tmp_path.iterdir()) == []


def test_randomness_between_fits_has_a_name() -> None:
    loop = trainer(Model(), task=2)
    draws = [torch.rand(3, generator=loop.generator(name)) for name in ("a", "a", "b")]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_snapshot_of_other_training_is_refused(tmp_path: Path) -> None:
    model, made_with = Model(), {"temperature": 1}
    loop = trainer(model, folder=tmp_path, made_with=made_with)
    loop.fit("one", Points(), model.loss, model.named_parameters(), SCHEDULE)
    longer = replace(SCHEDULE, epochs=3)
    for points, schedule, others in (
        (Points(), longer, made_with),
        (Points(11), SCHEDULE, made_with),
        (Points(), SCHEDULE, {"temperature": 2}),
    ):
        other = trainer(model, folder=tmp_path, made_with=others)
        with pytest.raises(UserError, match="snapshot of other training"):
            other.fit("one", points, model.loss, model.named_parameters(), schedule)


def test_a_snapshot_from_before_more_was_recorded_is_taken_over(tmp_path: Path) -> None:
    model, epochs = Model(), []
    loop = trainer(model, folder=tmp_path)
    loop.fit("one", Points(), model.loss, model.named_parameters(), SCHEDULE)
    again = trainer(model, folder=tmp_path, made_with={"more": 1}, on_epoch=epochs.append)
    again.fit("one", Points(), model.loss, model.named_parameters(), SCHEDULE)
    assert epochs == []


def test_two_stages_of_a_task_have_two_names() -> None:
    model = Model()
    loop = trainer(model)
    loop.fit("one", Points(), model.loss, model.named_parameters(), SCHEDULE)
    loop.fit("two", Points(), model.loss, model.named_parameters(), SCHEDULE)
    with pytest.raises(ValueError, match='Two fits of a task are called "one"'):
        loop.fit("one", Points(), model.loss, model.named_parameters(), SCHEDULE)


def test_two_parameters_have_two_names() -> None:
    model = Model()
    named = [*model.layer.named_parameters(), *model.norm.named_parameters()]
    with pytest.raises(ValueError, match="Two parameters have one name"):
        trainer(model).fit("one", Points(), model.loss, named, SCHEDULE)


def test_a_damaged_snapshot_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = Model()
    loop = trainer(model, folder=tmp_path)
    loop.fit("one", Points(), model.loss, model.named_parameters(), SCHEDULE)
    (snapshot,) = tmp_path.iterdir()
    snapshot.write_bytes(snapshot.read_bytes()[:20])
    again = trainer(model, folder=tmp_path)
    with pytest.raises(UserError, match=r"cannot be read .* Remove it to train this stage anew"):
        again.fit("one", Points(), model.loss, model.named_parameters(), SCHEDULE)


def test_files_of_others_in_the_snapshot_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "task-list").mkdir()
    trainer(Model(), task=3, folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "task-list"}
