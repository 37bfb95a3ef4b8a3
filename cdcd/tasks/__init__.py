"""The three tasks, each composed of codec, conditions, network and sampler in one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cdcd.config import Params
from cdcd.data.samples import TASKS
from cdcd.diffusion.schedule import Schedule, make_schedule
from cdcd.generation import MusicGenerator, PictureGenerator
from cdcd.models.model import ConditionalDenoiser
from cdcd.models.store import load_model
from cdcd.tasks import dance, pictures
from cdcd.tasks.training import Task, bits_of, run_training
from cdcd.tracking import Tracker
from cdcd.training.device import make_autocast, pick_device
from cdcd.training.ranks import ALONE, Ranks

SYSTEMS = frozenset((*dance.SYSTEMS, *pictures.SYSTEMS))
"""Names of what is generated for evaluation; controls are made there."""


def train_model(
    params: Params,
    *,
    dataset: str,
    tokens_dir: Path,
    features_dir: Path,
    codec_dir: Path,
    out_dir: Path,
    checkpoint_dir: Path,
    tracker: Tracker | None = None,
    stop_after: int | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Train the denoiser, and the condition encoders that train with it, on cached tokens.

    Args:
        params: the dataset's own view of all parameters.
        dataset: its name.
        tokens_dir: cached tokens.
        features_dir: conditions of the same clips or pictures.
        codec_dir: the codec, only for previews.
        out_dir: see `run_training`; likewise the others.
        checkpoint_dir: where the run saves itself.
        tracker: where metrics, audio and pictures go.
        stop_after: leave after this many steps with a checkpoint and no model (for tests).
        ranks: this process among those that train together.
    """
    task = _task(TASKS[dataset], params, tokens_dir, features_dir, codec_dir)
    return run_training(
        params,
        task,
        out_dir=out_dir,
        checkpoint_dir=checkpoint_dir,
        tracker=tracker,
        stop_after=stop_after,
        ranks=ranks,
    )


def _task(name: str, params: Params, tokens_dir: Path, features_dir: Path, codec_dir: Path) -> Task:
    if name == "dance2music":
        return dance.DanceToMusic(params, tokens_dir, features_dir, codec_dir)
    return pictures.ConditionToImage(name, params, tokens_dir, features_dir, codec_dir)


def _schedule_of(model: ConditionalDenoiser, facts: dict[str, Any]) -> Schedule:
    d, spec = facts["diffusion"], model.spec
    return make_schedule(d["schedule"], spec.num_codes, spec.num_steps, d["uniform_mass"])


DEFAULT_SAMPLER = {"truncation": 0.86, "guidance": 1.5, "stride": 1, "window_overlap_seconds": 0.5}
"""Of a model that was never scored; otherwise it samples as it was scored."""


def load_generator(
    model_dir: str | Path,
    codec_dir: str | Path,
    encoder_dir: str | Path | None = None,
    sampler: Mapping[str, Any] | None = None,
) -> MusicGenerator | PictureGenerator:
    """A trained model with its codec, and where it reads texts with their encoder.

    Args:
        model_dir: decides the task.
        codec_dir: the codec it was trained with.
        encoder_dir: the text encoder; without it a text model can only be given encoded texts.
        sampler: its settings where none are asked for; None for `DEFAULT_SAMPLER`.

    Raises:
        ValueError: a folder is missing or damaged, or codec or encoder are not those trained with.
    """
    from cdcd.codecs.store import load_codec, load_picture_codec

    model, facts = load_model(Path(model_dir))
    facts["sampler"] = {**DEFAULT_SAMPLER, **(sampler or {})}
    device = pick_device()
    schedule = _schedule_of(model, facts)
    if facts["task"] == "dance2music":
        codec = load_codec(Path(codec_dir))
        theirs: dict[str, Any] = {
            "sample_rate_hz": codec.sample_rate_hz,
            "hop": codec.hop,
            "num_codes": codec.num_codes,
        }
        _check_partner("codec", codec_dir, model_dir, theirs, facts["codec"])
        return MusicGenerator(model, codec, schedule, facts, device)
    picture_codec = load_picture_codec(Path(codec_dir), device)
    side = picture_codec.image_size // picture_codec.factor
    theirs = {
        "image_size": picture_codec.image_size,
        "grid": [side, side],
        "num_codes": picture_codec.num_codes,
    }
    _check_partner("codec", codec_dir, model_dir, theirs, facts["codec"])
    encoder = None
    if facts["task"] == "text2image" and encoder_dir is not None:
        from cdcd.features.text import TextEncoder

        encoder = TextEncoder.load(Path(encoder_dir) / "text")
        _check_partner("encoder", encoder_dir, model_dir, encoder.identity(), facts["encoder"])
    return PictureGenerator(model, picture_codec, schedule, facts, device, encoder)


def _check_partner(
    what: str, folder: str | Path, model_dir: str | Path, theirs: object, mine: object
) -> None:
    if theirs != mine:
        raise ValueError(
            f"{folder} must hold the {what} {model_dir} was trained with: got {theirs} for {mine}; "
            f"point to the right {what} or train again"
        )


def sampler_of(params: Params) -> dict[str, Any]:
    """The sampler settings of the parameters, as `load_generator` takes them."""
    g = params.generate
    return {name: getattr(g, name) for name in DEFAULT_SAMPLER}


def generate_split(
    params: Params,
    *,
    model_dir: Path,
    codec_dir: Path,
    encoder_dir: Path,
    features_dir: Path,
    tokens_dir: Path,
    shards_dir: Path,
    out_dir: Path,
    tracker: Tracker | None = None,
) -> dict[str, Any]:
    """Music or pictures for every held-out condition, for each system and seed.

    The generator is handed conditions alone; `shards_dir` is read only for previews, and
    `tokens_dir` only for the classes of the pictures (metrics.md 0).

    Returns:
        The summary that is also written to `out_dir/summary.json`.
    """
    generator = load_generator(model_dir, codec_dir, encoder_dir, sampler_of(params))
    if isinstance(generator, MusicGenerator):
        return dance.generate_music(
            params,
            generator,
            features_dir=features_dir,
            shards_dir=shards_dir,
            out_dir=out_dir,
            tracker=tracker,
        )
    return pictures.generate_pictures(
        params,
        generator,
        features_dir=features_dir,
        tokens_dir=tokens_dir,
        shards_dir=shards_dir,
        out_dir=out_dir,
        tracker=tracker,
    )


def bits_per_token(
    model_dir: Path,
    tokens_dir: Path,
    features_dir: Path,
    split: str,
    condition: str = "model",
    num_draws: int = 25,
    keys: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Upper bound on the negative log-likelihood of held-out tokens, in bits per token.

    Args:
        model_dir: a trained model.
        tokens_dir: held-out tokens.
        features_dir: their conditions.
        split: which split.
        condition: a system of the task: what the network may see.
        num_draws: strata of steps per sample.
        keys: of the samples, in ascending order; None for all.

    Returns:
        `mean` over samples, and `keys` and `per_sample` in one order.

    Raises:
        ValueError: the split is missing or empty.
    """
    model, facts = load_model(model_dir)
    pairs: Any
    if facts["task"] == "dance2music":
        from cdcd.data.batches import read_pairs

        pairs = read_pairs(tokens_dir, features_dir, split)

        def restrict(inputs: Any) -> Any:
            return dance.restrict(inputs, *dance.SYSTEMS[condition])
    else:
        from cdcd.data.picture_batches import read_picture_pairs

        pairs = read_picture_pairs(tokens_dir, features_dir, split)

        def restrict(inputs: Any) -> Any:
            return inputs if pictures.SYSTEMS[condition] else inputs.without()

    known = pairs.features.keys
    wanted = known if keys is None else set(keys)
    rows = np.array([i for i, key in enumerate(known) if key in wanted], dtype=np.int64)
    device = pick_device()
    values = bits_of(
        model.to(device),
        pairs,
        rows,
        _schedule_of(model, facts),
        make_autocast(device, "float32"),
        min(num_draws, model.spec.num_steps),
        restrict,
    )
    return {
        "mean": float(values.mean()),
        "keys": [known[row] for row in rows],
        "per_sample": [float(v) for v in values],
    }


__all__ = ["SYSTEMS", "bits_per_token", "generate_split", "load_generator", "train_model"]
