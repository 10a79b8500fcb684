"""What pruning buys when DER classifies: ten extractors, whole and cut, side by side.

    python benchmarks/der_inference.py [--rounds 3] [--batch 50] [--tasks 10] [--json FILE]

Masks are random and not learnt, cut to a share of the convolution weights; all networks are as
DER keeps them, in evaluation mode with BatchNorm folded. Reported are the ratios of multiply-adds
and of latency to the whole networks, the latter as the median over rounds that measure all of them
in turn.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from engram import models
from engram.engine.cost import latency, multiply_adds
from engram.engine.device import compute_exactly, move, resolve_device
from engram.models.masks import Allowance, ChannelMasks, Floor, shrunk
from engram.models.resnet import ResNet
from engram.seeding import generator
from ratios import Ratio, add_option, median_ratio, publish, write_report

SMALLEST = 0.1
CUTS = ((0.5, 1), (0.25, 1), (SMALLEST, 1), (SMALLEST, 8))


class Extractors(nn.Module):
    """DER's frozen extractors: all features, side by side."""

    def __init__(self, networks: list[ResNet]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(network.folded() for network in networks)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([network(x) for network in self.networks], dim=1)


@dataclass(frozen=True)
class Row:
    """One way to cut all extractors; `*_ratio` compare the whole ones with it."""

    backbone: str
    keep: float
    multiple: int
    parameters: int
    multiply_adds: int
    multiply_adds_ratio: float
    latency_ms: float
    latency_ratio: float


def cut(network: ResNet, share: float, multiple: int, seed: int) -> ResNet:
    """The network with random channels left, as many as `share` of the weights allows."""
    masks = ChannelMasks(network, steepest=100, rule="hat")
    source = generator(seed, "masks")
    for logits in masks.logits.values():
        logits.data = torch.rand(len(logits), generator=source)
    allowance = Allowance(network=network, floor=Floor(multiple=multiple), share=share)
    return shrunk(network, masks.kept(allowance))


def measure(backbone: str, tasks: int, batch: Tensor, rounds: int) -> list[Row]:
    """All cuts of as many networks as tasks, the whole ones first."""
    make = cast("Callable[[torch.Generator], ResNet]", models.BACKBONES[backbone])
    networks = [make(generator(task, "network")).eval() for task in range(tasks)]
    cuts = [(1.0, 1), *CUTS]
    stacks = [
        Extractors([cut(network, *how, seed) for seed, network in enumerate(networks)])
        for how in cuts
    ]
    for stack in stacks:
        move(stack, batch.device)
    taken = [[latency(stack, batch) for stack in stacks] for _ in range(rounds)]
    times = list(zip(*taken, strict=True))
    work = [multiply_adds(stack, batch) for stack in stacks]
    return [
        Row(
            backbone=backbone,
            keep=keep,
            multiple=multiple,
            parameters=sum(parameter.numel() for parameter in stack.parameters()),
            multiply_adds=operations,
            multiply_adds_ratio=round(work[0] / operations, 2),
            latency_ms=round(1000 * statistics.median(latencies), 2),
            latency_ratio=round(median_ratio(times[0], latencies), 2),
        )
        for (keep, multiple), stack, operations, latencies in zip(
            cuts, stacks, work, times, strict=True
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the rows there too")
    add_option(parser)
    options = parser.parse_args()
    images = torch.randn(options.batch, 3, 32, 32, generator=generator(0))
    device = resolve_device("auto")
    compute_exactly(device)
    images = images.to(device, memory_format=torch.channels_last)
    rows = [
        row
        for backbone in ("resnet32", "resnet18")
        for row in measure(backbone, options.tasks, images, options.rounds)
    ]
    print(f"{options.tasks} extractors, batches of {options.batch}, float32")
    print("backbone  keep  multiple  parameters  M multiply-adds  ratio  latency, ms  ratio")
    for row in rows:
        print(
            f"{row.backbone}  {row.keep:4.2f}  {row.multiple:8}  {row.parameters:10,}  "
            f"{row.multiply_adds / 1e6:15,.1f}  {row.multiply_adds_ratio:5.2f}  "
            f"{row.latency_ms:11,.1f}  {row.latency_ratio:5.2f}"
        )
    small = next(row for row in rows if (row.backbone, row.keep) == ("resnet18", SMALLEST))
    what = f"Speed of {options.tasks} ResNet-18 extractors at {SMALLEST:g} of their weights"
    ratio = Ratio(what, "whole ones", small.latency_ratio, "at least 2", device.type)
    publish([ratio], options.ratios)
    content = {"tasks": options.tasks, "batch": options.batch, "rows": list(map(asdict, rows))}
    write_report(options.json, content)


if __name__ == "__main__":
    main()
