"""The registered model: a video's path in, a file with music out.

MLflow runs this file by itself when it loads the model (models-from-code), so it pickles nothing:
the weights are safetensors among the model's artifacts, the code is a copy of `cdcd` and `kernels`.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd


def _given(value: Any) -> bool:
    """Whether an optional cell holds a value; a missing column and NaN do not."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


class DanceToMusic(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Music for dance videos, one row each.

    Input columns: `video` (path); optional `out` (path ending in .wav or .mp4, default: a wav in a
    new temporary folder), `seed` (default 0), `guidance` and `truncation` (default: the model's).
    Output columns: `audio_path`, `sample_rate_hz`, `duration_seconds`.
    """

    def load_context(self, context: Any) -> None:
        """Load the generator from the model's artifacts."""
        from cdcd.tasks import load_generator

        self._generator = load_generator(
            Path(context.artifacts["model"]), Path(context.artifacts["codec"])
        )

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Generate music of each video's length.

        Raises:
            ValueError: no column `video`, or a video that cannot be used.
        """
        frame = pd.DataFrame(model_input)
        if "video" not in frame.columns:
            raise ValueError(
                f"the input must have a column video with paths: got {sorted(frame.columns)}; "
                'use {"video": ["dance.mp4"]}'
            )
        return pd.DataFrame([self._generate(row) for row in frame.to_dict("records")])

    def _generate(self, row: dict[Any, Any]) -> dict[str, Any]:
        video = Path(row["video"])
        out = row.get("out")
        if _given(out):
            path = Path(str(out))
        else:
            path = Path(tempfile.mkdtemp(prefix="cdcd-")) / f"{video.stem}.wav"
        options: dict[str, Any] = {
            name: kind(row[name])
            for name, kind in (("seed", int), ("guidance", float), ("truncation", float))
            if _given(row.get(name))
        }
        summary = self._generator.generate_for_video(video, path, progress=False, **options)
        return {
            "audio_path": str(path),
            "sample_rate_hz": int(summary["sample_rate_hz"]),
            "duration_seconds": float(summary["duration_seconds"]),
        }


mlflow.models.set_model(DanceToMusic())
