"""data/shards -> data/features: what the denoiser is conditioned on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cdcd.config import Params
from flows.stage import folder, stage_main


def featurize(params: Params, dataset: str) -> Mapping[str, Any]:
    """Compute motion and video features of every segment."""
    from cdcd.features.extract import featurize as run

    return run(params, folder("shards", dataset), folder("features", dataset))


if __name__ == "__main__":
    sys.exit(stage_main("featurize", featurize))
