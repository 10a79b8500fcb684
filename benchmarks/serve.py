"""A prediction by REST, as a ratio to the bare forward pass of the model's network on one image.

    python benchmarks/serve.py [--rounds 200] [--width 640] [--height 480]

Ours is a request to `engram serve` in a process of its own: a JPEG goes in, names with scores come
out. The baseline is the network alone, on pixels of its input size, in this process. Both are
measured in turn, one picture at a time; medians are compared. Weights are random, which changes
nothing in either.
"""

from __future__ import annotations

import argparse
import http.client
import io
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engram.learner import Learner
from engram.methods.ranpac import RanPACConfig
from engram.models.pretrained import BackboneConfig, load_backbone
from engram.seeding import generator
from ratios import Ratio, add_option, alternate, publish

BACKBONE = BackboneConfig(weights="random")
CLASSES, EACH = 10, 8
WARM_UP = 10
"""Rounds that are not counted: a server becomes fast over several requests."""


def pictures(width: int, height: int, count: int, seed: int) -> list[np.ndarray]:
    """Smooth noise, which takes about as long to decode as a photograph."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, height // 8, width // 8, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(one).resize((width, height))) for one in coarse]


def served(model: Path) -> tuple[subprocess.Popen[str], int]:
    """A server over a model that has learnt; its port."""
    config = RanPACConfig(pretrained=BACKBONE, projected=2000, adapt=False)
    learner = Learner(config, device="cpu")
    learner.learn({f"class {label}": pictures(64, 64, EACH, label) for label in range(CLASSES)})
    learner.save(model)
    command = [sys.executable, "-m", "engram", "serve", str(model), "--port=0", "--device=cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if process.stdout is None or not (found := re.search(r":(\d+)/", process.stdout.readline())):
        raise RuntimeError("the server did not start")
    return process, int(found[1])


@torch.no_grad()
def measured(port: int, jpeg: bytes, rounds: int) -> dict[str, list[float]]:
    """Seconds of every request, and of every forward pass."""
    network = load_backbone(BACKBONE, generator(0)).network
    pixels = torch.randn(1, 3, BACKBONE.input_size, BACKBONE.input_size)
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def request() -> None:
        connection.request("POST", "/api/predict", jpeg, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(answer.read())
        answer.read()

    def forward() -> None:
        network(pixels)

    functions = {"request": request, "forward": forward}
    alternate(functions, WARM_UP)
    found = alternate(functions, rounds)
    connection.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    add_option(parser)
    options = parser.parse_args()
    (picture,) = pictures(options.width, options.height, 1, seed=99)
    jpeg = io.BytesIO()
    Image.fromarray(picture).save(jpeg, "JPEG", quality=90)
    with tempfile.TemporaryDirectory() as folder:
        process, port = served(Path(folder) / "model")
        try:
            times = measured(port, jpeg.getvalue(), options.rounds)
        finally:
            process.terminate()
            process.communicate()
    request, forward = (statistics.median(times[name]) for name in ("request", "forward"))
    slow = statistics.quantiles(times["request"], n=100)[98]
    print(f"forward pass, one image   {1000 * forward:7.1f} ms")
    print(f"prediction by REST        {1000 * request:7.1f} ms   (99 of 100 in {1000 * slow:.1f})")
    what, baseline = "Time of a prediction by REST", "the network's forward pass on one image"
    publish([Ratio(what, baseline, request / forward, "at most 3")], options.ratios)


if __name__ == "__main__":
    main()
