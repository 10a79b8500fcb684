"""Networks: shapes, parameter counts, shortcuts, and heads that grow."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from engram import models
from engram.errors import UserError
from engram.models.heads import CosineHead, LinearHead
from engram.models.network import frozen
from engram.models.resnet import BasicBlock, CifarResNet, ZeroPadding
from engram.seeding import generator


def test_resnet32_is_the_authors() -> None:
    net = CifarResNet(5, generator(0))
    assert sum(parameter.numel() for parameter in net.parameters()) == 463_504
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 31
    assert all(m.eps == 1e-4 for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert convolutions[5].weight.std().item() == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.1)
    features = net.eval()(torch.randn(4, 3, 32, 32, generator=generator(1)))
    assert features.shape == (4, 64)
    assert (features < 0).any(), "there is no ReLU after the last block"


def test_resnet18_in_its_cifar_form() -> None:
    net = models.create("resnet18", generator(0))
    assert sum(p.numel() for p in net.backbone.parameters()) == 11_168_832
    features = net.backbone.eval()(torch.randn(2, 3, 32, 32, generator=generator(1)))
    assert features.shape == (2, 512)
    assert (features >= 0).all()
    first, widest = net.backbone.get_parameter("conv.weight"), "blocks.6.conv1.weight"
    assert first.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
    spread = net.backbone.get_parameter(widest).std().item()
    assert spread == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.1), "by fan-out"


def test_the_parameter_free_shortcut() -> None:
    block = BasicBlock(16, 32, stride=2, final_relu=False, shortcut=ZeroPadding(16, 32, 2)).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8, generator=generator(0))
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_a_head_keeps_its_rows_as_it_grows() -> None:
    head = LinearHead(8)
    head.grow(3, generator(0))
    before = head.weight.detach().clone()
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    head.grow(2, generator(1))
    assert torch.equal(head.weight[:3], before)
    assert head.bias.tolist() == [1, 2, 3, 0, 0]
    assert head(torch.ones(1, 8)).shape == (1, 5)


def test_new_rows_have_gain_one() -> None:
    head = LinearHead(64)
    head.grow(500, generator(0))
    assert head.weight.std().item() == pytest.approx(1 / 8, rel=0.03)


def test_cosines_know_no_lengths() -> None:
    head = CosineHead(8, 3)
    head.draw(generator(0))
    features = torch.randn(5, 8, generator=generator(1))
    logits = head(features)
    assert logits.abs().max() <= 1
    assert torch.allclose(head(7 * features), logits, atol=1e-6)
    with torch.no_grad():
        head.scale.fill_(3.0)
    assert torch.allclose(head(features), 3 * logits)


def test_a_frozen_copy_stands_still() -> None:
    net = models.create("resnet8", generator(0))
    net.head.grow(2, generator(1))
    copy = frozen(net)
    before = {name: value.clone() for name, value in copy.state_dict().items()}
    x = torch.randn(16, 3, 8, 8, generator=generator(2))
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    F.cross_entropy(net(x) + copy(x), torch.zeros(16).long()).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in copy.state_dict().items())
    assert not torch.equal(net.backbone.conv.weight, copy.backbone.conv.weight)


@pytest.mark.parametrize("name", [*models.BACKBONES, "vit_micro_patch4_16"])
def test_the_folded_form_of_a_backbone_gives_the_same_features(name: str) -> None:
    source = generator(0)
    backbone = models.create(name, source, (16, 16)).backbone
    images = torch.randn(8, 3, 16, 16, generator=source)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=source)
        backbone.train()(images)  # moves the statistics of BatchNorms
        expected = backbone.eval()(images)
        assert expected.shape == (8, backbone.dim)
        difference = (backbone.folded()(images) - expected).abs().max()
    assert difference <= 1e-5 * expected.abs().max()


def test_initial_weights_follow_the_generator() -> None:
    one, same, other = (models.create("resnet8", generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.backbone.conv.weight, same.backbone.conv.weight)
    assert not torch.equal(one.backbone.conv.weight, other.backbone.conv.weight)


def test_an_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(UserError, match='Perhaps you meant "resnet32"'):
        models.create("resnet23", generator(0))


def test_a_transformer_is_made_for_the_images() -> None:
    network = models.create("vit_micro_patch4_16", generator(0), (8, 8))
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 0)
    still = frozen(network)
    assert not any(parameter.requires_grad for parameter in still.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    with pytest.raises(UserError, match="wants square images, not 8 x 12"):
        models.create("vit_micro_patch4_16", generator(0), (8, 12))
    with pytest.raises(UserError, match=r"There are no weights .*vit_micro_patch4_16\.nobodys"):
        models.create("vit_micro_patch4_16.nobodys", generator(0), (8, 8))
