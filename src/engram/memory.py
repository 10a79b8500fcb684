"""The exemplar memory: a few images of every class seen, under a budget that is never exceeded.

Images rest as bytes, in order of rank within their class, so that making room is dropping the
tail (iCaRL, Algorithm 5) and a class's share of the budget is one division.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from engram.data.codecs import Codec
from engram.data.images import ImageSet
from engram.data.stream import Task
from engram.errors import UserError

__all__ = ["Budget", "ExemplarMemory", "herding"]

Rank = Callable[[ImageSet], Sequence[int]]

_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True, slots=True)
class Budget:
    """What the memory may hold: so many images, images a class, or bytes; or everything.

    Attributes:
        kind: what `amount` counts.
        amount: 0 where kind is "all".
    """

    kind: Literal["images", "images a class", "bytes", "all"]
    amount: int

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`2000` (images), `20/class`, `6144000B`, `6MB` (10^6 bytes), `6MiB` (2^20) or `all`.

        Raises:
            UserError: the text is none of these.
        """
        if text == "all":
            return cls("all", 0)
        if re.fullmatch(r"\d+", text):
            return cls("images", int(text))
        if match := re.fullmatch(r"(\d+)/class", text):
            return cls("images a class", int(match[1]))
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?B|[KMG]iB)", text)
        if match:
            return cls("bytes", int(float(match[1]) * _UNITS[match[2]]))
        raise UserError(
            f'"{text}" is not a budget. Give images (2000), images a class (20/class), '
            "bytes (6144000B, 6MB, 6MiB), or all."
        )

    def in_bytes(self, classes: int, image_size: tuple[int, int]) -> int | None:
        """The bound in bytes with `classes` classes; an image counts as its uint8 pixels.

        None where there is no bound.
        """
        pixels = image_size[0] * image_size[1] * 3
        match self.kind:
            case "images":
                return self.amount * pixels
            case "images a class":
                return self.amount * classes * pixels
            case "bytes":
                return self.amount
            case "all":
                return None

    @property
    def none(self) -> bool:
        """Whether nothing at all may be kept."""
        return self.kind != "all" and self.amount == 0

    def check(self, classes: int, image_size: tuple[int, int]) -> None:
        """Refuse a budget that could not hold one uncompressed image of each of `classes`.

        Raises:
            UserError: with the smallest budget that can.
        """
        needed = self.in_bytes(classes, image_size)
        smallest = classes * image_size[0] * image_size[1] * 3
        if needed is None or self.none or needed >= smallest:
            return
        raise UserError(
            f"A budget of {self.amount} {self.kind} cannot hold one exemplar of each of the "
            f"{classes} classes. The smallest that can: {classes} images, or {smallest} bytes."
        )


class ExemplarMemory:
    """Exemplars of every class seen, as bytes, best first, never over the budget.

    Args:
        budget: the bound; a class's share is `budget / classes`, rounded down.
        codec: how an image becomes bytes.

    Attributes:
        most_bytes: the most that was ever held at once.
    """

    def __init__(self, budget: Budget, codec: Codec) -> None:
        self.budget = budget
        self.codec = codec
        self.most_bytes = 0
        self._image_size: tuple[int, int] | None = None
        self._classes: dict[int, list[bytes]] = {}

    def __len__(self) -> int:
        """Exemplars held."""
        return sum(map(len, self._classes.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of all payloads held."""
        return sum(len(payload) for kept in self._classes.values() for payload in kept)

    @property
    def counts(self) -> dict[int, int]:
        """Exemplars held of each class, by label."""
        return {label: len(kept) for label, kept in self._classes.items()}

    def budget_bytes(self) -> int | None:
        """The bound in bytes with the classes held now, or None where there is none."""
        return self.budget.in_bytes(len(self._classes), self._image_size or (0, 0))

    def update(self, task: Task, rank: Rank | None = None) -> None:
        """Make room for the task's new classes, then keep the best-ranked images of each.

        Args:
            rank: positions of a class's images, best first; order of arrival where None.
                Algorithms 4 and 5 of iCaRL with `herding` as rank.

        Raises:
            UserError: a class's share would not hold one exemplar.
        """
        self._image_size = task.train.image_size
        if self.budget.none:
            return
        classes = len(self._classes) + len(task.new)
        self.budget.check(classes, self._image_size)
        for label, kept in self._classes.items():
            self._classes[label] = self._share_of(kept, classes)
        for label in task.new:
            images = task.train.of(label)
            order = range(len(images)) if rank is None else rank(images)
            payloads = [self.codec.encode(images.pixels[position]) for position in order]
            self._classes[label] = self._share_of(payloads, classes)
        self.most_bytes = max(self.most_bytes, self.nbytes)

    def _share_of(self, payloads: list[bytes], classes: int) -> list[bytes]:
        """The longest prefix of `payloads` that fits one of `classes` equal shares."""
        match self.budget.kind:
            case "all":
                return payloads
            case "images a class":
                return payloads[: self.budget.amount]
            case "images":
                return payloads[: self.budget.amount // classes]
            case "bytes":
                ends = np.cumsum([len(payload) for payload in payloads])
                share = self.budget.amount // classes
                return payloads[: int(np.searchsorted(ends, share, side="right"))]

    def of(self, label: int) -> ImageSet:
        """The exemplars of one class, best first."""
        return self._decoded({label: self._classes[label]})

    def images(self) -> ImageSet:
        """All exemplars, class by class, best first.

        Raises:
            ValueError: the memory has never been given an image, and so knows no image size.
        """
        return self._decoded(self._classes)

    def __add__(self, images: ImageSet) -> ImageSet:
        """Exemplars and new images together: what a method with rehearsal trains on."""
        return self.images() + images if self._classes else images

    def _decoded(self, classes: Mapping[int, list[bytes]]) -> ImageSet:
        if self._image_size is None:
            raise ValueError("this memory has not been given an image yet")
        size = self._image_size
        pixels = [
            self.codec.decode(kept, size) for payloads in classes.values() for kept in payloads
        ]
        labels = [label for label, payloads in classes.items() for _ in payloads]
        if not pixels:
            return ImageSet.empty(size)
        return ImageSet(torch.stack(pixels), torch.tensor(labels))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything held: payloads as tensors, and a table of plain values."""
        tensors = {
            f"class.{label}": torch.frombuffer(bytearray(b"".join(kept)), dtype=torch.uint8)
            for label, kept in self._classes.items()
            if kept
        }
        table = {
            "codec": self.codec.name,
            "image_size": self._image_size,
            "most_bytes": self.most_bytes,
            "payload_bytes": {label: list(map(len, kept)) for label, kept in self._classes.items()},
        }
        return tensors, table

    def load_state(self, tensors: Mapping[str, Tensor], table: Mapping[str, Any]) -> None:
        """Take over what `state` gave.

        Raises:
            UserError: it was written with another codec.
        """
        if table["codec"] != self.codec.name:
            raise UserError(
                f"The saved exemplars are encoded as {table['codec']}, not {self.codec.name}."
            )
        self._image_size = tuple(table["image_size"]) if table["image_size"] else None
        self.most_bytes = table["most_bytes"]
        self._classes = {}
        for label, lengths in table["payload_bytes"].items():
            blob = tensors[f"class.{label}"].numpy().tobytes() if lengths else b""
            ends = np.cumsum([0, *lengths])
            self._classes[int(label)] = [blob[start:end] for start, end in pairwise(ends)]


def herding(features: Tensor, count: int | None = None) -> list[int]:
    """Positions of the images whose running mean stays nearest to the mean of all (iCaRL, Alg. 4).

    With mu the mean of the features phi, the k-th pick minimises ||mu - (phi + S) / k||, S being
    the sum of the picks before. In terms of w = k mu - S that is the largest <w, phi> -
    ||phi||^2 / 2, and the scores of all images follow from one product a pick. No image is picked
    twice; every prefix of the answer is the answer for a smaller count. Float64, because near
    ties decide ranks; a tie goes to the first image.

    Args:
        features: (N, D).
        count: how many to pick; all of them where None.
    """
    phi = features.double().numpy()
    count = len(phi) if count is None else min(count, len(phi))
    if count == 0:
        return []
    step = phi @ phi.mean(axis=0)
    squares = (phi**2).sum(axis=1)
    scores = step - squares / 2
    tolerance = 1e-12 * squares.max()
    picks: list[int] = []
    for _ in range(count):
        pick = int(np.argmax(scores >= scores.max() - tolerance))
        picks.append(pick)
        scores += step - phi @ phi[pick]
        scores[pick] = -np.inf
    return picks
