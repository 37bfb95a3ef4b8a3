"""The registered model: rows in, files out, options passed on only where they are given."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cdcd import tasks
from cdcd.models.picture_conditioner import ClassSpec
from cdcd.serving import ServedModel
from tests.cdcd.generation import tiny_models


class Recorder:
    """Stands for a generator; remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Path, Path, dict[str, Any]]] = []

    def generate_for_video(self, video: Path, out: Path, **options: Any) -> dict[str, Any]:
        self.calls.append((video, out, options))
        return {"sample_rate_hz": 22050, "duration_seconds": 1.5, "out": str(out)}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[ServedModel, Recorder]:
    recorder = Recorder()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.json").write_text('{"task": "dance2music"}')

    def load(*folders: Path | None) -> Recorder:
        assert folders == (folder, Path("a/codec"), None, None)
        return recorder

    monkeypatch.setattr(tasks, "load_generator", load)
    served = ServedModel()
    served.load_context(SimpleNamespace(artifacts={"model": str(folder), "codec": "a/codec"}))
    return served, recorder


def test_each_row_becomes_a_file(model: tuple[ServedModel, Recorder], tmp_path: Path) -> None:
    served, recorder = model
    frame = pd.DataFrame(
        {
            "video": ["x/dance.mp4", "y.mov"],
            "out": [str(tmp_path / "o.mp4"), None],
            "seed": [3, None],
            "guidance": [None, 2.0],
        }
    )
    result = served.predict(None, frame)
    assert list(result.columns) == ["audio_path", "sample_rate_hz", "duration_seconds"]
    (video, out, options), (_, other, more) = recorder.calls
    assert (video, out) == (Path("x/dance.mp4"), tmp_path / "o.mp4")
    assert options == {"progress": False, "seed": 3}
    assert more == {"progress": False, "guidance": 2.0}
    assert other.name == "y.wav"
    assert other.parent.is_dir()
    assert result["audio_path"].tolist() == [str(out), str(other)]


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
    # So MLflow hands on {"video": ["a.mp4", "b.mp4"]}.
    served, recorder = model
    rows = pd.DataFrame({"video": [["a.mp4", "b.mp4"]], "seed": [[1, 2]], "guidance": [2.0]})
    assert len(served.predict(None, rows)) == 2
    asked = [(str(video), options) for video, _, options in recorder.calls]
    assert asked == [
        ("a.mp4", {"progress": False, "seed": 1, "guidance": 2.0}),
        ("b.mp4", {"progress": False, "seed": 2, "guidance": 2.0}),
    ]
    uneven = pd.DataFrame({"video": [["a.mp4", "b.mp4"]], "seed": [[1, 2, 3]]})
    with pytest.raises(ValueError, match="lists of the columns video, seed must be of equal"):
        served.predict(None, uneven)


def test_a_video_is_a_path(model: tuple[ServedModel, Recorder]) -> None:
    served, _ = model
    with pytest.raises(ValueError, match="video must be the path of a file: got 3; give one"):
        served.predict(None, pd.DataFrame({"video": [3]}))


def test_a_missing_column_is_explained(model: tuple[ServedModel, Recorder]) -> None:
    with pytest.raises(ValueError, match=r"must have a column video: got \['clip'\]"):
        model[0].predict(None, pd.DataFrame({"clip": ["a.mp4"]}))


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
    assert list(made.columns) == ["image_paths", "width", "height", "num_tokens_dropped"]
    assert made["image_paths"][0] == [str(tmp_path / "red.png")]
    assert [Path(path).name for path in made["image_paths"][1]] == ["0.png", "1.png", "2.png"]
    assert made["width"].tolist() == made["height"].tolist() == [16, 16]
    assert made["num_tokens_dropped"][0] == 0
    assert made["num_tokens_dropped"][1] > 400
    generator = of_text._generator
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
