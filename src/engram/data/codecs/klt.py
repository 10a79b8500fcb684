"""KLT: patches in the basis of their own principal components, quantised and entropy-coded.

A codec made for small photographs. The Karhunen-Loève transform of 8x8x3 patches, learnt from the
first task's images, packs both space and colour better than JPEG's fixed cosines and colour space,
and coding with tables for each component wastes no bits on short codes: a fifth fewer bytes than
JPEG at the same error. All images are decoded by one product of matrices.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engram.data.codecs.base import Codec
from engram.data.codecs.rans import FrequencyTable, decode, encode
from engram.errors import UserError

__all__ = ["KLT"]

PATCH = 8
VALUES = PATCH * PATCH * 3
GREY = 128
OFFSET = 0.35  # added before rounding down: below one half, because small values are frequent
LEARNT_FROM = 100_000  # patches, more than enough for 192 components
CORRECTION = struct.Struct("<Ih")  # place of a coefficient in its image, and its level


class KLT(Codec):
    """Transform coding of 8x8 patches with uniform quantisation.

    `shared` holds the basis in 8 bits, whose rows are brought to unit length again, and a table of
    frequencies for each component. What the tables have no symbol for follows an image's message,
    six bytes a coefficient. So an image unlike those of the first task costs more; it also loses
    more where those had no colour or no detail at all to learn from.

    Args:
        step: width of a quantisation interval, in units of a pixel's value; the error grows with
            it and the bytes shrink.

    Raises:
        UserError: the images cannot be cut into patches.
    """

    lossless = False
    learns = True

    def __init__(self, name: str, image_size: tuple[int, int], step: int) -> None:
        super().__init__(name, image_size)
        if image_size[0] % PATCH or image_size[1] % PATCH:
            raise UserError(
                f"{name} needs images whose sides are multiples of {PATCH} pixels, not "
                f"{image_size[0]}x{image_size[1]}."
            )
        self.step = step
        self._shared = b""
        self._basis: np.ndarray = np.eye(VALUES)
        self._inverse: np.ndarray = np.eye(VALUES)
        self._lowest = np.zeros(0, np.int64)
        self._tables: list[FrequencyTable] = []

    @property
    def shared(self) -> bytes:
        return self._shared

    def prepare(self, pixels: Tensor) -> None:
        each = self.image_size[0] * self.image_size[1] // PATCH**2
        patches = self._patches(pixels[:: -(-len(pixels) * each // LEARNT_FROM)])
        patches = patches.reshape(-1, VALUES)
        _, vectors = np.linalg.eigh(patches.T @ patches)
        rows = vectors.T[::-1]  # largest component first
        rows = np.rint(rows * (127 / np.abs(rows).max(axis=1, keepdims=True))).astype(np.int8)
        levels = self._quantised(patches @ np.linalg.inv(_unit(rows)))
        self.adopt(_packed(rows, levels))

    def adopt(self, shared: bytes) -> None:
        self._basis, self._lowest, self._tables = _unpacked(shared)
        # Rows in 8 bits are not quite orthogonal, so their transpose is not quite the inverse.
        self._inverse = np.linalg.inv(self._basis)
        self._shared = shared

    def encode(self, pixels: Tensor) -> list[bytes]:
        levels = self._quantised(self._patches(pixels) @ self._inverse)
        highest = self._lowest + [len(table.frequencies) - 1 for table in self._tables]
        coded = levels.clip(self._lowest, highest)
        symbols = (coded - self._lowest).reshape(len(pixels), -1)
        messages = encode(symbols, self._tables * levels.shape[1])
        return [
            message + _corrections(true.ravel(), written.ravel())
            for message, true, written in zip(messages, levels, coded, strict=True)
        ]

    def decode(self, payloads: Sequence[bytes]) -> Tensor:
        height, width = self.image_size
        patches = height * width // PATCH**2
        symbols, rests = decode(payloads, self._tables * patches)
        levels = symbols.reshape(len(payloads), patches, VALUES) + self._lowest
        for image, rest in zip(levels, rests, strict=True):
            _correct(image.reshape(-1), rest)
        return self._image(levels * self.step @ self._basis)

    def _quantised(self, coefficients: np.ndarray) -> np.ndarray:
        levels = np.sign(coefficients) * np.floor(np.abs(coefficients) / self.step + OFFSET)
        return np.asarray(levels, np.int64)

    def _patches(self, pixels: Tensor) -> np.ndarray:
        """(N, H, W, 3) to (N, patches, 192) around 0, in double precision."""
        height, width = self.image_size
        cut = pixels.reshape(-1, height // PATCH, PATCH, width // PATCH, PATCH, 3)
        patches = cut.permute(0, 1, 3, 2, 4, 5).reshape(len(pixels), -1, VALUES)
        return patches.numpy().astype(np.float64) - GREY

    def _image(self, patches: np.ndarray) -> Tensor:
        height, width = self.image_size
        pixels = torch.from_numpy(np.rint(patches + GREY).clip(0, 255).astype(np.uint8))
        cut = pixels.reshape(-1, height // PATCH, width // PATCH, PATCH, PATCH, 3)
        return cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, 3)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows (192, 192) of whole numbers, brought to length one."""
    basis = rows.astype(np.float64)
    return np.asarray(basis / np.linalg.norm(basis, axis=1, keepdims=True))


def _corrections(levels: np.ndarray, coded: np.ndarray) -> bytes:
    """The places and levels that the tables have no symbol for, because no image was like this."""
    places = np.flatnonzero(levels != coded)
    return b"".join(CORRECTION.pack(place, levels[place]) for place in places)


def _correct(levels: np.ndarray, corrections: bytes) -> None:
    """Put in what `_corrections` gave.

    Raises:
        ValueError: it gave something else.
    """
    if len(corrections) % CORRECTION.size:
        raise ValueError("a message that something follows")
    for place, level in CORRECTION.iter_unpack(corrections):
        if place >= len(levels):
            raise ValueError("a correction outside the image")
        levels[place] = level


def _packed(rows: np.ndarray, levels: np.ndarray) -> bytes:
    """Basis (192, 192), int8, and the levels (M, 192) that occur, as `_unpacked` reads them."""
    parts = [rows.tobytes()]
    for column in levels.T:
        low = int(column.min())
        table = FrequencyTable.fitted(np.bincount(column - low))
        frequencies = table.frequencies.astype("<u2")
        parts.append(struct.pack("<hH", low, len(frequencies)) + frequencies.tobytes())
    return b"".join(parts)


def _unpacked(shared: bytes) -> tuple[np.ndarray, np.ndarray, list[FrequencyTable]]:
    """The basis, the lowest level of each component, and its table.

    Raises:
        ValueError: these are other bytes.
    """
    try:
        rows = np.frombuffer(shared, np.int8, VALUES**2).reshape(VALUES, VALUES)
        at, lowest, tables = VALUES**2, [], []
        for _ in range(VALUES):
            low, symbols = struct.unpack_from("<hH", shared, at)
            lowest.append(low)
            tables.append(FrequencyTable.of(np.frombuffer(shared, "<u2", symbols, at + 4)))
            at += 4 + 2 * symbols
    except (struct.error, ValueError) as error:
        raise ValueError("not the tables of a klt codec") from error
    return _unit(rows), np.array(lowest), tables
