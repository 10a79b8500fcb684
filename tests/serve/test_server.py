"""The server by HTTP: what it takes and refuses, and what becomes of jobs that do not end well."""

from __future__ import annotations

import io
import mimetypes
import os
import signal
import sqlite3
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image
from starlette.testclient import TestClient

from conftest import Command, coloured, small_learner
from engram.errors import NotThereError, UserError
from engram.learner import load
from engram.serve import worker
from engram.serve.app import create_app
from engram.serve.jobs import settle
from engram.serve.journal import Journal
from engram.serve.limits import Limits, TooLargeError
from engram.serve.server import Server
from engram.versions import BusyError, ModelFolder

PATIENCE = 120


def png(colour: str, seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(coloured(colour, 1, seed)[0]).save(file, "PNG")
    return file.getvalue()


def opened(folder: Path, **options: Any) -> TestClient:
    return TestClient(create_app(folder, device="cpu", **options))


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    """A model that knows two colours, on a network that is quickly run."""
    known = {name: coloured(name, 8) for name in ("red", "blue")}
    small_learner().learn(known).save(tmp_path / "model")
    return ModelFolder(tmp_path / "model")


@pytest.fixture
def client(model: ModelFolder) -> Iterator[TestClient]:
    with opened(model.folder) as client:
        yield client


def give(client: TestClient, name: str, count: int = 8) -> int:
    """Let pictures of a class wait; the class's number."""
    number = client.post("/api/classes", json={"name": name}).json()["id"]
    for seed in range(count):
        client.post(f"/api/classes/{number}/pictures", content=png(name, seed)).raise_for_status()
    return int(number)


def ended(client: TestClient, job: int) -> dict[str, Any]:
    """A job, when it is over."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found: dict[str, Any] = client.get(f"/api/jobs/{job}").json()
        if found["state"] != "running":
            return found
        time.sleep(0.1)
    raise AssertionError("the job does not end")


def waiting(client: TestClient) -> dict[str, int]:
    """How many pictures of each class wait."""
    state = client.get("/api/state").json()
    return {one["name"]: len(one["pictures"]) for one in state["waiting"]}


def test_a_class_is_taught_and_asked_for(client: TestClient, model: ModelFolder) -> None:
    give(client, "grün")
    answer = client.post("/api/jobs")
    assert answer.status_code == 202
    assert answer.json()["lessons"] == {"grün": 8}
    # Pictures that come meanwhile wait for the next time.
    late = client.get("/api/state").json()["waiting"][0]["id"]
    client.post(f"/api/classes/{late}/pictures", content=png("grün", 99)).raise_for_status()
    job = ended(client, answer.json()["id"])
    assert (job["state"], job["version"], job["message"]) == ("done", 2, "")
    assert waiting(client) == {"grün": 1}

    state = client.get("/api/state").json()
    assert state["version"] == 2
    assert [one["name"] for one in state["classes"]] == ["red", "blue", "grün"]
    assert state["waiting"][0]["known"]
    assert state["memory"]["bytes"] <= state["memory"]["budget_bytes"]
    found = client.post("/api/predict?top=2", content=png("grün", 3)).json()
    assert found["version"] == 2
    assert found["labels"][0]["label"] == "grün"
    assert len(found["labels"]) == 2

    kept = client.get("/api/versions/2/exemplars/2/0")
    assert Image.open(io.BytesIO(kept.content)).size == (16, 16)
    assert client.get("/api/versions/2/exemplars/2/999").status_code == 404
    assert client.get("/api/versions/1/exemplars/0/0").status_code == 404
    newest, first = client.get("/api/versions").json()
    assert (newest["number"], newest["current"], newest["parent"]) == (2, True, 1)
    assert (newest["learnt"], newest["classes"]) == (["grün"], 3)
    assert newest["disk_bytes"] > newest["bytes"] > 0
    assert [one["new"] for one in state["classes"]] == [False, False, True]
    assert (first["number"], first["current"]) == (1, False)
    assert (newest["forgotten"], first["forgotten"]) == (0, None)
    assert state["verdict"].startswith("No loss was seen on the 2 pictures of both")

    assert client.post("/api/versions/1/restore").status_code == 204
    assert model.current == 1
    assert client.get("/api/state").json()["version"] == 1
    assert client.post("/api/predict", content=png("grün")).json()["version"] == 1
    jobs = client.get("/api/jobs").json()
    assert [(job["kind"], job["version"]) for job in jobs] == [("rollback", 1), ("learn", 2)]


def test_who_goes_back_while_the_process_ends_stays_there(
    client: TestClient, model: ModelFolder
) -> None:
    give(client, "grün")
    job = ended(client, client.post("/api/jobs").json()["id"])
    assert client.post("/api/versions/1/restore").status_code == 204
    settle(model, Journal(model.folder), job["id"], "failed")
    assert model.current == 1
    assert client.get(f"/api/jobs/{job['id']}").json()["state"] == "done"


def test_learning_imports_nothing_from_where_the_server_was_started(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "random.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path / "photos")
    with opened(model.folder) as client:
        give(client, "grün")
        assert ended(client, client.post("/api/jobs").json()["id"])["state"] == "done"


def test_scripts_are_scripts_whatever_the_system_takes_them_for(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mimetypes, "_db", mimetypes.MimeTypes())
    mimetypes.add_type("text/plain", ".js")
    with opened(model.folder) as client:
        kind = client.get("/page/teach.js").headers["content-type"]
    assert kind.startswith("text/javascript")


def test_no_more_versions_stay_than_are_to_be_kept(model: ModelFolder) -> None:
    with opened(model.folder, keep=1) as client:
        give(client, "grün")
        assert ended(client, client.post("/api/jobs").json()["id"])["version"] == 2
        assert [one["number"] for one in client.get("/api/versions").json()] == [2]
    assert model.numbers() == [2]


def test_a_version_is_downloaded_and_loaded_elsewhere(
    client: TestClient, model: ModelFolder, tmp_path: Path
) -> None:
    (model.folder / "token").write_text("secret")
    answer = client.get("/api/versions/1/model.zip")
    assert "model-1.zip" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert {Path(name).parts[1] for name in archive.namelist()} == {"current", "versions"}
        archive.extractall(tmp_path / "elsewhere")
    learner = load(tmp_path / "elsewhere" / "model", device="cpu")
    assert learner.predict(coloured("blue", 1)[0])[0]["label"] == "blue"


def test_one_change_at_a_time_and_a_job_that_is_cancelled(
    client: TestClient, model: ModelFolder
) -> None:
    number = give(client, "grün")
    job = client.post("/api/jobs").json()["id"]
    for refused in (
        client.post("/api/jobs"),
        client.post("/api/versions/1/restore"),
        client.delete(f"/api/classes/{number}"),
        client.patch(f"/api/classes/{number}", json={"name": "grass"}),
    ):
        assert refused.status_code == 409
        assert refused.json()["message"].endswith((".",))
    assert client.post("/api/predict", content=png("red")).json()["version"] == 1
    assert client.delete(f"/api/jobs/{job}").status_code == 204
    assert ended(client, job)["state"] == "cancelled"
    assert waiting(client) == {"grün": 8}
    assert model.numbers() == [1]
    assert client.patch(f"/api/classes/{number}", json={"name": "grass"}).status_code == 204
    assert waiting(client) == {"grass": 8}


def test_a_learning_process_that_is_killed_is_found_out(
    client: TestClient, model: ModelFolder
) -> None:
    give(client, "grün")
    job = client.post("/api/jobs").json()["id"]
    os.kill(_worker_of(os.getpid()), signal.SIGKILL)
    found = ended(client, job)
    assert found["state"] == "failed"
    assert "The model is as it was" in found["message"]
    assert waiting(client) == {"grün": 8}
    assert model.current == 1


def _worker_of(parent: int) -> int:
    """The newest process that learns, among the children of this one: older ones may still be
    ending."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        # Another process may end while it is looked at.
        with suppress(FileNotFoundError, ProcessLookupError):
            words = path.read_text().rpartition(")")[2].split()
            command = (path.parent / "cmdline").read_bytes()
            if int(words[1]) == parent and b"engram.serve.worker" in command:
                found.append((int(words[19]), int(path.parent.name)))
    assert found, "no process learns"
    return max(found)[1]  # the first is when it was started


def test_what_the_budget_cannot_hold_is_said_and_waits_again(tmp_path: Path) -> None:
    model = ModelFolder(tmp_path / "model")
    small_learner(budget="2", holdout=0).learn(
        {name: coloured(name, 8) for name in ("red", "blue")}
    ).save(model.folder)
    with opened(model.folder) as client:
        give(client, "grün")
        found = ended(client, client.post("/api/jobs").json()["id"])
        assert found["state"] == "failed"
        assert "cannot hold one exemplar of each of the 3 classes" in found["message"]
        assert waiting(client) == {"grün": 8}
    assert model.numbers() == [1]


def test_a_restart_says_what_was_interrupted(model: ModelFolder) -> None:
    with opened(model.folder) as client:
        give(client, "grün")
    job = Journal(model.folder).begin_learning()
    with opened(model.folder) as client:
        found = client.get(f"/api/jobs/{job}").json()
        assert found["state"] == "interrupted"
        assert "Nothing is lost: learn again" in found["message"]
        assert waiting(client) == {"grün": 8}


def test_a_restart_finds_a_job_that_was_done(model: ModelFolder) -> None:
    with opened(model.folder) as client:
        give(client, "grün")
    job = Journal(model.folder).begin_learning()
    with model.changing():
        learner = load(model.folder, device="cpu").learn({"grün": coloured("grün", 8)})
        learner.add_to(model, source=Journal(model.folder).job(job).source)
    # As if it had been stopped just before the version became the current one.
    (model.folder / "current").write_text("1\n")
    with opened(model.folder) as client:
        assert client.get("/api/state").json()["version"] == 2
        found = client.get(f"/api/jobs/{job}").json()
        assert (found["state"], found["version"]) == ("done", 2)
        assert waiting(client) == {}


def test_a_process_whose_job_was_taken_away_changes_nothing(model: ModelFolder) -> None:
    with opened(model.folder) as client:
        give(client, "grün")
    journal = Journal(model.folder)
    job = journal.begin_learning()
    journal.end(job, "interrupted")
    worker.learn(model, journal, job, {}, "cpu", None)
    assert model.numbers() == [1]
    assert journal.job(job).state == "interrupted"


def test_a_job_that_fails_says_why(model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(model.folder) as client:
        give(client, "grün")
    journal = Journal(model.folder)
    job = journal.begin_learning()
    with model.changing():
        worker.learn(model, journal, job, {}, "cpu", None)
    assert journal.job(job).state == "failed"
    assert "Another process is changing" in journal.job(job).message
    job = journal.begin_learning()

    def breaks(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("engram.learner.Learner.learn", breaks)
    with pytest.raises(ZeroDivisionError):
        worker.learn(model, journal, job, {}, "cpu", None)
    assert journal.job(job).message.startswith("Something went wrong: ZeroDivisionError")
    assert [len(one.pictures) for one in journal.waiting()] == [8]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../etc", "A name cannot have '/' in it"),
        ("a\\b", "A name cannot have '\\\\' in it"),
        ("..", 'A name cannot have ".." in it'),
        ("a\x00b", "A name cannot have '\\x00' in it"),
        ("  ", "A class needs a name"),
        ("\u200b", "A class needs a name"),
        ("a\u200bb", "A name cannot have '\\u200b' in it"),
        ("cat\u202e", "A name cannot have '\\u202e' in it"),
        ("\u2066cat\u2069", "A name cannot have '\\u2066' in it"),
        ("\ufeffcat", "A name cannot have '\\ufeff' in it"),
        ("x" * 101, "A name may have 100 characters; this one has 101"),
        ("\u0300\u0316" * 10**6, "A name may have 100 characters; this one has 2,000,000"),
    ],
)
def test_names_that_are_refused(client: TestClient, name: str, message: str) -> None:
    number = give(client, "grün", count=0)
    for answer in (
        client.post("/api/classes", json={"name": name}),
        client.patch(f"/api/classes/{number}", json={"name": name}),
    ):
        assert answer.status_code == 400
        assert message in answer.json()["message"]
    assert waiting(client) == {"grün": 0}


def test_names_are_kept_as_they_are_meant(client: TestClient) -> None:
    joined = ["क्\u200cष", "\N{WOMAN}\u200d\N{ROCKET}"]
    for name in ("Cat", "cat", "  grüne   Tasse ", "gru\u0308n", "猫", "u\u0308" * 100, *joined):
        assert client.post("/api/classes", json={"name": name}).status_code == 201
    kept = ["Cat", "cat", "grüne Tasse", "grün", "猫", "ü" * 100, *joined]
    assert list(waiting(client)) == kept


def test_pictures_that_are_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    number = give(client, "grün", count=1)
    place = f"/api/classes/{number}/pictures"
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    large = io.BytesIO()
    Image.new("1", (8_000, 8_000)).save(large, "PNG")
    whole = png("grün")
    for content, status, message in (
        (b"", 400, "No picture came"),
        (b"<svg/>", 400, "cannot be read as an image"),
        (whole[: len(whole) // 2], 400, "cannot be read as an image"),
        (bomb.getvalue(), 400, "has more than 100,000,000 pixels"),
        (large.getvalue(), 400, "has more than 50,000,000 pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 400, "cannot be read"),
        (b"x" * 30_000_001, 413, "A request may have 30 MB; this one has more"),
    ):
        for address in (place, "/api/predict"):
            answer = client.post(address, content=content)
            assert (answer.status_code, message in answer.json()["message"]) == (status, True)
    for wrapped in ({"files": {"file": whole}}, {"json": {"picture": "data:..."}}):
        answer = client.post("/api/predict", **wrapped)
        assert answer.status_code == 400
        assert "Send the bytes of its file as the request's body" in answer.json()["message"]
    assert client.post("/api/classes/777/pictures", content=whole).status_code == 404
    assert waiting(client) == {"grün": 1}


def test_the_same_picture_waits_once(client: TestClient) -> None:
    number = give(client, "grün", count=2)
    first = client.post(f"/api/classes/{number}/pictures", content=png("grün", 0)).json()
    assert waiting(client) == {"grün": 2}
    assert client.get(f"/api/pictures/{first['id']}").headers["content-type"] == "image/png"
    assert client.delete(f"/api/pictures/{first['id']}").status_code == 204
    assert client.delete(f"/api/pictures/{first['id']}").status_code == 404
    assert client.get(f"/api/pictures/{first['id']}").status_code == 404
    assert waiting(client) == {"grün": 1}
    assert client.delete(f"/api/classes/{number}").status_code == 204
    assert client.delete(f"/api/classes/{number}").status_code == 404
    assert waiting(client) == {}
    # What is still on its way to a class that is gone does not end in another one.
    assert give(client, "grün", count=0) > number


def test_no_more_waits_than_may(model: ModelFolder) -> None:
    limits = Limits(waiting_pictures=3, waiting_classes=2)
    with opened(model.folder, limits=limits) as client:
        number = give(client, "grün", count=3)
        full = client.post(f"/api/classes/{number}/pictures", content=png("grün", 9))
        assert (full.status_code, "3 pictures wait already" in full.json()["message"]) == (
            413,
            True,
        )
        give(client, "red", count=0)
        full = client.post("/api/classes", json={"name": "blue"})
        assert (full.status_code, "2 classes wait already" in full.json()["message"]) == (413, True)
        # What waits already takes no room.
        assert give(client, "grün", count=3) == number


def test_no_more_bytes_wait_than_may(model: ModelFolder) -> None:
    with opened(model.folder, limits=Limits(waiting_bytes=1)) as client:
        number = give(client, "grün", count=1)
        full = client.post(f"/api/classes/{number}/pictures", content=png("grün", 9))
        assert full.status_code == 413
        assert "1 pictures wait already (0 MB), which is the most" in full.json()["message"]
        assert waiting(client) == {"grün": 1}


def test_no_more_classes_wait_than_may_whoever_makes_them(tmp_path: Path) -> None:
    journal, limits = Journal(tmp_path), Limits(waiting_classes=5)

    def made(number: int) -> bool:
        try:
            return journal.add_class(f"class {number}", limits) > 0
        except TooLargeError:
            return False

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(made, range(20))) == 5
    assert len(journal.waiting()) == 5


@pytest.mark.parametrize("content", [b'{"name": "' + b"x" * 30_000_000 + b'"}', b"[" * 30_000_001])
def test_more_than_a_request_may_have_is_refused_as_that(
    client: TestClient, content: bytes
) -> None:
    answer = client.post(
        "/api/classes", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    assert "A request may have 30 MB; this one has more" in answer.json()["message"]


@pytest.mark.parametrize(
    ("method", "address", "content", "status", "message"),
    [
        ("POST", "/api/jobs", None, 400, "There is nothing to learn"),
        ("POST", "/api/classes", b"{}", 422, "The request is not understood: body.name"),
        ("POST", "/api/classes", b"nonsense", 422, "The request is not understood"),
        ("POST", "/api/predict?top=0", b"x", 422, "query.top"),
        ("POST", "/api/versions/9/restore", None, 404, "has no version 9. Present: 1"),
        ("GET", "/api/versions/9/model.zip", None, 404, "has no version 9. Present: 1"),
        ("GET", "/api/jobs/9", None, 404, "There is no job 9"),
        ("DELETE", "/api/jobs/9", None, 404, "There is no job 9"),
        ("PATCH", "/api/classes/9", b'{"name": "x"}', 404, "There is no class 9"),
        ("GET", "/api/jobs/99999999999999999999", None, 422, "path.number"),
        ("GET", "/api/nothing", None, 404, "GET /api/nothing: Not Found. See /api/docs."),
        ("PUT", "/api/state", None, 405, "PUT /api/state: Method Not Allowed."),
    ],
)
def test_requests_that_are_refused(
    client: TestClient,
    method: str,
    address: str,
    content: bytes | None,
    status: int,
    message: str,
) -> None:
    answer = client.request(
        method, address, content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == status
    assert message in answer.json()["message"]


def test_before_anything_is_learnt(tmp_path: Path) -> None:
    with opened(tmp_path / "new") as client:
        state = client.get("/api/state").json()
        assert (state["version"], state["classes"], state["name"]) == (None, [], "new")
        assert client.get("/api/versions").json() == []
        answer = client.post("/api/predict", content=png("red"))
        assert (answer.status_code, answer.json()["message"]) == (
            404,
            "Nothing has been learnt yet.",
        )


def test_the_token_opens_and_nothing_else_does(model: ModelFolder) -> None:
    with opened(model.folder, token="secret") as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "engram-token=wröng"}):
            answer = client.get("/api/state", headers={k: v.encode() for k, v in headers.items()})
            assert answer.status_code == 401
            assert "needs its token" in answer.json()["message"]
        assert client.post("/api/session").status_code == 401
        # Nothing of what a stranger sends is looked at.
        assert client.post("/api/classes", content=b"nonsense").status_code == 401
        bearer = {"Authorization": "Bearer secret"}
        assert client.get("/api/state", headers=bearer).status_code == 200
        assert client.get("/").status_code == 200
        opened_session = client.post("/api/session", headers=bearer)
        cookie = opened_session.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert client.get("/api/state").status_code == 200
        client.cookies.clear()
        foreign = {"Cookie": 'x={"a":1}; flag; engram-token=secret'}
        assert client.get("/api/state", headers=foreign).status_code == 200


def test_other_sites_may_not_change_the_model(model: ModelFolder) -> None:
    elsewhere = {"Origin": "https://elsewhere.example"}
    with opened(model.folder, hosts=("testserver",)) as client:
        answer = client.post("/api/classes", json={"name": "x"}, headers=elsewhere)
        assert answer.status_code == 403
        assert "--allow-origin https://elsewhere.example" in answer.json()["message"]
        here = client.post(
            "/api/classes", json={"name": "x"}, headers={"Origin": "http://testserver"}
        )
        assert here.status_code == 201
        assert client.get("/api/state", headers=elsewhere).status_code == 403
        shown_there = {"Sec-Fetch-Site": "cross-site"}
        assert client.get("/api/versions/1/model.zip", headers=shown_there).status_code == 403
        assert client.get("/api/state", headers={"Origin": "http://[x"}).status_code == 403
        for host in ("elsewhere.example", "Elsewhere.Example:8000"):
            answer = client.get("/", headers={"Host": host})
            assert answer.status_code == 400
            assert "--allow-host elsewhere.example if it should" in answer.json()["message"]
    with opened(model.folder, hosts=("[::1]", "engram.example.org")) as client:
        for host in ("[::1]:8000", "engram.example.org", "Engram.Example.org:80"):
            assert client.get("/api/state", headers={"Host": host}).status_code == 200
        assert client.get("/api/state", headers={"Host": "[::2]"}).status_code == 400
    with opened(model.folder, origins=("https://elsewhere.example/",)) as client:
        answer = client.post("/api/classes", json={"name": "y"}, headers=elsewhere)
        assert answer.status_code == 201
        assert answer.headers["access-control-allow-origin"] == "https://elsewhere.example"


def test_what_is_documented(client: TestClient) -> None:
    paths = client.get("/api/openapi.json").json()["paths"]
    assert "/api/predict" in paths
    assert "image/*" in paths["/api/predict"]["post"]["requestBody"]["content"]
    page = client.get("/api/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for text in ("PATCH /api/classes/{number}", "from 1 to 1000, 5 if left out", "(image/png)"):
        assert text in page.text
    # Nothing in it runs, or comes from elsewhere.
    assert "<script" not in page.text
    assert "http" not in page.text
    assert client.get("/").status_code == 200
    for name in ("page.css", "page.js", "teach.js", "icon.svg"):
        assert client.get(f"/page/{name}").status_code == 200


@pytest.mark.parametrize("address", ["/", "/page/page.js", "/api/docs", "/api/state", "/api/no"])
def test_every_answer_forbids_the_browser_what_is_not_from_here(
    model: ModelFolder, address: str
) -> None:
    token = {"Authorization": "Bearer secret"}
    with opened(model.folder, token="secret", hosts=("testserver",)) as client:
        for headers in ({}, token, {"Host": "elsewhere.example"}):
            protective = client.get(address, headers=headers).headers
            assert protective["content-security-policy"].startswith("default-src 'self'; ")
            assert protective["x-content-type-options"] == "nosniff"
            assert protective["referrer-policy"] == "no-referrer"


def test_what_was_not_foreseen_is_told_in_one_line(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "waiting", lambda self: 1 / 0)
    with TestClient(create_app(model.folder), raise_server_exceptions=False) as client:
        answer = client.get("/api/state")
    assert answer.status_code == 500
    assert answer.json()["message"].startswith("Something went wrong: ZeroDivisionError.")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_who_comes_when_too_many_are_there_is_asked_to_come_again(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(model.folder, limits=Limits(requests=1)) as client:
        refused = []
        versions = Server.versions

        def meanwhile(server: Server) -> Any:
            refused.append(client.get("/api/state"))
            return versions(server)

        monkeypatch.setattr(Server, "versions", meanwhile)
        assert client.get("/api/versions").status_code == 200
        assert refused[0].status_code == 503
        assert "Try again in a moment" in refused[0].json()["message"]
        assert client.get("/api/state").status_code == 200


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_what_it_writes_is_for_its_owner_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "new") as client:
        give(client, "grün")
        with sqlite3.connect(tmp_path / "new" / "serve.sqlite") as reading:
            reading.execute("SELECT * FROM picture").fetchone()
            modes = {
                path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()
            }
        reading.close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert modes == dict.fromkeys(["serve.sqlite", "serve.sqlite-wal", "serve.sqlite-shm"], 0o600)


def test_pictures_that_were_learnt_leave_no_trace(model: ModelFolder) -> None:
    with opened(model.folder) as client:
        give(client, "grün")
    journal = Journal(model.folder)
    large = journal.add_class("large", Limits())
    for number in range(20):
        journal.add_picture(large, bytes([number]) * 100_000, number, Limits())
    assert on_disk(journal) > 2_000_000
    job = journal.begin_learning()
    journal.end(job, "done", version=1)
    assert not any(waiting.pictures for waiting in journal.waiting())
    assert on_disk(journal) < 100_000


def test_a_job_that_begins_or_fails_writes_no_picture_anew(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    large = journal.add_class("large", Limits())
    for number in range(20):
        journal.add_picture(large, bytes([number]) * 100_000, number, Limits())
    before = on_disk(journal)
    job = journal.begin_learning()
    assert journal.waiting()[0].pictures == ()
    assert len(journal.pictures_of(job)["large"]) == 20
    journal.end(job, "failed")
    assert len(journal.waiting()[0].pictures) == 20
    assert on_disk(journal) < before + 100_000


def test_a_class_that_is_made_again_while_it_is_learnt_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    number = journal.add_class("cat", Limits())
    first = journal.add_picture(number, b"1", 1, Limits())
    job = journal.begin_learning()
    assert journal.add_class("cat", Limits()) == number
    with pytest.raises(BusyError):
        journal.remove_class(number)
    with pytest.raises(NotThereError):
        journal.remove_picture(first)
    journal.end(job, "done", version=1)
    second = journal.add_picture(number, b"2", 2, Limits())
    assert [(one.name, one.pictures) for one in journal.waiting()] == [("cat", (second,))]
    # The next job takes it as it takes every class, once nobody makes it again.
    journal.end(journal.begin_learning(), "done", version=2)
    assert journal.waiting() == []


def test_an_empty_class_stays_whatever_becomes_of_the_others(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    cat, dog = (journal.add_class(name, Limits()) for name in ("cat", "dog"))
    picture = journal.add_picture(cat, b"1", 1, Limits())
    journal.end(journal.begin_learning(), "cancelled")
    journal.remove_picture(picture)
    journal.end(journal.begin_rollback(), "done", version=1)
    assert [one.name for one in journal.waiting()] == ["cat", "dog"]
    journal.add_picture(dog, b"1", 1, Limits())
    journal.end(journal.begin_learning(), "done", version=1)
    assert [one.name for one in journal.waiting()] == ["cat"]


def test_how_a_job_ended_is_recorded_when_the_disk_has_room_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(client, "grün")
    full = iter([True, True])
    end = Journal.end

    def ends(journal: Journal, *arguments: Any, **named: Any) -> None:
        if next(full, False):
            raise sqlite3.OperationalError("database or disk is full")
        end(journal, *arguments, **named)

    monkeypatch.setattr(Journal, "end", ends)
    monkeypatch.setattr("engram.serve.jobs.AGAIN", 0.01)
    job = client.post("/api/jobs").json()["id"]
    assert client.delete(f"/api/jobs/{job}").status_code == 204
    assert client.get(f"/api/jobs/{job}").json()["state"] == "cancelled"
    assert next(full, None) is None
    assert waiting(client) == {"grün": 8}


def on_disk(journal: Journal) -> int:
    """Bytes of the record, with what is not yet written into its place."""
    return sum(path.stat().st_size for path in journal.path.parent.glob("serve.sqlite*"))


def test_cancelling_what_has_ended_does_nothing(client: TestClient, model: ModelFolder) -> None:
    give(client, "grün")
    first = client.post("/api/jobs").json()["id"]
    client.delete(f"/api/jobs/{first}")
    second = client.post("/api/jobs").json()["id"]
    assert client.delete(f"/api/jobs/{first}").status_code == 204
    assert ended(client, second)["state"] == "done"
    assert model.numbers() == [1, 2]


def test_a_process_of_another_server_goes_on(model: ModelFolder) -> None:
    with opened(model.folder) as client:
        give(client, "grün")
    job = Journal(model.folder).begin_learning()
    with model.changing(), opened(model.folder) as client:
        assert client.get(f"/api/jobs/{job}").json()["state"] == "running"
        assert client.delete(f"/api/jobs/{job}").status_code == 204
        assert client.get(f"/api/jobs/{job}").json()["state"] == "cancelled"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": ""}, "The token is empty"),
        ({"token": "sécret"}, "The token has characters that browsers cannot send"),
        ({"origins": ("*",)}, r"\* is no origin"),
        ({"origins": ("example.org",)}, "example.org is no origin"),
    ],
)
def test_what_a_server_is_not_started_with(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        create_app(tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_what_keeps_a_server_from_starting(
    model: ModelFolder, engram: Command, tmp_path: Path
) -> None:
    words = ("serve", "model", "--port", "0", "--device", "cpu")
    with FileLock(model.folder / ".serve.lock"):
        assert engram(*words) == (
            2,
            "engram: Another engram serve has model open. Use that one, or end it.\n",
        )
    code, text = engram(*words, "--seed", "3")
    assert (code, "was made with seed 0, not 3" in text) == (2, True)
    code, text = engram(*words, "--budget", "much")
    assert (code, '"much" is not a budget' in text) == (2, True)
    code, text = engram(*words, "--allow-host", "https://example.org")
    assert (code, '"https://example.org" is no name of a computer' in text) == (2, True)
    code, text = engram(*words, "--host", "256.1.1.1")
    assert (code, "Nothing can be served at 256.1.1.1" in text) == (2, True)
    for port in ("99999", "-1"):
        code, text = engram("serve", "model", "--port", port, "--device", "cpu")
        assert (code, f"There is no port {port}. Choose a --port up to 65535" in text) == (2, True)
        assert ".." not in text
    code, text = engram("serve", "new", "--method", "nothing")
    assert (code, 'Unknown method "nothing"' in text) == (2, True)
    assert not (tmp_path / "new").exists()
    (model.path(1) / "version.json").write_text("{")
    code, text = engram(*words)
    assert (code, "version.json cannot be read" in text) == (2, True)


def test_a_disk_that_is_full_is_said(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Journal, name: str, limits: Limits) -> int:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Journal, "add_class", full)
    answer = client.post("/api/classes", json={"name": "red"})
    assert answer.status_code == 507
    assert "cannot be read or written: database or disk is full" in answer.json()["message"]


def test_a_damaged_record_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "serve.sqlite").write_bytes(b"no database at all, but long enough to be one" * 99)
    with pytest.raises(UserError, match=r"serve\.sqlite cannot be used: .* remove it"):
        create_app(tmp_path)


def test_what_may_change_holds_from_the_next_lesson_on(model: ModelFolder) -> None:
    with opened(model.folder) as client:
        give(client, "grün")
    journal = Journal(model.folder)
    changed = {"budget": "1MB", "holdout": 0.5}
    worker.learn(model, journal, journal.begin_learning(), changed, "cpu", None)
    learner = load(model.folder, device="cpu")
    assert (learner.budget, learner.holdout) == ("1MB", 0.5)
    assert [change.images for change in learner.changes_] == [1, 1, 4]


def test_what_may_not_change_ends_a_lesson(model: ModelFolder) -> None:
    with opened(model.folder) as client:
        give(client, "grün")
    journal = Journal(model.folder)
    job = journal.begin_learning()
    worker.learn(model, journal, job, {"seed": 3}, "cpu", None)
    assert journal.job(job).state == "failed"
    assert "was made with seed 0, not 3" in journal.job(job).message
    assert model.numbers() == [1]


def test_a_record_of_another_engram_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "serve.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(UserError, match="has format 99; this engram reads 2"):
        create_app(tmp_path)
