"""What a request may name and how much it may hold."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest

from cdcd.requests import (
    DEFAULTS,
    Limits,
    NewFolders,
    check_video_file,
    decode_file,
    is_served,
    named_path,
    takes_paths,
)


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*DEFAULTS, "CDCD_SERVE_ROOT", "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)


def test_a_server_is_known_by_either_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_served()
    assert takes_paths()
    name = "mlflow.pyfunc.scoring_server.app"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, name, ModuleType(name))
        assert is_served()
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    assert is_served()
    assert not takes_paths()
    monkeypatch.setenv("CDCD_SERVE_ROOT", "here")
    assert takes_paths()


def test_limits_have_defaults_where_strangers_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Limits.from_environment() == Limits(*[math.inf] * 4)
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    assert Limits.from_environment() == Limits(*DEFAULTS.values())
    monkeypatch.setenv("CDCD_MAX_SECONDS", "0.5")
    limits = Limits.from_environment()
    limits.check_seconds(0.5)
    with pytest.raises(ValueError, match=r"at most 0\.5 seconds"):
        limits.check_seconds(0.51)
    for wrong in ("nan", "-1", "many"):
        monkeypatch.setenv("CDCD_MAX_SECONDS", wrong)
        with pytest.raises(ValueError, match=f"must be a positive number: got '{wrong}'"):
            Limits.from_environment()


def test_no_path_leads_out_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "up").symlink_to(tmp_path)
    (tmp_path / "root-of-another").mkdir()
    monkeypatch.setenv("CDCD_SERVE_ROOT", str(root))
    for inside in ("a", "deep/../a", str(root / "a"), Path("a")):
        assert named_path(inside, "out", "") == root / "a"
    for outside in ("..", "../a", "/etc/passwd", "up/a", "deep/../../a", "../root-of-another/a"):
        with pytest.raises(ValueError, match="out must lie below CDCD_SERVE_ROOT"):
            named_path(outside, "out", "")
    with pytest.raises(ValueError, match="null"):
        named_path("a\0b", "out", "")


def test_new_folders_are_private_and_can_be_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDCD_SERVE_ROOT", str(tmp_path))
    folders = NewFolders()
    made = folders.new()
    (made / "file").touch()
    assert made.parent == tmp_path
    assert os.stat(made).st_mode & 0o077 == 0  # noqa: PTH116
    folders.remove()
    assert not made.exists()


@pytest.mark.parametrize("text", ["", "=", "AA=A", "ä", "AAAA!", " \n"])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be the base64 of a file's bytes"):
        decode_file(text, "video_base64")


KINDS = [("mp4", "mpeg4"), ("mov", "mpeg4"), ("matroska", "mpeg4"), ("webm", "libvpx"),
         ("avi", "mpeg4"), ("mpegts", "mpeg2video"), ("mpeg", "mpeg1video"), ("flv", "flv"),
         ("asf", "wmv2"), ("ogg", "libtheora")]  # fmt: skip


@pytest.mark.parametrize(("kind", "codec"), KINDS)
def test_every_container_of_videos_is_known(tmp_path: Path, kind: str, codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg writes no {codec}")
    path = tmp_path / "video"
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    check_video_file(path, "video")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"#EXTM3U\n/secret.mp4",
        b"ffconcat version 1.0\nfile secret.mp4",
        b"<MPD>",
        b"RIFFxxxxWAVE",
    ],
)
def test_what_names_other_files_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="video must be a video file, such as an mp4"):
        check_video_file(path, "video")
    path.unlink()
    with pytest.raises(ValueError, match="video must be a readable file: no such file"):
        check_video_file(path, "video")
