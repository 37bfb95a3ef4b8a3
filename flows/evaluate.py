"""data/generated -> data/metrics: scores beside their controls, a figure and a report."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cdcd.config import Params
from cdcd.data.samples import TASKS
from flows.stage import DATA, folder, stage_main


def evaluate(params: Params, dataset: str) -> Mapping[str, Any]:
    """Score what was generated beside its controls."""
    from cdcd.tracking import open_run

    folders = {
        "generated_dir": folder("generated", dataset),
        "shards_dir": folder("shards", dataset),
        "codec_dir": folder("codecs", dataset),
        "tokens_dir": folder("tokens", dataset),
        "features_dir": folder("features", dataset),
        "model_dir": folder("models", dataset),
        "metrics_path": DATA / "metrics" / f"{dataset}.json",
        "plot_path": DATA / "metrics" / f"{dataset}.png",
        "report_dir": folder("reports", dataset),
    }
    with open_run("evaluate", dataset, {"evaluate": params.evaluate.model_dump()}) as tracker:
        if TASKS[dataset] == "dance2music":
            from cdcd.evaluation.evaluate import evaluate as run

            return run(params, dataset=dataset, tracker=tracker, **folders)
        from cdcd.evaluation.pictures import evaluate_pictures

        encoder_dir = folder("encoders", dataset)
        return evaluate_pictures(
            params, dataset=dataset, tracker=tracker, encoder_dir=encoder_dir, **folders
        )


if __name__ == "__main__":
    sys.exit(stage_main("evaluate", evaluate))
