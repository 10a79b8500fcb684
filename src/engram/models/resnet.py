"""Residual networks for small images: iCaRL's own ResNet, and ResNet-18 in its CIFAR form.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CifarResNet", "ResNet18"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `shortcut` None pads the missing channels with zeros.

    The parameter-free shortcut is option A of He et al. 2016: every second pixel, and zeros in
    equal parts before and after the channels there are.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        *,
        stride: int = 1,
        bn_eps: float = 1e-5,
        final_relu: bool = True,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, eps=bn_eps)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, eps=bn_eps)
        self.shortcut = shortcut
        self.stride = stride
        self.padding = (channels - channels_in) // 2
        self.final_relu = final_relu

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out: Tensor = self.bn2(self.conv2(residual))
        out += self._skip(x)
        return F.relu(out, inplace=True) if self.final_relu else out

    def _skip(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            projected: Tensor = self.shortcut(x)
            return projected
        if self.stride == 1 and self.padding == 0:
            return x
        thinned = x[:, :, :: self.stride, :: self.stride]
        return F.pad(thinned, (0, 0, 0, 0, self.padding, self.padding))


def he_normal_(module: nn.Module, generator: torch.Generator) -> None:
    """Fill every convolution with He-normal weights: gain sqrt 2, fan-in (He et al. 2015)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 exactly as iCaRL trained it (Rebuffi et al. 2017, authors' code).

    Widths 16, 32, 64; option A shortcuts; BatchNorm with eps 1e-4; no ReLU after the last block,
    so that features may be negative and their directions use the whole sphere.

    Args:
        blocks: residual blocks a stage, n in 6n + 2 (5 for ResNet-32).
        generator: source of the He-normal initial weights.
    """

    def __init__(self, blocks: int, generator: torch.Generator) -> None:
        super().__init__()
        self.dim = 64
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16, eps=1e-4)
        widths = [16] * blocks + [32] * blocks + [64] * blocks
        self.blocks = nn.Sequential()
        for index, (width_in, width) in enumerate(zip([16, *widths], widths, strict=False)):
            self.blocks.append(
                BasicBlock(
                    width_in,
                    width,
                    stride=1 if width == width_in else 2,
                    bn_eps=1e-4,
                    final_relu=index < len(widths) - 1,
                )
            )
        he_normal_(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, 64) features."""
        out: Tensor = self.blocks(F.relu(self.bn(self.conv(x)), inplace=True))
        return out.mean(dim=(2, 3))


class ResNet18(nn.Module):
    """ResNet-18 in its CIFAR form: a 3x3 stem of stride 1, no max-pooling, 512-d features.

    Projection shortcuts and a ReLU after every block (He et al. 2016). DER, FOSTER and PyCIL use
    this network for 32x32 images.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.dim = 512
        self.conv = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(64)
        self.blocks = nn.Sequential()
        width_in = 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            projection = None
            if stride != 1:
                projection = nn.Sequential(
                    nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
                )
            self.blocks.append(BasicBlock(width_in, width, stride=stride, shortcut=projection))
            self.blocks.append(BasicBlock(width, width))
            width_in = width
        he_normal_(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, 512) features."""
        out: Tensor = self.blocks(F.relu(self.bn(self.conv(x)), inplace=True))
        return out.mean(dim=(2, 3))
