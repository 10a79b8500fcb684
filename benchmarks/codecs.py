"""Codecs on CIFAR-100: bytes, fidelity, time, and how many exemplars a budget holds.

    python benchmarks/codecs.py [--images 1000] [--codecs jpeg:75 klt:32 ...] [--json FILE]

Images are training images of the 90 classes that a codec has not learnt from. Bytes are those of a
payload with its length field; what all exemplars share is charged to the budget. Times are of one
thread, coding 500 images at a time. The last lines decode 20,000 exemplars and compare that with an
epoch of training on as many, ResNet-32 with iCaRL's augmentation: a ratio that should be far below
one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from engram import models
from engram.config import Schedule
from engram.data.augment import Augmentation
from engram.data.batches import AugmentedImages
from engram.data.codecs import create_codec
from engram.data.encoded import EncodedImages
from engram.data.images import ImageSet
from engram.data.stream import Task, create_stream
from engram.engine.device import resolve_precision
from engram.engine.fit import Trainer
from engram.errors import UserError
from engram.models.normalise import SubtractMean
from engram.results.metrics import psnr
from engram.seeding import generator
from ratios import Ratio, add_option, publish, write_report

# fmt: off
CODECS = [
    "float32", "zlib-float32", "float16", "raw", "zlib-uint8", "png", "webp-lossless",
    "jxl-lossless", "resize:16", "resize:24", "resize:24+jpeg:75",
    "jpeg:95", "jpeg:90", "jpeg:75", "jpeg:50", "jpeg:25", "webp:80", "webp:50",
    "avif:60", "avif:40", "jxl:80", "klt:12", "klt:24", "klt:32", "klt:48", "klt:64",
]
# fmt: on
BUDGETS = (1_536_000, 6_144_000, 24_576_000)
EXEMPLARS = 20_000
AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Measured:
    """A line of the table.

    Attributes:
        bytes_each: of a payload with its length field, on average.
        psnr: in dB; None where every pixel is kept.
        encode: microseconds an image; `decode` likewise.
        exemplars: how many fit into each of `BUDGETS`, by the mean; as each class fills a
            share of its own, a memory of many classes holds a few less.
    """

    codec: str
    bytes_each: float
    shared: int
    psnr: float | None
    encode: float
    decode: float
    exemplars: list[int]

    def __str__(self) -> str:
        fidelity = "lossless" if self.psnr is None else f"{self.psnr:.2f}"
        room = "".join(f"{count:12,}" for count in self.exemplars)
        return (
            f"{self.codec:18}{self.bytes_each:9.1f}{self.shared:8}{fidelity:>10}"
            f"{self.encode:9.0f}{self.decode:9.0f}{room}"
        )


def measure(name: str, first: Task, images: ImageSet) -> Measured:
    """Code and decode the images, after learning from the first task's."""
    codec = create_codec(name, images.image_size)
    codec.prepare(first.train.pixels)
    started = time.perf_counter()
    payloads = [p for chunk in images.pixels.split(AT_ONCE) for p in codec.encode(chunk)]
    encoded = time.perf_counter()
    chunks = [payloads[at : at + AT_ONCE] for at in range(0, len(payloads), AT_ONCE)]
    pixels = torch.cat([codec.decode(chunk) for chunk in chunks])
    decoded = time.perf_counter()
    each = sum(map(codec.cost, payloads)) / len(payloads)
    noise = psnr(pixels, images.pixels)
    return Measured(
        codec=name,
        bytes_each=round(each, 1),
        shared=len(codec.shared),
        psnr=None if noise is None else round(noise, 2),
        encode=round(1e6 * (encoded - started) / len(images), 1),
        decode=round(1e6 * (decoded - encoded) / len(images), 1),
        exemplars=[int((budget - len(codec.shared)) // each) for budget in BUDGETS],
    )


def measure_all(names: Sequence[str], first: Task, images: ImageSet) -> list[Measured]:
    """The table, printed line by line; a codec that is not available here has none."""
    print(
        f"{'codec':18}{'bytes':>9}{'shared':>8}{'PSNR, dB':>10}{'enc, us':>9}{'dec, us':>9}"
        + "".join(f"{f'in {budget / 1e6:.3f} MB':>12}" for budget in BUDGETS)
    )
    table = []
    for name in names:
        try:
            table.append(measure(name, first, images))
            print(table[-1], flush=True)
        except UserError as error:
            print(f"{name:18}{error}", flush=True)
    return table


def decoding_against_training(name: str, first: Task) -> Ratio:
    """Seconds to decode 20,000 exemplars, beside an epoch of training on as many."""
    codec = create_codec(name, first.train.image_size)
    codec.prepare(first.train.pixels)
    payloads = codec.encode(first.train.pixels[:AT_ONCE]) * (EXEMPLARS // AT_ONCE)
    labels = first.train.labels[:AT_ONCE].repeat(EXEMPLARS // AT_ONCE)
    started = time.perf_counter()
    images = EncodedImages(codec, payloads, labels)[:]
    decoding = time.perf_counter() - started
    device = torch.device("cpu")
    precision = resolve_precision("auto", device)
    training = epoch_seconds(images, len(first.new), device, precision)
    print(f"{name:18}{decoding:9.2f} s{training:9.2f} s", flush=True)
    what = f"Time to decode {EXEMPLARS:,} exemplars, {name}"
    baseline = "an epoch of training on them"
    return Ratio(what, baseline, decoding / training, "below 1", precision=precision)


def epoch_seconds(images: ImageSet, classes: int, device: torch.device, precision: str) -> float:
    """One epoch of cross-entropy on the images."""
    network = models.create("resnet32", generator(0, "network"))
    network.head.grow(classes, generator(0, "head"))
    trainer = Trainer(network, task=0, seed=0, device=device, precision=precision)
    trainer.fit(
        "epoch",
        AugmentedImages(images, SubtractMean(images.image_size), Augmentation()),
        lambda x, y, step: {"classification": F.cross_entropy(network(x).float(), y)},
        network.named_parameters(),
        Schedule(epochs=1, learning_rate=0.1, milestones=()),
    )
    return trainer.effort.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--codecs", nargs="+", default=CODECS)
    parser.add_argument("--json", type=Path, help="also write the table there")
    add_option(parser)
    options = parser.parse_args()
    stream = create_stream("cifar100/b0-inc10", order="seed0")
    first = stream.task(0)
    others = sum((stream.task(index).train for index in range(1, 10)), first.train[:0])
    chosen = torch.randperm(len(others), generator=generator(0, "codecs"))[: options.images]
    images = others[chosen]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    table = list(map(asdict, measure_all(options.codecs, first, images)))
    # While there is one thread, which the environment tells of.
    write_report(options.json, {"images": len(images), "budgets": BUDGETS, "codecs": table})
    torch.set_num_threads(threads)
    print(f"\n{EXEMPLARS} exemplars   decoding    an epoch")
    names = ("webp-lossless", "jpeg:75", "klt:32")
    publish([decoding_against_training(name, first) for name in names], options.ratios)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"{error}") from error
