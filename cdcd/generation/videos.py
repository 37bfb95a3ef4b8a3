"""Music for many videos: a folder or a CSV of them in, a folder of results with an index out.

The index says of each video what it was, how its music was made and what came of it, so a second
run makes only what is missing or changed. A video that cannot be used is skipped with a reason.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from cdcd.data.files import is_disk_full, sha256_file
from cdcd.diffusion.sampler import SamplerConfig
from cdcd.features.text import shortened
from cdcd.generation.lists import (
    ListError,
    ResultFolder,
    read_csv,
    read_text,
    refuse_lines,
    whole_number,
)
from cdcd.generation.music import MusicGenerator

SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        *("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv"),
        *("ts", "webm", "wmv"),
    )
)
"""What counts as a video in a folder; whether it is one shows when it is read."""
COLUMNS = ("video", "out", "seed", "guidance", "truncation")
Format = Literal["mp4", "wav"]


@dataclass(frozen=True)
class Clip:
    """A video that shall get music.

    Attributes:
        path: where it is.
        name: what the list calls it; also in the index.
        file: of the result, in the folder of results.
        seed: of its music; None for the command's own. Likewise the others.
        guidance: weight of the condition.
        truncation: kept probability mass.
        line: where it stands in a CSV.
    """

    path: Path
    name: str
    file: str
    seed: int | None = None
    guidance: float | None = None
    truncation: float | None = None
    line: int | None = None


@dataclass(frozen=True)
class ClipList:
    """What a folder or CSV asks for; `num_blank` lines of it were left out."""

    source: Path
    clips: list[Clip]
    num_blank: int = 0


def read_clips(source: str | Path, out: str | Path, ending: Format = "mp4") -> ClipList:
    """The videos of a folder with all below it, or of a .csv.

    A result is named after its video, with the folders that it lies in; `dance.mp4` stays
    `dance.mp4`, any other kind keeps its ending: `dance.mov` becomes `dance.mov.mp4`. Hidden files
    and what lies in the folder of results are left out. A CSV has a column `video`, relative to the
    CSV, and may have `out`, `seed`, `guidance` and `truncation`, any of which may stay empty.

    Args:
        source: the folder or CSV.
        out: the folder of results.
        ending: of the results that do not say.

    Raises:
        ListError: it cannot be used as a whole.
    """
    source, out = Path(source), Path(out)
    if source.is_dir():
        found = ClipList(source, _in_folder(source, out, ending))
    elif source.suffix.lower() == ".csv":
        content = read_text(source, "videos")
        clips, num_blank = read_csv(
            source,
            content,
            lambda header: _check_header(source, header),
            lambda cells, line: _clip(cells, line, source.parent, ending),
        )
        found = ClipList(source, clips, num_blank)
    else:
        raise ListError(f"--videos must be a folder or a .csv: got {source}; check the path")
    if not found.clips:
        raise ListError(f"{source} must hold at least one video: got none; check the path")
    _refuse_doubles(found)
    return found


def _in_folder(folder: Path, out: Path, ending: Format) -> list[Clip]:
    results, place = out.resolve(), folder.resolve()
    if results == place:
        raise ListError(f"--out must differ from --videos: got {out}; choose another folder")
    clips = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        # A link to a file that is gone counts, so that it is told.
        is_one = path.is_file() or (path.is_symlink() and not path.exists())
        if path.suffix.lower() not in SUFFIXES or is_hidden or not is_one:
            continue
        is_result = results.is_relative_to(place) and (place / name).is_relative_to(results)
        if not is_result:
            clips.append(Clip(path, _utf8(name.as_posix()), _named_after(name, ending)))
    return clips


def _utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ListError(
            f"names of videos must be UTF-8: got {os.fsencode(name)!r}; rename it"
        ) from None
    return name


def _named_after(name: Path, ending: Format) -> str:
    kept = "" if name.suffix.lower() == ".mp4" else name.suffix
    return name.with_name(f"{name.stem}{kept}.{ending}").as_posix()


def _check_header(path: Path, header: list[str]) -> None:
    is_known = set(header) <= set(COLUMNS) and len(set(header)) == len(header)
    if not is_known or "video" not in header:
        raise ListError(
            f"{path}, line 1: columns must be video, and any of out, seed, guidance and "
            f"truncation: got {shortened(','.join(header))}; mend the header"
        )


def _clip(cells: dict[str, str], line: int, folder: Path, ending: Format) -> Clip:
    name = cells["video"].strip()
    if not name or "\0" in name:
        raise ValueError(f"video must be a path: got {shortened(cells['video'])}; fill it in")
    named = cells.get("out", "").strip()
    return Clip(
        folder / name,
        name,
        _result(named) if named else _named_after(Path(Path(name).name), ending),
        whole_number("seed", cells.get("seed", ""), 0, 2**63 - 1),
        _real_number("guidance", cells.get("guidance", "")),
        _real_number("truncation", cells.get("truncation", "")),
        line,
    )


def _result(named: str) -> str:
    path = PurePosixPath(named)
    is_inside = not path.is_absolute() and not any(part.startswith(".") for part in path.parts)
    if not is_inside or path.suffix.lower() not in {".mp4", ".wav"} or "\0" in named:
        raise ValueError(
            "out must be a .mp4 or .wav below the folder of results, without '..' and not hidden: "
            f"got {shortened(named)}; rename it"
        )
    return path.as_posix()


def _real_number(column: str, cell: str) -> float | None:
    if not cell.strip():
        return None
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{column} must be a number: got {shortened(cell)}; change it") from None


def _refuse_doubles(found: ClipList) -> None:
    """Two videos must not be written to one file, on any file system."""
    taken: dict[str, Clip] = {}
    problems: list[tuple[int, str]] = []
    for clip in found.clips:
        other = taken.setdefault(clip.file.casefold(), clip)
        if other is clip:
            continue
        if clip.line is None:
            raise ListError(
                f"{found.source} must hold one video for each result: {other.name} and {clip.name} "
                f"would both become {clip.file}; rename one, or list them in a .csv"
            )
        problems.append(
            (
                clip.line,
                f"out must be of one line alone: {clip.file} is also that of line {other.line}; "
                "fill in out",
            )
        )
    refuse_lines(found.source, problems)


@dataclass
class VideoFolder(ResultFolder):
    """Results with an index of them, which knows each before it is there."""

    KEY: ClassVar[str] = "videos"

    def is_whole(self, name: str) -> bool:
        """Whether a result is there as it was written."""
        path, size = self.path / name, self.entries[name].get("output_bytes")
        return path.is_file() and path.stat().st_size == size

    def is_ours(self, name: str) -> bool:
        """Whether a file may be written over: none is there, or it is as this program left it."""
        path = self.path / name
        if not path.exists():
            return True
        known = self.entries.get(name, {}).get("output_sha256")
        return known is not None and path.is_file() and known == sha256_file(path)


@dataclass(frozen=True)
class Filled:
    """What a run did: results written, results that were there already, videos and why not."""

    num_written: int = 0
    num_kept: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


def fill_videos(
    generator: MusicGenerator,
    found: ClipList,
    folder: VideoFolder,
    identity: dict[str, str],
    seed: int = 0,
    guidance: float | None = None,
    truncation: float | None = None,
    progress: bool = True,
) -> Filled:
    """Make what a folder lacks; whatever stops it, finished results stay and are in the index.

    Args:
        generator: makes the music.
        found: what the folder shall hold.
        folder: keeps what it has beside that.
        identity: of the model and its codec, because others make other music.
        seed: of those that do not say.
        guidance: likewise; None for the model's own.
        truncation: likewise.
        progress: show a bar with the time left.

    Raises:
        ListError: lines of a CSV break a rule.
        ValueError: the model cannot be given videos, or another process fills the folder.
    """
    generator.video_feature()  # what is wrong with the model is not wrong with each video
    planned = _planned(generator, found, identity, seed, guidance, truncation)
    with folder.held():
        missing = [(clip, entry) for clip, entry in planned if not _is_there(folder, clip, entry)]
        skipped: list[tuple[str, str]] = []
        with _bar(len(missing), progress) as begin:
            for clip, entry in missing:
                with begin() as on_window:
                    reason = _made(generator, clip, entry, folder, on_window)
                if reason is not None:
                    skipped.append((clip.name, reason))
        folder.flush()
    num_missing = len(missing)
    return Filled(num_missing - len(skipped), len(planned) - num_missing, skipped)


def _planned(
    generator: MusicGenerator,
    found: ClipList,
    identity: dict[str, str],
    seed: int,
    guidance: float | None,
    truncation: float | None,
) -> list[tuple[Clip, dict[str, Any]]]:
    """Each clip with what decides about its result, as it stands in the index."""
    planned: list[tuple[Clip, dict[str, Any]]] = []
    problems: list[tuple[int, str]] = []
    for clip in found.clips:
        try:
            config = generator.sampler(
                guidance if clip.guidance is None else clip.guidance,
                truncation if clip.truncation is None else clip.truncation,
            )
        except ValueError as error:
            if clip.line is None:
                raise
            problems.append((clip.line, str(error)))
            continue
        planned.append(
            (clip, _settings(clip, config, seed if clip.seed is None else clip.seed) | identity)
        )
    refuse_lines(found.source, problems)
    return planned


def _settings(clip: Clip, config: SamplerConfig, seed: int) -> dict[str, Any]:
    return {
        "video": clip.name,
        "file": clip.file,
        "seed": seed,
        "guidance": config.guidance,
        "truncation": config.truncation,
        "stride": config.stride,
    }


def _is_there(folder: VideoFolder, clip: Clip, entry: dict[str, Any]) -> bool:
    """Whether this very result, of this very video, is there."""
    known = folder.entries.get(clip.file)
    if known is None or known.get("status") != "ok" or not folder.is_whole(clip.file):
        return False
    if any(known.get(key) != value for key, value in entry.items()):
        return False
    try:
        times = _times(clip.path)
        if any(known.get(key) != value for key, value in times.items()):
            if known.get("sha256") != sha256_file(clip.path):
                return False
            known.update(times)  # touched or copied, and still the same
    except OSError:
        return False
    return True


def _times(path: Path) -> dict[str, int]:
    """What tells a changed file without reading it."""
    found = path.stat()
    return {"bytes": found.st_size, "modified_ns": found.st_mtime_ns}


def _made(
    generator: MusicGenerator,
    clip: Clip,
    entry: dict[str, Any],
    folder: VideoFolder,
    on_window: Callable[[int, int], None],
) -> str | None:
    """Make one result and note it; why not, where the video cannot be used."""
    from cdcd.media import MediaError

    before = folder.entries.get(clip.file, {})
    try:
        _make(generator, clip, entry, folder, on_window)
    except (ValueError, OSError) as error:
        is_written_wrong = isinstance(error, MediaError) and error.reason == "not_written"
        if is_disk_full(error) or is_written_wrong:
            raise
        reason = _reason(error, clip)
        # What was known of a file that is still there tells that it is ours.
        kept = {key: value for key, value in before.items() if key.startswith("output_")}
        folder.entries[clip.file] = {**entry, **kept, "status": "skipped", "reason": reason}
        folder.flush_now_and_then()
        return reason
    return None


def _make(
    generator: MusicGenerator,
    clip: Clip,
    entry: dict[str, Any],
    folder: VideoFolder,
    on_window: Callable[[int, int], None],
) -> None:
    target = folder.path / clip.file
    _check_place(folder, clip)
    read = _times(clip.path)
    digest = sha256_file(clip.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(clip.file.encode()).hexdigest()[:16]
    part = target.with_name(f".cdcd-{name}{target.suffix}")  # short: file systems limit names
    try:
        made = generator.generate_for_video(
            clip.path,
            part,
            seed=entry["seed"],
            guidance=entry["guidance"],
            truncation=entry["truncation"],
            progress=False,
            on_window=on_window,
        )
        if _times(clip.path) != read:
            raise ValueError(f"{clip.path} changed while it was read; run again")
        _check_place(folder, clip)  # it took a while
        # The index first: a file under this name is ours if and only if the index knows its sum.
        folder.entries[clip.file] = {
            **entry,
            **read,
            "sha256": digest,
            "status": "ok",
            "seconds": made["duration_seconds"],
            "output_bytes": part.stat().st_size,
            "output_sha256": sha256_file(part),
        }
        folder.flush()
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _check_place(folder: VideoFolder, clip: Clip) -> None:
    target = folder.path / clip.file
    if target.resolve() == clip.path.resolve():
        raise ValueError(f"{target} is the video itself; fill in out")
    if not folder.is_ours(clip.file):
        raise ValueError(f"{target} is not of this program, or was changed; move it away")


def _reason(error: Exception, clip: Clip) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{clip.path} must be a file: there is none; check the path"
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def _bar(total: int, is_shown: bool) -> Iterator[Callable[[], Any]]:
    """A bar over videos with the time left; what it gives opens each of them."""
    from tqdm import tqdm

    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} videos [{elapsed}<{remaining}]"
    is_off = not is_shown or total == 0
    with tqdm(total=total, desc="generate", bar_format=form, disable=is_off) as bar:

        @contextmanager
        def begin() -> Iterator[Callable[[int, int], None]]:
            share = 0.0

            def on_window(done: int, of: int) -> None:
                nonlocal share
                bar.update(done / of - share)
                share = done / of

            yield on_window
            bar.update(1 - share)

        yield begin
