import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from cdcd import media
from cdcd.config import Params, parse_params
from cdcd.data.cache import read_split
from cdcd.data.samples import Sample
from cdcd.data.shards import write_shards
from cdcd.features import make_video_feature, stream_video_features
from cdcd.features.base import FeatureError
from cdcd.features.extract import feature_from_params, featurize
from cdcd.features.video import MotionEnergy

ROOT = Path(__file__).parents[3]
FPS, SECONDS, HEIGHT = 10, 2, 32


def params(**featurize_changes: Any) -> Params:
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    tree["shard"].update(segment_seconds=SECONDS, video_fps=FPS, video_height=HEIGHT)
    tree["generate"]["window_overlap_seconds"] = 0.5
    tree["featurize"] = {
        "video": "motion_energy",
        "grid": 4,
        "i3d_weights": None,
        "i3d_output": "steps",
        "num_workers": 1,
        "text_batch_size": 8,
        **featurize_changes,
    }
    return parse_params(tree)


def picture(index: int, phase: float) -> np.ndarray:
    pixels = np.full((HEIGHT, 48, 3), 40, np.uint8)
    x = int(20 + 16 * np.sin(index / 3 + phase))
    pixels[8:24, x : x + 8] = 220
    return pixels


def sample(key: str, split: str, *, has_motion: bool = True, has_video: bool = True) -> Sample:
    random = np.random.default_rng(len(key))
    phase = float(key[-1])
    frames = [picture(index, phase) for index in range(FPS * SECONDS)]
    motion = random.normal(phase, 1, size=(60 * SECONDS, 219)).astype(np.float32)
    return Sample(
        key,
        split,
        np.zeros(22050 * SECONDS, np.float32),
        motion if has_motion else None,
        media.encode_clip(frames, FPS) if has_video else None,
        {"genre": int(phase), "song": f"mBR{key[-1]}", "sequence": f"g{key}", "segment": 1},
    )


SAMPLES = [
    sample("a0", "train"),
    sample("a1", "train", has_motion=False),
    sample("a2", "train", has_video=False),
    sample("b3", "test"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shards"
    write_shards(folder, SAMPLES)
    return folder


def test_features_keep_keys_labels_and_values(shards: Path, tmp_path: Path) -> None:
    summary = featurize(params(), shards, tmp_path / "features")
    assert summary["splits"]["train"] == {"segments": 3, "with_motion": 2, "with_video": 2}
    train = read_split(tmp_path / "features", "train")
    feature = feature_from_params(params())
    assert train.info["keys"] == ["a0", "a1", "a2"]
    assert train.info["genres"] == [0, 1, 2]
    assert train.info["songs"] == ["mBR0", "mBR1", "mBR2"]
    assert train.info["sequences"] == ["ga0", "ga1", "ga2"]
    assert train.info["segment_seconds"] == SECONDS
    assert (train.info["video_rate_hz"], train.info["motion_rate_hz"]) == (FPS, 60)
    assert train.info["video_feature"] == feature.identity()
    assert train.arrays["motion"].shape == (3, 60 * SECONDS, 219)
    assert train.arrays["video"].shape == (3, FPS * SECONDS, feature.dim)
    assert train.arrays["has_motion"].tolist() == [1, 0, 1]
    assert train.arrays["has_video"].tolist() == [1, 1, 0]
    np.testing.assert_array_equal(train.arrays["motion"][0], SAMPLES[0].motion)
    assert not train.arrays["motion"][1].any()
    assert not train.arrays["video"][2].any()
    for row in (0, 1):
        clip = SAMPLES[row].video
        assert clip is not None
        np.testing.assert_array_equal(train.arrays["video"][row], feature(media.iterate_clip(clip)))
    assert (train.arrays["video"][0] != train.arrays["video"][1]).any()
    assert read_split(tmp_path / "features", "test").info["keys"] == ["b3"]
    assert read_split(tmp_path / "features", "val").info["keys"] == []
    assert make_video_feature(json.loads(json.dumps(train.info["video_feature"])))


def test_statistics_are_those_of_the_train_split(shards: Path, tmp_path: Path) -> None:
    featurize(params(), shards, tmp_path / "features")
    stats = load_file(tmp_path / "features" / "stats.safetensors")
    train = read_split(tmp_path / "features", "train").arrays
    for name, rows in (("motion", [0, 2]), ("video", [0, 1])):
        values = train[name][rows].reshape(-1, train[name].shape[2]).astype(np.float64)
        std = values.std(axis=0)
        np.testing.assert_allclose(stats[f"{name}_mean"], values.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(stats[f"{name}_std"], np.where(std < 1e-4, 1, std), rtol=1e-4)


def test_processes_give_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        featurize(params(num_workers=workers), shards, tmp_path / str(workers))
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "2").iterdir())
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_the_same_features_come_from_a_whole_video(tmp_path: Path) -> None:
    clip = SAMPLES[0].video
    assert clip is not None
    (tmp_path / "dance.mp4").write_bytes(clip)
    feature = MotionEnergy(4, FPS, HEIGHT)
    streamed = np.stack(list(stream_video_features(tmp_path / "dance.mp4", feature)))
    np.testing.assert_allclose(streamed, feature(media.iterate_clip(clip)), atol=1e-4)


def other_length(folder: Path) -> Params:
    tree = params().model_dump(by_alias=True)
    tree["shard"]["segment_seconds"] = 4
    return parse_params(tree)


def cut_shard(folder: Path) -> Params:
    path = next(folder.glob("test-*.tar"))
    path.write_bytes(path.read_bytes()[:-600])
    return params()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_length, r"a0: motion must have shape \[240, 219\] .*got \[120, 219\]; run shard"),
        (cut_shard, r"test-\d+.tar"),
        (
            lambda _: params(video="i3d", i3d_weights="no/rgb.pt"),
            "i3d_weights must name a file: no/rgb.pt does not exist",
        ),
    ],
)
def test_a_failed_run_keeps_the_earlier_features(
    tmp_path: Path, spoil: Callable[[Path], Params], message: str
) -> None:
    write_shards(tmp_path / "shards", SAMPLES)
    out = tmp_path / "features"
    featurize(params(), tmp_path / "shards", out)
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    changed = spoil(tmp_path / "shards")
    with pytest.raises(ValueError, match=message):
        featurize(changed, tmp_path / "shards", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "shards"]


def test_other_weights_than_stored_are_an_error() -> None:
    identity = {**feature_from_params(params()).identity(), "dim": 3}
    with pytest.raises(FeatureError, match="dim 3 instead of"):
        make_video_feature(identity)


def with_features(key: str, split: str, dim: int = 6) -> Sample:
    plain = sample(key, split, has_video=False)
    motion = np.full((30 * SECONDS, 75), 0.5, np.float32)
    meta = {name: value for name, value in plain.meta.items() if name != "genre"}
    feature = np.full((1, dim), float(key[-1]), np.float32)
    return Sample(key, split, plain.audio, motion, None, meta, video_feature=feature)


def test_features_of_the_download_and_key_points_go_their_own_way(tmp_path: Path) -> None:
    samples = [with_features(f"t{i}", split) for i, split in enumerate(["train", "train", "test"])]
    write_shards(tmp_path / "shards", samples)
    summary = featurize(params(), tmp_path / "shards", tmp_path / "features")
    assert summary["video_feature"] == "provided"
    train = read_split(tmp_path / "features", "train")
    assert train.arrays["motion"].shape == (2, 30 * SECONDS, 75)
    assert train.arrays["video"][:, 0, 0].tolist() == [0.0, 1.0]
    assert train.info["motion_rate_hz"] == 30.0
    assert train.info["video_rate_hz"] == 1 / SECONDS
    assert train.info["genres"] == [-1, -1]  # no genre is made up
    with pytest.raises(FeatureError, match="cannot see a video"):
        make_video_feature(train.info["video_feature"])


@pytest.mark.parametrize("order", [1, -1])
def test_features_of_two_extractors_are_never_mixed(tmp_path: Path, order: int) -> None:
    keys = ["a1", "b2"][::order]
    write_shards(tmp_path / "s", [with_features(keys[0], "train"), sample(keys[1], "train")])
    with pytest.raises(FeatureError, match="must have features of one extractor"):
        featurize(params(), tmp_path / "s", tmp_path / "features")
    assert not (tmp_path / "features").exists()
