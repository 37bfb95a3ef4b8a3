"""data/shards -> data/codecs: train the music codec, or take released weights by path."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cdcd.config import Params
from flows.stage import folder, remember_run, stage_main


def codec(params: Params, dataset: str) -> Mapping[str, Any]:
    """Train the codec that turns music into tokens and back."""
    from cdcd.codecs.train import train_codec
    from cdcd.tracking import open_run

    out_dir = folder("codecs", dataset)
    with open_run("codec", dataset, {"codec": params.codec.model_dump()}) as tracker:
        summary = train_codec(params, folder("shards", dataset), out_dir, tracker=tracker)
        remember_run(out_dir, tracker)
    return summary


if __name__ == "__main__":
    sys.exit(stage_main("codec", codec))
