"""Channel masks: the gate's gradient, the loss, and networks cut by them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from engram import models
from engram.models.masks import (
    ChannelMasks,
    annealed,
    gate,
    shrunk,
    weight_share,
    widths,
)
from engram.models.resnet import ResNet
from engram.seeding import generator

BACKBONES = ["resnet8", "resnet32", "resnet18"]


def network_of(name: str, seed: int = 0) -> ResNet:
    """A network in evaluation mode whose BatchNorms have random parameters and statistics."""
    network = models.create(name, generator(seed)).backbone.eval()
    assert isinstance(network, ResNet)
    source = generator(seed, "norms")
    for norm in norms(network):
        for tensor in (norm.weight, norm.running_var):
            tensor.data = torch.rand(len(tensor), generator=source) + 0.5
        for tensor in (norm.bias, norm.running_mean):
            tensor.data = torch.randn(len(tensor), generator=source)
    return network


def norms(network: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def random_masks(network: ResNet, seed: int = 0) -> dict[str, Tensor]:
    masks = ChannelMasks(network, steepest=100, rule="hat")
    source = generator(seed, "masks")
    for logits in masks.logits.values():
        logits.data = torch.randn(len(logits), generator=source)
    return masks.kept()


def binary(kept: dict[str, Tensor]) -> dict[str, Tensor]:
    return {group: mask.float() for group, mask in kept.items()}


def weights(network: ResNet) -> int:
    return sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d))


def test_steepness_grows_within_an_epoch() -> None:
    assert annealed(0, 40, 100) == 1 / 100
    assert annealed(39, 40, 100) == pytest.approx(100)
    steps = [annealed(batch, 40, 100) for batch in range(40)]
    assert steps == sorted(steps)
    assert math.isfinite(annealed(0, 1, 100)), "an epoch of one batch divides by zero"


@pytest.mark.parametrize("steepness", [0.01, 1.0, 2.5])
def test_the_gradient_is_the_papers_in_double_precision(steepness: float) -> None:
    logits = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(41, dtype=torch.float64, generator=generator(0))
    plain = gate(logits, steepness, 100, "none")
    (raw,) = torch.autograd.grad(plain, logits, upstream)
    e, se = logits.detach(), steepness * logits.detach()
    ratio = e.sigmoid() * (1 - e.sigmoid()) / (steepness * se.sigmoid() * (1 - se.sigmoid()))
    (ours,) = torch.autograd.grad(gate(logits, steepness, 100, "paper"), logits, upstream)
    assert torch.allclose(ours, ratio * raw, rtol=1e-12, atol=1e-14)
    hat = 100 / steepness * (se.cosh() + 1) / (e.cosh() + 1)
    (ours,) = torch.autograd.grad(gate(logits, steepness, 100, "hat"), logits, upstream)
    assert torch.allclose(ours, hat * raw, rtol=1e-12, atol=1e-14)
    assert torch.equal(gate(logits, steepness, 100, "hat"), plain)


def test_the_gradient_is_finite_where_gates_are_closed_to_the_last_bit() -> None:
    logits = torch.tensor([-4.0, -1.0, 1.0, 4.0], requires_grad=True)
    gate(logits, 100.0, 100.0, "hat").sum().backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", BACKBONES)
def test_the_share_of_weights_is_exact_for_binary_gates(name: str) -> None:
    network = network_of(name)
    kept = random_masks(network)
    share = float(weight_share(network, binary(kept)))
    assert share == pytest.approx(weights(shrunk(network, kept)) / weights(network), rel=1e-6)
    assert 0.1 < share < 0.5


def test_half_open_gates_use_a_quarter_of_the_weights() -> None:
    network = network_of("resnet18")
    halves = {group: torch.full((width,), 0.5) for group, width in widths(network).items()}
    first = 9 * 3 * 64
    assert float(weight_share(network, halves)) == pytest.approx(
        0.25 + 0.25 * first / weights(network), rel=1e-6
    )


@pytest.mark.parametrize("name", BACKBONES)
def test_the_shrunk_network_computes_what_the_masked_one_does(name: str) -> None:
    network = network_of(name)
    images = torch.randn(3, 3, 16, 16, generator=generator(1))
    for seed in range(3):
        kept = random_masks(network, seed)
        smaller = shrunk(network, kept)
        features = network(images, binary(kept))
        last = kept[f"stream{network.stages[-1]}"]
        assert smaller.dim == int(last.sum())
        assert torch.allclose(smaller(images), features[:, last], atol=1e-5)
        assert not features[:, ~last].any(), "a closed channel leaks"
        again = random_masks(smaller, seed)
        twice = smaller(images, binary(again))[:, again[f"stream{network.stages[-1]}"]]
        assert torch.allclose(shrunk(smaller, again)(images), twice, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_folding_changes_nothing_but_the_norms(name: str) -> None:
    network = network_of(name)
    images = torch.randn(3, 3, 16, 16, generator=generator(1))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for whole in (network, shrunk(network, random_masks(network))):
        flat = whole.folded()
        assert not list(norms(flat))
        assert not any(parameter.requires_grad for parameter in flat.parameters())
        expected = whole(images).detach()
        assert torch.allclose(flat(images), expected, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_group_keeps_a_floor_and_a_multiple() -> None:
    network = network_of("resnet8")
    masks = ChannelMasks(network, steepest=100, rule="hat")
    assert all(int(kept.sum()) == 1 for kept in masks.kept().values()), "0 counts as closed"
    assert all(int(kept.sum()) == 4 for kept in masks.kept(least=4).values())
    logits = masks.logits["stream2"]
    logits.data = torch.linspace(-1, 1, len(logits))
    assert int(masks.kept()["stream2"].sum()) == 32
    logits.data += 0.1
    kept = masks.kept(multiple=8)["stream2"]
    assert int(kept.sum()) == 40
    assert logits[kept].min() > logits[~kept].max()
    logits.data += 5
    assert masks.kept(multiple=24)["stream2"].all()


def test_clamping_keeps_logits_in_reach() -> None:
    masks = ChannelMasks(network_of("resnet8"), steepest=100, rule="hat")
    for logits in masks.logits.values():
        logits.data += 50
    masks.clamp()
    assert all(bool((logits == 6).all()) for logits in masks.logits.values())


def test_gates_reach_every_group_and_take_gradient() -> None:
    network = network_of("resnet32")
    masks = ChannelMasks(network, steepest=100, rule="hat")
    gates = masks(5, 10)
    assert gates.keys() == widths(network).keys()
    images = torch.randn(2, 3, 16, 16, generator=generator(1))
    (network(images, gates).square().sum() + weight_share(network, gates)).backward()
    assert all(logits.grad is not None and logits.grad.any() for logits in masks.logits.values())
