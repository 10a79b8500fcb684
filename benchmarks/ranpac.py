"""What RanPAC's closed form costs, as a ratio to the bare forward pass of its backbone.

    python benchmarks/ranpac.py [--images 100] [--size 224] [--projected 2000] [--rounds 3]

Ours is `TaskLearner.learn` over ten tasks of ten classes: sums, the choice of the ridge weight, and
the solution after every task. The baseline passes the same images through the backbone in batches
of the same size and throws the features away. Weights are random and images are noise, which
changes nothing in either. Both are measured on each task, now one first and now the other,
in several rounds, of which the median counts.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from engram.data.images import ImageSet
from engram.data.stream import Task
from engram.memory import Budget
from engram.methods.ranpac import RanPAC, RanPACConfig
from engram.models.pretrained import BackboneConfig
from engram.seeding import generator
from engram.task_learner import TaskLearner
from ratios import Ratio, add_option, publish, seconds

TASKS, CLASSES = 10, 10


def task_of(index: int, images: int) -> Task:
    """Noise of ten classes, at 32 pixels."""
    new = range(index * CLASSES, (index + 1) * CLASSES)
    labels = torch.tensor(new).repeat_interleave(images)
    shape = (len(labels), 32, 32, 3)
    pixels = torch.randint(256, shape, generator=generator(index), dtype=torch.uint8)
    return Task(index, ImageSet(pixels, labels), new, range(new.stop))


@dataclass(frozen=True)
class Seconds:
    """What both took for a round, and on what."""

    bare: float
    learnt: float
    device: str
    precision: str


@torch.no_grad()
def forward(method: RanPAC, images: ImageSet) -> None:
    """The backbone alone."""
    for part in images.pixels.split(method.batch_size):
        method.features(method.normalise(part.to(method.device))).cpu()


def measured(config: RanPACConfig, images: int, device: str, first: int) -> Seconds:
    """Ten tasks, by a learner of its own; on every second, the forward pass comes first, from
    that at `first` on."""
    nothing = Budget.parse("0")
    learner = TaskLearner("ranpac", config, image_size=(32, 32), budget=nothing, device=device)
    method = learner.method
    if not isinstance(method, RanPAC):
        raise TypeError(type(method))
    forward(method, task_of(0, 1).train)
    spent = {"bare": 0.0, "learnt": 0.0}
    for index in range(TASKS):
        task = task_of(index, images)
        turns: list[tuple[str, Callable[[], object]]] = [
            ("bare", partial(forward, method, task.train)),
            ("learnt", partial(learner.learn, task)),
        ]
        if (index + first) % 2:
            turns.reverse()
        for name, work in turns:
            spent[name] += seconds(work)
    return Seconds(**spent, device=method.device.type, precision=method.precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100, help="of a class")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--projected", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    add_option(parser)
    options = parser.parse_args()
    backbone = BackboneConfig(weights="random", input_size=options.size)
    config = RanPACConfig(pretrained=backbone, projected=options.projected, adapt=False)
    rounds = [
        measured(config, options.images, options.device, number) for number in range(options.rounds)
    ]
    count = TASKS * CLASSES * options.images
    for found in rounds:
        print(
            f"forward pass {found.bare:7.1f} s, {count / found.bare:6.0f} images/s; "
            f"RanPAC {found.learnt:7.1f} s, {count / found.learnt:6.0f} images/s; "
            f"ratio {found.learnt / found.bare:.3f}"
        )
    what = f"Time of RanPAC, ten tasks, {options.size} pixels, M = {options.projected:,}"
    value = statistics.median(found.learnt / found.bare for found in rounds)
    baseline, place = "the backbone's forward pass alone", (rounds[0].device, rounds[0].precision)
    publish([Ratio(what, baseline, value, "at most 1.25", *place)], options.ratios)


if __name__ == "__main__":
    main()
