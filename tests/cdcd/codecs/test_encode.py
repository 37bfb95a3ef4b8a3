from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cdcd.codecs.encode import derangement, encode_dataset, shuffle_waveform
from cdcd.codecs.jukebox import JukeboxVQVAE
from cdcd.codecs.store import load_codec, read_facts, save_codec
from cdcd.config import parse_params
from cdcd.data.cache import list_splits, read_split
from cdcd.data.samples import Sample
from cdcd.data.shards import iterate_shards, write_shards

ROOT = Path(__file__).parents[3]


def make_params(**encode):
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    tree["encode"] |= {"batch_size": 2} | encode
    return parse_params(tree)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    samples = []
    for i, split in enumerate(["train"] * 5 + ["val", "test"]):
        meta = {"genre": i % 3, "song": f"mBR{i}", "sequence": f"s{i}"}
        audio = (rng.standard_normal(44100) * 0.2).clip(-1, 1).astype(np.float32)
        samples.append(Sample(f"k{9 - i}", split, audio, None, None, meta))
    write_shards(root / "shards", samples, samples_per_shard=2)
    torch.manual_seed(0)
    codec = JukeboxVQVAE(groups=(7,), width=4, depth=1, code_width=4, num_codes=32)
    codec.codebook.codes.normal_(std=0.1)
    (root / "codec").mkdir()
    save_codec(codec, root / "codec", {})
    return root


def test_tokens_are_the_codecs_in_key_order(folders, tmp_path):
    summary = encode_dataset(make_params(), folders / "shards", folders / "codec", tmp_path / "t")
    assert list_splits(tmp_path / "t") == ["train", "val", "test"]
    assert summary["num_clips"] == {"train": 5, "val": 1, "test": 1}
    assert summary["num_tokens_per_clip"] == 344
    split = read_split(tmp_path / "t", "train")
    codec = load_codec(folders / "codec")
    samples = list(iterate_shards(folders / "shards", "train"))
    assert split.info["keys"] == sorted(sample.key for sample in samples)
    assert split.arrays["tokens"].dtype == np.int32
    assert split.arrays.keys() == {"tokens"}
    for row, sample in enumerate(samples):
        expected = codec.encode(torch.from_numpy(sample.audio)[None])[0]
        assert split.arrays["tokens"][row].tolist() == expected.tolist()
        for field in ("genre", "song", "sequence"):
            assert split.info[f"{field}s"][row] == sample.meta[field]


def test_facts_name_the_codec(folders, tmp_path):
    encode_dataset(make_params(), folders / "shards", folders / "codec", tmp_path / "t")
    info = read_split(tmp_path / "t", "test").info
    assert info["codec_sha256"] == read_facts(folders / "codec")["weights_sha256"]
    assert (info["hop"], info["num_codes"], info["segment_seconds"]) == (128, 32, 2)


def test_waveform_negatives_are_tokens_of_shuffled_sound(folders, tmp_path):
    params = make_params(num_waveform_negatives=3, num_chunks=4)
    encode_dataset(params, folders / "shards", folders / "codec", tmp_path / "t")
    split = read_split(tmp_path / "t", "val")
    assert split.arrays["intra"].shape == (1, 3, 344)
    (sample,) = iterate_shards(folders / "shards", "val")
    shuffled = shuffle_waveform(sample.audio, sample.key, 3, 4)
    expected = load_codec(folders / "codec").encode(torch.from_numpy(shuffled))
    np.testing.assert_array_equal(split.arrays["intra"][0], expected.numpy())


def test_running_twice_gives_equal_bytes(folders, tmp_path):
    params = make_params(num_waveform_negatives=2)
    for name in "ab":
        encode_dataset(params, folders / "shards", folders / "codec", tmp_path / name)
    for path in (tmp_path / "a").glob("t*"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("num_chunks", [2, 3, 8])
def test_derangement_moves_every_chunk(num_chunks):
    generator = np.random.default_rng(0)
    for _ in range(50):
        order = derangement(num_chunks, generator)
        assert sorted(order) == list(range(num_chunks))
        assert (order != np.arange(num_chunks)).all()


def test_shuffling_keeps_chunks_whole_and_moves_each():
    audio = np.arange(43, dtype=np.float32)
    shuffled = shuffle_waveform(audio, "key", 5, 4)
    assert shuffled.shape == (5, 43)
    for copy in shuffled:
        assert copy[40:].tolist() == audio[40:].tolist()
        chunks, original = copy[:40].reshape(4, 10), audio[:40].reshape(4, 10)
        assert sorted(map(tuple, chunks)) == sorted(map(tuple, original))
        assert (chunks != original).any(1).all()


def test_shuffling_depends_on_the_key_alone():
    audio = np.random.default_rng(0).standard_normal(800).astype(np.float32)
    one, again, other = (shuffle_waveform(audio, key, 4, 8) for key in ("a", "a", "b"))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_more_chunks_than_samples_are_refused():
    with pytest.raises(ValueError, match="between 2 and the clip's 5 samples: got 6"):
        shuffle_waveform(np.zeros(5, np.float32), "a", 1, 6)


def test_clips_of_different_lengths_are_refused_and_nothing_is_written(folders, tmp_path):
    meta = {"genre": 0, "song": "m", "sequence": "s"}
    clips = [
        Sample(k, "train", np.zeros(n, np.float32), None, None, meta)
        for k, n in (("a", 44100), ("b", 44099))
    ]
    write_shards(tmp_path / "shards", clips)
    with pytest.raises(ValueError, match="equally long: b has 44099 samples, a 44100"):
        encode_dataset(make_params(), tmp_path / "shards", folders / "codec", tmp_path / "t")
    assert not (tmp_path / "t").exists()
