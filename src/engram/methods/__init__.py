"""Methods by name."""

from __future__ import annotations

from engram.errors import unknown
from engram.methods.base import Method
from engram.methods.bounds import Finetune, Joint
from engram.methods.der import DER
from engram.methods.icarl import ICaRL
from engram.methods.lae import LAE
from engram.methods.ranpac import RanPAC

__all__ = ["METHODS", "Method", "method_class"]

METHODS: dict[str, type[Method]] = {
    "icarl": ICaRL,
    "der": DER,
    "lae": LAE,
    "ranpac": RanPAC,
    "finetune": Finetune,
    "joint": Joint,
}


def method_class(name: str) -> type[Method]:
    """The method called `name`.

    Raises:
        UserError: no method has that name.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]
