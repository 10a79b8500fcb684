"""The exemplar memory: a few images of every class seen, under a budget that is never exceeded.

Images rest as bytes, in order of rank within their class, so that making room is dropping the
tail (iCaRL, Algorithm 5) and a class's share of the budget is one division.
"""

from __future__ import annotations

import math
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice, pairwise, tee
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from engram.data.codecs import Codec, create_codec
from engram.data.encoded import EncodedImages, recoded
from engram.data.images import Images, ImageSet
from engram.errors import UserError

__all__ = ["PROBED", "Budget", "DamagedExemplar", "ExemplarMemory", "herding"]

Rank = Callable[[Images], Iterable[int]]

ENCODED_AT_ONCE = 64
PROBED = 200
"""Images that are encoded to estimate what an exemplar takes: at least so many, and fewer than
twice as many."""

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
            return cls("bytes", int(Decimal(match[1]) * _UNITS[match[2]]))
        raise UserError(
            f'"{text}" is not a budget. Give images (2000), images a class (20/class), '
            "bytes (6144000B, 6MB, 6MiB), or all."
        )

    def parted(self, share: float) -> tuple[Budget, Budget]:
        """What is left of it, and a share, rounded down."""
        part = math.floor(self.amount * share)
        return Budget(self.kind, self.amount - part), Budget(self.kind, part)

    def images_each(self, classes: int) -> float:
        """The most images that one of `classes` may keep."""
        match self.kind:
            case "images":
                return self.amount // classes
            case "images a class":
                return self.amount
            case "bytes" | "all":
                return math.inf

    def bytes_each(self, classes: int, shared: int) -> float:
        """The most bytes that one of `classes` may take, beside what all share."""
        return max(0, self.amount - shared) // classes if self.kind == "bytes" else math.inf

    @property
    def none(self) -> bool:
        """Whether nothing at all may be kept."""
        return self.kind != "all" and self.amount == 0


class DamagedExemplar(UserWarning):
    """A stored exemplar is not what was written, and is left out."""


class ExemplarMemory:
    """Exemplars of every class seen, as bytes, best first, never over the budget.

    What counts is all that the exemplars need: payloads, the length of each where a codec's
    lengths differ, and what the codec shares among them. A class lies together in order of rank,
    so labels and offsets need nothing.

    Args:
        budget: the bound; a class's share is an equal part, rounded down.
        codec: how an image becomes bytes.
        batchwise: decode exemplars whenever they are read and keep no decoded ones, which saves
            memory and costs time; the pixels are the same.

    Attributes:
        most_bytes: the most that was ever held at once.
        lost: exemplars that were left out because they were damaged.
        origins: of each class that was new in the last update, the positions of its exemplars among
            the images of the class that it was given, best first. Not saved.
    """

    def __init__(self, budget: Budget, codec: Codec, *, batchwise: bool = False) -> None:
        self.budget = budget
        self.codec = codec
        self.batchwise = batchwise
        self.most_bytes = 0
        self.lost = 0
        self.origins: dict[int, list[int]] = {}
        self._classes: dict[int, list[bytes]] = {}
        self._prepared = False

    def __len__(self) -> int:
        """Exemplars held."""
        return sum(map(len, self._classes.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of everything that the exemplars need."""
        return sum(self.bytes_of_classes.values()) + (len(self.codec.shared) if len(self) else 0)

    @property
    def bytes_of_classes(self) -> dict[int, int]:
        """Bytes of payloads and their lengths, by label."""
        return {label: sum(map(self.codec.cost, kept)) for label, kept in self._classes.items()}

    @property
    def counts(self) -> dict[int, int]:
        """Exemplars held of each class, by label."""
        return {label: len(kept) for label, kept in self._classes.items()}

    def budget_bytes(self) -> int | None:
        """The bound in bytes with the classes held now; None where there is none.

        A number of images is one where all images take the same.
        """
        each = self.codec.payload_bytes
        match self.budget.kind:
            case "bytes":
                return self.budget.amount
            case "images" if each is not None:
                return self.budget.amount * each
            case "images a class" if each is not None:
                return self.budget.amount * len(self._classes) * each
        return None

    def check(self, classes: int, examples: ImageSet, share: float = 1.0) -> None:
        """Refuse a budget that could not hold an exemplar of each of `classes`.

        Args:
            examples: images to come, of which some are tried.
            share: of the budget that the user gave which this one is; the message names the user's.

        Raises:
            UserError: with the smallest budget that can.
        """
        if shortage := self._shortage(classes, examples):
            raise self._too_small(classes, *shortage, share)

    def fits(self, classes: int, examples: ImageSet) -> bool:
        """Whether there is room for an exemplar of each of `classes`; see `check`."""
        return self._shortage(classes, examples) is None

    def _shortage(self, classes: int, examples: ImageSet) -> tuple[int, int] | None:
        """Bytes of the largest exemplar, and of what all share, if one of each of `classes` would
        not fit."""
        if self.budget.none or self.budget.kind == "all":
            return None
        shared, costs = self._probed(examples)
        best = [self.codec.cost(kept[0]) for kept in self._classes.values() if kept]
        largest = max(costs + best)
        room = self.budget.bytes_each(classes, shared)
        enough = self.budget.images_each(classes) >= 1 and room >= largest
        return None if enough else (largest, shared)

    def room_each(self, classes: int, examples: ImageSet) -> float:
        """How many exemplars of each of `classes` there is room for; about, where payloads differ
        in length.

        Args:
            examples: images to come, of which some are tried.
        """
        if self.budget.kind != "bytes":
            return self.budget.images_each(classes)
        shared, costs = self._probed(examples)
        return self.budget.bytes_each(classes, shared) // (sum(costs) / len(costs))

    def _probed(self, examples: ImageSet) -> tuple[int, list[int]]:
        """What exemplars share, or will once the codec has learnt, and what some would take."""
        if self.codec.payload_bytes is not None:
            return len(self.codec.shared), [self.codec.payload_bytes]
        pixels, codec = examples.pixels[:: max(1, len(examples) // PROBED)], self.codec
        if not self._prepared:
            codec = create_codec(codec.name, codec.image_size)
            codec.prepare(pixels)
        return len(codec.shared), list(map(codec.cost, codec.encode(pixels)))

    def _too_small(self, classes: int, needed: int, shared: int, share: float = 1.0) -> UserError:
        # Of what is parted, the share that is set aside is rounded down.
        images, size = (
            math.floor((least - 1) / share) + 1 for least in (classes, classes * needed + shared)
        )
        return UserError(
            f"{self.budget.amount} {self.budget.kind} cannot hold one exemplar of each of the "
            f"{classes} classes. The smallest budget that can: {images} images, or {size} bytes as "
            f"{self.codec.name}."
        )

    def update(self, images: ImageSet, rank: Rank | None = None) -> None:
        """Make room for the classes that are new, then keep the best-ranked images of each class.

        Of a class that was known before, new images are ranked with the exemplars that are kept.

        Args:
            rank: positions of a class's images, best first, no more of which are asked for than
                fit, but for a block; order of arrival where None. Algorithms 4 and 5 of iCaRL with
                `herding` as rank.

        Raises:
            UserError: a class's share would not hold one exemplar; then no exemplar has changed.
        """
        self.prepare(images)
        if self.budget.none:
            self._classes, self.origins = {}, {}
            return
        labels = images.labels.unique().tolist()
        classes = len(self._classes.keys() | set(labels))
        updated = {label: self._fitting(kept, classes) for label, kept in self._classes.items()}
        origins = {}
        for label in labels:
            kept = self._classes.get(label, [])
            of_class: Images = images.of(label)
            if kept:
                of_class = self._read({label: kept}) + images.of(label)
            order, again = tee(range(len(of_class)) if rank is None else rank(of_class))
            updated[label] = self._fitting(self._encoded(kept, of_class, order), classes)
            if not kept:
                origins[label] = list(islice(again, len(updated[label])))
        self._classes, self.origins = updated, origins
        self.most_bytes = max(self.most_bytes, self.nbytes)

    def prepare(self, images: ImageSet) -> None:
        """Let the codec learn from training images, once: those of the first task."""
        if not self._prepared and len(images):
            self.codec.prepare(images.pixels)
            self._prepared = True

    def _encoded(
        self, kept: Sequence[bytes], images: Images, order: Iterator[int]
    ) -> Iterator[bytes]:
        """Payloads in the given order, made as they are asked for.

        Args:
            kept: payloads of the first images, which are not encoded a second time.
        """
        while positions := list(islice(order, ENCODED_AT_ONCE)):
            new = [position for position in positions if position >= len(kept)]
            fresh = iter(self.codec.encode(images[torch.tensor(new)].pixels) if new else ())
            for position in positions:
                yield kept[position] if position < len(kept) else next(fresh)

    def _fitting(self, payloads: Iterable[bytes], classes: int) -> list[bytes]:
        """The longest prefix of a class's payloads that fits one of `classes` equal shares."""
        most = self.budget.images_each(classes)
        room = self.budget.bytes_each(classes, len(self.codec.shared))
        kept: list[bytes] = []
        for payload in payloads:
            cost = self.codec.cost(payload)
            if cost > room or len(kept) == most:
                if not kept:
                    raise self._too_small(classes, cost, len(self.codec.shared))
                break
            room -= cost
            kept.append(payload)
        return kept

    def of(self, label: int, count: int | None = None) -> ImageSet:
        """The best `count` exemplars of one class, or all, best first.

        Raises:
            KeyError: there is no such class.
        """
        return self._read({label: self._classes[label][:count]})[:]

    def exemplar(self, label: int, rank: int) -> Tensor:
        """The pixels (H, W, 3) of one exemplar of a class; 0 is the best.

        Raises:
            KeyError: there is no such class.
            IndexError: the class has fewer.
        """
        return self._read({label: [self._classes[label][rank]]})[:].pixels[0]

    def originals(self, images: ImageSet, count: int) -> ImageSet:
        """The images that the best `count` exemplars of each new class were made of, best first.

        Args:
            images: those of the last update.
        """
        best = [images.of(label)[kept[:count]] for label, kept in self.origins.items()]
        return sum(best, ImageSet.empty(self.codec.image_size))

    def images(self) -> Images:
        """All exemplars, class by class, best first; encoded where the memory is batchwise."""
        exemplars = self._read(self._classes)
        return exemplars if self.batchwise else exemplars[:]

    def __add__(self, images: ImageSet) -> Images:
        """Exemplars and new images together: what a method with rehearsal trains on."""
        return self.images() + images if len(self) else images

    def _read(self, classes: Mapping[int, list[bytes]]) -> EncodedImages:
        labels = [label for label, kept in classes.items() for _ in kept]
        payloads = [payload for kept in classes.values() for payload in kept]
        return EncodedImages(self.codec, payloads, torch.tensor(labels, dtype=torch.int64))

    def recode(self, images: ImageSet) -> ImageSet:
        """The images as they would come back from the memory, which must have been prepared."""
        return ImageSet(recoded(self.codec, images.pixels), images.labels)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything held: payloads with their lengths and checksums, and a table of plain values.

        The checksums guard the file and are no part of what the memory holds.
        """
        tensors = {"shared": _bytes_tensor(self.codec.shared)}
        for label, kept in self._classes.items():
            tensors[f"payloads.{label}"] = _bytes_tensor(b"".join(kept))
            tensors[f"lengths.{label}"] = torch.tensor(list(map(len, kept)))
            tensors[f"checksums.{label}"] = torch.tensor(list(map(zlib.crc32, kept)))
        table = {
            "codec": self.codec.name,
            "image_size": self.codec.image_size,
            "most_bytes": self.most_bytes,
            "lost": self.lost,
            "prepared": self._prepared,
            "shared_checksum": zlib.crc32(self.codec.shared),
            "classes": list(self._classes),
        }
        return tensors, table

    def load_state(
        self,
        tensors: Mapping[str, Tensor],
        table: Mapping[str, Any],
        *,
        strict: bool = False,
        where: str = "the saved memory",
        class_names: Sequence[str] = (),
    ) -> None:
        """Take over what `state` gave, without exemplars that are damaged. What is beyond a smaller
        budget goes at the next update.

        Args:
            strict: refuse a damaged exemplar instead.
            where: what messages call the place that it comes from.
            class_names: what they call classes, by label; where there are none, by numbers in order
                of arrival, from 1.

        Warns:
            DamagedExemplar: one is not what was written.

        Raises:
            UserError: it was written with another codec, what all exemplars share is damaged, or
                an exemplar is and `strict`.
        """
        if table["codec"] != self.codec.name:
            raise UserError(
                f"The exemplars in {where} are encoded as {table['codec']}, not {self.codec.name}."
            )
        shared = tensors["shared"].numpy().tobytes()
        if zlib.crc32(shared) != table["shared_checksum"]:
            raise UserError(
                f"What all exemplars in {where} share is damaged, so none can be decoded."
            )
        if table["prepared"]:
            self.codec.adopt(shared)
        self.most_bytes, self.lost = table["most_bytes"], table["lost"]
        self._prepared = table["prepared"]
        self._classes = {}
        for label in table["classes"]:
            name = class_names[label] if class_names else str(label + 1)
            place = f"of class {name} in {where}"
            self._classes[label] = list(self._intact(label, tensors, strict, place))

    def _intact(
        self, label: int, tensors: Mapping[str, Tensor], strict: bool, place: str
    ) -> Iterator[bytes]:
        """The saved payloads of a class that are what was written; messages name their `place`."""
        blob = tensors[f"payloads.{label}"].numpy().tobytes()
        lengths = tensors[f"lengths.{label}"].tolist()
        checksums = tensors[f"checksums.{label}"].tolist()
        if len(lengths) != len(checksums):
            raise UserError(f"The lengths of the exemplars {place} are damaged.")
        ends = np.cumsum([0, *lengths])
        for rank, ((start, end), checksum) in enumerate(
            zip(pairwise(ends), checksums, strict=True), start=1
        ):
            payload = blob[start:end]
            if zlib.crc32(payload) == checksum:
                yield payload
                continue
            found = f"Exemplar {rank} {place} is damaged."
            if strict:
                raise UserError(f"{found} Unless you are strict (--strict), it is left out.")
            self.lost += 1
            warnings.warn(f"{found} It is left out.", DamagedExemplar, stacklevel=2)


def _bytes_tensor(content: bytes) -> Tensor:
    return (
        torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if content
        else torch.empty(0, dtype=torch.uint8)
    )


def herding(features: Tensor) -> Iterator[int]:
    """Positions of the images whose running mean stays nearest to the mean of all (iCaRL, Alg. 4).

    With mu the mean of the features phi, the k-th pick minimises ||mu - (phi + S) / k||, S being
    the sum of the picks before. In terms of w = k mu - S that is the largest <w, phi> -
    ||phi||^2 / 2, and the scores of all images follow from one product a pick, which is made when
    the pick is asked for. No image is picked twice. Float64, because near ties decide ranks; a tie
    goes to the first image.

    Args:
        features: (N, D), N at least 1.
    """
    phi = features.double().numpy()
    step = phi @ phi.mean(axis=0)
    squares = (phi**2).sum(axis=1)
    scores = step - squares / 2
    tolerance = 1e-12 * squares.max()
    for _ in range(len(phi)):
        pick = int(np.argmax(scores >= scores.max() - tolerance))
        yield pick
        scores += step - phi @ phi[pick]
        scores[pick] = -np.inf
