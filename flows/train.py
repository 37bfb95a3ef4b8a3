"""data/tokens + data/features -> data/models: train the denoiser with its conditioner."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdcd.config import Params
from cdcd.data.files import write_json
from flows.stage import folder, stage_main


def _interrupted_run(note: Path, fingerprint: str) -> str | None:
    # The MLflow run goes on only where the same training was cut short.
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("run_id") if found.get("fingerprint") == fingerprint else None


def train(params: Params, dataset: str) -> Mapping[str, Any]:
    """Train the denoiser, or continue a training that was interrupted."""
    from cdcd.tasks import train_model
    from cdcd.tracking import open_run

    checkpoint_dir = folder("checkpoints", dataset)
    note = checkpoint_dir.parent / f"{dataset}-run.json"
    fingerprint = hashlib.sha256(params.train.model_dump_json().encode()).hexdigest()
    run_id = _interrupted_run(note, fingerprint)
    with open_run("train", dataset, {"train": params.train.model_dump()}, run_id=run_id) as tracker:
        write_json(note, {"run_id": tracker.run_id, "fingerprint": fingerprint})
        summary = train_model(
            params,
            dataset=dataset,
            tokens_dir=folder("tokens", dataset),
            features_dir=folder("features", dataset),
            codec_dir=folder("codecs", dataset),
            out_dir=folder("models", dataset),
            checkpoint_dir=checkpoint_dir,
            tracker=tracker,
        )
    note.unlink()
    return summary


if __name__ == "__main__":
    sys.exit(stage_main("train", train))
