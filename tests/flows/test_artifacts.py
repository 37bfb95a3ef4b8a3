"""The contact sheet of a dataset's results."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from flows.artifacts import SHEET_SIDE, contact_sheet


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "metrics").mkdir(parents=True)
    (tmp_path / "data" / "generated" / "aist" / "previews").mkdir(parents=True)
    return tmp_path / "data"


def _picture(markdown: str | None) -> Image.Image:
    found = re.fullmatch(r"!\[aist\]\(data:image/png;base64,([\w+/=]+)\)", markdown or "")
    assert found, markdown
    return Image.open(io.BytesIO(base64.b64decode(found[1])))


def test_the_best_picture_there_is_and_small_enough_for_a_database(workspace: Path) -> None:
    assert contact_sheet("aist") is None
    Image.new("RGB", (30, 20)).save(workspace / "metrics" / "aist.png")
    assert _picture(contact_sheet("aist")).size == (30, 20)
    previews = workspace / "generated" / "aist" / "previews"
    Image.new("RGB", (50, 40)).save(previews / "a_spectrogram.png")
    assert _picture(contact_sheet("aist")).size == (50, 40)
    Image.new("RGBA", (4 * SHEET_SIDE, SHEET_SIDE)).save(previews / "samples.png")
    assert _picture(contact_sheet("aist")).size == (SHEET_SIDE, SHEET_SIDE // 4)


def test_a_broken_picture_does_not_fail_the_run(workspace: Path) -> None:
    (workspace / "metrics" / "aist.png").write_bytes(b"no picture")
    assert contact_sheet("aist") is None
