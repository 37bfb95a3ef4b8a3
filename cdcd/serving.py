"""The registered model: a video's path, a text or a class in, files out.

MLflow runs this file by itself when it loads the model (models-from-code), so it pickles nothing:
the weights are safetensors among the model's artifacts, the code is a copy of `cdcd` and `kernels`.
"""

from __future__ import annotations

import tempfile
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pandas as pd

COLUMNS = {"dance2music": "video", "text2image": "text", "class2image": "class"}
"""The column that each task reads."""
EXAMPLES = {
    "video": '{"video": ["dance.mp4"]}',
    "text": '{"text": ["a small red bird with black wings"]}',
    "class": '{"class": [3]}',
}


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Music for dance videos, or pictures from text or of classes: whatever the model was made for.

    Every row has one column that the task needs, and may have `out`, `seed` (default 0),
    `guidance` and `truncation` (default: those the model was scored with).

    - `video`: a path. `out` ends in .wav or .mp4 (default: a wav in a new temporary folder).
      Columns that come back: `audio_path`, `sample_rate_hz`, `duration_seconds`.
    - `text`, or `class` by number or name: `num` pictures (default 1). `out` ends in .png, or is
      the folder of several (default: a new temporary folder). Columns that come back:
      `image_paths` (a list), `width`, `height`, `num_tokens_dropped` (of a text that is longer than
      the model reads).
    """

    def load_context(self, context: Any) -> None:
        """Load the generator of the task that the model's artifacts name."""
        from cdcd.generation.base import read_sampler, read_task
        from cdcd.tasks import load_generator

        artifacts = {name: Path(path) for name, path in context.artifacts.items()}
        self._column = COLUMNS[read_task(artifacts["model"])]
        self._generator: Any = load_generator(
            artifacts["model"],
            artifacts["codec"],
            artifacts.get("encoder"),
            read_sampler(artifacts.get("sampler")),
        )

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Generate for each row; all rows are looked at before the first is generated.

        Raises:
            ValueError: the task's column is missing, or a row cannot be used.
        """
        frame = pd.DataFrame(model_input)
        if self._column not in frame.columns:
            raise ValueError(
                f"the input must have a column {self._column}: got {sorted(frame.columns)}; "
                f"use {EXAMPLES[self._column]}"
            )
        rows = _one_each(frame, self._column).to_dict("records")
        if self._column == "video":
            return pd.DataFrame([self._music(row) for row in rows])
        return pd.DataFrame([self._pictures(asked) for asked in [*map(self._asked, rows)]])

    def _music(self, row: dict[Any, Any]) -> dict[str, Any]:
        if not isinstance(row["video"], str | Path):
            raise ValueError(f"video must be the path of a file: got {row['video']!r}; give one")
        video = Path(row["video"])
        path = _path(row.get("out"), f"{video.stem}.wav")
        options = _options(row, seed=int, guidance=float, truncation=float)
        summary = self._generator.generate_for_video(video, path, progress=False, **options)
        return {
            "audio_path": str(path),
            "sample_rate_hz": int(summary["sample_rate_hz"]),
            "duration_seconds": float(summary["duration_seconds"]),
        }

    def _asked(self, row: dict[Any, Any]) -> _Asked:
        from cdcd.generation.pictures import check_num

        cell, num_dropped = row[self._column], 0
        condition: str | int
        if self._column == "text":
            prompt = self._generator.check_text(cell)
            condition, num_dropped = prompt.text, prompt.cut.num_dropped if prompt.cut else 0
        else:
            is_whole = isinstance(cell, float) and cell.is_integer()
            condition = self._generator.find_class(int(cell) if is_whole else cell)
        options = _options(row, num=int, seed=int)
        num, seed = options.get("num", 1), options.get("seed", 0)
        check_num(num)
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must lie in 0 .. 2**63 - 1: got {seed}; use 0")
        config = self._generator.sampler(**_options(row, guidance=float, truncation=float))
        out = row.get("out")
        if _given(out) and num == 1 and Path(str(out)).suffix.lower() != ".png":
            raise ValueError(f"out must end in .png for one picture: got {out}; rename it")
        if _given(out) and num > 1 and Path(str(out)).is_file():
            raise ValueError(f"out must be a folder for {num} pictures: {out} is a file; rename it")
        return _Asked(condition, num, seed, config, out, num_dropped)

    def _pictures(self, asked: _Asked) -> dict[str, Any]:
        from cdcd.pictures import save_png

        if asked.num == 1:
            paths = [_path(asked.out, "picture.png")]
        else:
            digits = len(str(asked.num - 1))
            folder = _path(asked.out, "pictures")
            paths = [folder / f"{index:0{digits}d}.png" for index in range(asked.num)]
        drawn = self._generator.draw(asked.condition, asked.num, asked.seed, asked.config)
        for path, image in zip(paths, chain.from_iterable(drawn), strict=True):
            save_png(image, path)
        side = int(self._generator.image_size)
        return {
            "image_paths": [str(path) for path in paths],
            "width": side,
            "height": side,
            "num_tokens_dropped": asked.num_tokens_dropped,
        }


class _Asked(NamedTuple):
    """A row that was looked at."""

    condition: str | int
    num: int
    seed: int
    config: Any
    out: Any
    num_tokens_dropped: int


def _one_each(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """A row for each wish: MLflow turns {"text": ["a", "b"]} into one row with lists in it."""

    def is_list(cell: Any) -> bool:
        return isinstance(cell, list | tuple | np.ndarray)

    if not any(map(is_list, frame[column])):
        return frame
    lists = [str(name) for name in frame.columns if any(map(is_list, frame[name]))]
    try:
        return frame.explode(lists, ignore_index=True)
    except ValueError:
        raise ValueError(
            f"lists of the columns {', '.join(lists)} must be of equal length: got others; give "
            "one entry for each"
        ) from None


def _given(value: Any) -> bool:
    """Whether an optional cell holds a value; a missing column, None, NaN and NA do not."""
    return not (pd.api.types.is_scalar(value) and pd.isna(value))


def _options(row: dict[Any, Any], **kinds: type[int] | type[float]) -> dict[str, Any]:
    """The optional cells that hold a value, as numbers."""
    return {
        name: _number(name, row[name], kind)
        for name, kind in kinds.items()
        if _given(row.get(name))
    }


def _number(name: str, cell: Any, kind: type[int] | type[float]) -> float:
    """A cell as a number; a column with gaps turns whole numbers into floats."""
    try:
        number = kind(cell)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or (isinstance(cell, float) and number != cell):
        asked = "a whole number" if kind is int else "a number"
        told = repr(cell)[:40]
        raise ValueError(f"{name} must be {asked}: got {told}; change it or leave it out")
    return number


def _path(out: Any, default: str) -> Path:
    """Where a row's output goes: where it says, or into a new temporary folder."""
    return Path(str(out)) if _given(out) else Path(tempfile.mkdtemp(prefix="cdcd-")) / default


mlflow.models.set_model(ServedModel())
