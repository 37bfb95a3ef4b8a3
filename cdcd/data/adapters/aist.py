"""AIST++: a download as the publisher lays it out, turned into samples.

Nothing is written into the download. A sequence that cannot be used is reported with a reason
(`SkipItem`), never replaced by another one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cdcd.data import pickles
from cdcd.data.adapters.base import (
    Expected,
    Finding,
    Options,
    Source,
    check_unchanged,
    is_file,
    read_bytes,
    read_through,
    skipped_sample,
)
from cdcd.data.adapters.dance import (
    MAX_SONG_SECONDS,
    TOLERANCE_FRAMES,
    UNIT_SECONDS,
    Window,
    encode_clips,
    num_units,
    plan_windows,
    segments,
    shared_facts,
    song,
    told,
)
from cdcd.data.files import sha256_file
from cdcd.data.manifest import Record, SkipItem
from cdcd.data.samples import (
    GENRES,
    MOTION_RATE_HZ,
    SAMPLE_RATE_HZ,
    SMPL,
    SPLITS,
    Sample,
    safe_key,
)

if TYPE_CHECKING:
    from cdcd.config import AistSource

_log = logging.getLogger(__name__)

NUM_BEATS = {"sBM": 16, "sFM": 64}
CAMERAS = tuple(f"c{number:02d}" for number in range(1, 10))
DURATION_TOLERANCE_SECONDS = 0.2

# AIST++'s own tools exclude this view: its clock differs from the other eight.
UNSYNCHRONISED = {("gBR_sBM_cAll_d04_mBR0_ch01", "c05")}

LICENCE = (
    "AIST++ annotations are CC BY 4.0, Google LLC (attribution and citation required); AIST videos "
    "and music are under the AIST Dance Video Database Terms of Use, which you must have accepted: "
    "neither they nor clips derived from them may be passed on"
)

SHORT_LICENCE = "annotations CC BY 4.0; video and music: AIST Database terms of use"
_NAME = re.compile(
    r"g([A-Z]{2})_(s[A-Z]{2})_(cAll|c0[1-9])_(d[0-9]{2})_m([A-Z]{2})([0-9])_(ch[0-9]{2})"
)
_SITUATION = re.compile(r"(?:^|_)(s[A-Z]{2})(?:_|$)")


class AistNameError(ValueError):
    """A name that is no AIST++ sequence; `reason` is what the manifest records."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Name:
    """The fields of `gBR_sBM_cAll_d04_mBR0_ch01`."""

    genre: str
    situation: str
    camera: str
    dancer: str
    song: str
    choreography: str

    def with_camera(self, camera: str) -> str:
        """Return the stem of this sequence's video from one camera (`cAll`: the annotation)."""
        return (
            f"g{self.genre}_{self.situation}_{camera}_{self.dancer}_{self.song}_{self.choreography}"
        )

    @property
    def sequence(self) -> str:
        """The annotation's name."""
        return self.with_camera("cAll")

    @property
    def bpm(self) -> int:
        """Tempo: 80 + 10 n, but 110 + 5 n for House, with n the digit of the song."""
        number = int(self.song[-1])
        return 110 + 5 * number if self.song[1:3] == "HO" else 80 + 10 * number

    @property
    def nominal_frames(self) -> float:
        """Length of the choreography in motion frames: 16 beats (basic) or 64 (advanced)."""
        return NUM_BEATS[self.situation] * 60.0 / self.bpm * MOTION_RATE_HZ


def parse_name(name: str) -> Name:
    """Take a sequence's or video's name apart; a folder and an extension are ignored.

    Raises:
        AistNameError: it belongs to the larger AIST database, or is no such name at all.
    """
    stem = PurePosixPath(name).stem
    situation = _SITUATION.search(stem)
    if situation and situation[1] not in NUM_BEATS:
        raise AistNameError(
            "unsupported_name",
            f"an AIST++ sequence must be of situation sBM or sFM: got {situation[1]} in {stem!r}, "
            "which is part of the larger AIST database only; remove it from the list",
        )
    match = _NAME.fullmatch(stem)
    if match is None:
        raise AistNameError(
            "unsupported_name",
            "an AIST++ name must look like gBR_sBM_cAll_d04_mBR0_ch01: got " + repr(stem),
        )
    genre, kind, camera, dancer, music, number, choreography = match.groups()
    for code in (genre, music):
        if code not in GENRES:
            raise AistNameError(
                "unknown_genre",
                f"a genre must be one of {', '.join(GENRES)}: got {code} in {stem!r}",
            )
    if int(number) > 5:
        raise AistNameError(
            "unsupported_name", f"a song's number must be 0 to 5: got {number} in {stem!r}"
        )
    return Name(genre, kind, camera, dancer, f"m{music}{number}", choreography)


def read_names(path: Path) -> list[str]:
    """Read a list with one name per line: blanks, CRLF and blank lines do not matter.

    Raises:
        SkipItem: unreadable_file.
    """
    lines = read_bytes(path).decode("utf-8-sig", errors="replace").splitlines()
    return [stripped for line in lines if (stripped := line.strip())]


@dataclass(frozen=True)
class Roots:
    """The folders of a download; either of videos and music may be missing, not both."""

    annotations: Path
    videos: Path | None
    music: Path | None

    def resolve(self, path: str) -> Path:
        """Return the file behind a manifest path, `annotations/…`, `videos/…` or `music/…`."""
        root, _, below = path.partition("/")
        folder: Path | None = {
            "annotations": self.annotations,
            "videos": self.videos,
            "music": self.music,
        }[root]
        assert folder is not None, path
        return folder / below


def check_layout(roots: Roots, apply_ignore_list: bool) -> None:
    """Check that the folders are an AIST++ download.

    Raises:
        ValueError: a folder or list is missing; one line that names the parameter.
    """
    folders = {
        "annotations_dir": roots.annotations,
        "videos_dir": roots.videos,
        "music_dir": roots.music,
    }
    for key, folder in folders.items():
        if folder is not None and not folder.is_dir():
            raise ValueError(
                f"ingest.aist.{key} must be an existing folder: got {str(folder)!r}; "
                "mend the path in params.yaml, or set all three to null for the embedded data"
            )
    if roots.videos is None and roots.music is None:
        raise ValueError(
            "ingest.aist.videos_dir or ingest.aist.music_dir must be given with annotations_dir: "
            "got null for both; name at least one folder, the music has to come from somewhere"
        )
    _check_annotations(roots.annotations, apply_ignore_list)


_ARCHIVES = {"motions": "motions.zip", "splits": "splits.zip"}
_WHERE = "google.github.io/aistplusplus_dataset/download.html"
_WHERE_VIDEOS = "aistdancedb.ongaaccel.jp, after accepting its terms"


def find_annotations(folder: Path) -> Path:
    """Return the folder that holds motions/ and splits/: the given one, one in it or above it.

    The all-in-one archive unpacks to `aist_plusplus_final/`; the folder itself where none fits.
    """
    if not folder.is_dir():
        return folder
    children = [child for child in sorted(folder.iterdir()) if child.is_dir()]
    for candidate in (folder, *children, folder.parent):
        if (candidate / "motions").is_dir() and (candidate / "splits").is_dir():
            return candidate
    return folder


def _check_annotations(folder: Path, apply_ignore_list: bool) -> None:
    for name, archive in _ARCHIVES.items():
        if (folder / name).is_dir():
            continue
        remedy = f"unzip {archive} of AIST++ v1.0 there"
        raise ValueError(
            f"ingest.aist.annotations_dir must be an AIST++ annotations folder: {str(folder)!r} "
            f"has no {name}/; {remedy}"
        )
    missing = [
        split for split in SPLITS if not (folder / "splits" / f"crossmodal_{split}.txt").is_file()
    ]
    if missing:
        raise ValueError(
            f"ingest.aist.annotations_dir must hold the cross-modal splits: {str(folder)!r} has "
            f"no splits/crossmodal_{missing[0]}.txt; unzip splits.zip of AIST++ v1.0 there (the "
            "lists pose_*.txt are another division and would leak)"
        )
    if apply_ignore_list and not (folder / "ignore_list.txt").is_file():
        raise ValueError(
            f"ingest.aist.apply_ignore_list needs ignore_list.txt: {str(folder)!r} has none; "
            "download it with the annotations, or set apply_ignore_list: false"
        )


@dataclass(frozen=True)
class Listed:
    """One line of the split lists."""

    name: str
    split: str
    is_ignored: bool
    duplicate_of: str | None


def list_sequences(annotations: Path, apply_ignore_list: bool) -> list[Listed]:
    """Read the three cross-modal lists, sorted by name.

    A name that stands in two lists stays where it is held out (test before val before train), so
    that it is never trained on; the other entry is marked as a duplicate.
    """
    ignored = set()
    if apply_ignore_list:
        ignored = {_sequence(name) for name in read_names(annotations / "ignore_list.txt")}
    first_split: dict[str, str] = {}
    listed = []
    for split in reversed(SPLITS):
        for line in read_names(annotations / "splits" / f"crossmodal_{split}.txt"):
            name = _sequence(line)
            earlier = first_split.get(name)
            first_split.setdefault(name, split)
            listed.append(Listed(name, split, name in ignored, earlier))
    return sorted(listed, key=lambda item: (item.name, item.duplicate_of is not None, item.split))


def _sequence(line: str) -> str:
    """Return the sequence that a line names, by annotation or by video; other names as they are."""
    try:
        return parse_name(line).sequence
    except AistNameError:
        return PurePosixPath(line).stem


@dataclass(frozen=True)
class Motion:
    """SMPL motion of one dancer at 60 Hz: poses `[n, 72]` (axis-angle), trans `[n, 3]`, scaling."""

    poses: NDArray[np.float32]
    trans: NDArray[np.float32]
    scaling: float


def load_motion(path: Path) -> Motion:
    """Read `motions/<sequence>.pkl`, poses as `(n, 72)` or `(n, 24, 3)`.

    Raises:
        SkipItem: unreadable_file, unsafe_pickle, corrupt_motion or nonfinite_motion.
    """
    try:
        tree = pickles.loads(read_bytes(path))
    except pickles.UnsafePickleError as error:
        raise SkipItem("unsafe_pickle", f"{path.name}: {error}") from None
    except pickles.CorruptPickleError as error:
        raise SkipItem("corrupt_motion", f"{path.name}: {error}") from None
    try:
        poses, trans = _array(tree, "smpl_poses"), _array(tree, "smpl_trans")
        scaling = float(_array(tree, "smpl_scaling").reshape(()))
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise SkipItem(
            "corrupt_motion",
            f"a motion must hold smpl_poses, smpl_trans and one smpl_scaling: {error!r}",
        ) from None
    if poses.ndim == 3 and poses.shape[1:] == (24, 3):
        poses = poses.reshape(-1, 72)
    num_frames = len(poses) if poses.ndim else 0
    if num_frames == 0 or poses.shape != (num_frames, 72) or trans.shape != (num_frames, 3):
        raise SkipItem(
            "corrupt_motion",
            "smpl_poses must be (n, 72) or (n, 24, 3) and smpl_trans (n, 3): got "
            f"{list(poses.shape)} and {list(trans.shape)}",
        )
    with np.errstate(all="ignore"):
        places = trans / np.float32(scaling)
    bad = ~(np.isfinite(poses).all(axis=1) & np.isfinite(places).all(axis=1))
    if bad.any() or not np.isfinite(scaling) or scaling <= 0:
        raise SkipItem(
            "nonfinite_motion",
            f"all numbers must be finite and smpl_scaling positive: {int(bad.sum())} of "
            f"{num_frames} frames are not, smpl_scaling is {scaling}",
        )
    return Motion(poses, trans, scaling)


def _array(tree: Any, name: str) -> NDArray[np.float32]:
    """Return an array of a motion; lists are refused, which shared parts could blow up."""
    value = tree[name]
    if not isinstance(value, np.ndarray | np.number | float | int):
        raise TypeError(f"{name} is a {type(value).__name__}")
    with np.errstate(over="ignore"):
        return np.asarray(value, dtype=np.float32)


@dataclass(frozen=True)
class Inspection:
    """What `inspect_sequence` needs to know; small and picklable."""

    listed: Listed
    roots: Roots
    camera: str


def inspect_sequence(task: Inspection) -> Record:
    """Find and check the files of one listed sequence without decoding sound or pictures.

    The record's `facts` name the files that were chosen (`motion`, `audio`, `audio_source`,
    `video`), the number of motion frames and the tempo.
    """
    listed = task.listed
    try:
        name = parse_name(listed.name)
    except AistNameError as error:
        return Record(
            key=safe_key(listed.name),
            split=listed.split,
            status="skipped",
            reason=error.reason,
            detail=str(error),
            sequence=listed.name,
            licence=SHORT_LICENCE,
        )
    known: dict[str, Any] = {
        "key": listed.name,
        "split": listed.split,
        "genre": GENRES.index(name.genre),
        "song": name.song,
        "sequence": name.sequence,
        "licence": SHORT_LICENCE,
    }
    try:
        facts = _inspect(task, name)
        chosen = {facts["motion"], facts["audio"], facts["video"]} - {None}
        sources = {
            path: read_through(sha256_file, task.roots.resolve(path)) for path in sorted(chosen)
        }
    except SkipItem as skip:
        return Record(**known, status="skipped", reason=skip.reason, detail=skip.detail)
    return Record(**known, sources=sources, facts=facts)


def _inspect(task: Inspection, name: Name) -> dict[str, Any]:
    listed, roots = task.listed, task.roots
    if listed.duplicate_of is not None:
        raise SkipItem(
            "duplicate_key", f"listed in {listed.split} although {listed.duplicate_of} has it"
        )
    if listed.is_ignored:
        raise SkipItem("ignored_sequence", "named in ignore_list.txt (apply_ignore_list: true)")
    motion_path = f"annotations/motions/{name.sequence}.pkl"
    if not is_file(roots.resolve(motion_path)):
        raise SkipItem("missing_motion", f"no file {motion_path}")
    num_frames = len(load_motion(roots.resolve(motion_path)).poses)
    _check_frames(name, num_frames)
    video_path = _find_video(roots, name, task.camera, num_frames)
    audio_path, audio_source = _find_audio(roots, name, task.camera, num_frames)
    return {
        "motion": motion_path,
        "audio": audio_path,
        "audio_source": audio_source,
        "video": video_path,
        "camera": task.camera,
        "num_frames": num_frames,
        "bpm": name.bpm,
    }


def _check_frames(name: Name, num_frames: int) -> None:
    if num_units(num_frames) == 0:
        raise SkipItem(
            "too_short", f"a motion must last {UNIT_SECONDS} s: got {num_frames} frames at 60 Hz"
        )
    # Rounded against 16 * 60 / bpm coming out a hair below a whole number of frames.
    expected = num_units(round(name.nominal_frames) - TOLERANCE_FRAMES)
    if num_units(num_frames) < expected:
        raise SkipItem(
            "length_mismatch",
            f"a motion must fill its {expected} segments of {UNIT_SECONDS} s but for "
            f"{TOLERANCE_FRAMES} frames: got {num_frames} frames, {name.bpm} BPM and "
            f"{NUM_BEATS[name.situation]} beats make {round(name.nominal_frames)}",
        )


def _check_duration(what: str, seconds: float, num_frames: int, may_be_longer: bool) -> None:
    motion = num_frames / MOTION_RATE_HZ
    segments = num_units(num_frames) * UNIT_SECONDS - TOLERANCE_FRAMES / MOTION_RATE_HZ
    is_short = seconds < max(motion - DURATION_TOLERANCE_SECONDS, segments)
    most = MAX_SONG_SECONDS if may_be_longer else motion + DURATION_TOLERANCE_SECONDS
    is_long = seconds > most
    if is_short or is_long:
        rule = "reach" if may_be_longer else "match"
        raise SkipItem(
            "length_mismatch",
            f"{what} must {rule} the motion within {DURATION_TOLERANCE_SECONDS} s: got "
            f"{seconds:.3f} s for {motion:.3f} s"
            + (f"; a song may last {MAX_SONG_SECONDS:g} s" if may_be_longer and is_long else ""),
        )


def _find_video(roots: Roots, name: Name, camera: str, num_frames: int) -> str | None:
    from cdcd import media

    if roots.videos is None or (name.sequence, camera) in UNSYNCHRONISED:
        return None
    path = f"videos/{name.with_camera(camera)}.mp4"
    if not is_file(roots.resolve(path)):
        return None
    try:
        info = media.probe(roots.resolve(path))
    except media.MediaError as error:
        raise SkipItem("unreadable_video", told(error, roots.resolve(path))) from None
    if info.video is None:
        raise SkipItem("unreadable_video", f"{path} has no video stream")
    _check_duration(path, info.duration_seconds, num_frames, may_be_longer=False)
    return path


def _find_audio(roots: Roots, name: Name, camera: str, num_frames: int) -> tuple[str, str]:
    """Return the path and kind of the first source that exists: song, own wav, camera, others."""
    from cdcd import media

    wavs = []
    if roots.music is not None:
        own = (name.sequence, name.with_camera(camera))
        wavs = [(f"music/{name.song}.wav", "song_wav")]
        wavs += [(f"music/{stem}.wav", "sequence_wav") for stem in dict.fromkeys(own)]
    for path, kind in wavs:
        file = roots.resolve(path)
        if not is_file(file):
            continue
        try:
            info = media.probe(file)
        except media.MediaError as error:
            raise SkipItem("unreadable_audio", told(error, file)) from None
        if info.audio is None:
            raise SkipItem("no_audio_stream", f"{path} has no audio stream")
        # A song goes on after the dance; a sequence's own track does not.
        _check_duration(path, info.duration_seconds, num_frames, kind == "song_wav")
        return path, kind
    silent = []
    if roots.videos is not None:
        for other in (camera, *(item for item in CAMERAS if item != camera)):
            path = f"videos/{name.with_camera(other)}.mp4"
            file = roots.resolve(path)
            if not is_file(file) or (name.sequence, other) in UNSYNCHRONISED:
                continue
            try:
                info = media.probe(file)
            except media.MediaError as error:
                _log.debug("%s is no source of sound: %s", path, error)
                continue
            if info.audio is not None and info.video is not None:
                _check_duration(path, info.duration_seconds, num_frames, may_be_longer=False)
                return path, "camera" if other == camera else "other_camera"
            silent.append(path)
    if silent:
        raise SkipItem("no_audio_stream", f"no audio stream in {', '.join(silent)}")
    raise SkipItem(
        "missing_audio", f"neither music/{name.song}.wav, a wav of its own nor a video with sound"
    )


def segment_key(sequence: str, camera: str, number: int) -> str:
    """Return the published name of a segment: `gBR_sBM_c01_d04_mBR0_ch02_seg1`."""
    return f"{parse_name(sequence).with_camera(camera)}_seg{number}"


def planned_segments(record: Record, options: Options) -> list[tuple[str, Window]]:
    """Return key and window of every segment of a usable sequence, sorted by key."""
    assert record.sequence is not None
    windows = plan_windows(record.facts["num_frames"], options.segment_seconds)
    camera = record.facts["camera"]
    return sorted((segment_key(record.sequence, camera, item.number), item) for item in windows)


def load_samples(
    record: Record, roots: Roots, options: Options, *, drop_partial: bool = False
) -> Iterator[tuple[Record, Sample | None]]:
    """Decode one usable sequence and yield its segments, sorted by key, as record and sample.

    The sample is None where the record says `skipped`: with `drop_partial`, last windows that are
    not wholly dance.

    Raises:
        SkipItem: a file turned out unusable when it was decoded; the whole sequence is out.
    """
    from cdcd.features.pose import motion_219

    planned = planned_segments(record, options)
    motion = load_motion(roots.resolve(record.facts["motion"]))
    vectors = motion_219(motion.poses, motion.trans, motion.scaling)
    audio, gain = song(roots.resolve(record.facts["audio"]))
    may_be_longer = record.facts["audio_source"] == "song_wav"
    seconds = len(audio) / SAMPLE_RATE_HZ
    _check_duration(record.facts["audio"], seconds, len(vectors), may_be_longer)
    clips: dict[int, tuple[bytes, int]] = {}
    if record.facts["video"] is not None:
        windows = plan_windows(record.facts["num_frames"], options.segment_seconds)
        path = roots.resolve(record.facts["video"])
        clips = dict(enumerate(encode_clips(path, windows, options), start=1))
    shared = {
        **shared_facts(record, options, SMPL, gain),
        "genre": record.genre,
        "bpm": record.facts["bpm"],
        "camera": record.facts["camera"],
    }
    cut_samples = segments(
        record,
        planned,
        options,
        shared,
        motion=vectors,
        motion_rate_hz=MOTION_RATE_HZ,
        audio=audio,
        clips=clips,
    )
    for window, listed, sample in cut_samples:
        if drop_partial and window.valid_seconds < options.segment_seconds:
            yield skipped_sample(record, sample.key, _partial(window, options)), None
        else:
            yield listed, sample


def _partial(window: Window, options: Options) -> SkipItem:
    return SkipItem(
        "partial_segment",
        f"{window.valid_seconds:.3f} of {options.segment_seconds} s are dance "
        "(drop_partial_6s: true)",
    )


_EXPECTED_SEQUENCES = {True: 952, False: 980}
_EXPECTED_SEGMENTS = {
    (True, 2): 6349,
    (False, 2): 6632,
    (True, 6): 2475,
    (False, 6): 2581,
}
_EXPECTED_HELD_OUT = {2: 86, 6: 36}


def expected_counts(apply_ignore_list: bool, segment_seconds: int = 2) -> Expected:
    """Return the counts of the published cross-modal lists."""
    samples = {}
    if segment_seconds in _EXPECTED_HELD_OUT:
        held_out = _EXPECTED_HELD_OUT[segment_seconds]
        train = _EXPECTED_SEGMENTS[apply_ignore_list, segment_seconds]
        samples = {"train": train, "val": held_out, "test": held_out}
    items = {"train": _EXPECTED_SEQUENCES[apply_ignore_list], "val": 20, "test": 20}
    return Expected(items, samples, "AIST++ v1.0, cross-modal lists")


@dataclass(frozen=True, eq=False)
class Aist(Source):
    """An AIST++ download: folders of annotations, of videos and of music.

    Settings: camera, apply_ignore_list, drop_partial_6s.
    """

    dataset = "aist"
    terms = LICENCE
    licence = SHORT_LICENCE
    unit = "sequence"

    @property
    def folders(self) -> Roots:
        """The same folders by attribute."""
        get = self.roots.get
        return Roots(self.roots["annotations"], get("videos"), get("music"))

    def items(self) -> Iterator[Inspection]:
        """See `Source`."""
        roots, camera = self.folders, self.settings["camera"]
        for listed in list_sequences(roots.annotations, self.settings["apply_ignore_list"]):
            yield Inspection(listed, roots, camera)

    def num_items(self) -> int:
        """See `Source`."""
        return sum(1 for _ in self.items())

    def inspect(self, item: Inspection) -> Record:
        """See `Source`."""
        return inspect_sequence(item)

    def planned_keys(self, record: Record, options: Options) -> list[str]:
        """See `Source`."""
        return [key for key, _ in planned_segments(record, options)]

    def load(self, record: Record, options: Options) -> Iterator[tuple[Record, Sample | None]]:
        """See `Source`."""
        check_unchanged(self, record)
        drop = bool(self.settings["drop_partial_6s"])
        yield from load_samples(record, self.folders, options, drop_partial=drop)

    def expected(self) -> Expected:
        """See `Source`."""
        return expected_counts(self.settings["apply_ignore_list"])


def open_source(setting: AistSource, roots: Roots) -> Aist:
    """Find and check an AIST++ download.

    Raises:
        ValueError: a folder or list is missing; one line that names the parameter.
    """
    roots = Roots(find_annotations(roots.annotations), roots.videos, roots.music)
    check_layout(roots, setting.apply_ignore_list)
    try:
        list_sequences(roots.annotations, setting.apply_ignore_list)
    except SkipItem as error:
        raise ValueError(
            f"ingest.aist.annotations_dir must hold readable lists: {error.detail}; mend its "
            "rights or copy it again"
        ) from None
    named = {"annotations": roots.annotations, "videos": roots.videos, "music": roots.music}
    return Aist(
        roots={name: folder for name, folder in named.items() if folder is not None},
        settings={
            "camera": setting.camera,
            "apply_ignore_list": setting.apply_ignore_list,
            "drop_partial_6s": setting.drop_partial_6s,
        },
    )


def check(root: Path) -> list[Finding]:
    """Say what of AIST++ lies in a folder or below it, and where the rest is to be had.

    Never raises: what is wrong with the folder is a finding too.
    """
    try:
        return _check(root)
    except (SkipItem, ValueError, OSError) as error:
        return [Finding(False, f"{root}: cannot be looked at: {error}; mend its rights")]


def _check(root: Path) -> list[Finding]:
    from cdcd.data.adapters.clips import check_clips

    found = check_clips("aist", root)
    folder = find_annotations(root)
    if folder == root and (root / "annotations").is_dir():
        folder = find_annotations(root / "annotations")
    has_annotations = (folder / "motions").is_dir() or (folder / "splits").is_dir()
    if found and not has_annotations:
        return found
    found += [_check_motions(folder), *_check_lists(folder)]
    found.append(_check_ignored(folder))
    videos = _count_below(root, "*_c0[1-9]_*.mp4")
    songs = _count_below(root, "m[A-Z][A-Z][0-5].wav")
    tracks = _count_below(root, "g*_s[BF]M_*.wav")
    found.append(
        Finding(videos > 0, f"videos: {videos} of 1,408 x 9 views" + _missing(videos, "videos"))
    )
    text = f"music: {songs} of 60 pieces, {tracks} tracks of single sequences"
    found.append(Finding(songs + tracks + videos > 0, text + _missing(songs + tracks, "music")))
    if not songs + tracks + videos:
        found.append(Finding(False, "no sound at all: give videos or music, one of them is needed"))
    return found


def _missing(count: int, what: str) -> str:
    if count:
        return ""
    return f"; none: {what} come from the AIST Dance Video Database ({_WHERE_VIDEOS})"


def _count_below(root: Path, pattern: str) -> int:
    folders = [root, *(child for child in sorted(root.iterdir()) if child.is_dir())]
    return sum(1 for folder in folders for _ in folder.glob(pattern))


def _check_motions(folder: Path) -> Finding:
    count = sum(1 for _ in (folder / "motions").glob("*.pkl"))
    text = f"motions: {count} of 1,408 files"
    if not count:
        return Finding(False, f"{text}; missing: unzip motions.zip from {_WHERE}")
    return Finding(True, text)


def _check_lists(folder: Path) -> Iterator[Finding]:
    for split, count in {"train": 980, "val": 20, "test": 20}.items():
        path = folder / "splits" / f"crossmodal_{split}.txt"
        if not path.is_file():
            yield Finding(
                False, f"splits/{path.name}: missing; unzip splits.zip from {_WHERE} there"
            )
            continue
        names = read_names(path)
        text = f"splits/{path.name}: {len(names)} of {count} names"
        lost = sum(not (folder / "motions" / f"{Path(n).stem}.pkl").is_file() for n in names)
        if lost:
            text += f", {lost} of them without a motion file; unzip motions.zip from {_WHERE}"
        yield Finding(bool(names) and not lost, text)


def _check_ignored(folder: Path) -> Finding:
    path = folder / "ignore_list.txt"
    if path.is_file():
        return Finding(True, f"ignore_list.txt: {len(read_names(path))} of 45 names")
    return Finding(
        False,
        f"ignore_list.txt: missing; get it from {_WHERE}, or set "
        "ingest.aist.apply_ignore_list: false",
    )
