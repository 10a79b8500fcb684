"""What `engram doctor` says of what is installed beside it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest
import torch

from engram import doctor


@pytest.mark.parametrize(
    ("found", "row"),
    [
        (None, "0.1"),
        (
            torch.library.Library,
            "0.1, does not fit torch 2.0 (backbones timm/... work all the same)",
        ),
        (RuntimeError, "0.1, does not fit torch 2.0 (only backbones timm/... need it)"),
    ],
)
def test_a_torchvision_that_does_not_fit_is_told(
    found: object, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def imported() -> object:
        if found is RuntimeError:
            raise RuntimeError
        return found

    monkeypatch.setattr(doctor, "version", lambda package: "0.1")
    monkeypatch.setattr(torch, "__version__", "2.0")
    monkeypatch.setattr(doctor, "import_torchvision", imported)
    assert doctor.diagnosis()["torchvision"] == row


def test_a_torchvision_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(doctor, "version", absent)
    row = doctor.diagnosis()["torchvision"]
    assert row == "not installed (only backbones timm/... need it)"
