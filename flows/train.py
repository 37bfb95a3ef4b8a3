"""data/tokens + data/features -> data/models: train the denoiser with its conditioner.

Alone, as several processes where CDCD_TRAIN_PROCESSES says so, or as one of those that
`torchrun --nproc-per-node 2 -m flows.train --dataset aist` starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdcd.config import Params
from cdcd.data.files import write_json
from flows.launch import (
    LOST,
    end_with_parent,
    hurry_no_more,
    is_rank,
    launch,
    num_processes,
    tell,
)
from flows.stage import (
    folder,
    guarded,
    params_of,
    parse_dataset,
    remember_run,
    run_id_path,
    run_stage,
)

if TYPE_CHECKING:
    from cdcd.tracking import Tracker
    from cdcd.training.ranks import Ranks


def _interrupted_run(note: Path, fingerprint: str) -> str | None:
    # The MLflow run goes on only where the same training was cut short.
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("run_id") if found.get("fingerprint") == fingerprint else None


def train(params: Params, dataset: str) -> Mapping[str, Any]:
    """Train the denoiser, or continue a training that was interrupted."""
    from cdcd.training.ranks import joined

    with joined() as ranks:
        return _first(params, dataset, ranks) if ranks.is_first else _other(params, dataset, ranks)


def _first(params: Params, dataset: str, ranks: Ranks) -> Mapping[str, Any]:
    from cdcd.tracking import open_run

    checkpoint_dir = folder("checkpoints", dataset)
    note = checkpoint_dir.parent / f"{dataset}-run.json"
    fingerprint = hashlib.sha256(params.train.model_dump_json().encode()).hexdigest()
    run_id = _interrupted_run(note, fingerprint)
    settings = {"train": params.train.model_dump()}
    with open_run("train", dataset, settings, run_id=run_id, has_system_metrics=True) as tracker:
        write_json(note, {"run_id": tracker.run_id, "fingerprint": fingerprint})
        summary = _train(params, dataset, ranks, tracker)
        remember_run(run_id_path("train", dataset), tracker)
    note.unlink()
    return summary


def _other(params: Params, dataset: str, ranks: Ranks) -> Mapping[str, Any]:
    from cdcd.tracking import NullTracker

    return _train(params, dataset, ranks, NullTracker())


def _train(params: Params, dataset: str, ranks: Ranks, tracker: Tracker) -> Mapping[str, Any]:
    from cdcd.tasks import train_model

    return train_model(
        params,
        dataset=dataset,
        tokens_dir=folder("tokens", dataset),
        features_dir=folder("features", dataset),
        codec_dir=folder("codecs", dataset),
        out_dir=folder("models", dataset),
        checkpoint_dir=folder("checkpoints", dataset),
        tracker=tracker,
        ranks=ranks,
    )


def _as_rank(dataset: str) -> int:
    """One of several processes: the first is the stage, the others only compute."""
    from cdcd.training.ranks import PeerLostError

    end_with_parent()
    try:
        if os.environ["RANK"] == "0":
            run_stage("train", train, dataset)
        else:
            train(params_of(dataset), dataset)
    except PeerLostError as error:
        hurry_no_more()
        tell(str(error))
        return LOST
    return 0


def main(arguments: Iterable[str] | None = None) -> int:
    """`python -m flows.train --dataset aist`: the stage, one of its processes, or what starts them.

    Returns:
        0, 1 after an error, 130 after an interruption; 74 in a process whose peer ended first.
    """
    dataset = parse_dataset("train", train, arguments)
    label = f"train@{dataset}"
    if is_rank():
        code = guarded(
            lambda: _as_rank(dataset), label, lambda line: tell(line.removeprefix(f"{label}: "))
        )
        hurry_no_more()
        return code

    def call() -> None:
        num = num_processes()
        if num == 1:
            run_stage("train", train, dataset)
        else:
            launch("flows.train", ["--dataset", dataset], num)

    return guarded(call, label)


if __name__ == "__main__":
    sys.exit(main())
