"""What a served model takes from strangers: how much, which files, and where it may write.

In a process of your own nothing is restricted unless a setting says so; under MLflow's scoring
server the settings have defaults, and paths are refused until `CDCD_SERVE_ROOT` names a folder.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = "CDCD_SERVE_ROOT"
"""Folder below which a request may name files to read and to write."""
DEFAULTS = {
    "CDCD_MAX_ROWS": 64,
    "CDCD_MAX_PICTURES": 64,
    "CDCD_MAX_SECONDS": 600,
    "CDCD_MAX_UPLOAD_MB": 64,
}
"""Limits of one request under the scoring server: rows, pictures, seconds of video, megabytes."""
# Formats of one file each: a playlist or a concatenation would name other files to be opened.
_AT_START = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"OggS",
    b"0&\xb2u\x8ef\xcf\x11",  # ASF, WMV
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
)
_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}


def is_served() -> bool:
    """Whether this process answers requests as MLflow's scoring server."""
    # Two signs, so that a renamed variable does not open the server.
    is_told = os.environ.get("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "").lower() == "true"
    return is_told or "mlflow.pyfunc.scoring_server.app" in sys.modules


@dataclass(frozen=True)
class Limits:
    """What one request may ask for; infinite where nothing bounds it."""

    rows: float
    pictures: float
    seconds: float
    upload_mb: float

    @classmethod
    def from_environment(cls) -> Limits:
        """The settings, or `DEFAULTS` where the model is served and infinity where it is not.

        Raises:
            ValueError: a setting is no positive number.
        """
        return cls(*map(_setting, DEFAULTS))

    def check_rows(self, num: int) -> None:
        """Refuse a request of too many rows, or of none.

        Raises:
            ValueError: as said; likewise below.
        """
        if num < 1:
            raise ValueError("the input must have at least one row: got none; give one")
        _check("CDCD_MAX_ROWS", self.rows, num, "rows", "ask in several requests")

    def check_pictures(self, num: int) -> None:
        """Refuse a request of too many pictures, over all rows."""
        _check("CDCD_MAX_PICTURES", self.pictures, num, "pictures", "ask in several requests")

    def check_seconds(self, seconds: float) -> None:
        """Refuse a request of too much video, over all rows."""
        _check("CDCD_MAX_SECONDS", self.seconds, seconds, "seconds of video", "cut the video")

    def check_upload(self, num_bytes: float) -> None:
        """Refuse files that are too large, over all rows."""
        _check("CDCD_MAX_UPLOAD_MB", self.upload_mb, num_bytes / 1e6, "MB of files", "send less")


def _setting(name: str) -> float:
    told = os.environ.get(name)
    if not told:
        return DEFAULTS[name] if is_served() else math.inf
    try:
        number = float(told)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise ValueError(
            f"{name} must be a positive number: got {told[:40]!r}; mend it, or unset it for "
            f"{DEFAULTS[name]}"
        )
    return number


def _check(name: str, most: float, asked: float, what: str, remedy: str) -> None:
    if asked > most:
        raise ValueError(
            f"a request may hold at most {most:g} {what} ({name}): got {asked:.6g}; {remedy}"
        )


def has_root() -> bool:
    """Whether `CDCD_SERVE_ROOT` names a folder that paths are kept in."""
    return bool(os.environ.get(ROOT))


def takes_paths() -> bool:
    """Whether a request may name files at all."""
    return has_root() or not is_served()


def is_guarded() -> bool:
    """Whether requests come from people who may see only some of this machine's files."""
    return has_root() or is_served()


def named_path(cell: Any, column: str, instead: str) -> Path:
    """The path in a cell, if a request may name it.

    Args:
        cell: a path; below `CDCD_SERVE_ROOT`, where that is set, and relative to it.
        column: its column, for the message.
        instead: what else can be asked for, for the message.

    Raises:
        ValueError: it is no path, leads out of the folder, or paths are not taken here.
    """
    if not isinstance(cell, str | Path) or not str(cell).strip():
        raise ValueError(f"{column} must be the path of a file: got {str(cell)[:40]!r}; give one")
    root = os.environ.get(ROOT)
    if root:
        base = Path(root).resolve()
        path = (base / cell).resolve()  # links are followed before it is judged
        if not path.is_relative_to(base):
            raise ValueError(
                f"{column} must lie below {ROOT} of this server: got {str(cell)[:100]!r}; name a "
                "file below it"
            )
        return path
    if is_served():
        raise ValueError(
            f"{column} must be no path: this server takes none, because {ROOT} is not set; "
            f"{instead}, or ask whoever runs it"
        )
    return Path(cell)


class NewFolders:
    """New folders for outputs, below `CDCD_SERVE_ROOT` where that is set; readable by us alone."""

    def __init__(self) -> None:
        self._made: list[Path] = []

    def new(self) -> Path:
        """Make one.

        Raises:
            OSError: there is no such folder, or it cannot be written to.
        """
        self._made.append(Path(tempfile.mkdtemp(prefix="cdcd-", dir=os.environ.get(ROOT) or None)))
        return self._made[-1]

    def remove(self) -> None:
        """Remove all that were made, with what is in them."""
        for folder in self._made:
            shutil.rmtree(folder, ignore_errors=True)


def decode_file(cell: Any, column: str) -> bytes:
    """The bytes of a file that came as base64; line breaks in it are fine.

    Raises:
        ValueError: it is no base64, or of nothing.
    """
    content = b""
    if isinstance(cell, str):
        try:
            content = base64.b64decode("".join(cell.split()), validate=True)
        except (binascii.Error, ValueError):
            content = b""
    if not content:
        raise ValueError(
            f"{column} must be the base64 of a file's bytes: got {str(cell)[:20]!r}"
            f"{'…' if len(str(cell)) > 20 else ''}; encode the whole file"
        )
    return content


def num_bytes(cell: Any) -> float:
    """How large a file in base64 is at most, without decoding it."""
    return len(cell) * 3 / 4 if isinstance(cell, str) else 0


def check_video_file(path: Path, column: str) -> None:
    """Refuse what is no video file by its first bytes, playlists above all.

    A decoder opens what a playlist names, and so would show one person another's files.

    Raises:
        ValueError: as said.
    """
    try:
        with path.open("rb") as file:
            start = file.read(400)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise ValueError(f"{column} must be a readable file: {reason}; check the path") from None
    is_avi = start[:4] == b"RIFF" and start[8:12] == b"AVI "
    is_transport = start[:1] == b"G" and start[188:189] == b"G"
    if not (start.startswith(_AT_START) or start[4:8] in _BOXES or is_avi or is_transport):
        raise ValueError(
            f"{column} must be a video file, such as an mp4: got none that is known by its first "
            "bytes; convert it to mp4"
        )
