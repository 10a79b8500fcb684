"""The exemplar memory: budgets, quotas, ranks, state; and herding."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate, islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import learner_of, tiny
from engram.data.augment import Augmentation
from engram.data.batches import AugmentedImages, Recoding, apply
from engram.data.codecs import create_codec
from engram.data.encoded import EncodedImages
from engram.data.images import Dataset, ImageSet, Joined
from engram.data.stream import create_stream
from engram.errors import UserError
from engram.memory import ENCODED_AT_ONCE, Budget, ExemplarMemory, herding
from engram.models.normalise import SubtractMean

Images = Callable[..., ImageSet]
IMAGE = 4 * 4 * 3
CODECS_OF_ALL_KINDS = [
    *("raw", "float32", "float16", "zlib-float32", "zlib-uint8", "png", "webp-lossless"),
    *("jpeg:50", "webp:50", "resize:2", "resize:2+webp:50", "klt:60"),
]


def shifted(images: ImageSet, first: int) -> ImageSet:
    """The same images as later classes, from `first` on."""
    return replace(images, labels=images.labels + first)


def memory(budget: str, codec: str = "raw") -> ExemplarMemory:
    return ExemplarMemory(Budget.parse(budget), create_codec(codec, (4, 4)))


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


@pytest.mark.parametrize("budget", ["2000", "20/class", "6144000B"])
def test_two_thousand_images_of_cifar_are_6144000_bytes(budget: str) -> None:
    held = ExemplarMemory(Budget.parse(budget), create_codec("raw", (32, 32)))
    pixels = torch.zeros(2100, 32, 32, 3, dtype=torch.uint8)
    held.update(ImageSet(pixels, torch.arange(100).repeat(21)))
    assert len(held) == 2000
    assert held.nbytes == held.budget_bytes() == 6_144_000


def test_the_paper_s_quotas_rounded_down(random_images: Images) -> None:
    held = memory("2000")
    quotas = []
    for first in range(0, 100, 10):
        held.update(shifted(random_images(*[201] * 10), first))
        quotas.append(set(held.counts.values()))
    assert quotas == [{200}, {100}, {66}, {50}, {40}, {33}, {28}, {25}, {22}, {20}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "least", "most"),
    [
        ("float32", 2000, 2000),
        ("float16", 4000, 4000),
        ("raw", 8000, 8000),
        ("zlib-uint8", 8800, 9200),
        ("png", 10800, 11500),
        ("webp-lossless", 13500, 14300),
        ("jpeg:75", 50000, 50000),
    ],
)
def test_two_thousand_float32_images_of_cifar_are_this_many_in_other_codecs(
    cifar100: Dataset, codec: str, least: int, most: int
) -> None:
    held = ExemplarMemory(Budget.parse("24576000B"), create_codec(codec, (32, 32)))
    held.update(cifar100.train)
    assert least <= len(held) <= most
    assert held.nbytes <= 24_576_000


def test_a_byte_budget_holds_what_the_same_number_of_images_does(random_images: Images) -> None:
    by_images, by_bytes = memory("7"), memory(f"{7 * IMAGE}B")
    for first in (0, 2):
        images = shifted(random_images(5, 5), first)
        by_images.update(images)
        by_bytes.update(images)
        assert by_images.counts == by_bytes.counts


def test_the_best_ranked_are_kept_in_order_and_dropped_from_the_tail(
    random_images: Images,
) -> None:
    images = random_images(6, 6)
    held = memory("8")
    order = [4, 0, 5, 1, 2, 3]
    held.update(images, rank=lambda found: order)
    assert torch.equal(held.of(0).pixels, images.of(0).pixels[order[:4]])
    held.update(shifted(random_images(6, 6, seed=1), 2), rank=lambda found: order)
    assert torch.equal(held.of(0).pixels, images.of(0).pixels[order[:2]])
    assert torch.equal(held.of(1).pixels, images.of(1).pixels[order[:2]])


@pytest.mark.parametrize("codec", ["raw", "jpeg:60", "zlib-uint8"])
def test_new_images_of_a_known_class_are_ranked_with_its_exemplars(
    random_images: Images, codec: str
) -> None:
    held = ExemplarMemory(Budget.parse("6"), create_codec(codec, (8, 8)))
    first = random_images(6, 6, size=8)
    held.update(first)
    kept, stored = held.of(0), held.state()[0]["payloads.0"]
    more = random_images(5, size=8, seed=1)
    given: list[ImageSet] = []

    def rank(images: Joined) -> list[int]:
        given.append(images[:])
        return [5, 2, 0, 1, 3, 4, 6, 7]

    held.update(more, rank)
    assert torch.equal(given[0].pixels, torch.cat([kept.pixels, more.pixels]))
    assert held.counts == {0: 3, 1: 3}
    expected = torch.cat([held.recode(more[2:3]).pixels, kept.pixels[2:3], kept.pixels[:1]])
    assert torch.equal(held.of(0).pixels, expected), "exemplars are not encoded a second time"
    assert held.origins == {}
    assert not torch.equal(held.state()[0]["payloads.0"], stored)


def test_classes_smaller_than_their_share_are_kept_whole(random_images: Images) -> None:
    held = memory("30")
    held.update(random_images(1, 3, 50))
    assert held.counts == {0: 1, 1: 3, 2: 10}


def test_all_keeps_everything_and_nothing_keeps_nothing(random_images: Images) -> None:
    images = random_images(3, 4)
    everything, nothing = memory("all"), memory("0")
    everything.update(images)
    nothing.update(images)
    assert torch.equal(everything.images()[:].pixels, images.pixels)
    assert len(nothing) == nothing.nbytes == 0
    assert everything.budget_bytes() is None
    new = random_images(2)
    assert len(nothing + new) == 2


@pytest.mark.parametrize("budget", ["3", f"{4 * IMAGE - 1}B"])
def test_a_share_below_one_image_is_refused_with_the_smallest_budget(
    random_images: Images, budget: str
) -> None:
    with pytest.raises(UserError, match=f"4 images, or {4 * IMAGE} bytes"):
        memory(budget).update(random_images(5, 5, 5, 5))


@settings(max_examples=2000)
@given(
    sizes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=5),
    kind=st.sampled_from(["images", "images a class", "bytes", "bytes", "bytes"]),
    codec=st.sampled_from(CODECS_OF_ALL_KINDS),
    amount=st.integers(1, 400),
    extra=st.integers(0, 191),
    seed=st.integers(0, 2**31),
    again=st.sampled_from(["", "beside new ones", "alone"]),
)
def test_no_sequence_of_updates_exceeds_the_budget(
    sizes: list[list[int]],
    kind: str,
    codec: str,
    amount: int,
    extra: int,
    seed: int,
    again: str,
) -> None:
    total = amount * 192 + extra if kind == "bytes" else amount
    budget = Budget(kind, total)  # type: ignore[arg-type]
    held = ExemplarMemory(budget, create_codec(codec, (8, 8)))
    starts = [0, *accumulate(len(counts) for counts in sizes)]
    noise = np.random.default_rng(seed)
    for number, (counts, first) in enumerate(zip(sizes, starts, strict=False)):
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        # From flat to noisy, so that payloads differ in length.
        spread = noise.integers(1, 256, (len(labels), 1, 1, 1))
        pixels = torch.from_numpy(noise.integers(0, spread, (len(labels), 8, 8, 3), np.uint8))
        images = shifted(ImageSet(pixels, labels), first)
        if number % 2 and again:
            # Further images of classes that are known, beside the new ones or without them.
            old = ImageSet(pixels, labels % first)
            images = old if again == "alone" else images + old
        if again and number == 2:
            copy = ExemplarMemory(budget, create_codec(codec, (8, 8)))
            copy.load_state(*held.state())
            held = copy
        before = held.counts
        try:
            held.update(images)
        except UserError:
            assert held.counts == before, "a refused update changed the memory"
            return
        assert all(held.counts.values()), "a class was left without exemplars"
        assert held.nbytes <= held.most_bytes
        limit = held.budget_bytes()
        if kind == "bytes" or held.codec.payload_bytes is not None:
            assert limit is not None
            assert held.most_bytes <= limit
        most = {"images": total, "images a class": total * len(held.counts)}.get(kind)
        assert most is None or len(held) <= most


@pytest.mark.parametrize("codec", CODECS_OF_ALL_KINDS)
def test_nbytes_is_what_a_reader_would_need(random_images: Images, codec: str) -> None:
    held = ExemplarMemory(Budget.parse("all"), create_codec(codec, (8, 8)))
    held.update(random_images(5, 5, size=8))
    tensors, _ = held.state()
    payloads = sum(len(tensors[f"payloads.{label}"]) for label in (0, 1))
    lengths = [int(n) for label in (0, 1) for n in tensors[f"lengths.{label}"]]
    fields = 0 if held.codec.payload_bytes else sum(1 if n < 128 else 2 for n in lengths)
    assert held.nbytes == payloads + fields + len(tensors["shared"])


@pytest.mark.parametrize("codec", CODECS_OF_ALL_KINDS)
def test_a_class_with_many_exemplars_is_learnt_further(random_images: Images, codec: str) -> None:
    held = ExemplarMemory(Budget.parse("all"), create_codec(codec, (8, 8)))
    held.update(random_images(130, size=8))
    before = held.images()[:].pixels
    held.update(random_images(3, size=8, seed=1))
    assert held.counts == {0: 133}
    assert torch.equal(held.images()[:130].pixels, before)


@pytest.mark.parametrize("codec", ["raw", "zlib-uint8", "klt:32", "resize:4+jpeg:60"])
def test_a_saved_memory_comes_back(random_images: Images, codec: str) -> None:
    held = ExemplarMemory(Budget.parse("9"), create_codec(codec, (8, 8)))
    held.update(random_images(1, 5, 5, size=8))
    copy = ExemplarMemory(Budget.parse("9"), create_codec(codec, (8, 8)))
    copy.load_state(*held.state())
    assert copy.counts == held.counts
    assert copy.nbytes == held.nbytes
    assert copy.most_bytes == held.most_bytes
    assert torch.equal(copy.images()[:].pixels, held.images()[:].pixels)


def flipped(payloads: torch.Tensor) -> torch.Tensor:
    """The second of four payloads of one length has another bit."""
    damaged = payloads.clone()
    damaged[len(payloads) // 4] ^= 1
    return damaged


def cut_short(payloads: torch.Tensor) -> torch.Tensor:
    """The second of four payloads is not whole, and the others are gone."""
    return payloads[: len(payloads) // 2 - 1]


@pytest.mark.parametrize(("damage", "left"), [(flipped, 3), (cut_short, 1)])
@pytest.mark.parametrize("codec", ["raw", "float16", "png", "jpeg:75", "klt:32"])
def test_damaged_exemplars_are_named_and_left_out(
    random_images: Images, codec: str, damage: Callable[[torch.Tensor], torch.Tensor], left: int
) -> None:
    image = random_images(1, size=8)
    images = ImageSet(image.pixels.repeat(8, 1, 1, 1), torch.arange(2).repeat_interleave(4))
    held = ExemplarMemory(Budget.parse("8"), create_codec(codec, (8, 8)))
    held.update(images)
    tensors, table = held.state()
    tensors["payloads.1"] = damage(tensors["payloads.1"])
    copy = ExemplarMemory(Budget.parse("8"), create_codec(codec, (8, 8)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        copy.load_state(tensors, table)
    assert len(caught) == 4 - left
    assert "Exemplar 2 of class 2 in the saved memory is damaged" in str(caught[0].message)
    assert copy.counts == {0: 4, 1: left}
    assert (copy.images()[:].pixels == held.images()[:].pixels[0]).all(), "a wrong image came back"
    with pytest.raises(UserError, match="Exemplar 2 of class dog in here is damaged"):
        copy.load_state(tensors, table, strict=True, where="here", class_names=("cat", "dog"))


@pytest.mark.parametrize("codec", ["jpeg:75", "klt:32"])
def test_damage_to_what_all_exemplars_share_is_found(random_images: Images, codec: str) -> None:
    held = ExemplarMemory(Budget.parse("8"), create_codec(codec, (8, 8)))
    held.update(random_images(4, 4, size=8))
    tensors, table = held.state()
    tensors["shared"][200] ^= 1
    with pytest.raises(UserError, match="share is damaged"):
        held.load_state(tensors, table)


def test_a_memory_of_nothing_is_saved_with_any_codec(random_images: Images) -> None:
    held = ExemplarMemory(Budget.parse("0"), create_codec("klt:32", (8, 8)))
    copy = ExemplarMemory(Budget.parse("0"), create_codec("klt:32", (8, 8)))
    copy.load_state(*held.state())
    held.update(random_images(4, size=8))
    copy.load_state(*held.state())
    assert copy.nbytes == len(copy) == 0


@pytest.mark.parametrize("codec", ["raw", "jpeg:75", "klt:16", "zlib-uint8"])
def test_what_the_check_admits_the_update_holds(random_images: Images, codec: str) -> None:
    images = random_images(5, 5, 5, size=8)
    ample = ExemplarMemory(Budget.parse("1MB"), create_codec(codec, (8, 8)))
    ample.update(images)
    for amount in range(10, ample.nbytes, max(1, ample.nbytes // 97)):
        held = ExemplarMemory(Budget("bytes", amount), create_codec(codec, (8, 8)))
        try:
            held.check(3, images)
        except UserError:
            continue
        held.update(images)
        assert held.nbytes <= amount
        assert len(held.counts) == 3


def test_the_check_asks_the_codec_that_has_learnt() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8, generator=generator)
    noise = noise.repeat(40, 1, 1, 1)
    flat = torch.full_like(noise, 90)
    memory = ExemplarMemory(Budget.parse("44kB"), create_codec("klt:16", (16, 16)))
    memory.update(ImageSet(flat, torch.zeros(40, dtype=torch.int64)))
    new = ImageSet(noise, torch.ones(40, dtype=torch.int64))
    # A codec that had learnt from these would take 7 bytes for one, and not 4,056.
    assert not memory.fits(2, new)
    with pytest.raises(UserError, match="cannot hold one exemplar"):
        memory.update(new)


def test_an_exemplar_that_cannot_be_decoded_is_named(random_images: Images) -> None:
    images = random_images(3, 3)
    payloads = create_codec("png", (4, 4)).encode(images.pixels)
    payloads[4] = payloads[4][:-9]
    read = EncodedImages(create_codec("png", (4, 4)), payloads, images.labels)
    with pytest.raises(UserError, match=r"Exemplar 2 of class 2 .* cannot be decoded as png"):
        read[:]
    assert torch.equal(read[torch.tensor([3, 0])].pixels, images.pixels[[3, 0]])


@pytest.mark.parametrize("codec", ["raw", "jpeg:75", "klt:32", "resize:4"])
def test_batchwise_reads_the_same_pixels_and_keeps_none(random_images: Images, codec: str) -> None:
    new = random_images(7, 6, size=8, seed=1)
    whole = ExemplarMemory(Budget.parse("40"), create_codec(codec, (8, 8)))
    batchwise = ExemplarMemory(Budget.parse("40"), create_codec(codec, (8, 8)), batchwise=True)
    for held in (whole, batchwise):
        held.update(random_images(9, 8, size=8))
    one, other = whole + new, batchwise + new
    assert isinstance(one, ImageSet)
    assert not isinstance(other, ImageSet)
    assert torch.equal(one.labels, other.labels)
    assert one.image_size == other.image_size == (8, 8)
    for index in (
        torch.tensor([29, 3, 3, 17, 0]),
        torch.tensor([1, 2]),
        slice(14, 20),
        slice(None),
    ):
        assert torch.equal(one[index].pixels, other[index].pixels)
        assert torch.equal(one[index].labels, other[index].labels)


class Alive:
    """Counts images read from encoded ones that are still there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = self.read = 0
        read = EncodedImages.__getitem__

        def counted(encoded: EncodedImages, index: slice | torch.Tensor) -> ImageSet:
            found = read(encoded, index)
            self.read += len(found)
            self.now += len(found)
            self.most = max(self.most, self.now)
            weakref.finalize(found.pixels.untyped_storage(), self._gone, len(found))
            return found

        monkeypatch.setattr(EncodedImages, "__getitem__", counted)

    def _gone(self, images: int) -> None:
        self.now -= images


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_batchwise_never_holds_more_than_two_batches_decoded(
    random_images: Images, monkeypatch: pytest.MonkeyPatch, probability: float
) -> None:
    held = ExemplarMemory(Budget.parse("100"), create_codec("raw", (4, 4)), batchwise=True)
    held.update(random_images(50, 50))
    new = random_images(9)
    recoding = Recoding.of_last(held.recode(new), 109, probability)
    source = AugmentedImages(held + new, SubtractMean((4, 4)), Augmentation(), recoding)
    alive = Alive(monkeypatch)
    batches = source.batches(10, torch.Generator().manual_seed(0))
    assert sum(len(labels) for _, labels in batches) == 109
    assert alive.read == 100, "each of them once"
    apply(lambda pixels: pixels.float(), held.images(), device=torch.device("cpu"), batch_size=10)
    assert 0 < alive.most <= 20
    whole = ExemplarMemory(Budget.parse("100"), create_codec("raw", (4, 4)))
    whole.load_state(*held.state())
    kept = whole.images()
    assert len(kept) == alive.now == alive.most == 100


@pytest.mark.parametrize("method", ["icarl", "der"])
def test_methods_learn_batchwise_with_two_batches_decoded_at_most(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("engram.data.images.MOST_AT_ONCE", 16)
    config = tiny(method, "digits/3,3", updates=2, budget="200", codec="jpeg:60")
    schedule = replace(config.settings.schedule, batch_size=16)
    config = replace(config, settings=replace(config.settings, schedule=schedule))
    learner = learner_of(config, codec=config.codec, batchwise=True)
    first, second = create_stream("digits/3,3", order="given")
    further = replace(first, index=2, new=range(6, 6), seen=range(6))
    alive = Alive(monkeypatch)
    for task in (first, second, further):
        learner.learn(task)
    assert len(learner.memory) > 100
    assert 0 < alive.most <= 32


def test_a_memory_that_is_restored_comes_down_to_a_smaller_budget(random_images: Images) -> None:
    held = memory("8")
    held.update(random_images(4, 4))
    smaller = memory("4")
    smaller.load_state(*held.state())
    smaller.update(random_images(0))
    assert smaller.counts == {0: 2, 1: 2}
    assert torch.equal(smaller.of(1).pixels, held.of(1, 2).pixels)


def test_originals_are_what_the_last_exemplars_were_made_of(random_images: Images) -> None:
    held = memory("6")
    held.update(random_images(3))
    images = shifted(random_images(5, 5, seed=1), 1)
    held.update(images, rank=lambda images: [3, 1, 0, 2, 4])
    assert torch.equal(held.originals(images, 5).pixels, (held.of(1) + held.of(2)).pixels)
    assert held.originals(images, 1).labels.tolist() == [1, 2]


def test_recoded_images_are_what_the_memory_would_give_back(random_images: Images) -> None:
    images = random_images(4, size=8)
    held = ExemplarMemory(Budget.parse("4"), create_codec("jpeg:20", (8, 8)))
    held.prepare(images)
    recoded = held.recode(images)
    held.update(images)
    assert torch.equal(recoded.pixels, held.of(0).pixels)
    assert not torch.equal(recoded.pixels, images.pixels)


def plain_distances(phi: np.ndarray, picks: list[int]) -> np.ndarray:
    """Algorithm 4: how far the mean of `picks` and one image more would be from that of all images,
    for every image that is not picked yet."""
    means = (phi + phi[picks].sum(axis=0)) / (len(picks) + 1)
    distances = np.linalg.norm(phi.mean(axis=0) - means, axis=1)
    distances[picks] = np.inf
    return distances


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
    phi, picks = features.double().numpy(), list(herding(features))
    assert sorted(picks) == list(range(len(phi)))
    for position, pick in enumerate(picks):
        # Where images tie but for rounding, either may be picked.
        distances = plain_distances(phi, picks[:position])
        nearest = np.flatnonzero(distances <= distances.min() + 1e-9)
        assert pick in nearest


def test_no_more_images_are_ranked_than_can_be_kept(random_images: Images) -> None:
    ranked = []

    def rank(images: ImageSet) -> Iterator[int]:
        for position in reversed(range(len(images))):
            ranked.append(position)
            yield position

    images = random_images(500)
    held = memory("20")
    held.update(images, rank=rank)
    assert torch.equal(held.of(0).pixels, images.pixels[-20:].flip(0))
    assert held.origins[0] == list(range(499, 479, -1))
    assert len(ranked) <= ENCODED_AT_ONCE


def test_herding_follows_the_mean_closer_than_chance() -> None:
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    picks = list(islice(herding(features), 20))
    error = (features[picks].mean(0) - features.mean(0)).norm()
    chance = (features[:20].mean(0) - features.mean(0)).norm()
    assert error < chance / 3
