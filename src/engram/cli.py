"""The `engram` command: finds the command that is meant, and turns mistakes into one line.

Torch takes seconds to import, so the commands themselves are imported when one is called, and
`engram --help` answers at once.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from engram.errors import UserError, unknown

__all__ = ["main"]

COMMANDS = {
    **dict.fromkeys(
        ("learn", "predict", "evaluate", "history", "rollback", "export", "serve"), "model_commands"
    ),
    **dict.fromkeys(("demo", "bench", "report", "methods", "doctor"), "commands"),
}
"""Commands, and the modules that they are in."""

LACK_OF_MEMORY = ("can't allocate memory", "out of memory")
"""What torch says of it, on a processor and on a GPU: its errors have no class that all share."""


HELP = """\
engram learns new image classes as they arrive, in a memory bounded in bytes.

For folders of images:

  engram learn FOLDER --into MODEL            learn its classes; again with more, whenever they come
  engram predict MODEL PICTURE...             classify pictures
  engram evaluate MODEL FOLDER                its accuracy on labelled pictures
  engram history MODEL                        the versions of a model
  engram rollback MODEL VERSION               back to an earlier one
  engram export MODEL --to FILE               one ONNX file, which runs without engram
  engram serve MODEL                          most of this in the browser, and by REST

For comparing methods:

  engram demo                                 watch it learn handwritten digits; a minute
  engram bench METHOD STREAM [options]        one method on one stream of classes
  engram bench --grid FILE                    a list of such runs; finished ones are skipped
  engram report FOLDER                        one HTML report on a run, or on several
  engram methods                              the methods, their presets and what these reach
  engram doctor                               versions, device, data; what is missing

engram COMMAND --help explains a command. For example:

  engram learn photos/ --into model
  engram bench icarl cifar100/b0-inc10 --preset laptop --seed 0 1
"""


def main() -> None:
    """Run the command line: exit code 2 for a mistake of the user, 130 for an interruption."""
    warnings.showwarning = _print_warning
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names of files need not be text
    try:
        _dispatch(sys.argv[1:])
    except KeyboardInterrupt:
        print("\nInterrupted. The same command again does what is left.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever reads the output has seen enough; without this, Python complains at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if (message := _message(error)) is None:
            raise
        print(f"engram: {message}", file=sys.stderr)
        sys.exit(2)


def _message(error: Exception) -> str | None:
    """What to tell of an error that a user can mend; None of one that is engram's own."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):  # a full disk, a folder without permission
        return f"{error.strerror}: {error.filename}." if error.filename else f"{error}."
    if isinstance(error, MemoryError) or any(words in str(error) for words in LACK_OF_MEMORY):
        reason, *_ = str(error).splitlines() or ["nothing more is known"]
        return f"Not enough memory ({reason}). Take smaller images, batches or dimensions."
    return None


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning in one line, without the place in the code that it comes from."""
    print(f"engram: {message}", file=sys.stderr)


def _dispatch(words: Sequence[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("engram"))
        return
    if words[0] not in COMMANDS:
        raise unknown("command", words[0], COMMANDS)
    module = importlib.import_module(f"engram.{COMMANDS[words[0]]}")
    getattr(module, words[0])(words[1:])
