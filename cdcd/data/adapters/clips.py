"""Clips that were cut beforehand, in D2M-GAN's layout, for AIST++ and TikTok Dance-Music.

```
<root>[/aist|/tiktok]/audio_s2/[train|val|test/]<stem>_seg1.wav     2 s; audio_s6/ for 6 s
                      motion_s2/[train|val|test/]<stem>_seg1.npy
                      video_s2/[train|val|test/]<stem>_seg1.npy     features [1, 2048], optional
<root>[/dataset|/data]/{aist,tiktok}_{audio,motion,video}_{train,val,test}_segment[_s6].txt
```

The published lists are shuffled and aligned line by line. Only the stem of a line counts, and the
three kinds of files are joined by stem, so the order of the lines does not matter. Without lists
the folders `train`, `val` and `test` say the split.
"""

from __future__ import annotations

import re
import struct
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cdcd.data.adapters import aist, dance
from cdcd.data.adapters.base import (
    Expected,
    Finding,
    Options,
    Source,
    check_unchanged,
    decoders,
    is_file,
    read_bytes,
    read_through,
    sha256_bytes,
)
from cdcd.data.arrays import ArrayFileError, UnsafeArrayError, parse_npy
from cdcd.data.files import sha256_file
from cdcd.data.manifest import Record, SkipItem
from cdcd.data.samples import (
    BODY_25,
    GENRES,
    SAMPLE_RATE_HZ,
    SMPL,
    SPLITS,
    MotionKind,
    Sample,
    safe_key,
)

LENGTHS = (2, 6)
"""Seconds of the clips that were published."""
TOLERANCE_SECONDS = 0.1
MODALITIES = {"audio": ".wav", "motion": ".npy", "video": ".npy"}

TIKTOK_LICENCE = (
    "TikTok Dance-Music is published without a licence; videos and music belong to their creators "
    "and platforms: for research only, neither they nor clips derived from them may be passed on. "
    "OpenPose, which made the key points, is for academic and non-commercial use"
)
TIKTOK_SHORT_LICENCE = "no licence stated: research only, not to be passed on"
WHERE_TIKTOK = "the lists and archives are linked from the README of L-YeZhu/D2M-GAN"

_SEGMENT = re.compile(r"(.+)_seg([0-9]{1,6})")
_TIKTOK_NAME = re.compile(r"([0-9]{6})_([0-9]{1,6})_([0-9]{1,6})")


def tiktok_song(stem: str) -> str:
    """Return the music of `000007_7_188`: its second field; the first one is shared by splits.

    Raises:
        SkipItem: unsupported_name.
    """
    match = _TIKTOK_NAME.fullmatch(stem)
    if match is None:
        raise SkipItem(
            "unsupported_name",
            "a TikTok name must look like 000007_7_188 (group, music, video): got " + repr(stem),
        )
    return str(int(match[2]))


def read_stems(path: Path) -> list[str]:
    """Read the stem of every line of a list: folders of any system, CRLF, blanks do not matter."""
    text = read_bytes(path).decode("utf-8-sig", errors="replace")
    stems = []
    for line in text.splitlines():
        name = line.strip().replace("\\", "/").rsplit("/", 1)[-1]
        stem, dot, suffix = name.rpartition(".")
        # Only a real suffix is one: the rest of the name is the user's.
        stems.append(stem if dot and suffix.lower() in _SUFFIXES else name)
    return [stem for stem in stems if stem]


_SUFFIXES = frozenset({"json", "mkv", "mov", "mp3", "mp4", "npy", "wav", "webm"})


@dataclass(frozen=True)
class Listed:
    """One name of the lists; `duplicate_of` is the split that has it already."""

    name: str
    split: str
    duplicate_of: str | None = None


def list_once(names: Mapping[str, set[str]]) -> list[Listed]:
    """List names by split, sorted.

    A name of two splits stays where it is held out (test before val before train), so that it is
    never trained on; the other entry is marked as a duplicate.
    """
    first: dict[str, str] = {}
    listed = []
    for split in reversed(SPLITS):
        for name in sorted(names.get(split, ())):
            listed.append(Listed(name, split, first.get(name)))
            first.setdefault(name, split)
    return sorted(listed, key=lambda item: (item.name, item.duplicate_of is not None, item.split))


def check_songs(songs: Mapping[str, set[str]]) -> Finding:
    """Say whether a song is trained on and held out; ingest and the datasheet tell it too."""
    held_out = songs.get("val", set()) | songs.get("test", set())
    if leaked := sorted(songs.get("train", set()) & held_out):
        shown = ", ".join(leaked[:5])
        return Finding(
            False, f"songs: {len(leaked)} in train and held out ({shown}); take the published lists"
        )
    return Finding(True, "songs: none is both in train and held out")


def require_readable(source: ListedSource, parameter: str) -> None:
    """Refuse a download whose lists cannot be read.

    Raises:
        ValueError: one line that names the parameter.
    """
    try:
        source.names()
    except SkipItem as error:
        raise ValueError(
            f"{parameter} must hold readable lists: {error.detail}; mend its rights or copy it "
            "again"
        ) from None


def check_wav(path: Path, what: str) -> float:
    """Return the seconds of sound in a file that is not decoded.

    Args:
        path: the file.
        what: how messages name it.

    Raises:
        SkipItem: unreadable_audio, no_audio_stream, or length_mismatch where the header promises
            more than the file has.
    """
    from cdcd import media

    promised, have = read_through(_wav_seconds, path)
    if promised > have + TOLERANCE_SECONDS:
        raise SkipItem(
            "length_mismatch",
            f"{what} must be as long as its header says: {promised:.3f} s, it has {have:.3f} s",
        )
    try:
        info = media.probe(path)
    except media.MediaError as error:
        raise SkipItem("unreadable_audio", str(error).replace(str(path), path.name)) from None
    if info.audio is None:
        raise SkipItem("no_audio_stream", f"{what} has no audio stream")
    return info.duration_seconds


def _wav_seconds(path: Path) -> tuple[float, float]:
    """Return what a RIFF header promises and what follows it; zeros where it promises nothing."""
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return 0.0, 0.0
        bytes_per_second = 0
        for _ in range(1000):
            chunk = file.read(8)
            if len(chunk) < 8:
                break
            name, size = struct.unpack("<4sI", chunk)
            if name == b"data":
                have = path.stat().st_size - file.tell()
                # Programs that write into a pipe do not know the length: they state these two.
                if size in (0, 0xFFFFFFFF) or not bytes_per_second:
                    break
                return size / bytes_per_second, have / bytes_per_second
            body = file.read(12) if name == b"fmt " else b""
            if len(body) == 12:
                bytes_per_second = int.from_bytes(body[8:], "little")
            file.seek(size + size % 2 - len(body), 1)
    return 0.0, 0.0


class ListedSource(Source):
    """A download whose splits are lists of names, each with its song."""

    @abstractmethod
    def names(self) -> dict[str, set[str]]:
        """Return the listed stems by split."""

    @abstractmethod
    def song(self, name: str) -> str:
        """Return the song of a stem.

        Raises:
            SkipItem: unsupported_name or unknown_genre.
        """

    def items(self) -> Iterator[Listed]:
        """See `Source`."""
        yield from list_once(self.names())

    def num_items(self) -> int:
        """See `Source`."""
        return sum(len(stems) for stems in self.names().values())

    def songs(self) -> dict[str, set[str]]:
        """Return the songs by split, of names that can be read and are not listed twice."""
        songs: dict[str, set[str]] = {}
        for item in self.items():
            if item.duplicate_of is None:
                with suppress(SkipItem):
                    songs.setdefault(item.split, set()).add(self.song(item.name))
        return songs


@dataclass(frozen=True, eq=False)
class Clips(ListedSource):
    """Clips of one dataset and one length.

    Roots: `clips`, the folder that holds `audio_s2/`; `lists`, the folder that was given.
    Settings: layout, clip_seconds, lists (split to files below `lists`; empty: folders say it).
    """

    unit = "clip"
    kind: ClassVar[MotionKind]

    @property
    def seconds(self) -> int:
        """Length of the clips."""
        return int(self.settings["clip_seconds"])

    @abstractmethod
    def describe(self, stem: str) -> dict[str, Any]:
        """Return genre, song, sequence, segment, bpm and camera of a clip, as far as there are.

        Raises:
            SkipItem: unsupported_name or unknown_genre.
        """

    def names(self) -> dict[str, set[str]]:
        """Return the listed stems by split."""
        lists = self.settings["lists"]
        if lists:
            folder = self.roots["lists"]
            return {
                split: {stem for path in paths for stem in read_stems(folder / path)}
                for split, paths in lists.items()
            }
        found: dict[str, set[str]] = {}
        for split in SPLITS:
            for modality, suffix in MODALITIES.items():
                folder = self.roots["clips"] / f"{modality}_s{self.seconds}" / split
                stems = (path.stem for path in folder.glob(f"*{suffix}") if path.name[0] != ".")
                found.setdefault(split, set()).update(stems)
        return found

    def song(self, name: str) -> str:
        """See `ListedSource`."""
        return str(self.describe(name)["song"])

    def find(self, modality: str, stem: str, split: str) -> str | None:
        """Return the manifest path of a clip's sound, motion or video feature."""
        folder, suffix = f"clips/{modality}_s{self.seconds}", MODALITIES[modality]
        for path in (f"{folder}/{split}/{stem}{suffix}", f"{folder}/{stem}{suffix}"):
            if is_file(self.resolve(path)):
                return path
        return None

    def inspect(self, item: Listed) -> Record:
        """See `Source`."""
        known: dict[str, Any] = {
            "key": safe_key(item.name),
            "split": item.split,
            "licence": self.licence,
        }
        try:
            described = self.describe(item.name)
            known |= {key: described.get(key) for key in ("genre", "song", "sequence")}
            sources, facts = self._inspect(item)
        except SkipItem as skip:
            return Record(**known, status="skipped", reason=skip.reason, detail=skip.detail)
        kept = ("segment", "bpm", "camera")
        facts |= {key: value for key, value in described.items() if key in kept}
        return Record(**known, sources=sources, facts=facts)

    def _inspect(self, item: Listed) -> tuple[dict[str, str], dict[str, Any]]:
        if item.duplicate_of is not None:
            raise SkipItem(
                "duplicate_key", f"listed in {item.split} although {item.duplicate_of} has it"
            )
        paths = {kind: self.find(kind, item.name, item.split) for kind in MODALITIES}
        for kind in ("audio", "motion"):
            if paths[kind] is None:
                folder, suffix = f"{kind}_s{self.seconds}", MODALITIES[kind]
                raise SkipItem(f"missing_{kind}", f"no file {item.name}{suffix} in {folder}/")
        audio, motion, video = (paths[kind] for kind in MODALITIES)
        assert audio is not None
        assert motion is not None
        self._check_length(audio, check_wav(self.resolve(audio), audio))
        sources = {audio: str(read_through(sha256_file, self.resolve(audio)))}
        data = read_bytes(self.resolve(motion))
        self.parse_motion(data, motion)
        sources[motion] = sha256_bytes(data)
        facts: dict[str, Any] = {
            "motion": motion,
            "audio": audio,
            "audio_source": "clip",
            "video": None,
            "video_feature": video,
            "segment_seconds": self.seconds,
            "num_frames": self.seconds * self.kind.rate_hz,
            "motion_rate_hz": self.kind.rate_hz,
        }
        if video is not None:
            data = read_bytes(self.resolve(video))
            facts["video_feature_shape"] = list(parse_feature(data, video).shape)
            sources[video] = sha256_bytes(data)
        return sources, facts

    def _check_length(self, what: str, seconds: float) -> None:
        if abs(seconds - self.seconds) > TOLERANCE_SECONDS:
            raise SkipItem(
                "length_mismatch",
                f"{what} must last {self.seconds} s within {TOLERANCE_SECONDS} s: got "
                f"{seconds:.3f} s",
            )

    def parse_motion(self, data: bytes, what: str) -> NDArray[np.float32]:
        """Return the motion in an npy file as float32 `[n, dim]`; it may be flat or by points.

        Raises:
            SkipItem: unsafe_pickle, corrupt_motion or nonfinite_motion.
        """
        try:
            array = parse_npy(data)
        except UnsafeArrayError as error:
            raise SkipItem("unsafe_pickle", f"{what}: {error}") from None
        except ArrayFileError as error:
            raise SkipItem("corrupt_motion", f"{what}: {error}") from None
        num_frames, dim = self.seconds * self.kind.rate_hz, self.kind.dim
        shapes = [(num_frames, dim), (num_frames * dim,)]
        if self.kind is BODY_25:
            shapes.append((num_frames, dim // 3, 3))
        if array.shape not in shapes or array.dtype.kind not in "fiu":
            raise SkipItem(
                "corrupt_motion",
                f"{what} must hold numbers {[num_frames, dim]}: got {array.dtype} "
                f"{list(array.shape)}",
            )
        motion = _as_float32(array).reshape(num_frames, dim)
        if bad := int((~np.isfinite(motion)).any(axis=1).sum()):
            raise SkipItem(
                "nonfinite_motion",
                f"{what} must hold finite numbers: {bad} of {num_frames} frames do not",
            )
        return motion

    def check_options(self, options: Options) -> None:
        """See `Source`: nothing can be cut from a clip but the clip itself."""
        if options.segment_seconds != self.seconds:
            raise ValueError(
                f"shard.segment_seconds must equal the length of pre-cut clips, {self.seconds} s: "
                f"got {options.segment_seconds}; set it to {self.seconds}, or name clips of that "
                f"length (ingest.{self.dataset}.clip_seconds)"
            )

    def planned_keys(self, record: Record, options: Options) -> list[str]:
        """See `Source`: the record's own."""
        return [record.key]

    def load(self, record: Record, options: Options) -> Iterator[tuple[Record, Sample | None]]:
        """See `Source`."""
        check_unchanged(self, record)
        facts = record.facts
        audio, gain = dance.song(self.resolve(facts["audio"]))
        self._check_length(facts["audio"], len(audio) / SAMPLE_RATE_HZ)
        window = dance.Window(1, 0, float(self.seconds))
        audio, audio_pad = dance.cut(audio, window, self.seconds, SAMPLE_RATE_HZ)
        motion = self.parse_motion(read_bytes(self.resolve(facts["motion"])), facts["motion"])
        feature = None
        if (path := facts["video_feature"]) is not None:
            feature = parse_feature(read_bytes(self.resolve(path)), path)
        meta = {
            "song": record.song,
            "sequence": record.sequence,
            "segment": facts["segment"],
            "bpm": facts.get("bpm"),
            "audio_source": facts["audio_source"],
            "audio_gain": gain,
            "audio_normalisation": f"peak of the whole source at {dance.PEAK}",
            "motion": self.kind.name,
            "motion_rate_hz": self.kind.rate_hz,
            "segment_seconds": self.seconds,
            "valid_seconds": float(self.seconds),
            "motion_pad_frames": 0,
            "audio_pad_samples": audio_pad,
            "video_pad_frames": 0,
            "licence": record.licence,
            "decoders": {"av": decoders()["av"]},
        }
        if "camera" in facts:
            meta["camera"] = facts["camera"]
        has_feature = {"has_video_feature": feature is not None}
        listed = Record(
            key=record.key,
            split=record.split,
            genre=record.genre,
            song=record.song,
            sequence=record.sequence,
            licence=record.licence,
            sources=record.sources,
            facts={**meta, **has_feature},
        )
        meta["sources"] = record.sources
        if record.genre is not None:
            meta["genre"] = record.genre
        yield (
            listed,
            Sample(record.key, record.split, audio, motion, None, meta, video_feature=feature),
        )


def parse_feature(data: bytes, what: str) -> NDArray[np.float32]:
    """Return the video feature in an npy file as float32 `[s, dim]`; a vector has `s` = 1.

    Raises:
        SkipItem: unsafe_pickle or unreadable_feature.
    """
    try:
        array = parse_npy(data)
    except UnsafeArrayError as error:
        raise SkipItem("unsafe_pickle", f"{what}: {error}") from None
    except ArrayFileError as error:
        raise SkipItem("unreadable_feature", f"{what}: {error}") from None
    if array.ndim not in (1, 2) or not array.size or array.dtype.kind != "f":
        raise SkipItem(
            "unreadable_feature",
            f"{what} must hold float [s, dim] or [dim]: got {array.dtype} {list(array.shape)}",
        )
    feature = _as_float32(array).reshape(-1, array.shape[-1])
    if not np.isfinite(feature).all():
        raise SkipItem("unreadable_feature", f"{what} must hold finite numbers")
    return feature


def _as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what is too large becomes infinite and is refused as such
        return np.ascontiguousarray(array, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class AistClips(Clips):
    """Clips of AIST++, named `gBR_sBM_c01_d04_mBR0_ch02_seg1`; motion 219 numbers at 60 Hz."""

    dataset = "aist"
    terms = aist.LICENCE
    licence = aist.SHORT_LICENCE
    kind = SMPL

    def describe(self, stem: str) -> dict[str, Any]:
        """See `Clips`."""
        sequence, number = _split_segment(stem)
        try:
            name = aist.parse_name(sequence)
        except aist.AistNameError as error:
            raise SkipItem(error.reason, str(error)) from None
        return {
            "genre": GENRES.index(name.genre),
            "song": name.song,
            "sequence": name.sequence,
            "segment": number,
            "bpm": name.bpm,
            "camera": name.camera,
        }

    def expected(self) -> Expected:
        """See `Source`: the published lists do not apply the ignore list."""
        counts = {2: (6632, 86, 86), 6: (2581, 36, 36)}[self.seconds]
        samples = dict(zip(SPLITS, counts, strict=True))
        return Expected(samples, samples, "lists of segments of L-YeZhu/CDCD")


@dataclass(frozen=True, eq=False)
class TiktokClips(Clips):
    """Clips of TikTok Dance-Music, named `000007_7_188_seg3`; motion 75 numbers at 30 Hz."""

    dataset = "tiktok"
    terms = TIKTOK_LICENCE
    licence = TIKTOK_SHORT_LICENCE
    kind = BODY_25

    def describe(self, stem: str) -> dict[str, Any]:
        """See `Clips`; this dataset has neither genres nor tempi."""
        sequence, number = _split_segment(stem)
        return {"song": tiktok_song(sequence), "sequence": sequence, "segment": number}

    def expected(self) -> Expected:
        """See `Source`."""
        samples = {"train": 2384, "test": 307} if self.seconds == 2 else {}
        return Expected(samples, samples, "lists of segments of L-YeZhu/D2M-GAN")


def _split_segment(stem: str) -> tuple[str, int]:
    match = _SEGMENT.fullmatch(stem)
    if match is None:
        raise SkipItem("unsupported_name", f"a clip's name must end in _seg<number>: got {stem!r}")
    return match[1], int(match[2])


_CLASSES: dict[str, type[Clips]] = {"aist": AistClips, "tiktok": TiktokClips}


def find_clips(dataset: str, root: Path, seconds: int) -> Path | None:
    """Return the folder that holds `audio_s<seconds>/`: the given one, or one directly in it."""
    if not root.is_dir():
        return None
    children = (child for child in sorted(root.iterdir()) if child.is_dir())
    for folder in (root, root / dataset, *children):
        if (folder / f"audio_s{seconds}").is_dir():
            return folder
    return None


def _find_lists(dataset: str, root: Path, clips: Path, seconds: int) -> dict[str, list[str]]:
    ending = "" if seconds == 2 else f"_s{seconds}"
    for folder in dict.fromkeys((root, root / "dataset", root / "data", clips)):
        found: dict[str, list[str]] = {}
        for split in SPLITS:
            names = [f"{dataset}_{kind}_{split}_segment{ending}.txt" for kind in MODALITIES]
            paths = [folder / name for name in names if (folder / name).is_file()]
            if paths:
                found[split] = [path.relative_to(root).as_posix() for path in paths]
        if found:
            return found
    return {}


def open_clips(dataset: str, root: Path, seconds: int, parameter: str) -> Clips:
    """Find pre-cut clips.

    Args:
        dataset: `aist` or `tiktok`.
        root: the folder that the user named.
        seconds: length of the clips, 2 or 6.
        parameter: the setting that names `root`, for messages: `ingest.tiktok.root`.

    Raises:
        ValueError: there are none, they have another length, or lack motions or splits; one line
            that names the parameter.
    """
    folder = find_clips(dataset, root, seconds)
    if folder is None:
        section = parameter.rpartition(".")[0]
        others = [length for length in LENGTHS if find_clips(dataset, root, length) is not None]
        if others:
            raise ValueError(
                f"{section}.clip_seconds must be a length that the clips have: got {seconds}, but "
                f"{str(root)!r} holds audio_s{others[0]}/; set it to {others[0]}"
            )
        raise ValueError(
            f"{parameter} must be a folder of pre-cut clips: {str(root)!r} has no "
            f"audio_s{seconds}/; unpack the archives there (the README of L-YeZhu/D2M-GAN links "
            "them)"
        )
    if not (folder / f"motion_s{seconds}").is_dir():
        raise ValueError(
            f"{parameter} must hold motions beside the sound: {str(folder)!r} has "
            f"audio_s{seconds}/ and no motion_s{seconds}/; unpack that archive too (the README of "
            "L-YeZhu/D2M-GAN links it)"
        )
    lists = _find_lists(dataset, root, folder, seconds)
    has_folders = all((folder / f"audio_s{seconds}" / split).is_dir() for split in _needed())
    if missing := [split for split in _needed() if split not in lists]:
        ending = "" if seconds == 2 else f"_s{seconds}"
        if lists or not has_folders:
            raise ValueError(
                f"{parameter} must hold lists of clips or folders train/ and test/: {str(root)!r} "
                f"lacks {dataset}_audio_{missing[0]}_segment{ending}.txt; put the lists of "
                f"{_REPOSITORY[dataset]} there"
            )
    source = _CLASSES[dataset](
        roots={"clips": folder, "lists": root},
        settings={"layout": "clips", "clip_seconds": seconds, "lists": lists},
    )
    require_readable(source, parameter)
    return source


_REPOSITORY = {
    "aist": "L-YeZhu/CDCD (folder data)",
    "tiktok": "L-YeZhu/D2M-GAN (folder dataset)",
}


def _needed() -> tuple[str, str]:
    return "train", "test"


def check_clips(dataset: str, root: Path) -> list[Finding]:
    """Say which pre-cut clips lie in a folder; nothing where there are none. Never raises."""
    findings: list[Finding] = []
    for seconds in LENGTHS:
        try:
            if find_clips(dataset, root, seconds) is not None:
                findings += _check_length(dataset, root, seconds)
        except (ValueError, OSError) as error:
            findings.append(Finding(False, f"clips of {seconds} s: {error}"))
    return findings


def _check_length(dataset: str, root: Path, seconds: int) -> Iterator[Finding]:
    source = open_clips(dataset, root, seconds, f"ingest.{dataset}.{_PARAMETER[dataset]}")
    songs, expected = source.songs(), source.expected().items
    for split, stems in source.names().items():
        if not stems and split not in expected:
            continue
        of = f" of {expected[split]:,}" if split in expected else ""
        found = {
            kind: sum(source.find(kind, stem, split) is not None for stem in stems)
            for kind in MODALITIES
        }
        text = (
            f"clips of {seconds} s, {split}: {len(stems):,}{of} listed, "
            f"{len(songs.get(split, ())):,} songs, {found['audio']:,} with sound, "
            f"{found['motion']:,} with motion, {found['video']:,} with video features"
        )
        is_fine = bool(stems) and found["audio"] == found["motion"] == len(stems)
        if not is_fine:
            text += "; missing: the README of L-YeZhu/D2M-GAN links the archives"
        yield Finding(is_fine, text)
    yield check_songs(songs)


_PARAMETER = {"aist": "clips_dir", "tiktok": "root"}
