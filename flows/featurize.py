"""data/shards -> data/features: what the denoiser is conditioned on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cdcd.config import Params
from cdcd.data.samples import TASKS
from flows.stage import folder, stage_main


def featurize(params: Params, dataset: str) -> Mapping[str, Any]:
    """Compute motion and video features of every segment, or text features of every caption."""
    shards_dir, out_dir = folder("shards", dataset), folder("features", dataset)
    match TASKS[dataset]:
        case "dance2music":
            from cdcd.features.extract import featurize as run

            return run(params, shards_dir, out_dir)
        case "text2image":
            from cdcd.features.captions import featurize_captions

            return featurize_captions(params, shards_dir, folder("encoders", dataset), out_dir)
        case _:
            from cdcd.features.captions import featurize_classes

            return featurize_classes(params, shards_dir, out_dir)


if __name__ == "__main__":
    sys.exit(stage_main("featurize", featurize))
