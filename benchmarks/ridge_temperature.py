"""Votes of LAE's experts by the temperature of the ridge regression.

    python benchmarks/ridge_temperature.py RUN_FOLDER

Takes the model of a finished run and its evaluation images, which should be validation images, and
prints the accuracy of all experts' vote, by the highest probability and by the mean, at several
temperatures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from engram.bench import restored
from engram.errors import UserError
from engram.methods.lae import LAE

TEMPERATURES = (0.01, 0.015, 0.02, 0.03, 0.05, 0.1)


@torch.no_grad()
def expert_probabilities(method: LAE, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """(N, seen) probabilities of every expert, the offline one by the first merge."""
    first = method.deciding_merge
    found: dict[str, list[torch.Tensor]] = {}
    for part in pixels.split(method.batch_size):
        x = method.normalise(part.to(method.device))
        for name, values in method.experts(x, [first]).items():
            found.setdefault(name, []).append(values.cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def accuracy(values: torch.Tensor, labels: torch.Tensor) -> float:
    """In percent, where the highest of (N, seen) values decides."""
    return 100 * float((values.argmax(dim=1) == labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    learner, stream = restored(options.folder)
    method = learner.method
    if not isinstance(method, LAE) or method.ridge is None:
        raise UserError(f"{options.folder} is not a run of LAE with the ridge regression.")
    images = stream.evaluation(range(method.seen))
    found = expert_probabilities(method, images.pixels)
    # A softmax at one temperature holds what is needed for any other.
    scores = found.pop("ridge").log() * method.config.ridge_temperature
    others = list(found.values())
    for name, values in [*found.items(), ("ridge", scores)]:
        print(f"{name:16}{accuracy(values, images.labels):6.2f} %")
    print(f"{len(images)} images\n{'temperature':>12}{'highest':>10}{'mean':>8}")
    for temperature in TEMPERATURES:
        votes = torch.stack([*others, (scores / temperature).softmax(dim=1)])
        highest, mean = (
            accuracy(vote, images.labels) for vote in (votes.amax(dim=0), votes.mean(dim=0))
        )
        print(f"{temperature:12g}{highest:10.2f}{mean:8.2f}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"{error}") from error
