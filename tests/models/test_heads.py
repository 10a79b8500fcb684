"""The ridge head against one joint solve, and against every other way to cut its data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engram.models import heads
from engram.models.heads import RIDGE_PATH, RidgeHead
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


def test_the_ridge_weight_is_the_best_on_images_set_aside() -> None:
    head = learnt()
    features, labels, aside = data()
    h, y = head.project(features).double(), torch.nn.functional.one_hot(labels).double()
    errors = []
    for ridge in RIDGE_PATH:
        gram = h[~aside].T @ h[~aside] + ridge * torch.eye(h.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(gram, h[~aside].T @ y[~aside])
        errors.append(float((h[aside] @ weight - y[aside]).square().sum()))
    assert float(head.ridge) == RIDGE_PATH[errors.index(min(errors))]
    assert min(RIDGE_PATH) < head.ridge < max(RIDGE_PATH)


def test_all_ways_along_the_path_agree() -> None:
    head = learnt()
    errors = zip(
        head._errors_by_eigenbasis(RIDGE_PATH), head._errors_by_solves(RIDGE_PATH), strict=True
    )
    for ridge, (one, other) in zip(RIDGE_PATH, errors, strict=True):
        assert ridge < 1e-4 or float(one) == pytest.approx(float(other), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_large_head_finds_the_ridge_weight_at_any_scale_of_features(
    monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    monkeypatch.setattr(heads, "LARGEST_EIGENBASIS", 0)
    features, labels, aside = data()
    head = head_of()
    head.add(scale * features, labels, aside)
    head.solve()
    path = [float(head.ridge) * 10**exponent for exponent in (-1, -0.5, 0, 0.5, 1)]
    errors = [float(error) for error in head._errors_by_eigenbasis(path)]
    assert min(errors) == errors[2]


def test_a_large_head_shrinks_where_features_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "LARGEST_EIGENBASIS", 0)
    _, labels, aside = data()
    head = head_of(projected=0)
    head.add(torch.randn(len(labels), DIM, generator=generator(3)), labels, aside)
    head.solve()
    assert head.ridge > 5 * head.gram[0].diagonal().mean()


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
    assert head.ridge == whole.ridge
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
