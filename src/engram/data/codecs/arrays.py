"""Codecs that store the numbers of an image as they are, or deflated."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engram.data.codecs.base import Codec

__all__ = ["Array", "Deflated"]

LEVEL = 9


class Array(Codec):
    """Pixels as numbers of one type: `raw` as they are, `float16` and `float32` scaled to [0, 1].

    Rounded to 8 bits again, floats of either width give back every pixel.
    """

    lossless = True

    def __init__(self, name: str, image_size: tuple[int, int], dtype: str) -> None:
        super().__init__(name, image_size)
        self.dtype = np.dtype(dtype)
        self.payload_bytes = math.prod(image_size) * 3 * self.dtype.itemsize

    def encode(self, pixels: Tensor) -> list[bytes]:
        values = pixels.numpy()
        if self.dtype != np.uint8:
            values = (values / np.float32(255)).astype(self.dtype)
        return [image.tobytes() for image in values]

    def decode(self, payloads: Sequence[bytes]) -> Tensor:
        for payload in payloads:
            if len(payload) != self.payload_bytes:
                raise ValueError(f"{len(payload)} bytes instead of {self.payload_bytes}")
        values = np.frombuffer(bytearray().join(payloads), self.dtype)
        values = values.reshape(len(payloads), *self.image_size, 3)
        if self.dtype != np.uint8:
            if not ((values >= 0) & (values <= 1)).all():
                raise ValueError("a value that is no pixel's")
            values = np.rint(values.astype(np.float32) * 255).astype(np.uint8)
        return torch.from_numpy(values)


class Deflated(Codec):
    """The payloads of an array codec, each deflated by zlib."""

    lossless = True

    def __init__(self, name: str, inner: Array) -> None:
        super().__init__(name, inner.image_size)
        self.inner = inner

    def encode(self, pixels: Tensor) -> list[bytes]:
        return [zlib.compress(payload, LEVEL) for payload in self.inner.encode(pixels)]

    def decode(self, payloads: Sequence[bytes]) -> Tensor:
        try:
            return self.inner.decode([zlib.decompress(payload) for payload in payloads])
        except zlib.error as error:
            raise ValueError(str(error)) from error
