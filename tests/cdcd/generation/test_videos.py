"""Music for many videos: lists, results that continue, and files of others that stay."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cdcd.generation import MusicGenerator
from cdcd.generation.lists import ListError
from cdcd.generation.videos import Clip, Filled, VideoFolder, fill_videos, read_clips
from cdcd.media import probe
from cdcd.tasks import load_generator
from tests.cdcd.data.tiny_aist import write_video
from tests.cdcd.generation import tiny_models

IDENTITY = {"model_sha256": "m", "codec_sha256": "c"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_music_model(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def generator(data: Path) -> MusicGenerator:
    loaded = load_generator(data / "models" / "aist", data / "codecs" / "aist")
    assert isinstance(loaded, MusicGenerator)
    return loaded


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, one of them deeper, one that is none, and what is no video."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "deep").mkdir()
    write_video(folder / "a.mp4", 0.4, has_sound=False)
    write_video(folder / "deep" / "b.mp4", 0.7, has_sound=False)
    (folder / "deep" / "b.mp4").rename(folder / "deep" / "b.mov")
    (folder / "broken.mp4").write_bytes(b"no video at all")
    (folder / "notes.txt").write_text("not a video")
    (folder / ".a.mp4").write_bytes(b"hidden")
    return folder


@pytest.fixture
def own(clips: Path, tmp_path: Path) -> Path:
    """A copy of the clips that may be changed."""
    return Path(shutil.copytree(clips, tmp_path / "clips"))


def _fill(generator: MusicGenerator, source: Path, out: Path, **options: Any) -> Filled:
    ending = options.pop("ending", "wav")
    found, identity = read_clips(source, out, ending), options.pop("identity", IDENTITY)
    options = {"progress": False, **options}
    return fill_videos(generator, found, VideoFolder.open(out), identity, **options)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    return {e["file"]: e for e in json.loads((folder / "index.json").read_text())["videos"]}


# Lists


def test_a_folder_is_read_with_all_below_it(clips: Path, tmp_path: Path) -> None:
    found = read_clips(clips, tmp_path, "mp4").clips
    assert [(clip.name, clip.file) for clip in found] == [
        ("a.mp4", "a.mp4"),
        ("broken.mp4", "broken.mp4"),
        ("deep/b.mov", "deep/b.mov.mp4"),
    ]
    assert [clip.file for clip in read_clips(clips, tmp_path, "wav").clips] == [
        "a.wav",
        "broken.wav",
        "deep/b.mov.wav",
    ]


def test_results_below_the_videos_are_no_videos(own: Path) -> None:
    (own / "out").mkdir()
    shutil.copy(own / "a.mp4", own / "out" / "a.mp4")
    names = [clip.name for clip in read_clips(own, own / "out").clips]
    assert names == ["a.mp4", "broken.mp4", "deep/b.mov"]


def test_a_csv_says_more(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(
        "Video,out,seed,guidance,truncation\n"
        "x/a.mp4,,3,,\n"
        ",,,,\n"
        "x/a.mp4,deep/loud.wav,,2.5,0.7\n"
        "/abs/c.webm,,,,\n"
    )
    found = read_clips(path, tmp_path / "out")
    assert found.num_blank == 1
    assert found.clips == [
        Clip(tmp_path / "x/a.mp4", "x/a.mp4", "a.mp4", 3, None, None, 2),
        Clip(tmp_path / "x/a.mp4", "x/a.mp4", "deep/loud.wav", None, 2.5, 0.7, 4),
        Clip(Path("/abs/c.webm"), "/abs/c.webm", "c.webm.mp4", None, None, None, 5),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("clip\na.mp4\n", "line 1: columns must be video, and any of out, seed, guidance and trun"),
        ("video,video\na,b\n", "line 1: columns must be video"),
        ("video\n", "must hold at least one video: got none"),
        ("video,seed\n,3\n", "line 2: video must be a path: got ''; fill it in"),
        ("video,seed\na.mp4,x\n", "line 2: seed must lie in 0"),
        ("video,guidance\na.mp4,much\n", "line 2: guidance must be a number: got 'much'"),
        ("video,out\na.mp4,../b.wav\n", r"line 2: out must be a \.mp4 or \.wav below the folder"),
        ("video,out\na.mp4,/b.wav\n", r"line 2: out must be a \.mp4 or \.wav"),
        ("video,out\na.mp4,index.json\n", r"line 2: out must be a \.mp4 or \.wav"),
        ("video,out\na.mp4,b.mp3\n", r"line 2: out must be a \.mp4 or \.wav"),
        (
            "video,seed\na.mp4,1\nb.mp4,1\nA.mp4,2\n",
            r"line 4: out must be of one line alone: A\.mp4 is also that of line 2; fill in out",
        ),
    ],
)
def test_a_bad_csv_is_one_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(content)
    with pytest.raises(ListError, match=words) as caught:
        read_clips(path, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_bad_source_is_one_line(own: Path, tmp_path: Path) -> None:
    with pytest.raises(ListError, match=r"--videos must be a folder or a \.csv: got nowhere"):
        read_clips("nowhere", tmp_path)
    with pytest.raises(ListError, match="must be a file of videos: there is none"):
        read_clips("nowhere.csv", tmp_path)
    with pytest.raises(ListError, match="--out must differ from --videos"):
        read_clips(own, own / "deep" / "..")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ListError, match="must hold at least one video"):
        read_clips(tmp_path / "empty", tmp_path)
    (own / "A.MP4").touch()
    with pytest.raises(ListError, match=r"A\.MP4 and a\.mp4 would both become a\.mp4; rename"):
        read_clips(own, tmp_path)
    (own / "A.MP4").rename(os.fsdecode(bytes(own) + b"/\xff.mp4"))
    with pytest.raises(ListError, match=r"names of videos must be UTF-8: got b'\\xff\.mp4'"):
        read_clips(own, tmp_path)


def test_a_setting_out_of_range_is_told_with_its_line(
    generator: MusicGenerator, clips: Path, tmp_path: Path
) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"video,guidance\n{clips}/a.mp4,2\n{clips}/deep/b.mov,1e9\n")
    with pytest.raises(ListError, match=r"list\.csv, line 3: guidance must be a number of at l"):
        _fill(generator, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Results


def test_every_video_gets_music_and_a_broken_one_a_reason(
    generator: MusicGenerator, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = _fill(generator, clips, out, ending="mp4", seed=3)
    assert (done.num_written, done.num_kept) == (2, 0)
    ((name, reason),) = done.skipped
    assert name == "broken.mp4"
    assert "\n" not in reason
    assert set(_bytes(out)) == {"a.mp4", "deep/b.mov.mp4", "index.json"}
    entries = _entries(out)
    for file, source in (("a.mp4", "a.mp4"), ("deep/b.mov.mp4", "deep/b.mov")):
        found, seconds = probe(out / file), probe(clips / source).duration_seconds
        assert found.audio is not None
        assert found.duration_seconds == pytest.approx(seconds, abs=0.05)
        entry = entries[file]
        assert (entry["status"], entry["seed"], entry["video"]) == ("ok", 3, source)
        assert entry["seconds"] == pytest.approx(seconds, abs=1e-3)
        assert entry.items() >= IDENTITY.items()
    broken = entries["broken.mp4"]
    assert (broken["status"], broken["reason"]) == ("skipped", reason)


def test_alone_and_in_a_batch_a_video_gets_the_same_music(
    generator: MusicGenerator, clips: Path, tmp_path: Path
) -> None:
    _fill(generator, clips, tmp_path / "out", seed=5, guidance=2.0)
    alone = tmp_path / "alone.wav"
    generator.generate_for_video(clips / "deep" / "b.mov", alone, 5, 2.0, progress=False)
    assert (tmp_path / "out" / "deep" / "b.mov.wav").read_bytes() == alone.read_bytes()


class _Stopped(BaseException):
    """As Ctrl-C."""


@pytest.mark.parametrize("moment", ["before", "within", "indexing", "renaming"])
def test_a_stopped_batch_goes_on_and_ends_like_one_that_was_not(
    generator: MusicGenerator,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _fill(generator, clips, whole)
    original = MusicGenerator.generate_for_video

    def stop(self: MusicGenerator, video: Path, out: Path, *rest: Any, **options: Any) -> Any:
        if video.name == "b.mov" and moment == "before":
            raise _Stopped
        if video.name == "b.mov" and moment == "within":
            Path(out).write_bytes(b"half")
            raise _Stopped
        return original(self, video, out, *rest, **options)

    rename = Path.replace

    def no_rename(self: Path, target: Any) -> Any:
        if Path(target).name == "b.mov.wav":
            raise _Stopped
        return rename(self, target)

    flush = VideoFolder.flush

    def no_index(self: VideoFolder) -> None:
        if "deep/b.mov.wav" in self.entries:
            raise _Stopped
        flush(self)

    with monkeypatch.context() as patch:
        patch.setattr(MusicGenerator, "generate_for_video", stop)
        if moment == "indexing":
            patch.setattr(VideoFolder, "flush", no_index)
        if moment == "renaming":
            patch.setattr(Path, "replace", no_rename)
        with pytest.raises(_Stopped):
            _fill(generator, clips, parts)
    assert list(parts.rglob(".cdcd-*")) == []
    done = _fill(generator, clips, parts)
    assert (done.num_written, done.num_kept, len(done.skipped)) == (1, 1, 1)
    again, undisturbed = _bytes(parts), _bytes(whole)
    for folder in (again, undisturbed):  # reasons name the video's place, which is the same
        assert set(folder) == {"a.wav", "deep/b.mov.wav", "index.json"}
    assert again == undisturbed


def test_a_second_run_makes_what_is_missing_or_changed_alone(
    generator: MusicGenerator, own: Path, tmp_path: Path
) -> None:
    (own / "broken.mp4").unlink()
    out = tmp_path / "out"

    def again(**options: Any) -> tuple[int, int]:
        done = _fill(generator, own, out, **options)
        assert done.skipped == []
        return done.num_written, done.num_kept

    assert again() == (2, 0)
    before = _bytes(out)
    assert again() == (0, 2)
    assert _bytes(out) == before
    os.utime(own / "a.mp4")
    assert again() == (0, 2), "touched, and still the same video"
    (out / "a.wav").unlink()
    assert again() == (1, 1)
    assert (out / "a.wav").read_bytes() == before["a.wav"]
    shutil.copy(own / "deep" / "b.mov", own / "a.mp4")
    assert again() == (1, 1), "another video under the name"
    assert (out / "a.wav").read_bytes() == before["deep/b.mov.wav"]
    assert again(seed=1) == (2, 0)
    assert again(seed=1, guidance=3.0) == (2, 0)
    other = {**IDENTITY, "codec_sha256": "other"}
    assert again(seed=1, guidance=3.0, identity=other) == (2, 0)
    assert again(seed=1, guidance=3.0, identity=other) == (0, 2)


def test_a_broken_video_that_is_mended_is_made(
    generator: MusicGenerator, own: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert len(_fill(generator, own, out).skipped) == 1
    shutil.copy(own / "a.mp4", own / "broken.mp4")
    done = _fill(generator, own, out)
    assert (done.num_written, done.num_kept, done.skipped) == (1, 2, [])
    assert _entries(out)["broken.wav"]["status"] == "ok"


def test_files_of_others_are_never_written_over(
    generator: MusicGenerator, own: Path, tmp_path: Path
) -> None:
    (own / "broken.mp4").unlink()
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.wav").write_bytes(b"mine")
    done = _fill(generator, own, out)
    ((name, reason),) = done.skipped
    assert name == "a.mp4"
    assert "is not of this program, or was changed; move it away" in reason
    assert (out / "a.wav").read_bytes() == b"mine"
    # What this program made and somebody edited is theirs as well.
    with (out / "deep" / "b.mov.wav").open("r+b") as file:
        file.write(b"mine")
    edited = (out / "deep" / "b.mov.wav").read_bytes()
    assert len(_fill(generator, own, out, seed=1).skipped) == 2
    assert (out / "deep" / "b.mov.wav").read_bytes() == edited
    (out / "a.wav").unlink()
    assert _fill(generator, own, out, seed=1).num_written == 1


def test_a_missing_video_is_skipped_and_its_old_music_stays_known(
    generator: MusicGenerator, own: Path, tmp_path: Path
) -> None:
    path, out = own / "list.csv", tmp_path / "out"
    path.write_text("video\na.mp4\n")
    assert _fill(generator, path, out).num_written == 1
    (own / "a.mp4").rename(own / "elsewhere.mp4")
    assert _fill(generator, path, out).skipped == [
        ("a.mp4", f"{own / 'a.mp4'} must be a file: there is none; check the path")
    ]
    (own / "elsewhere.mp4").rename(own / "a.mp4")
    assert _fill(generator, path, out).num_written == 1


def test_a_link_to_nowhere_is_skipped_with_its_reason(
    generator: MusicGenerator, own: Path, tmp_path: Path
) -> None:
    (own / "z.mp4").symlink_to(own / "nowhere.mp4")
    name, reason = _fill(generator, own, tmp_path / "out").skipped[-1]
    assert name == "z.mp4"
    assert "must be a file: there is none" in reason


def test_a_video_is_never_its_own_result(generator: MusicGenerator, own: Path) -> None:
    (own / "list.csv").write_text("video\na.mp4\n")
    before = (own / "a.mp4").read_bytes()
    ((_, reason),) = _fill(generator, own / "list.csv", own, ending="mp4").skipped
    assert "is the video itself; fill in out" in reason
    assert (own / "a.mp4").read_bytes() == before


def test_a_full_disk_stops_the_batch(
    generator: MusicGenerator, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MusicGenerator, "generate_for_video", full)
    with pytest.raises(OSError, match="No space left"):
        _fill(generator, clips, tmp_path / "out")


def test_one_run_at_a_time(generator: MusicGenerator, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        VideoFolder.open(out).held(),
        pytest.raises(ValueError, match="--out must be filled by one run at a time"),
    ):
        _fill(generator, clips, out)
    assert list(out.iterdir()) == []
    assert _fill(generator, clips, out).num_written == 2


def test_a_folder_of_pictures_is_refused(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"pictures": []}')
    with pytest.raises(ValueError, match="must be the index of such a folder: it is not"):
        VideoFolder.open(tmp_path)
