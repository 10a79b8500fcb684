"""Merging modules that were trained one after the other into one, weight by weight.

A module is a mapping of names to tensors. Operators that pick among entries (TIES, DARE, magnitude,
max-abs) work on the difference to a reference, the module's initial values, of all weight matrices
together as one vector; scales and biases are averaged, since trimming would set most of them back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engram.config import check_share
from engram.errors import UserError, unknown
from engram.seeding import generator

__all__ = [
    "EMA",
    "Dare",
    "Ema",
    "Magnitude",
    "MaxAbs",
    "Merge",
    "Module",
    "RunningMean",
    "Ties",
    "create_merge",
    "dropped",
    "max_abs",
    "ties",
    "trimmed",
]

Module = Mapping[str, Tensor]
"""Parameters by name."""

EMA = "ema"
"""The moving average after every step, as published; others merge at the end of a task."""
NAMES = (EMA, "ema-per-task", "mean", "ties", "dare", "magnitude", "max-abs")
WITH_DENSITY = ("ties", "dare", "magnitude")


class Merge(ABC):
    """How the offline module takes in the online one."""

    every_step: bool = False
    """After every step of a task, and not at its end."""

    @abstractmethod
    def __call__(
        self, reference: Module, offline: Module, online: Module, task: int
    ) -> dict[str, Tensor]:
        """The new offline module.

        Args:
            reference: the module at its initialisation.
            offline: what has been accumulated over `task` tasks.
            online: as it is after one task more.
            task: index of that task, 1 or more.
        """


class MergeOfDifferences(Merge):
    """A merge of what modules differ from the reference by."""

    def __call__(
        self, reference: Module, offline: Module, online: Module, task: int
    ) -> dict[str, Tensor]:
        differences = _differences(reference, [offline, online])
        return _put_back(reference, self.merged(differences, task), [offline, online])

    @abstractmethod
    def merged(self, differences: Tensor, task: int) -> Tensor:
        """Differences (K, n) of all weight matrices to one (n,)."""


@dataclass(frozen=True, slots=True)
class Ema(Merge):
    """Exponential moving average, by the share of itself that the offline module retains a task.

    LAE (Gao et al., ICCV 2023) averages after every step with a decay of 0.9999, which ties the
    retention to the number of steps. Here the decay of a step is what leads to this retention.
    """

    retention: float
    every_step: bool = False

    def __post_init__(self) -> None:
        check_share(self, "retention")

    def __call__(
        self, reference: Module, offline: Module, online: Module, task: int
    ) -> dict[str, Tensor]:
        return _blend(offline, online, self.retention)

    def retained(self, part: float) -> float:
        """The share that is retained over a part of a task; over several, that is their product."""
        return float(self.retention**part)


@dataclass(frozen=True, slots=True)
class RunningMean(Merge):
    """The plain mean of the modules after every task."""

    def __call__(
        self, reference: Module, offline: Module, online: Module, task: int
    ) -> dict[str, Tensor]:
        return _blend(offline, online, task / (task + 1))


@dataclass(frozen=True, slots=True)
class Ties(MergeOfDifferences):
    """Trim, elect sign, disjoint merge (Yadav et al., NeurIPS 2023).

    Attributes:
        density: share of the entries of each difference that is kept, the largest ones.
        strength: factor of the merged difference, lambda in the paper.
    """

    density: float = 0.5
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_share(self, "density")

    def merged(self, differences: Tensor, task: int) -> Tensor:
        return self.strength * ties(differences, self.density)


@dataclass(frozen=True, slots=True)
class Dare(MergeOfDifferences):
    """Drop entries at random and scale the others up, then average (Yu et al., ICML 2024).

    Attributes:
        density: share of the entries that is kept.
        seed: of the choice, together with the task.
    """

    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_share(self, "density")

    def merged(self, differences: Tensor, task: int) -> Tensor:
        source = generator(self.seed, "dare", task)
        return dropped(differences, self.density, source).mean(dim=0)


@dataclass(frozen=True, slots=True)
class Magnitude(MergeOfDifferences):
    """Keep the largest entries of each difference, then average.

    Attributes:
        density: share of the entries that is kept.
    """

    density: float = 0.5

    def __post_init__(self) -> None:
        check_share(self, "density")

    def merged(self, differences: Tensor, task: int) -> Tensor:
        return trimmed(differences, self.density).mean(dim=0)


@dataclass(frozen=True, slots=True)
class MaxAbs(MergeOfDifferences):
    """Of each entry, the difference that is largest in magnitude (Marczak et al., ECCV 2024)."""

    def merged(self, differences: Tensor, task: int) -> Tensor:
        return max_abs(differences)


def create_merge(
    text: str, *, retention: float, density: float, strength: float, seed: int
) -> Merge:
    """The merge that a name stands for; `ties:0.2` gives another density than `density`.

    Args:
        retention: of the moving averages.
        density: of ties, dare and magnitude.
        strength: of ties.
        seed: of dare's choice.

    Raises:
        UserError: there is no such merge, or a share is not in (0, 1].
    """
    name, colon, number = text.partition(":")
    if colon and name not in WITH_DENSITY:
        raise UserError(f"merge {text}: only {', '.join(WITH_DENSITY)} have a density.")
    try:
        density = float(number) if colon else density
    except ValueError as error:
        raise UserError(f'merge {text}: "{number}" is not a density.') from error
    match name:
        case "ema" | "ema-per-task":
            return Ema(retention, every_step=name == EMA)
        case "mean":
            return RunningMean()
        case "ties":
            return Ties(density, strength)
        case "dare":
            return Dare(density, seed)
        case "magnitude":
            return Magnitude(density)
        case "max-abs":
            return MaxAbs()
    raise unknown("merge", name, NAMES)


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
