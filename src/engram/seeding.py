"""Random numbers from names: every generator is derived from (seed, what it is for).

Nothing in the package depends on global random state. That is what makes an interrupted run
continue bit for bit: a generator can be made anew at any point from its name alone.
"""

from __future__ import annotations

import hashlib

import torch

__all__ = ["generator"]


def generator(seed: int, *scope: str | int) -> torch.Generator:
    """A CPU generator that depends on `seed` and `scope`, and on nothing else."""
    digest = hashlib.sha256(repr((int(seed), *scope)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
