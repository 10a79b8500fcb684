"""Learnt channel masks, and networks that become physically smaller by them.

DER (Yan et al., CVPR 2021, section 3.4) prunes every new extractor with masks like those of HAT
(Serra et al., ICML 2018): a gate sigmoid(s e) for every channel, where s grows within each epoch
until gates are nearly binary, and a loss on the share of weights in use. The paper leaves open
where the gates stand. Here each group of channels (see `engram.models.resnet`) has one gate vector,
behind BatchNorm and ReLU: before BatchNorm a closed channel would still leak its shift. So the
network with binary gates and the network without the closed channels compute the same.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engram.models.resnet import IMAGE, ResNet

__all__ = ["ChannelMasks", "GradientRule", "annealed", "gate", "shrunk", "weight_share"]

GradientRule = Literal["hat", "paper", "none"]

LARGEST_LOGIT = 6.0


def annealed(batch: int, batches: int, steepest: float) -> float:
    """The steepness s of a batch: from 1 / steepest to steepest within every epoch (DER, eq. 8)."""
    return 1 / steepest + (steepest - 1 / steepest) * batch / max(batches - 1, 1)


class _StraightThrough(torch.autograd.Function):
    """Forward sigmoid(s e), backward sigmoid'(e) times a factor.

    The paper divides the gradient by s sigmoid'(s e) and multiplies it by sigmoid'(e). That is this
    rule, but the ratio turns to 0 / 0 where a gate is closed or open to the last bit.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, steepness: float, factor: float) -> Tensor:
        open_share = logits.sigmoid()
        ctx.save_for_backward(factor * open_share * (1 - open_share))
        return (steepness * logits).sigmoid()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return gradients[0] * slope, None, None


def gate(logits: Tensor, steepness: float, steepest: float, rule: GradientRule) -> Tensor:
    """Gates sigmoid(s e), in (0, 1), of logits e (C,).

    Args:
        steepness: s.
        steepest: the largest s of an epoch.
        rule: how the gradient is compensated for s: "paper" (DER, eq. 9), "hat" (that times the
            largest s, as HAT has it, without which logits hardly move), "none".
    """
    if rule == "none":
        return (steepness * logits).sigmoid()
    factor = steepest if rule == "hat" else 1.0
    gates: Tensor = _StraightThrough.apply(logits, steepness, factor)  # type: ignore[no-untyped-call]
    return gates


class ChannelMasks(nn.Module):
    """A gate for every channel of a network; logits start at 0, where all gates are half open.

    Args:
        network: whose groups of channels are gated.
        steepest: the largest s; HAT's own is 400, and at 10 gates stay soft.
        rule: see `gate`.
    """

    def __init__(self, network: ResNet, *, steepest: float, rule: GradientRule) -> None:
        super().__init__()
        self.steepest = steepest
        self.rule: GradientRule = rule
        self.logits = nn.ParameterDict(
            {group: nn.Parameter(torch.zeros(width)) for group, width in widths(network).items()}
        )

    def forward(self, batch: int, batches: int) -> dict[str, Tensor]:
        """Soft gates (C,) of every group, for a batch of an epoch."""
        steepness = annealed(batch, batches, self.steepest)
        return {
            group: gate(logits, steepness, self.steepest, self.rule)
            for group, logits in self.logits.items()
        }

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep logits where their gradient has not vanished (HAT clamps to 6 too)."""
        for logits in self.logits.values():
            logits.clamp_(-LARGEST_LOGIT, LARGEST_LOGIT)

    def kept(self, *, least: int = 1, multiple: int = 1) -> dict[str, Tensor]:
        """Which channels stay: (C,) bool of every group; a logit of exactly 0 is closed.

        Args:
            least: channels that a group keeps whatever its logits say, the highest ones.
            multiple: the number of kept channels is rounded up to one, as hardware likes it.
        """
        return {group: _kept(logits, least, multiple) for group, logits in self.logits.items()}


def _kept(logits: Tensor, least: int, multiple: int) -> Tensor:
    count = max(int((logits > 0).sum()), least, 1)
    count = min(-(-count // multiple) * multiple, len(logits))
    kept = torch.zeros_like(logits, dtype=torch.bool)
    kept[logits.argsort(descending=True, stable=True)[:count]] = True
    return kept


def widths(network: ResNet) -> dict[str, int]:
    """Channels of every group of a network."""
    return {
        layer.target: network.convolution(layer).out_channels for layer in network.convolutions()
    }


def weight_share(network: ResNet, gates: Mapping[str, Tensor]) -> Tensor:
    """The share of convolution weights in use (DER, eq. 10); with binary gates it is exact.

    Args:
        network: the whole network, before anything is cut out of it.
        gates: factors in [0, 1] for the channels of every group.
    """
    used: list[Tensor] = []
    total = 0
    for layer in network.convolutions():
        weight = network.convolution(layer).weight
        area = weight.shape[2] * weight.shape[3]
        source = weight.shape[1] if layer.source == IMAGE else gates[layer.source].sum()
        used.append(area * source * gates[layer.target].sum())
        total += weight.numel()
    return torch.stack(used).sum() / total


@torch.no_grad()
def shrunk(network: ResNet, kept: Mapping[str, Tensor]) -> ResNet:
    """A copy of a network without the channels that are not kept.

    It computes what the network with binary gates does, on the features that are left.

    Args:
        kept: (C,) bool of every group, each with one channel at least.
    """
    smaller = copy.deepcopy(network)
    places = {group: mask.nonzero()[:, 0] for group, mask in kept.items()}
    for layer in network.convolutions():
        convolution = smaller.convolution(layer)
        weight = convolution.weight[places[layer.target]]
        if layer.source != IMAGE:
            weight = weight[:, places[layer.source]]
        convolution.weight = nn.Parameter(weight.clone())
        convolution.out_channels, convolution.in_channels = weight.shape[:2]
        _cut_norm(smaller.norm(layer), places[layer.target])
    for padding, source, target in smaller.paddings():
        padding.cut(places[source], places[target])
    return smaller


def _cut_norm(norm: nn.BatchNorm2d, places: Tensor) -> None:
    norm.weight = nn.Parameter(norm.weight[places])
    norm.bias = nn.Parameter(norm.bias[places])
    for name in ("running_mean", "running_var"):
        setattr(norm, name, getattr(norm, name)[places])
    norm.num_features = len(places)
