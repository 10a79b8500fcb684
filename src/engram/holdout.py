"""`Holdout`: images that are set aside, by which is measured what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engram.data.codecs import create_codec
from engram.data.images import ImageSet, checksums
from engram.errors import UserError
from engram.files import load_tensors, save_tensors
from engram.memory import Budget, ExemplarMemory

__all__ = ["Holdout", "Lesson"]

HOLDOUT = "holdout.safetensors"
SEEN = "seen.safetensors"
LEAST_TO_SET_ASIDE = 5
"""Images that a class must have for some to be set aside."""
CHECKSUMS = 2**32
"""How many checksums there can be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """Images that are given, by what becomes of them.

    Attributes:
        learnt: those to learn from.
        probe: those to measure on, of known classes and of new ones.
        repeated: how many are left out, because they were learnt before or are given twice.
    """

    learnt: ImageSet
    probe: ImageSet
    repeated: int

    def check(self, names: Sequence[str], new: range) -> None:
        """Refuse to learn from nothing.

        Raises:
            UserError: nothing is left to learn from, or nothing of a class that is new.
        """
        lacking = [names[label] for label in new if not (self.learnt.labels == label).any()]
        if lacking:
            raise UserError(
                f"All pictures of {lacking[0]} are set aside, as another class, to measure what is "
                "forgotten. Add others."
            )
        if not len(self.learnt):
            raise UserError(
                f"There is nothing new: {self.repeated} of the pictures were learnt before or are "
                "given twice; any others are set aside to measure what is forgotten. Add more."
            )


class Holdout:
    """Images that are set aside, in a memory of their own, and checksums of all that were seen.

    An image is known by what it shows, long after it is gone: one that was learnt is not learnt
    twice, and one that is set aside never is. The same image as another class is news.

    Args:
        share: of the images of a class of which none are set aside yet, in [0, 1).
        budget: of the memory.
        codec: how images are stored.
        image_size: height and width.
    """

    def __init__(
        self, share: float, budget: Budget, codec: str, image_size: tuple[int, int]
    ) -> None:
        self.share = share
        self.memory = ExemplarMemory(budget, create_codec(codec, image_size))
        self._learnt = torch.empty(0, dtype=torch.int64)
        """Labels and checksums of images that were learnt from, as one number."""
        self._aside = torch.empty(0, dtype=torch.int64)
        """Checksums of images that are, or were, set aside."""

    def resize(self, budget: Budget) -> None:
        """Go on under another budget; empty, if that cannot hold all classes."""
        if budget == self.memory.budget:
            return
        self.memory.budget = budget
        nothing = ImageSet.empty(self.memory.codec.image_size)
        if not self._keep(nothing):
            codec = self.memory.codec
            self.memory = ExemplarMemory(budget, create_codec(codec.name, codec.image_size))

    def lesson(self, images: ImageSet, classes: int) -> Lesson:
        """What there is to learn from images, of which some are set aside.

        Args:
            classes: how many there are with those of the images.
        """
        probe = self.memory.images()[:]
        sums = torch.tensor(checksums(images.pixels), dtype=torch.int64)
        repeated = self._are_repeated(images.labels, sums)
        images, sums = images[~repeated], sums[~repeated]
        aside = torch.isin(sums, self._chosen(images, sums, classes))
        if not self._keep(images[aside]):
            aside = torch.zeros_like(aside)
        learnt = ~aside & ~torch.isin(sums, self._aside)
        self._learnt = torch.cat([self._learnt, _keys(images.labels[learnt], sums[learnt])])
        self._aside = torch.cat([self._aside, sums[aside].unique()])
        return Lesson(
            learnt=images[learnt],
            probe=probe + images[aside],
            repeated=int(repeated.sum()),
        )

    def _are_repeated(self, labels: Tensor, sums: Tensor) -> Tensor:
        """(B,) bool: of images that were learnt as this class, or came before in the batch."""
        keys = _keys(labels, sums)
        _, first = np.unique(keys.numpy(), return_index=True)
        again = torch.ones_like(keys, dtype=torch.bool)
        again[torch.from_numpy(first)] = False
        return again | torch.isin(keys, self._learnt)

    def _chosen(self, images: ImageSet, sums: Tensor, classes: int) -> Tensor:
        """Checksums of the images to set aside: some of every class of which there are none yet, if
        there is room for all `classes`."""
        memory = self.memory
        unwanted = not self.share or memory.budget.none or not len(images)
        if unwanted or not memory.fits(classes, images):
            return sums[:0]
        room = math.floor(min(memory.room_each(classes, images), len(images)))
        chosen = [sums[:0]]
        for label in images.labels.unique().tolist():
            of_class = sums[images.labels == label].unique()
            if len(of_class) >= LEAST_TO_SET_ASIDE and not memory.counts.get(label):
                count = max(1, round(self.share * len(of_class)))
                chosen.append(of_class[: min(count, len(of_class) - 1, room)])
        return torch.cat(chosen)

    def _keep(self, images: ImageSet) -> bool:
        """Take images into the memory, unless its budget cannot hold one of every class."""
        try:
            self.memory.update(images)
        except UserError:
            return False
        return True

    def save(self, folder: Path) -> None:
        """Write everything into a folder."""
        save_tensors(folder / HOLDOUT, *self.memory.state())
        save_tensors(folder / SEEN, {"learnt": self._learnt, "aside": self._aside}, {})

    def restore(self, folder: Path, *, strict: bool, class_names: Sequence[str]) -> None:
        """Take over what `save` wrote; see `ExemplarMemory.load_state`."""
        tensors, table = load_tensors(folder / HOLDOUT, intact=False)
        self.memory.load_state(
            tensors, table, strict=strict, where=str(folder), class_names=class_names
        )
        seen = load_tensors(folder / SEEN)[0]
        self._learnt, self._aside = seen["learnt"], seen["aside"]


def _keys(labels: Tensor, sums: Tensor) -> Tensor:
    """Labels and checksums as one number each."""
    return labels * CHECKSUMS + sums
