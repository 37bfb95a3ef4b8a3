"""Shards to cached features, and the video features of one file as a stream."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdcd.data.samples import MOTIONS, SMPL, MotionKind, Sample, genre_label
from cdcd.features.base import (
    PROVIDED,
    FeatureError,
    VideoFeature,
    check_identity,
    provided_identity,
)
from cdcd.features.cells import Cells
from cdcd.features.video import MotionEnergy

if TYPE_CHECKING:
    from cdcd.config import Params

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
STATS = "stats.safetensors"
WEIGHTS_VARIABLE = "CDCD_I3D_WEIGHTS"
_MIN_STD = 1e-4  # a channel that never changes is left as it is, not blown up


def feature_from_params(params: Params) -> VideoFeature:
    """The extractor that `featurize.video` names, for the clips that `shard` writes.

    Raises:
        FeatureError: its weights cannot be loaded.
    """
    chosen, shard = params.featurize, params.shard
    match chosen.video:
        case "motion_energy":
            return MotionEnergy(chosen.grid, shard.video_fps, shard.video_height)
        case "cells":
            frames = shard.video_fps * shard.segment_seconds
            return Cells(shard.video_fps, frames, shard.video_height)
        case "i3d":
            from cdcd.features.i3d import I3D

            assert chosen.i3d_weights is not None, "config.py requires it for i3d"
            frames = shard.video_fps * shard.segment_seconds
            return I3D(
                chosen.i3d_weights,
                shard.video_fps,
                frames,
                is_pooled=chosen.i3d_output == "segment",
                frame_height=shard.video_height,
            )


def make_video_feature(
    identity: Mapping[str, Any], weights: str | Path | None = None
) -> VideoFeature:
    """The extractor whose `identity()` was stored with a model or with features.

    Args:
        identity: as stored.
        weights: of an extractor that needs them; None reads the path from the environment
            variable `CDCD_I3D_WEIGHTS`.

    Raises:
        FeatureError: unknown name, another version of the extractor, or missing or other weights.
    """
    feature: VideoFeature
    match identity.get("name"):
        case "motion_energy":
            feature = MotionEnergy(identity["grid"], identity["rate_hz"], identity["frame_height"])
        case "cells":
            feature = Cells(
                identity["frames_hz"], identity["window_frames"], identity["frame_height"]
            )
        case "i3d":
            from cdcd.features.i3d import I3D

            found = weights or os.environ.get(WEIGHTS_VARIABLE)
            if found is None:
                raise FeatureError(
                    "the model was trained on I3D features and needs their weights: got none; "
                    f"set {WEIGHTS_VARIABLE} to the path of rgb_imagenet.pt"
                )
            feature = I3D(
                found,
                identity["frames_hz"],
                identity["window_frames"],
                is_pooled=identity["is_pooled"],
                frame_height=identity["frame_height"],
            )
        case "provided":
            raise FeatureError(
                "a model trained on features that came with its dataset cannot see a video: how "
                "they were computed is not published; train on videos, or give features of the "
                "same kind as a dataset"
            )
        case other:
            raise FeatureError(
                f"a video feature must be motion_energy, cells or i3d: got {other!r}; "
                "train again with this version"
            )
    check_identity(feature.identity(), identity, "the stored model or features")
    return feature


def stream_video_features(
    path: str | Path, feature: VideoFeature, *, num_threads: int = 0
) -> Iterator[np.ndarray]:
    """Features of a whole video, one vector float32 `[dim]` per `1 / feature.rate_hz` seconds.

    Memory does not depend on the video's length.

    Args:
        path: any video.
        feature: the extractor.
        num_threads: of the decoder; 0 chooses.

    Raises:
        MediaError: the video cannot be read.
    """
    from cdcd import media

    frames = media.iterate_frames(
        path, feature.frames_hz, feature.frame_height, num_threads=num_threads
    )
    return feature.stream(frames)


def featurize(params: Params, shards_dir: str | Path, out_dir: str | Path) -> dict[str, Any]:
    """Compute the features of every segment and replace `out_dir` when all are done.

    Writes `{train,val,test}.safetensors` with `motion` float32 `[n, rate * seconds, dim]`,
    `has_motion` uint8 `[n]`, `video` float32 `[n, s, dim]`, `has_video` uint8 `[n]` (zeros where a
    segment lacks the modality), their JSON, and `stats.safetensors` with mean and standard
    deviation per channel over the train split.

    Args:
        params: `featurize` and `shard` are used. Shards that hold features in place of videos
            keep them, whatever `featurize.video` says.
        shards_dir: folder of the shard stage.
        out_dir: replaced as a whole.

    Returns:
        JSON-able summary: number of segments per split and with each modality, feature identity.

    Raises:
        ValueError: a shard is damaged, weights are missing, or a segment has another length.
    """
    from cdcd.data.cache import new_split
    from cdcd.data.files import atomic_directory
    from cdcd.data.shards import read_shards_index

    seconds = params.shard.segment_seconds
    shards_dir, out_dir = Path(shards_dir), Path(out_dir)
    counts = dict.fromkeys(SPLITS, 0)
    for shard in read_shards_index(shards_dir):
        counts[shard["split"]] += shard["count"]
    layout = _layout(params, shards_dir, counts)
    facts = {
        "segment_seconds": seconds,
        "video_feature": layout.identity,
        "video_rate_hz": layout.identity["rate_hz"],
        "motion_feature": layout.motion.identity(),
        "motion_rate_hz": float(layout.motion.rate_hz),
    }
    summary: dict[str, Any] = {
        "video_feature": layout.identity["name"],
        "dim": layout.identity["dim"],
        "splits": {},
    }
    with atomic_directory(out_dir) as folder:
        for split in SPLITS:
            with new_split(folder, split, layout.arrays(counts[split], seconds)) as opened:
                arrays = opened.arrays
                labels = _fill(params, layout, shards_dir, split, arrays)
                opened.info.update(labels | facts)
                if split == "train":
                    _write_stats(folder / STATS, arrays)
            summary["splits"][split] = {
                "segments": counts[split],
                "with_motion": int(arrays["has_motion"].sum()),
                "with_video": int(arrays["has_video"].sum()),
            }
    logger.info("%s: %s", out_dir, summary)
    return summary


@dataclass(frozen=True)
class _Layout:
    """What the rows of all splits look like.

    Attributes:
        motion: kind of the motion.
        identity: of the video feature.
        num_steps: rows of the video feature per segment.
    """

    motion: MotionKind
    identity: dict[str, Any]
    num_steps: int

    def arrays(self, count: int, seconds: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of the arrays of a split of `count` segments."""
        motion = (count, self.motion.rate_hz * seconds, self.motion.dim)
        return {
            "motion": (motion, np.float32),
            "has_motion": ((count,), np.uint8),
            "video": ((count, self.num_steps, self.identity["dim"]), np.float32),
            "has_video": ((count,), np.uint8),
        }

    @property
    def is_provided(self) -> bool:
        return bool(self.identity["name"] == PROVIDED)


def _layout(params: Params, shards_dir: Path, counts: Mapping[str, int]) -> _Layout:
    """Look at the first samples with motion and with pictures; the others are checked later."""
    from cdcd.data.shards import iterate_shards

    seconds = params.shard.segment_seconds
    kinds = {kind.dim: kind for kind in MOTIONS.values()}
    motion: MotionKind | None = None
    provided: np.ndarray | None = None
    is_seen = False
    for split in (split for split in SPLITS if counts[split]):
        for sample in iterate_shards(shards_dir, split, verify=False):
            if motion is None and sample.motion is not None:
                motion = kinds[sample.motion.shape[1]]
            if not is_seen and (sample.video is not None or sample.video_feature is not None):
                provided, is_seen = sample.video_feature, True
            if motion is not None and is_seen:
                break
        else:
            continue
        break
    if provided is not None:
        rows, dim = provided.shape
        return _Layout(motion or SMPL, provided_identity(dim, rows / seconds), rows)
    feature = feature_from_params(params)
    num_steps = feature.num_steps(params.shard.video_fps * seconds)
    return _Layout(motion or SMPL, feature.identity(), num_steps)


def _fill(
    params: Params,
    layout: _Layout,
    shards_dir: Path,
    split: str,
    arrays: Mapping[str, np.ndarray],
) -> dict[str, list[Any]]:
    """Fill the arrays of a split, zero until now, and return its labels."""
    from tqdm import tqdm

    from cdcd.data.parallel import ordered_map
    from cdcd.data.shards import iterate_shards

    count = len(arrays["has_motion"])
    labels: dict[str, list[Any]] = {"keys": [], "genres": [], "songs": [], "sequences": []}
    if count == 0:
        return labels
    waiting: deque[int] = deque()  # rows whose clip is in a worker

    def clips() -> Iterator[tuple[str, bytes]]:
        for row, sample in enumerate(iterate_shards(shards_dir, split)):
            _check_kind(sample, layout)
            labels["keys"].append(sample.key)
            labels["genres"].append(genre_label(sample.meta))
            labels["songs"].append(sample.meta.get("song"))
            labels["sequences"].append(sample.meta.get("sequence"))
            if sample.motion is not None:
                _put(arrays["motion"], row, sample.motion, f"{sample.key}: motion")
                arrays["has_motion"][row] = 1
            if sample.video_feature is not None:
                _put(arrays["video"], row, sample.video_feature, f"{sample.key}: video features")
                arrays["has_video"][row] = 1
            if sample.video is not None:
                waiting.append(row)
                yield sample.key, sample.video
            else:
                bar.update()

    compute = partial(_clip_features, layout.identity, params.featurize.i3d_weights)
    with tqdm(total=count, desc=f"featurize {split}", unit="clip") as bar:
        for key, steps in ordered_map(compute, clips(), params.featurize.num_workers):
            row = waiting.popleft()
            _put(arrays["video"], row, steps, f"{key}: video features")
            arrays["has_video"][row] = 1
            bar.update()
    return labels


def _check_kind(sample: Sample, layout: _Layout) -> None:
    """Refuse to mix features that came with the data and features computed here."""
    has_other = sample.video if layout.is_provided else sample.video_feature
    if has_other is not None:
        raise FeatureError(
            f"all segments must have features of one extractor: {sample.key} has "
            f"{'a video' if layout.is_provided else 'features of its own'}, others have "
            f"{'features of their own' if layout.is_provided else 'videos'}; shard one kind alone"
        )


def _put(rows: np.ndarray, row: int, values: np.ndarray, what: str) -> None:
    if values.shape != rows.shape[1:]:
        raise FeatureError(
            f"{what} must have shape {list(rows.shape[1:])} for shard.segment_seconds and "
            f"shard.video_fps: got {list(values.shape)}; run shard again"
        )
    rows[row] = values


def _clip_features(
    identity: dict[str, Any], weights: str | None, clip: tuple[str, bytes]
) -> tuple[str, np.ndarray]:
    from cdcd import media

    key, data = clip
    feature = _worker_feature(tuple(sorted(identity.items())), weights)
    return key, feature(media.iterate_clip(data))


@lru_cache(maxsize=1)
def _worker_feature(identity: tuple[tuple[str, Any], ...], weights: str | None) -> VideoFeature:
    # Built once in each worker process: weights are large, and networks do not travel well.
    return make_video_feature(dict(identity), weights)


def _write_stats(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Mean and standard deviation `[d]` per channel over the segments that have the modality."""
    from safetensors.numpy import save_file

    stats: dict[str, np.ndarray] = {}
    for name in ("motion", "video"):
        values, has = arrays[name], arrays[f"has_{name}"].astype(bool)
        rows = int(has.sum()) * values.shape[1]
        total = np.zeros(values.shape[2])
        squares = np.zeros(values.shape[2])
        for segment in np.flatnonzero(has):  # one at a time: no copy of all the features
            steps = values[segment].astype(np.float64)
            total += steps.sum(axis=0)
            squares += (steps**2).sum(axis=0)
        mean = total / max(rows, 1)
        std = np.sqrt(np.maximum(squares / max(rows, 1) - mean**2, 0))
        stats[f"{name}_mean"] = mean.astype(np.float32)
        stats[f"{name}_std"] = np.where(std < _MIN_STD, 1.0, std).astype(np.float32)
    save_file(stats, path)
