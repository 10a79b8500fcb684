"""A diagnosis of the installation: what a result here depends on, and what is missing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from engram.data.benchmarks import DOWNLOADED
from engram.data.codecs import create_codec
from engram.engine.device import resolve_device, resolve_precision
from engram.errors import UserError, install_command
from engram.files import data_folder
from engram.models.pretrained import import_torchvision, weights_in
from engram.results.record import environment

__all__ = ["EXTRAS", "diagnosis"]

EXTRAS = {
    "serve": ("fastapi", "uvicorn"),
    "hub": ("huggingface_hub",),
    "heic": ("pi-heif",),
    "onnx": ("onnx", "onnxscript"),
    "timm": ("timm",),
    "demo": ("scikit-learn",),
}
"""What can be installed beside engram, and the packages that come with it."""

DEMANDING_CODECS = ("avif:60", "jxl:80")
"""Codecs whose formats not every installation can write."""


def diagnosis() -> dict[str, Any]:
    """Versions, device, data: what a result here depends on, and what is missing."""
    device = resolve_device("auto")
    return {
        **environment(),
        "device": str(device),
        "precision": resolve_precision("auto", device),
        "free memory": _free_memory(),
        "data folder": f"{data_folder()} ({_data_sets()})",
        "pretrained weights": _weights(),
        "torchvision": _torchvision(),
        **{f"extra {name}": _extra(name) for name in EXTRAS},
        **{f"codec {name.partition(':')[0]}": _codec(name) for name in DEMANDING_CODECS},
    }


def _free_memory() -> str:
    if platform.system() != "Linux":
        return "unknown"
    return f"{os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB"


def _data_sets() -> str:
    present = [name for name, folder in DOWNLOADED.items() if (data_folder() / folder).is_dir()]
    missing = [name for name in DOWNLOADED if name not in present]
    return "; ".join(
        part
        for part in (
            f"has {', '.join(present)}" if present else "",
            f"{', '.join(missing)} downloaded when needed" if missing else "",
        )
        if part
    )


def _weights() -> str:
    """What `lae`, `ranpac` and `engram learn` stand on."""
    folder = data_folder() / "weights"
    return ", ".join(path.stem for path in weights_in(folder)) or (
        f"none in {folder}; fetched when needed, with the extra hub, or put there by hand"
    )


def _extra(name: str) -> str:
    """Whether the packages of an extra are there."""
    missing = [package for package in EXTRAS[name] if not _is_installed(package)]
    if not missing:
        return "installed"
    return f"{', '.join(missing)} missing: {install_command(f'engram[{name}]')}"


def _codec(name: str) -> str:
    """Whether images can be written by a codec, or what is missing."""
    try:
        create_codec(name, (32, 32))
    except UserError as error:
        return str(error)
    return "there"


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _torchvision() -> str:
    """What timm imports; the rest of engram does without it."""
    try:
        found = version("torchvision")
    except PackageNotFoundError:
        return "not installed (only backbones timm/... need it)"
    misfit = f"{found}, does not fit torch {torch.__version__}"
    try:
        declared = import_torchvision()
    except Exception:  # which ones there are depends on the versions
        return f"{misfit} (only backbones timm/... need it)"
    return f"{misfit} (backbones timm/... work all the same)" if declared else found
