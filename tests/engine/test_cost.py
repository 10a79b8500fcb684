"""Costs against what they are by hand."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from engram import models
from engram.engine.cost import latency, multiply_adds
from engram.models.masks import Allowance, ChannelMasks, Floor, shrunk
from engram.models.vit import create_vit
from engram.seeding import generator


def test_multiply_adds_are_those_of_one_input() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 64, 5))
    by_hand = 8 * 64 * 3 * 9 + 8 * 64 * 5
    for batch in (1, 7):
        assert multiply_adds(layers, torch.zeros(batch, 3, 8, 8)) == by_hand


def test_resnet18_has_as_many_as_the_literature_says() -> None:
    network = models.create("resnet18", generator(0)).backbone.eval()
    image = torch.zeros(1, 3, 32, 32)
    assert multiply_adds(network, image) == pytest.approx(0.555e9, rel=0.005)
    masks = ChannelMasks(network, steepest=100, rule="hat")
    kept = masks.kept(Allowance(network=network, floor=Floor(), share=0.1))
    assert multiply_adds(shrunk(network, kept), image) < 0.2 * 0.555e9


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_transformer_s_attention_counts_in_any_precision(precision: torch.dtype) -> None:
    """16 patches and a class token; the MLP is four times as wide."""
    vit = create_vit("vit_micro_patch4_16", 16).eval()
    dim, depth, tokens = vit.dim, len(vit.blocks), 17
    by_hand = 16 * 48 * dim + depth * (12 * tokens * dim**2 + 2 * tokens**2 * dim)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        assert multiply_adds(vit, torch.zeros(1, 3, 16, 16)) == by_hand


def test_latency_is_the_median_of_what_passes_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    durations = iter([100.0, 9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0, 50.0])

    def pass_once(x: Tensor) -> None:
        nonlocal now
        now += next(durations)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert latency(pass_once, torch.zeros(1)) == 5.5, "the first pass, which warms up, is not among"
    assert next(durations, None) is None
