"""What a metrics file says about its own making: choices, versions, weights, comparability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from cdcd.config import Params
from cdcd.data.files import sha256_file
from cdcd.evaluation.systems import GeneratedSet
from cdcd.evaluation.tables import NUM_DRAWS, Scores

_PACKAGES = (
    *("numpy", "scipy", "librosa", "mir_eval", "soxr", "soundfile"),
    *("torch", "torchvision", "Pillow"),
)


def config(
    params: Params, scores: Scores, sets: Sequence[GeneratedSet], counts: Mapping[str, int]
) -> dict[str, Any]:
    """Return every choice behind the numbers; `counts` is the number of originals by split."""
    p = params.evaluate
    first = next(one for one in sets if one.system == "model")
    return {
        **shared_config(params, scores, first.info),
        "segment_seconds": params.shard.segment_seconds,
        "num_clips": counts[params.generate.split],
        "num_database": counts.get("train", 0),
        "denoise": p.denoise,
        "genre_feature": p.genre_feature,
        "metrics": {
            name: dict(metric.config)
            for name, metric in scores["model"][min(scores["model"])].items()
        },
    }


def shared_config(params: Params, scores: Scores, info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the choices behind scores of any kind; `info` was written beside a model's set."""
    p = params.evaluate
    return {
        "bootstrap": {"num_resamples": p.num_bootstrap, "seed": p.seed, "level": 0.95},
        "bits_per_token_draws": NUM_DRAWS,
        "generation": {
            key: info[key] for key in ("init", "truncation", "guidance", "stride") if key in info
        },
        "seeds": {system: sorted(by_seed) for system, by_seed in scores.items()},
    }


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Return the versions of the packages that shape the numbers."""
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def hashes(params: Params, model_dir: str | Path, codec_dir: str | Path) -> dict[str, str]:
    """Return the SHA-256 of every weight file used."""
    weights = {
        "model.safetensors": Path(model_dir) / "model.safetensors",
        "codec.safetensors": Path(codec_dir) / "codec.safetensors",
    }
    if params.evaluate.genre_feature == "vggish":
        weights["vggish"] = Path(str(params.evaluate.vggish_weights))
    return {
        f"sha256 of {name}": sha256_file(path) for name, path in weights.items() if path.is_file()
    }


def why_not(params: Params, dataset: str, *, is_embedded: bool) -> str:
    """Say why the numbers must not be set beside the published ones."""
    reasons = []
    if is_embedded:
        reasons.append("the music and dances are the embedded stand-in")
    if params.evaluate.genre_feature != "vggish":
        reasons.append("genre features are MFCCs, not VGGish")
    if params.evaluate.denoise == "none":
        reasons.append("generated sound is scored without noise gating")
    reasons.append("the published runs may have started from the reference's noised tokens")
    return f"{dataset}: " + "; ".join(reasons)


def rounded(value: Any) -> Any:
    """Return plain JSON values: floats to six digits, non-finite ones as None."""
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 6) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def by_seed(scores: Scores) -> dict[int, dict[str, float]]:
    """Return every set score `<system>.<score>` of each seed that the model was scored with.

    Systems with other seeds, such as the originals, are the same for all and left out; so is
    everything where there is one seed alone.
    """
    seeds = set(scores.get("model", {}))
    if len(seeds) < 2:
        return {}
    return {
        seed: {
            f"{system}.{name}": float(metric.value)
            for system, mine in scores.items()
            if set(mine) == seeds
            for name, metric in mine[seed].items()
            if metric.value is not None and math.isfinite(metric.value)
        }
        for seed in sorted(seeds)
    }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a tree under dotted names."""
    numbers: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            numbers |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and math.isfinite(value):
            numbers[prefix + key] = float(value)
    return numbers
