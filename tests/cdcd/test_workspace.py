"""What is said of remotes, disks, locks and waiting runs."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cdcd import workspace
from cdcd.tracking.spool import Spool


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's folder, with a home of its own and no credentials."""
    (tmp_path / "repo" / ".dvc" / "tmp").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repo")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "SSH_AUTH_SOCK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "repo"


def _remote(here: Path, url: str, **more: str) -> str:
    options = "".join(f"    {key} = {value}\n" for key, value in {"url": url, **more}.items())
    (here / ".dvc" / "config").write_text(f"['remote \"store\"']\n{options}")
    (line,) = workspace.remotes(here)
    return line.removeprefix("remote store: ")


def test_remotes_are_read_as_dvc_writes_them(here: Path, tmp_path: Path) -> None:
    def dvc(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr

    config = here / ".dvc" / "config"
    config.write_text("[core]\n    no_scm = True\n")
    dvc("remote", "add", "--default", "near", str(tmp_path / "store"))
    dvc("remote", "add", "below", "../beside it")  # noted relative to .dvc
    config.write_text(config.read_text() + "['remote \"far\"']\n    url = s3://bucket/deep\n")
    secret = "['remote \"far\"']\n    secret_access_key = hunter2\n"
    config.with_name("config.local").write_text(secret)
    lines = list(workspace.remotes(here))
    assert lines[0] == f"remote near, the default: {tmp_path / 'store'}, made by the first push"
    assert lines[1] == f"remote below: {tmp_path / 'beside it'}, made by the first push"
    assert lines[2].startswith("remote far: s3://bucket/deep")
    assert len(lines) == 3
    assert "hunter2" not in "".join(lines)
    (tmp_path / "store").mkdir()
    assert next(workspace.remotes(here)).endswith("store, can be written")


def test_no_remote_and_a_default_that_is_none(here: Path) -> None:
    (line,) = workspace.remotes(here)
    assert line.startswith("remote: none; `dvc remote add -d")
    (here / ".dvc" / "config").write_text("[core]\n    remote = gone\n")
    assert "remote gone: IS THE DEFAULT BUT NOT SET" in next(workspace.remotes(here))
    (here / ".dvc" / "config").write_bytes(b"no section\n\xff")
    (line,) = workspace.remotes(here)
    assert line.startswith("remote: .dvc/config CANNOT BE READ")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("/proc/no", "/proc/no CANNOT BE WRITTEN (No such file or directory)"),
        ("file:///proc/no", "/proc/no CANNOT BE WRITTEN"),
        ("frob://x", "frob://x: frob:// IS NO KIND that DVC knows"),
        ("", "HAS NO URL"),
        ("gdrive://me:secret@x", "gdrive://x: NEEDS A PLUGIN; pip install dvc-gdrive"),
    ],
)
def test_a_remote_that_cannot_work(here: Path, url: str, words: str) -> None:
    assert _remote(here, url).startswith(words)


def test_logins_are_found_by_name(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace.importlib.util, "find_spec", lambda name: object())
    assert "NO LOGIN FOUND; set AWS_ACCESS_KEY_ID" in _remote(here, "s3://bucket")
    assert _remote(here, "s3://bucket", profile="me").endswith("login: an AWS profile")
    key = {"access_key_id": "a", "secret_access_key": "hunter2"}
    assert _remote(here, "s3://bucket", **key).endswith("login: access_key_id of the remote")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "a")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        assert _remote(here, "s3://bucket").endswith("(not asked); login: AWS_ACCESS_KEY_ID")
    known = tmp_path / "home" / ".aws" / "credentials"
    known.parent.mkdir(parents=True)
    known.touch()
    assert _remote(here, "s3://bucket").endswith(f"login: {known}")
    assert "NO KEY FOUND in ~/.ssh" in _remote(here, "ssh://me:hunter2@host/x")
    assert "hunter2" not in _remote(here, "ssh://me:hunter2@host/x")
    assert "ITS KEY /no IS MISSING" in _remote(here, "ssh://host/x", keyfile="/no")
    private = tmp_path / "home" / ".ssh" / "id_ed25519"
    private.parent.mkdir()
    private.touch()
    assert _remote(here, "ssh://host/x").endswith(f"login: {private}")


def test_disks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GB free" in workspace.disks(here)
    assert "LOW" not in workspace.disks(here)
    monkeypatch.setattr(workspace, "LOW", 1 << 62)
    assert "LOW" in workspace.disks(here)


def test_who_commits(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    subprocess.run(["git", "init", "--quiet"], check=True)
    assert len(list(workspace.git_identity(here))) == 2
    subprocess.run(["git", "config", "user.name", "me"], check=True)
    (line,) = workspace.git_identity(here)
    assert line.startswith("git: user.email IS NOT SET")


def test_runs_that_wait(here: Path, tmp_path: Path) -> None:
    (here / "dvc.yaml").touch()
    assert workspace.waiting_runs() == "spool: no run waits to be sent"
    root = here / "data" / "spool"
    for name in ("train", "generate"):
        Spool.new(root, name, "aist", {}, None).add("end", "FINISHED")
    Spool.new(root, "evaluate", "aist", {}, None)
    broken = Spool.new(root, "codec", "aist", {}, None)
    (broken.folder / "run.json").write_text("{")
    assert workspace.waiting_runs() == (
        "spool: runs: 2 WAIT; `cdcd sync` sends them, 1 still at work, 1 DAMAGED; look into "
        "data/spool"
    )


# Locks

FREE = ["locks: free; no pipeline and no DVC command is at work"]


def _rwlock(here: Path, write: Mapping[str, Any], read: Mapping[str, Any] | None = None) -> None:
    path = here / ".dvc" / "tmp" / "rwlock"
    path.write_text(json.dumps({"write": write, "read": read or {}}))


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_file_alone_is_no_lock(here: Path) -> None:
    assert list(workspace.locks(here)) == FREE
    lock = here / ".dvc" / "tmp" / "cdcd-pipeline.lock"
    lock.touch()
    (here / ".dvc" / "tmp" / "lock").touch()
    _rwlock(here, {}, {})
    assert list(workspace.locks(here)) == FREE
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert list(workspace.locks(here)) == [
            "locks: a pipeline is at work here; a second one answers `busy` (exit code 75)"
        ]
    assert list(workspace.locks(here)) == FREE


def test_looking_leaves_the_lock_to_others(here: Path) -> None:
    lock = here / ".dvc" / "tmp" / "cdcd-pipeline.lock"
    lock.touch()
    assert list(workspace.locks(here)) == FREE
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_a_killed_dvc_leaves(here: Path, dead: int) -> None:
    info = {"pid": dead, "cmd": "dvc repro train"}
    _rwlock(here, {"data/models": info}, {"data/tokens": [info]})
    assert list(workspace.locks(here)) == [
        f"locks: dvc repro train (PID {dead}) was killed; DVC removes its lock by itself"
    ]
    # The number of a killed DVC may have gone to another program.
    _rwlock(here, {"data/models": {"pid": os.getpid(), "cmd": "dvc repro train"}})
    (line,) = workspace.locks(here)
    assert f"HOLDS PATHS for PID {os.getpid()}" in line
    assert "remove the file while no DVC is at work" in line
    for damaged in ("", "{", "[]", '{"write": {"x": {"cmd": "dvc"}}}'):
        (here / ".dvc" / "tmp" / "rwlock").write_text(damaged)
        (line,) = workspace.locks(here)
        assert "rwlock IS DAMAGED" in line


def test_dvc_itself_agrees_about_its_locks(here: Path, dead: int) -> None:
    """A dead holder is let go with a warning, a damaged file stops every command."""
    dvc = [sys.executable, "-m", "dvc"]
    (here / ".dvc" / "config").write_text("[core]\n    no_scm = True\n")
    (here / "dvc.yaml").write_text("stages:\n  one:\n    cmd: echo 1 > out\n    outs: [out]\n")
    _rwlock(here, {str(here / "out"): {"pid": dead, "cmd": "dvc repro"}})
    done = subprocess.run([*dvc, "repro"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "had been killed. Auto removed it" in done.stdout + done.stderr
    assert list(workspace.locks(here)) == FREE
    (here / "out").unlink()
    (here / ".dvc" / "tmp" / "rwlock").write_text("")
    done = subprocess.run([*dvc, "repro"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    (line,) = workspace.locks(here)
    assert "rwlock IS DAMAGED" in line


def test_params_of_a_killed_run_with_changes(here: Path) -> None:
    (here / ".dvc" / "tmp" / "params-before.yaml").touch()
    (line,) = workspace.locks(here)
    assert line.startswith("locks: params.yaml IS OF A RUN WITH CHANGES that was killed")
