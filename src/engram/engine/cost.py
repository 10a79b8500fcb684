"""What it costs to classify: multiply-adds, and time on the machine at hand."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["latency", "multiply_adds", "wait"]

PASSES = 10


def _attention(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    """Operations of attention on (B, heads, N, D) queries and (B, heads, K, D) keys and values."""
    return 4 * math.prod(query) * key[2]


ATTENTION_ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
"""What torch's own table of operations lacks."""


@torch.no_grad()
def multiply_adds(function: Callable[[Tensor], object], inputs: Tensor) -> int:
    """Multiplications with an addition, of one input, in convolutions, matrix products, attention.

    Args:
        function: called once with `inputs`.
        inputs: (B, ...), one at least.
    """
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU) as counter:
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
    wait(inputs.device)
    started = time.perf_counter()
    function(inputs)
    wait(inputs.device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
