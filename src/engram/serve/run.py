"""Listening: the socket, who may come, and where the page is."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn

from engram.errors import UserError
from engram.serve.app import create_app

__all__ = ["serve_model"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")

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
        UserError: the address cannot be had.
    """
    private = host in LOOPBACK
    if token is None and not private:
        token = secrets.token_urlsafe(16)
    app = create_app(
        folder,
        new_model,
        device=device,
        keep=keep,
        token=token,
        hosts=("127.0.0.1", "localhost", "[", "[::1]") if private else ("*",),
        origins=origins,
    )
    listening = _listen(host, port)
    print(f"Teach and ask {folder} at {_address(host, listening.getsockname()[1], token)}")
    print("Ctrl-C ends it.", flush=True)
    config = uvicorn.Config(app, log_level="warning", limit_concurrency=MOST_CONNECTIONS)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"Nothing can be served at {host}, port {port}: {error}. Choose another --port, or "
            "--host 127.0.0.1."
        ) from error


def _address(host: str, port: int, token: str | None) -> str:
    """The page's; what stands behind # stays in the browser."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"#token={token}" if token else "")
