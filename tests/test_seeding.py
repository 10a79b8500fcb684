"""Random numbers depend on their names, and on nothing else."""

from __future__ import annotations

import numpy as np
import torch

from engram.seeding import generator


def test_a_seed_of_numpy_is_the_same_seed() -> None:
    ours, numpys = (torch.rand(3, generator=generator(seed, "name")) for seed in (7, np.int64(7)))
    assert torch.equal(ours, numpys)
