"""Channel masks: the gate's gradient, the loss, and networks cut by them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from torch import nn

from engram import models
from engram.errors import UserError
from engram.models.masks import (
    Allowance,
    ChannelMasks,
    Floor,
    Kept,
    SparsityControl,
    binary,
    check_cut,
    gate,
    reestimate_norms,
    shrunk,
    steepness_of,
    weight_share,
    widths,
)
from engram.models.resnet import ResNet
from engram.seeding import generator

BACKBONES = ["resnet8", "resnet32", "resnet18", "resnet18-imagenet"]


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


def with_random_logits(network: ResNet, seed: int = 0) -> ChannelMasks:
    masks = ChannelMasks(network, steepest=100, rule="hat")
    source = generator(seed, "masks")
    for logits in masks.logits.values():
        logits.data = torch.randn(len(logits), generator=source)
    return masks


def random_masks(network: ResNet, seed: int = 0) -> Kept:
    return with_random_logits(network, seed).kept(anything(network))


def anything(network: ResNet, **limits: Any) -> Allowance:
    return Allowance(network=network, floor=Floor(), **limits)


def weights(network: ResNet) -> int:
    return sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d))


def test_steepness_grows_within_an_epoch() -> None:
    assert steepness_of(0, 40, 100) == 1 / 100
    assert steepness_of(39, 40, 100) == pytest.approx(100)
    steps = [steepness_of(batch, 40, 100) for batch in range(40)]
    assert steps == sorted(steps)
    assert steepness_of(0, 1, 100) == 100, "an epoch of one batch divides by zero"


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

    def counts(**floor: int) -> dict[str, int]:
        kept = masks.kept(Allowance(network=network, floor=Floor(**floor)))
        return {group: int(mask.sum()) for group, mask in kept.items()}

    assert counts() == widths(network), "all channels are open at first"
    for logits in masks.logits.values():
        logits.data.zero_()
    assert set(counts().values()) == {1}, "0 counts as closed"
    floors = counts(stream=4)
    assert all(n == (4 if group.startswith("stream") else 1) for group, n in floors.items())
    logits = masks.logits["stream2"]
    logits.data = torch.linspace(-1, 1, len(logits)) + 0.1
    assert counts()["stream2"] == 35
    assert counts(multiple=8)["stream2"] == 40
    assert counts(multiple=48)["stream2"] == 48
    assert counts(multiple=33)["stream2"] == 64, "no more than there are"
    kept = masks.kept(Allowance(network=network, floor=Floor(multiple=8)))["stream2"]
    assert logits[kept].min() > logits[~kept].max()


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1, 0.03])
@pytest.mark.parametrize("multiple", [1, 4])
def test_no_more_weights_are_kept_than_allowed(share: float, multiple: int) -> None:
    for seed in range(3):
        network = network_of("resnet32", seed)
        masks = with_random_logits(network, seed)
        for logits in masks.logits.values():
            logits.data.abs_()
        allowance = Allowance(network=network, floor=Floor(multiple=multiple), share=share)
        kept = masks.kept(allowance)
        left = float(weight_share(network, binary(kept)))
        assert 0.8 * share < left <= share
        if multiple == 1:
            cut = [masks.logits[group].detach()[~mask] for group, mask in kept.items()]
            rest = [masks.logits[g].detach()[m] for g, m in kept.items() if m.sum() > 1]
            assert torch.cat(cut).max() <= torch.cat(rest).min(), "the lowest go first"


def test_a_number_of_parameters_is_not_exceeded() -> None:
    network = network_of("resnet18")
    masks = ChannelMasks(network, steepest=100, rule="hat")
    allowance = anything(network, parameters=300_000, classes=20)
    kept = masks.kept(allowance)
    cut = shrunk(network, kept).folded()
    own = sum(parameter.numel() for parameter in cut.parameters())
    assert own + 20 * cut.dim == allowance.size(kept) <= 300_000
    fresh = ChannelMasks(network, steepest=100, rule="hat").kept(allowance)
    assert allowance.target == allowance.share_of(fresh), "all groups are cut alike"
    assert allowance.target < 300_000 / 11_175_000, "a classifier shrinks less than weights do"
    assert not anything(network, parameters=50).fits(allowance.smallest())


def test_the_weight_of_the_sparsity_loss_follows_the_share() -> None:
    control = SparsityControl(0.1)
    first = control(torch.tensor(1.0), 0.0)
    assert 0 < first < 0.1
    assert all(control(torch.tensor(0.9), 0.4) > first for _ in range(50))
    risen = control.log_weight.clone()
    assert control(torch.tensor(0.09), 1.0) < control(torch.tensor(0.11), 1.0)
    assert all(bool(control(torch.tensor(0.01), 1.0) > 0) for _ in range(50))
    assert control.log_weight < risen


@pytest.mark.parametrize("multiple", [1, 8])
def test_the_share_ends_where_it_is_to_end(multiple: int) -> None:
    """A stand-in for training: each channel's use pushes its logit up, the sparsity loss down."""
    network = network_of("resnet32")
    floor = Floor(stream=4, multiple=multiple)
    masks = ChannelMasks(network, steepest=100, rule="hat")
    source = generator(0, "use")
    use = {g: 0.002 * torch.rand(len(e), generator=source) for g, e in masks.logits.items()}
    control = SparsityControl(0.25)
    optimizer = torch.optim.SGD(masks.parameters(), lr=0.1, momentum=0.9)
    for step in range(600):
        masks.clamp()
        gates = masks(step % 60, 60)
        loss = control(masks.left(network, floor), step / 600) * weight_share(network, gates)
        loss = loss - sum((use[group] * gates[group]).sum() for group in gates)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    kept = masks.kept(Allowance(network=network, floor=floor))
    assert float(weight_share(network, binary(kept))) == pytest.approx(0.25, rel=0.1)


def test_the_weight_of_the_sparsity_loss_is_not_wound_up_for_good() -> None:
    control = SparsityControl(0.1)
    for share in (1.0, 0.001):
        for _ in range(2000):
            control(torch.tensor(share), 1.0)
        assert abs(float(control.log_weight)) <= 12


def test_statistics_are_those_under_binary_gates() -> None:
    network, images = network_of("resnet8"), torch.randn(64, 3, 8, 8, generator=generator(1))
    kept = random_masks(network)
    momentum = network.bn.momentum
    reestimate_norms(network, kept, images.split(16))
    assert network.bn.momentum == momentum
    assert not network.training
    inputs = F.conv2d(images, network.conv.weight, padding=1)
    assert torch.allclose(network.bn.running_mean, inputs.mean(dim=(0, 2, 3)), atol=1e-5)
    first = network.blocks[0]
    # As in training, BatchNorm normalises by the batch.
    scale, shift = network.bn.weight, network.bn.bias
    normed = [F.batch_norm(x, None, None, scale, shift, True, eps=1e-4) for x in inputs.split(16)]
    gated = torch.cat(normed).relu() * kept["stream0"].float()[:, None, None]
    inner = F.conv2d(gated, first.conv1.weight, padding=1)
    assert torch.allclose(first.bn1.running_mean, inner.mean(dim=(0, 2, 3)), atol=1e-5)
    check_cut(network, kept, shrunk(network, kept), images)


def test_a_cut_that_changes_the_network_is_found() -> None:
    network, images = network_of("resnet8"), torch.randn(4, 3, 8, 8, generator=generator(1))
    kept = random_masks(network)
    smaller = shrunk(network, kept)
    check_cut(network, kept, smaller, images)
    smaller.bn.bias.data += 0.01
    with pytest.raises(UserError, match="differs by"):
        check_cut(network, kept, smaller, images)


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


def test_torch_pruning_cuts_the_same_network() -> None:
    """An independent implementation, which finds by itself which channels belong together."""
    network = network_of("resnet18")
    kept = random_masks(network)
    ours = shrunk(network, kept)
    theirs = copy.deepcopy(network)
    images = torch.randn(2, 3, 16, 16, generator=generator(1))
    graph = torch_pruning.DependencyGraph().build_dependency(theirs, images)
    roots = {layer.target: layer for layer in reversed(list(network.convolutions()))}
    for group, layer in roots.items():
        closed = (~kept[group]).nonzero()[:, 0].tolist()
        prune = torch_pruning.prune_conv_out_channels
        graph.get_pruning_group(theirs.convolution(layer), prune, closed).prune()
    assert weights(theirs) == weights(ours) < weights(network) / 2
    assert torch.allclose(theirs(images), ours(images), atol=1e-5)
