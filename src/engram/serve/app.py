"""The application: what can be asked of a model by HTTP, and the page that asks it."""

from __future__ import annotations

import mimetypes
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Any
from urllib.parse import quote

from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from engram.data.pictures import as_png
from engram.errors import NotThereError, UserError
from engram.serve import schemas
from engram.serve.access import (
    Access,
    AccessControl,
    ConcurrencyLimit,
    TrustedHosts,
    checked_origin,
    cookie_name,
)
from engram.serve.headers import SECURITY_HEADERS, SecurityHeaders
from engram.serve.limits import Limits, TooLargeError
from engram.serve.reference import reference
from engram.serve.server import Server
from engram.versions import BusyError

__all__ = ["create_app"]

PAGE = Path(__file__).with_name("page")

STATUS: dict[type[UserError], int] = {
    NotThereError: 404,
    BusyError: 409,
    TooLargeError: 413,
    UserError: 400,
}

UNCACHED = {"Cache-Control": "no-store"}
"""Pictures are private, and two models that are served at one address have the same addresses."""

NOT_WRITTEN = 507

CHUNK = 1 << 20

WRAPPED = ("multipart/", "application/json")
"""Kinds of bodies that hold no picture, or something around it."""

DOCUMENTED = HTTPBearer(
    auto_error=False, description="The token, where the server was started with one."
)
"""For the documentation; `AccessControl` is what checks."""

Several = Annotated[int, Query(ge=1, le=1000)]
Number = Annotated[int, InPath(ge=0, lt=2**63)]


def create_app(
    folder: Path,
    new_model: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    keep: int | None = None,
    limits: Limits | None = None,
    token: str | None = None,
    hosts: tuple[str, ...] = ("*",),
    origins: tuple[str, ...] = (),
) -> FastAPI:
    """The application over a model folder.

    Args:
        folder: of the model; need not exist.
        new_model: arguments of the `Learner` that is made or goes on; see `engram.learner.opened`.
        device: where it computes.
        keep: the most versions that stay.
        limits: on what is sent.
        token: that requests must carry, as a bearer or in the page's cookie.
        hosts: names that the server answers to, so that no foreign name can be made to lead here;
            to every name if * is among them.
        origins: pages elsewhere that may use it.

    Raises:
        UserError: the model's folder cannot be read, the token is empty, or an origin is none.
    """
    bounds = limits or Limits()
    origins = tuple(map(checked_origin, origins))
    access = Access(token, origins, bounds.picture_bytes)
    server = Server(folder, new_model or {}, device, keep, bounds)
    app = FastAPI(
        title="engram",
        description="Teach a model classes of pictures, and ask it what pictures show.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=server.lifespan,
    )
    # What is added last sees a request first.
    app.add_middleware(ConcurrencyLimit, most=bounds.requests)
    app.add_middleware(AccessControl, access=access)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["*"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(TrustedHosts, names=hosts)
    app.add_middleware(SecurityHeaders)
    app.add_exception_handler(UserError, _refused)
    for kind in (OSError, sqlite3.Error):
        app.add_exception_handler(kind, _not_written)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(HTTPException, _refused_by_framework)
    app.add_exception_handler(Exception, _unforeseen)
    for routes in (_model_routes, _teaching_routes, _history_routes):
        app.include_router(routes(server), dependencies=[Depends(DOCUMENTED)])
    _serve_page(app, access)
    return app


async def _refused(request: Request, error: Exception) -> JSONResponse:
    status = next(code for kind, code in STATUS.items() if isinstance(error, kind))
    return JSONResponse({"message": str(error)}, status)


async def _not_written(request: Request, error: Exception) -> JSONResponse:
    message = f"The model's folder cannot be read or written: {error}. Is the disk full?"
    return JSONResponse({"message": message}, NOT_WRITTEN)


async def _not_understood(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    named = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return JSONResponse({"message": f"The request is not understood: {named}."}, 422)


async def _refused_by_framework(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, UserError):  # FastAPI calls it an error of JSON's
        return await _refused(request, error.__cause__)
    message = f"{request.method} {request.url.path}: {error.detail}. See /api/docs."
    return JSONResponse({"message": message}, error.status_code)


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    # The middleware does not see this answer, so it brings its headers along.
    message = f"Something went wrong: {type(error).__name__}. The server's terminal has more of it."
    return JSONResponse({"message": message}, 500, SECURITY_HEADERS)


MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""What the page's files are, by suffix."""


class _Assets(StaticFiles):
    """Files of the page, which belong together: a browser asks whether they are the newest."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory=directory)
        # Programs write to Windows' registry that scripts are plain text; no browser runs those.
        for suffix, media in MEDIA_TYPES.items():
            mimetypes.add_type(media, suffix)

    def file_response(self, *arguments: Any, **named: Any) -> Response:
        response = super().file_response(*arguments, **named)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _serve_page(app: FastAPI, access: Access) -> None:
    """The page, and the cookie with which its pictures are asked for."""

    @app.post("/api/session", status_code=204, tags=["page"], dependencies=[Depends(DOCUMENTED)])
    def open_session(request: Request) -> Response:
        """Give a browser the token as a cookie."""
        response = Response(status_code=204)
        if access.token is not None:
            response.set_cookie(
                cookie_name(request.headers),
                access.token,
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https",
            )
        return response

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/api/docs", include_in_schema=False)
    def documentation() -> HTMLResponse:
        return HTMLResponse(reference(app.openapi()))

    app.mount("/page", _Assets(directory=PAGE), name="page")


def _model_routes(server: Server) -> APIRouter:
    """What the model knows and sees."""
    routes = _router("model")

    @routes.get("/state")
    def state() -> schemas.ModelState:
        """What the model knows, what waits, and what is going on."""
        return server.state()

    @routes.post("/predict", openapi_extra=_takes_picture())
    async def predict(request: Request, top: Several = 5) -> schemas.Prediction:
        """What a picture shows."""
        content = await _picture(request)
        version, labels = await server.decoded(lambda: server.current.predict(content, top))
        return schemas.Prediction(version=version, labels=[schemas.Label(**one) for one in labels])

    @routes.get(
        "/versions/{number}/exemplars/{label}/{rank}",
        response_class=Response,
        responses={200: _file("image/png")},
    )
    def exemplar(number: Number, label: Number, rank: Number) -> Response:
        """An exemplar of the version that answers, as PNG; rank 0 is the best of a class."""
        try:
            pixels = server.answering(number).memory.exemplar(label, rank)
        except (KeyError, IndexError) as error:
            raise NotThereError("There is no such exemplar.") from error
        return _png(as_png(pixels.numpy()))

    return routes


def _teaching_routes(server: Server) -> APIRouter:
    """Classes and pictures that wait, and the jobs that learn them."""
    routes = _router("teaching")

    @routes.post("/classes", status_code=201)
    def add_class(name: schemas.ClassName) -> schemas.Made:
        """Make a class; one with the name of a known class teaches that one further."""
        return schemas.Made(id=server.add_class(name.name))

    @routes.patch("/classes/{number}", status_code=204)
    def rename_class(number: Number, name: schemas.ClassName) -> None:
        """Give a class that waits another name."""
        server.rename_class(number, name.name)

    @routes.delete("/classes/{number}", status_code=204)
    def remove_class(number: Number) -> None:
        """Remove a class that waits, with its pictures."""
        server.journal.remove_class(number)

    @routes.post("/classes/{number}/pictures", status_code=201, openapi_extra=_takes_picture())
    async def add_picture(number: Number, request: Request) -> schemas.Made:
        """Add a picture to a class that waits."""
        content = await _picture(request)
        made = await server.decoded(lambda: server.add_picture(number, content))
        return schemas.Made(id=made)

    @routes.delete("/pictures/{number}", status_code=204)
    def remove_picture(number: Number) -> None:
        """Remove a picture that waits."""
        server.journal.remove_picture(number)

    @routes.get("/pictures/{number}", response_class=Response, responses={200: _file("image/png")})
    def waiting_picture(number: Number) -> Response:
        """A picture that waits, as PNG."""
        return _png(server.journal.picture(number))

    @routes.post("/jobs", status_code=202)
    def learn() -> schemas.JobState:
        """Learn everything that waits, in the background."""
        return server.job(server.jobs.learn())

    @routes.get("/jobs")
    def jobs(most: Several = 20) -> list[schemas.JobState]:
        """The last jobs, newest first."""
        return server.last_jobs(most)

    @routes.get("/jobs/{number}")
    def job(number: Number) -> schemas.JobState:
        """How far a job is, or how it ended."""
        return server.job(number)

    @routes.delete("/jobs/{number}", status_code=204)
    def cancel(number: Number) -> None:
        """End a job; the model stays as it is, and what was to be learnt waits again."""
        server.jobs.cancel(number)

    return routes


def _history_routes(server: Server) -> APIRouter:
    """The model's versions."""
    routes = _router("history")

    @routes.get("/versions")
    def versions() -> list[schemas.Version]:
        """All versions of the model, newest first."""
        return server.versions()

    @routes.post("/versions/{number}/restore", status_code=204)
    def restore(number: Number) -> None:
        """Make a version the one that answers."""
        server.jobs.rollback(number)

    @routes.get(
        "/versions/{number}/model.zip",
        response_class=StreamingResponse,
        responses={200: _file("application/zip")},
    )
    async def download(number: Number) -> StreamingResponse:
        """A version as a model folder, for `engram predict` and `engram.load`."""
        file = await to_thread.run_sync(server.packed, number, limiter=server.packing)
        name = quote(f"{server.model.folder.resolve().name}-{number}.zip")
        disposition = f"attachment; filename*=UTF-8''{name}"
        return StreamingResponse(
            _chunks(file),
            media_type="application/zip",
            headers={"Content-Disposition": disposition, **UNCACHED},
        )

    return routes


def _router(tag: str) -> APIRouter:
    """A router for the routes under one heading of the documentation."""
    refusals: dict[int | str, dict[str, Any]] = {
        code: {"model": schemas.Problem} for code in sorted({*STATUS.values(), 422, NOT_WRITTEN})
    }
    return APIRouter(prefix="/api", tags=[tag], responses=refusals)


def _file(media: str) -> dict[str, Any]:
    """What the documentation says of a body that is a file."""
    return {"content": {media: {"schema": {"type": "string", "format": "binary"}}}}


def _takes_picture() -> dict[str, Any]:
    """What the documentation says of a body that `_picture` reads."""
    body = {
        "required": True,
        "description": "The bytes of a JPEG, PNG, WebP, ... file",
        **_file("image/*"),
    }
    return {"requestBody": body}


async def _picture(request: Request) -> bytes:
    """The body of a request, which is a picture.

    Raises:
        UserError: there is none, it is wrapped in something else, or not all of it came.
    """
    kind = request.headers.get("Content-Type", "")
    if kind.startswith(WRAPPED):
        raise UserError(
            f"The picture came as {kind.partition(';')[0]}. Send the bytes of its file as the "
            "request's body, and nothing else."
        )
    try:
        content = await request.body()
    except ClientDisconnect as error:
        raise UserError("The connection ended before all of the picture was here.") from error
    if not content:
        raise UserError("No picture came. Send the bytes of its file as the request's body.")
    return content


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK):
            yield chunk


def _png(content: bytes) -> Response:
    return Response(content, media_type="image/png", headers=UNCACHED)
