"""Codecs: how an exemplar becomes bytes, and pixels again.

A codec is named `raw`, or `<name>:<value>` where there is something to choose, as in `jpeg:75`;
`resize:24+jpeg:75` makes images smaller first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from engram.data.codecs.arrays import Array, Deflated
from engram.data.codecs.base import Codec
from engram.data.codecs.files import Avif, Jpeg, JpegXL, Png, Resized, Webp
from engram.data.codecs.klt import KLT
from engram.errors import UserError, unknown

__all__ = ["CODECS", "Codec", "create_codec"]

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How to make a codec, and which values it admits where it has one to choose.

    Attributes:
        make: from (name, image size, value); the value is 0 where there is none to choose.
    """

    make: Callable[[str, Size, int], Codec]
    values: range | None = None
    example: str = ""


CODECS: dict[str, _Kind] = {
    "raw": _Kind(lambda name, size, _: Array(name, size, "uint8")),
    "float32": _Kind(lambda name, size, _: Array(name, size, "<f4")),
    "float16": _Kind(lambda name, size, _: Array(name, size, "<f2")),
    "zlib-uint8": _Kind(lambda name, size, _: Deflated(name, Array(name, size, "uint8"))),
    "zlib-float32": _Kind(lambda name, size, _: Deflated(name, Array(name, size, "<f4"))),
    "png": _Kind(lambda name, size, _: Png(name, size, None)),
    "webp-lossless": _Kind(lambda name, size, _: Webp(name, size, None)),
    "jxl-lossless": _Kind(lambda name, size, _: JpegXL(name, size, None)),
    "jpeg": _Kind(Jpeg, range(1, 101), "75"),
    "webp": _Kind(Webp, range(0, 101), "80"),
    "avif": _Kind(Avif, range(0, 101), "60"),
    "jxl": _Kind(JpegXL, range(1, 100), "80"),
    "klt": _Kind(KLT, range(4, 129), "32"),
}


def create_codec(name: str, image_size: tuple[int, int]) -> Codec:
    """The codec called `name`, for images of `image_size` (height, width).

    Raises:
        UserError: no codec has that name, its value is out of range, what it needs is not
            installed, or it does not fit the images.
    """
    first, plus, rest = name.partition("+")
    if first.partition(":")[0] != "resize":
        return _single(name, image_size)
    smaller = _smaller(first, image_size)
    return Resized(name, image_size, _single(rest if plus else "raw", smaller))


def _single(name: str, image_size: tuple[int, int]) -> Codec:
    """A codec that is not combined with another."""
    word = name.partition(":")[0]
    if word not in CODECS:
        raise unknown("codec", word, [*CODECS, "resize"])
    kind = CODECS[word]
    if kind.values is None:
        if word != name:
            raise UserError(f'Codec "{name}": there is no value to choose. Write {word}.')
        return kind.make(name, image_size, 0)
    return kind.make(name, image_size, _value(name, kind.values, kind.example))


def _value(name: str, values: range, example: str) -> int:
    """The number after the colon."""
    word, _, text = name.partition(":")
    if not re.fullmatch("0|[1-9][0-9]*", text) or int(text) not in values:
        raise UserError(
            f'Codec "{name}": give a whole number from {values[0]} to {values[-1]}, '
            f"as in {word}:{example}."
        )
    return int(text)


def _smaller(name: str, image_size: tuple[int, int]) -> tuple[int, int]:
    """The size whose longer side is the one that `name` gives, at the same proportions."""
    longest = max(image_size)
    side = _value(name, range(1, longest), str(longest // 2))
    height, width = (max(1, round(length * side / longest)) for length in image_size)
    return height, width
