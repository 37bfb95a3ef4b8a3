"""The registered model: rows in, files out, options passed on only where they are given."""

from __future__ import annotations

import base64
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cdcd
from cdcd import media, serving, tasks
from cdcd.models.picture_conditioner import ClassSpec
from cdcd.serving import RequestError, ServedModel
from tests.cdcd.generation import tiny_models

MP4 = b"\0\0\0\x18ftypisom"


class Recorder:
    """Stands for a generator; remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Path, Path, dict[str, Any]]] = []

    def sampler(self, guidance: float | None, truncation: float | None) -> None:
        if guidance is not None and guidance < 0:
            raise ValueError("guidance must be a number of at least 0")

    def generate_for_video(self, video: Path, out: Path, **options: Any) -> dict[str, Any]:
        self.calls.append((video, out, options))
        out.write_bytes(b"sound of " + video.name.encode())
        return {"sample_rate_hz": 22050, "duration_seconds": 1.5, "out": str(out)}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[ServedModel, Recorder]:
    """A model of music, in a folder with a.mp4 and b.mov, each of 400 seconds."""
    recorder = Recorder()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.json").write_text('{"task": "dance2music"}')

    def load(*folders: Path | None) -> Recorder:
        assert folders == (folder, Path("a/codec"), None, None)
        return recorder

    monkeypatch.setattr(tasks, "load_generator", load)
    monkeypatch.setattr(media, "probe", lambda path: SimpleNamespace(duration_seconds=400.0))
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.mov"):
        Path(name).write_bytes(MP4)
    served = ServedModel()
    served.load_context(SimpleNamespace(artifacts={"model": str(folder), "codec": "a/codec"}))
    return served, recorder


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if MLflow's scoring server asked."""
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")


def test_each_row_becomes_a_file(model: tuple[ServedModel, Recorder], tmp_path: Path) -> None:
    served, recorder = model
    frame = pd.DataFrame(
        {
            "video": ["a.mp4", "b.mov"],
            "out": [str(tmp_path / "o.mp4"), None],
            "seed": [3, None],
            "guidance": [None, 2.0],
        }
    )
    result = served.predict(None, frame)
    columns = ["audio_path", "audio_base64", "sample_rate_hz", "duration_seconds"]
    assert list(result.columns) == columns
    (video, out, options), (_, other, more) = recorder.calls
    assert (video, out) == (Path("a.mp4"), tmp_path / "o.mp4")
    assert options == {"progress": False, "seed": 3}
    assert more == {"progress": False, "guidance": 2.0}
    assert other.name == "b.wav"
    assert other.parent.is_dir()
    assert result["audio_path"].tolist() == [str(out), str(other)]
    assert result["audio_base64"].isna().all()


def test_a_mapping_works_as_well(model: tuple[ServedModel, Recorder]) -> None:
    served, recorder = model
    served.predict(None, {"video": ["a.mp4"]})  # type: ignore[arg-type]
    assert recorder.calls[0][2] == {"progress": False}


def test_a_gap_is_no_value_whatever_it_is_called(model: tuple[ServedModel, Recorder]) -> None:
    served, recorder = model
    gaps = pd.DataFrame({"video": ["a.mp4"] * 4, "seed": [None, pd.NA, pd.NaT, float("nan")]})
    served.predict(None, gaps)
    assert [options for _, _, options in recorder.calls] == [{"progress": False}] * 4


def test_lists_in_one_row_are_a_row_each(model: tuple[ServedModel, Recorder]) -> None:
    # So MLflow hands on {"video": ["a.mp4", "b.mov"]}.
    served, recorder = model
    rows = pd.DataFrame({"video": [["a.mp4", "b.mov"]], "seed": [[1, 2]], "guidance": [2.0]})
    assert len(served.predict(None, rows)) == 2
    asked = [(str(video), options) for video, _, options in recorder.calls]
    assert asked == [
        ("a.mp4", {"progress": False, "seed": 1, "guidance": 2.0}),
        ("b.mov", {"progress": False, "seed": 2, "guidance": 2.0}),
    ]
    uneven = pd.DataFrame({"video": [["a.mp4", "b.mov"]], "seed": [[1, 2, 3]]})
    with pytest.raises(ValueError, match="lists of the columns video, seed must be of equal"):
        served.predict(None, uneven)


def test_bytes_in_and_bytes_out(model: tuple[ServedModel, Recorder]) -> None:
    served, recorder = model
    sent = base64.encodebytes(MP4 * 20).decode()  # with line breaks
    rows = [{"video_base64": sent, "format": "mp4", "as_base64": True}, {"video": "a.mp4"}]
    made = served.predict(None, pd.DataFrame(rows))
    (video, out, _), (_, other, _) = recorder.calls
    assert (video.name, out.suffix, other.suffix) == ("video_base64", ".mp4", ".wav")
    assert base64.b64decode(made["audio_base64"][0]) == b"sound of video_base64"
    assert made["audio_path"][0] is None
    assert made["audio_base64"][1] is None
    assert made["audio_path"][1] == str(other)
    assert not video.exists(), "what was sent is not kept"
    assert not out.exists()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"clip": "a.mp4"}, r"must have a column video or video_base64: got \['clip'\]; use"),
        ({"video": 3}, "video must be the path of a file: got '3'; give one"),
        ({"video": ""}, "video must be the path of a file: got ''"),
        ({"video": None}, "one of video and video_base64: got none; give a path"),
        ({"video": "a.mp4", "video_base64": "AAAA"}, "got video and video_base64; give a path"),
        ({"video": "a.mp4", "out": "o.mp3"}, r"out must end in \.wav or \.mp4: got o\.mp3"),
        ({"video": "a.mp4", "out": "a.mp4"}, "out must differ from video: got one path for both"),
        ({"video": "a.mp4", "out": "o.wav", "as_base64": True}, "one of out and as_base64"),
        ({"video": "a.mp4", "out": "o.wav", "format": "wav"}, "one of out and format"),
        ({"video": "a.mp4", "format": "flac"}, "format must be wav or mp4: got 'flac'"),
        ({"video": "a.mp4", "as_base64": "yes"}, "as_base64 must be true or false: got 'yes'"),
        ({"video": "a.mp4", "seed": -1}, r"seed must lie in 0 \.\. 2\*\*63 - 1: got -1; use 0"),
        ({"video": "a.mp4", "seed": True}, "seed must be a whole number: got True"),
        ({"video": "a.mp4", "seed": 1.5}, r"seed must be a whole number: got 1\.5"),
        ({"video": "a.mp4", "guidance": -1.0}, "guidance must be a number of at least 0"),
        ({"video_base64": "%%"}, "video_base64 must be the base64 of a file's bytes: got '%%'; "),
        ({"video_base64": 7}, "video_base64 must be the base64 of a file's bytes: got '7.0'"),
        (
            {"video_base64": base64.b64encode(b"#EXTM3U\nfile:///secret.mp4").decode()},
            "video_base64 must be a video file, such as an mp4: got none that is known",
        ),
    ],
)
def test_a_bad_dance_is_one_line_before_anything_is_generated(
    model: tuple[ServedModel, Recorder], row: dict[str, Any], words: str
) -> None:
    served, recorder = model
    good = [{"video": "a.mp4", "out": "good.wav"}] if "clip" not in row else []
    with pytest.raises(ValueError, match=words) as caught:
        served.predict(None, pd.DataFrame([*good, row]))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("row 2: " if good else "the input ")
    assert recorder.calls == []


def test_an_error_answers_with_its_line_alone(model: tuple[ServedModel, Recorder]) -> None:
    # The scoring server sends this JSON, and would put all that was sent before the message.
    with pytest.raises(RequestError) as caught:
        model[0].predict(None, pd.DataFrame({"video": [3]}))
    caught.value.message = "Failed to predict data " + "x" * 1000
    answer = json.loads(caught.value.serialize_as_json())
    line = "video must be the path of a file: got '3'; give one"
    assert answer == {"error_code": "BAD_REQUEST", "message": line}
    assert caught.value.get_http_status_code() == 400


@pytest.mark.usefixtures("scoring")
def test_a_server_takes_no_paths(model: tuple[ServedModel, Recorder]) -> None:
    served, _ = model
    sent = base64.b64encode(MP4).decode()
    made = served.predict(None, pd.DataFrame({"video_base64": [sent]}))
    assert made["audio_base64"][0]
    for row in ({"video": "a.mp4"}, {"video_base64": sent, "out": "o.wav"}):
        with pytest.raises(RequestError, match="must be no path: this server takes none"):
            served.predict(None, pd.DataFrame([row]))


@pytest.mark.usefixtures("scoring")
def test_a_server_keeps_to_its_folder(
    model: tuple[ServedModel, Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, recorder = model
    root = tmp_path / "root"
    root.mkdir()
    (root / "in.mp4").write_bytes(MP4)
    (root / "playlist.mp4").write_bytes(b"#EXTM3U\n" + b"x" * 300)
    (root / "link.mp4").symlink_to(tmp_path / "a.mp4")
    monkeypatch.setenv("CDCD_SERVE_ROOT", str(root))
    served.predict(None, pd.DataFrame({"video": ["in.mp4"], "out": [str(root / "o.wav")]}))
    made = served.predict(None, pd.DataFrame({"video": ["in.mp4"]}))
    assert recorder.calls[0][:2] == (root / "in.mp4", root / "o.wav")
    assert Path(made["audio_path"][0]).is_relative_to(root)
    for row in (
        {"video": str(tmp_path / "a.mp4")},
        {"video": "../a.mp4"},
        {"video": "link.mp4"},
        {"video": "in.mp4", "out": "../o.wav"},
    ):
        with pytest.raises(RequestError, match="must lie below CDCD_SERVE_ROOT"):
            served.predict(None, pd.DataFrame([row]))
    with pytest.raises(RequestError, match="video must be a video file"):
        served.predict(None, pd.DataFrame({"video": ["playlist.mp4"]}))
    assert len(recorder.calls) == 2


@pytest.mark.usefixtures("scoring")
def test_what_a_request_may_ask_for_is_bounded(
    model: tuple[ServedModel, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, recorder = model
    sent = base64.b64encode(MP4).decode()
    for changes, rows, words in (
        ({}, 65, r"at most 64 rows \(CDCD_MAX_ROWS\): got 65; ask in several"),
        ({}, 2, r"at most 600 seconds of video \(CDCD_MAX_SECONDS\): got 800; cut"),
        ({"CDCD_MAX_UPLOAD_MB": "0.00001"}, 1, r"at most 1e-05 MB of files \(CDCD_MAX_UPLOAD_MB"),
        ({"CDCD_MAX_SECONDS": "soon"}, 1, "CDCD_MAX_SECONDS must be a positive number: got 'soon'"),
        ({"CDCD_MAX_ROWS": "0"}, 1, "CDCD_MAX_ROWS must be a positive number: got '0'"),
    ):
        with monkeypatch.context() as patch:
            for name, value in changes.items():
                patch.setenv(name, value)
            with pytest.raises(RequestError, match=words):
                served.predict(None, pd.DataFrame({"video_base64": [sent] * rows}))
    assert recorder.calls == []


def test_a_process_of_ones_own_is_bounded_only_where_it_says_so(
    model: tuple[ServedModel, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, recorder = model
    served.predict(None, pd.DataFrame({"video": ["a.mp4"] * 70, "out": ["o.wav"] * 70}))
    assert len(recorder.calls) == 70
    monkeypatch.setenv("CDCD_MAX_ROWS", "3")
    with pytest.raises(RequestError, match=r"at most 3 rows"):
        served.predict(None, pd.DataFrame({"video": ["a.mp4"] * 4}))


@pytest.mark.parametrize(
    ("error", "words", "status"),
    [
        (OSError(28, "No space left on device"), "a file failed: No space left on device", 500),
        (RuntimeError("secret"), "generating failed: RuntimeError; see the server's log", 500),
    ],
)
@pytest.mark.usefixtures("scoring")
def test_a_fault_of_the_server_is_told_as_such(
    model: tuple[ServedModel, Recorder],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: Exception,
    words: str,
    status: int,
) -> None:
    served, recorder = model
    monkeypatch.setenv("CDCD_SERVE_ROOT", str(tmp_path))

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(recorder, "generate_for_video", fail)
    before = set(tmp_path.iterdir())
    with pytest.raises(RequestError) as caught:
        served.predict(None, pd.DataFrame({"video": ["a.mp4"]}))
    assert str(caught.value.args[0]) == words
    assert caught.value.get_http_status_code() == status
    assert set(tmp_path.iterdir()) == before, "a folder for the output is not left behind"


def test_requests_at_once_take_turns(
    model: tuple[ServedModel, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, recorder = model
    at_work: list[int] = []
    most: list[int] = []
    original = recorder.generate_for_video

    def slowly(*arguments: Any, **options: Any) -> dict[str, Any]:
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.05)
        at_work.pop()
        return original(*arguments, **options)

    monkeypatch.setattr(recorder, "generate_for_video", slowly)
    frame = pd.DataFrame({"video": ["a.mp4"], "as_base64": [True]})
    threads = [threading.Thread(target=served.predict, args=(None, frame)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_code_of_another_format_is_not_mixed_in(
    model: tuple[ServedModel, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert serving.FORMAT == cdcd.MODEL_FORMAT
    monkeypatch.setattr(cdcd, "MODEL_FORMAT", 2)
    with pytest.raises(
        RequestError, match=r"a model of format 1 must be loaded with the code that"
    ):
        model[0].load_context(SimpleNamespace(artifacts={}))


# Pictures


def _served(data: Path, name: str) -> ServedModel:
    kinds = {"model": "models", "codec": "codecs", "encoder": "encoders"}
    if name == "imagenet":
        del kinds["encoder"]
    served = ServedModel()
    artifacts = {key: str(data / kind / name) for key, kind in kinds.items()}
    served.load_context(SimpleNamespace(artifacts=artifacts))
    return served


@pytest.fixture(scope="module")
def of_text(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    data = tiny_models.write_models(tmp_path_factory.mktemp("text") / "data", "cub200")
    return _served(data, "cub200")


@pytest.fixture(scope="module")
def of_class(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    data = tmp_path_factory.mktemp("class") / "data"
    spec = ClassSpec(len(tiny_models.CLASS_NAMES), 8)
    return _served(tiny_models.write_models(data, "imagenet", spec), "imagenet")


def test_texts_become_pictures(of_text: ServedModel, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "text": ["a red bird", "a blue bird " * 200],
            "out": [str(tmp_path / "red.png"), None],
            "num": [None, 3],
            "seed": [4, None],
        }
    )
    made = of_text.predict(None, frame)
    columns = ["image_paths", "images_base64", "width", "height", "num_tokens_dropped"]
    assert list(made.columns) == columns
    assert made["image_paths"][0] == [str(tmp_path / "red.png")]
    assert [Path(path).name for path in made["image_paths"][1]] == ["0.png", "1.png", "2.png"]
    assert made["width"].tolist() == made["height"].tolist() == [16, 16]
    assert made["num_tokens_dropped"][0] == 0
    assert made["num_tokens_dropped"][1] > 400
    generator = of_text.generator
    alone = generator.generate_for_texts(["a red bird"], 1, 4, progress=False).images[0]
    with Image.open(tmp_path / "red.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), alone)


@pytest.mark.parametrize("asked", [2, 2.0, "2", "Great Grey Owl", np.int64(2)])
def test_a_class_is_a_number_or_a_name(of_class: ServedModel, tmp_path: Path, asked: Any) -> None:
    of_class.predict(None, pd.DataFrame({"class": [2], "out": [str(tmp_path / "a.png")]}))
    frame = pd.DataFrame({"class": [asked], "out": [str(tmp_path / "b.png")], "guidance": [None]})
    of_class.predict(None, frame)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"class": 1}, r"must have a column text: got \['class'\]; use {\"text\": \[\"a small red"),
        ({}, "must have a column text: got none that the model knows"),
        ({"text": ""}, "a prompt must say something"),
        ({"text": None}, "a prompt must be a text: got float"),
        ({"text": "a bird", "num": 0}, r"num must lie in 1 \.\. 10000: got 0"),
        ({"text": "a bird", "num": 2.7}, r"num must be a whole number: got 2\.7; change it"),
        ({"text": "a bird", "num": float("inf")}, "num must be a whole number: got inf"),
        ({"text": "a bird", "num": [2]}, r"num must be a whole number: got \[2\]"),
        ({"text": "a bird", "guidance": "much"}, "guidance must be a number: got 'much'"),
        ({"text": "a bird", "seed": -1}, "seed must lie in 0"),
        ({"text": "a bird", "guidance": -1.0}, "guidance must be a number of at least 0"),
        ({"text": "a bird", "truncation": 3.0}, r"truncation must lie in \(0, 1\]"),
        ({"text": "a bird", "out": "x.jpg"}, r"out must end in \.png for one picture: got x\.jpg"),
        ({"text": "a bird", "out": "file", "num": 2}, "out must be a folder for 2 pictures"),
    ],
)
def test_a_bad_row_is_one_line_before_anything_is_drawn(
    of_text: ServedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    row: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    good = {"text": "a bird", "out": "good.png"} if "text" in row else {}
    with pytest.raises(ValueError, match=words) as caught:
        of_text.predict(None, pd.DataFrame([good, row] if good else [row]))
    assert "\n" not in str(caught.value)
    assert not Path("good.png").exists()


def test_pictures_come_in_the_answer(
    of_class: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    of_class.predict(None, pd.DataFrame({"class": [2], "num": [2], "out": [str(out)]}))
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    made = of_class.predict(None, pd.DataFrame({"class": [2], "num": [2]}))
    assert made["image_paths"][0] is None
    sent = [base64.b64decode(image) for image in made["images_base64"][0]]
    assert sent == [(out / name).read_bytes() for name in ("0.png", "1.png")]
    with pytest.raises(RequestError, match=r"at most 64 pictures \(CDCD_MAX_PICTURES\): got 66"):
        of_class.predict(None, pd.DataFrame({"class": [2, 1], "num": [33, 33]}))
    with pytest.raises(RequestError, match="out must be no path"):
        of_class.predict(None, pd.DataFrame({"class": [2], "out": ["a.png"]}))
