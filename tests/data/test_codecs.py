"""Codecs: what goes in comes out, as well as promised, and nothing else does."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engram.data.codecs import CODECS, Codec, create_codec
from engram.data.codecs.rans import TOTAL, FrequencyTable, decode, encode
from engram.data.images import Dataset
from engram.errors import UserError
from engram.results.metrics import psnr

LOSSLESS = ["raw", "float32", "float16", "zlib-uint8", "zlib-float32", "png", "webp-lossless"]
LOSSY = ["jpeg:75", "webp:80", "avif:60", "klt:24", "resize:8", "resize:24+webp:80"]
if importlib.util.find_spec("pillow_jxl"):
    LOSSLESS.append("jxl-lossless")
    LOSSY.append("jxl:80")
WITH_FIXED_SIZES = {"raw": 3072, "float32": 12288, "float16": 6144, "resize:8": 192}


def photographs(count: int = 40, side: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth colour fields with edges: what codecs for photographs are made for."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    images = []
    for _ in range(count):
        a, b, c = random.normal(size=(3, 3)), random.uniform(0, 6, (3, 3)), random.uniform(size=4)
        waves = sum(a[i] * np.sin(b[i, 0] * x + b[i, 1] * y + b[i, 2])[..., None] for i in range(3))
        edge = ((x - c[0]) ** 2 + (y - c[1]) ** 2 < c[2] ** 2 / 4)[..., None] * (c[3] - 0.5)
        images.append(np.clip(128 + 50 * waves + 120 * edge, 0, 255))
    return torch.from_numpy(np.stack(images).astype(np.uint8))


def prepared(name: str, side: int = 32) -> Codec:
    codec = create_codec(name, (side, side))
    codec.prepare(photographs(side=side, seed=1))
    return codec


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_codecs_give_back_every_pixel(name: str) -> None:
    noise = torch.randint(256, (20, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    codec = prepared(name)
    assert codec.lossless
    for pixels in (photographs(), noise.to(torch.uint8), torch.full((2, 32, 32, 3), 255).byte()):
        assert torch.equal(codec.decode(codec.encode(pixels)), pixels)


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_codecs_give_back_all_256_values_of_each_channel(name: str) -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    pixels = torch.cat([values, values.flip(1), values.flip(2)], dim=3)
    codec = prepared(name, 16)
    assert torch.equal(codec.decode(codec.encode(pixels)), pixels)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_codecs_come_near(name: str) -> None:
    codec, pixels = prepared(name), photographs()
    assert not codec.lossless
    back = codec.decode(codec.encode(pixels))
    assert back.shape == pixels.shape
    assert back.dtype == torch.uint8
    assert psnr(back, pixels) > 20
    assert psnr(back, pixels) > psnr(back.roll(1, dims=0), pixels) + 5


@pytest.mark.parametrize("name", LOSSLESS + LOSSY)
def test_an_image_is_coded_alike_alone_and_among_others(name: str) -> None:
    codec, pixels = prepared(name), photographs(7)
    payloads = codec.encode(pixels)
    assert [codec.encode(pixel[None])[0] for pixel in pixels] == payloads
    together = codec.decode(payloads)
    assert all(
        torch.equal(codec.decode([payload])[0], image)
        for payload, image in zip(payloads, together, strict=True)
    )


@pytest.mark.parametrize("name", LOSSLESS + LOSSY)
def test_payload_bytes_are_as_stated(name: str) -> None:
    codec = prepared(name)
    assert codec.payload_bytes == WITH_FIXED_SIZES.get(name)
    if codec.payload_bytes:
        assert {len(payload) for payload in codec.encode(photographs())} == {codec.payload_bytes}


@pytest.mark.parametrize("name", LOSSLESS + LOSSY)
def test_another_process_decodes_with_what_is_shared(name: str) -> None:
    codec, pixels = prepared(name), photographs(5)
    other = create_codec(name, (32, 32))
    other.adopt(codec.shared)
    payloads = codec.encode(pixels)
    assert torch.equal(other.decode(payloads), codec.decode(payloads))
    assert other.encode(pixels) == payloads


@pytest.mark.parametrize("name", [name for name in LOSSLESS + LOSSY if "jpeg" not in name])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_payload_cut_short_is_no_image(name: str, share: float) -> None:
    codec = prepared(name)
    payload = codec.encode(photographs(1))[0]
    short = payload[: int(share * len(payload))]
    with pytest.raises(ValueError, match=r"\w"):
        codec.decode([short])


def test_what_is_the_same_in_every_file_is_stored_once() -> None:
    pixels = photographs(200)
    for name, header in [("jpeg:75", 600), ("png", 33), ("webp:80", 11), ("avif:60", 250)]:
        codec = prepared(name)
        assert len(codec.shared) >= header
        beginnings = {payload[:8] for payload in codec.encode(pixels)}
        assert len(beginnings) > 50, (
            f"{name} payloads begin alike {len(beginnings)} {len(codec.shared)}"
        )


def test_klt_takes_fewer_bytes_than_jpeg_at_no_lower_quality(cifar100: Dataset) -> None:
    images = cifar100.train
    learnt_from, pixels = (
        images[images.labels < 10].pixels,
        images[images.labels >= 90].pixels[:500],
    )
    jpeg, klt = create_codec("jpeg:75", (32, 32)), create_codec("klt:30", (32, 32))
    klt.prepare(learnt_from)
    bytes_of = {codec: sum(map(len, codec.encode(pixels))) for codec in (jpeg, klt)}
    quality = {codec: psnr(codec.decode(codec.encode(pixels)), pixels) for codec in (jpeg, klt)}
    assert bytes_of[klt] < 0.9 * bytes_of[jpeg]
    assert quality[klt] >= quality[jpeg]


@pytest.mark.parametrize("quality", [10, 50, 75, 95])
def test_jpeg_gives_what_pillow_makes_of_a_file_with_whole_colours(quality: int) -> None:
    codec, pixels = prepared(f"jpeg:{quality}"), photographs(6)
    for image, back in zip(pixels, codec.decode(codec.encode(pixels)), strict=True):
        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, "JPEG", quality=quality, subsampling="4:4:4")
        with Image.open(file) as whole:
            assert np.array_equal(np.asarray(whole), back.numpy())


@pytest.mark.parametrize(
    ("kind", "values"),
    [*((kind, (10, 50, 75, 95)) for kind in ("jpeg", "webp", "avif")), ("klt", (64, 32, 16, 8))],
)
def test_likeness_and_bytes_rise_with_quality(kind: str, values: tuple[int, ...]) -> None:
    pixels = photographs(60)
    found = []
    for value in values:
        codec = prepared(f"{kind}:{value}")
        payloads = codec.encode(pixels)
        found.append((psnr(codec.decode(payloads), pixels), sum(map(len, payloads))))
    for (blurred, few), (sharp, many) in pairwise(found):
        assert blurred < sharp
        assert few < many


@pytest.mark.parametrize(
    ("learnt_from", "least"), [("dark", 35), ("grey", 27), ("flat", 27), ("one", 27)]
)
def test_klt_keeps_images_unlike_those_it_has_learnt_from(learnt_from: str, least: float) -> None:
    pixels = photographs()
    first = {
        "dark": pixels // 3,
        "grey": pixels[..., :1].expand(-1, -1, -1, 3),
        "flat": torch.full((4, 32, 32, 3), 90, dtype=torch.uint8),
        "one": pixels[:1],
    }[learnt_from]
    codec = create_codec("klt:32", (32, 32))
    codec.prepare(first)
    assert psnr(codec.decode(codec.encode(pixels)), pixels) > least


def test_klt_finds_damage() -> None:
    codec = prepared("klt:24")
    payload = codec.encode(photographs(1))[0]
    found = 0
    for position in range(len(payload)):
        damaged = bytearray(payload)
        damaged[position] ^= 4
        try:
            codec.decode([bytes(damaged)])
        except ValueError:
            found += 1
    assert found > 0.9 * len(payload)


def test_shared_bytes_of_another_codec_are_refused() -> None:
    with pytest.raises(ValueError, match="shared"):
        create_codec("raw", (32, 32)).adopt(b"tables")
    with pytest.raises(ValueError, match="tables"):
        create_codec("klt:24", (32, 32)).adopt(prepared("klt:24").shared[:-3])


@pytest.mark.parametrize("name", ["raw", "png", "webp-lossless", "jpeg:75", "resize:16+jpeg:75"])
def test_images_need_not_be_square(name: str) -> None:
    pixels = photographs(4)[:, :20]
    codec = create_codec(name, (20, 32))
    assert codec.decode(codec.encode(pixels)).shape == pixels.shape


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("jpg:75", 'Unknown codec "jpg". Perhaps you meant "jpeg"'),
        ("", "Unknown codec"),
        ("jpeg", 'Codec "jpeg": give a whole number from 1 to 100, as in jpeg:75'),
        ("jpeg:0", "from 1 to 100"),
        ("jpeg:101", "from 1 to 100"),
        ("jpeg:high", "from 1 to 100"),
        ("klt:2", "from 4 to 128"),
        ("raw:8", "there is no value to choose. Write raw"),
        ("resize", "from 1 to 31"),
        ("resize:32", "from 1 to 31"),
        ("resize:16+gif", 'Unknown codec "gif"'),
        ("resize:20+klt:32", "multiples of 8"),
        ("jpeg:75+resize:16", "from 1 to 100"),
        ("resize:16+resize:8", 'Unknown codec "resize"'),
    ],
)
def test_codecs_that_do_not_exist_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(UserError) as refusal:
        create_codec(name, (32, 32))
    assert sentence in str(refusal.value)


def test_every_codec_is_tested() -> None:
    tested = {name.partition(":")[0] for name in LOSSLESS + LOSSY}
    assert {name for name in CODECS if not name.startswith("jxl")} <= tested


Symbols = Sequence[Sequence[int]]


@settings(max_examples=300)
@given(st.data(), st.integers(1, 5), st.integers(0, 60), st.integers(1, 3))
def test_rans_gives_back_every_message(
    data: st.DataObject, messages: int, length: int, kinds: int
) -> None:
    counts = data.draw(
        st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=9), min_size=kinds)
    )
    tables = [
        FrequencyTable.fitted(np.array(counts[place % len(counts)])) for place in range(length)
    ]
    symbols = np.array(
        [
            [data.draw(st.integers(0, len(table.frequencies) - 1)) for table in tables]
            for _ in range(messages)
        ]
    ).reshape(messages, length)
    assert np.array_equal(decode(encode(symbols, tables), tables)[0], symbols)


def test_rans_comes_within_a_hundredth_of_the_entropy() -> None:
    random = np.random.default_rng(0)
    shares = np.array([0.7, 0.2, 0.05, 0.05])
    symbols = random.choice(4, (3, 20000), p=shares)
    table = FrequencyTable.fitted(np.bincount(symbols.ravel()))
    bits = 8 * sum(map(len, encode(symbols, [table] * 20000))) / symbols.size
    entropy = -(shares * np.log2(shares)).sum()
    assert entropy * 0.98 < bits < entropy * 1.01


def test_tables_hold_every_symbol() -> None:
    table = FrequencyTable.fitted(np.array([10**9, 0, 1]))
    assert table.frequencies.tolist() == [TOTAL - 2, 1, 1]
    with pytest.raises(ValueError, match="frequencies"):
        FrequencyTable.of(np.array([TOTAL, 0]))
