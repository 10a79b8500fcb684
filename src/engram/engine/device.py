"""Where a run computes, and in which precision."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from engram.config import Precision
from engram.errors import UserError, unknown

__all__ = ["compute_exactly", "move", "resolve_device", "resolve_precision"]


def resolve_device(name: str) -> torch.device:
    """The device called `name`; `auto` takes a GPU where there is one.

    Raises:
        UserError: torch knows no such device, or it is not there.
    """
    if name == "auto":
        found = "cuda" if torch.cuda.is_available() else "cpu"
        name = "mps" if torch.backends.mps.is_available() else found
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'Device "{name}" is not available: {reason} Use auto or cpu.') from error
    return device


def compute_exactly(device: torch.device) -> None:
    """See to it that a device gives the same bits again, from now on and in the whole process.

    On CUDA, float32 is made to mean float32 (no TF32) and convolutions deterministic: ranks of
    exemplars hang on near ties, and a resumed run has to give the same bits. The gradient of
    attention is not deterministic there: transformers that are resumed end near these bits only.
    """
    if device.type != "cuda":
        return
    torch.backends.cudnn.deterministic = True
    with warnings.catch_warnings():
        # The names that torch has for it since 2.9 are unknown to the versions before.
        warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def move(module: nn.Module, device: torch.device) -> None:
    """Bring a module to where it computes, laid out as convolutions are fastest: channels last."""
    # The stubs of torch know no memory_format here.
    module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def resolve_precision(precision: Precision, device: torch.device) -> Literal["bf16", "fp32"]:
    """`auto` takes bfloat16 where the hardware has instructions for it, else float32.

    Raises:
        UserError: there is no such precision.
    """
    if precision not in get_args(Precision):
        raise unknown("precision", str(precision), get_args(Precision))
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16; without that, oneDNN's emulation is slower."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    flags = cpuinfo.read_text()
    return "avx512_bf16" in flags or "amx_bf16" in flags
