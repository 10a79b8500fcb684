"""Listening: the socket, who may come, and where the page is."""

from __future__ import annotations

import os
import secrets
import socket
from asyncio import CancelledError
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from engram.errors import UserError
from engram.files import held
from engram.serve.access import EVERY_NAME, checked_host
from engram.serve.app import create_app

__all__ = ["serve_model"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")

ELSEWHERE = {"0.0.0.0": "192.0.2.1", "::": "2001:db8::1"}
"""Hosts that stand for all addresses of this computer, and an address that nobody has."""

HIGHEST_PORT = 65535

SECONDS_TO_FINISH = 5
"""Seconds given to open requests when the server stops."""

TOKEN_VARIABLE = "ENGRAM_TOKEN"


def serve_model(
    folder: Path,
    new_model: Mapping[str, Any],
    *,
    host: str,
    port: int,
    token: str | None,
    names: tuple[str, ...],
    origins: tuple[str, ...],
    keep: int | None,
    device: str,
) -> None:
    """Serve a model until the process is interrupted.

    Where others than this computer can come, a token is made if none is given.

    Args:
        folder: of the model.
        new_model: arguments of the `Learner` that is made or goes on; see `engram.learner.opened`.
        port: 0 takes one that is free.
        token: that requests must carry; else that of the environment is taken.
        names: that this computer has for those who come by a reverse proxy.
        origins: pages elsewhere that may use it.
        keep: the most versions that stay.
        device: where it computes.

    Raises:
        UserError: the address cannot be had, a name is none, or the model is served already.
    """
    names = tuple(map(checked_host, names))
    named = os.environ.get(TOKEN_VARIABLE) if token is None else None
    token = named if token is None else token
    hosts = (*map(_bracketed, LOOPBACK), *names) if host in LOOPBACK or names else (EVERY_NAME,)
    with _listen(host, port) as listening, _alone(folder):
        if token is None and (names or host not in LOOPBACK):
            token = _kept_token(folder)
        app = create_app(
            folder,
            new_model,
            device=device,
            keep=keep,
            token=token,
            hosts=hosts,
            origins=origins,
        )
        # Whoever put the token into the environment keeps it out of logs too.
        shown = None if named else token
        for reached in _reached(host):
            address = _address(reached, listening.getsockname()[1], shown)
            print(f"Teach and ask {folder} at {address}")
        if named:
            print(f"Whoever comes needs the token in {TOKEN_VARIABLE}.")
        print("Ctrl-C ends it.", flush=True)
        config = uvicorn.Config(
            _Ended(app), log_level="warning", timeout_graceful_shutdown=SECONDS_TO_FINISH
        )
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


class _Ended:
    """An application that is silent about requests that the end of the server cuts short."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(CancelledError):
            await self._app(scope, receive, send)


def _alone(folder: Path) -> AbstractContextManager[None]:
    """Be the only server of a model.

    Raises:
        UserError: there is another one.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    served = UserError(f"Another engram serve has {folder} open. Use that one, or end it.")
    return held(folder / ".serve.lock", served)


def _kept_token(folder: Path) -> str:
    """The token that was made for a model, so that who has it can come after a restart too."""
    path = folder / "token"
    path.touch(mode=0o600)
    token = path.read_text().strip()
    if not token:
        token = secrets.token_urlsafe(16)
        path.write_text(f"{token}\n")
    return token


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= HIGHEST_PORT:
        raise UserError(
            f"There is no port {port}. Choose a --port up to {HIGHEST_PORT}, or 0 for one that is "
            "free."
        )
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
    except OSError as error:
        listening.close()
        raise UserError(
            f"Nothing can be served at {host}, port {port}: {error}. Choose another --port, or "
            "--host 127.0.0.1."
        ) from error


def _reached(host: str) -> list[str]:
    """The names and addresses by which others reach this computer where it listens."""
    if host not in ELSEWHERE:
        return [host]
    # Not every name is known on a network; a phone knows an address.
    return [socket.gethostname(), *_own_address(host)]


def _own_address(host: str) -> list[str]:
    """The address with which this computer would reach another; none without a network."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as unused, suppress(OSError):
        unused.connect((ELSEWHERE[host], 9))  # nothing is sent
        return [unused.getsockname()[0]]
    return []


def _address(host: str, port: int, token: str | None) -> str:
    """The page's; what follows # stays in the browser."""
    return f"http://{_bracketed(host)}:{port}/" + (f"#token={quote(token)}" if token else "")


def _bracketed(host: str) -> str:
    """A host as it stands before a port."""
    return f"[{host}]" if ":" in host else host
