"""Merging modules that were trained one after the other into one, weight by weight.

A module is a mapping of names to tensors. Operators that pick among entries (TIES, DARE, magnitude,
max-abs) work on the difference to a reference, the module's initial values, of all weight matrices
together as one vector; scales and biases are averaged, since trimming would set most of them back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engram.config import check_share
from engram.errors import UserError, unknown
from engram.seeding import generator

__all__ = [
    "MERGES",
    "Dare",
    "Ema",
    "Magnitude",
    "MaxAbs",
    "Merge",
    "MergeSettings",
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


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeSettings:
    """What merges are made with.

    Attributes:
        retention: of the moving averages.
        density: of ties, dare and magnitude.
        strength: of ties.
        seed: of dare's choice.
    """

    retention: float
    density: float
    strength: float
    seed: int


@dataclass(frozen=True, slots=True)
class _Kind:
    """How to make a merge, and whether its name can take a density."""

    make: Callable[[MergeSettings], Merge]
    has_density: bool = False


MERGES: dict[str, _Kind] = {
    "ema": _Kind(lambda given: Ema(given.retention, every_step=True)),
    "ema-per-task": _Kind(lambda given: Ema(given.retention)),
    "mean": _Kind(lambda given: RunningMean()),
    "ties": _Kind(lambda given: Ties(given.density, given.strength), has_density=True),
    "dare": _Kind(lambda given: Dare(given.density, given.seed), has_density=True),
    "magnitude": _Kind(lambda given: Magnitude(given.density), has_density=True),
    "max-abs": _Kind(lambda given: MaxAbs()),
}


def create_merge(text: str, settings: MergeSettings) -> Merge:
    """The merge that a name stands for; `ties:0.2` gives another density than the settings.

    Raises:
        UserError: there is no such merge, or a share is not in (0, 1].
    """
    name, colon, number = text.partition(":")
    if name not in MERGES:
        raise unknown("merge", name, MERGES)
    kind = MERGES[name]
    if colon and not kind.has_density:
        with_density = ", ".join(name for name, kind in MERGES.items() if kind.has_density)
        raise UserError(f"merge {text}: only {with_density} have a density.")
    if colon:
        settings = replace(settings, density=_density(text, number))
    return kind.make(settings)


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
