"""Modules whose tensors take the shapes of a saved state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["take_shapes"]


def take_shapes(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every parameter and buffer of `module` the shape that it has in `state`.

    For networks that were cut while they learnt: what was cut is known from the shapes alone, so
    loading rebuilds them and then copies the values.
    """
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        saved = state.get(name)
        if saved is None or saved.shape == tensor.shape:
            continue
        owner = module.get_submodule(name.rpartition(".")[0])
        empty = torch.empty(saved.shape, dtype=tensor.dtype, device=tensor.device)
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        setattr(owner, name.rpartition(".")[2], empty)
