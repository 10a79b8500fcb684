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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.config import Schedule
from engram.data.augment import Augmentation
from engram.data.batches import AugmentedImages, Step
from engram.data.images import ImageSet
from engram.engine.cost import wait
from engram.engine.device import compute_exactly, resolve_device, resolve_precision
from engram.engine.fit import Trainer
from engram.models.adapters import ModuleConfig, attach
from engram.models.pretrained import BackboneConfig, load_backbone
from engram.models.vit import SIZES, attend
from engram.seeding import generator
from ratios import Ratio, add_option, alternate, medians, publish

CLASSES = 10
NAME = "vit_tiny_patch16_224"
ATTENTION_ROUNDS = 30

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of queries, keys and values, each (B, heads, N, D)."""


def network_of(name: str, size: int) -> tuple[nn.Module, Any, nn.Linear]:
    """A frozen backbone with LAE's adapters, what normalises its input, and a classifier."""
    config = BackboneConfig(backbone=name, weights="random", input_size=size)
    found = load_backbone(config, generator(0))
    attach(found.network, ModuleConfig(), generator(1))
    return found.network, found.normalise, nn.Linear(found.dim, CLASSES)


@dataclass(frozen=True)
class Setting:
    """What is trained: so many steps on batches of images that reach the network at `size`."""

    size: int
    batch: int
    steps: int
    device: torch.device
    precision: str

    @property
    def images(self) -> int:
        """All that is trained on."""
        return self.steps * self.batch


def ours(setting: Setting) -> Callable[[], None]:
    """One call trains on every image once, as LAE does."""
    backbone, normalise, head = network_of(NAME, setting.size)
    whole = nn.ModuleList([backbone, normalise, head]).to(setting.device)
    schedule = Schedule(
        epochs=1, batch_size=setting.batch, optimizer="adam", learning_rate=1e-3, decay="constant"
    )
    shape = (setting.images, 32, 32, 3)
    pixels = torch.randint(256, shape, generator=generator(2), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(setting.images) % CLASSES).to(setting.device)
    source = AugmentedImages(images, normalise, Augmentation(padding=0.0, least_area=0.08))

    def loss(x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
        return {"classification": F.cross_entropy(head(backbone(x)).float(), y)}

    def train() -> None:
        trainer = Trainer(whole, task=0, seed=0, device=setting.device, precision=setting.precision)
        trainer.fit("modules", source, loss, whole.named_parameters(), schedule)

    return train


def bare(setting: Setting) -> Callable[[], None]:
    """One call makes as many steps on one batch that is there already."""
    device, size = setting.device, setting.size
    backbone, _, head = network_of(f"timm/{NAME}", size)
    backbone.to(device).train()
    head.to(device)
    trained = [p for p in [*backbone.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    x = torch.randn(setting.batch, 3, size, size, device=device)
    y = torch.arange(setting.batch, device=device) % CLASSES
    low = setting.precision == "bf16"

    def train() -> None:
        for _ in range(setting.steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                loss = F.cross_entropy(head(backbone(x)).float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        wait(device)

    return train


def attention(function: Attention, setting: Setting) -> Callable[[], None]:
    """One call attends with a block's queries, keys and values, forward and backward."""
    tiny, tokens = SIZES["tiny"], (setting.size // 16) ** 2 + 1
    shape = (setting.batch, tiny.heads, tokens, tiny.dim // tiny.heads)
    parts = [
        torch.randn(shape, device=setting.device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    ]

    def run() -> None:
        function(*parts).sum().backward()
        wait(setting.device)

    return run


def speed_of_training(setting: Setting, rounds: int) -> Ratio:
    runs = {"timm, bare loop": bare(setting), "engram": ours(setting)}
    found = medians(alternate(runs, rounds))
    for name, taken in found.items():
        print(f"{name:16} {setting.images / taken:8.1f} images/s")
    print(f"{setting.precision}, {setting.device}")
    return Ratio(
        f"Speed of training a ViT-Tiny's adapters, {setting.size} pixels",
        "timm's ViT-Tiny in a bare loop",
        found["timm, bare loop"] / found["engram"],
        "at least 0.95",
        setting.device.type,
        setting.precision,
    )


def speed_of_attention(setting: Setting) -> Ratio:
    kernels: dict[str, Attention] = {"fused": F.scaled_dot_product_attention, "engram": attend}
    runs = {name: attention(function, setting) for name, function in kernels.items()}
    found = medians(alternate(runs, ATTENTION_ROUNDS))
    return Ratio(
        "Speed of attention, forward and backward",
        "torch's fused kernel",
        found["fused"] / found["engram"],
        "at least 1",
        setting.device.type,
        "bf16",
    )


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
    setting = Setting(options.size, options.batch, options.steps, device, precision)
    ratios = [speed_of_training(setting, options.rounds), speed_of_attention(setting)]
    publish(ratios, options.ratios)


if __name__ == "__main__":
    main()
