"""data/shards + data/codecs -> data/tokens: music as tokens, once and for all."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cdcd.config import Params
from flows.stage import folder, stage_main


def encode(params: Params, dataset: str) -> Mapping[str, Any]:
    """Turn the music of every segment into the codec's tokens."""
    from cdcd.codecs.encode import encode_dataset

    return encode_dataset(
        params, folder("shards", dataset), folder("codecs", dataset), folder("tokens", dataset)
    )


if __name__ == "__main__":
    sys.exit(stage_main("encode", encode))
