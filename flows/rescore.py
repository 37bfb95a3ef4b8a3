"""Scores the champion again on seeds it was never scored with: has it only been lucky?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdcd.config import Params
from flows import evaluate
from flows.pipeline import only_one
from flows.stage import folder


def rescore(params: Params, dataset: str, seeds: Sequence[int]) -> Mapping[str, Any]:
    """Generate with the champion for the held-out conditions, and score that.

    Nothing of the pipeline's outputs is touched; the table goes into a run `rescore@<dataset>` and
    onto the version as tags `rescore.*`.

    Args:
        params: the dataset's own view.
        dataset: whose champion, and whose held-out data.
        seeds: of the generation.

    Returns:
        model, version, score (name, mean, low, high) and the mean it was promoted with.

    Raises:
        BusyError: a pipeline is at work on the data that this would read.
        ValueError: there is no champion, or held-out data is missing.
        TrackingError: the registry cannot be opened.
    """
    from cdcd import tracking
    from cdcd.promotion import CHAMPION, PromotionError, Score, now, read_scores
    from cdcd.tasks import generate_split

    name, main = str(getattr(params.register_.names, dataset)), params.register_.main_score
    champion = tracking.version_by_alias(name, CHAMPION)
    if champion is None:
        raise PromotionError(
            f"rescore needs a champion: {name} has none; register one with `dvc repro "
            f"register@{dataset}`"
        )
    generate = params.generate.model_copy(update={"seeds": list(seeds)})
    params = params.model_copy(update={"generate": generate})
    artifacts = tracking.download_model(champion.uri)
    shared = {
        "model_dir": artifacts["model"],
        "codec_dir": artifacts["codec"],
        "encoder_dir": artifacts.get("encoder", folder("encoders", dataset)),
        "tokens_dir": folder("tokens", dataset),
        "features_dir": folder("features", dataset),
        "shards_dir": folder("shards", dataset),
    }
    tags = {"version": champion.version, "seeds": ",".join(map(str, seeds))}
    held_out = [str(shared[name]) for name in ("shards_dir", "tokens_dir", "features_dir")]
    with (
        only_one(),
        tempfile.TemporaryDirectory() as temporary,
        tracking.open_run("rescore", dataset, tags=tags, paths=held_out) as tracker,
    ):
        out = Path(temporary)
        generate_split(params, out_dir=out / "generated", tracker=tracker, **shared)
        evaluate.score(
            params,
            dataset,
            tracker,
            **shared,
            generated_dir=out / "generated",
            metrics_path=out / "metrics.json",
            plot_path=out / "metrics.png",
            report_dir=out / "report",
        )
        found = read_scores(out / "metrics.json", "model").get(main)
    if found is None:
        raise ValueError(f"rescore must find {main} of the model: got none; see the run's report")
    tracking.set_version_tags(
        champion,
        {"rescore.at": now(), f"rescore.{main}": str(found), "rescore.seeds": tags["seeds"]},
    )
    before = Score.of_tags(main, champion.tags)
    return {
        "model": name,
        "version": champion.version,
        "score": {"name": main, "mean": found.mean, "low": found.low, "high": found.high},
        "promoted_with": None if before is None else before.mean,
    }
