"""Dance to music, composed: from cached tokens and features to a model, from a model to music."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdcd.config import Params
from cdcd.data.batches import (
    FeatureSplit,
    PairedSplit,
    feature_statistics,
    read_features,
    read_pairs,
)
from cdcd.data.cache import list_splits, write_split
from cdcd.data.files import atomic_directory, write_json
from cdcd.data.samples import GENRES
from cdcd.diffusion.sampler import SamplerConfig
from cdcd.diffusion.schedule import Schedule
from cdcd.generation import MusicGenerator
from cdcd.models.conditioner import DanceSpec, SequenceConditioner
from cdcd.models.inputs import ConditionInputs
from cdcd.models.model import ConditionalDenoiser, ModelSpec
from cdcd.tasks.training import spread
from cdcd.tracking import NullTracker, Tracker

SYSTEMS = {
    "model": (True, True),
    "video_only": (False, True),
    "unconditioned": (False, False),
}
"""What each generated system may see: (motion, video)."""


class DanceToMusic:
    """What training on dances adds.

    Args:
        params: sections `train` and `generate` are used.
        tokens_dir: cached tokens.
        features_dir: cached features of the same clips.
        codec_dir: the codec, only to listen to previews.
    """

    name = "dance2music"

    def __init__(
        self, params: Params, tokens_dir: Path, features_dir: Path, codec_dir: Path
    ) -> None:
        self.params = params
        self.tokens_dir = tokens_dir
        self.features_dir = features_dir
        self.codec_dir = codec_dir

    def read(self, split: str) -> PairedSplit | None:
        """Tokens and features of a split; None where the dataset has no such split."""
        if split not in list_splits(self.tokens_dir):
            return None
        return read_pairs(self.tokens_dir, self.features_dir, split)

    def spec(self, pairs: PairedSplit) -> ModelSpec:
        """The network's shape, from the parameters and from what was cached."""
        return make_spec(self.params, pairs)

    def prepare(self, model: ConditionalDenoiser, pairs: PairedSplit) -> None:
        """Standardise the encoders' inputs by the statistics of the train split."""
        _standardise(model, pairs.features)

    def facts(self, pairs: PairedSplit) -> dict[str, Any]:
        """Codec and features that the model belongs to."""
        return {
            "codec": {name: pairs.info[name] for name in ("sample_rate_hz", "hop", "num_codes")},
            "codec_sha256": pairs.info["codec_sha256"],
            "video_feature": pairs.features.info["video_feature"],
            "segment_seconds": pairs.info["segment_seconds"],
        }

    def preview(
        self,
        model: ConditionalDenoiser,
        held_out: PairedSplit,
        schedule: Schedule,
        tracker: Tracker,
        step: int,
    ) -> None:
        """Two clips, generated and logged as audio and spectrograms."""
        _preview(self.params, model, held_out, schedule, self.codec_dir, tracker, step)


def make_spec(params: Params, pairs: PairedSplit) -> ModelSpec:
    """The network's shape, from the parameters and from what was cached."""
    p, features = params.train, pairs.features
    conditioner, denoiser = p.conditioner, p.denoiser
    if conditioner.use_genre and bool((features.genres < 0).any()):
        raise ValueError(
            "train.conditioner.use_genre must be false where clips have no genre: got true; "
            "this dataset has no genre labels"
        )
    return ModelSpec(
        num_codes=int(pairs.info["num_codes"]),
        num_steps=p.diffusion.num_steps,
        num_tokens=int(pairs.tokens.shape[1]),
        grid=None,
        width=denoiser.width,
        depth=denoiser.depth,
        num_heads=denoiser.num_heads,
        feedforward_multiple=denoiser.feedforward_multiple,
        feedforward="linear",
        modulation="shared",
        dropout=denoiser.dropout,
        checkpoint_blocks=denoiser.checkpoint_blocks,
        conditioner=DanceSpec(
            kind=conditioner.kind,
            token_rate_hz=pairs.info["sample_rate_hz"] / pairs.info["hop"],
            width=conditioner.width,
            depth=conditioner.depth,
            is_frozen=conditioner.frozen,
            motion_dim=int(features.motion.shape[2]) if conditioner.use_motion else None,
            motion_rate_hz=float(features.info["motion_rate_hz"]),
            motion_frames=int(features.motion.shape[1]),
            video_dim=int(features.video.shape[2]) if conditioner.use_video else None,
            video_rate_hz=float(features.info["video_rate_hz"]),
            num_genres=len(GENRES) if conditioner.use_genre else 0,
        ),
    )


def _standardise(model: ConditionalDenoiser, features: FeatureSplit) -> None:
    conditioner = model.conditioner
    if not isinstance(conditioner, SequenceConditioner):
        return
    for encoder, array, present in (
        (conditioner.motion, features.motion, features.has_motion),
        (conditioner.video, features.video, features.has_video),
    ):
        if encoder is not None:
            mean, std, delta = feature_statistics(array, present)
            encoder.mean.copy_(mean)
            encoder.std.copy_(std)
            encoder.delta_std.copy_(delta)


def restrict(inputs: ConditionInputs, motion: bool, video: bool) -> ConditionInputs:
    """The same features with a modality withheld."""
    return replace(
        inputs,
        has_motion=inputs.has_motion & motion,
        has_video=inputs.has_video & video,
        genre=inputs.genre if motion or video else None,
    )


def generate_music(
    params: Params,
    generator: MusicGenerator,
    *,
    features_dir: Path,
    shards_dir: Path,
    out_dir: Path,
    tracker: Tracker | None = None,
) -> dict[str, Any]:
    """Music for every held-out clip, for each system and seed, from the full mask.

    The generator is handed condition features alone; `shards_dir` is read only for the pictures of
    the playable previews (metrics.md 0).

    Returns:
        The summary that is also written to `out_dir/summary.json`.
    """
    from tqdm import tqdm

    tracker = tracker or NullTracker()
    g = params.generate
    features = read_features(features_dir, g.split)
    if not features.keys:
        raise ValueError(
            f"generate.split must name a split with clips: {g.split} of {features_dir} is empty"
        )
    generator.check_features(features.info)
    systems = {
        name: present
        for name, present in SYSTEMS.items()
        if not (present == (False, True) and generator.dance.video_dim is None)
    }
    config = SamplerConfig(g.truncation, g.guidance, g.stride)
    chunks = np.array_split(np.arange(len(features)), math.ceil(len(features) / g.batch_size))
    calls = math.ceil(generator.schedule.num_steps / g.stride)
    total = len(systems) * len(g.seeds) * len(chunks) * calls
    summary: dict[str, Any] = {"split": g.split, "num_clips": len(features), "systems": {}}
    with (
        atomic_directory(out_dir) as folder,
        tqdm(total=total, desc="generate", unit="step") as bar,
    ):
        for name, present in systems.items():
            for seed in g.seeds:
                tokens = _generate_tokens(generator, features, present, config, seed, chunks, bar)
                audio = generator.decode(tokens)
                info = {
                    "keys": features.keys,
                    "genres": features.genres.tolist(),
                    "system": name,
                    "seed": seed,
                    "init": "mask",
                    "sees_motion": present[0],
                    "sees_video": present[1],
                    "truncation": g.truncation,
                    "guidance": g.guidance if any(present) else 1.0,
                    "stride": g.stride,
                    "sample_rate_hz": generator.codec.sample_rate_hz,
                }
                arrays: dict[str, np.ndarray] = {
                    "tokens": tokens.cpu().numpy().astype(np.int32),
                    "audio": np.clip(np.round(audio * 32767), -32768, 32767).astype(np.int16),
                }
                write_split(folder, f"{name}-seed{seed}", arrays, info)
                summary["systems"].setdefault(name, []).append(seed)
        _write_previews(params, generator, folder, shards_dir, features.keys, tracker)
        summary["sampler"] = dict(generator.facts["sampler"])
        write_json(folder / "summary.json", summary)
    return summary


def _generate_tokens(
    generator: MusicGenerator,
    features: FeatureSplit,
    present: tuple[bool, bool],
    config: SamplerConfig,
    seed: int,
    chunks: list[np.ndarray],
    bar: Any,
) -> Tensor:
    random = torch.Generator(generator.device).manual_seed(seed)
    rows = []
    for chunk in chunks:
        inputs = restrict(features.inputs(chunk, generator.device), *present)
        drawn = generator.sample_tokens(inputs, config, random, lambda *_: bar.update())
        rows.append(drawn)
    return torch.cat(rows)


def _write_previews(
    params: Params,
    generator: MusicGenerator,
    folder: Path,
    shards_dir: Path,
    keys: list[str],
    tracker: Tracker,
) -> None:
    """Wav, mp4 with the dance, and a spectrogram beside the original, for a few clips."""
    if not params.generate.num_previews:
        return
    from cdcd import media
    from cdcd.data.cache import read_split
    from cdcd.data.shards import iterate_shards
    from cdcd.pictures import compare_spectrograms

    wanted = {keys[i]: i for i in spread(params.generate.num_previews, len(keys))}
    audio = read_split(folder, f"model-seed{params.generate.seeds[0]}").arrays["audio"]
    previews = folder / "previews"
    previews.mkdir()
    rate = generator.codec.sample_rate_hz
    for sample in iterate_shards(shards_dir, params.generate.split, verify=False):
        if sample.key not in wanted:
            continue
        made = np.asarray(audio[wanted[sample.key]], dtype=np.float32) / 32767
        media.write_wav(previews / f"{sample.key}.wav", made, rate)
        if sample.video is not None:
            silent = previews / f".{sample.key}.mp4"
            silent.write_bytes(sample.video)
            media.mux(silent, iter([made]), rate, previews / f"{sample.key}.mp4")
            silent.unlink()
        pictures: dict[str, np.ndarray] = {
            "original": sample.audio,
            "generated from the dance": made,
        }
        compare_spectrograms(pictures, rate, previews / f"{sample.key}.png", sample.key)
        tracker.log_artifact(previews / f"{sample.key}.wav", "generated")
        tracker.log_artifact(previews / f"{sample.key}.png", "generated")


def _preview(
    params: Params,
    model: ConditionalDenoiser,
    held_out: PairedSplit,
    schedule: Schedule,
    codec_dir: Path,
    tracker: Tracker,
    step: int,
) -> None:
    """Two held-out clips, generated and logged as audio and spectrograms."""
    import tempfile

    from cdcd.codecs.store import load_codec
    from cdcd.pictures import compare_spectrograms

    codec = load_codec(codec_dir)
    device = next(model.parameters()).device
    generator = MusicGenerator(model, codec, schedule, {}, device)
    rows = spread(2, len(held_out))
    batch = held_out.batch(rows, device)
    config = SamplerConfig(params.generate.truncation, params.generate.guidance, 2)
    random = torch.Generator(device).manual_seed(0)
    made = generator.decode(generator.sample_tokens(batch.inputs, config, random))
    truth = generator.decode(batch.z_0)
    with tempfile.TemporaryDirectory() as temporary:
        for row, generated, original in zip(rows, made, truth, strict=True):
            name = f"step{step:06d}-{held_out.features.keys[row]}"
            path = Path(temporary) / f"{name}.png"
            pictures = {"codec reconstruction": original, "generated": generated}
            compare_spectrograms(pictures, codec.sample_rate_hz, path, name)
            tracker.log_artifact(path, "previews")
            tracker.log_audio(f"previews/{name}", generated, codec.sample_rate_hz)
