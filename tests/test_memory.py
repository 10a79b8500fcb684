"""The exemplar memory: budgets, quotas, ranks, state; and herding."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from engram.data.codecs import Raw
from engram.data.images import ImageSet
from engram.data.stream import Task
from engram.errors import UserError
from engram.memory import Budget, ExemplarMemory, herding

Images = Callable[..., ImageSet]
IMAGE = 4 * 4 * 3


def task_of(images: ImageSet, first: int, classes: int) -> Task:
    labelled = ImageSet(images.pixels, images.labels + first)
    return Task(first, labelled, range(first, first + classes), range(first + classes))


def memory(budget: str) -> ExemplarMemory:
    return ExemplarMemory(Budget.parse(budget), Raw())


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("2000", "images", 2000),
        ("20/class", "images a class", 20),
        ("6144000B", "bytes", 6_144_000),
        ("6MB", "bytes", 6_000_000),
        ("1.5kB", "bytes", 1500),
        ("2MiB", "bytes", 2 * 2**20),
        ("all", "all", 0),
        ("0", "images", 0),
    ],
)
def test_budgets_are_read(text: str, kind: str, amount: int) -> None:
    assert Budget.parse(text) == Budget(kind, amount)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "-5", "20 / class", "6mb", "many", "2000.5", "1e6", "5MB/class"]
)
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a budget"):
        Budget.parse(text)


def test_two_thousand_images_of_cifar_are_6144000_bytes() -> None:
    assert Budget.parse("2000").in_bytes(100, (32, 32)) == 6_144_000
    assert Budget.parse("20/class").in_bytes(100, (32, 32)) == 6_144_000


def test_the_paper_s_quotas_rounded_down(random_images: Images) -> None:
    held = memory("2000")
    quotas = []
    for first in range(0, 100, 10):
        held.update(task_of(random_images(*[201] * 10), first, 10))
        quotas.append(set(held.counts.values()))
    assert quotas == [{200}, {100}, {66}, {50}, {40}, {33}, {28}, {25}, {22}, {20}]


def test_a_byte_budget_holds_what_the_same_number_of_images_does(random_images: Images) -> None:
    by_images, by_bytes = memory("7"), memory(f"{7 * IMAGE}B")
    for first in (0, 2):
        task = task_of(random_images(5, 5), first, 2)
        by_images.update(task)
        by_bytes.update(task)
        assert by_images.counts == by_bytes.counts


def test_the_best_ranked_are_kept_in_order_and_dropped_from_the_tail(
    random_images: Images,
) -> None:
    images = random_images(6, 6)
    held = memory("8")
    order = [4, 0, 5, 1, 2, 3]
    held.update(task_of(images, 0, 2), rank=lambda found: order)
    assert torch.equal(held.of(0).pixels, images.of(0).pixels[order[:4]])
    held.update(task_of(random_images(6, 6, seed=1), 2, 2), rank=lambda found: order)
    assert torch.equal(held.of(0).pixels, images.of(0).pixels[order[:2]])
    assert torch.equal(held.of(1).pixels, images.of(1).pixels[order[:2]])


def test_classes_smaller_than_their_share_are_kept_whole(random_images: Images) -> None:
    held = memory("30")
    held.update(task_of(random_images(1, 3, 50), 0, 3))
    assert held.counts == {0: 1, 1: 3, 2: 10}


def test_all_keeps_everything_and_nothing_keeps_nothing(random_images: Images) -> None:
    images = random_images(3, 4)
    everything, nothing = memory("all"), memory("0")
    everything.update(task_of(images, 0, 2))
    nothing.update(task_of(images, 0, 2))
    assert torch.equal(everything.images().pixels, images.pixels)
    assert len(nothing) == nothing.nbytes == 0
    assert everything.budget_bytes() is None
    new = random_images(2)
    assert len(nothing + new) == 2


@pytest.mark.parametrize("budget", ["3", f"{4 * IMAGE - 1}B"])
def test_a_share_below_one_image_is_refused_with_the_smallest_budget(
    random_images: Images, budget: str
) -> None:
    with pytest.raises(UserError, match=f"4 images, or {4 * IMAGE} bytes"):
        memory(budget).update(task_of(random_images(5, 5, 5, 5), 0, 4))


@settings(max_examples=200)
@given(
    sizes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=5),
    kind=st.sampled_from(["images", "images a class", "bytes"]),
    amount=st.integers(1, 60),
    extra=st.integers(0, IMAGE - 1),
)
def test_no_sequence_of_updates_exceeds_the_budget(
    sizes: list[list[int]], kind: str, amount: int, extra: int
) -> None:
    total = amount * IMAGE + extra if kind == "bytes" else amount
    held = ExemplarMemory(Budget(kind, total), Raw())  # type: ignore[arg-type]
    starts = [0, *accumulate(len(counts) for counts in sizes)]
    for counts, first in zip(sizes, starts, strict=False):
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        images = ImageSet(torch.zeros(len(labels), 4, 4, 3, dtype=torch.uint8), labels)
        before = held.counts
        try:
            held.update(task_of(images, first, len(counts)))
        except UserError:
            assert held.counts == before, "a refused update changed the memory"
            return
        limit = held.budget_bytes()
        assert limit is not None
        assert held.nbytes == len(held) * IMAGE <= limit
        assert held.nbytes <= held.most_bytes <= limit
        assert all(held.counts.values()), "a class was left without exemplars"


def test_state_survives(random_images: Images) -> None:
    held = memory("9")
    held.update(task_of(random_images(1, 5, 5), 0, 3))
    copy = memory("9")
    copy.load_state(*held.state())
    assert copy.counts == held.counts
    assert copy.most_bytes == held.most_bytes
    assert torch.equal(copy.images().pixels, held.images().pixels)


def test_raw_refuses_bytes_of_another_size() -> None:
    with pytest.raises(ValueError, match="48"):
        Raw().decode(b"1234", (4, 4))


def plain_herding(features: torch.Tensor, count: int) -> list[int]:
    """Algorithm 4 as it is written, but that no image is picked twice."""
    phi = features.double().numpy()
    mean, total = phi.mean(axis=0), np.zeros(phi.shape[1])
    picks: list[int] = []
    for k in range(1, count + 1):
        distances = ((mean - (phi + total) / k) ** 2).sum(axis=1)
        distances[picks] = np.inf
        picks.append(int(distances.argmin()))
        total += phi[picks[-1]]
    return picks


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 16), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_herding_picks_what_the_plain_loop_picks(
    images: int, dim: int, unit: bool, doubled: bool, seed: int
) -> None:
    features = torch.randn(images, dim, generator=torch.Generator().manual_seed(seed))
    if unit and dim > 1:
        features = F.normalize(features)
    if doubled:
        features = torch.cat([features, features])
    assert herding(features) == plain_herding(features, len(features))


def test_a_shorter_herding_is_the_beginning_of_a_longer_one() -> None:
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert herding(features, 7) == herding(features)[:7]
    assert sorted(herding(features)) == list(range(50))
    assert herding(features, 0) == herding(features[:0]) == []


def test_herding_follows_the_mean_closer_than_chance() -> None:
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    picks = herding(features, 20)
    error = (features[picks].mean(0) - features.mean(0)).norm()
    chance = (features[:20].mean(0) - features.mean(0)).norm()
    assert error < chance / 3
