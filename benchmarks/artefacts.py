"""Can a trained network tell old classes from new ones by what a codec leaves behind?

    python benchmarks/artefacts.py RUN_FOLDER [--codec jpeg:75]

Takes the evaluation images of the run's last task, as they are and through the codec (the run's
own, or another), and prints

* probe: how well a linear probe on the network's features tells the two versions apart, on images
  that it was not fitted on; 50 % where it cannot;
* taken for old: the share of the images that is classified as an old class, in either version. A
  network that has learnt "artefacts mean old" takes more of the second for old.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from engram.config import from_mapping, read_yaml
from engram.data.batches import apply
from engram.data.codecs import create_codec
from engram.data.encoded import recoded
from engram.data.images import ImageSet
from engram.data.stream import ClassStream, create_stream
from engram.errors import UserError
from engram.learner import TaskLearner
from engram.methods import method_class

RIDGE = 1e-3


def restored(folder: Path) -> tuple[TaskLearner, ClassStream]:
    """The learner after its last task, and its stream."""
    config = read_yaml(folder / "config.yaml")
    kind = method_class(config["method"]).Config
    stream = create_stream(
        config["stream"], order=config["order"], evaluate_on=config["evaluate_on"]
    )
    learner = TaskLearner(
        config["method"],
        from_mapping(kind, config["settings"], "config.yaml"),
        image_size=stream.image_size,
        budget=config["budget"],
        codec=config["codec"],
        seed=config["seed"],
    )
    learner.restore(max(folder.glob("model/task-*")))
    return learner, stream


def probe(one: Tensor, other: Tensor) -> float:
    """Accuracy in percent of a ridge classifier that tells features (N, dim) of two versions of the
    same images apart; fitted on every second image, measured on the rest."""
    features = torch.stack([one, other]).double()
    features = (features - features.mean((0, 1))) / features.std((0, 1)).clamp_min(1e-9)
    inputs = torch.nn.functional.pad(features, (0, 1), value=1.0)
    targets = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None].expand(inputs.shape[:2])
    x, y = inputs[:, ::2].flatten(0, 1), targets[:, ::2].flatten()
    gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x.T @ y)
    right = (inputs[:, 1::2] @ weights).sign() == targets[:, 1::2]
    return 100 * float(right.double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--codec", help="default: the run's own")
    options = parser.parse_args()
    learner, stream = restored(options.folder)
    task = stream.task(len(stream) - 1)
    images = stream.evaluation(task.new)
    codec = learner.memory.codec
    if options.codec:
        codec = create_codec(options.codec, stream.image_size)
        codec.prepare(stream.task(0).train.pixels)
    versions = {
        "as they are": images,
        f"as {codec.name}": ImageSet(recoded(codec, images.pixels), images.labels),
    }
    method = learner.method
    features = [
        apply(
            lambda pixels: method.network.backbone(method.normalise(pixels)),
            version,
            device=method.device,
        )
        for version in versions.values()
    ]
    print(f"{len(images)} evaluation images of the last task's {len(task.new)} classes")
    print(f"probe: {probe(*features):.1f} % (50 % where the versions cannot be told apart)")
    for name, version in versions.items():
        for rule, labels in learner.predict(version).items():
            old = 100 * float((labels < task.new.start).double().mean())
            print(f"{name:16} {rule:8} taken for old: {old:5.1f} %")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"{error}") from error
