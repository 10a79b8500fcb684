"""Can a trained network tell old classes from new ones by what a codec leaves behind?

    python benchmarks/artefacts.py RUN_FOLDER... [--codec jpeg:75] [--json docs/artefacts.json]

Takes the evaluation images of a run's last task, as they are and through the codec (the run's own,
or another), and prints

* probe: how well a linear probe on the network's features tells the two versions apart, on images
  that it was not fitted on; 50 % where it cannot;
* taken for old: the share of the images that is classified as an old class, in either version. A
  network that has learnt "artefacts mean old" takes more of the second for old.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engram.bench import restored
from engram.data.batches import apply
from engram.data.codecs import create_codec
from engram.data.encoded import recoded
from engram.data.images import ImageSet
from engram.errors import UserError
from engram.methods.icarl import ICaRL
from engram.results.comparison import changed_settings
from ratios import write_report

RIDGE = 1e-3


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


def measure(folder: Path, codec_name: str | None) -> dict[str, Any]:
    """The probe, and the share of new images that are taken for old ones, by decision rule: as they
    are, and through the codec.

    Raises:
        UserError: the folder is not a run of iCaRL.
    """
    learner, stream = restored(folder)
    method = learner.method
    if not isinstance(method, ICaRL):
        raise UserError(f"{folder} is a run of {learner.name}; give runs of icarl.")
    backbone = method.network.backbone
    task = stream.task(len(stream) - 1)
    images = stream.evaluation(task.new)
    codec = learner.memory.codec
    if codec_name:
        codec = create_codec(codec_name, stream.image_size)
        codec.prepare(stream.task(0).train.pixels)
    versions = [images, ImageSet(recoded(codec, images.pixels), images.labels)]
    features = [
        apply(
            lambda pixels: backbone(method.normalise(pixels)),
            version,
            device=method.device,
            batch_size=method.batch_size,
        )
        for version in versions
    ]
    labels = [learner.predict(version) for version in versions]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "name": ", ".join([codec.name, *changed_settings(summary)]),
        "images": len(images),
        "probe": probe(*features),
        "taken_for_old": {
            rule: [100 * float((by[rule] < task.new.start).double().mean()) for by in labels]
            for rule in labels[0]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--codec", help="default: the run's own")
    parser.add_argument("--json", type=Path, help="also write what was found there")
    options = parser.parse_args()
    runs = []
    for folder in options.folders:
        run = measure(folder, options.codec)
        runs.append(run)
        print(f"{run['name']}: {run['images']} images, probe {run['probe']:.1f} %")
        for rule, (before, after) in run["taken_for_old"].items():
            print(f"  {rule:8} takes for old {before:5.1f} %, through the codec {after:5.1f} %")
    write_report(options.json, {"runs": runs})


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"{error}") from error
