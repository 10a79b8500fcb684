"""Residual networks for small images: iCaRL's own ResNet, and ResNet-18 in its CIFAR form.

Shapes: B images, C channels, H x W pixels.

Channels come in groups that only make sense together: those of a *stream*, which the shortcuts of a
stage carry past all of its blocks, and those of an *interior*, between the two convolutions of a
block. `gates` multiply groups of channels; `convolutions` says which groups a convolution reads and
writes. That is all that `engram.models.masks` has to know of a network.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.models.backbone import Backbone

__all__ = ["IMAGE", "CifarResNet", "Convolution", "ResNet", "ResNet18", "ZeroPadding"]

IMAGE = "image"
"""The group of the three colours, which no gate belongs to."""

Gates = Mapping[str, Tensor]
"""Factors (C,) for the channels of every group, by the group's name."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution, the BatchNorm after it, and the groups of channels between which it stands.

    Attributes:
        name: of the convolution within its network; `norm` likewise.
        source: group that it reads.
        target: group that it writes.
    """

    name: str
    norm: str
    source: str
    target: str


class ZeroPadding(nn.Module):
    """The shortcut without parameters (option A of He et al. 2016): every second pixel, and zeros
    for the channels that are missing, in equal parts before and after those there are.

    Attributes:
        origin: (C out,) the input channel that each output channel comes from; C in for none.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        before = (channels - channels_in) // 2
        places = torch.full((channels,), channels_in)
        places[before : before + channels_in] = torch.arange(channels_in)
        self.register_buffer("origin", places)
        self.origin: Tensor
        self.channels_in = channels_in
        self.stride = stride
        self.whole = channels_in, channels
        self.zeros = before, channels - channels_in - before

    def forward(self, x: Tensor) -> Tensor:
        thinned = x[:, :, :: self.stride, :: self.stride]
        if (x.shape[1], len(self.origin)) == self.whole:
            # The same as below, where the gradient of the index takes three percent of a step.
            return F.pad(thinned, (0, 0, 0, 0, *self.zeros))
        return F.pad(thinned, (0, 0, 0, 0, 0, 1))[:, self.origin]

    def cut(self, source: Tensor, target: Tensor) -> None:
        """Keep the channels at positions `source` of the input and `target` of the output."""
        place = self.origin.new_full((self.channels_in + 1,), len(source))
        place[source] = torch.arange(len(source), device=place.device)
        self.origin = place[self.origin[target]]
        self.channels_in = len(source)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

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
        self.shortcut = shortcut or nn.Identity()
        self.final_relu = final_relu

    def forward(
        self, x: Tensor, interior: Tensor | None = None, stream: Tensor | None = None
    ) -> Tensor:
        """(B, C in, H, W) to (B, C, H / stride, W / stride); gates (C,) for both groups."""
        inner = _gated(F.relu(self.bn1(self.conv1(x)), inplace=True), interior)
        out: Tensor = self.bn2(self.conv2(inner))
        out += self.shortcut(x)
        return _gated(F.relu(out, inplace=True) if self.final_relu else out, stream)


def _gated(x: Tensor, gate: Tensor | None) -> Tensor:
    # In the activations' own type: a gate in float32 would turn bfloat16 into float32 from here on.
    return x if gate is None else x * gate.to(x.dtype)[:, None, None]


def he_normal_(
    module: nn.Module, mode: Literal["fan_in", "fan_out"], generator: torch.Generator
) -> None:
    """Fill every convolution with He-normal weights (He et al. 2015), gain sqrt 2.

    Args:
        mode: whether the variance of activations or that of gradients is kept from layer to layer.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(
                layer.weight, mode=mode, nonlinearity="relu", generator=generator
            )


class ResNet(Backbone):
    """A stem, blocks in stages, and the mean over all pixels.

    Args:
        stem: channels of the first convolution.
        bn_eps: of its BatchNorm.
        large: begin as for photographs of ImageNet, with a 7x7 convolution and max-pooling, which
            leave a quarter of the side.

    Attributes:
        stages: of each block, from 0.
    """

    def __init__(self, stem: int, bn_eps: float = 1e-5, *, large: bool = False) -> None:
        super().__init__()
        size, stride = (7, 2) if large else (3, 1)
        self.conv = nn.Conv2d(3, stem, size, stride, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(stem, eps=bn_eps)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        self.blocks = nn.Sequential()
        self.stages: list[int] = []

    def append(self, block: BasicBlock, stage: int) -> None:
        """Add a block at the end."""
        self.blocks.append(block)
        self.stages.append(stage)

    @property
    def dim(self) -> int:
        """Length of the features."""
        return self.convolution([*self.convolutions()][-1]).weight.shape[0]

    @property
    def features(self) -> str:
        """The group of channels that the features are the means of."""
        return f"stream{self.stages[-1]}"

    def forward(self, x: Tensor, gates: Gates | None = None) -> Tensor:
        """(B, 3, H, W) normalised images to (B, dim) features."""
        gates = gates or {}
        stem = _gated(F.relu(self.bn(self.conv(x)), inplace=True), gates.get("stream0"))
        out: Tensor = self.pool(stem)
        for index, (block, stage) in enumerate(zip(self.blocks, self.stages, strict=True)):
            out = block(out, gates.get(f"interior{index}"), gates.get(f"stream{stage}"))
        return out.mean(dim=(2, 3))

    def convolutions(self) -> Iterator[Convolution]:
        """Every convolution with its place between groups of channels, in order."""
        yield Convolution("conv", "bn", IMAGE, "stream0")
        before = "stream0"
        for index, (block, stage) in enumerate(zip(self.blocks, self.stages, strict=True)):
            name, interior, stream = f"blocks.{index}", f"interior{index}", f"stream{stage}"
            yield Convolution(f"{name}.conv1", f"{name}.bn1", before, interior)
            yield Convolution(f"{name}.conv2", f"{name}.bn2", interior, stream)
            if isinstance(block.shortcut, nn.Sequential):
                yield Convolution(f"{name}.shortcut.0", f"{name}.shortcut.1", before, stream)
            before = stream

    def convolution(self, layer: Convolution) -> nn.Conv2d:
        """The module that `layer` describes."""
        module = self.get_submodule(layer.name)
        assert isinstance(module, nn.Conv2d)
        return module

    def norm(self, layer: Convolution) -> nn.BatchNorm2d:
        """The BatchNorm after it."""
        module = self.get_submodule(layer.norm)
        assert isinstance(module, nn.BatchNorm2d)
        return module

    def paddings(self) -> Iterator[tuple[ZeroPadding, str, str]]:
        """Every shortcut without parameters, with the groups that it reads and writes."""
        before = "stream0"
        for block, stage in zip(self.blocks, self.stages, strict=True):
            if isinstance(block.shortcut, ZeroPadding):
                yield block.shortcut, before, f"stream{stage}"
            before = f"stream{stage}"

    @torch.no_grad()
    def folded(self) -> ResNet:
        """A copy for evaluation whose convolutions have taken over their BatchNorm.

        It computes the same with less traffic to memory, and can no longer be trained.
        """
        copied = copy.deepcopy(self).eval().requires_grad_(False)
        for layer in self.convolutions():
            convolution, norm = copied.convolution(layer), copied.norm(layer)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            convolution.weight.mul_(scale[:, None, None, None])
            shift = norm.bias - norm.running_mean * scale
            convolution.bias = nn.Parameter(shift, requires_grad=False)
            copied.set_submodule(layer.norm, nn.Identity())
        return copied


class CifarResNet(ResNet):
    """ResNet of depth 6n + 2 exactly as iCaRL trained it (Rebuffi et al. 2017, authors' code).

    Widths 16, 32, 64; option A shortcuts; BatchNorm with eps 1e-4; no ReLU after the last block,
    so that features may be negative and their directions use the whole sphere.

    Args:
        blocks: residual blocks a stage, n in 6n + 2 (5 for ResNet-32).
        generator: source of the He-normal initial weights.
    """

    def __init__(self, blocks: int, generator: torch.Generator) -> None:
        super().__init__(16, bn_eps=1e-4)
        for stage, width in enumerate((16, 32, 64)):
            for position in range(blocks):
                widens = stage > 0 and position == 0
                block = BasicBlock(
                    width // 2 if widens else width,
                    width,
                    stride=2 if widens else 1,
                    bn_eps=1e-4,
                    final_relu=stage < 2 or position < blocks - 1,
                    shortcut=ZeroPadding(width // 2, width, 2) if widens else None,
                )
                self.append(block, stage)
        he_normal_(self, "fan_in", generator)


class ResNet18(ResNet):
    """ResNet-18 with 512-d features: projection shortcuts and a ReLU after every block (He et al.
    2016). It starts as the authors of DER have it: weights by fan-out, and in the CIFAR form every
    block as its shortcut, the scale of its last BatchNorm at zero.

    Args:
        generator: source of the He-normal initial weights.
        large: whether for photographs; else in its CIFAR form with a 3x3 stem of stride 1 and no
            max-pooling, which DER, FOSTER and PyCIL use for 32x32 images.
    """

    def __init__(self, generator: torch.Generator, *, large: bool = False) -> None:
        super().__init__(64, large=large)
        width_in = 64
        for stage, width in enumerate((64, 128, 256, 512)):
            stride = 1 if stage == 0 else 2
            projection = None
            if stage > 0:
                projection = nn.Sequential(
                    nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
                )
            for block in (
                BasicBlock(width_in, width, stride=stride, shortcut=projection),
                BasicBlock(width, width),
            ):
                if not large:
                    nn.init.zeros_(block.bn2.weight)
                self.append(block, stage)
            width_in = width
        he_normal_(self, "fan_out", generator)
