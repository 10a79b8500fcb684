"""The application: what can be asked of a model by HTTP, and the page that asks it."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.background import BackgroundTask

from engram.api import Change, Learner, mean_forgetting
from engram.data.images import checksums
from engram.data.pictures import as_png, picture
from engram.errors import UserError
from engram.memory import Budget
from engram.serve import schemas
from engram.serve.access import COOKIE, Access, DeniedError, TokenNeededError
from engram.serve.current import CurrentModel
from engram.serve.jobs import Jobs
from engram.serve.journal import Job, Journal, NotThereError
from engram.serve.limits import Limits, TooLargeError
from engram.versions import BusyError, ModelFolder

__all__ = ["create_app"]

PAGE = Path(__file__).with_name("page")

STATUS: dict[type[UserError], int] = {
    TokenNeededError: 401,
    DeniedError: 403,
    NotThereError: 404,
    BusyError: 409,
    TooLargeError: 413,
    UserError: 400,
}

POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}

DECODED_AT_ONCE = 2
"""Pictures; a large one takes some 300 MB while it is decoded."""

Value = TypeVar("Value")
Several = Annotated[int, Query(ge=1, le=1000)]
Number = Annotated[int, InPath(ge=0, lt=2**63)]


class Server:
    """What the routes stand on.

    Args:
        folder: the model's.
        new_model: arguments of the `Learner` that a first version is made with.
        device: where it computes.
        keep: the most versions that stay.
        limits: on what is sent.
    """

    def __init__(
        self,
        folder: Path,
        new_model: Mapping[str, Any],
        device: str,
        keep: int | None,
        limits: Limits,
    ) -> None:
        self.model = ModelFolder(folder)
        self.journal = Journal(folder)
        self.jobs = Jobs(self.model, self.journal, new_model, device=device, keep=keep)
        self.current = CurrentModel(self.model, device)
        self.limits = limits
        self.untaught = Learner(**new_model)
        self.decoding = CapacityLimiter(DECODED_AT_ONCE)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Find what another server left behind; leave nothing running behind."""
        await to_thread.run_sync(self.jobs.recover)
        await to_thread.run_sync(self.current.get)
        yield
        await to_thread.run_sync(self.jobs.close)

    async def decoded(self, work: Callable[[], Value]) -> Value:
        """Do what decodes a picture, beside other requests."""
        return await to_thread.run_sync(work, limiter=self.decoding)

    def learner(self) -> Learner:
        """The one that answers, or one that knows nothing."""
        there = self.current.get()
        return self.untaught if there is None else there[1]

    def answering(self, version: int) -> Learner:
        """The learner of a version, if it is the one that answers.

        Raises:
            NotThereError: it is not.
        """
        there = self.current.get()
        if there is None or there[0] != version:
            raise NotThereError(f"Version {version} is not the one that answers.")
        return there[1]

    def state(self) -> schemas.ModelState:
        """Everything that the page shows at once."""
        learner = self.learner()
        there = self.current.get()
        newest = self.journal.jobs(1)
        return schemas.ModelState(
            name=self.model.folder.resolve().name,
            version=None if there is None else there[0],
            method=learner.method_name,
            image_size=learner.image_size,
            classes=_known_classes(learner),
            memory=_memory(learner),
            waiting=[
                schemas.WaitingClass(
                    id=found.id,
                    name=found.name,
                    known=found.name in learner.classes_,
                    pictures=list(found.pictures),
                )
                for found in self.journal.waiting()
            ],
            job=_job(newest[0]) if newest else None,
            limits=schemas.ServerLimits(
                picture_bytes=self.limits.picture_bytes,
                waiting_pictures=self.limits.waiting_pictures,
                waiting_classes=self.limits.waiting_classes,
                name_length=self.limits.name_length,
            ),
        )

    def add_class(self, name: str) -> int:
        """Make a class that waits.

        Raises:
            TooLargeError: so many wait that there is no room.
            UserError: it is no name, or waits already.
        """
        if len(self.journal.waiting()) >= self.limits.waiting_classes:
            raise TooLargeError(
                f"{self.limits.waiting_classes:,} classes wait already, which is the most. Let "
                "them be learnt first."
            )
        return self.journal.add_class(self.limits.class_name(name))

    def add_picture(self, number: int, content: bytes) -> int:
        """Let a picture wait, brought to the size at which it will be learnt.

        Raises:
            NotThereError: there is no such class.
            UserError: it cannot be read, or there is no room.
        """
        waiting = sum(len(found.pictures) for found in self.journal.waiting())
        self.limits.check_room(waiting, self.journal.waiting_bytes())
        pixels = picture(content, self.learner().image_size)
        (checksum,) = checksums(torch.tensor(pixels)[None])
        return self.journal.add_picture(number, as_png(pixels), checksum)

    def versions(self) -> list[schemas.Version]:
        """All versions, newest first."""
        current = self.model.current
        return [
            schemas.Version(
                number=facts["number"],
                current=facts["number"] == current,
                created=facts["created"],
                parent=facts["parent"],
                source=facts.get("source", ""),
                classes=facts["learner"]["classes"],
                exemplars=facts["exemplars"],
                bytes=facts["bytes"],
                forgotten=mean_forgetting([Change(**change) for change in facts["changes"]]),
            )
            for facts in reversed(self.model.history())
        ]

    def packed(self, version: int) -> Path:
        """A temporary file with a model folder that holds one version.

        Raises:
            UserError: there is no such version.
        """
        number = self.model.chosen(version)
        name = self.model.folder.resolve().name
        with tempfile.NamedTemporaryFile(suffix=".zip", delete=False) as file:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(f"{name}/current", f"{number}\n")
                for path in sorted(self.model.path(number).rglob("*")):
                    archive.write(path, Path(name, path.relative_to(self.model.folder)))
            return Path(file.name)


def _known_classes(learner: Learner) -> list[schemas.KnownClass]:
    counts = learner.memory.counts if learner.classes_ else {}
    sizes = learner.memory.bytes_of_classes if learner.classes_ else {}
    return [
        schemas.KnownClass(
            name=change.name,
            exemplars=counts.get(label, 0),
            bytes=sizes.get(label, 0),
            before=change.before,
            after=change.after,
            measured_on=change.images,
        )
        for label, change in enumerate(learner.changes_)
    ]


def _memory(learner: Learner) -> schemas.ExemplarMemory:
    budget = Budget.parse(learner.budget)
    return schemas.ExemplarMemory(
        budget=learner.budget,
        budget_bytes=budget.amount if budget.kind == "bytes" else None,
        bytes=learner.nbytes if learner.classes_ else 0,
        exemplars=len(learner.memory) if learner.classes_ else 0,
    )


def _job(job: Job) -> schemas.JobState:
    return schemas.JobState(
        id=job.id,
        kind=job.kind,
        state=job.state,
        created=job.created,
        ended=job.ended,
        stage=job.stage,
        share=job.share,
        seconds_left=job.seconds_left,
        message=job.message,
        version=job.version,
        lessons=job.lessons,
    )


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
        new_model: arguments of the `Learner` that a first version is made with.
        device: where it computes.
        keep: the most versions that stay.
        limits: on what is sent.
        token: that requests must carry, as a bearer or in the page's cookie.
        hosts: names that the server answers to, so that no foreign name can be made to lead here.
        origins: pages elsewhere that may use it.

    Raises:
        UserError: the model's folder cannot be read.
    """
    server = Server(folder, new_model or {}, device, keep, limits or Limits())
    access = Access(token, origins)
    app = FastAPI(
        title="engram",
        description="Teach a model classes of pictures, and ask it what pictures show.",
        docs_url="/api/docs",
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=server.lifespan,
    )
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["*"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_exception_handler(UserError, _refused)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.include_router(_routes(server), dependencies=[Depends(access)])
    _serve_page(app, access)
    return app


async def _refused(request: Request, error: Exception) -> JSONResponse:
    status = next(code for kind, code in STATUS.items() if isinstance(error, kind))
    return JSONResponse({"message": str(error)}, status)


async def _not_understood(request: Request, error: Exception) -> JSONResponse:
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    named = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in problems)
    return JSONResponse({"message": f"The request is not understood: {named}."}, 422)


def _serve_page(app: FastAPI, access: Access) -> None:
    """The page, and the cookie with which its pictures are asked for."""

    @app.post("/api/session", status_code=204, tags=["page"], dependencies=[Depends(access)])
    def open_session(request: Request) -> Response:
        """Give a browser the token as a cookie."""
        response = Response(status_code=204)
        if access.token is not None:
            response.set_cookie(
                COOKIE,
                access.token,
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https",
            )
        return response

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
        return FileResponse(PAGE / "index.html", headers={**headers, "Cache-Control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


def _routes(server: Server) -> APIRouter:
    refusals: dict[int | str, dict[str, Any]] = {
        code: {"model": schemas.Problem} for code in sorted({*STATUS.values(), 422})
    }
    routes = APIRouter(prefix="/api", responses=refusals)
    body = {
        "requestBody": {
            "required": True,
            "description": "The bytes of a JPEG, PNG, WebP, ... file",
            "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
        }
    }

    @routes.get("/state", tags=["model"])
    def state() -> schemas.ModelState:
        """What the model knows, what waits, and what is going on."""
        return server.state()

    @routes.post("/predict", tags=["model"], openapi_extra=body)
    async def predict(request: Request, top: Several = 5) -> schemas.Prediction:
        """What a picture shows."""
        content = await server.limits.picture(request)
        version, labels = await server.decoded(lambda: server.current.predict(content, top))
        return schemas.Prediction(version=version, labels=[schemas.Label(**one) for one in labels])

    @routes.post("/classes", status_code=201, tags=["teaching"])
    def add_class(name: schemas.ClassName) -> schemas.Made:
        """Make a class; one with the name of a known class teaches that one further."""
        return schemas.Made(id=server.add_class(name.name))

    @routes.patch("/classes/{number}", status_code=204, tags=["teaching"])
    def rename_class(number: Number, name: schemas.ClassName) -> None:
        """Give a class that waits another name."""
        server.journal.rename_class(number, server.limits.class_name(name.name))

    @routes.delete("/classes/{number}", status_code=204, tags=["teaching"])
    def remove_class(number: Number) -> None:
        """Remove a class that waits, with its pictures."""
        server.journal.remove_class(number)

    @routes.post(
        "/classes/{number}/pictures", status_code=201, tags=["teaching"], openapi_extra=body
    )
    async def add_picture(number: Number, request: Request) -> schemas.Made:
        """Add a picture to a class that waits."""
        content = await server.limits.picture(request)
        made = await server.decoded(lambda: server.add_picture(number, content))
        return schemas.Made(id=made)

    @routes.delete("/pictures/{number}", status_code=204, tags=["teaching"])
    def remove_picture(number: Number) -> None:
        """Remove a picture that waits."""
        server.journal.remove_picture(number)

    @routes.get("/pictures/{number}", tags=["teaching"], response_class=Response)
    def waiting_picture(number: Number) -> Response:
        """A picture that waits, as PNG."""
        return _png(server.journal.picture(number))

    @routes.post("/jobs", status_code=202, tags=["teaching"])
    def learn() -> schemas.JobState:
        """Learn everything that waits, in the background."""
        return _job(server.journal.job(server.jobs.learn()))

    @routes.get("/jobs", tags=["teaching"])
    def jobs(most: Several = 20) -> list[schemas.JobState]:
        """The last jobs, newest first."""
        return [_job(job) for job in server.journal.jobs(most)]

    @routes.get("/jobs/{number}", tags=["teaching"])
    def job(number: Number) -> schemas.JobState:
        """How far a job is, or how it ended."""
        return _job(server.journal.job(number))

    @routes.delete("/jobs/{number}", status_code=204, tags=["teaching"])
    def cancel(number: Number) -> None:
        """End a job; the model stays as it is, and what was to be learnt waits again."""
        server.jobs.cancel(number)

    @routes.get("/versions", tags=["history"])
    def versions() -> list[schemas.Version]:
        """All versions of the model, newest first."""
        return server.versions()

    @routes.post("/versions/{number}/restore", status_code=204, tags=["history"])
    def restore(number: Number) -> None:
        """Make a version the one that answers."""
        server.jobs.rollback(number)

    @routes.get("/versions/{number}/model.zip", tags=["history"], response_class=FileResponse)
    def download(number: Number) -> FileResponse:
        """A version as a model folder, for `engram predict` and `engram.load`."""
        path = server.packed(number)
        name = f"{server.model.folder.resolve().name}-{number}.zip"
        return FileResponse(path, filename=name, background=BackgroundTask(path.unlink))

    @routes.get(
        "/versions/{number}/exemplars/{label}/{rank}", tags=["model"], response_class=Response
    )
    def exemplar(number: Number, label: Number, rank: Number) -> Response:
        """An exemplar of the version that answers, as PNG; rank 0 is the best of a class."""
        try:
            pixels = server.answering(number).memory.exemplar(label, rank)
        except (KeyError, IndexError) as error:
            raise NotThereError("There is no such exemplar.") from error
        return _png(as_png(pixels.numpy()))

    return routes


def _png(content: bytes) -> Response:
    """An answer that a browser need not ask for again."""
    return Response(content, media_type="image/png", headers=FOREVER)
