"""data/raw -> data/shards: segments of audio, motion and video in tar files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cdcd.config import Params
from flows.stage import folder, stage_main


def shard(params: Params, dataset: str) -> Mapping[str, Any]:
    """Cut the sequences of data/raw into segments and pack them into data/shards."""
    from cdcd.data.sharding import shard as run

    return run(params, folder("raw", dataset), folder("shards", dataset))


if __name__ == "__main__":
    sys.exit(stage_main("shard", shard))
