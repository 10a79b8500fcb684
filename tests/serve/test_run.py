"""What `engram serve` prints, whom it lets in, and what it remembers of that."""

from __future__ import annotations

import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvicorn
from starlette.testclient import TestClient

from conftest import Command, coloured, small_learner
from engram.versions import ModelFolder

Serve = Callable[..., tuple[TestClient, str]]


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    learner = small_learner()
    for name in ("red", "blue"):
        learner.learn({name: coloured(name, 4)}).save(tmp_path / "model")
    return ModelFolder(tmp_path / "model")


@pytest.fixture
def serve(engram: Command, model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Starts the command as far as it can be asked without a network; also what it printed."""
    served: list[uvicorn.Server] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: served.append(server))
    monkeypatch.delenv("ENGRAM_TOKEN", raising=False)

    def start(*words: str) -> tuple[TestClient, str]:
        code, text = engram("serve", "model", "--port", "0", "--device", "cpu", *words)
        assert code == 0, text
        return TestClient(served[-1].config.app, base_url="http://localhost"), text

    return start


def lets_in(client: TestClient, token: str, host: str = "localhost") -> bool:
    headers = {"Authorization": f"Bearer {token}", "Host": host}
    return client.get("/api/state", headers=headers).status_code == 200


def shown_token(text: str) -> str | None:
    found = re.search(r"#token=(\S+)", text)
    return found and found[1]


def test_this_computer_alone_needs_no_token(serve: Serve, model: ModelFolder) -> None:
    client, text = serve()
    assert client.get("/api/state").status_code == 200
    assert client.get("/api/state", headers={"Host": "elsewhere.example"}).status_code == 400
    assert shown_token(text) is None
    assert not (model.folder / "token").exists()


def test_a_token_that_is_made_is_the_same_after_a_restart(serve: Serve, model: ModelFolder) -> None:
    client, text = serve("--host", "0.0.0.0")
    token = shown_token(text)
    assert token is not None
    assert not lets_in(client, "wrong")
    assert lets_in(client, token, "any.example")
    assert (model.folder / "token").stat().st_mode & 0o777 == 0o600
    again, text = serve("--host", "0.0.0.0")
    assert shown_token(text) == token
    assert lets_in(again, token)


def test_a_token_that_is_given_wins(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    serve("--host", "0.0.0.0")
    monkeypatch.setenv("ENGRAM_TOKEN", "secret")
    client, text = serve("--host", "0.0.0.0")
    assert lets_in(client, "secret")
    assert "secret" not in text
    assert shown_token(text) is None
    client, text = serve("--token", "given")
    assert lets_in(client, "given")
    assert not lets_in(client, "secret")
    assert shown_token(text) == "given"


def test_behind_a_proxy_it_answers_to_its_names_and_wants_the_token(serve: Serve) -> None:
    client, text = serve("--allow-host", "a.example", "--allow-host", "B.example")
    token = shown_token(text)
    assert token is not None
    for host in ("a.example", "b.example:443", "127.0.0.1:8000", "[::1]:8000"):
        assert lets_in(client, token, host)
        assert not lets_in(client, "", host)
    assert not lets_in(client, token, "c.example")


@pytest.mark.parametrize("header", ["X-Forwarded-For", "x-forwarded-proto", "Forwarded"])
def test_without_a_token_what_a_proxy_hands_on_is_refused(serve: Serve, header: str) -> None:
    told = {header: "192.0.2.1"}
    client, _ = serve()
    refused = client.get("/api/state", headers=told)
    assert (refused.status_code, "--allow-host" in refused.json()["message"]) == (403, True)
    client, _ = serve("--token", "given")
    allowed = client.get("/api/state", headers={**told, "Authorization": "Bearer given"})
    assert allowed.status_code == 200


def test_where_it_listens_everywhere_an_address_is_printed_too(serve: Serve) -> None:
    _, text = serve("--host", "0.0.0.0")
    name, *addresses = [urlsplit(found).hostname for found in re.findall(r"http://\S+", text)]
    assert name == socket.gethostname().lower()
    for address in filter(None, addresses):
        assert not ipaddress.ip_address(address).is_unspecified


def test_versions_that_will_go_are_told_beforehand(serve: Serve) -> None:
    assert "versions" not in serve()[1]
    text = serve("--keep-versions", "1")[1]
    assert "model has 2 versions; when another one is learnt, 1 stay." in text
    assert "versions;" not in serve("--keep-versions", "None")[1]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere nothing interrupts another process so")
def test_whoever_hangs_up_or_stalls_does_not_hold_it_up(model: ModelFolder) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "engram", "serve", str(model.folder), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as serving:
        assert serving.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)", serving.stdout.readline())
        assert found is not None, "the server did not start"
        address = ("127.0.0.1", int(found[1]))
        half = b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf"
        with socket.create_connection(address) as hung_up:
            hung_up.sendall(half)
        with socket.create_connection(address) as stalled:
            stalled.sendall(half)
            with socket.create_connection(address) as last:
                last.sendall(b"GET /api/state HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert last.recv(12) == b"HTTP/1.1 200"
            serving.send_signal(signal.SIGINT)
            _, errors = serving.communicate(timeout=60)
    assert "Traceback" not in errors
