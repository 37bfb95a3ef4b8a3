"""data/generated -> data/metrics: scores beside their controls, a figure and a report."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdcd.config import Params
from cdcd.data.samples import TASKS
from cdcd.tracking import Tracker
from flows.stage import DATA, folder, stage_main


def score(params: Params, dataset: str, tracker: Tracker, **folders: Path) -> Mapping[str, Any]:
    """Score what lies in a folder beside its controls, as the dataset's task asks.

    Args:
        params: the dataset's own view.
        dataset: its name.
        tracker: receives table, figure and report.
        folders: the paths that the task's evaluation takes; `encoder_dir` is left out for music.
    """
    if TASKS[dataset] == "dance2music":
        from cdcd.evaluation.evaluate import evaluate as run

        folders.pop("encoder_dir", None)
        return run(params, dataset=dataset, tracker=tracker, **folders)
    from cdcd.evaluation.pictures import evaluate_pictures

    return evaluate_pictures(params, dataset=dataset, tracker=tracker, **folders)


def evaluate(params: Params, dataset: str) -> Mapping[str, Any]:
    """Score what was generated beside its controls."""
    from cdcd.evaluation import compact
    from cdcd.tracking import open_run

    metrics_path = DATA / "metrics" / f"{dataset}.json"
    with open_run("evaluate", dataset, {"evaluate": params.evaluate.model_dump()}) as tracker:
        metrics = score(
            params,
            dataset,
            tracker,
            generated_dir=folder("generated", dataset),
            shards_dir=folder("shards", dataset),
            codec_dir=folder("codecs", dataset),
            encoder_dir=folder("encoders", dataset),
            tokens_dir=folder("tokens", dataset),
            features_dir=folder("features", dataset),
            model_dir=folder("models", dataset),
            metrics_path=metrics_path,
            plot_path=metrics_path.with_suffix(".png"),
            report_dir=folder("reports", dataset),
        )
    compact.write_compact(
        metrics,
        scores_path=metrics_path.with_name(f"{dataset}-scores.json"),
        bars_path=metrics_path.with_suffix(".csv"),
    )
    return metrics


if __name__ == "__main__":
    sys.exit(stage_main("evaluate", evaluate))
