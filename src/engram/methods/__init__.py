"""Methods by name."""

from __future__ import annotations

from typing import Any

from engram.config import as_mapping, from_mapping
from engram.errors import UserError, unknown
from engram.methods.base import Method
from engram.methods.bounds import Finetune, Joint
from engram.methods.der import DER
from engram.methods.icarl import ICaRL
from engram.methods.lae import LAE
from engram.methods.ranpac import RanPAC

__all__ = ["METHODS", "Method", "checked_settings", "method_class"]

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


def checked_settings(method: str, settings: Any) -> Any:
    """A method's settings as the annotations of their class want them: those made in Python too.

    Raises:
        UserError: they are another method's, or one has a value that it cannot have.
    """
    kind = method_class(method).Config
    if not isinstance(settings, kind):
        raise UserError(f"{method} is set by {kind.__name__}, not by {type(settings).__name__}.")
    return from_mapping(kind, as_mapping(settings), f"settings of {method}")
