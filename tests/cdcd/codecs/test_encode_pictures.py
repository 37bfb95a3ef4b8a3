import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cdcd.codecs.encode_pictures import cut, encode_pictures
from cdcd.codecs.jukebox import JukeboxVQVAE
from cdcd.codecs.store import read_facts, save_codec
from cdcd.codecs.vqgan import VQGAN
from cdcd.config import parse_params
from cdcd.data.cache import list_splits, read_split
from cdcd.data.images import evaluation_crop, training_crop
from cdcd.data.samples import Picture, sample_generator
from cdcd.data.shards import write_shards

ROOT = Path(__file__).parents[3]
SIZE = 16


def make_params(crops=1, batch_size=3):
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    tree["encode"] |= {"crops": crops, "batch_size": batch_size}
    tree["overrides"] = {name: {key: {} for key in own} for name, own in tree["overrides"].items()}
    return parse_params(tree)


def make_picture(index, split, label=None, meta=None):
    image = np.random.default_rng(index).integers(0, 256, (20, 26, 3)).astype(np.uint8)
    return Picture(f"p{9 - index}", split, image, label=label, meta=meta or {})


PICTURES = [
    *[make_picture(i, "train", label=i % 3) for i in range(5)],
    make_picture(5, "val"),
    make_picture(6, "test", label=2),
    make_picture(7, "test", label=0),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder / "shards", PICTURES, samples_per_shard=2)
    torch.manual_seed(0)
    codec = VQGAN(
        image_size=SIZE, channels=4, multiples=(1, 2), attention_sizes=(), latent_width=4,
        code_width=4, num_codes=20,
    ).eval()  # fmt: skip
    codec.codebook.codes.normal_()
    (folder / "codec").mkdir()
    save_codec(codec, folder / "codec", {"seed": 5})
    return folder, codec


def expected_tokens(codec, crops):
    return codec.encode(torch.tensor(crops).permute(0, 3, 1, 2)).numpy()


@pytest.mark.parametrize(("crops", "batch_size"), [(1, 3), (3, 4), (2, 1)])
def test_every_crop_of_every_picture_is_encoded(data, tmp_path, crops, batch_size):
    folder, codec = data
    params = make_params(crops, batch_size)
    encode_pictures(params, folder / "shards", folder / "codec", tmp_path / "tokens")
    assert list_splits(tmp_path / "tokens") == ["train", "val", "test"]
    for name in ("train", "val", "test"):
        split = read_split(tmp_path / "tokens", name)
        mine = sorted((p for p in PICTURES if p.split == name), key=lambda p: p.key)
        assert split.info["keys"] == [picture.key for picture in mine]
        own = crops if name == "train" else 1
        tokens = split.arrays["tokens"]
        assert (tokens.dtype, tokens.shape) == (np.int32, (len(mine), own, 64))
        for picture, row in zip(mine, tokens, strict=True):
            for j in range(own):
                if own == 1:
                    crop = evaluation_crop(picture.image, SIZE)
                else:
                    crop = training_crop(picture.image, SIZE, sample_generator(5, j, picture.key))
                np.testing.assert_array_equal(row[j], expected_tokens(codec, crop[None])[0])


def test_facts_stand_beside_the_tokens(data, tmp_path):
    folder, _ = data
    out = tmp_path / "tokens"
    summary = encode_pictures(make_params(2), folder / "shards", folder / "codec", out)
    info = read_split(out, "train").info
    assert (info["kind"], info["num_codes"], info["grid"], info["image_size"]) == (
        "picture", 20, [8, 8], 16,
    )  # fmt: skip
    assert info["codec_sha256"] == read_facts(folder / "codec")["weights_sha256"]
    by_key = {picture.key: picture.label for picture in PICTURES}
    assert info["labels"] == [by_key[key] for key in info["keys"]]
    assert read_split(out, "val").info["labels"] == [-1]
    assert info["label_sets"] is None
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["num_pictures"] == {"train": 5, "val": 1, "test": 2}
    assert (summary["num_tokens_per_picture"], summary["crops"]) == (64, 2)
    used = {
        int(t) for name in list_splits(out) for t in read_split(out, name).arrays["tokens"].flat
    }
    assert summary["code_usage"] == round(len(used) / 20, 4)


def test_the_categories_of_a_picture_are_kept_as_its_label_set(data, tmp_path):
    sets = [["cat", "dog"], [], ["dog"]]
    pictures = [make_picture(i, "train", meta={"categories": own}) for i, own in enumerate(sets)]
    write_shards(tmp_path / "shards", pictures)
    encode_pictures(make_params(), tmp_path / "shards", data[0] / "codec", tmp_path / "tokens")
    info = read_split(tmp_path / "tokens", "train").info
    assert info["label_sets"] == sets[::-1]
    assert info["keys"] == ["p7", "p8", "p9"]


def test_crops_depend_on_seed_number_and_key_alone():
    picture, other = PICTURES[0], make_picture(1, "train")
    three, two = cut(picture, SIZE, 3, 0), cut(picture, SIZE, 2, 0)
    np.testing.assert_array_equal(three[:2], two)
    assert not np.array_equal(three[0], three[1])
    assert not np.array_equal(cut(picture, SIZE, 2, 1), two)
    same_image = Picture(other.key, "train", picture.image)
    assert not np.array_equal(cut(same_image, SIZE, 2, 0), two)


def test_a_codec_of_sound_is_refused_and_earlier_tokens_stay(data, tmp_path):
    folder, _ = data
    (tmp_path / "music").mkdir()
    save_codec(JukeboxVQVAE(groups=(3,), width=4, depth=1, num_codes=4), tmp_path / "music", {})
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "kept").write_text("")
    with pytest.raises(ValueError, match=r"must hold a codec of pictures: got one of sound"):
        encode_pictures(make_params(), folder / "shards", tmp_path / "music", tmp_path / "tokens")
    assert (tmp_path / "tokens" / "kept").exists()
