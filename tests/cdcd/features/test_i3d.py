import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cdcd.features import make_video_feature
from cdcd.features.base import FeatureError
from cdcd.features.i3d import I3D, InceptionI3D, _pad_same, load_i3d, prepare

# Every convolution of the public checkpoint: name, outputs, inputs, kernel side.
UNITS = [
    ("Conv3d_1a_7x7", 64, 3, 7),
    ("Conv3d_2b_1x1", 64, 64, 1),
    ("Conv3d_2c_3x3", 192, 64, 3),
    ("Mixed_3b.b0", 64, 192, 1),
    ("Mixed_3b.b1a", 96, 192, 1),
    ("Mixed_3b.b1b", 128, 96, 3),
    ("Mixed_3b.b2a", 16, 192, 1),
    ("Mixed_3b.b2b", 32, 16, 3),
    ("Mixed_3b.b3b", 32, 192, 1),
    ("Mixed_3c.b0", 128, 256, 1),
    ("Mixed_3c.b1a", 128, 256, 1),
    ("Mixed_3c.b1b", 192, 128, 3),
    ("Mixed_3c.b2a", 32, 256, 1),
    ("Mixed_3c.b2b", 96, 32, 3),
    ("Mixed_3c.b3b", 64, 256, 1),
    ("Mixed_4b.b0", 192, 480, 1),
    ("Mixed_4b.b1a", 96, 480, 1),
    ("Mixed_4b.b1b", 208, 96, 3),
    ("Mixed_4b.b2a", 16, 480, 1),
    ("Mixed_4b.b2b", 48, 16, 3),
    ("Mixed_4b.b3b", 64, 480, 1),
    ("Mixed_4c.b0", 160, 512, 1),
    ("Mixed_4c.b1a", 112, 512, 1),
    ("Mixed_4c.b1b", 224, 112, 3),
    ("Mixed_4c.b2a", 24, 512, 1),
    ("Mixed_4c.b2b", 64, 24, 3),
    ("Mixed_4c.b3b", 64, 512, 1),
    ("Mixed_4d.b0", 128, 512, 1),
    ("Mixed_4d.b1a", 128, 512, 1),
    ("Mixed_4d.b1b", 256, 128, 3),
    ("Mixed_4d.b2a", 24, 512, 1),
    ("Mixed_4d.b2b", 64, 24, 3),
    ("Mixed_4d.b3b", 64, 512, 1),
    ("Mixed_4e.b0", 112, 512, 1),
    ("Mixed_4e.b1a", 144, 512, 1),
    ("Mixed_4e.b1b", 288, 144, 3),
    ("Mixed_4e.b2a", 32, 512, 1),
    ("Mixed_4e.b2b", 64, 32, 3),
    ("Mixed_4e.b3b", 64, 512, 1),
    ("Mixed_4f.b0", 256, 528, 1),
    ("Mixed_4f.b1a", 160, 528, 1),
    ("Mixed_4f.b1b", 320, 160, 3),
    ("Mixed_4f.b2a", 32, 528, 1),
    ("Mixed_4f.b2b", 128, 32, 3),
    ("Mixed_4f.b3b", 128, 528, 1),
    ("Mixed_5b.b0", 256, 832, 1),
    ("Mixed_5b.b1a", 160, 832, 1),
    ("Mixed_5b.b1b", 320, 160, 3),
    ("Mixed_5b.b2a", 32, 832, 1),
    ("Mixed_5b.b2b", 128, 32, 3),
    ("Mixed_5b.b3b", 128, 832, 1),
    ("Mixed_5c.b0", 384, 832, 1),
    ("Mixed_5c.b1a", 192, 832, 1),
    ("Mixed_5c.b1b", 384, 192, 3),
    ("Mixed_5c.b2a", 48, 832, 1),
    ("Mixed_5c.b2b", 128, 48, 3),
    ("Mixed_5c.b3b", 128, 832, 1),
]


def public_layout(*, has_counters: bool = False) -> dict[str, Tensor]:
    """A state dict with the names and shapes of rgb_imagenet.pt and small random numbers."""
    random = torch.Generator().manual_seed(0)
    state = {}
    for name, outputs, inputs, side in UNITS:
        scale = math.sqrt(2 / (inputs * side**3))
        weight = torch.randn(outputs, inputs, side, side, side, generator=random) * scale
        state[f"{name}.conv3d.weight"] = weight
        state[f"{name}.bn.weight"] = torch.ones(outputs)
        state[f"{name}.bn.bias"] = torch.zeros(outputs)
        state[f"{name}.bn.running_mean"] = torch.zeros(outputs)
        state[f"{name}.bn.running_var"] = torch.ones(outputs)
        if has_counters:
            state[f"{name}.bn.num_batches_tracked"] = torch.tensor(3)
    state["logits.conv3d.weight"] = torch.zeros(400, 1024, 1, 1, 1)
    state["logits.conv3d.bias"] = torch.zeros(400)
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("i3d") / "rgb.pt"
    torch.save(public_layout(), path)
    return path


def frames(count: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (20, 36, 3), dtype=np.uint8) for _ in range(count)]


def test_every_name_and_shape_of_the_public_layout_is_a_parameter() -> None:
    state = {name: tuple(value.shape) for name, value in InceptionI3D().state_dict().items()}
    public = {name: tuple(v.shape) for name, v in public_layout(has_counters=True).items()}
    assert state == public


@pytest.mark.parametrize("has_counters", [False, True])
def test_weights_arrive_unchanged(tmp_path: Path, has_counters: bool) -> None:
    state = public_layout(has_counters=has_counters)
    torch.save(state, tmp_path / "rgb.pt")
    loaded = load_i3d(tmp_path / "rgb.pt")
    assert not loaded.training
    for name, value in state.items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


def without(name: str) -> dict[str, Tensor]:
    state = public_layout()
    del state[name]
    return state


BAD = {
    "missing": (
        lambda: without("Mixed_4e.b2b.bn.running_var"),
        r"layout of pytorch-i3d's RGB network: it lacks Mixed_4e.b2b.bn.running_var; use rgb",
    ),
    "unknown": (
        lambda: {**public_layout(), "module.fc": torch.zeros(1)},
        "it has the unknown module.fc; use",
    ),
    "flow": (
        lambda: {**public_layout(), "Conv3d_1a_7x7.conv3d.weight": torch.zeros(64, 2, 7, 7, 7)},
        r"must have shape \[64, 3, 7, 7, 7\]: got \[64, 2, 7, 7, 7\]; use .* not the flow network",
    ),
    "list": (lambda: [torch.zeros(1)], "mapping from names to tensors: got list"),
    "object": (lambda: {"a": Path("x")}, "must be a state dict of tensors saved by torch"),
}


@pytest.mark.parametrize("kind", BAD)
def test_other_layouts_are_refused(tmp_path: Path, kind: str) -> None:
    make, message = BAD[kind]
    torch.save(make(), tmp_path / "bad.pt")
    with pytest.raises(FeatureError, match=message) as caught:
        load_i3d(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"i3d_weights must name a file: .*none.pt does not"):
        load_i3d(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_bytes(b"no weights")
    with pytest.raises(FeatureError, match="must be a state dict of tensors saved by torch"):
        load_i3d(tmp_path / "text.pt")


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [
        ((7, 7, 7), (2, 2, 2)),
        ((3, 3, 3), (1, 1, 1)),
        ((1, 3, 3), (1, 2, 2)),
        ((2, 2, 2), (2, 2, 2)),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 8, 15, 16])
def test_padding_gives_ceil_with_the_odd_zero_at_the_end(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], size: int
) -> None:
    x = torch.ones(1, 1, size, size, size)
    padded = _pad_same(x, kernel, stride)
    pooled = F.max_pool3d(padded, kernel, stride)
    assert list(pooled.shape[2:]) == [math.ceil(size / s) for s in stride]
    before = int((padded[0, 0, :, padded.shape[3] // 2, padded.shape[4] // 2] > 0).int().argmax())
    total = padded.shape[2] - size
    assert before == total // 2


def test_frames_are_scaled_and_cropped() -> None:
    frame = np.zeros((20, 36, 3), np.uint8)
    frame[:, 18:, 0] = 255
    picture = prepare(frame)
    assert picture.shape == (3, 224, 224)
    assert float(picture.min()) == -1.0
    assert float(picture.max()) == pytest.approx(1.0, abs=1e-6)
    assert float(picture[0, :, :100].max()) < -0.999
    assert float(picture[0, :, 124:].min()) > 0.999
    assert prepare(frame.transpose(1, 0, 2)).shape == (3, 224, 224)


def test_a_stream_has_the_declared_rate_and_equals_its_windows(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdcd.features.i3d._CROP", 64)  # for speed
    feature = I3D(weights, frames_hz=30, window_frames=9)
    assert feature.dim == 1024
    assert feature.rate_hz == pytest.approx(30 * 2 / 9)
    clip = frames(12)
    rows = feature(iter(clip))
    assert rows.shape == (feature.num_steps(12), 1024) == (3, 1024)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert rows.std(axis=1).min() > 0  # every step says something
    assert np.abs(rows[0] - rows[1]).max() > 0  # and not the same thing
    np.testing.assert_allclose(feature(iter(clip[:9])), rows[:2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(feature(iter(clip[9:])), rows[2:], rtol=1e-4, atol=1e-5)

    # 64 frames take long here; which frames are taken has a test of its own (test_cells.py).
    monkeypatch.setattr("cdcd.features.i3d.spread", lambda window: window)
    pooled = I3D(weights, frames_hz=30, window_frames=9, is_pooled=True)
    assert pooled.rate_hz == pytest.approx(30 / 9)
    whole = pooled(iter(clip))
    assert whole.shape == (pooled.num_steps(12), pooled.dim) == (2, 2048)
    np.testing.assert_allclose(whole[0, :1024], rows[:2].mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole[0, 1024:], rows[:2].max(axis=0), rtol=1e-4, atol=1e-5)


def test_it_comes_back_from_its_identity_with_the_same_weights_only(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = I3D(weights, 30, 60, frame_height=96).identity()
    assert len(identity["weights_sha256"]) == 64
    assert make_video_feature(identity, weights).identity() == identity
    monkeypatch.setenv("CDCD_I3D_WEIGHTS", str(weights))
    assert make_video_feature(identity).identity() == identity
    other = public_layout()
    other["logits.conv3d.bias"] += 1
    torch.save(other, tmp_path / "other.pt")
    with pytest.raises(FeatureError, match="weights_sha256"):
        make_video_feature(identity, tmp_path / "other.pt")
    monkeypatch.delenv("CDCD_I3D_WEIGHTS")
    with pytest.raises(FeatureError, match="set CDCD_I3D_WEIGHTS to the path"):
        make_video_feature(identity)
