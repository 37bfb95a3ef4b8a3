"""data/generated -> data/metrics: scores beside their controls, a figure and a report."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cdcd.config import Params
from flows.stage import DATA, folder, stage_main


def evaluate(params: Params, dataset: str) -> Mapping[str, Any]:
    """Score the generated music and its controls."""
    from cdcd.evaluation.evaluate import evaluate as run
    from cdcd.tracking import open_run

    with open_run("evaluate", dataset, {"evaluate": params.evaluate.model_dump()}) as tracker:
        return run(
            params,
            dataset=dataset,
            generated_dir=folder("generated", dataset),
            shards_dir=folder("shards", dataset),
            codec_dir=folder("codecs", dataset),
            tokens_dir=folder("tokens", dataset),
            features_dir=folder("features", dataset),
            model_dir=folder("models", dataset),
            metrics_path=DATA / "metrics" / f"{dataset}.json",
            plot_path=DATA / "metrics" / f"{dataset}.png",
            report_dir=folder("reports", dataset),
            tracker=tracker,
        )


if __name__ == "__main__":
    sys.exit(stage_main("evaluate", evaluate))
