"""A tiny dance dataset as caches, and a training on it that takes a second."""

from __future__ import annotations

import numpy as np
import yaml

from cdcd.config import parse_params
from cdcd.data.cache import write_split
from cdcd.tasks import train_model
from cdcd.tracking import NullTracker


def write_caches(root, *, has_genres=True):
    """Clips whose tokens follow their features, which tell the class and nothing else."""
    random = np.random.default_rng(0)
    for split, n in (("train", 96), ("val", 6)):
        genres = np.arange(n) % 3
        keys = [f"{split}{i:03d}" for i in range(n)]
        told = genres.tolist() if has_genres else [-1] * n
        facts = {"keys": keys, "genres": told, "songs": [f"m{g}" for g in genres],
                 "sequences": keys, "segment_seconds": 2}  # fmt: skip
        tokens = (genres[:, None] * 10 + random.integers(0, 2, (n, 16))).astype(np.int32)
        intra = np.stack([np.roll(tokens, s, axis=1) for s in (3, 5, 7)], axis=1)
        codec = {"num_codes": 32, "hop": 2756, "sample_rate_hz": 22050, "codec_sha256": "x"}
        write_split(root / "tokens", split, {"tokens": tokens, "intra": intra}, facts | codec)
        one = np.ones(n, np.uint8)
        signal = genres[:, None, None].astype(np.float32)
        arrays = {
            "motion": np.tile(signal, (1, 120, 219)),
            "video": np.tile(signal, (1, 60, 5)),
            "has_motion": one, "has_video": one,
        }  # fmt: skip
        write_split(root / "features", split, arrays,
                    facts | {"video_rate_hz": 30, "motion_rate_hz": 60.0,
                             "video_feature": {"name": "test"}})  # fmt: skip


def make_params(**train):
    tree = yaml.safe_load(open("params.yaml").read())  # noqa: PTH123, SIM115
    tree["train"].update(num_steps=12, batch_size=8, log_every=4, validate_every=4, save_every=5,
                         preview_every=1000, precision="float32")  # fmt: skip
    tree["train"]["denoiser"].update(width=32, depth=1, num_heads=2, dropout=0.1)
    tree["train"]["conditioner"].update(width=16, depth=1)
    tree["train"]["diffusion"].update(num_steps=6)
    tree["train"]["contrast"].update(num_negatives=3, num_chunks=4)
    tree["encode"].update(num_waveform_negatives=3)
    for key, value in train.items():
        if isinstance(value, dict):
            tree["train"][key].update(value)
        else:
            tree["train"][key] = value
    return parse_params(tree)


def run(caches, out, params, tracker=None, **options):
    return train_model(
        params, dataset="aist", tokens_dir=caches / "tokens", features_dir=caches / "features",
        codec_dir=caches / "codec", out_dir=out / "model", checkpoint_dir=out / "checkpoint",
        tracker=tracker, **options,
    )  # fmt: skip


def weights(out):
    return (out / "model" / "model.safetensors").read_bytes()


class Losses(NullTracker):
    """Keeps the total loss of every step."""

    def __init__(self):
        self.totals = []

    def log_metrics(self, metrics, step):
        if "loss" in metrics:
            self.totals.append(metrics["loss"])
