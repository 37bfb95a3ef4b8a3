"""data/models + data/metrics -> model registry: a version with `candidate`, perhaps `champion`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cdcd.config import Params
from flows.stage import DATA, folder, run_id_path, stage_main


def register(params: Params, dataset: str) -> Mapping[str, Any]:
    """Register the trained pipeline as a model that needs nothing of this repository."""
    from cdcd.registration import register_model
    from cdcd.tracking import read_run_id

    return register_model(
        params,
        dataset=dataset,
        model_dir=folder("models", dataset),
        codec_dir=folder("codecs", dataset),
        encoder_dir=folder("encoders", dataset),
        # No dependency: the same model of another run is still the same model.
        train_run_id=read_run_id(run_id_path("train", dataset)),
        shards_dir=folder("shards", dataset),
        metrics_path=DATA / "metrics" / f"{dataset}.json",
        out_path=DATA / "registered" / f"{dataset}.json",
    )


if __name__ == "__main__":
    sys.exit(stage_main("register", register))
