"""How large the extractors of DER may be, and what is said where that leaves no room for one."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from engram.errors import UserError
from engram.models.backbone import Backbone
from engram.models.masks import Allowance, Floor
from engram.models.resnet import ResNet

__all__ = ["SizeLimit", "parameters_of"]

SHARE_OF_ROOM = 1 / 8
"""What an extractor may take of the parameters that `max_parameters` still allows: whatever the
number of tasks, there is something left for the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeLimit:
    """What is asked for as a size.

    Attributes:
        keep: share of its convolution weights that an extractor may keep; all where None.
        max_parameters: bound of extractors and classifier together, such as 6M; None for no bound.
        floor: what is left of an extractor in any case.
        backbone: the name of what extractors are.
    """

    keep: float | None
    max_parameters: str | None
    floor: Floor
    backbone: str

    @property
    def parameters(self) -> int | None:
        """`max_parameters` as a number.

        Raises:
            UserError: it is none.
        """
        if self.max_parameters is None:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([kM]?)", self.max_parameters)
        if match is None:
            raise UserError(
                f"max_parameters must be a number such as 6M or 500k, not {self.max_parameters}."
            )
        return int(float(match[1]) * {"": 1, "k": 1_000, "M": 1_000_000}[match[2]])

    def prunable(self, network: Backbone) -> ResNet:
        """The same network, as one that can become smaller.

        Raises:
            UserError: it has no channels that could be cut.
        """
        if isinstance(network, ResNet):
            return network
        raise UserError(
            "keep, max_parameters and sparsity_weight cut channels of a ResNet, which "
            f"{self.backbone} is not. Leave them out, or choose a ResNet."
        )

    def allowance(
        self, network: Backbone, extractors: Sequence[Backbone], classes: int
    ) -> Allowance:
        """How large an extractor may be.

        Of a bound for everything, as much as the classifier takes stays free for it, so that as
        many classes again can come when no more extractors fit.

        Args:
            network: the extractor before anything is cut out of it.
            extractors: those beside it.
            classes: of the classifier on the features of all.

        Raises:
            UserError: the network cannot be cut.
        """
        room = None
        if (limit := self.parameters) is not None:
            taken = parameters_of(extractors, 2 * classes)
            room = max(0, int((limit - taken) * SHARE_OF_ROOM))
        return Allowance(
            network=self.prunable(network),
            floor=self.floor,
            share=self.keep or 1.0,
            parameters=room,
            classes=2 * classes,
        )

    def check(self, network: Backbone, classes: int = 0) -> None:
        """Refuse a size in which there is no first extractor.

        Raises:
            UserError: with the smallest size that there can be.
        """
        allowance = self.allowance(network, [], classes)
        smallest = allowance.smallest()
        if allowance.fits(smallest):
            return
        floor = (
            f"with least_channels {self.floor.stream} and round_channels {self.floor.multiple}, "
            f"{self.backbone}"
        )
        if allowance.parameters is None:
            least = math.ceil(allowance.share_of(smallest) * 10_000) / 10_000
            raise UserError(
                f"keep {self.keep} is too little: {floor} keeps {least:g} of its weights at least. "
                "Keep more, or lower these two."
            )
        needed = math.ceil(allowance.size(smallest) / SHARE_OF_ROOM)
        classifier = f"a classifier of {classes} classes" if classes else "no classes yet"
        raise UserError(
            f"max_parameters {self.max_parameters} is too little: {floor} and {classifier} need "
            f"{needed:,} at least, and more with every class. Allow more, or lower these two."
        )

    def has_room(
        self, network: Backbone, extractors: Sequence[Backbone], classes: int, *, again: bool
    ) -> bool:
        """Whether an extractor fits; where only the classifier can learn, says so.

        Args:
            network: the extractor before anything is cut out of it.
            extractors: those that there are.
            classes: of the classifier on the features of all.
            again: whether the last of them is learnt over again and so makes room for itself.

        Raises:
            UserError: the extractor is the first, or not even the classifier fits.
        """
        if not extractors:
            self.check(network, classes)
            return True
        allowance = self.allowance(network, extractors[: -1 if again else None], classes)
        smallest = allowance.smallest()
        if allowance.fits(smallest):
            return True
        limit, needed = self.parameters, parameters_of(extractors, classes)
        if limit is not None and needed > limit:
            raise UserError(
                f"With {classes} classes the network has {needed:,} parameters; max_parameters "
                f"is {self.max_parameters}. Begin anew with more, or stop here."
            )
        warnings.warn(
            f"Of max_parameters {self.max_parameters}, the next extractor may take "
            f"{allowance.parameters:,}, and the smallest takes {allowance.size(smallest):,}: only "
            "the classifier learns. To go on growing, begin anew with more.",
            stacklevel=2,
        )
        return False


def parameters_of(extractors: Sequence[Backbone], classes: int = 0) -> int:
    """Parameters of extractors, and of a classifier of so many classes on their features."""
    weights = sum(weight.numel() for network in extractors for weight in network.parameters())
    return weights + classes * sum(network.dim for network in extractors)
