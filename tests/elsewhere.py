"""A second device where there is none: its tensors hold ordinary ones and compute with them.

What comes out is what the processor computes. Refused are operations between tensors here and there
(a GPU takes single numbers from here, this does not), random numbers of the processor's generator
for a tensor there, and NumPy. bfloat16 is not tried, nor what room a GPU has.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

__all__ = ["WAITS", "register"]

NAME = "elsewhere"

CROSSING = ("_to_copy", "copy_")
INDEXING = ("index", "index_put_", "_index_put_impl_")
"""Operations that take indices from the processor too."""
ANSWERING = ("_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique2")
"""Operations whose result the processor waits for."""

WAITS: list[str] = []
"""What the processor has waited for since this was emptied."""

LIBRARIES: list[torch.library.Library] = []
"""What torch knows of the device while it is kept."""


class Backend(_DummyBackendModule):
    """What torch asks a device for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class ElsewhereTensor(Tensor):
    """A tensor there.

    Attributes:
        held: the tensor here that it stands for.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> ElsewhereTensor:
        made: ElsewhereTensor = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(
        cls,
        operation: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return compute(operation, args, kwargs or {})


def compute(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Do an operation here, for tensors there."""
    name = operation._schema.name.partition("::")[2]
    given, shape = pytree.tree_flatten((tuple(args), dict(kwargs)))
    there = [value for value in given if isinstance(value, ElsewhereTensor)]
    target = kwargs.get("device")
    is_there = bool(there) if target is None else torch.device(target).type == NAME
    if there:
        refuse_mixture(name, args, given)
    if is_there and any(isinstance(value, torch.Generator) for value in given):
        raise RuntimeError(f"{name}: a generator of the processor, and a tensor of {NAME}.")
    masked = name in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
    fetched = name == "_to_copy" and target is not None and not is_there
    if there and (name in ANSWERING or masked or fetched):
        WAITS.append(name)
    positional, named = pytree.tree_unflatten([here(value) for value in given], shape)
    # What an operation changes in place is returned as the tensor that was given.
    known = {id(here(value)): value for value in given if isinstance(value, Tensor)}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        same = known.get(id(value))
        if same is not None and same.shape == value.shape:
            return same
        return ElsewhereTensor(value) if is_there else value

    return pytree.tree_map(wrapped, operation(*positional, **named))


def here(value: Any) -> Any:
    """What stands for a tensor or a device there."""
    if isinstance(value, ElsewhereTensor):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) else value


def refuse_mixture(name: str, args: Sequence[Any], given: Sequence[Any]) -> None:
    """Refuse tensors of both sides, but for the indices of a tensor there."""
    if name in CROSSING:
        return
    if name in INDEXING and isinstance(args[0], ElsewhereTensor):
        given = [
            args[0],
            *(value for value in args[2:] if isinstance(value, Tensor) and value.dim()),
        ]
    if any(isinstance(v, Tensor) and not isinstance(v, ElsewhereTensor) for v in given):
        raise RuntimeError(f"{name}: a tensor of the processor beside one of {NAME}.")


def copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    here(target).copy_(here(source))
    return target


@functools.cache
def register() -> str:
    """Make the device known to torch in this process.

    Returns:
        Its name.
    """
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    everything, single = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    # Where no tensor is given, nothing but this leads there.
    everything.fallback(lambda op, *args, **kwargs: compute(op, args, kwargs), "PrivateUse1")
    # The constructor torch.tensor cannot find it.
    single.impl("copy_", copy, "PrivateUse1")
    LIBRARIES.extend((everything, single))
    return NAME
