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
RAREST = 1e-4  # share of patches in which a component must be worth coding


class KLT(Codec):
    """Transform coding of 8x8 patches with uniform quantisation.

    `shared` holds the basis in 8 bits (192 bytes a component that is coded; rows are brought to
    unit length again) and a table of frequencies for each component.

    Args:
        step: width of a quantisation interval, in units of a pixel's value; the error grows with
            it and the bytes shrink.

    Raises:
        UserError: the images cannot be cut into patches.
    """

    lossless = False

    def __init__(self, name: str, image_size: tuple[int, int], step: int) -> None:
        super().__init__(name, image_size)
        if image_size[0] % PATCH or image_size[1] % PATCH:
            raise UserError(
                f"{name} needs images whose sides are multiples of {PATCH} pixels, not "
                f"{image_size[0]}x{image_size[1]}."
            )
        self.step = step
        self._shared = b""
        self._basis = np.zeros((0, VALUES))
        self._lowest = np.zeros(0, np.int64)
        self._tables: list[FrequencyTable] = []

    @property
    def shared(self) -> bytes:
        return self._shared

    def prepare(self, pixels: Tensor) -> None:
        patches = self._patches(pixels).reshape(-1, VALUES)
        _, vectors = np.linalg.eigh(patches.T @ patches)
        basis = vectors.T[::-1]  # largest component first
        quantised = self._quantised(patches @ basis.T)
        used = (quantised != 0).mean(axis=0) >= RAREST
        used[0] = True
        self.adopt(_packed(basis[used], quantised[:, used]))

    def adopt(self, shared: bytes) -> None:
        self._basis, self._lowest, self._tables = _unpacked(shared)
        self._shared = shared

    def encode(self, pixels: Tensor) -> list[bytes]:
        symbols = self._quantised(self._patches(pixels) @ self._basis.T) - self._lowest
        highest = [len(table.frequencies) - 1 for table in self._tables]
        symbols = symbols.clip(0, highest)
        return encode(symbols.reshape(len(pixels), -1), self._tables * symbols.shape[1])

    def decode(self, payloads: Sequence[bytes]) -> Tensor:
        height, width = self.image_size
        patches = height * width // PATCH**2
        symbols = decode(payloads, self._tables * patches)
        levels = symbols.reshape(len(payloads), patches, -1) + self._lowest
        return self._image(levels * self.step @ self._basis)

    def _quantised(self, coefficients: np.ndarray) -> np.ndarray:
        levels = np.sign(coefficients) * np.floor(np.abs(coefficients) / self.step + OFFSET)
        return np.asarray(levels, np.int64)

    def _patches(self, pixels: Tensor) -> np.ndarray:
        """(N, H, W, 3) to (N, patches, 192). Float64, so that no rounding depends on how many
        images are multiplied at once."""
        height, width = self.image_size
        cut = pixels.reshape(-1, height // PATCH, PATCH, width // PATCH, PATCH, 3)
        patches = cut.permute(0, 1, 3, 2, 4, 5).reshape(len(pixels), -1, VALUES)
        return patches.numpy().astype(np.float64) - GREY

    def _image(self, patches: np.ndarray) -> Tensor:
        height, width = self.image_size
        pixels = torch.from_numpy(np.rint(patches + GREY).clip(0, 255).astype(np.uint8))
        cut = pixels.reshape(-1, height // PATCH, width // PATCH, PATCH, PATCH, 3)
        return cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, 3)


def _packed(basis: np.ndarray, levels: np.ndarray) -> bytes:
    """Basis (K, 192) and the levels (M, K) that occur, as `_unpacked` reads them."""
    rows = np.rint(basis * (127 / np.abs(basis).max(axis=1, keepdims=True))).astype(np.int8)
    lowest, highest = levels.min(axis=0), levels.max(axis=0)
    parts = [struct.pack("<H", len(basis)), rows.tobytes()]
    for component, (low, high) in enumerate(zip(lowest, highest, strict=True)):
        counts = np.bincount(levels[:, component] - low, minlength=high - low + 1)
        table = FrequencyTable.fitted(counts)
        parts.append(
            struct.pack("<hH", low, len(counts)) + table.frequencies.astype("<u2").tobytes()
        )
    return b"".join(parts)


def _unpacked(shared: bytes) -> tuple[np.ndarray, np.ndarray, list[FrequencyTable]]:
    """Unit basis (K, 192), the lowest level of each component, and its table.

    Raises:
        ValueError: these are other bytes.
    """
    try:
        (components,) = struct.unpack_from("<H", shared)
        rows = np.frombuffer(shared, np.int8, components * VALUES, 2).astype(np.float64)
        at = 2 + components * VALUES
        lowest, tables = [], []
        for _ in range(components):
            low, symbols = struct.unpack_from("<hH", shared, at)
            lowest.append(low)
            tables.append(FrequencyTable.of(np.frombuffer(shared, "<u2", symbols, at + 4)))
            at += 4 + 2 * symbols
    except (struct.error, ValueError) as error:
        raise ValueError("not the tables of a klt codec") from error
    basis = rows.reshape(components, VALUES)
    return basis / np.linalg.norm(basis, axis=1, keepdims=True), np.array(lowest), tables
