"""Listening: the socket, who may come, and where the page is."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvicorn
from filelock import FileLock, Timeout

from engram.errors import UserError
from engram.serve.app import create_app

__all__ = ["serve_model"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")

# The last is what older releases of Starlette make of [::1].
NAMES_OF_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "[")

EVERYWHERE = ("0.0.0.0", "::")

MOST_CONNECTIONS = 64


def serve_model(
    folder: Path,
    new_model: Mapping[str, Any],
    *,
    host: str,
    port: int,
    token: str | None,
    origins: tuple[str, ...],
    keep: int | None,
    device: str,
) -> None:
    """Serve a model until the process is interrupted.

    Where other machines can come, a token is made if none is given.

    Args:
        folder: of the model.
        new_model: arguments of the `Learner` that a first version is made with.
        port: 0 takes one that is free.
        origins: pages elsewhere that may use it.
        keep: the most versions that stay.
        device: where it computes.

    Raises:
        UserError: the address cannot be had, or the model is served already.
    """
    private = host in LOOPBACK
    if token is None and not private:
        token = secrets.token_urlsafe(16)
    with _listen(host, port) as listening, _alone(folder):
        app = create_app(
            folder,
            new_model,
            device=device,
            keep=keep,
            token=token,
            hosts=NAMES_OF_LOOPBACK if private else ("*",),
            origins=origins,
        )
        print(f"Teach and ask {folder} at {_address(host, listening.getsockname()[1], token)}")
        print("Ctrl-C ends it.", flush=True)
        config = uvicorn.Config(app, log_level="warning", limit_concurrency=MOST_CONNECTIONS)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only server of a model.

    Raises:
        UserError: there is another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".serve.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"Another engram serve has {folder} open. Use that one, or end it."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only where a socket says that it is TCP does asyncio send what there is at once; else the
    # second part of an answer waits forty milliseconds for the first to be acknowledged.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it lets two servers have one port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
        return listening
    except (OSError, OverflowError) as error:
        listening.close()
        raise UserError(
            f"Nothing can be served at {host}, port {port}: {error}. Choose another --port, or "
            "--host 127.0.0.1."
        ) from error


def _address(host: str, port: int, token: str | None) -> str:
    """The page's; what stands behind # stays in the browser."""
    reached = socket.gethostname() if host in EVERYWHERE else host
    shown = f"[{reached}]" if ":" in reached else reached
    return f"http://{shown}:{port}/" + (f"#token={quote(token)}" if token else "")
