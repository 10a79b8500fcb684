"""Backbones with weights that others trained: by name, from a file, or from the hub.

Weights are looked for in `weights/` of the data folder, as `<name>.safetensors` or `<name>.npz`.
The packages `timm` and `huggingface_hub` are known here and nowhere else; files do not need them.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engram.errors import UserError, install_command, nearest
from engram.files import data_folder, read_weights, replacing, sha256
from engram.models.normalise import Standardise
from engram.models.vit import (
    MEAN_AND_DEVIATION,
    VisionTransformer,
    create_vit,
    fitted_weights,
)

__all__ = [
    "RANDOM",
    "WEIGHTS_SUFFIXES",
    "BackboneConfig",
    "Pretrained",
    "load_backbone",
    "vision_transformer",
]

RANDOM = "random"
TIMM = "timm/"
LONGEST_REASON = 200
"""Characters of what another package says of its failure."""

WEIGHTS_SUFFIXES = (".safetensors", ".npz")
"""Of files of weights; the second is Google's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """Which pretrained network is used, and on what input."""

    backbone: str = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    """A vision transformer under timm's name, with the tag of its weights; or timm/<name>, which
    makes any network that timm has."""
    weights: str | None = None
    """A file of weights (safetensors, or Google's .npz). Default: those that the name tells, from
    the data folder or the hub. "random" draws them."""
    input_size: int = 224
    """Side in pixels that images are scaled to. Position embeddings are interpolated."""
    normalisation: Literal["backbone", "none"] = "backbone"
    """The mean and deviation that the network was trained with, or pixels in [0, 1] as the authors
    of LAE have them."""

    def __post_init__(self) -> None:
        if self.input_size < 1:
            raise UserError(f"input_size must be 1 or more, not {self.input_size}.")


@dataclass(frozen=True, eq=False, slots=True)
class Pretrained:
    """A network that does not change, and what it needs.

    Attributes:
        network: (B, 3, H, W) normalised images to (B, dim) features; without gradients, in
            evaluation mode.
        dim: length of the features.
        normalise: pixels to the network's input.
        sha256: of the file that the weights came from; where timm fetched them, of the weights
            themselves, whatever the size of the images. None of random ones.
    """

    network: nn.Module
    dim: int
    normalise: Standardise
    sha256: str | None


def load_backbone(config: BackboneConfig, generator: torch.Generator) -> Pretrained:
    """The network that `config` names, with its weights.

    Args:
        generator: source of random weights, where they are asked for.

    Raises:
        UserError: no network has that name, its weights are not there, or they are of another one.
    """
    if config.backbone.startswith(TIMM):
        return _from_timm(config, generator)
    vit, checksum = vision_transformer(
        config.backbone, config.input_size, config.weights, generator
    )
    return _frozen(vit, vit.dim, config, *MEAN_AND_DEVIATION, checksum)


def vision_transformer(
    name: str, image_size: int, weights: str | None, generator: torch.Generator
) -> tuple[VisionTransformer, str | None]:
    """A ViT with its weights, all of which may be trained; and the checksum of their file.

    Args:
        image_size: side in pixels.
        weights: a file, "random", or None for those that the name tells.
        generator: source of random weights.

    Raises:
        UserError: no network has that name, its weights are not there, or they are of another one.
    """
    vit = create_vit(name, image_size)
    if weights == RANDOM:
        vit.draw(generator)
        return vit, None
    path = Path(weights) if weights else _weights_of(name)
    try:
        vit.load_state_dict(fitted_weights(vit, read_weights(path)))
    except UserError as error:
        raise UserError(f"{path} does not fit {name}. {error}") from error
    return vit, sha256(path)


def _frozen(
    network: nn.Module,
    dim: int,
    config: BackboneConfig,
    mean: tuple[float, ...],
    deviation: tuple[float, ...],
    checksum: str | None,
) -> Pretrained:
    if config.normalisation == "none":
        mean, deviation = (0.0,) * 3, (1.0,) * 3
    side = (config.input_size, config.input_size)
    network.eval().requires_grad_(False)
    return Pretrained(network, dim, Standardise(side, mean, deviation), checksum)


def _weights_of(name: str) -> Path:
    """The file with the weights of that name, which is fetched where it is not in the data folder.

    Raises:
        UserError: it is nowhere, with the ways out.
    """
    folder = data_folder() / "weights"
    for suffix in WEIGHTS_SUFFIXES:
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    return _from_hub(name, folder / f"{name}.safetensors")


def _from_hub(name: str, path: Path) -> Path:
    """Fetch weights from timm's collection on the Hugging Face hub, and check what came.

    Raises:
        UserError: the hub cannot be asked, has no such weights, or the file was damaged on its way.
    """
    close = nearest(name, [found.stem for found in path.parent.glob("*.safetensors")])
    missing = (
        f"There are no weights {path}{f'; {close} are there' if close else ''}. Put them there "
        f"(as {' or '.join(WEIGHTS_SUFFIXES)}), name a file that has them with --weights, choose "
        "another --backbone, or be online with huggingface_hub installed "
        f"({install_command('engram[hub]')})."
    )
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(missing) from error
    place = f"timm/{name}", "model.safetensors"
    try:
        url = huggingface_hub.hf_hub_url(*place)
        promised = huggingface_hub.get_hf_file_metadata(url).etag
        fetched = Path(huggingface_hub.hf_hub_download(*place))
    except Exception as error:  # which ones there are depends on the version and what is below it
        raise UserError(f"{missing} The hub gave none: {_reason(error)}") from error
    if (found := sha256(fetched)) != promised:
        raise UserError(
            f"What the hub gave as {name} has checksum {found}, not {promised}. Try again."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        shutil.copyfile(fetched, partial)
    return path


def _reason(error: Exception) -> str:
    """What another package says, in one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return textwrap.shorten(words, LONGEST_REASON, placeholder=" ...")


class _TimmFeatures(nn.Module):
    """A network of timm's without its classifier. Modules are attached to what it wraps."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    @property
    def blocks(self) -> Any:
        return self.network.blocks

    @property
    def patch_embed(self) -> Any:
        return self.network.patch_embed

    @property
    def num_prefix_tokens(self) -> int:
        return int(self.network.num_prefix_tokens)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.network.forward_features(x)
        features: Tensor = self.network.forward_head(tokens, pre_logits=True)
        return features


def _from_timm(config: BackboneConfig, generator: torch.Generator) -> Pretrained:
    """A network of timm's, with its weights.

    Raises:
        UserError: timm is not installed, has no such network, or cannot get its weights.
    """
    name = config.backbone.removeprefix(TIMM)
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"{config.backbone} needs timm, which is not installed. Install it: "
            f"{install_command('engram[timm]')}."
        ) from error
    path = None if config.weights in (None, RANDOM) else Path(config.weights)
    options: dict[str, Any] = {"pretrained": config.weights is None, "num_classes": 0}
    try:
        try:
            network: Any = timm.create_model(name, img_size=config.input_size, **options)
        except TypeError:  # convolutional networks take images of any size
            network = timm.create_model(name, **options)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise UserError(f"timm cannot make {name}: {_reason(error)}") from error
    if path is not None:
        _load_for_timm(network, read_weights(path), f"{path} does not fit {config.backbone}")
    if config.weights == RANDOM:
        _draw(network, generator)
    given = network.pretrained_cfg
    features = _TimmFeatures(network).eval()
    with torch.no_grad():
        dim = features(torch.zeros(1, 3, config.input_size, config.input_size)).shape[1]
    checksum = None if config.weights == RANDOM else _checksum(network, path)
    return _frozen(features, dim, config, given["mean"], given["std"], checksum)


@torch.no_grad()
def _draw(network: nn.Module, generator: torch.Generator) -> None:
    """Random weights for a network of timm's, whose scales start as they are."""
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        elif name.endswith("bias"):
            parameter.zero_()


def _load_for_timm(network: Any, weights: dict[str, Tensor], misfit: str) -> None:
    """Load weights as timm would, so that positions fit other sizes; a classifier is left out.

    Args:
        misfit: what to say first where they are of another network.

    Raises:
        UserError: they are.
    """
    adapted = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        found = network.load_state_dict(adapted(weights, network) if adapted else weights, False)
    except RuntimeError as error:
        raise UserError(f"{misfit}: {_reason(error)}") from error
    named = network.pretrained_cfg["classifier"] or ()
    classifiers = (named,) if isinstance(named, str) else tuple(named)
    strange = [name for name in found.unexpected_keys if not name.startswith(classifiers)]
    if found.missing_keys:
        raise UserError(f"{misfit}: it has no {found.missing_keys[0]}.")
    if strange:
        raise UserError(f"{misfit}: it has {strange[0]}, which this network has not.")


def _checksum(network: nn.Module, path: Path | None) -> str:
    """Of the file with the weights; of the weights themselves where timm knows where they were,
    but for positions, which are fitted to the size of the images."""
    if path is not None:
        return sha256(path)
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if "pos" not in name:
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
