"""data/shards + data/codecs -> data/tokens: music and pictures as tokens, once and for all."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cdcd.config import Params
from cdcd.data.samples import TASKS
from flows.stage import folder, stage_main


def encode(params: Params, dataset: str) -> Mapping[str, Any]:
    """Turn the music of every segment, or every picture, into the codec's tokens."""
    folders = [folder(kind, dataset) for kind in ("shards", "codecs", "tokens")]
    if TASKS[dataset] == "dance2music":
        from cdcd.codecs.encode import encode_dataset

        return encode_dataset(params, *folders)
    from cdcd.codecs.encode_pictures import encode_pictures

    return encode_pictures(params, *folders)


if __name__ == "__main__":
    sys.exit(stage_main("encode", encode))
