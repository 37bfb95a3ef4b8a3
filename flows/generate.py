"""data/models + held-out conditions -> data/generated: music and pictures from the full mask."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cdcd.config import Params
from flows.stage import folder, stage_main


def generate(params: Params, dataset: str) -> Mapping[str, Any]:
    """Generate music or pictures for the held-out conditions, from every system and seed."""
    from cdcd.tasks import generate_split
    from cdcd.tracking import open_run

    with open_run("generate", dataset, {"generate": params.generate.model_dump()}) as tracker:
        return generate_split(
            params,
            model_dir=folder("models", dataset),
            codec_dir=folder("codecs", dataset),
            encoder_dir=folder("encoders", dataset),
            features_dir=folder("features", dataset),
            tokens_dir=folder("tokens", dataset),
            shards_dir=folder("shards", dataset),
            out_dir=folder("generated", dataset),
            tracker=tracker,
        )


if __name__ == "__main__":
    sys.exit(stage_main("generate", generate))
