from __future__ import annotations

import numpy as np
import pytest
import torch

from cdcd.evaluation.vggish import VGGish, embed, load_vggish, log_mel_patches, mel_filters

LAYOUT = {
    "features.0": (64, 1, 3, 3),
    "features.3": (128, 64, 3, 3),
    "features.6": (256, 128, 3, 3),
    "features.8": (256, 256, 3, 3),
    "features.11": (512, 256, 3, 3),
    "features.13": (512, 512, 3, 3),
    "embeddings.0": (4096, 12288),
    "embeddings.2": (4096, 4096),
    "embeddings.4": (128, 4096),
}
"""Names and shapes of the released weights."""


def released_layout() -> dict[str, torch.Tensor]:
    state = {}
    for name, shape in LAYOUT.items():
        # Expanded from one number: the file stays small although the shapes are those of 288 MB.
        fan_in = int(np.prod(shape[1:]))
        state[f"{name}.weight"] = torch.tensor(1.0 / fan_in).expand(shape)
        state[f"{name}.bias"] = torch.tensor(0.01).expand(shape[0])
    return state


def test_names_and_shapes_are_those_of_the_released_file():
    with torch.device("meta"):
        state = VGGish().state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        key: tuple(value.shape) for key, value in released_layout().items()
    }


def test_weights_load_strictly_and_embed(tmp_path):
    path = tmp_path / "vggish.pth"
    torch.save(released_layout(), path)
    network = load_vggish(path)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(44100) / 22050)
    found = embed(network, tone)
    assert found.shape == (2, 128)
    assert np.isfinite(found).all()
    assert embed(network, tone[:20000]).shape == (0, 128)


@pytest.mark.parametrize("fault", ["missing key", "extra key", "shape", "not torch", "no file"])
def test_other_files_are_refused_in_one_line(tmp_path, fault):
    state = released_layout()
    path = tmp_path / "vggish.pth"
    if fault == "missing key":
        del state["features.8.bias"]
    if fault == "extra key":
        state["pca"] = torch.zeros(1)
    if fault == "shape":
        state["embeddings.4.weight"] = torch.zeros(64, 4096)
    torch.save(state, path)
    if fault == "not torch":
        path.write_bytes(b"no weights")
    if fault == "no file":
        path.unlink()
    with pytest.raises(ValueError, match=r"evaluate\.vggish_weights") as caught:
        load_vggish(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("seconds", "patches"), [(0.5, 0), (1, 1), (2, 2), (6, 6)])
def test_patches_of_a_clip(seconds, patches):
    audio = np.random.default_rng(0).standard_normal(int(22050 * seconds)).astype(np.float32)
    assert log_mel_patches(audio).shape == (patches, 96, 64)


def test_silence_has_the_floor_of_the_logarithm():
    np.testing.assert_allclose(log_mel_patches(np.zeros(44100)), np.log(0.01), rtol=1e-6)


def test_a_tone_lights_its_own_band():
    tone = np.sin(2 * np.pi * 1000 * np.arange(44100) / 22050)
    band = log_mel_patches(tone)[0].mean(axis=0).argmax()
    mel = 1127 * np.log1p(np.array([125.0, 7500.0, 1000.0]) / 700)
    expected = (mel[2] - mel[0]) / (mel[1] - mel[0]) * 65 - 1
    assert abs(band - expected) < 1


def test_filters_cover_the_range_and_nothing_else():
    filters = mel_filters()
    hertz = np.linspace(0, 8000, 257)
    assert filters.shape == (257, 64)
    assert (filters >= 0).all()
    assert not filters[(hertz <= 125) | (hertz >= 7500)].any()
    inner = filters[(hertz > 400) & (hertz < 7000)].sum(axis=1)
    np.testing.assert_allclose(inner, 1.0)
