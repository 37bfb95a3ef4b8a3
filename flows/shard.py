"""data/raw -> data/shards: samples of dance and music, or pictures, in tars; and the datasheet."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cdcd.config import Params
from flows.mapping import cluster_of, make_mapper
from flows.stage import folder, stage_main


def shard(params: Params, dataset: str) -> Mapping[str, Any]:
    """Turn the items of data/raw into samples and pack them into data/shards."""
    from cdcd.data.datasheet import write_datasheet
    from cdcd.data.sharding import shard as run
    from cdcd.tracking import open_run

    raw_dir, shards_dir = folder("raw", dataset), folder("shards", dataset)
    mapper = make_mapper(params.shard.num_workers, cluster_of(params.shard.cluster))
    summary = run(params, raw_dir, shards_dir, mapper)
    with open_run("shard", dataset, {"shard": params.shard.model_dump()}) as tracker:
        sheet = write_datasheet(raw_dir, shards_dir, folder("datasheets", dataset))
        tracker.log_artifact(sheet, "datasheet")
    return summary


if __name__ == "__main__":
    sys.exit(stage_main("shard", shard))
