"""data/shards -> data/codecs and data/encoders: the codec, and the text encoder of captions."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cdcd.config import Params
from cdcd.data.files import atomic_directory, write_json
from cdcd.data.samples import TASKS
from flows.stage import folder, remember_run, run_id_path, stage_main


def codec(params: Params, dataset: str) -> Mapping[str, Any]:
    """Train what turns music or pictures into tokens and back, and what reads captions."""
    from cdcd.tracking import open_run

    task, shards_dir = TASKS[dataset], folder("shards", dataset)
    settings = {"codec": params.codec.model_dump()}
    with open_run("codec", dataset, settings, has_system_metrics=True) as tracker:
        with atomic_directory(folder("encoders", dataset)) as encoder_dir:
            text: Mapping[str, Any] = {"encoder": None}
            if task == "text2image":
                from cdcd.features.clip import train_clip

                (encoder_dir / "text").mkdir()
                text = train_clip(params, shards_dir, encoder_dir / "text", tracker)
            write_json(encoder_dir / "summary.json", dict(text))
        out_dir = folder("codecs", dataset)
        if task == "dance2music":
            from cdcd.codecs.train import train_codec

            summary = train_codec(params, shards_dir, out_dir, tracker=tracker)
        else:
            from cdcd.codecs.pictures import train_picture_codec

            with atomic_directory(out_dir) as codec_dir:
                summary = train_picture_codec(params, shards_dir, codec_dir, tracker)
        remember_run(run_id_path("codec", dataset), tracker)
    return {**summary, "text": text} if task == "text2image" else summary


if __name__ == "__main__":
    sys.exit(stage_main("codec", codec))
