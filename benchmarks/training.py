"""A training on what the pipeline left in data/, whose results are thrown away."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from cdcd.config import Params
from cdcd.tasks import train_model
from cdcd.tracking import Tracker


def train_in_vain(params: Params, dataset: str, tracker: Tracker, **more: Any) -> None:
    """Train a dataset's denoiser; the model and its checkpoints are gone afterwards.

    Args:
        params: the dataset's own view.
        dataset: whose tokens, features and codec are in data/.
        tracker: receives what the loop records.
        more: further arguments of `train_model`.
    """
    data = Path("data")
    with tempfile.TemporaryDirectory() as temporary:
        train_model(
            params,
            dataset=dataset,
            tokens_dir=data / "tokens" / dataset,
            features_dir=data / "features" / dataset,
            codec_dir=data / "codecs" / dataset,
            out_dir=Path(temporary) / "model",
            checkpoint_dir=Path(temporary) / "checkpoint",
            tracker=tracker,
            **more,
        )
