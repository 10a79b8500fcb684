"""Augmentation of whole batches on the device, from an explicit generator.

Shapes: B images, H x W pixels. Random numbers are drawn on the CPU and copied, so that the same
seed gives the same crops on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.config import check_fraction, check_share

__all__ = ["Augmentation", "brighten", "crop_and_flip", "cut_and_scale", "moved"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What happens to a training image. The defaults are iCaRL's recipe for 32x32 images."""

    padding: float = 0.125
    """Zeros added on each side before the random crop, as a share of the image's side: an eighth
    is the usual 4 pixels of 32."""
    flip: bool = True
    """Mirror every second image from left to right. Wrong for digits and letters."""
    least_area: float = 1.0
    """Below 1, a rectangle of the image is cut out at random and scaled to the whole size; this is
    the smallest share of the area that it may have. The usual recipe for ImageNet has 0.08."""
    brightness: float = 0.0
    """Largest relative change of brightness; DER's recipe has 63/255, iCaRL's none."""

    def __post_init__(self) -> None:
        check_fraction(self, "padding", "brightness")
        check_share(self, "least_area")


def brighten(pixels: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Scale each image's pixels by a factor from [1 - amount, 1 + amount], in 8 bits.

    Args:
        pixels: (B, H, W, 3), uint8.
    """
    factors = 1 + amount * (2 * torch.rand(len(pixels), 1, 1, 1, generator=generator) - 1)
    return (pixels * moved(pixels.device, factors)).clamp_(0, 255).to(torch.uint8)


def cut_and_scale(
    x: Tensor, least_area: float, generator: torch.Generator, size: tuple[int, int]
) -> Tensor:
    """Cut a rectangle out of each image and scale it to `size`, as ImageNet is augmented.

    Its area is uniform in [least_area, 1] of the image's, its sides relate as 3:4 to 4:3, in
    logarithms uniformly; sides that do not fit are shortened.

    Args:
        x: (B, 3, H, W) normalised images, channels last in memory.

    Returns:
        (B, 3, *size) in the same layout, interpolated linearly.
    """
    area = least_area + (1 - least_area) * torch.rand(len(x), generator=generator)
    aspect = (math.log(4 / 3) * (2 * torch.rand(len(x), generator=generator) - 1)).exp()
    extent = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=1).clamp_max(1)
    centre = (1 - extent) * (2 * torch.rand(len(x), 2, generator=generator) - 1)
    affine = torch.cat([torch.diag_embed(extent), centre[:, :, None]], dim=2)
    grid = F.affine_grid(moved(x.device, affine), [*x.shape[:2], *size], align_corners=False)
    scaled = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return scaled.contiguous(memory_format=torch.channels_last)


def crop_and_flip(x: Tensor, padding: float, flip: bool, generator: torch.Generator) -> Tensor:
    """Pad with zeros, crop back to the old size at a random place, mirror every second image.

    iCaRL pads after the mean is subtracted, so the border holds the mean and not black.

    Args:
        x: (B, 3, H, W) normalised images, channels last in memory.

    Returns:
        A tensor of the same shape and layout.
    """
    batch, _, height, width = x.shape
    pad = round(padding * max(height, width))
    top = torch.randint(2 * pad + 1, (batch, 1), generator=generator)
    left = torch.randint(2 * pad + 1, (batch, 1), generator=generator)
    columns = torch.arange(width).repeat(batch, 1)
    if flip:
        mirrored = torch.rand(batch, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    rows = moved(x.device, top + torch.arange(height))
    columns = moved(x.device, left + columns)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad))
    image = torch.arange(batch, device=x.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def moved(device: torch.device, part: Tensor) -> Tensor:
    """Something of a batch, such as random numbers, where it is used. CUDA has read it before it
    returns, and need not be waited for; Apple's GPUs may read what is freed by then
    (pytorch/pytorch#189690)."""
    return part.to(device, non_blocking=device.type == "cuda")
