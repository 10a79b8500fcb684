"""Herding of 100 classes x 500 images x 64 features, 20 picks: ratio to the plain loop.

    python benchmarks/herding.py [--rounds 5]

The plain loop is Algorithm 4 of iCaRL as it is written: at every pick the distance of every image's
would-be mean to the class mean, in float64. The picks must be identical.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engram.memory import herding
from ratios import Ratio, add_option, publish

CLASSES, IMAGES, DIM, PICKS = 100, 500, 64, 20


def plain_herding(features: Tensor, count: int) -> list[int]:
    """Algorithm 4, word for word, but that no image is picked twice."""
    phi = features.double().numpy()
    mean = phi.mean(axis=0)
    total = np.zeros(phi.shape[1])
    picks: list[int] = []
    for k in range(1, count + 1):
        distances = np.linalg.norm(mean - (phi + total) / k, axis=1)
        distances[picks] = np.inf
        picks.append(int(distances.argmin()))
        total += phi[picks[-1]]
    return picks


def our_herding(features: Tensor, count: int) -> list[int]:
    return list(islice(herding(features), count))


def seconds(function: Callable[[Tensor, int], list[int]], classes: Tensor) -> float:
    started = time.perf_counter()
    for features in classes:
        function(features, PICKS)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    add_option(parser)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, 1, DIM, generator=generator)
    noise = torch.randn(CLASSES, IMAGES, DIM, generator=generator)
    classes = F.normalize(centres + noise, dim=2)
    for features in classes:
        if our_herding(features, PICKS) != plain_herding(features, PICKS):
            raise SystemExit("the picks differ")
    measured = [
        (seconds(our_herding, classes), seconds(plain_herding, classes))
        for _ in range(options.rounds)
    ]
    ours, plain = (statistics.median(column) for column in zip(*measured, strict=True))
    ratio = statistics.median(slow / fast for fast, slow in measured)
    print(f"{CLASSES} classes x {IMAGES} images x {DIM} features, {PICKS} picks; picks identical")
    print(f"  engram {1e3 * ours:7.1f} ms\n  plain  {1e3 * plain:7.1f} ms")
    what = f"Speed of herding, {CLASSES} classes of {IMAGES} images"
    publish([Ratio(what, "the plain loop, the same picks", ratio, "well above 1")], options.ratios)


if __name__ == "__main__":
    main()
