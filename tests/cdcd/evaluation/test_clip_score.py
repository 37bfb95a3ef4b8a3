import json
import os

import numpy as np
import pytest

from cdcd.data.images import decode_image
from cdcd.evaluation.clip_score import PREFIX, clip_cos100, clip_s, cosines, score_pictures
from cdcd.features.text import TextEncoder
from tests.cdcd.features.tiny_clip import write_clip

RED = [1.0, 0.0]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return TextEncoder.load(write_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def examples(real_data):
    """Two real pictures with a good and a bad caption each."""
    folder = real_data / "clipscore"
    captions = {
        kind: json.loads((folder / f"{kind}_captions.json").read_text()) for kind in ("good", "bad")
    }
    keys = sorted(captions["good"])
    images = [decode_image((folder / f"{key}.jpg").read_bytes()) for key in keys]
    return keys, images, {kind: [own[key] for key in keys] for kind, own in captions.items()}


def test_golden_vectors():
    assert clip_s([RED], [[0.6, 0.8]]).value == pytest.approx(1.5)
    assert clip_cos100([RED], [[0.6, 0.8]]).value == pytest.approx(60)
    assert clip_s([RED], [[-1.0, 0.0]]).value == 0
    assert clip_cos100([RED], [[-1.0, 0.0]]).value == 0
    texts = [[c, (1 - c * c) ** 0.5] for c in (0.2, 0.3, -0.1)]
    assert clip_s([RED] * 3, texts).value == pytest.approx(0.416667, abs=1e-6)


def test_length_of_vectors_does_not_matter():
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((2, 5, 7))
    expected = cosines(images, texts)
    np.testing.assert_allclose(cosines(3 * images, 0.1 * texts), expected)
    np.testing.assert_allclose(cosines(texts, images), expected)
    np.testing.assert_allclose(cosines(images, images), 1)


@pytest.mark.parametrize(("images", "texts"), [([[0, 0]], [[1, 0]]), ([[1, 0]], [[0, 0]])])
def test_zero_vectors_are_an_error(images, texts):
    for score in (clip_s, clip_cos100):
        with pytest.raises(ValueError, match=r"zero_norm: .* in pair 0"):
            score(images, texts)


def test_what_does_not_fit_is_one_line(encoder):
    with pytest.raises(ValueError, match="row by row: got"):
        clip_s([RED], [RED, RED])
    with pytest.raises(ValueError, match="must be finite"):
        clip_s([[np.nan, 0]], [RED])
    with pytest.raises(ValueError, match="a key of its own: got 1 keys for 2 pairs"):
        clip_s([RED, RED], [RED, RED], ["a", "a"])
    image = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="got 1 pictures, 2 captions and no keys"):
        score_pictures(encoder, [image], ["a", "b"])


def test_scores_are_of_pairs_and_say_what_decides_them(encoder):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    captions = ["a red bird", "a blue bird", "white wings"]
    metrics = score_pictures(encoder, images, captions, ["x", "y", "z"])
    assert set(metrics) == {"clip_s", "clip_cos100"}
    vectors = encoder.image_features(images).numpy()
    for name, prefix, scale in (("clip_s", PREFIX, 2.5), ("clip_cos100", "", 100)):
        metric = metrics[name]
        texts = encoder.text_features([prefix + caption for caption in captions]).numpy()
        expected = scale * (vectors * texts).sum(axis=1).clip(0)
        np.testing.assert_allclose([metric.per_sample[k] for k in "xyz"], expected, atol=1e-4)
        assert metric.value == pytest.approx(expected.mean(), abs=1e-4)
        assert metric.config["prefix"] == prefix
        assert metric.config["encoder"]["sha256"] == encoder.identity()["sha256"]
        assert metric.n == 3
        assert not metric.warnings
        json.dumps(metric.as_dict(), allow_nan=False)


def test_cut_captions_are_told(encoder):
    image = np.full((32, 32, 3), 9, np.uint8)
    metrics = score_pictures(encoder, [image, image], ["red " * 74, "red"])
    assert metrics["clip_s"].warnings == ("1 of 2 texts were cut to 77 tokens",)
    assert metrics["clip_cos100"].warnings == ()


def test_real_pictures_run_end_to_end(encoder, examples):
    keys, images, captions = examples
    for image in images:
        assert min(image.shape[:2]) >= 700
        prepared = encoder.preparation(image)
        assert prepared.shape == (3, 32, 32)
        assert abs(float(prepared.mean())) < 2
    for own in captions.values():
        for metric in score_pictures(encoder, images, own, keys).values():
            assert list(metric.per_sample) == keys
            assert metric.value >= 0


def test_published_scores(examples):
    folder = os.environ.get("CDCD_CLIP_WEIGHTS")
    if not folder:
        pytest.skip("CDCD_CLIP_WEIGHTS names no folder of ViT-B/32 weights in the hub's layout")
    keys, images, captions = examples
    encoder = TextEncoder.load(folder)
    for kind, expected in (("good", 0.8584), ("bad", 0.7153)):
        metric = score_pictures(encoder, images, captions[kind], keys)["clip_s"]
        assert metric.value == pytest.approx(expected, abs=0.01)
