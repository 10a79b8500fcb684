"""Heads: from features to one score a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BiasFreeHead", "CosineHead", "LinearHead", "RidgeHead"]

RIDGE_SHARES = tuple(10.0**exponent for exponent in range(0, -5, -1))
"""Ridge weights that are tried first, in units of the Gram matrix's mean eigenvalue. Above it, what
few images or a rare class say would be lost; far below, rounding would choose."""
LARGEST_EIGENBASIS = 2048
"""Dimensions up to which one eigendecomposition is cheaper than a solve for every ridge weight."""
SUMMED_AT_ONCE = 1024
"""Images whose products are added to the sums in one step: to write into 5,000 x 5,000 sums takes
longer than the products of few images."""


class LinearHead(nn.Module):
    """A linear layer that gains rows as classes arrive and keeps the ones it has.

    Attributes:
        weight: (classes, dim).
        bias: (classes,).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, dim))
        self.bias = nn.Parameter(torch.empty(0))

    def grow(
        self, classes: int, generator: torch.Generator, deviation: float | None = None
    ) -> None:
        """Append `classes` rows, normally distributed, with bias 0.

        Args:
            deviation: of the weights; 1/sqrt(dim) where None, which is He's with gain 1.
        """
        dim = self.weight.shape[1]
        scale = dim**-0.5 if deviation is None else deviation
        rows = torch.randn(classes, dim, generator=generator).mul_(scale)
        self.weight = nn.Parameter(torch.cat([self.weight.data, rows.to(self.weight.device)]))
        self.bias = nn.Parameter(
            torch.cat([self.bias.data, torch.zeros(classes, device=self.bias.device)])
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, dim) features to (B, classes) logits."""
        return F.linear(features, self.weight, self.bias)


class BiasFreeHead(nn.Module):
    """A linear layer of fixed size without bias, as the authors of DER have it, drawn as PyTorch
    draws its own: uniform in +-1/sqrt(dim).

    Attributes:
        weight: (classes, dim).
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, dim))

    def draw(self, generator: torch.Generator) -> None:
        """New random weights in place of those there are."""
        values = torch.rand(self.weight.shape, generator=generator)
        reach = max(1, self.weight.shape[1]) ** -0.5
        self.weight.data.copy_((2 * values - 1) * reach)

    def keep_features(self, kept: Tensor) -> None:
        """Read only those of the features where `kept` (dim,) is true; the others are gone."""
        self.weight = nn.Parameter(self.weight.data[:, kept])

    def forward(self, features: Tensor) -> Tensor:
        """(B, dim) features to (B, classes) logits."""
        return F.linear(features, self.weight)


class CosineHead(BiasFreeHead):
    """Cosines between features and a direction of each class, times a learnt scale that starts at
    1: what the authors of RanPAC adapt modules with.

    Attributes:
        scale: ().
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(dim, classes)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """(B, dim) features to (B, classes) logits."""
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


class RidgeHead(nn.Module):
    """A classifier in closed form: ridge regression on randomly projected features.

    RanPAC (McDonnell et al., NeurIPS 2023): h = ReLU(f P) with a fixed random P, sums of h^T h and
    h^T y over all images, and weights that solve the regression. Sums do not depend on the order
    of images or on how they were cut into tasks, so nothing is forgotten. The ridge weight is the
    one that predicts images best which are set aside from its choice; sums are kept for these and
    for the others apart, and the weights are solved from both together.

    Args:
        dim: length of the features.
        projected: random dimensions M; 0 for the features themselves.
        generator: source of the projection.

    Attributes:
        gram: (2, M, M) float64, sums of h^T h of images to fit and of those set aside. This and
            `targets` stay with the processor where a device has no float64, as Apple's have none.
        targets: (2, M, classes) float64, sums of h^T y likewise.
        counts: (2,) images likewise.
        weight: (classes, M), solved; zeros before the first `solve`.
        ridge: the weight of the penalty that was chosen.
    """

    def __init__(self, dim: int, projected: int, generator: torch.Generator) -> None:
        super().__init__()
        width = projected or dim
        drawn = torch.randn(dim, projected, generator=generator) if projected else None
        self.register_buffer("projection", drawn)
        self.register_buffer("gram", torch.zeros(2, width, width, dtype=torch.float64))
        self.register_buffer("targets", torch.zeros(2, width, 0, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("weight", torch.zeros(0, width))
        self.register_buffer("ridge", torch.zeros((), dtype=torch.float64))
        self.projection: Tensor | None
        self.gram: Tensor
        self.targets: Tensor
        self.counts: Tensor
        self.weight: Tensor
        self.ridge: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RidgeHead:
        def moved(tensor: Tensor) -> Tensor:
            try:
                return fn(tensor)
            except TypeError:  # what torch says to float64 on a device that has none
                if tensor.dtype != torch.float64:
                    raise
                return tensor

        head: RidgeHead = super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return head

    def project(self, features: Tensor) -> Tensor:
        """(B, dim) features to (B, M)."""
        return features if self.projection is None else F.relu(features @ self.projection)

    def forward(self, features: Tensor) -> Tensor:
        """(B, dim) features to (B, classes) regression scores."""
        return self.project(features) @ self.weight.T

    def grow(self, classes: int) -> None:
        """Make room for `classes` more; scores of the old ones stay until the next `solve`."""
        columns = self.targets.new_zeros(*self.targets.shape[:2], classes)
        self.targets = torch.cat([self.targets, columns], dim=2)
        self.weight = torch.cat([self.weight, self.weight.new_zeros(classes, len(self.gram[0]))])

    @property
    def parameter_count(self) -> int:
        """Numbers that classification needs: the projection and the weights."""
        return self.weight.numel() + (0 if self.projection is None else self.projection.numel())

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, aside: Tensor) -> None:
        """Take images into the sums.

        Args:
            features: (B, dim).
            labels: (B,).
            aside: (B,) bool, those by which the ridge weight is chosen. To be a property of the
                image, so that it depends neither on order nor on tasks.
        """
        for part, chosen in enumerate((~aside, aside)):
            self.counts[part] += int(chosen.sum())
            parts = features[chosen].split(SUMMED_AT_ONCE), labels[chosen].split(SUMMED_AT_ONCE)
            for some, classes in zip(*parts, strict=True):
                h = self.project(some).to(self.gram.device).double()
                y = F.one_hot(classes, self.targets.shape[2]).to(self.gram.device).double()
                self.gram[part].addmm_(h.T, h)
                self.targets[part].addmm_(h.T, y)

    @torch.no_grad()
    def solve(self) -> None:
        """Choose the ridge weight, and solve the regression with it, in float64."""
        self.ridge.fill_(self._best_ridge())
        solved = _solved(self.gram.sum(0), self.targets.sum(0), float(self.ridge))
        self.weight = solved.T.float().to(self.weight.device)

    def _best_ridge(self) -> float:
        """The best of a decade each, then of half a decade to either side, and never above the mean
        eigenvalue; that, where there is nothing to choose by."""
        if not self.counts.all():
            return _mean_eigenvalue(self.gram.sum(0))
        unit = _mean_eigenvalue(self.gram[0])
        small = len(self.gram[0]) <= LARGEST_EIGENBASIS
        error = self._error_in_eigenbasis() if small else self._error_by_solve
        decades = {unit * share: error(unit * share) for share in RIDGE_SHARES}
        best = _least(decades)
        sides = {side: error(side) for side in (best / 10**0.5, best * 10**0.5) if side <= unit}
        return _least(decades | sides)

    def _error_in_eigenbasis(self) -> Callable[[float], Tensor]:
        """See `_error_by_solve`; in the eigenbasis of the Gram matrix, a solve is a division."""
        values, basis = torch.linalg.eigh(self.gram[0])
        fit, aside = basis.T @ self.targets[0], basis.T @ self.targets[1]
        gram = basis.T @ self.gram[1] @ basis

        def error(ridge: float) -> Tensor:
            return _squared_error(fit / (values.clamp_min(0) + ridge)[:, None], gram, aside)

        return error

    def _error_by_solve(self, ridge: float) -> Tensor:
        """The squared error on the images set aside, but for a constant, with a ridge weight."""
        weight = _solved(self.gram[0], self.targets[0], ridge)
        return _squared_error(weight, self.gram[1], self.targets[1])


def _mean_eigenvalue(gram: Tensor) -> float:
    return float(gram.diagonal().mean())


def _least(errors: Mapping[float, Tensor]) -> float:
    """The ridge weight of the smallest error; the first of equals."""
    return list(errors)[int(torch.stack(list(errors.values())).argmin())]


def _solved(gram: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """(M, classes): (G + ridge I)^-1 Q. Where rounding makes G + ridge I indefinite, the solution
    of least norm."""
    regular = gram.clone()
    regular.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(regular)
    if failed:
        pseudo_inverse: Tensor = torch.linalg.pinv(regular, hermitian=True)
        return pseudo_inverse @ targets
    return torch.cholesky_solve(targets, factor)


def _squared_error(weight: Tensor, gram: Tensor, targets: Tensor) -> Tensor:
    """Sum of squared errors of h W on images with these sums, without the constant sum of y^2."""
    return (weight * (gram @ weight)).sum() - 2 * (weight * targets).sum()
