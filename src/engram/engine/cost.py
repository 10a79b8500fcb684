"""What it costs to classify: multiply-adds, and time on the machine at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["latency", "multiply_adds"]

PASSES = 10


@torch.no_grad()
def multiply_adds(function: Callable[[Tensor], object], inputs: Tensor) -> int:
    """Multiplications with an addition, of one input, in convolutions and matrix products.

    Args:
        function: called once with `inputs`.
        inputs: (B, ...), one at least.
    """
    with FlopCounterMode(display=False) as counter:
        function(inputs)
    return int(counter.get_total_flops()) // (2 * len(inputs))


@torch.no_grad()
def latency(function: Callable[[Tensor], object], inputs: Tensor) -> float:
    """Seconds from a batch of inputs to what `function` makes of it: the median of ten passes.

    Args:
        inputs: (B, ...), on the device where `function` computes.
    """
    function(inputs)
    return statistics.median(_seconds(function, inputs) for _ in range(PASSES))


def _seconds(function: Callable[[Tensor], object], inputs: Tensor) -> float:
    _wait(inputs.device)
    started = time.perf_counter()
    function(inputs)
    _wait(inputs.device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
