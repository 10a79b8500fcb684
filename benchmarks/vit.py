"""Training a frozen ViT's adapters in engram, as a ratio to timm's ViT in a bare loop.

    python benchmarks/vit.py [--size 112] [--batch 24] [--steps 10] [--rounds 3] [--device auto]

The baseline is timm's own network with the same adapters attached and the same optimiser, fed one
batch that is ready: no sampling, no augmentation, no record of losses. Ours is `Trainer.fit` on
augmented images, as LAE calls it. Weights are random, precision is what the device trains in. Both
are measured in turn, and the median over the rounds is reported; and then attention alone, in
bfloat16, as a ratio to torch's fused kernel.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.config import Schedule
from engram.data.augment import Augmentation
from engram.data.batches import AugmentedImages, Step
from engram.data.images import ImageSet
from engram.engine.device import compute_exactly, resolve_device, resolve_precision
from engram.engine.fit import Trainer
from engram.models.adapters import ModuleConfig, attach
from engram.models.pretrained import BackboneConfig, load_backbone
from engram.models.vit import SIZES, attend
from engram.seeding import generator
from ratios import Ratio, add_option, publish

CLASSES = 10
NAME = "vit_tiny_patch16_224"
ATTENTION_ROUNDS = 30


def network_of(name: str, size: int) -> tuple[nn.Module, Any, nn.Linear]:
    """A frozen backbone with LAE's adapters, what normalises its input, and a classifier."""
    config = BackboneConfig(backbone=name, weights="random", input_size=size)
    found = load_backbone(config, generator(0))
    attach(found.network, ModuleConfig(), generator(1))
    return found.network, found.normalise, nn.Linear(found.dim, CLASSES)


def ours(
    images: ImageSet, size: int, batch: int, device: torch.device, precision: str
) -> Callable[[], None]:
    """One call trains on every image once, as LAE does."""
    backbone, normalise, head = network_of(NAME, size)
    whole = nn.ModuleList([backbone, normalise, head]).to(device)
    schedule = Schedule(
        epochs=1, batch_size=batch, optimizer="adam", learning_rate=1e-3, decay="constant"
    )
    source = AugmentedImages(
        images.to(device), normalise, Augmentation(padding=0.0, least_area=0.08)
    )

    def loss(x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
        return {"classification": F.cross_entropy(head(backbone(x)).float(), y)}

    def train() -> None:
        trainer = Trainer(whole, task=0, seed=0, device=device, precision=precision)
        trainer.fit("modules", source, loss, whole.named_parameters(), schedule)

    return train


def bare(
    steps: int, size: int, batch: int, device: torch.device, precision: str
) -> Callable[[], None]:
    """One call makes as many steps on one batch that is there already."""
    backbone, _, head = network_of(f"timm/{NAME}", size)
    backbone.to(device).train()
    head.to(device)
    trained = [p for p in [*backbone.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    x = torch.randn(batch, 3, size, size, device=device)
    y = torch.arange(batch, device=device) % CLASSES

    def train() -> None:
        for _ in range(steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = F.cross_entropy(head(backbone(x)).float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    return train


def attention(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    size: int,
    batch: int,
    device: torch.device,
) -> Callable[[], None]:
    """One call attends with a block's queries, keys and values, forward and backward."""
    tiny, tokens = SIZES["tiny"], (size // 16) ** 2 + 1
    shape = (batch, tiny.heads, tokens, tiny.dim // tiny.heads)
    parts = [
        torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    ]

    def run() -> None:
        function(*parts).sum().backward()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    return run


def seconds(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def medians(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Seconds of a call of each, measured in turn after one that is not counted."""
    for run in runs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(seconds(run))
    return {name: statistics.median(times) for name, times in found.items()}


def allow_torchvision_to_be_absent() -> torch.library.Library:
    """timm imports torchvision, which beside a CPU build of torch lacks two operators."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in () if torch.version.cuda else ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    add_option(parser)
    options = parser.parse_args()
    device = resolve_device(options.device)
    compute_exactly(device)
    precision = resolve_precision("auto", device)
    count = options.steps * options.batch
    pixels = torch.randint(256, (count, 32, 32, 3), generator=generator(2), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(count) % CLASSES)
    library = allow_torchvision_to_be_absent()
    runs = {
        "timm, bare loop": bare(options.steps, options.size, options.batch, device, precision),
        "engram": ours(images, options.size, options.batch, device, precision),
    }
    del library
    found = medians(runs, options.rounds)
    for name, taken in found.items():
        print(f"{name:16} {count / taken:8.1f} images/s")
    print(f"{precision}, {device}")
    what = f"Speed of training a ViT-Tiny's adapters, {options.size} pixels"
    value = found["timm, bare loop"] / found["engram"]
    baseline, place = "timm's ViT-Tiny in a bare loop", (device.type, precision)
    training = Ratio(what, baseline, value, "at least 0.95", *place)
    kernels = {
        name: attention(function, options.size, options.batch, device)
        for name, function in (("fused", F.scaled_dot_product_attention), ("engram", attend))
    }
    found = medians(kernels, ATTENTION_ROUNDS)
    what, baseline = "Speed of attention, forward and backward", "torch's fused kernel"
    faster = found["fused"] / found["engram"]
    attending = Ratio(what, baseline, faster, "at least 1", device.type, "bf16")
    publish([training, attending], options.ratios)


if __name__ == "__main__":
    main()
