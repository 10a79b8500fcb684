"""The exported file gives the learner's scores, without this package."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import coloured, learner_of, small_learner, tiny
from engram.data.stream import create_stream
from engram.errors import UserError
from engram.export import export_onnx
from engram.methods import METHODS

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    "method",
    [
        *sorted(METHODS),
        "icarl, by the network",
        "der, pruned",
        "icarl, on a transformer",
        "der, on transformers",
    ],
)
def test_every_method_gives_the_same_scores(method: str, tmp_path: Path) -> None:
    learner = learner_of(tiny(method))
    stream = create_stream("digits/3,2", order="given")
    for task in stream:
        learner.learn(task)
    path = tmp_path / "model.onnx"
    export_onnx(learner.method, stream.class_names, path)
    assert [found.name for found in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path)
    images = stream.evaluation(range(5))[::11]
    scores, probabilities = session.run(None, {"pixels": images.pixels.numpy()})
    expected = learner.scores(images)
    assert np.allclose(scores, expected, atol=1e-4)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert torch.equal(torch.from_numpy(scores).argmax(1), expected.argmax(1))
    held = session.get_modelmeta().custom_metadata_map
    assert json.loads(held["classes"]) == list(stream.class_names)
    assert held["image_size"] == "8x8"


def test_a_learner_exports_itself(tmp_path: Path) -> None:
    learner = small_learner().learn({name: coloured(name, 9) for name in ("red", "grün")})
    learner.export(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    pixels = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (0, 99, 200)])
    found = session.run(["probabilities"], {"pixels": pixels})[0]
    assert np.allclose(found, learner.predict_proba(list(pixels)), atol=1e-3)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["red", "grün"]


def test_without_the_packages_the_way_out_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = small_learner().learn({"red": coloured("red", 3)})
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx and onnxscript must be installed: .*engram\[onnx\]"):
        learner.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
