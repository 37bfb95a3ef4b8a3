"""Dance to music, composed: from cached tokens and features to a model, from a model to music."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator
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
    ShuffledBatches,
    feature_statistics,
    read_features,
    read_pairs,
)
from cdcd.data.cache import list_splits, write_split
from cdcd.data.files import atomic_directory, write_json
from cdcd.data.samples import GENRES
from cdcd.diffusion.contrast import Contrast
from cdcd.diffusion.sampler import SamplerConfig
from cdcd.diffusion.schedule import Schedule, make_schedule
from cdcd.diffusion.timesteps import StepSampler
from cdcd.generation import Generator
from cdcd.models.conditioner import ConditionInputs, SequenceConditioner
from cdcd.models.model import ConditionalDenoiser, ModelSpec
from cdcd.models.store import load_model, save_model
from cdcd.tracking import NullTracker, Tracker
from cdcd.training.device import make_autocast, pick_device
from cdcd.training.loop import Cadence, Hooks, train
from cdcd.training.objective import Batch, Objective, bound_per_clip
from cdcd.training.optim import make_optimizer
from cdcd.training.state import TrainState, read_checkpoint

log = logging.getLogger(__name__)

SYSTEMS = {
    "model": (True, True),
    "video_only": (False, True),
    "unconditioned": (False, False),
}
"""What each generated system may see: (motion, video)."""


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
        token_rate_hz=pairs.info["sample_rate_hz"] / pairs.info["hop"],
        width=denoiser.width,
        depth=denoiser.depth,
        num_heads=denoiser.num_heads,
        feedforward_multiple=denoiser.feedforward_multiple,
        dropout=denoiser.dropout,
        checkpoint_blocks=denoiser.checkpoint_blocks,
        conditioner=conditioner.kind,
        encoder_width=conditioner.width,
        encoder_depth=conditioner.depth,
        encoders_frozen=conditioner.frozen,
        motion_dim=int(features.motion.shape[2]) if conditioner.use_motion else None,
        motion_rate_hz=float(features.info["motion_rate_hz"]),
        motion_frames=int(features.motion.shape[1]),
        video_dim=int(features.video.shape[2]) if conditioner.use_video else None,
        video_rate_hz=float(features.info["video_rate_hz"]),
        num_genres=len(GENRES) if conditioner.use_genre else 0,
    )


def make_train_schedule(params: Params, num_codes: int) -> Schedule:
    """The noise schedule of a training run."""
    diffusion = params.train.diffusion
    return make_schedule(diffusion.schedule, num_codes, diffusion.num_steps, diffusion.uniform_mass)


def make_objective(params: Params, schedule: Schedule, pairs: PairedSplit) -> Objective:
    """The loss of a training run on `pairs`, the train split."""
    p = params.train
    contrast = None
    if p.contrast.mode != "off" and p.contrast.weight > 0:
        contrast = Contrast(p.contrast.mode, p.contrast.form, p.contrast.weight)
    if contrast and p.contrast.negatives == "intra" and p.contrast.intra_unit == "waveform":
        stored = pairs.waveform_negatives
        if stored is None or stored.shape[1] < p.contrast.num_negatives:
            have = 0 if stored is None else stored.shape[1]
            raise ValueError(
                f"train.contrast.num_negatives must not exceed the waveform negatives in the "
                f"tokens: got {p.contrast.num_negatives} for {have}; run `dvc repro encode`"
            )
    return Objective(
        schedule=schedule,
        contrast=contrast,
        negatives=p.contrast.negatives,
        num_negatives=p.contrast.num_negatives,
        num_chunks=p.contrast.num_chunks,
        intra_unit=p.contrast.intra_unit,
        has_parallel_chains=p.contrast.chains == "parallel",
        auxiliary_weight=p.diffusion.auxiliary_weight,
        adaptive=p.diffusion.adaptive,
        chunks_logits=p.chunk_logits,
        drop_motion=p.drop_motion,
        drop_video=p.drop_video,
        drop_all=p.drop_all,
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


def _identity(params: Params, spec: ModelSpec, pairs: PairedSplit) -> str:
    """What a checkpoint belongs to: parameters, shapes and data."""
    parts = (params.train.model_dump(), spec.to_dict(), pairs.info, pairs.features.info)
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def train_model(
    params: Params,
    *,
    tokens_dir: Path,
    features_dir: Path,
    codec_dir: Path,
    out_dir: Path,
    checkpoint_dir: Path,
    tracker: Tracker | None = None,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Train the denoiser and its condition encoders on cached tokens and features.

    Continues from `checkpoint_dir` when that belongs to the same parameters and data; a killed and
    continued run gives the same weights, bit for bit, as an uninterrupted one.

    Args:
        params: all parameters; `train` is used.
        tokens_dir: cached tokens.
        features_dir: cached features of the same clips.
        codec_dir: the codec, only to listen to previews.
        out_dir: receives the moving average of the weights; replaced as a whole at the end.
        checkpoint_dir: where the run saves itself; removed when it is done.
        tracker: where metrics, audio and pictures go.
        stop_after: leave after this many steps with a checkpoint and no model (for tests).

    Returns:
        The summary that is also written to `out_dir/summary.json`.

    Raises:
        ValueError: parameters and data do not fit, or a checkpoint cannot be read.
    """
    p, device = params.train, pick_device()
    tracker = tracker or NullTracker()
    pairs = read_pairs(tokens_dir, features_dir, "train")
    # TikTok publishes no val split: nothing is then watched, and test stays unseen.
    held_out = None
    if "val" in list_splits(tokens_dir):
        held_out = read_pairs(tokens_dir, features_dir, "val")
    spec = make_spec(params, pairs)
    schedule = make_train_schedule(params, spec.num_codes)
    objective = make_objective(params, schedule, pairs)
    if objective.contrast is not None and objective.negatives == "inter":
        pairs = pairs.with_inter_negatives(p.seed, p.contrast.num_negatives)
    torch.manual_seed(p.seed)
    model = ConditionalDenoiser(spec)
    _standardise(model, pairs.features)
    model.to(device)
    o = p.optimizer
    state = TrainState(
        model,
        make_optimizer(model, o.learning_rate, o.betas, o.weight_decay),
        StepSampler(schedule.num_steps, p.diffusion.t_sampling).to(device),
        torch.Generator(device).manual_seed(p.seed),
        num_steps=p.num_steps,
        warmup_steps=o.warmup_steps,
        decay=o.decay,
        clip_norm=o.clip_norm,
        ema_decay=p.ema_decay,
    )
    identity = _identity(params, spec, pairs)
    found = read_checkpoint(checkpoint_dir)
    if found is not None:
        tensors, step, facts = found
        if facts.get("identity") == identity:
            state.resume(checkpoint_dir, tensors, step)
            log.info("continuing from step %d of %d", step, p.num_steps)
        else:
            log.info("the checkpoint in %s is of another run; starting anew", checkpoint_dir)
    history: dict[str, float] = {}
    autocast = make_autocast(device, p.precision)
    started = time.perf_counter()

    def track(step: int, metrics: dict[str, float]) -> None:
        if not all(math.isfinite(value) for value in metrics.values()):
            raise ValueError(
                f"the loss must stay finite: step {step} gave {metrics}; lower "
                "train.optimizer.learning_rate"
            )
        history.update(metrics)
        tracker.log_metrics(metrics, step)

    def validate(ema: ConditionalDenoiser) -> dict[str, float]:
        if held_out is None:
            return {}
        bits = _bits(ema, held_out, schedule, autocast, num_draws=min(8, spec.num_steps))
        return {"val_bits_per_token": float(np.mean(bits))}

    def preview(step: int, ema: ConditionalDenoiser) -> None:
        if held_out is not None:
            _preview(params, ema, held_out, schedule, codec_dir, tracker, step)

    def save(step: int) -> None:
        run_id = tracker.run_id
        state.save(checkpoint_dir, {"identity": identity, "run_id": run_id})

    from tqdm import tqdm

    with tqdm(total=p.num_steps, initial=state.step, desc="train", unit="step") as bar:

        def advance(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        batches = ShuffledBatches(pairs, p.batch_size, p.seed, state.step, device)
        cadence = Cadence(p.log_every, p.validate_every, p.save_every, p.preview_every)
        hooks = Hooks(track, validate, preview, save, advance)
        until = min(p.num_steps, stop_after or p.num_steps)
        train(state, objective, batches, hooks, cadence, autocast, until)

    summary = {
        "num_parameters": sum(x.numel() for x in model.parameters()),
        "num_trained_parameters": sum(x.numel() for x in model.parameters() if x.requires_grad),
        "num_steps": state.step,
        "num_clips": len(pairs),
        "seconds": round(time.perf_counter() - started, 1),
        "final": {name: round(value, 6) for name, value in history.items()},
    }
    if state.step < p.num_steps:
        return summary
    facts = {
        "diffusion": p.diffusion.model_dump(),
        "sampler": {
            "truncation": params.generate.truncation,
            "guidance": params.generate.guidance,
            "stride": params.generate.stride,
            "window_overlap_seconds": params.generate.window_overlap_seconds,
        },
        "codec": {name: pairs.info[name] for name in ("sample_rate_hz", "hop", "num_codes")},
        "codec_hash": pairs.info.get("codec_hash"),
        "video_feature": pairs.features.info["video_feature"],
        "segment_seconds": pairs.info["segment_seconds"],
        "training": summary,
    }
    with atomic_directory(out_dir) as folder:
        save_model(folder, state.ema.model, facts)
        write_json(folder / "summary.json", summary)
        write_json(folder / "run.json", {"run_id": tracker.run_id})
    shutil.rmtree(checkpoint_dir, ignore_errors=True)
    return summary


def _bits(
    model: ConditionalDenoiser,
    pairs: PairedSplit,
    schedule: Schedule,
    autocast: Any,
    num_draws: int,
    present: tuple[bool, bool] = (True, True),
    batch_size: int = 32,
) -> np.ndarray:
    """Bound in bits per token of each clip; its own generator, so no training state changes."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    values = []
    with torch.no_grad(), autocast():
        for rows in np.array_split(np.arange(len(pairs)), math.ceil(len(pairs) / batch_size)):
            batch = pairs.batch(rows, device)
            inputs = restrict(batch.inputs, *present)
            bound = bound_per_clip(model, batch.z_0, inputs, schedule, generator, num_draws)
            values.append(bound.cpu().numpy() / batch.z_0.shape[1] / math.log(2))
    return np.concatenate(values)


def restrict(inputs: ConditionInputs, motion: bool, video: bool) -> ConditionInputs:
    """The same features with a modality withheld."""
    return replace(
        inputs,
        has_motion=inputs.has_motion & motion,
        has_video=inputs.has_video & video,
        genre=inputs.genre if motion or video else None,
    )


def bits_per_token(
    model_dir: Path,
    tokens_dir: Path,
    features_dir: Path,
    split: str,
    condition: str = "model",
    num_draws: int = 25,
) -> dict[str, Any]:
    """Upper bound on the negative log-likelihood of held-out tokens, in bits per token.

    Args:
        model_dir: a trained model.
        tokens_dir: held-out tokens.
        features_dir: their conditions.
        split: which split.
        condition: a key of `SYSTEMS`: what the network may see.
        num_draws: strata of steps per clip.

    Returns:
        `mean` over clips and `per_sample` in key order.
    """
    model, facts = load_model(model_dir)
    pairs = read_pairs(tokens_dir, features_dir, split)
    d = facts["diffusion"]
    spec = model.spec
    schedule = make_schedule(d["schedule"], spec.num_codes, spec.num_steps, d["uniform_mass"])
    draws = min(num_draws, spec.num_steps)
    device = pick_device()
    autocast = make_autocast(device, "float32")
    values = _bits(model.to(device), pairs, schedule, autocast, draws, SYSTEMS[condition])
    return {"mean": float(values.mean()), "per_sample": [float(v) for v in values]}


def load_generator(model_dir: str | Path, codec_dir: str | Path) -> Generator:
    """A trained model and its codec, ready to make music.

    Raises:
        ValueError: a folder is missing or damaged, or the codec is not the one trained with.
    """
    from cdcd.codecs.store import load_codec

    model, facts = load_model(Path(model_dir))
    codec = load_codec(Path(codec_dir))
    theirs = {
        "sample_rate_hz": codec.sample_rate_hz,
        "hop": codec.hop,
        "num_codes": codec.num_codes,
    }
    if theirs != facts["codec"]:
        raise ValueError(
            f"{codec_dir} must hold the codec {model_dir} was trained with: got {theirs} for "
            f"{facts['codec']}; point to the right codec or train again"
        )
    d = facts["diffusion"]
    spec = model.spec
    schedule = make_schedule(d["schedule"], spec.num_codes, spec.num_steps, d["uniform_mass"])
    return Generator(model, codec, schedule, facts, pick_device())


def generate_split(
    params: Params,
    *,
    model_dir: Path,
    codec_dir: Path,
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
    generator = load_generator(model_dir, codec_dir)
    features = read_features(features_dir, g.split)
    if not features.keys:
        raise ValueError(
            f"generate.split must name a split with clips: {g.split} of {features_dir} is empty"
        )
    generator.check_features(features.info)
    systems = {
        name: present
        for name, present in SYSTEMS.items()
        if not (present == (False, True) and generator.model.spec.video_dim is None)
    }
    config = SamplerConfig(g.truncation, g.guidance, g.stride)
    chunks = np.array_split(np.arange(len(features)), math.ceil(len(features) / g.batch_size))
    calls = math.ceil(generator.schedule.num_steps / g.stride)
    started = time.perf_counter()
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
        summary["seconds"] = round(time.perf_counter() - started, 1)
        write_json(folder / "summary.json", summary)
    return summary


def _generate_tokens(
    generator: Generator,
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


def _spread(num: int, of: int) -> Iterator[int]:
    """`num` indices spread evenly over 0..of-1."""
    return iter(sorted({int(i) for i in np.linspace(0, of - 1, min(num, of))}))


def _write_previews(
    params: Params,
    generator: Generator,
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

    wanted = {keys[i]: i for i in _spread(params.generate.num_previews, len(keys))}
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
    if isinstance(tracker, NullTracker):
        return
    import tempfile

    from cdcd.codecs.store import load_codec
    from cdcd.pictures import compare_spectrograms

    codec = load_codec(codec_dir)
    device = next(model.parameters()).device
    was_training = model.training
    generator = Generator(model, codec, schedule, {}, device)
    rows = np.array(list(_spread(2, len(held_out))))
    batch: Batch = held_out.batch(rows, device)
    config = SamplerConfig(params.generate.truncation, params.generate.guidance, 2)
    random = torch.Generator(device).manual_seed(0)
    made = generator.decode(generator.sample_tokens(batch.inputs, config, random))
    truth = generator.decode(batch.z_0)
    model.train(was_training)
    with tempfile.TemporaryDirectory() as temporary:
        for row, generated, original in zip(rows, made, truth, strict=True):
            name = f"step{step:06d}-{held_out.features.keys[row]}"
            path = Path(temporary) / f"{name}.png"
            pictures = {"codec reconstruction": original, "generated": generated}
            compare_spectrograms(pictures, codec.sample_rate_hz, path, name)
            tracker.log_artifact(path, "previews")
            tracker.log_audio(f"previews/{name}", generated, codec.sample_rate_hz)


__all__ = [
    "SYSTEMS",
    "bits_per_token",
    "generate_split",
    "load_generator",
    "train_model",
]
