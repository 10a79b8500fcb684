"""Training throughput of `Trainer.fit` on ResNet-32, as ratios to two baselines in the same run.

(a) bare: a hand-written loop over one fixed batch; same network, loss, optimiser and precision,
    and no data work at all. What `Trainer.fit` loses to it is what its shuffling, augmentation,
    learning rates and bookkeeping cost.
(b) usual: the loop that most public code has: float32, a `DataLoader` with worker processes, Pillow
    images augmented one at a time, `.item()` at every step. On a GPU it has what the package sets
    for the whole process: deterministic convolutions and no TF32, which torch's defaults lack.

    python benchmarks/throughput.py [--rounds 5] [--batches 20]

The loops take turns; each ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engram import models
from engram.config import Schedule
from engram.data.augment import Augmentation
from engram.data.batches import AugmentedImages
from engram.data.images import ImageSet
from engram.engine.cost import wait
from engram.engine.device import compute_exactly, move, resolve_device, resolve_precision
from engram.engine.fit import Trainer
from engram.models.network import Network
from engram.models.normalise import SubtractMean
from engram.seeding import generator
from ratios import Ratio, add_option, alternate, median_ratio, medians, publish

BATCH = 128
CLASSES = 100
SCHEDULE = Schedule(epochs=1, batch_size=BATCH, learning_rate=0.1, decay="constant")
BASELINES = (
    ("bare", "a bare loop over one batch that is ready", "at least 0.93"),
    ("usual", "the usual loop: float32, DataLoader, Pillow", "at least 3"),
)


def images(batches: int) -> ImageSet:
    """Noise: what is in the pixels does not change the speed."""
    count = BATCH * batches
    pixels = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8)
    return ImageSet(pixels, torch.randint(CLASSES, (count,)))


def network(device: torch.device) -> Network:
    net = models.create("resnet32", generator(0, "network"))
    net.head.grow(CLASSES, generator(0, "head"))
    return net.to(device).train()


def fast_network(device: torch.device) -> Network:
    net = network(device)
    move(net, device)
    return net


def optimizer_of(net: Network) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=2e-5)


def engram_loop(data: ImageSet, device: torch.device, precision: str) -> Callable[[], None]:
    net = fast_network(device)
    normalise = SubtractMean(data.image_size).to(device)
    normalise.fit([data.pixels])
    source = AugmentedImages(data.to(device), normalise, Augmentation())

    def loss(x: Tensor, y: Tensor, step: object) -> dict[str, Tensor]:
        return {"classification": F.cross_entropy(net(x).float(), y)}

    def loop() -> None:
        trainer = Trainer(net, task=0, seed=0, device=device, precision=precision)
        trainer.fit("training", source, loss, net.named_parameters(), SCHEDULE)
        wait(device)

    return loop


def bare_loop(data: ImageSet, device: torch.device, precision: str) -> Callable[[], None]:
    net = fast_network(device)
    optimizer = optimizer_of(net)
    x = torch.randn(BATCH, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (BATCH,), device=device)

    def loop() -> None:
        for _ in range(len(data) // BATCH):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = F.cross_entropy(net(x).float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        wait(device)

    return loop


class PillowImages(Dataset[tuple[Tensor, int]]):
    """One image at a time: pad, crop and flip with Pillow, then to a normalised float tensor."""

    def __init__(self, data: ImageSet) -> None:
        self.images = [Image.fromarray(pixels) for pixels in data.pixels.numpy()]
        self.labels = data.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        left, top = np.random.randint(0, 9, 2)
        padded = ImageOps.expand(self.images[index], 4)
        image = padded.crop((left, top, left + 32, top + 32))
        if np.random.rand() < 0.5:
            image = ImageOps.mirror(image)
        x = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()).float().div_(255)
        return x.sub_(0.5).div_(0.25), self.labels[index]


def usual_loop(data: ImageSet, device: torch.device) -> Callable[[], None]:
    net = network(device)
    optimizer = optimizer_of(net)
    loader = DataLoader(
        PillowImages(data), BATCH, shuffle=True, num_workers=2, persistent_workers=True
    )

    def loop() -> None:
        for x, y in loader:
            loss = F.cross_entropy(net(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        wait(device)

    return loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20, help="of 128 images, a round")
    add_option(parser)
    options = parser.parse_args()
    device = resolve_device("auto")
    compute_exactly(device)
    precision = resolve_precision("auto", device)
    data = images(options.batches)
    loops = {
        "engram": engram_loop(data, device, precision),
        "bare": bare_loop(data, device, precision),
        "usual": usual_loop(data, device),
    }
    times = alternate(loops, options.rounds)
    print(f"ResNet-32, batch {BATCH}, {device}, {torch.get_num_threads()} threads")
    for name, median in medians(times).items():
        kind = "fp32" if name == "usual" else precision
        print(f"  {name:7}{kind:6}{len(data) / median:8.0f} images/s")
    what, place = "Speed of training ResNet-32", (device.type, precision)
    ratios = [
        Ratio(what, baseline, median_ratio(times[name], times["engram"]), wanted, *place)
        for name, baseline, wanted in BASELINES
    ]
    publish(ratios, options.ratios)


if __name__ == "__main__":
    main()
