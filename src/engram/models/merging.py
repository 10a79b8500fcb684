"""Merging modules that were trained one after the other into one, weight by weight.

A module is a mapping of names to tensors. Operators that pick among entries (TIES, DARE, magnitude,
max-abs) work on the difference to a reference, the module's initial values, of all weight matrices
together as one vector; scales and biases are averaged, since trimming would set most of them back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engram.config import check_share
from engram.errors import UserError, unknown
from engram.seeding import generator

__all__ = [
    "MERGES",
    "Merge",
    "MergeSettings",
    "Module",
    "create_merge",
    "dropped",
    "max_abs",
    "ties",
    "trimmed",
]

Module = Mapping[str, Tensor]
"""Parameters by name."""


@dataclass(frozen=True, slots=True)
class Merge:
    """How the offline module takes in the online one.

    Attributes:
        merged: the new offline module, of the reference, of what has been accumulated over `task`
            tasks, and of the online module as it is after one task more, whose index `task` is: 1
            or more.
        retention: where it is given, the offline module moves after every step of a task and not at
            its end, and this is the share of itself that it retains over a task.
    """

    merged: Callable[[Module, Module, Module, int], dict[str, Tensor]]
    retention: float | None = None

    def retained(self, part: float) -> float:
        """The share that is retained over a part of a task; over several, that is their product.

        LAE (Gao et al., ICCV 2023) averages with a decay of 0.9999 a step, which ties what is
        retained to the number of steps. Here the decay of a step follows from what is retained.
        """
        return 1.0 if self.retention is None else float(self.retention**part)


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeSettings:
    """What merges are made with.

    Attributes:
        retention: of the moving averages: the share of itself that the offline module retains over
            a task.
        density: of ties, dare and magnitude: the share of a difference's entries that is kept.
        strength: of ties: the factor of the merged difference, lambda in the paper.
        seed: of dare's choice, together with the task.
    """

    retention: float
    density: float
    strength: float
    seed: int

    def __post_init__(self) -> None:
        check_share(self, "retention", "density")


def _ema(given: MergeSettings) -> Merge:
    """Exponential moving average after every step (Gao et al., ICCV 2023)."""
    return Merge(_ema_per_task(given).merged, given.retention)


def _ema_per_task(given: MergeSettings) -> Merge:
    """The same average, once a task."""
    return Merge(lambda reference, offline, online, task: _blend(offline, online, given.retention))


def _mean(given: MergeSettings) -> Merge:
    """The plain mean of the modules after every task."""
    return Merge(
        lambda reference, offline, online, task: _blend(offline, online, task / (task + 1))
    )


def _ties(given: MergeSettings) -> Merge:
    """Trim, elect sign, disjoint merge (Yadav et al., NeurIPS 2023)."""
    return _of_differences(lambda found, task: given.strength * ties(found, given.density))


def _dare(given: MergeSettings) -> Merge:
    """Drop entries at random and scale the others up, then average (Yu et al., ICML 2024)."""

    def averaged(found: Tensor, task: int) -> Tensor:
        return dropped(found, given.density, generator(given.seed, "dare", task)).mean(dim=0)

    return _of_differences(averaged)


def _magnitude(given: MergeSettings) -> Merge:
    """Keep the largest entries of each difference, then average."""
    return _of_differences(lambda found, task: trimmed(found, given.density).mean(dim=0))


def _max_abs(given: MergeSettings) -> Merge:
    """For each entry, the difference that is largest in magnitude (Marczak et al., ECCV 2024)."""
    return _of_differences(lambda found, task: max_abs(found))


def _of_differences(combined: Callable[[Tensor, int], Tensor]) -> Merge:
    """A merge of what modules differ from the reference by: of differences (K, n) of all weight
    matrices, for a task, to one (n,)."""

    def merged(reference: Module, offline: Module, online: Module, task: int) -> dict[str, Tensor]:
        modules = [offline, online]
        return _put_back(reference, combined(_differences(reference, modules), task), modules)

    return Merge(merged)


MERGES: dict[str, Callable[[MergeSettings], Merge]] = {
    "ema": _ema,
    "ema-per-task": _ema_per_task,
    "mean": _mean,
    "ties": _ties,
    "dare": _dare,
    "magnitude": _magnitude,
    "max-abs": _max_abs,
}
WITH_DENSITY = ("ties", "dare", "magnitude")


def create_merge(text: str, settings: MergeSettings) -> Merge:
    """The merge that a name stands for; `ties:0.2` gives another density than the settings.

    Raises:
        UserError: there is no such merge, or a share is not in (0, 1].
    """
    name, colon, number = text.partition(":")
    if name not in MERGES:
        raise unknown("merge", name, MERGES)
    if colon and name not in WITH_DENSITY:
        raise UserError(f"merge {text}: only {', '.join(WITH_DENSITY)} have a density.")
    if colon:
        settings = replace(settings, density=_density(text, number))
    return MERGES[name](settings)


def _density(text: str, number: str) -> float:
    """The number after the colon."""
    try:
        return float(number)
    except ValueError as error:
        raise UserError(f'merge {text}: "{number}" is not a density.') from error


def ties(vectors: Tensor, density: float) -> Tensor:
    """TIES of differences (K, n): (n,).

    An entry's sign is that of the sum of what is left of it, or the majority's where that is zero;
    its value is the mean of those that are not zero and have that sign.
    """
    left = trimmed(vectors, density)
    signs = left.sum(dim=0).sign()
    signs = torch.where(signs == 0, signs.sum().sign(), signs)
    agreeing = (left.sign() == signs) & (left != 0)
    return (left * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp_min(1)


def trimmed(vectors: Tensor, density: float) -> Tensor:
    """Differences (K, n) with all but the largest entries of each set to zero."""
    count = int(density * vectors.shape[1])
    if count == vectors.shape[1]:
        return vectors
    places = vectors.abs().topk(count, dim=1).indices
    kept = torch.zeros_like(vectors, dtype=torch.bool).scatter_(1, places, value=True)
    return vectors * kept


def dropped(vectors: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Differences (K, n) with entries set to zero at random, the others divided by `density`."""
    kept = torch.rand(vectors.shape, generator=generator).to(vectors.device) < density
    return vectors * kept / density


def max_abs(vectors: Tensor) -> Tensor:
    """Differences (K, n) to the largest in magnitude of each entry (n,); the first of equals."""
    return vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))[0]


def _blend(first: Module, second: Module, share: float) -> dict[str, Tensor]:
    return {name: share * tensor + (1 - share) * second[name] for name, tensor in first.items()}


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.dim() > 1


def _differences(reference: Module, modules: Sequence[Module]) -> Tensor:
    """(K, n) differences of all weight matrices to the reference's."""
    names = [name for name, tensor in reference.items() if _is_matrix(tensor)]
    flat = [
        torch.cat([(module[name] - reference[name]).flatten() for name in names])
        for module in modules
    ]
    return torch.stack(flat)


def _put_back(reference: Module, merged: Tensor, modules: Sequence[Module]) -> dict[str, Tensor]:
    """The reference plus a merged difference of its matrices; of the rest, the modules' mean."""
    found: dict[str, Tensor] = {}
    done = 0
    for name, tensor in reference.items():
        if _is_matrix(tensor):
            part = merged[done : done + tensor.numel()]
            found[name] = tensor + part.reshape(tensor.shape)
            done += tensor.numel()
        else:
            found[name] = torch.stack([module[name] for module in modules]).mean(dim=0)
    return found
