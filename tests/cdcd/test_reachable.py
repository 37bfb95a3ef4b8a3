"""What is said of servers and stores: good, asking for a login, broken, silent, hostile."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cdcd import reachable
from cdcd.settings import SETTINGS
from cdcd.tracking import ensure_store

LOGIN = "Basic " + base64.b64encode(b"me:secret").decode()
MODELS = {
    "registered_models": [
        {"name": "one", "aliases": [{"alias": "champion", "version": "3"}]},
        {"name": "two", "aliases": [{"alias": "candidate", "version": "1"}]},
        {"name": "three"},
    ]
}
GOOD = {
    "/api/2.0/mlflow/registered-models/search": MODELS,
    "/version": "3.17.2",
    "/api/admin/version": "3.8.8",
    "/api/flows/filter": [{"id": "f", "name": "nightly"}],
    "/api/deployments/filter": [
        {"flow_id": "f", "name": "cdcd", "paused": True},
        {"flow_id": "f", "name": "other"},
    ],
}


class Server(ThreadingHTTPServer):
    """Behaves as it is told: good, login, broken, silent, drips, page or odd."""

    daemon_threads = True
    mood = "good"
    asked: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        match self.server.mood:
            case "silent":
                time.sleep(20)
            case "drips":
                self.send_response(200)
                self.end_headers()
                for _ in range(100):
                    self.wfile.write(b" ")
                    time.sleep(0.1)
            case "login" if self.headers.get("Authorization") != LOGIN:
                self._send(401, b"")
            case "broken":
                self._send(500, b"trace")
            case "page":
                self._send(200, b"<html>hello</html>")
            case "odd":
                self._send(200, b'{"registered_models": [7], "x": "\\u0000"}')
            case _ if path in GOOD:
                value = GOOD[path]
                text = value if path == "/version" else json.dumps(value)
                self._send(200, str(text).encode())
            case _:
                self._send(404, b"{}")

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(reachable, "SECONDS", 0.5)
    running.mood, running.asked = "good", []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.url)
    monkeypatch.setenv("PREFECT_API_URL", f"{running.url}/api")
    monkeypatch.setenv("CDCD_WEBHOOK_URL", f"{running.url}/hook/secret")
    return running


def test_good_servers(server: Server) -> None:
    assert list(reachable.tracking(["one", "four"])) == [
        f"mlflow: {server.url}: answers, version 3.17.2",
        "registry: one@champion is version 3; three HAS NO CHAMPION; two HAS NO CHAMPION; "
        "four is not registered",
    ]
    assert reachable.prefect() == (
        f"prefect: {server.url}/api: answers, version 3.8.8; deployments nightly/cdcd (paused), "
        "nightly/other"
    )
    asked = len(server.asked)
    host = server.url.removeprefix("http://")
    assert reachable.webhook() == f"webhook: {host} takes connections (nothing was sent)"
    assert len(server.asked) == asked


def test_a_server_of_another_version_is_told(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GOOD, "/version", "2.9.0")
    (first, _) = reachable.tracking()
    assert first.endswith(", ANOTHER)")
    assert "version 2.9.0 (here: " in first


def test_a_login_is_asked_for_and_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.mood = "login"
    (line,) = reachable.tracking()
    assert "ASKS FOR A LOGIN (401); set MLFLOW_TRACKING_USERNAME" in line
    assert "ASKS FOR A LOGIN (401); set PREFECT_API_AUTH_STRING" in reachable.prefect()
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:secret")
    assert "answers" in reachable.prefect()
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        assert "answers" in next(reachable.tracking())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url.replace("//", "//me:secret@"))
    assert next(reachable.tracking()) == f"mlflow: {server.url}: answers, version 3.17.2"


@pytest.mark.parametrize(
    ("mood", "mlflow", "prefect"),
    [
        ("broken", "ANSWERS WITH AN ERROR (500)", "ANSWERS WITH AN ERROR (500)"),
        ("page", "IS NO MLFLOW SERVER (status 200)", "IS NO PREFECT API (status 200)"),
        ("silent", "DOES NOT ANSWER (no answer within", "DOES NOT ANSWER (no answer within"),
        ("drips", "DOES NOT ANSWER (no answer within", "DOES NOT ANSWER (no answer within"),
        ("odd", "answers", "IS NO PREFECT API"),
    ],
)
def test_servers_that_are_not_well(server: Server, mood: str, mlflow: str, prefect: str) -> None:
    server.mood = mood
    started = time.monotonic()
    assert mlflow in next(reachable.tracking())
    assert prefect in reachable.prefect()
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://127.0.0.1:1", "DOES NOT ANSWER (Connection refused); start its server"),
        ("http://me:secret@127.0.0.1:1/", "DOES NOT ANSWER (Connection refused)"),
        ("http://127.0.0.1:99999", "DOES NOT ANSWER"),
        ("http://no.such.host.invalid", "DOES NOT ANSWER"),
        ("http://[secret", "IS NO ADDRESS"),
        ("http://", "DOES NOT ANSWER"),
        ("http://a b/\n", "DOES NOT ANSWER"),
        ("htp://x", "IS NO STORE that MLflow knows; mend MLFLOW_TRACKING_URI or unset it"),
        ("postgresql://me:secret@host/db", "not looked at; `cdcd sync` tells"),
        ("sqlite:////proc/no/x.db", "CANNOT BE CREATED (No such file or directory)"),
        ("sqlite:////proc", "CANNOT BE OPENED"),
    ],
)
def test_wrong_addresses_are_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch, uri: str, words: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (line,) = reachable.tracking()
    assert words in line
    assert "secret" not in line
    if uri.startswith("http"):
        monkeypatch.setenv("PREFECT_API_URL", uri)
        monkeypatch.setenv("CDCD_WEBHOOK_URL", uri)
        assert "DOES NOT ANSWER" in reachable.prefect()
        told = reachable.webhook()
        assert "CANNOT BE REACHED" in told or "must begin with http" in told
        assert "secret" not in told + reachable.prefect()


def test_what_is_not_set_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.delenv("CDCD_WEBHOOK_URL")
    assert "PREFECT_API_URL is not set; stages run plainly" in reachable.prefect()
    assert "CDCD_WEBHOOK_URL is not set; nobody is told" in reachable.webhook()
    assert list(reachable.others()) == []


# SQLite


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store that the installed MLflow made, with two models."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        ensure_store()
    with sqlite3.connect(path) as database:
        database.executemany(
            "INSERT INTO registered_models (name, workspace) VALUES (?, 'default')"
            if _has_workspaces(database)
            else "INSERT INTO registered_models (name) VALUES (?)",
            [("one",), ("two",)],
        )
        database.execute(
            "INSERT INTO registered_model_aliases (name, alias, version) "
            "VALUES ('one', 'champion', 7)"
        )
    database.close()
    return path.read_bytes()


def _has_workspaces(database: sqlite3.Connection) -> bool:
    columns = database.execute("PRAGMA table_info(registered_models)")
    return "workspace" in {row[1] for row in columns}


@pytest.fixture
def store(made: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "own" / "mlflow.db"
    path.parent.mkdir()
    path.write_bytes(made)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    return path


def test_a_store_of_this_mlflow_is_fine(store: Path) -> None:
    before = store.read_bytes()
    first, second = reachable.tracking(["one"])
    assert first.startswith(f"mlflow: sqlite:///{store}: ")
    assert first.endswith(" MB, can be written")
    assert second == "registry: one@champion is version 7; two HAS NO CHAMPION"
    assert store.read_bytes() == before


def test_a_store_that_only_pretends_to_be_writable_is_told(store: Path) -> None:
    command = ["chattr", "+i", str(store)]
    if shutil.which("chattr") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("only root can make a file immutable, and not on every file system")
    try:
        (line,) = reachable.tracking()
    finally:
        subprocess.run(["chattr", "-i", str(store)], check=True)
    assert "is READ-ONLY" in line


def test_a_champion_whose_files_are_missing_is_told(store: Path, tmp_path: Path) -> None:
    place = tmp_path / "some files"
    with contextlib.closing(sqlite3.connect(store)) as database:
        database.execute(
            "INSERT INTO model_versions (name, version, storage_location) VALUES ('one', 7, ?)",
            [place.as_uri()],
        )
        database.commit()
    _, told = reachable.tracking()
    assert f"one@champion is version 7, whose FILES ARE MISSING ({place}); bring them back" in told
    place.mkdir()
    _, told = reachable.tracking()
    assert told == "registry: one@champion is version 7; two HAS NO CHAMPION"


def test_a_store_that_is_not_there_yet_is_not_made(store: Path) -> None:
    store.unlink()
    (line,) = reachable.tracking()
    assert line.endswith("created by the first run")
    assert list(store.parent.iterdir()) == []


def _change(statement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with sqlite3.connect(path) as database:
            database.execute(statement)
        database.close()

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_change("UPDATE alembic_version SET version_num = 'fff'"), "does not know (fff): a newer"),
        (
            _change("UPDATE alembic_version SET version_num = '451aebb31d03'"),
            "HAS AN OLDER SCHEMA (451aebb31d03); copy the file, then `mlflow db upgrade sqlite",
        ),
        (_change("DROP TABLE alembic_version"), "IS NO STORE OF MLFLOW"),
        (lambda path: path.write_bytes(b""), "empty; the first run fills it"),
        (lambda path: path.write_bytes(b"no database" * 100), "CANNOT BE USED (file is not a"),
    ],
)
def test_stores_that_cannot_be_used(store: Path, change: Callable[[Path], Any], words: str) -> None:
    change(store)
    (line,) = reachable.tracking()
    assert words in line
    assert "\n" not in line


def test_a_locked_store_is_told_within_seconds(store: Path) -> None:
    other = sqlite3.connect(store, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        (line,) = reachable.tracking()
    finally:
        other.close()
    assert "is LOCKED by another process for over a second; runs are kept in data/spool" in line


# What is set and has no server of its own


def test_settings_of_clusters_serving_and_weights(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CDCD_MLFLOW_UI", server.url)
    monkeypatch.setenv("CDCD_CLUSTER", server.url.replace("http", "tcp"))
    monkeypatch.setenv("CDCD_SERVE_ROOT", str(tmp_path))
    monkeypatch.setenv("CDCD_I3D_WEIGHTS", str(tmp_path / "none.pt"))
    monkeypatch.setenv("CDCD_MAX_ROWS", "0")
    monkeypatch.setenv("CDCD_MAX_SECONDS", "600")
    monkeypatch.setenv("CDCD_TRAIN_PROCESSES", "two")
    assert [line.partition(": ")[0::2] for line in reachable.others()] == [
        ("CDCD_MLFLOW_UI", f"{server.url}: answers"),
        ("CDCD_CLUSTER", f"{server.url.replace('http', 'tcp')}: takes connections"),
        ("CDCD_SERVE_ROOT", f"{tmp_path}: can be written"),
        ("CDCD_I3D_WEIGHTS", f"{tmp_path / 'none.pt'}: IS MISSING; mend or unset it"),
        ("CDCD_TRAIN_PROCESSES", "two IS NO WHOLE NUMBER from 1 on; mend or unset it"),
        ("CDCD_MAX_ROWS", "0 IS NO WHOLE NUMBER from 1 on; mend or unset it"),
    ]
    monkeypatch.setenv("CDCD_CLUSTER", "tcp://127.0.0.1:1")
    monkeypatch.setenv("CDCD_SERVE_ROOT", "/proc/no")
    lines = list(reachable.others())
    assert "CANNOT BE REACHED (Connection refused)" in lines[1]
    assert "IS NO FOLDER" in lines[2]


def test_what_takes_too_long_is_left() -> None:
    started = time.monotonic()
    assert reachable.within(lambda: time.sleep(30) or "late", "in time", 0.1) == "in time"
    assert time.monotonic() - started < 10
    assert reachable.within(lambda: "done", "late", 10) == "done"


def test_a_folder_is_written_to_and_left_as_it_was(tmp_path: Path) -> None:
    assert reachable.cannot_write(tmp_path / "new" / "deep") is None
    assert list(tmp_path.iterdir()) == []
    assert reachable.cannot_write(Path("/proc/no")) == "No such file or directory"
    (tmp_path / "file").touch()
    assert reachable.cannot_write(tmp_path / "file") == "Not a directory"


def test_a_port_that_takes_no_connections_is_told() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert reachable.cannot_connect("127.0.0.1", port) is None
    assert reachable.cannot_connect("127.0.0.1", port) == os.strerror(111)
