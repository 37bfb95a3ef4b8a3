"""The registered model: rows in, files out, options passed on only where they are given."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from cdcd import tasks
from cdcd.serving import DanceToMusic


class Recorder:
    """Stands for a generator; remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Path, Path, dict[str, Any]]] = []

    def generate_for_video(self, video: Path, out: Path, **options: Any) -> dict[str, Any]:
        self.calls.append((video, out, options))
        return {"sample_rate_hz": 22050, "duration_seconds": 1.5, "out": str(out)}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> tuple[DanceToMusic, Recorder]:
    recorder = Recorder()

    def load(model_dir: Path, codec_dir: Path) -> Recorder:
        assert (model_dir, codec_dir) == (Path("a/model"), Path("a/codec"))
        return recorder

    monkeypatch.setattr(tasks, "load_generator", load)
    served = DanceToMusic()
    served.load_context(SimpleNamespace(artifacts={"model": "a/model", "codec": "a/codec"}))
    return served, recorder


def test_each_row_becomes_a_file(model: tuple[DanceToMusic, Recorder], tmp_path: Path) -> None:
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


def test_a_mapping_works_as_well(model: tuple[DanceToMusic, Recorder]) -> None:
    served, recorder = model
    served.predict(None, {"video": ["a.mp4"]})  # type: ignore[arg-type]
    assert recorder.calls[0][2] == {"progress": False}


def test_a_missing_column_is_explained(model: tuple[DanceToMusic, Recorder]) -> None:
    with pytest.raises(ValueError, match=r"must have a column video with paths: got \['clip'\]"):
        model[0].predict(None, pd.DataFrame({"clip": ["a.mp4"]}))
