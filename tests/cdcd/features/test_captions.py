import json
import logging

import numpy as np
import pytest
import torch

from cdcd.data.cache import list_splits, read_split
from cdcd.data.samples import Caption, Picture
from cdcd.data.shards import write_shards
from cdcd.features.base import FeatureError
from cdcd.features.captions import featurize_captions, featurize_classes
from cdcd.features.text import TextEncoder
from tests.cdcd.features.tiny_clip import pictures, write_clip

LONG = "a red sky over blue land and " * 40


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def params(make_params):
    return make_params({"featurize": {"text_batch_size": 7}})


@pytest.fixture
def shards(tmp_path):
    write_shards(tmp_path / "shards", pictures(10, 4))
    return tmp_path / "shards"


def test_every_caption_is_there_as_the_encoder_gives_it(params, shards, clip, tmp_path):
    summary = featurize_captions(params, shards, clip, tmp_path / "out")
    encoder = TextEncoder.load(clip)
    assert list_splits(tmp_path / "out") == ["train", "test"]
    made = {p.key: p for p in pictures(10, 4)}
    for split, count in (("train", 10), ("test", 4)):
        own = read_split(tmp_path / "out", split)
        text, length, picture = (own.arrays[name] for name in ("text", "length", "picture"))
        assert text.shape == (2 * count, summary["longest_tokens"], 16)
        assert (text.dtype, length.dtype, picture.dtype) == (np.float16, np.int32, np.int32)
        assert own.info["kind"] == "text"
        assert own.info["encoder"] == encoder.identity()
        assert own.info["picture_keys"] == sorted(own.info["picture_keys"])
        expected = encoder.encode(own.info["captions"])
        np.testing.assert_array_equal(length, expected.lengths)
        for row, key in enumerate(own.info["keys"]):
            source = made[own.info["picture_keys"][picture[row]]]
            assert dict(source.pairs())[key] == own.info["captions"][row]
            size = length[row]
            np.testing.assert_allclose(
                text[row, :size], expected.sequence[row, :size], rtol=2e-3, atol=2e-3
            )
            assert not text[row, size:].any()
    assert summary["num_captions"] == {"train": 20, "test": 8}
    assert summary["num_pictures"] == {"train": 10, "test": 4}
    assert summary["num_truncated"] == {"train": 0, "test": 0}
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


def test_batch_size_changes_nothing(make_params, shards, clip, tmp_path):
    for size in (1, 64):
        params = make_params({"featurize": {"text_batch_size": size}})
        featurize_captions(params, shards, clip, tmp_path / str(size))
    one, other = (read_split(tmp_path / name, "train") for name in ("1", "64"))
    assert one.info == other.info
    np.testing.assert_allclose(one.arrays["text"], other.arrays["text"], rtol=2e-3, atol=2e-3)


def test_cut_captions_are_counted_with_examples(params, clip, tmp_path, caplog):
    image = np.zeros((40, 40, 3), np.uint8)
    words = (Caption("0", "a red sky"), Caption("1", LONG.strip()))
    write_shards(tmp_path / "s", [Picture("a", "train", image, words)])
    with caplog.at_level(logging.WARNING):
        summary = featurize_captions(params, tmp_path / "s", clip, tmp_path / "out")
    own = read_split(tmp_path / "out", "train")
    assert own.arrays["text"].shape[1] == 77
    assert own.info["num_truncated"] == 1
    assert summary["num_truncated"] == {"train": 1}
    (example,) = summary["truncated_examples"]
    assert example["key"] == "a_1"
    assert example["dropped_tokens"] > 100
    assert LONG.find(example["kept_end"]) >= 0
    assert caplog.text.count("captions longer than 77 tokens were cut") == 1


def test_captions_that_mean_nothing_are_told(params, tmp_path, caplog):
    image = np.zeros((40, 40, 3), np.uint8)
    folder = write_clip(tmp_path / "clip")
    from safetensors.torch import load_file, save_file

    seen = TextEncoder.load(folder).tokenize(["a red sky over blue land"]).ids.unique()
    state = load_file(folder / "model.safetensors")
    table = state["text_model.embeddings.token_embedding.weight"]
    kept = torch.zeros_like(table)
    kept[seen] = table[seen]
    state["text_model.embeddings.token_embedding.weight"] = kept
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    words = (Caption("0", "a red sky"), Caption("1", "небо"))
    write_shards(tmp_path / "s", [Picture("a", "train", image, words)])
    summary = featurize_captions(params, tmp_path / "s", folder, tmp_path / "out")
    assert (summary["num_unknown"], summary["unknown_examples"]) == (1, ["'небо'"])
    assert "1 captions mean nothing to the text encoder" in caplog.text


def test_pictures_without_captions_are_left_out_or_refused(params, clip, tmp_path):
    image = np.zeros((40, 40, 3), np.uint8)
    bare = Picture("a", "train", image, label=0)
    told = Picture("b", "train", image, (Caption("0", "a red sky"),))
    write_shards(tmp_path / "some", [bare, told])
    featurize_captions(params, tmp_path / "some", clip, tmp_path / "out")
    assert read_split(tmp_path / "out", "train").info["picture_keys"] == ["b"]
    write_shards(tmp_path / "none", [bare])
    with pytest.raises(FeatureError, match="must hold captions: got 1 pictures without any"):
        featurize_captions(params, tmp_path / "none", clip, tmp_path / "out")
    # The earlier output is untouched.
    assert read_split(tmp_path / "out", "train").info["picture_keys"] == ["b"]


def test_classes_by_picture_with_their_names(params, shards, tmp_path):
    summary = featurize_classes(params, shards, tmp_path / "out")
    made = {p.key: p for p in pictures(10, 4)}
    for split in ("train", "test"):
        own = read_split(tmp_path / "out", split)
        assert own.info["kind"] == "class"
        assert own.info["keys"] == [key for key, p in sorted(made.items()) if p.split == split]
        assert own.arrays["label"].dtype == np.int32
        for key, label in zip(own.info["keys"], own.arrays["label"], strict=True):
            assert label == made[key].label
            assert own.info["class_names"][label] == made[key].meta["class"]
        assert own.info["num_classes"] == len(own.info["class_names"]) == 14
    assert summary["num_without_training"] == 4
    assert summary["pictures_per_class"] == {"train": [1, 1], "test": [1, 1]}
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


def test_classes_that_do_not_fit_are_one_line(params, tmp_path):
    image = np.zeros((40, 40, 3), np.uint8)
    write_shards(tmp_path / "bare", [Picture("a", "train", image)])
    with pytest.raises(FeatureError, match="must have a class: a has none"):
        featurize_classes(params, tmp_path / "bare", tmp_path / "out")
    two = [
        Picture("a", "train", image, label=0, meta={"class": "fox"}),
        Picture("b", "train", image, label=0, meta={"class": "cat"}),
    ]
    write_shards(tmp_path / "two", two)
    with pytest.raises(FeatureError, match="class 0 is 'fox' and, of b, 'cat'"):
        featurize_classes(params, tmp_path / "two", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_index_without_shards_is_one_line(params, clip, tmp_path):
    write_shards(tmp_path / "empty", [])
    for call in (
        lambda: featurize_captions(params, tmp_path / "empty", clip, tmp_path / "out"),
        lambda: featurize_classes(params, tmp_path / "empty", tmp_path / "out"),
    ):
        with pytest.raises(FeatureError, match="must hold pictures: got none"):
            call()
