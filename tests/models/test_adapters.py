"""Modules beside a frozen transformer: that they are attached, learn, and begin as nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram import models
from engram.errors import UserError
from engram.models.adapters import (
    Adapter,
    ConvAdapter,
    KeyValueLora,
    ModuleConfig,
    Prefix,
    attach,
    chosen_blocks,
)
from engram.models.vit import Size, VisionTransformer
from engram.seeding import generator

CONFIGS = [
    *(ModuleConfig(module="adapter", place=place) for place in ("msa", "mlp", "both")),
    *(
        ModuleConfig(module="conv-adapter", place="both", convolution=kind, class_token=token)
        for kind in ("depthwise", "full")
        for token in ("centre", "identity", "mean")
    ),
    ModuleConfig(module="lora"),
    ModuleConfig(module="prefix"),
]


def small_vit() -> VisionTransformer:
    vit = VisionTransformer(Size(24, 6, 3), 4, 20).eval()
    vit.draw(generator(0))
    return vit.requires_grad_(requires_grad=False)


def images() -> Tensor:
    return torch.randn(2, 3, 20, 20, generator=generator(1))


def randomised(modules: nn.Module) -> None:
    source = generator(3)
    for parameter in modules.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=source)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("whose", ["own", "timm"])
def test_a_module_begins_as_nothing_then_counts_and_learns(
    request: pytest.FixtureRequest, config: ModuleConfig, whose: str
) -> None:
    if whose == "own":
        vit: Any = small_vit()
    else:
        vit = request.getfixturevalue("timm").models.VisionTransformer(
            img_size=20, patch_size=4, embed_dim=24, depth=6, num_heads=3, num_classes=0
        )
        vit.eval().requires_grad_(False)
    before = vit(images())
    modules = attach(vit, config, generator(2))
    if config.module != "prefix":
        assert torch.equal(vit(images()), before), "it is not the identity at its start"
    randomised(modules)
    after = vit(images())
    assert (after - before).abs().max() > 1e-3, "it changes nothing"
    after.square().sum().backward()
    for name, parameter in modules.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert parameter.grad.any(), f"{name} gets no gradient"
    trained = {id(parameter) for parameter in modules.parameters()}
    assert all(p.grad is None for p in vit.parameters() if id(p) not in trained)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (ModuleConfig(), 42_270),
        (ModuleConfig(module="lora"), 76_810),
        (ModuleConfig(module="prefix", size=10), 76_810),
        (ModuleConfig(module="conv-adapter", blocks="0"), 8_504),
        (ModuleConfig(module="conv-adapter", blocks="0", convolution="full"), 8_684),
        (ModuleConfig(module="conv-adapter", blocks="0", size=8), 13_145),
        (
            ModuleConfig(
                module="conv-adapter", blocks="all", size=8, convolution="full", place="both"
            ),
            327_576,
        ),
    ],
    ids=str,
)
def test_parameter_counts(config: ModuleConfig, count: int) -> None:
    with torch.device("meta"):
        vit = VisionTransformer(Size(768, 12, 12), 16, 224)
    modules = attach(vit, config, generator(0))
    assert sum(parameter.numel() for parameter in modules.parameters()) == count


def test_a_prefix_is_explicit_attention_with_its_share_divided_out() -> None:
    prefix = Prefix(12, 4, generator(0)).double()
    randomised(prefix)
    queries, keys, values = torch.randn(3, 2, 3, 7, 4, generator=generator(1)).double()
    own = (prefix.scale[:, None, None] * prefix.tokens).reshape(2, 4, 3, 4).transpose(1, 2)
    all_keys = torch.cat([own[0].expand(2, -1, -1, -1), keys], dim=2)
    all_values = torch.cat([own[1].expand(2, -1, -1, -1), values], dim=2)
    attention = (queries @ all_keys.mT / 2).softmax(dim=-1)
    share = attention[..., :4].sum(-1, keepdim=True)
    compensated = torch.cat([attention[..., :4] / share, attention[..., 4:]], dim=-1)
    expected = compensated @ all_values
    assert torch.allclose(prefix.attend(queries, keys, values), expected, atol=1e-12)


def test_lora_leaves_queries_alone() -> None:
    lora = KeyValueLora(12, 3, generator(0))
    randomised(lora)
    added = lora(torch.randn(2, 5, 12, generator=generator(1)))
    assert not added[..., :12].any()
    assert added[..., 12:24].abs().min() > 0
    assert not torch.equal(added[..., 12:24], added[..., 24:])


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("prefix_tokens", [0, 1, 5])
@pytest.mark.parametrize("convolution", ["depthwise", "full"])
def test_a_conv_adapter_moves_no_token_and_no_channel(
    kernel: int, prefix_tokens: int, convolution: Any
) -> None:
    """A grid that is not square: rows and columns, tokens and channels must not be mixed up."""
    config = ModuleConfig(module="conv-adapter", size=6, kernel=kernel, convolution=convolution)
    conv = ConvAdapter(8, config, (5, 7), prefix_tokens, generator(0))
    hidden = torch.randn(2, prefix_tokens + 35, 6, generator=generator(1))
    assert torch.allclose(conv.inner(hidden), F.gelu(hidden), atol=1e-6), "not the identity"
    nn.init.zeros_(conv.conv.weight)
    for channel in range(6):
        source = 0 if convolution == "depthwise" else channel
        conv.conv.weight.data[channel, source, kernel // 2, -1] = 1.0
    shifted = torch.zeros(2, 6, 5, 7)
    step = kernel // 2
    grid = hidden[:, prefix_tokens:].mT.reshape(2, 6, 5, 7)
    shifted[..., : 7 - step] = grid[..., step:]
    moved = conv.inner(hidden)[:, prefix_tokens:]
    assert torch.allclose(moved, F.gelu(shifted.flatten(2).mT), atol=1e-6)


def test_the_class_token_sees_the_centre_tap_alone() -> None:
    config = ModuleConfig(module="conv-adapter", size=4, convolution="full")
    conv = ConvAdapter(8, config, (3, 3), 1, generator(0))
    randomised(conv)
    hidden = torch.randn(1, 10, 4, generator=generator(1))
    expected = conv.conv.weight[:, :, 1, 1] @ hidden[0, 0] + conv.conv.bias
    assert torch.allclose(conv.inner(hidden)[0, 0], F.gelu(expected), atol=1e-6)


def test_modules_are_drawn_from_their_generator() -> None:
    one, again, other = (Adapter(12, 5, generator(seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(again[name], tensor) for name, tensor in one.items())
    assert not torch.equal(other["down.weight"], one["down.weight"])


@pytest.mark.parametrize(
    ("text", "blocks"), [("all", [0, 1, 2, 3, 4, 5]), ("0-2", [0, 1, 2]), ("0,5", [0, 5])]
)
def test_blocks(text: str, blocks: list[int]) -> None:
    assert list(chosen_blocks(text, 6)) == blocks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0-6", "There is no block 6: this network has 6, 0-5"),
        ("7", "There is no block 7"),
        ("0-99999999999", "There is no block 99999999999"),
        ("3-1", "blocks must be"),
        ("0,3,0", "blocks names one twice: 0,3,0"),
        ("first", 'a list, not "first"'),
    ],
)
def test_blocks_that_do_not_exist_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen_blocks(text, 6)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"module": "lora", "place": "both"}, "lora belongs to attention"),
        ({"module": "prefix", "place": "mlp"}, "prefix belongs to attention"),
        ({"kernel": 4}, r"must be odd, not 4\.$"),
        ({"size": 0}, "size must be 1 or more"),
    ],
)
def test_what_cannot_be_is_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModuleConfig(**knobs)


@pytest.mark.parametrize("network", [nn.Linear(3, 3), models.create("resnet8", generator(0))])
def test_what_is_no_transformer_is_refused(network: nn.Module) -> None:
    with pytest.raises(UserError, match="the blocks of a vision transformer, and this backbone is"):
        attach(network, ModuleConfig(), generator(0))


class RelativeAttention(nn.Module):
    """Attention that wants more than tokens, as that of many networks of timm's."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads = base.qkv, base.proj, base.num_heads
        self.base = base

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        attended: Tensor = self.base(x + rope)
        return attended


class NormalisedAttention(RelativeAttention):
    """Attention with normalised queries."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.q_norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x)


@pytest.mark.parametrize("kind", [RelativeAttention, NormalisedAttention])
@pytest.mark.parametrize("module", ["lora", "prefix"])
def test_attention_of_another_kind_is_refused_where_it_is_changed(kind: Any, module: Any) -> None:
    vit: Any = small_vit()
    vit.blocks[0].attn = kind(vit.blocks[0].attn)
    with pytest.raises(UserError, match=f"{module} changes keys and values, and the attention"):
        attach(vit, ModuleConfig(module=module), generator(0))


def test_what_a_block_gives_its_attention_arrives_there() -> None:
    vit: Any = small_vit()
    attention = RelativeAttention(vit.blocks[0].attn)
    vit.blocks[0].attn = attention
    modules = attach(vit, ModuleConfig(blocks="0"), generator(0))
    randomised(modules)
    x, rope = torch.randn(2, 2, 5, 24, generator=generator(1))
    found = vit.blocks[0].attn(x, rope=rope)
    assert torch.equal(found, attention(x, rope) + modules["0-msa"](x))


def test_a_kernel_larger_than_the_grid_is_refused() -> None:
    config = ModuleConfig(module="conv-adapter", kernel=7)
    with pytest.raises(UserError, match=r"grid of 5 x 5 patches\. The largest that fits is 5"):
        attach(small_vit(), config, generator(0))
