"""Downloaded files -> data/raw: a manifest with checksums, splits and reasons for skipping."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cdcd.config import Params
from flows.stage import folder, stage_main


def ingest(params: Params, dataset: str) -> Mapping[str, Any]:
    """Read a download, or write and read the embedded stand-in, into data/raw."""
    from cdcd.data.ingest import ingest as run

    return run(params, dataset, folder("raw", dataset))


if __name__ == "__main__":
    sys.exit(stage_main("ingest", ingest))
