"""Who may use the server, and how much may be sent: checked before anything else is looked at."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engram.errors import UserError
from engram.serve.limits import TooLargeError

__all__ = [
    "EVERY_NAME",
    "Access",
    "AccessControl",
    "ConcurrencyLimit",
    "TrustedHosts",
    "checked_host",
    "checked_origin",
    "cookie_name",
]

EVERY_NAME = "*"

FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""Headers in which a proxy tells for whom it asks."""


@dataclass(frozen=True, slots=True)
class Access:
    """Which requests are allowed.

    Attributes:
        token: that is asked for; none where None.
        origins: pages elsewhere that may use the server, such as https://example.org.
        most_bytes: of a request's body.
    """

    token: str | None
    origins: tuple[str, ...]
    most_bytes: int

    def __post_init__(self) -> None:
        if self.token == "":
            raise UserError("The token is empty, which would let everybody in. Give a longer one.")
        if self.token is not None and not re.fullmatch(r"[!-~]([ -~]*[!-~])?", self.token):
            raise UserError(
                "The token has characters that browsers cannot send. Use letters from A to Z, "
                "digits and signs."
            )

    def refusal(self, headers: Headers) -> tuple[int, str] | None:
        """The status and the reason with which a request is refused; None where it is not."""
        origin = headers.get("origin")
        if origin is not None and not self._from_here(origin, headers):
            return 403, (
                f"Requests from {origin} are not allowed. Start the server with --allow-origin "
                f"{origin} if they should be."
            )
        if origin is None and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            # A page elsewhere that shows what is here, as a picture for example.
            return 403, "Requests from other pages are not allowed."
        if self.token is None and any(name in headers for name in FORWARDED):
            return 403, (
                "A proxy forwards requests to this server, which has no token, so that anybody "
                "could be asking. Start it with --token, or with --allow-host and the name that "
                "browsers ask for."
            )
        if not self._has_token(headers):
            return 401, "This server needs its token, which is missing or wrong."
        return None

    def _from_here(self, origin: str, headers: Headers) -> bool:
        try:
            place = urlsplit(origin).netloc
        except ValueError:
            return False
        return place == headers.get("host") or origin in self.origins

    def _has_token(self, headers: Headers) -> bool:
        if self.token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = _cookie(headers)
        return hmac.compare_digest(given.encode(errors="replace"), self.token.encode())


def cookie_name(headers: Headers) -> str:
    """The name of the cookie with the token: browsers share cookies among a machine's ports."""
    port = headers.get("host", "").rpartition(":")[2]
    return f"engram-token-{port}" if port.isdecimal() else "engram-token"


def _cookie(headers: Headers) -> str:
    # Not http.cookies, which drops all of them for one that another program wrote amiss.
    return cookie_parser(headers.get("cookie", "")).get(cookie_name(headers), "")


def checked_origin(origin: str) -> str:
    """An origin as browsers send it.

    Raises:
        UserError: it is none.
    """
    try:
        parts = urlsplit(origin.rstrip("/"))
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query:
        raise UserError(f"{origin} is no origin. Give one as https://example.org or with a port.")
    return f"{parts.scheme}://{parts.netloc}".lower()


def checked_host(name: str) -> str:
    """A name of the server as browsers send it.

    Raises:
        UserError: it is none.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise UserError(
            f'"{name}" is no name of a computer. Give one as engram.example.org, without https:// '
            "and without a port."
        )
    return name.lower()


class TrustedHosts:
    """Middleware that answers to the server's own names only.

    Otherwise a page elsewhere could let a name of its own lead here, and would be taken for ours.
    """

    def __init__(self, app: ASGIApp, names: tuple[str, ...]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and EVERY_NAME not in self._names:
            name = _host_name(Headers(scope=scope).get("host", ""))
            if name not in self._names:
                await self._refused(name)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refused(self, name: str) -> JSONResponse:
        message = (
            f'This server does not answer to the name "{name}". Start it with --allow-host {name} '
            "if it should."
        )
        return JSONResponse({"message": message}, 400)


def _host_name(host: str) -> str:
    """What stands before the port, such as [::1] or localhost."""
    end = host.find("]") + 1
    return (host[:end] if end else host.partition(":")[0]).lower()


class ConcurrencyLimit:
    """Middleware that answers at most so many requests at a time, and asks others to come again.

    Each may hold a whole picture in memory.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._inside >= self._most:
            message = "Too many are connected. Try again in a moment."
            busy = JSONResponse({"message": message}, 503, {"Retry-After": "1"})
            await busy(scope, receive, send)
            return
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1


class AccessControl:
    """Middleware that admits to /api only what `Access` allows.

    A body is counted while it is read, whoever reads it.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/api"):
            await self._app(scope, receive, send)
            return
        refusal = self._access.refusal(Headers(scope=scope))
        if refusal is not None:
            status, message = refusal
            await JSONResponse({"message": message}, status)(scope, receive, send)
            return
        await self._app(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._access.most_bytes:
                raise TooLargeError(
                    f"A request may have {self._access.most_bytes / 1e6:.0f} MB; this one has "
                    "more. Send less, such as a smaller picture."
                )
            return message

        return counted
