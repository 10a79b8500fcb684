"""Codecs that store an image file without what is the same in every file of its kind.

A 32x32 JPEG file of quality 75 is 63 % header, a WebP file opens with 20 bytes of container, and an
AVIF file holds a description of 300 bytes. Each class here knows where the constant part of one
format ends: `split` takes it off, `join` puts it back.
"""

from __future__ import annotations

import importlib.util
import io
import struct
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from engram.data.codecs.base import Codec
from engram.errors import UserError, install_command

__all__ = ["Avif", "Jpeg", "JpegXL", "Png", "Resized", "Webp"]


class ImageFile(Codec):
    """One image file a payload, written and read by Pillow.

    Args:
        quality: in the format's own scale; None for lossless.

    Attributes:
        format: Pillow's name of the format.

    Raises:
        UserError: this Pillow cannot write the format.
    """

    format: ClassVar[str]

    def __init__(self, name: str, image_size: tuple[int, int], quality: int | None) -> None:
        super().__init__(name, image_size)
        self.quality = quality
        self.lossless = quality is None
        self.require()
        self._header, _ = self.split(self._write(_gradient(image_size)))

    def require(self) -> None:
        """Refuse a format that is not installed."""

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What Pillow is told when it writes."""

    @abstractmethod
    def split(self, file: bytes) -> tuple[bytes, bytes]:
        """The constant part of a file, and the rest."""

    @abstractmethod
    def join(self, payload: bytes) -> bytes:
        """The file of which `split` gave `shared` and `payload`."""

    @property
    def shared(self) -> bytes:
        return self._header

    def adopt(self, shared: bytes) -> None:
        # Another version of the library may write another header; what is stored needs its own.
        self._header = shared

    def encode(self, pixels: Tensor) -> list[bytes]:
        return [self._payload(image) for image in pixels.numpy()]

    def _payload(self, image: np.ndarray) -> bytes:
        header, payload = self.split(self._write(image))
        if header != self._header:
            raise UserError(
                f"The {self.format} library writes another header than the one that the exemplars "
                "were stored with. Go on with the version that began, or begin anew."
            )
        return payload

    def _write(self, image: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, self.format, **self.options)
        return file.getvalue()

    def decode(self, payloads: Sequence[bytes]) -> Tensor:
        return torch.from_numpy(np.stack([self._image(payload) for payload in payloads]))

    def _image(self, payload: bytes) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(self.join(payload)), formats=[self.format]) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, RuntimeError, struct.error) as error:
            raise ValueError(f"no {self.format} image: {error}") from error
        if pixels.shape[:2] != self.image_size:
            raise ValueError(f"an image of {pixels.shape[:2]} pixels instead of {self.image_size}")
        return pixels


def _gradient(image_size: tuple[int, int]) -> np.ndarray:
    """An image with something of every colour and frequency, to read a format's header off."""
    rows, columns = np.indices(image_size)
    image = np.stack([rows * 7 % 256, columns * 5 % 256, rows * columns % 256], axis=2)
    return image.astype(np.uint8)


class Jpeg(ImageFile):
    """The entropy-coded scan; header and tables, which one quality shares, are kept once.

    Colours keep their full resolution (4:4:4): at 32x32 pixels halving it costs 2 dB.
    """

    format = "JPEG"
    END = b"\xff\xd9"

    @property
    def options(self) -> dict[str, Any]:
        return {"quality": self.quality, "subsampling": "4:4:4", "optimize": False}

    def split(self, file: bytes) -> tuple[bytes, bytes]:
        scan = file.index(b"\xff\xda")
        (length,) = struct.unpack(">H", file[scan + 2 : scan + 4])
        begin = scan + 2 + length
        return file[:begin], file[begin : -len(self.END)]

    def join(self, payload: bytes) -> bytes:
        return self.shared + payload + self.END


class Png(ImageFile):
    """The deflated scan lines; signature, chunk frames and checksums are made anew."""

    format = "PNG"
    HEADER = 33  # the signature, and the chunk that gives the size and the type of the pixels

    @property
    def options(self) -> dict[str, Any]:
        return {"optimize": True}

    def split(self, file: bytes) -> tuple[bytes, bytes]:
        header, rest, data = file[: self.HEADER], file[self.HEADER :], b""
        while rest:
            (length,) = struct.unpack(">I", rest[:4])
            if rest[4:8] == b"IDAT":
                data += rest[8 : 8 + length]
            rest = rest[length + 12 :]
        return header, data

    def join(self, payload: bytes) -> bytes:
        return self.shared + _png_chunk(b"IDAT", payload) + _png_chunk(b"IEND", b"")


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class Webp(ImageFile):
    """The bit stream without its container, and without what opens every stream of one size."""

    format = "WEBP"
    CONTAINER = 20  # RIFF, length, WEBP, kind of stream, length
    TAG = 3  # of a lossy stream, before its start code and size

    @property
    def options(self) -> dict[str, Any]:
        kind = {"lossless": True} if self.lossless else {"quality": self.quality}
        return {**kind, "method": 4}

    def split(self, file: bytes) -> tuple[bytes, bytes]:
        kind, (length,) = file[12:16], struct.unpack("<I", file[16:20])
        stream = file[self.CONTAINER : self.CONTAINER + length]
        if self.lossless:
            return kind + stream[:5], stream[5:]
        return kind + stream[self.TAG : 10], stream[: self.TAG] + stream[10:]

    def join(self, payload: bytes) -> bytes:
        kind, opening = self.shared[:4], self.shared[4:]
        at = 0 if self.lossless else self.TAG
        stream = payload[:at] + opening + payload[at:]
        padded = stream + b"\0" * (len(stream) % 2)
        chunk = kind + struct.pack("<I", len(stream)) + padded
        return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


class Avif(ImageFile):
    """The frame alone; its description and the sequence header are kept once.

    The description names the length of the frame in two places, which are zero in `shared`.
    """

    format = "AVIF"
    FRAME = 0x32  # header byte of the unit that holds a frame

    def require(self) -> None:
        if not features.check("avif"):
            raise UserError(
                "This Pillow was built without AVIF. Install one that has it, such as pip's."
            )

    @property
    def options(self) -> dict[str, Any]:
        # Tiles and threads gain nothing at these sizes. Speed 8 of 10 costs 0.3 dB against 6 and
        # takes a twentieth of the time.
        return {"quality": self.quality, "subsampling": "4:4:4", "speed": 8, "max_threads": 1}

    def split(self, file: bytes) -> tuple[bytes, bytes]:
        begin = file.index(b"mdat") + 4
        frame = begin
        while file[frame] != self.FRAME:  # the units before are a header byte, a length, a body
            frame += 2 + file[frame + 1]
        length = len(file) - begin
        located = file.index(struct.pack(">II", begin, length)) + 4
        header = bytearray(file[:frame])
        header[located : located + 4] = header[begin - 8 : begin - 4] = bytes(4)
        return struct.pack(">HH", located, begin) + bytes(header), file[frame:]

    def join(self, payload: bytes) -> bytes:
        located, begin = struct.unpack(">HH", self.shared[:4])
        file = bytearray(self.shared[4:] + payload)
        length = len(file) - begin
        file[located : located + 4] = struct.pack(">I", length)
        file[begin - 8 : begin - 4] = struct.pack(">I", length + 8)
        return bytes(file)


class JpegXL(ImageFile):
    """The bare code stream, which has next to no header, without its signature."""

    format = "JXL"
    SIGNATURE = b"\xff\x0a"

    def require(self) -> None:
        if importlib.util.find_spec("pillow_jxl") is None:
            raise UserError(
                "JPEG XL needs a plugin of Pillow. Install it: "
                f"{install_command('pillow-jxl-plugin')}."
            )
        importlib.import_module("pillow_jxl")

    @property
    def options(self) -> dict[str, Any]:
        return {"lossless": True} if self.lossless else {"quality": self.quality}

    def split(self, file: bytes) -> tuple[bytes, bytes]:
        return file[: len(self.SIGNATURE)], file[len(self.SIGNATURE) :]

    def join(self, payload: bytes) -> bytes:
        return self.shared + payload


class Resized(Codec):
    """Smaller images through another codec, brought back to their size when used.

    Args:
        inner: a codec for the smaller images.
    """

    lossless = False

    def __init__(self, name: str, image_size: tuple[int, int], inner: Codec) -> None:
        super().__init__(name, image_size)
        self.inner = inner
        self.payload_bytes = inner.payload_bytes
        self.learns = inner.learns

    @property
    def shared(self) -> bytes:
        return self.inner.shared

    def prepare(self, pixels: Tensor) -> None:
        if self.learns:
            self.inner.prepare(_resized(pixels, self.inner.image_size))

    def adopt(self, shared: bytes) -> None:
        self.inner.adopt(shared)

    def encode(self, pixels: Tensor) -> list[bytes]:
        return self.inner.encode(_resized(pixels, self.inner.image_size))

    def decode(self, payloads: Sequence[bytes]) -> Tensor:
        return _resized(self.inner.decode(payloads), self.image_size)


def _resized(pixels: Tensor, image_size: tuple[int, int]) -> Tensor:
    height, width = image_size
    images = [
        np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
        for image in pixels.numpy()
    ]
    return torch.from_numpy(np.stack(images))
