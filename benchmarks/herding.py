"""Herding of 100 classes x 500 images x 64 features, 20 picks: ratio to the plain loop.

    python benchmarks/herding.py [--rounds 5]

The plain loop is Algorithm 4 of iCaRL as it is written: at every pick the distance of every image's
would-be mean to the class mean, in float64. The picks must be identical.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engram.memory import herding
from ratios import Ratio, add_option, alternate, median_ratio, medians, publish

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


def all_picks(herd: Callable[[Tensor, int], list[int]], classes: Tensor) -> list[list[int]]:
    return [herd(features, PICKS) for features in classes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    add_option(parser)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, 1, DIM, generator=generator)
    noise = torch.randn(CLASSES, IMAGES, DIM, generator=generator)
    classes = F.normalize(centres + noise, dim=2)
    if all_picks(our_herding, classes) != all_picks(plain_herding, classes):
        raise SystemExit("The picks differ.")
    kinds = {"engram": our_herding, "plain": plain_herding}
    times = alternate(
        {name: partial(all_picks, herd, classes) for name, herd in kinds.items()}, options.rounds
    )
    print(f"{CLASSES} classes x {IMAGES} images x {DIM} features, {PICKS} picks; picks identical")
    for name, median in medians(times).items():
        print(f"  {name:6} {1e3 * median:7.1f} ms")
    what = f"Speed of herding, {CLASSES} classes of {IMAGES} images"
    ratio = median_ratio(times["plain"], times["engram"])
    publish([Ratio(what, "the plain loop, the same picks", ratio, "well above 1")], options.ratios)


if __name__ == "__main__":
    main()
