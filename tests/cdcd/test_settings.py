"""`.env` fills gaps of the environment and never shows what it holds."""

from __future__ import annotations

import ast
import os
import re
import signal
from pathlib import Path

import pytest

from cdcd import cli
from cdcd.settings import (
    INTERNAL,
    SETTINGS,
    SettingsError,
    load_env,
    prefect_login,
    shown,
    webhook_url,
)
from flows.stage import guarded


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Restores what load_env adds as well.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in (*SETTINGS, "A", "B", "C", "D"):
        os.environ.pop(name, None)
    monkeypatch.setattr("cdcd.settings.FILE", ".env")


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# note\nA=1\nexport B='two words'\nC=\nD=4 # why\n")
    os.environ["A"] = "mine"
    assert load_env(tmp_path) == ["B", "D"]
    assert (os.environ["A"], os.environ["B"], os.environ["D"]) == ("mine", "two words", "4")
    assert "C" not in os.environ, "an empty value is no setting"


def test_without_a_file_nothing_happens(tmp_path: Path) -> None:
    assert load_env(tmp_path) == []


@pytest.mark.parametrize(
    "content", [b"A=1\nhunter2 is my password\n", b"A=\xff\xfe\n", b"A='x\n", b"A=x\0y\n"]
)
def test_a_broken_file_is_one_line_without_its_values(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(SettingsError, match=r"\.env") as caught:
        load_env(tmp_path)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_webhook_is_an_address_and_is_not_shown() -> None:
    assert webhook_url() is None
    os.environ["CDCD_WEBHOOK_URL"] = "https://example.org/secret"
    assert webhook_url() == "https://example.org/secret"
    for broken in ("file:///secret", "http://:80/secret", "http://host:secret/", "https://[secret"):
        os.environ["CDCD_WEBHOOK_URL"] = broken
        with pytest.raises(SettingsError, match="must begin with http") as caught:
            webhook_url()
        assert "secret" not in str(caught.value)


def test_the_example_shows_every_setting_and_sets_none(root: Path, tmp_path: Path) -> None:
    text = (root / ".env.example").read_text()
    shown = dict(re.findall(r"^#([A-Z0-9_]+)=(.*)$", text, re.MULTILINE))
    assert shown == {name: setting.example for name, setting in SETTINGS.items()}
    (tmp_path / ".env").write_text(text)
    assert load_env(tmp_path) == []
    (tmp_path / ".env").write_text(re.sub(r"^#(?=[A-Z0-9_]+=)", "", text, flags=re.MULTILINE))
    for name in SETTINGS:
        os.environ.pop(name, None)
    assert load_env(tmp_path) == sorted(SETTINGS)


def _read_names(file: Path) -> set[str]:
    """Variables of the environment that a file names: all of ours, and those it looks up."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and re.fullmatch(r"CDCD_[A-Z0-9_]+", str(node.value)):
            found.add(str(node.value))
        is_look_up = isinstance(node, ast.Call) and ast.unparse(node.func) == "os.environ.get"
        if is_look_up and isinstance(node.args[0], ast.Constant):
            found.add(node.args[0].value)
    return found


FOREIGN = {"MLFLOW_TRACKING_TOKEN", "AWS_PROFILE"}
"""Read, but only to tell where a login comes from."""


def test_every_setting_that_the_code_reads_is_listed(root: Path) -> None:
    names = {
        path: _read_names(path)
        for folder in ("cdcd", "flows", "kernels")
        for path in (root / folder).rglob("*.py")
    }
    read = {
        name
        for name in set().union(*names.values())
        if name.startswith(("CDCD_", "MLFLOW_", "PREFECT_", "AWS_"))
    }
    assert {"MLFLOW_TRACKING_URI", "PREFECT_API_AUTH_STRING", "CDCD_KERNELS"} <= read
    assert read - SETTINGS.keys() - INTERNAL - FOREIGN == set()
    ours = {name for name in SETTINGS if name.startswith("CDCD_")}
    del names[root / "cdcd" / "settings.py"]
    elsewhere = set().union(*names.values(), _read_names(root / "tests" / "conftest.py"))
    assert ours - elsewhere == {"CDCD_WEBHOOK_URL"}, "listed, and read by nothing"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://me:secret@host:5000/x?token=secret", "http://host:5000/x"),
        ("http://127.0.0.1:4200/api", "http://127.0.0.1:4200/api"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("http://[secret", "an address that cannot be read"),
    ],
)
def test_an_address_is_shown_without_what_is_secret(url: str, told: str) -> None:
    assert shown(url) == told


def test_prefects_login_is_what_its_client_sends() -> None:
    assert prefect_login() == {}
    os.environ["PREFECT_API_AUTH_STRING"] = "admin:pass"
    assert prefect_login() == {"Authorization": "Basic YWRtaW46cGFzcw=="}


def test_a_command_reads_the_file_of_the_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    (tmp_path / ".env").write_text("MLFLOW_TRACKING_URI=sqlite:////proc/no/mlflow.db\n")
    assert cli.main(["sync"]) == 1
    assert "got sqlite:////proc/no/mlflow.db" in capsys.readouterr().err
    (tmp_path / ".env").write_text("\n# note\n\nhunter2\n")
    assert cli.main(["sync"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"cdcd: {tmp_path / '.env'}:4: a line must be NAME=value")
    assert told.count("\n") == 1
    assert "hunter2" not in told


def test_a_stage_reads_the_file_of_the_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("CDCD_WEBHOOK_URL=http://127.0.0.1:9/x\n")
    seen = []
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        assert guarded(lambda: seen.append(webhook_url()), "train@aist") == 0
        (tmp_path / ".env").write_text("A=1\nB=2\nhunter2\n")
        assert guarded(lambda: pytest.fail("was called"), "train@aist") == 1
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert seen == ["http://127.0.0.1:9/x"]
    assert capsys.readouterr().err == (
        f"train@aist: {tmp_path / '.env'}:3: a line must be NAME=value or a comment: got something "
        "else (not shown, it may be a secret); mend it\n"
    )
