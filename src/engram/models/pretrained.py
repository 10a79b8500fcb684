"""Backbones with weights that others trained: by name, from a file, or from the hub.

Weights are looked for in `weights/` of the data folder, as `<name>.safetensors` or `<name>.npz`.
The packages `timm`, with `torchvision` that it imports, and `huggingface_hub` are known here and
nowhere else; files do not need them.
"""

from __future__ import annotations

import hashlib
import importlib
import shutil
import sys
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engram.errors import UserError, install_command, nearest
from engram.files import data_folder, read_weights, replacing, sha256
from engram.models.normalise import Standardise
from engram.models.vit import (
    MEAN_AND_DEVIATION,
    VIT,
    VisionTransformer,
    check_patches,
    create_vit,
    fitted_weights,
)

__all__ = [
    "RANDOM",
    "BackboneConfig",
    "Pretrained",
    "import_timm",
    "import_torchvision",
    "load_backbone",
    "vision_transformer",
    "weights_in",
]

RANDOM = "random"
TIMM = "timm/"
LONGEST_REASON = 200
"""Characters of what another package says of its failure."""

WEIGHTS_SUFFIXES = (".safetensors", ".npz")
"""Endings of files of weights; the second is Google's."""


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
    found = _read(path)
    try:
        vit.load_state_dict(fitted_weights(vit, found))
    except UserError as error:
        raise UserError(f"{path} does not fit {name}. {error}") from error
    return vit, sha256(path)


def weights_in(folder: Path) -> list[Path]:
    """The files of weights in a folder; none where there is no such folder."""
    return sorted(path for path in folder.glob("*") if path.suffix in WEIGHTS_SUFFIXES)


def _read(path: Path) -> dict[str, Tensor]:
    """The weights of a file that was named.

    Raises:
        UserError: it is not there, with the one that was perhaps meant; or it has no weights.
    """
    if path.exists():
        return read_weights(path)
    folders = (data_folder() / "weights", path.parent)
    there = {found.name: found for folder in folders for found in weights_in(folder)}
    close = nearest(path.name, there)
    hint = f" Perhaps you meant {there[close]}." if close else ""
    raise UserError(f"There is no file {path}.{hint}")


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
    there = [found.stem for found in weights_in(path.parent) if found.stem.startswith(VIT)]
    close = nearest(name, there)
    other = f"take --backbone {close}, which is there" if close else "choose another --backbone"
    missing = (
        f"There are no weights {path}. Put them there (as {' or '.join(WEIGHTS_SUFFIXES)}), name a "
        f"file that has them with --weights, {other}, or be online with huggingface_hub installed "
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
        raise UserError(f"{missing} The hub gave none: {_reason(error)}.") from error
    if (found := sha256(fetched)) != promised:
        raise UserError(
            f"What the hub gave as {name} has checksum {found}, not {promised}. Try again."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        shutil.copyfile(fetched, partial)
    return path


def _reason(error: Exception) -> str:
    """What another package says, in one line without the full stop at its end."""
    words = " ".join(str(error).split()) or type(error).__name__
    return textwrap.shorten(words, LONGEST_REASON, placeholder=" ...").removesuffix(".")


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


@cache  # The declarations go with what is returned, so this is kept.
def import_torchvision() -> torch.library.Library | None:
    """Import torchvision, also where its operators do not fit torch, as beside a CPU build of it.

    It then misses the declarations of two. It gets these with nothing behind them, and goes on to
    refuse calls of its operators.

    Returns:
        The declarations; None where torchvision has its operators.

    Raises:
        ModuleNotFoundError: it is not installed.
        Exception: any other, where it fits torch in no way.
    """
    try:
        importlib.import_module("torchvision")
        return None
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
        return library


def import_timm() -> Any:
    """The package timm, which imports torchvision.

    Raises:
        UserError: one of them is not installed, or does not fit torch.
    """
    try:
        import_torchvision()
        import timm
    except ModuleNotFoundError as error:
        raise UserError(
            f"A backbone {TIMM}... needs {error.name or 'timm'}, which is not installed. Install "
            f"it: {install_command('engram[timm]')}."
        ) from error
    except Exception as error:  # which ones there are depends on the versions
        raise UserError(
            f"A backbone {TIMM}... needs timm and torchvision, which cannot be imported: "
            f"{_reason(error)}. Install a torchvision that fits torch {torch.__version__}, or take "
            f"a backbone without {TIMM}."
        ) from error
    return timm


def _from_timm(config: BackboneConfig, generator: torch.Generator) -> Pretrained:
    """A network of timm's, with its weights.

    Raises:
        UserError: timm cannot be imported, has no such network, or cannot get its weights; or it
            takes no images of this size.
    """
    timm = import_timm()
    network = _made_by(timm, config)
    features = _TimmFeatures(network).eval()
    dim = _length_of(features, timm, config)
    path = None if config.weights in (None, RANDOM) else Path(config.weights)
    if path is not None:
        _load_for_timm(network, _read(path), f"{path} does not fit {config.backbone}")
    if config.weights == RANDOM:
        _draw(network, generator)
    given = network.pretrained_cfg
    checksum = None if config.weights == RANDOM else _checksum(network, path)
    return _frozen(features, dim, config, given["mean"], given["std"], checksum)


def _made_by(timm: Any, config: BackboneConfig) -> Any:
    """A network of timm's, with its own weights where no others are asked for.

    Raises:
        UserError: it cannot be made, with the nearest name or the ways out.
    """
    name, side = config.backbone.removeprefix(TIMM), config.input_size
    options: dict[str, Any] = {"pretrained": config.weights is None, "num_classes": 0}
    try:
        try:
            return timm.create_model(name, img_size=side, **options)
        except TypeError:  # convolutional networks take images of any size
            return timm.create_model(name, **options)
    except Exception as error:  # which ones there are depends on the network and on the hub
        way_out = ""
        known = {*timm.list_models(), *timm.list_pretrained()}
        if ":" not in name and name not in known:
            if close := nearest(name, known):
                way_out = f" Perhaps you meant {TIMM}{close}."
        elif config.weights is None and isinstance(error, (OSError, RuntimeError)):
            way_out = (
                f" Name a file that has its weights with --weights, or draw: --weights {RANDOM}."
            )
        raise UserError(
            f"timm cannot make {name} for images of {side} pixels: {_reason(error)}.{way_out}"
        ) from error


def _length_of(features: _TimmFeatures, timm: Any, config: BackboneConfig) -> int:
    """The length of what a network of timm's makes of an image.

    Raises:
        UserError: it takes no images of this size, or would not see all of their pixels.
    """
    for part in features.modules():
        if isinstance(part, timm.layers.PatchEmbed) and part.img_size and not part.dynamic_img_pad:
            check_patches(part.img_size[0], part.patch_size[0])
    side = config.input_size
    try:
        with torch.no_grad():
            return int(features(torch.zeros(1, 3, side, side)).shape[1])
    except Exception as error:  # which ones there are depends on the network
        raise UserError(
            f"{config.backbone} takes no images of {side} pixels: {_reason(error)}. It was made "
            f"for {features.network.pretrained_cfg['input_size'][-1]}: choose another --input-size."
        ) from error


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
    except Exception as error:  # which ones there are depends on the network
        raise UserError(f"{misfit}: {_reason(error)}.") from error
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
