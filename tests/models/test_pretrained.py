"""Pretrained backbones: which weights are taken, from where, and what is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engram.errors import UserError
from engram.models import pretrained
from engram.models.normalise import Standardise
from engram.models.pretrained import (
    BackboneConfig,
    Pretrained,
    import_timm,
    import_torchvision,
    load_backbone,
)
from engram.models.vit import create_vit
from engram.seeding import generator

NAME = "vit_micro_patch4_16.test"


def weights(name: str = NAME) -> dict[str, Tensor]:
    vit = create_vit(name)
    vit.draw(generator(7))
    return vit.state_dict()


def load(seed: int = 0, **options: Any) -> Pretrained:
    config = BackboneConfig(**{"backbone": NAME, "input_size": 16, **options})
    return load_backbone(config, generator(seed))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and no way to the hub."""
    monkeypatch.setenv("ENGRAM_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def test_weights_by_name_from_the_data_folder(folder: Path) -> None:
    path = folder / f"{NAME}.safetensors"
    save_file(weights(), path)
    found = load()
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(torch.equal(found.network.state_dict()[k], v) for k, v in weights().items())
    assert not found.network.training
    assert not any(parameter.requires_grad for parameter in found.network.parameters())


def test_weights_from_a_file_and_at_another_size(folder: Path, tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "mine.safetensors")
    found = load(weights=str(tmp_path / "mine.safetensors"), input_size=24)
    pixels = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    assert found.network(found.normalise(pixels)).shape == (2, found.dim)


def test_random_weights_depend_on_the_generator(folder: Path) -> None:
    found = [load(weights="random"), load(weights="random"), load(weights="random", seed=1)]
    assert found[0].sha256 is None
    first, again, other = (each.network.get_parameter("pos_embed") for each in found)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("beside", "other"),
    [
        (None, "choose another --backbone"),
        ("resnet_micro_patch4_16.test.npz", "choose another --backbone"),
        ("vit_micro_patch4_16.best.safetensors", "take --backbone vit_micro_patch4_16.best, which"),
        ("vit_micro_patch4_16.best.npz", "take --backbone vit_micro_patch4_16.best, which is the"),
    ],
)
def test_missing_weights_are_named_with_the_ways_out(
    folder: Path, beside: str | None, other: str
) -> None:
    if beside:
        (folder / beside).touch()
    with pytest.raises(UserError) as refused:
        load()
    message = str(refused.value)
    assert f"no weights {folder / NAME}.safetensors" in message
    assert "as .safetensors or .npz" in message
    assert f"with --weights, {other}" in message
    assert "or be online" in message
    assert "engram[hub]" in message
    assert "\n" not in message


def test_a_file_that_is_not_there_is_named_with_its_neighbour(
    timm: Any, folder: Path, tmp_path: Path
) -> None:
    (folder / "vit_large.npz").touch()
    (tmp_path / "mine.safetensors").touch()
    for given, meant in (("mime.safetensors", "mine.safetensors"), ("vit_large", "vit_large.npz")):
        missing, near = tmp_path / given, (folder if "vit" in meant else tmp_path) / meant
        for backbone in (NAME, "timm/vit_tiny_patch16_224"):
            with pytest.raises(UserError) as refused:
                load(backbone=backbone, weights=str(missing))
            assert str(refused.value) == f"There is no file {missing}. Perhaps you meant {near}."


@pytest.mark.parametrize("whole", [True, False])
def test_what_the_hub_gives_is_checked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    fetched = tmp_path / "fetched"
    save_file(weights(), fetched)
    promised = hashlib.sha256(fetched.read_bytes()).hexdigest()
    if not whole:
        fetched.write_bytes(fetched.read_bytes()[:-1])
    asked: list[tuple[str, str]] = []

    def download(repository: str, filename: str) -> str:
        asked.append((repository, filename))
        return str(fetched)

    hub = types.SimpleNamespace(
        hf_hub_url=lambda *place: "/".join(place),
        get_hf_file_metadata=lambda url: types.SimpleNamespace(etag=promised),
        hf_hub_download=download,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    if whole:
        assert load().sha256 == promised
        assert load().sha256 == promised
        assert asked == [(f"timm/{NAME}", "model.safetensors")], "asked once, then it is there"
    else:
        with pytest.raises(UserError, match=r"has checksum .* not .* Try again"):
            load()
        assert not list(folder.iterdir())


def test_a_hub_out_of_reach_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(url: str) -> None:
        raise ConnectionError("no route\nto the hub")

    hub = types.SimpleNamespace(hf_hub_url=lambda *place: "", get_hf_file_metadata=unreachable)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(UserError, match=r"The hub gave none: no route to the hub\.$"):
        load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vit_tinny_patch16_224"}, 'Perhaps you meant "vit_tiny_patch16_224"'),
        ({"input_size": 18}, "cannot be cut into patches of 4. The nearest size is 16"),
        ({"input_size": 0}, "input_size must be 1 or more"),
        ({"weights": "nowhere.safetensors"}, r"There is no file nowhere\.safetensors\.$"),
        ({"backbone": "timm/vit_nonesuch", "weights": "random"}, "timm cannot make vit_nonesuch"),
        (
            {"backbone": "timm/vit_tiny_patch16_22", "weights": "random"},
            r"Unknown model .*\. Perhaps you meant timm/vit_tiny_patch16_224\.$",
        ),
        (
            {"backbone": "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1"},
            r"Invalid .*\. Perhaps you meant timm/vit_tiny_patch16_224\.augreg_in21k_ft_in1k\.$",
        ),
        (
            {"backbone": "timm/vit_tiny_patch16_224", "weights": "random", "input_size": 30},
            "An image of 30 pixels cannot be cut into patches of 16. The nearest size is 32",
        ),
        (
            {"backbone": "timm/inception_v4", "weights": "random", "input_size": 30},
            "takes no images of 30 pixels: .*It was made for 299: choose another --input-size",
        ),
        (
            {"backbone": "timm/xcit_nano_12_p16_224", "weights": "random", "input_size": 30},
            "timm cannot make xcit_nano_12_p16_224 for images of 30 pixels: .patch_size. should",
        ),
        ({"backbone": "timm/vit_tiny_patch16_224", "weights": "no.npz"}, "no file no.npz"),
        ({"backbone": "vit_tiny_patch0_224"}, 'Unknown vision transformer "vit_tiny_patch0_224"'),
    ],
)
def test_bad_input_is_one_line(
    timm: Any, folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        load(**options)
    assert "\n" not in str(refused.value)


def test_weights_of_another_shape_are_refused(folder: Path, tmp_path: Path) -> None:
    save_file(weights("vit_tiny_patch4_16"), tmp_path / "tiny.safetensors")
    expected = rf"tiny.safetensors does not fit {NAME}\. .*: they fit vit_tiny_patch4_224\.$"
    with pytest.raises(UserError, match=expected):
        load(weights=str(tmp_path / "tiny.safetensors"))


def test_timm_is_imported_beside_a_torchvision_without_operators() -> None:
    program = """
import torch
from engram.models.pretrained import BackboneConfig, import_torchvision, load_backbone

def refuse(path):
    raise OSError(path)

torch.ops.load_library = refuse
names = dict(backbone="timm/vit_tiny_patch16_224", weights="random", input_size=32)
print(load_backbone(BackboneConfig(**names), torch.Generator()).dim)
print(import_torchvision() is None)

import torchvision
try:
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except RuntimeError as error:
    print(str(error)[:29])
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout == "192\nFalse\nCouldn't load custom C++ ops.\n", answer.stderr


def test_a_torchvision_that_works_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setattr(torch.library, "Library", None)
    assert import_torchvision.__wrapped__() is None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ModuleNotFoundError(name="torchvision"),
            r"needs torchvision, which is not .*engram\[timm",
        ),
        (RuntimeError("two\nversions."), r"cannot be imported: two versions\. Install a torchvis"),
    ],
)
def test_timm_that_cannot_be_imported_is_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise error

    monkeypatch.setattr(pretrained, "import_torchvision", refuse)
    with pytest.raises(UserError, match=message) as refused:
        import_timm()
    assert "\n" not in str(refused.value)


def test_a_hub_that_timm_cannot_reach_leaves_ways_out(
    timm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str, **options: Any) -> None:
        raise FileNotFoundError("no route to the hub.")

    monkeypatch.setattr(timm, "create_model", unreachable)
    expected = r"no route to the hub\. Name a file .* with --weights, or draw: --weights random\.$"
    with pytest.raises(UserError, match=expected):
        load(backbone="timm/vit_tiny_patch16_224")


def test_any_network_of_timm_s(timm: Any) -> None:
    found = load(backbone="timm/vit_tiny_patch16_224", weights="random", input_size=32)
    assert found.dim == 192
    assert found.network(torch.zeros(2, 3, 32, 32)).shape == (2, 192)
    assert found.normalise.mean.tolist() == [0.5, 0.5, 0.5]
    assert (found.network.blocks[0].norm1.weight == 1).all()
    again = load(backbone="timm/vit_tiny_patch16_224", weights="random", input_size=32)
    x = torch.randn(1, 3, 32, 32, generator=generator(0))
    assert torch.equal(found.network(x), again.network(x))


def test_a_file_of_weights_for_a_network_of_timm_s(timm: Any, tmp_path: Path) -> None:
    """With a classifier, and at another size, as files of timm's are."""
    path = tmp_path / "tiny.safetensors"
    whole = timm.create_model("vit_tiny_patch16_224")
    save_file(whole.state_dict(), path)
    found = load(backbone="timm/vit_tiny_patch16_224", weights=str(path), input_size=224)
    x = torch.randn(1, 3, 224, 224, generator=generator(0))
    whole.eval().reset_classifier(0)
    assert torch.equal(found.network(x), whole(x))
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    smaller = load(backbone="timm/vit_tiny_patch16_224", weights=str(path), input_size=112)
    assert smaller.network(x[..., :112, :112]).shape == (1, 192)
    deeper = tmp_path / "resnet34.safetensors"
    save_file(timm.create_model("resnet34").state_dict(), deeper)
    with pytest.raises(
        UserError, match=r"resnet18: it has layer1\.2.*, which this network has not"
    ):
        load(backbone="timm/resnet18", weights=str(deeper), input_size=32)
    strange = tmp_path / "strange.safetensors"
    save_file({**whole.state_dict(), "pos_embed": torch.tensor(0.0)}, strange)
    with pytest.raises(UserError, match=r"does not fit timm/vit_tiny_patch16_224: .*\.$"):
        load(backbone="timm/vit_tiny_patch16_224", weights=str(strange))
    for other, reason in (("vit_small_patch16_224", "size mismatch"), ("resnet18", "no conv1")):
        with pytest.raises(UserError, match=rf"does not fit timm/{other}: .*{reason}") as refused:
            load(backbone=f"timm/{other}", weights=str(path), input_size=112)
        assert "\n" not in str(refused.value)


def test_weights_that_timm_fetches_have_a_checksum(
    timm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = timm.create_model

    def checksum(seed: int, size: int) -> str | None:
        def fetching(name: str, **options: Any) -> Any:
            network = made(name, **{**options, "pretrained": False})
            source = generator(seed)
            for parameter in network.parameters():
                parameter.data = torch.randn(parameter.shape, generator=source)
            return network

        monkeypatch.setattr(timm, "create_model", fetching)
        return load(backbone="timm/resnet18", input_size=size).sha256

    assert checksum(7, 32) == checksum(7, 48) != checksum(8, 32)


def test_pixels_are_scaled_and_standardised() -> None:
    standardise = Standardise((6, 6), (0.5, 0.5, 0.25), (0.5, 0.5, 0.25))
    pixels = torch.full((2, 3, 3, 3), 255, dtype=torch.uint8)
    x = standardise(pixels)
    assert x.shape == (2, 3, 6, 6)
    assert torch.allclose(x[:, :2], torch.ones(2, 2, 6, 6))
    assert torch.allclose(x[:, 2], torch.full((2, 6, 6), 3.0))
    assert standardise(torch.zeros(1, 6, 6, 3, dtype=torch.uint8)).min() == -1


def test_the_mean_of_the_data_is_not_subtracted() -> None:
    standardise = Standardise((2, 2), (0.5,) * 3, (0.5,) * 3)
    chunks = iter([torch.zeros(1, 2, 2, 3, dtype=torch.uint8)])
    standardise.fit(chunks)
    assert standardise.mean.tolist() == [0.5] * 3
    assert len(list(chunks)) == 1, "images were read for nothing"
