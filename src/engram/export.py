"""A learner as one ONNX file, which needs nothing of this package to run."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from engram.errors import UserError, install_command
from engram.files import replacing
from engram.methods import Method

__all__ = ["export_onnx"]

NEEDED = ("onnx", "onnxscript")
EXAMPLES = 2
"""Images in the batch that is traced; the file takes any number."""


class _Classifier(nn.Module):
    """Pixels to the method's scores, and to probabilities."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.method.scores(pixels)
        return scores, self.method.probabilities(scores)


def export_onnx(method: Method, class_names: Sequence[str], path: Path) -> None:
    """Write a method as it is now.

    The file's input is `pixels`, (N, H, W, 3) uint8, upright squares of the size that it was learnt
    at; its outputs are `scores` and `probabilities`, (N, classes). Its metadata hold `classes`, a
    JSON list of names, and `image_size`.

    Raises:
        UserError: a package is missing that writes ONNX.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"To export, {' and '.join(missing)} must be installed: "
            f"{install_command('engram[onnx]')}."
        )
    height, width = method.image_size
    example = torch.zeros(EXAMPLES, height, width, 3, dtype=torch.uint8, device=method.device)
    precision = method.precision
    method.precision = "fp32"
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                _Classifier(method).eval(),
                (example,),
                dynamo=True,
                input_names=["pixels"],
                output_names=["scores", "probabilities"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    finally:
        method.precision = precision
    if program is None:
        raise RuntimeError("the exporter gave nothing")
    names = json.dumps(list(class_names), ensure_ascii=False)
    program.model.metadata_props.update(classes=names, image_size=f"{height}x{width}")
    with replacing(path) as partial:
        program.save(str(partial))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say about themselves."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
