"""The ridge head against one joint solve, and against every other way to cut its data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engram.models import heads
from engram.models.heads import RidgeHead
from engram.seeding import generator

CLASSES, DIM = 6, 12


def data(images: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels, and which images are set aside."""
    source = generator(0)
    labels = torch.randint(CLASSES, (images,), generator=source)
    centres = torch.randn(CLASSES, DIM, generator=source)
    features = centres[labels] + torch.randn(images, DIM, generator=source)
    return features, labels, torch.rand(images, generator=source) < 0.2


def head_of(projected: int = 40, classes: int = CLASSES) -> RidgeHead:
    head = RidgeHead(DIM, projected, generator(1))
    head.grow(classes)
    return head


def learnt(projected: int = 40) -> RidgeHead:
    head = head_of(projected)
    head.add(*data())
    head.solve()
    return head


@pytest.mark.parametrize("projected", [0, 40])
def test_it_is_ridge_regression(projected: int) -> None:
    head = learnt(projected)
    features, labels, _ = data()
    h = head.project(features).double()
    y = torch.nn.functional.one_hot(labels).double()
    penalty = head.ridge.sqrt() * torch.eye(h.shape[1], dtype=torch.float64)
    joint = torch.linalg.lstsq(
        torch.cat([h, penalty]), torch.cat([y, torch.zeros(h.shape[1], CLASSES).double()])
    ).solution
    assert torch.allclose(head.weight.double(), joint.T, atol=1e-6)
    assert (head(features).argmax(1) == labels).float().mean() > 0.8


@pytest.fixture(params=["in the eigenbasis", "by a solve each"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small head, and one that counts as large."""
    if request.param == "by a solve each":
        monkeypatch.setattr(heads, "LARGEST_EIGENBASIS", 0)


@pytest.mark.usefixtures("either_way")
def test_the_ridge_weight_is_the_best_on_images_set_aside() -> None:
    head = learnt()
    features, labels, aside = data()
    h, y = head.project(features).double(), torch.nn.functional.one_hot(labels).double()
    unit = float(h[~aside].square().sum(dim=0).mean())
    errors = {}
    for ridge in (unit * 10 ** (-half / 2) for half in range(10)):
        gram = h[~aside].T @ h[~aside] + ridge * torch.eye(h.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(gram, h[~aside].T @ y[~aside])
        errors[ridge] = float((h[aside] @ weight - y[aside]).square().sum())
    assert float(head.ridge) == pytest.approx(min(errors, key=lambda ridge: errors[ridge]))
    assert 1e-4 * unit < head.ridge < unit


def test_both_ways_to_the_error_agree() -> None:
    head = learnt()
    in_eigenbasis = head._error_in_eigenbasis()
    for ridge in (10.0**exponent for exponent in range(-3, 5)):
        assert float(in_eigenbasis(ridge)) == pytest.approx(
            float(head._error_by_solve(ridge)), rel=1e-9
        )


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_of_features_does_not_matter(scale: float) -> None:
    features, labels, aside = data()
    head = head_of()
    head.add(scale * features, labels, aside)
    head.solve()
    usual = learnt()
    assert float(head.ridge) == pytest.approx(scale**2 * float(usual.ridge), rel=1e-4)
    assert torch.allclose(head(scale * features), usual(features), atol=1e-4)


@pytest.mark.usefixtures("either_way")
def test_the_ridge_weight_is_never_above_the_mean_eigenvalue() -> None:
    """Features that say nothing would have it grow for ever, and rare classes go under."""
    _, labels, aside = data()
    head = head_of(projected=0)
    head.add(torch.randn(len(labels), DIM, generator=generator(3)), labels, aside)
    head.solve()
    assert float(head.ridge) == pytest.approx(float(head.gram[0].diagonal().mean()))


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("seed", range(5))
def test_one_image_of_each_class_is_recognised(seed: int) -> None:
    """Whichever of them are set aside, and can be chosen by only badly."""
    source = generator(seed)
    features, labels = torch.randn(CLASSES, DIM, generator=source), torch.arange(CLASSES)
    head = head_of(projected=200)
    head.add(features, labels, torch.rand(CLASSES, generator=source) < 0.3)
    head.solve()
    assert torch.equal(head(features).argmax(1), labels)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("seed", [1, 2])
def test_rare_classes_do_not_go_under(seed: int) -> None:
    """Forty images of one class, and one of each of nine others."""
    source = generator(seed)
    centres = torch.randn(10, DIM, generator=source)

    def some(labels: Tensor) -> Tensor:
        return centres[labels] + 0.6 * torch.randn(len(labels), DIM, generator=source)

    labels = torch.cat([torch.zeros(40, dtype=torch.int64), torch.arange(1, 10)])
    features, aside = some(labels), torch.rand(len(labels), generator=source) < 0.2
    head = head_of(projected=200, classes=10)
    head.add(features, labels, aside)
    head.solve()
    asked = torch.arange(10).repeat_interleave(50)
    assert (head(some(asked)).argmax(1) == asked).float().mean() > 0.7


@pytest.mark.usefixtures("either_way")
def test_the_order_of_few_images_does_not_matter() -> None:
    features, labels, aside = (part[:24] for part in data())
    order = torch.randperm(24, generator=generator(4))
    one, other = head_of(projected=200), head_of(projected=200)
    one.add(features, labels, aside)
    other.add(features[order], labels[order], aside[order])
    for head in (one, other):
        head.solve()
    assert float(one.ridge) == pytest.approx(float(other.ridge), rel=1e-9)
    assert torch.allclose(one(features), other(features), atol=1e-5)


def test_sums_do_not_depend_on_how_many_images_are_added_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = learnt()
    monkeypatch.setattr(heads, "SUMMED_AT_ONCE", 7)
    parts = learnt()
    assert torch.allclose(whole.gram, parts.gram)
    assert torch.allclose(whole.targets, parts.targets)


@pytest.mark.parametrize("tasks", [1, 2, 3, 6])
def test_how_data_are_cut_into_tasks_does_not_matter(tasks: int) -> None:
    features, labels, aside = data()
    head = RidgeHead(DIM, 40, generator(1))
    step = CLASSES // tasks
    for first in range(0, CLASSES, step):
        head.grow(step)
        chosen = (labels >= first) & (labels < first + step)
        order = torch.randperm(int(chosen.sum()), generator=generator(2))
        for part in order.split(17):
            head.add(features[chosen][part], labels[chosen][part], aside[chosen][part])
        head.solve()
    whole = learnt()
    assert float(head.ridge) == pytest.approx(float(whole.ridge), rel=1e-9)
    assert torch.allclose(head.weight, whole.weight, atol=1e-7)
    assert torch.equal(head.counts, whole.counts)
    assert torch.equal(head(features).argmax(1), whole(features).argmax(1))


def test_the_order_of_classes_does_not_matter() -> None:
    features, labels, aside = data()
    renamed = torch.tensor([3, 5, 0, 1, 4, 2])
    head = head_of()
    head.add(features, renamed[labels], aside)
    head.solve()
    assert torch.allclose(head(features)[:, renamed], learnt()(features), atol=1e-5)


def test_where_a_device_has_no_float64_the_sums_stay() -> None:
    """As Apple's have none; what torch says to it there is a TypeError."""

    def moved(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.float64:
            raise TypeError("This device has no float64.")
        return tensor + 0

    head = head_of()
    sums, projection = head.gram, head.projection
    head._apply(moved)
    assert head.gram is sums
    assert head.projection is not projection
    head.add(*data())
    head.solve()
    assert torch.equal(head.weight, learnt().weight)


def test_fewer_images_than_dimensions_can_be_solved() -> None:
    head = head_of(projected=200)
    head.add(*(part[:20] for part in data()))
    head.solve()
    assert head.weight.isfinite().all()
    features, labels, _ = data()
    assert (head(features[:20]).argmax(1) == labels[:20]).float().mean() > 0.8


def test_no_image_set_aside_is_no_reason_to_fail() -> None:
    head = head_of()
    features, labels, aside = data()
    head.add(features, labels, torch.zeros_like(aside))
    head.solve()
    assert head.weight.isfinite().all()
