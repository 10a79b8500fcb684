"""Who may use the server: who has the token, and pages from here or from where it is allowed."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from engram.errors import UserError

__all__ = ["COOKIE", "Access", "DeniedError", "TokenNeededError"]

COOKIE = "engram-token"

_bearer = HTTPBearer(auto_error=False, description="The token that the server was started with.")


class TokenNeededError(UserError):
    """The token is missing or wrong."""


class DeniedError(UserError):
    """The request comes from a page that may not make it."""


@dataclass(frozen=True, slots=True)
class Access:
    """A check in front of every request; a dependency of routes.

    Attributes:
        token: that is asked for; none where None.
        origins: pages elsewhere that may change something, such as https://example.org.
    """

    token: str | None
    origins: tuple[str, ...] = ()

    def __call__(
        self,
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> None:
        """Let a request pass.

        Raises:
            DeniedError: a browser sends it for another site.
            TokenNeededError: the token is missing or wrong.
        """
        self._check_origin(request)
        given = bearer.credentials if bearer is not None else request.cookies.get(COOKIE, "")
        if self.token is not None and not hmac.compare_digest(
            given.encode(errors="replace"), self.token.encode()
        ):
            raise TokenNeededError("This server wants its token, which is missing or wrong.")

    def _check_origin(self, request: Request) -> None:
        """A page that is open in the same browser must not change the model behind one's back."""
        origin = request.headers.get("origin")
        if origin is None or request.method in ("GET", "HEAD"):
            return
        if urlsplit(origin).netloc != request.headers.get("host") and origin not in self.origins:
            raise DeniedError(
                f"Requests from {origin} are not allowed. Start the server with --allow-origin "
                f"{origin} if they should be."
            )
