"""The doctor's screen: short, complete, and right about what is missing."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdcd import cli, doctor, reachable
from cdcd.settings import SETTINGS


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS.keys() - {"MLFLOW_TRACKING_URI"}:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("installed", "rule", "holds"),
    [
        ("2.13.0+cpu", ">=2.13", True),
        ("2.12.9", ">=2.13", False),
        ("0.151.0", "<0.151", False),
        ("0.150.3", "<0.151", True),
        ("2.1", ">=2.0,<2.1", False),
        ("2.0.58", "<2.1,>=2.0", True),
        ("3.9.0", "", True),
    ],
)
def test_version_rules(installed: str, rule: str, holds: bool) -> None:
    assert doctor.satisfies(installed, rule) is holds


def test_the_screen_of_the_repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    text = doctor.report()
    assert len(text.splitlines()) <= 60
    assert max(map(len, text.splitlines())) <= 110
    words = (
        "python torch triton device: threads precision kernels: params: dvc: mlflow: model: disk: "
        "settings: reachable: spool: prefect: webhook: locks"
    )
    for word in words.split():
        assert word in text, word
    for key in (
        "codec.weights",
        "featurize.i3d_weights",
        "evaluate.vggish_weights",
        "codec.image.weights",
        "codec.text.weights",
        "evaluate.image.inception_weights",
        "evaluate.image.resnet_weights",
    ):
        assert f"{key}: not set; would enable" in text


def test_what_is_wrong_is_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = yaml.safe_load((root / "params.yaml").read_text())
    tree["codec"]["weights"] = "nowhere/vqvae.pth.tar"
    tree["schedules"] |= {"timezone": "Europe/Wien", "nightly": "0 2 * * *x"}
    tree["schedules"]["evaluate"] = "99 2 * * *"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    text = doctor.report()
    assert "codec.weights: nowhere/vqvae.pth.tar is MISSING" in text
    flat = " ".join(text.split())
    assert "schedules.timezone 'Europe/Wien' IS NO IANA NAME" in flat
    assert "schedules.nightly IS NO CRON ('0 2 * * *x'); use five fields or null" in flat
    assert "schedules.evaluate IS NO CRON ('99 2 * * *')" in flat
    assert "no pipeline here" in text
    assert "none trained on aist" in text
    (tmp_path / "params.yaml").write_text("train: 3")
    assert "params: params.yaml: " in doctor.report()


def test_a_trained_model_is_found(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text((root / "params.yaml").read_text())
    for folder, name in (("models", "model"), ("codecs", "codec")):
        (tmp_path / "data" / folder / "aist").mkdir(parents=True)
        (tmp_path / "data" / folder / "aist" / f"{name}.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert "data/models/aist and data/codecs/aist" in doctor.report()


def test_settings_are_named_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cdcd.settings.FILE", ".env")
    monkeypatch.setattr(doctor, "FILE", ".env")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ["CDCD_WEBHOK_URL"] = "hunter2"
    os.environ["PREFECT_API_AUTH_STRING"] = "hunter2"
    (tmp_path / ".env").write_text(
        "CDCD_WEBHOOK_URL=http://127.0.0.1:1/hunter2\n"
        "PREFECT_API_ULR=hunter2\nMLFLOW_TRACKING_TOKEN=hunter2\n"
    )
    text = doctor.report()
    flat = " ".join(text.split())
    assert "PREFECT_API_AUTH_STRING" in flat
    assert "CDCD_WEBHOOK_URL (.env)" in flat
    assert "CDCD_WEBHOK_URL IS UNKNOWN" in flat
    assert "PREFECT_API_ULR: IS PREFECT_API_URL MEANT?" in flat
    assert "MLFLOW_TRACKING_TOKEN" not in flat, "MLflow reads it"
    assert "webhook: 127.0.0.1:1 CANNOT BE REACHED (Connection refused)" in flat
    assert "hunter2" not in text


def test_a_broken_env_file_is_a_line_of_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cdcd.settings.FILE", ".env")
    (tmp_path / ".env").write_text("hunter2\n")
    assert cli.main(["doctor"]) == 0
    captured = capsys.readouterr()
    assert "CANNOT BE USED, and nothing below knows it: " in " ".join(captured.out.split())
    assert ".env:1: a line must be NAME=value" in " ".join(captured.out.split())
    assert "hunter2" not in captured.out + captured.err


def test_a_check_that_fails_costs_its_line_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise RuntimeError("over\ntwo lines")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reachable, "prefect", fail)
    text = doctor.report()
    assert "  a check FAILED: RuntimeError: over two lines\n" in text
    assert "  webhook: " in text


def test_servers_are_asked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Barrier(3, timeout=60)

    def wait(line: str) -> Any:
        gate.wait()
        return line

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reachable, "tracking", lambda wanted: [wait("mlflow: met")])
    monkeypatch.setattr(reachable, "prefect", lambda: wait("prefect: met"))
    monkeypatch.setattr(reachable, "webhook", lambda: wait("webhook: met"))
    assert doctor.report().count(": met") == 3
