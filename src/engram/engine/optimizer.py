"""The optimiser, and its state by the names of parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from engram.config import Schedule

__all__ = ["create_optimizer", "optimizer_state", "restore_optimizer"]


def create_optimizer(
    names: Mapping[nn.Parameter, str], schedule: Schedule
) -> torch.optim.Optimizer:
    """In two groups: what is not called `weight`, above all biases, has no weight decay."""
    weights = [parameter for parameter, name in names.items() if name.endswith("weight")]
    others = [parameter for parameter, name in names.items() if not name.endswith("weight")]
    groups = [
        {"params": weights, "weight_decay": schedule.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if schedule.optimizer == "adam":
        return torch.optim.Adam(groups, lr=schedule.learning_rate)
    return torch.optim.SGD(
        groups,
        lr=schedule.learning_rate,
        momentum=schedule.momentum,
        nesterov=schedule.nesterov,
    )


def optimizer_state(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]
) -> dict[str, Tensor]:
    """The optimiser's tensors (momenta, step counts) as `<parameter>/<entry>`."""
    return {
        f"{name}/{entry}": value
        for parameter, name in names.items()
        for entry, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[nn.Parameter, str],
    state: Mapping[str, Tensor],
) -> None:
    """Put what `optimizer_state` gave into a fresh optimiser over parameters of the same names."""
    parameters = {name: parameter for parameter, name in names.items()}
    for key, value in state.items():
        name, entry = key.rsplit("/", 1)
        parameter = parameters[name]
        # A step count stays with the processor, where the optimiser reads it.
        placed = value if entry == "step" else torch.empty_like(parameter).copy_(value)
        optimizer.state[parameter][entry] = placed
