"""Vision transformers under timm's parameter names, and the weights that others trained for them.

Shapes: B images, N tokens (the class token first, then patches row by row), D dimensions.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.errors import UserError, unknown
from engram.models.backbone import Backbone

__all__ = [
    "MEAN_AND_DEVIATION",
    "VIT",
    "VisionTransformer",
    "attend",
    "check_patches",
    "create_vit",
    "fitted_weights",
    "join_heads",
    "split_heads",
]

VIT = "vit_"
"""What the names of all of them begin with."""

MEAN_AND_DEVIATION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and deviation of each channel, for pixels in [0, 1]: Google's vision transformers were
trained with them."""


@dataclass(frozen=True, slots=True)
class Size:
    """Dimensions of the tokens, blocks, and heads of each attention."""

    dim: int
    depth: int
    heads: int


SIZES = {
    "micro": Size(32, 2, 2),
    "tiny": Size(192, 12, 3),
    "small": Size(384, 12, 6),
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
}

LAYER_NORM_EPS = 1e-6

MOST_WEIGHTS = 2**27
"""The most entries of an attention that is not fused: more would take too much memory."""


class PatchEmbedding(nn.Module):
    """Square patches to tokens, by one convolution.

    Attributes:
        grid_size: rows and columns of patches.
    """

    def __init__(self, patch_size: int, image_size: int, dim: int) -> None:
        super().__init__()
        self.grid_size = (image_size // patch_size, image_size // patch_size)
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, N - 1, D)."""
        tokens: Tensor = self.proj(x)
        return tokens.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with queries, keys and values from one product."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        attended = attend(*split_heads(self.qkv(x), self.num_heads))
        out: Tensor = self.proj(join_heads(attended))
        return out


def attend(queries: Tensor, keys: Tensor, values: Tensor, scale: float | None = None) -> Tensor:
    """Scaled dot-product attention: (B, heads, N, d) queries to (B, heads, N, width of values).

    Fused, but for bfloat16 on a processor: there torch's fused kernel takes two to four times as
    long as the two products with a softmax between them (`benchmarks/vit.py`).

    Args:
        scale: factor of the products; 1 / sqrt d where None.
    """
    if not _fused_is_slow(queries, keys):
        return F.scaled_dot_product_attention(queries, keys, values, scale=scale)
    factor = queries.shape[-1] ** -0.5 if scale is None else scale
    return ((queries * factor) @ keys.mT).softmax(dim=-1) @ values


def _fused_is_slow(queries: Tensor, keys: Tensor) -> bool:
    if queries.device.type != "cpu" or queries.dtype != torch.bfloat16:
        return False
    # Asked last: a comparison of sizes would fix the size of the batch in an exported graph.
    return queries.shape[:-1].numel() * keys.shape[-2] <= MOST_WEIGHTS


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, 3 D) to queries, keys and values (B, heads, N, D / heads)."""
    batch, tokens, width = qkv.shape
    parts = qkv.reshape(batch, tokens, 3, num_heads, width // (3 * num_heads))
    queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)
    return queries, keys, values


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, N, D / heads) to (B, N, D)."""
    return x.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Two linear layers with GELU between them, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and added to what came in."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(Backbone):
    """A ViT (Dosovitskiy et al., ICLR 2021) without classifier; its feature is the class token.

    Args:
        size: of the tokens and blocks.
        patch_size: side of a patch in pixels.
        image_size: side of an image in pixels, a multiple of it.

    Attributes:
        num_prefix_tokens: tokens before those of patches: the class token.
    """

    num_prefix_tokens = 1

    def __init__(self, size: Size, patch_size: int, image_size: int) -> None:
        super().__init__()
        check_patches(image_size, patch_size)
        self.image_size = image_size
        self.patch_embed = PatchEmbedding(patch_size, image_size, size.dim)
        tokens = math.prod(self.patch_embed.grid_size) + self.num_prefix_tokens
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, size.dim))
        self.blocks = nn.Sequential(*(Block(size.dim, size.heads) for _ in range(size.depth)))
        self.norm = nn.LayerNorm(size.dim, eps=LAYER_NORM_EPS)

    @property
    def dim(self) -> int:
        return self.cls_token.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, D), the class token after the last LayerNorm."""
        tokens = self.patch_embed(x)
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), tokens], dim=1)
        tokens = self.blocks(tokens + self.pos_embed)
        features: Tensor = self.norm(tokens[:, 0])
        return features

    def folded(self) -> Self:
        return copy.deepcopy(self).eval().requires_grad_(False)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Random weights: normal with deviation 0.02, biases 0, LayerNorms as they are."""
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                parameter.zero_()
            if "norm" not in name and not name.endswith("bias"):
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def check_patches(image_size: int, patch_size: int) -> None:
    """Refuse images that are not cut into whole patches: what is left over would not be seen.

    Raises:
        UserError: they are not, with the nearest size.
    """
    if image_size % patch_size:
        raise UserError(
            f"An image of {image_size} pixels cannot be cut into patches of {patch_size}. The "
            f"nearest size is {max(1, round(image_size / patch_size)) * patch_size}."
        )


def create_vit(name: str, image_size: int | None = None) -> VisionTransformer:
    """The ViT that a timm name such as `vit_tiny_patch16_224` describes, its weights all zero.

    Args:
        name: `vit_<size>_patch<pixels>_<pixels of the image>`; what follows a dot names weights.
        image_size: side in pixels; the name's where None.

    Raises:
        UserError: there is no such network, or patches do not fit the image.
    """
    match = re.fullmatch(r"vit_([a-z]+)_patch([1-9]\d*)_(\d+)", name.partition(".")[0])
    if match is None or match[1] not in SIZES:
        raise unknown(
            "vision transformer",
            name,
            [f"vit_{size}_patch16_224" for size in SIZES if size != "micro"],
        )
    patch_size, own_size = int(match[2]), int(match[3])
    return VisionTransformer(SIZES[match[1]], patch_size, image_size or own_size)


def fitted_weights(vit: VisionTransformer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names and in the shapes of `vit`: ready for its `load_state_dict`.

    Position embeddings of another image size are interpolated; a classifier is left out.

    Args:
        weights: of the same architecture, under timm's names or those of Google's archives.

    Raises:
        UserError: they are of another architecture, with the first difference, and with the
            network that they fit where one is known.
    """
    if "embedding/kernel" in weights:
        weights = _from_google(weights)
    grid = vit.patch_embed.grid_size
    fitted = {
        name: _resized(tensor.float(), grid) if name == "pos_embed" else tensor.float()
        for name, tensor in weights.items()
        if not name.startswith("head.")
    }
    if difference := _difference(fitted, vit.state_dict()):
        other = _fitting(fitted, grid[0])
        whose = f"fit {other}" if other else "are of another architecture"
        raise UserError(f"{difference}: they {whose}.")
    return fitted


def _difference(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The first difference between weights and those of a network, in names or shapes."""
    if missing := [name for name in expected if name not in weights]:
        return f"The weights have no {missing[0]}"
    if strange := [name for name in weights if name not in expected]:
        return f"The weights have {strange[0]}, which this network has not"
    for name, tensor in expected.items():
        found, own = tuple(weights[name].shape), tuple(tensor.shape)
        if found != own:
            return f"The weights' {name} is {found}, this network's {own}"
    return None


def _fitting(weights: Mapping[str, Tensor], rows: int) -> str | None:
    """The name of the network that weights fit, if one of `SIZES` does.

    Args:
        rows: of patches, which the position embeddings are for.
    """
    kernel = weights.get("patch_embed.proj.weight", torch.empty(0))
    if kernel.dim() != 4 or not kernel.numel():
        return None
    patch_size = kernel.shape[-1]
    for name, size in SIZES.items():
        with torch.device("meta"):
            network = VisionTransformer(size, patch_size, rows * patch_size)
        if not _difference(weights, network.state_dict()):
            return f"{VIT}{name}_patch{patch_size}_224"
    return None


def _resized(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings (1, 1 + patches, D) of a square grid for another grid, bicubic.

    Those of another shape stay as they are.
    """
    known = positions.dim() == 3 and len(positions) == 1 and positions.numel() > 0
    count = positions.shape[1] - 1 if known else 0
    own = math.isqrt(count)
    if own == 0 or (own, own) == grid or own * own != count:
        return positions
    patches = positions[:, 1:].reshape(1, own, own, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, grid, mode="bicubic", antialias=True)
    return torch.cat([positions[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


GOOGLE_BLOCK = {
    "LayerNorm_0/scale": "norm1.weight",
    "LayerNorm_0/bias": "norm1.bias",
    "MultiHeadDotProductAttention_1/out/kernel": "attn.proj.weight",
    "MultiHeadDotProductAttention_1/out/bias": "attn.proj.bias",
    "LayerNorm_2/scale": "norm2.weight",
    "LayerNorm_2/bias": "norm2.bias",
    "MlpBlock_3/Dense_0/kernel": "mlp.fc1.weight",
    "MlpBlock_3/Dense_0/bias": "mlp.fc1.bias",
    "MlpBlock_3/Dense_1/kernel": "mlp.fc2.weight",
    "MlpBlock_3/Dense_1/bias": "mlp.fc2.bias",
}


def _from_google(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of Google's archives (`.npz`) under timm's names; kernels are (in, out) there.

    Raises:
        UserError: something is missing, or has other dimensions.
    """
    try:
        return _renamed(weights)
    except KeyError as error:
        raise UserError(f"The archive has no {error.args[0]}: it is incomplete.") from error
    except (IndexError, RuntimeError) as error:
        raise UserError("The archive has arrays of other dimensions than Google's.") from error


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {
        "cls_token": weights["cls"],
        "pos_embed": weights["Transformer/posembed_input/pos_embedding"],
        "patch_embed.proj.weight": weights["embedding/kernel"].permute(3, 2, 0, 1),
        "patch_embed.proj.bias": weights["embedding/bias"],
        "norm.weight": weights["Transformer/encoder_norm/scale"],
        "norm.bias": weights["Transformer/encoder_norm/bias"],
    }
    blocks = {name.split("/")[1] for name in weights if "/encoderblock_" in name}
    for block in blocks:
        here = f"blocks.{block.removeprefix('encoderblock_')}"
        for theirs, ours in GOOGLE_BLOCK.items():
            tensor = weights[f"Transformer/{block}/{theirs}"]
            if theirs.endswith("kernel"):
                tensor = tensor.flatten(0, -2).T
            found[f"{here}.{ours}"] = tensor
        attention = f"Transformer/{block}/MultiHeadDotProductAttention_1"
        parts = [f"{attention}/{part}" for part in ("query", "key", "value")]
        kernels = [weights[f"{part}/kernel"].flatten(1).T for part in parts]
        found[f"{here}.attn.qkv.weight"] = torch.cat(kernels)
        biases = [weights[f"{part}/bias"].flatten() for part in parts]
        found[f"{here}.attn.qkv.bias"] = torch.cat(biases)
    return found
