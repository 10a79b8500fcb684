"""What RanPAC's closed form costs, as a ratio to the bare forward pass of its backbone.

    python benchmarks/ranpac.py [--images 100] [--size 224] [--projected 2000] [--device auto]

Ours is `TaskLearner.learn` over ten tasks of ten classes: sums, the choice of the ridge weight, and
the solution after every task. The baseline passes the same images through the backbone in batches
of the same size and throws the features away. Weights are random and images are noise, which
changes nothing in either; both are measured on each task in turn.
"""

from __future__ import annotations

import argparse
import time

import torch

from engram.data.images import ImageSet
from engram.data.stream import Task
from engram.methods.ranpac import RanPAC, RanPACConfig
from engram.models.pretrained import BackboneConfig
from engram.seeding import generator
from engram.task_learner import TaskLearner
from ratios import Ratio, add_option, publish

TASKS, CLASSES = 10, 10


def task_of(index: int, images: int) -> Task:
    """Noise of ten classes, at 32 pixels."""
    new = range(index * CLASSES, (index + 1) * CLASSES)
    labels = torch.tensor(new).repeat_interleave(images)
    shape = (len(labels), 32, 32, 3)
    pixels = torch.randint(256, shape, generator=generator(index), dtype=torch.uint8)
    return Task(index, ImageSet(pixels, labels), new, range(new.stop))


@torch.no_grad()
def forward(method: RanPAC, images: ImageSet) -> float:
    """Seconds of the backbone alone."""
    started = time.perf_counter()
    for part in images.pixels.split(method.batch_size):
        method.features(method.normalise(part.to(method.device))).cpu()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100, help="of a class")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--projected", type=int, default=2000)
    parser.add_argument("--device", default="auto")
    add_option(parser)
    options = parser.parse_args()
    backbone = BackboneConfig(weights="random", input_size=options.size)
    config = RanPACConfig(pretrained=backbone, projected=options.projected, adapt=False)
    learner = TaskLearner("ranpac", config, image_size=(32, 32), budget="0", device=options.device)
    method = learner.method
    if not isinstance(method, RanPAC):
        raise TypeError(type(method))
    forward(method, task_of(0, 1).train)
    bare = learnt = 0.0
    for index in range(TASKS):
        task = task_of(index, options.images)
        bare += forward(method, task.train)
        started = time.perf_counter()
        learner.learn(task)
        learnt += time.perf_counter() - started
    count = TASKS * CLASSES * options.images
    print(f"forward pass  {bare:7.1f} s, {count / bare:6.0f} images/s")
    print(f"RanPAC        {learnt:7.1f} s, {count / learnt:6.0f} images/s")
    print(f"{options.images} images a class, {method.precision}, {method.device}")
    what = f"Time of RanPAC, ten tasks, {options.size} pixels, M = {options.projected:,}"
    ratio = Ratio(what, "the backbone's forward pass alone", learnt / bare, "at most 1.25")
    publish([ratio], options.ratios)


if __name__ == "__main__":
    main()
