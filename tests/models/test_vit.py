"""The ViT against timm's, with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engram.errors import UserError
from engram.files import read_weights
from engram.models.vit import (
    Size,
    VisionTransformer,
    attend,
    create_vit,
    fitted_weights,
)
from engram.seeding import generator

WEIGHTS = "weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"


@pytest.fixture
def tiny_weights(cifar100_folder: Path) -> dict[str, Tensor]:
    path = cifar100_folder / WEIGHTS
    if not path.exists():
        pytest.skip(f"{WEIGHTS} is not in the data folder")
    return read_weights(path)


def drawn(name: str, image_size: int | None = None) -> VisionTransformer:
    vit = create_vit(name, image_size).eval()
    vit.draw(generator(0))
    return vit


def shaken(name: str) -> VisionTransformer:
    """With drawn weights, of which none is exactly 0 or 1."""
    vit = drawn(name)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator(2)))
    return vit


def test_features_are_those_of_timm_with_drawn_weights(timm: Any) -> None:
    vit = shaken("vit_tiny_patch16_224")
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    theirs.load_state_dict(vit.state_dict())
    images = torch.randn(2, 3, 224, 224, generator=generator(1))
    with torch.no_grad():
        assert torch.allclose(vit(images), theirs(images), atol=1e-4)


def test_logits_are_those_of_timm_with_trained_weights(
    timm: Any, tiny_weights: dict[str, Tensor]
) -> None:
    vit = create_vit("vit_tiny_patch16_224").eval()
    vit.load_state_dict(fitted_weights(vit, tiny_weights))
    theirs = timm.create_model("vit_tiny_patch16_224").eval()
    theirs.load_state_dict(tiny_weights)
    images = torch.randn(2, 3, 224, 224, generator=generator(1))
    with torch.no_grad():
        logits = vit(images) @ tiny_weights["head.weight"].T + tiny_weights["head.bias"]
        assert torch.allclose(logits, theirs(images), atol=1e-4)


@pytest.mark.parametrize("width", [8, 9])
def test_attention_in_bfloat16_is_that_of_float32(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, keys = (torch.randn(2, 3, 50, 8, generator=generator(part)) for part in range(2))
    values = torch.randn(2, 3, 50, width, generator=generator(2))
    exact = F.scaled_dot_product_attention(queries, keys, values)
    assert torch.equal(attend(queries, keys, values), exact)
    reduced = [part.bfloat16() for part in (queries, keys, values)]
    assert (attend(*reduced).float() - exact).norm() < 0.01 * exact.norm()
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    assert attend(*reduced).dtype == torch.bfloat16, "the fused kernel is not called"


@pytest.mark.parametrize("image_size", [112, 160, 256])
def test_positions_are_interpolated_as_timm_does(timm: Any, image_size: int) -> None:
    own = drawn("vit_tiny_patch16_224")
    vit = create_vit("vit_tiny_patch16_224", image_size).eval()
    vit.load_state_dict(fitted_weights(vit, own.state_dict()))
    theirs = timm.layers.resample_abs_pos_embed(own.pos_embed, vit.patch_embed.grid_size)
    assert torch.allclose(vit.pos_embed, theirs, atol=1e-6)
    assert vit(torch.randn(1, 3, image_size, image_size, generator=generator(1))).shape == (1, 192)


@pytest.mark.parametrize(
    "name", ["vit_small_patch32_224", "vit_base_patch16_224", "vit_tiny_patch16_384"]
)
def test_names_and_shapes_are_those_of_timm(timm: Any, name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0).state_dict()
        ours = create_vit(name).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }


def as_google_writes(vit: VisionTransformer) -> dict[str, np.ndarray]:
    """A state under the names and in the shapes of Google's archives."""
    state = {name: tensor.numpy() for name, tensor in vit.state_dict().items()}
    heads, dim = vit.blocks[0].attn.num_heads, vit.dim
    archive = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for index in range(len(vit.blocks)):
        here, there = f"blocks.{index}", f"Transformer/encoderblock_{index}"
        for norm, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            archive[f"{there}/{name}/scale"] = state[f"{here}.{norm}.weight"]
            archive[f"{there}/{name}/bias"] = state[f"{here}.{norm}.bias"]
        for layer, name in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            archive[f"{there}/MlpBlock_3/{name}/kernel"] = state[f"{here}.mlp.{layer}.weight"].T
            archive[f"{there}/MlpBlock_3/{name}/bias"] = state[f"{here}.mlp.{layer}.bias"]
        attention = f"{there}/MultiHeadDotProductAttention_1"
        out = state[f"{here}.attn.proj.weight"].T
        archive[f"{attention}/out/kernel"] = out.reshape(heads, dim // heads, dim)
        archive[f"{attention}/out/bias"] = state[f"{here}.attn.proj.bias"]
        weights = np.split(state[f"{here}.attn.qkv.weight"], 3)
        biases = np.split(state[f"{here}.attn.qkv.bias"], 3)
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            archive[f"{attention}/{part}/kernel"] = weight.T.reshape(dim, heads, dim // heads)
            archive[f"{attention}/{part}/bias"] = bias.reshape(heads, dim // heads)
    return archive


def test_googles_archives_are_read(timm: Any, tmp_path: Path) -> None:
    vit = shaken("vit_tiny_patch16_224")
    path = tmp_path / "ViT.npz"
    np.savez(path, **as_google_writes(vit))
    found = fitted_weights(create_vit("vit_tiny_patch16_224"), read_weights(path))
    assert all(torch.equal(found[name], tensor) for name, tensor in vit.state_dict().items())
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    theirs.load_pretrained(str(path))
    assert all(
        torch.allclose(tensor, found[name]) for name, tensor in theirs.state_dict().items()
    ), "timm reads the same archive differently"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("blocks.3.norm1.bias"), r"have no blocks\.3\.norm1\.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "have extra, which this network has"),
        (
            lambda state: state.update(cls_token=torch.zeros(1, 1, 7)),
            r"cls_token is \(1, 1, 7\), th",
        ),
        (
            lambda state: state.update({"patch_embed.proj.weight": torch.tensor(0.0)}),
            r"patch_embed.proj.weight is \(\), this network",
        ),
        (
            lambda state: state.update(cls_token=torch.tensor(0.0)),
            r"cls_token is \(\), this network",
        ),
        (lambda state: state.update(pos_embed=torch.zeros(1, 3, 32)), r"pos_embed is \(1, 3, 32\)"),
        (lambda state: state.update(pos_embed=torch.zeros(1, 1, 32)), r"pos_embed is \(1, 1, 32\)"),
        (
            lambda state: state.update(pos_embed=torch.tensor(0.0)),
            r"pos_embed is \(\), this network",
        ),
    ],
)
def test_weights_of_another_architecture_are_refused(change: Any, message: str) -> None:
    vit = VisionTransformer(Size(32, 4, 2), 4, 16)
    state = vit.state_dict()
    change(state)
    with pytest.raises(UserError, match=rf"{message}.*: they are of another architecture\.$"):
        fitted_weights(vit, state)


@pytest.mark.parametrize(
    ("theirs", "own", "difference"),
    [
        ("vit_micro_patch4_16", "vit_micro_patch8_16", r"proj.weight is \(32, 3, 4, 4\), this"),
        ("vit_tiny_patch4_32", "vit_micro_patch4_16", "have blocks.2.norm1.weight, which this"),
        ("vit_tiny_patch8_16", "vit_small_patch8_16", r"cls_token is \(1, 1, 192\), this"),
    ],
)
def test_the_network_that_weights_fit_is_named(theirs: str, own: str, difference: str) -> None:
    fitting = f"{theirs.rpartition('_')[0]}_224"
    state = {**create_vit(theirs).state_dict(), "head.bias": torch.zeros(3)}
    with pytest.raises(UserError, match=rf"{difference}.*: they fit {fitting}\.$"):
        fitted_weights(create_vit(own), state)
    fitted_weights(create_vit(fitting), state)


def test_an_incomplete_archive_is_refused(tmp_path: Path) -> None:
    archive = as_google_writes(drawn("vit_micro_patch4_16"))
    for name in ("cls", "Transformer/encoderblock_1/MlpBlock_3/Dense_0/bias"):
        np.savez(tmp_path / "cut.npz", **{key: archive[key] for key in archive if key != name})
        with pytest.raises(UserError, match=f"The archive has no {name}"):
            fitted_weights(create_vit("vit_micro_patch4_16"), read_weights(tmp_path / "cut.npz"))


def test_an_archive_of_other_dimensions_is_refused() -> None:
    archive = as_google_writes(drawn("vit_micro_patch4_16"))
    for name in ("embedding/kernel", "Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"):
        flat = {**archive, name: archive[name].sum()}
        state = {key: torch.as_tensor(array) for key, array in flat.items()}
        with pytest.raises(UserError, match="arrays of other dimensions than Google's"):
            fitted_weights(create_vit("vit_micro_patch4_16"), state)


def test_names_and_sizes_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UserError, match='Perhaps you meant "vit_tiny_patch16_224"'):
        create_vit("vit_tny_patch16_224")
    with pytest.raises(UserError, match="nearest size is 112"):
        create_vit("vit_tiny_patch16_224", 110)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    for name in ("weights.npz", "weights.safetensors"):
        with pytest.raises(UserError, match=f"{name} cannot be read as weights"):
            read_weights(tmp_path / name)
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(UserError, match=f"{name} cannot be read as weights"):
            read_weights(tmp_path / name)
