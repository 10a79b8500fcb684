"""Learnt channel masks, and networks that become physically smaller by them.

DER (Yan et al., CVPR 2021, section 3.4) prunes every new extractor with masks like those of HAT
(Serra et al., ICML 2018): a gate sigmoid(s e) for every channel, where s grows within each epoch
until gates are nearly binary, and a loss on the share of weights in use. The paper leaves open
where the gates stand. Here each group of channels (see `engram.models.resnet`) has one gate vector,
after BatchNorm and ReLU: before BatchNorm a closed channel would still leak its shift. So the
network with binary gates and the network without the closed channels compute the same.
"""

from __future__ import annotations

import bisect
import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engram.errors import UserError
from engram.models.resnet import IMAGE, ResNet

__all__ = [
    "Allowance",
    "ChannelMasks",
    "Floor",
    "GradientRule",
    "Kept",
    "SparsityControl",
    "binary",
    "check_cut",
    "gate",
    "reestimate_norms",
    "shrunk",
    "steepness_of",
    "weight_share",
]

Kept = Mapping[str, Tensor]
"""Which channels stay: (C,) bool of every group."""

GradientRule = Literal["hat", "paper", "none"]

FIRST_LOGIT = 1.0
"""Where all channels are open, so that the network learns before it is cut."""
LARGEST_LOGIT = 6.0

SHARE_OF_TRAINING_TO_TARGET = 0.5
"""After which the share of weights has come down to what is asked for; the rest of training is for
the weights that are left."""
FIRST_LOG_WEIGHT = -4.0
"""Log weight of the sparsity loss at the start: too little to close a gate, so that the controller
finds the weight from below."""
INTEGRAL_GAIN = 0.05
"""Growth of the log weight an update, for each unit of log excess: at the largest excess the weight
grows tenfold in about ninety updates."""
PROPORTIONAL_GAIN = 5.0
"""What keeps the weight from swinging: the integral alone goes on closing gates for too long."""
LOG_WEIGHTS = (-12.0, 12.0)
"""Bounds of the log weight: gates that follow it no more must not wind it up or down for good."""
LARGEST_EXCESS = 0.5
"""Log excess is cut to this, so that a target far away does not wind the integral up."""

TOLERANCE = 1e-5


def steepness_of(batch: int, batches: int, steepest: float) -> float:
    """The steepness s of a batch: from 1 / steepest to steepest within every epoch (DER, eq. 8).

    An epoch of one batch has the steepest: at its beginning, gates would stay half open for good.
    """
    progress = batch / (batches - 1) if batches > 1 else 1.0
    return 1 / steepest + (steepest - 1 / steepest) * progress


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
    """A gate for every channel of a network; logits start where all gates open.

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
            {
                group: nn.Parameter(torch.full((width,), FIRST_LOGIT))
                for group, width in widths(network).items()
            }
        )

    def forward(self, batch: int, batches: int) -> dict[str, Tensor]:
        """Soft gates (C,) of every group, for a batch of an epoch."""
        steepness = steepness_of(batch, batches, self.steepest)
        return {
            group: gate(logits, steepness, self.steepest, self.rule)
            for group, logits in self.logits.items()
        }

    @torch.no_grad()
    def nearly_binary(self) -> dict[str, Tensor]:
        """The gates at the end of an epoch."""
        return {group: (self.steepest * logits).sigmoid() for group, logits in self.logits.items()}

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep logits where their gradient has not vanished (HAT clamps to 6 too)."""
        for logits in self.logits.values():
            logits.clamp_(-LARGEST_LOGIT, LARGEST_LOGIT)

    @torch.no_grad()
    def left(self, network: ResNet, floor: Floor) -> Tensor:
        """The share of weights that would be left at the end of the epoch. Where numbers of
        channels are rounded up, what that adds counts."""
        if floor.multiple == 1:
            return weight_share(network, self.nearly_binary())
        return weight_share(network, binary(floor.kept(self._ranks(), self._open_ones())))

    def kept(self, allowance: Allowance) -> Kept:
        """The channels that stay: those whose logit is above 0, or the highest of these that fit.
        A logit of exactly 0 is closed. What the floor asks for stays in any case.
        """
        return allowance.largest(self._ranks(), int(self._open_ones()))

    def _open_ones(self) -> Tensor:
        return torch.stack([(logits > 0).sum() for logits in self.logits.values()]).sum()

    def _ranks(self) -> dict[str, Tensor]:
        return channel_ranks({group: logits.detach() for group, logits in self.logits.items()})


def channel_ranks(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rank of every channel, of all groups together, from the highest logit down; equal ones
    alternate between groups, so that these shrink alike."""
    together = torch.cat(list(logits.values()))
    sizes = [len(group) for group in logits.values()]
    within = torch.cat([torch.arange(size, device=together.device) / size for size in sizes])
    order = within.argsort(stable=True)
    order = order[together[order].argsort(descending=True, stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return dict(zip(logits, ranks.split(sizes), strict=True))


@dataclass(frozen=True, slots=True)
class Floor:
    """What is left of a group of channels at least.

    Attributes:
        stream: channels of a stream; without any an extractor would be dead. Of a block's interior
            one is left: without any, the block is a constant.
        multiple: the number that stay is rounded up to one, as hardware likes it.
    """

    stream: int = 1
    multiple: int = 1

    def kept(self, ranks: Mapping[str, Tensor], count: int | Tensor) -> Kept:
        """The channels of every group whose rank is below `count`; more, the best, if too few.

        Nothing here waits for the device: it is asked after every step.
        """
        kept = {}
        for group, of_group in ranks.items():
            least = self.stream if group.startswith("stream") else 1
            wanted = (of_group < count).sum().clamp_min(least)
            rounded = (wanted + self.multiple - 1) // self.multiple * self.multiple
            kept[group] = of_group.argsort().argsort() < rounded
        return kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowance:
    """How large a network may be once it is cut.

    Attributes:
        network: the whole network, before anything is cut out of it.
        floor: channels that stay in any case.
        share: of the convolution weights.
        parameters: of the network, its BatchNorm folded, and of a classifier on its features; None
            for any number.
        classes: of that classifier.
    """

    network: ResNet
    floor: Floor
    share: float = 1.0
    parameters: int | None = None
    classes: int = 0

    def fits(self, kept: Kept) -> bool:
        """Whether the network with these channels is small enough."""
        if self.parameters is not None and self.size(kept) > self.parameters:
            return False
        return self.share >= 1 or self.share_of(kept) <= self.share

    def share_of(self, kept: Kept) -> float:
        """The share of the convolution weights that these channels have."""
        return float(weight_share(self.network, binary(kept)))

    def size(self, kept: Kept) -> int:
        """Parameters of the network with these channels, and of its classifier."""
        count = self.classes * int(kept[self.network.features].sum())
        for layer in self.network.convolutions():
            height, width = self.network.convolution(layer).kernel_size
            source = 3 if layer.source == IMAGE else int(kept[layer.source].sum())
            count += (source * height * width + 1) * int(kept[layer.target].sum())
        return count

    def largest(self, ranks: Mapping[str, Tensor], most: int) -> Kept:
        """The largest network of the channels with the best ranks that fits.

        Args:
            ranks: of all channels, by group; see `channel_ranks`.
            most: how many are kept at most.
        """

        def is_too_large(count: int) -> bool:
            return not self.fits(self.floor.kept(ranks, count))

        # Counts begin at 1: before the first that is too large, there are as many as still fit.
        count = bisect.bisect_left(range(1, most + 1), True, key=is_too_large)
        return self.floor.kept(ranks, count)

    def smallest(self) -> Kept:
        """The channels of the smallest network that there can be."""
        return self.floor.kept(self._alike(), 0)

    @property
    def target(self) -> float:
        """The share of convolution weights to aim at; under a bound of parameters, that of the
        largest network all of whose groups are cut alike."""
        if self.parameters is None:
            return self.share
        return self.share_of(self.largest(self._alike(), sum(widths(self.network).values())))

    def _alike(self) -> dict[str, Tensor]:
        """Ranks by which all groups shrink alike."""
        groups = widths(self.network).items()
        return channel_ranks({group: torch.zeros(width) for group, width in groups})


class SparsityControl(nn.Module):
    """The weight of the sparsity loss, held so that a given share of weights is left in the end.

    The share is led from 1 to the target in the first half of training, and kept there in the
    second, in which the weights that are left adapt. The logarithm of the weight follows the
    logarithm of the share's excess by a proportional and integral rule.

    Args:
        target: share of convolution weights, in (0, 1].

    Attributes:
        log_weight: the integral part.
    """

    def __init__(self, target: float) -> None:
        super().__init__()
        self.target = target
        self.register_buffer("log_weight", torch.tensor(FIRST_LOG_WEIGHT))
        self.log_weight: Tensor

    @torch.no_grad()
    def forward(self, share: Tensor, progress: float) -> Tensor:
        """The weight for a batch.

        Args:
            share: of the weights that would be left now.
            progress: of training, in [0, 1].
        """
        wanted = self.target ** min(1.0, progress / SHARE_OF_TRAINING_TO_TARGET)
        excess = (share / wanted).log().clamp(-LARGEST_EXCESS, LARGEST_EXCESS)
        self.log_weight.add_(INTEGRAL_GAIN * excess).clamp_(*LOG_WEIGHTS)
        weight: Tensor = (self.log_weight + PROPORTIONAL_GAIN * excess).exp()
        return weight


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
def reestimate_norms(network: ResNet, kept: Kept, batches: Iterable[Tensor]) -> None:
    """Take the statistics of every BatchNorm anew, under binary gates.

    Those of training were taken under soft gates of changing steepness. The paper does not do it.

    Args:
        batches: (B, 3, H, W) normalised images; the statistics are the mean of those of batches,
            which should be of one size.
    """
    norms = [network.norm(layer) for layer in network.convolutions()]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    for x in batches:
        network(x, binary(kept))
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def binary(kept: Kept) -> dict[str, Tensor]:
    """Gates of 0 and 1."""
    return {group: mask.float() for group, mask in kept.items()}


@torch.no_grad()
def shrunk(network: ResNet, kept: Kept) -> ResNet:
    """A copy of a network without the channels that are not kept, of every group one at least.

    It computes what the network with binary gates does, on the features that are left.
    """
    smaller = copy.deepcopy(network)
    positions = {group: mask.nonzero()[:, 0] for group, mask in kept.items()}
    for layer in network.convolutions():
        convolution = smaller.convolution(layer)
        weight = convolution.weight[positions[layer.target]]
        if layer.source != IMAGE:
            weight = weight[:, positions[layer.source]]
        convolution.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        convolution.out_channels, convolution.in_channels = weight.shape[:2]
        _cut_norm(smaller.norm(layer), positions[layer.target])
    for padding, source, target in smaller.paddings():
        padding.cut(positions[source], positions[target])
    return smaller


def _cut_norm(norm: nn.BatchNorm2d, positions: Tensor) -> None:
    norm.weight = nn.Parameter(norm.weight[positions])
    norm.bias = nn.Parameter(norm.bias[positions])
    for name in ("running_mean", "running_var"):
        setattr(norm, name, getattr(norm, name)[positions])
    norm.num_features = len(positions)


@torch.no_grad()
def check_cut(network: ResNet, kept: Kept, smaller: ResNet, x: Tensor) -> None:
    """Make sure that a network cut out of another computes what that does with binary gates.

    Both are compared on the CPU, in float32: accelerators choose their algorithms, and with them
    their rounding, by the number of channels.

    Args:
        x: (B, 3, H, W) normalised images; both networks are in evaluation mode.

    Raises:
        UserError: features differ by more than 1e-5, or by that share of the largest.
    """
    kept = {group: mask.cpu() for group, mask in kept.items()}
    whole = copy.deepcopy(network).cpu()(x.cpu(), binary(kept))[:, kept[network.features]]
    difference = float((copy.deepcopy(smaller).cpu()(x.cpu()) - whole).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(whole.abs().max())):
        raise UserError(
            f"The network without its closed channels differs by {difference:g}, more than by "
            f"rounding ({TOLERANCE:g}), so it was not put in the place of the whole one. Learn "
            "without pruning, or on another device."
        )
