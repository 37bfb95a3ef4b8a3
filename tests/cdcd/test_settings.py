"""`.env` fills gaps of the environment and never shows what it holds."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cdcd.settings import SETTINGS, SettingsError, load_env, webhook_url


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Restores what load_env adds as well.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in (*SETTINGS, "A", "B", "C", "D"):
        os.environ.pop(name, None)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# note\nA=1\nexport B='two words'\nC=\nD=4 # why\n")
    os.environ["A"] = "mine"
    assert load_env(tmp_path) == ["B", "D"]
    assert (os.environ["A"], os.environ["B"], os.environ["D"]) == ("mine", "two words", "4")
    assert "C" not in os.environ, "an empty value is no setting"


def test_without_a_file_nothing_happens(tmp_path: Path) -> None:
    assert load_env(tmp_path) == []


@pytest.mark.parametrize("content", [b"A=1\nhunter2 is my password\n", b"A=\xff\xfe\n", b"A='x\n"])
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
    os.environ["CDCD_WEBHOOK_URL"] = "file:///secret"
    with pytest.raises(SettingsError, match="must begin with http") as caught:
        webhook_url()
    assert "secret" not in str(caught.value)


def test_the_example_names_every_setting_and_sets_none(root: Path, tmp_path: Path) -> None:
    text = (root / ".env.example").read_text()
    assert set(SETTINGS) <= set(re.findall(r"^#([A-Z_]+)=", text, re.MULTILINE))
    (tmp_path / ".env").write_text(text)
    assert load_env(tmp_path) == []
