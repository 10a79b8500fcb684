"""Small modules that are trained beside a frozen vision transformer, and where they are attached.

Shapes: B images, N tokens, D dimensions, h hidden ones. Modules are attached by wrapping parts of a
block, so that other people's transformers take them too, if their blocks have `attn` (with `qkv`,
`proj`, `num_heads`) and `mlp`. All but prefixes change nothing before they are trained.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.errors import UserError
from engram.models.vit import attend, join_heads, split_heads

__all__ = [
    "Adapter",
    "ConvAdapter",
    "KeyValueLora",
    "ModuleConfig",
    "Prefix",
    "attach",
    "chosen_blocks",
]

Kind = Literal["adapter", "conv-adapter", "lora", "prefix"]
Place = Literal["msa", "mlp", "both"]
ClassToken = Literal["centre", "identity", "mean"]

SPARE = 8
"""Channels that attention with a prefix has beside a head's own. One would do; fused kernels are
made for multiples of eight, and with one more than these torch takes the slow way round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleConfig:
    """What is attached, and where. The defaults are LAE's adapter (Gao et al., ICCV 2023)."""

    module: Kind = "adapter"
    size: int = 5
    """Hidden dimensions of adapters, rank of LoRA, tokens of a prefix."""
    place: Place = "msa"
    """Beside attention, beside the MLP, or both; LoRA and prefixes belong to attention."""
    blocks: str = "0-4"
    """`all`, a range such as 0-4, or a list such as 0,3,11."""
    kernel: int = 3
    """Side of a conv adapter's kernel, odd."""
    convolution: Literal["depthwise", "full"] = "depthwise"
    class_token: ClassToken = "centre"
    """What the convolution is to the class token: its centre tap alone (Convpass), nothing, or the
    mean over all patches."""

    def __post_init__(self) -> None:
        for name in ("size", "kernel"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, not {getattr(self, name)}.")
        if self.module in ("lora", "prefix") and self.place != "msa":
            raise UserError(f"{self.module} belongs to attention: place must be msa.")
        if self.kernel % 2 == 0:
            raise UserError(f"kernel must be odd, not {self.kernel}.")


class Adapter(nn.Module):
    """s Up(GELU(Down(x))): down uniform in +-1/sqrt(D), up 0, s a learnt scale that starts at 1."""

    def __init__(self, dim: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Linear(dim, hidden)
        self.up = nn.Linear(hidden, dim)
        self.scale = nn.Parameter(torch.ones(()))
        _uniform_(self.down.weight, generator)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        out: Tensor = self.scale * self.up(self.inner(F.gelu(self.down(x))))
        return out

    def inner(self, hidden: Tensor) -> Tensor:
        """What happens between the two layers (B, N, h): nothing."""
        return hidden


class ConvAdapter(Adapter):
    """An adapter with a convolution over the grid of patches between its layers (Convpass, Jie and
    Deng 2022), which starts as the identity.

    Args:
        grid: rows and columns of patches.
        prefix_tokens: tokens before those of patches.

    Raises:
        UserError: the kernel is larger than the grid.
    """

    def __init__(
        self,
        dim: int,
        config: ModuleConfig,
        grid: tuple[int, int],
        prefix_tokens: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(dim, config.size, generator)
        if config.kernel > min(grid):
            largest = min(grid) - (min(grid) % 2 == 0)
            raise UserError(
                f"A kernel of {config.kernel} is larger than the grid of {grid[0]} x {grid[1]} "
                f"patches. The largest that fits is {largest}."
            )
        self.grid, self.prefix_tokens = grid, prefix_tokens
        self.class_token: ClassToken = config.class_token
        groups = config.size if config.convolution == "depthwise" else 1
        self.conv = nn.Conv2d(
            config.size, config.size, config.kernel, padding=config.kernel // 2, groups=groups
        )
        nn.init.dirac_(self.conv.weight, groups)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def inner(self, hidden: Tensor) -> Tensor:
        """(B, N, h) to (B, N, h), ending with a second GELU."""
        prefix, patches = hidden[:, : self.prefix_tokens], hidden[:, self.prefix_tokens :]
        rows = patches.transpose(1, 2).unflatten(2, self.grid)
        convolved: Tensor = self.conv(rows).flatten(2).transpose(1, 2)
        return F.gelu(torch.cat([self._of_prefix(prefix, convolved), convolved], dim=1))

    def _of_prefix(self, prefix: Tensor, convolved: Tensor) -> Tensor:
        if not prefix.shape[1]:
            return prefix
        match self.class_token:
            case "identity":
                return prefix
            case "mean":
                return convolved.mean(dim=1, keepdim=True).expand_as(prefix)
            case "centre":
                middle = self.conv.kernel_size[0] // 2
                tap = self.conv.weight[:, :, middle, middle, None]
                groups = self.conv.groups
                return F.conv1d(prefix.transpose(1, 2), tap, self.conv.bias, groups=groups).mT


class KeyValueLora(nn.Module):
    """Low-rank changes of keys and values, s B A each (LoRA as in LAE); queries stay."""

    def __init__(self, dim: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down_weight = nn.Parameter(torch.empty(2, rank, dim))
        self.up_weight = nn.Parameter(torch.zeros(2, dim, rank))
        self.scale = nn.Parameter(torch.ones(2))
        _uniform_(self.down_weight, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to what is added to queries, keys and values (B, N, 3 D)."""
        keys, values = (
            scale * F.linear(F.linear(x, down), up)
            for scale, down, up in zip(self.scale, self.down_weight, self.up_weight, strict=True)
        )
        return torch.cat([torch.zeros_like(keys), keys, values], dim=-1)


class Prefix(nn.Module):
    """Learnt tokens that attention sees beside those of the image, keys and values each.

    The share of a query's attention that goes to them is divided out, as LAE does, so that they
    learn as fast as an adapter: ordinary attention with the prefix, plus (1 - share) times
    attention to the prefix alone.
    """

    def __init__(self, dim: int, tokens: int, generator: torch.Generator) -> None:
        super().__init__()
        self.tokens = nn.Parameter(0.01 * torch.rand(2, tokens, dim, generator=generator))
        self.scale = nn.Parameter(torch.ones(2))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries, keys and values (B, heads, N, d) to (B, heads, N, d)."""
        batch, heads, _, width = keys.shape
        scaled = self.scale[:, None, None] * self.tokens
        parts = scaled.unflatten(2, (heads, width)).transpose(1, 2).to(keys.dtype)
        own_keys, own_values = parts[:, None].expand(2, batch, -1, -1, -1)
        # A channel of ones for prefix tokens: what attention makes of it is the share they have.
        own_values = F.pad(F.pad(own_values, (0, 1), value=1.0), (0, SPARE - 1))
        queries, keys, own_keys, values = (
            F.pad(part, (0, SPARE)) for part in (queries, keys, own_keys, values)
        )
        scale = width**-0.5
        both = attend(
            queries,
            torch.cat([own_keys, keys], dim=2),
            torch.cat([own_values, values], dim=2),
            scale,
        )
        alone = attend(queries, own_keys, own_values, scale)
        share = both[..., width : width + 1]
        return both[..., :width] + (1 - share) * alone[..., :width]


class ParallelBranch(nn.Module):
    """A part of a block with a module beside it: the sum of both."""

    def __init__(self, base: nn.Module, module: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.module = module

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        """(B, N, D) to (B, N, D); what else a block gives goes to its own part alone."""
        out: Tensor = self.base(x, *rest, **named) + self.module(x)
        return out


class PrefixedAttention(nn.Module):
    """Attention that sees a prefix."""

    def __init__(self, base: nn.Module, module: Prefix) -> None:
        super().__init__()
        self.base: Any = base
        self.module = module

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, D) to (B, N, D); other attention than to everything is refused."""
        _refuse_masks(attn_mask, is_causal)
        attended = self.module.attend(*split_heads(self.base.qkv(x), self.base.num_heads))
        out: Tensor = self.base.proj(join_heads(attended))
        return out


def _refuse_masks(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError("modules are made for attention of all tokens to all")


def attach(vit: Any, config: ModuleConfig, generator: torch.Generator) -> nn.ModuleDict:
    """Put modules into the blocks of a vision transformer.

    Args:
        vit: with `blocks`, `patch_embed.grid_size` and `num_prefix_tokens`; changed.
        generator: source of the initial values.

    Returns:
        The modules, by block and place.

    Raises:
        UserError: the network is none, blocks do not exist, a kernel is larger than the grid, or
            attention is of a kind that LoRA and prefixes do not know.
    """
    if not _has_blocks(vit):
        raise UserError(
            "Modules are attached to the blocks of a vision transformer, and this backbone is none "
            "whose blocks are known. Choose another, such as vit_tiny_patch16_224, or attach "
            "nothing: ranpac with --no-adapt."
        )
    modules = nn.ModuleDict()
    grid, prefix_tokens = vit.patch_embed.grid_size, vit.num_prefix_tokens
    for index in chosen_blocks(config.blocks, len(vit.blocks)):
        block = vit.blocks[index]
        dim = block.norm1.weight.shape[0]
        for place in ("msa", "mlp") if config.place == "both" else (config.place,):
            modules[f"{index}-{place}"] = module = _created(
                config, dim, grid, prefix_tokens, generator
            )
            if isinstance(module, (Prefix, KeyValueLora)):
                _check_attention(block.attn, config.module)
            if isinstance(module, Prefix):
                block.attn = PrefixedAttention(block.attn, module)
            elif isinstance(module, KeyValueLora):
                block.attn.qkv = ParallelBranch(block.attn.qkv, module)
            elif place == "msa":
                block.attn = ParallelBranch(block.attn, module)
            else:
                block.mlp = ParallelBranch(block.mlp, module)
    return modules


def _has_blocks(network: Any) -> bool:
    """Whether it is a transformer of timm's kind."""
    try:
        blocks, _, _ = network.blocks, network.patch_embed.grid_size, network.num_prefix_tokens
    except AttributeError:
        return False
    parts = ("norm1", "attn", "mlp")
    return len(blocks) > 0 and all(hasattr(block, part) for block in blocks for part in parts)


def _check_attention(attention: nn.Module, kind: Kind) -> None:
    """Refuse attention that is more than queries, keys and values of one product.

    Raises:
        UserError: it normalises them, turns them by position, or takes something else besides.
    """
    inner = dict(attention.named_children())
    norms = (inner[name] for name in ("q_norm", "k_norm", "norm") if name in inner)
    taken = {*inspect.signature(attention.forward).parameters} - {"x", "attn_mask", "is_causal"}
    whole = isinstance(inner.get("qkv"), nn.Linear) and "proj" in inner
    if taken or not whole or not all(isinstance(norm, nn.Identity) for norm in norms):
        raise UserError(
            f"{kind} changes keys and values, and the attention of this backbone makes them in "
            "another way than it knows. Take module adapter or conv-adapter, or another backbone."
        )


def _created(
    config: ModuleConfig,
    dim: int,
    grid: tuple[int, int],
    prefix_tokens: int,
    generator: torch.Generator,
) -> nn.Module:
    match config.module:
        case "adapter":
            return Adapter(dim, config.size, generator)
        case "conv-adapter":
            return ConvAdapter(dim, config, grid, prefix_tokens, generator)
        case "lora":
            return KeyValueLora(dim, config.size, generator)
        case "prefix":
            return Prefix(dim, config.size, generator)


def chosen_blocks(text: str, depth: int) -> Sequence[int]:
    """Positions of blocks from `all`, a range such as `0-4`, or a list such as `0,3,11`.

    Raises:
        UserError: the text is none of these, or names a block that does not exist.
    """
    if text == "all":
        return range(depth)
    if match := re.fullmatch(r"(\d+)-(\d+)", text):
        chosen: Sequence[int] = range(int(match[1]), int(match[2]) + 1)
    elif re.fullmatch(r"\d+(,\d+)*", text):
        chosen = [int(number) for number in text.split(",")]
    else:
        chosen = []
    if not chosen:
        raise UserError(f'blocks must be "all", a range such as 0-4, or a list, not "{text}".')
    # Of a range, that may be very long, nothing is counted before its end is known to exist.
    if (last := chosen[-1] if isinstance(chosen, range) else max(chosen)) >= depth:
        raise UserError(f"There is no block {last}: this network has {depth}, 0-{depth - 1}.")
    if len(set(chosen)) < len(chosen):
        raise UserError(f"blocks names one twice: {text}.")
    return chosen


def _uniform_(parameter: Tensor, generator: torch.Generator) -> None:
    """Uniform in +-1/sqrt(inputs), as PyTorch draws its linear layers."""
    reach = parameter.shape[-1] ** -0.5
    nn.init.uniform_(parameter, -reach, reach, generator=generator)
