import json
import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cdcd.data.images import evaluation_crop
from cdcd.data.samples import Caption, Picture
from cdcd.data.shards import write_shards
from cdcd.features.base import FeatureError
from cdcd.features.clip import (
    _draw_batches,
    build_clip,
    contrastive_loss,
    judge,
    train_clip,
    train_tokenizer,
)
from cdcd.features.text import END, START, TextEncoder
from tests.cdcd.features.tiny_clip import CAPTIONS, pictures, shape, write_clip

TEXT = {
    "weights": None,
    "seed": 0,
    "vocab_size": 560,
    "width": 32,
    "depth": 1,
    "num_heads": 2,
    "embed_width": 16,
    "patch_size": 16,
    "image_size": 32,
    "num_steps": 60,
    "batch_size": 16,
    "learning_rate": 3.0e-3,
    "log_every": 20,
}


class Sink:
    def __init__(self):
        self.steps, self.metrics = [], {}

    def log_metrics(self, metrics, step):
        self.steps.append(step)
        self.metrics |= metrics


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, pictures(48, 20))
    return folder


@pytest.fixture
def run(make_params, shards, tmp_path):
    def train(name="out", shards_dir=shards, tracker=None, **changes):
        folder = tmp_path / name
        folder.mkdir()
        params = make_params({"codec": {"text": TEXT | changes}})
        return train_clip(params, shards_dir, folder, tracker), folder

    return train


def test_trained_on_pairs_it_tells_captions_apart(run):
    sink = Sink()
    summary, folder = run(tracker=sink)
    held_out = summary["held_out"]
    assert held_out["split"] == "test"
    assert held_out["num_pictures"] == 20
    assert (held_out["matching_chance"], held_out["retrieval_chance"]) == (0.5, 0.1)
    for side in ("picture_to_caption", "caption_to_picture"):
        assert held_out[f"{side}_matching"] > 0.8
        assert held_out[f"{side}_retrieval"] > 0.4
    assert summary["last_loss"] < summary["first_loss"]
    assert summary["note"] == ("own small CLIP trained on 96 pairs; not comparable with the paper")
    assert summary["num_truncated"] == 0
    assert summary["encoder"] == TextEncoder.load(folder).identity()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert sink.steps == [1, 20, 40, 60, 60]
    assert {"text/loss", "text/batch_accuracy", "text/scale"} <= set(sink.metrics)
    assert sink.metrics["text/held_out/picture_to_caption_matching"] > 0.8


def test_equal_runs_write_equal_bytes(run):
    _, first = run("a", num_steps=3)
    torch.manual_seed(5)
    _, second = run("b", num_steps=3)
    _, other = run("c", num_steps=3, seed=1)
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert (first / names[names.index("model.safetensors")]).read_bytes() != (
        other / "model.safetensors"
    ).read_bytes()


def test_training_leaves_the_randomness_alone(run):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run(num_steps=2)
    torch.testing.assert_close(torch.rand(2), expected)


def test_transformers_reads_what_is_written(run):
    from transformers import CLIPModel, CLIPTokenizer

    _, folder = run(num_steps=2)
    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    inputs = tokenizer(["a red sky over blue land"], return_tensors="pt")
    with torch.no_grad():
        found = model.get_text_features(**inputs).pooler_output
    expected = TextEncoder.load(folder).text_features(["a red sky over blue land"])
    torch.testing.assert_close(F.normalize(found, dim=-1), expected)


def test_words_never_trained_are_known_as_such(run):
    _, folder = run(num_steps=2)
    encoder = TextEncoder.load(folder)
    assert int(encoder.tokenize(["a red sky"]).num_unknown) == 0
    with pytest.raises(ValueError, match="words that the text encoder was trained on"):
        encoder.check_prompt("красный")


def test_a_given_folder_is_copied(run, tmp_path):
    source = write_clip(tmp_path / "given")
    (source / "README.md").write_text("not read")
    summary, folder = run(weights=str(source))
    encoder = TextEncoder.load(folder)
    assert encoder.identity() == TextEncoder.load(source).identity()
    assert summary["source"] == "given"
    assert summary["encoder"]["sha256"] in summary["note"]
    assert summary["held_out"]["num_pictures"] == 20
    assert not (folder / "README.md").exists()
    # A copy: deleting the given one must not break the pipeline.
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_a_given_folder_that_is_no_clip_is_one_line(run, tmp_path):
    with pytest.raises(FeatureError, match="must be the folder of a CLIP"):
        run(weights=str(tmp_path / "nothing"))


def test_pictures_without_captions_are_one_line(run, tmp_path):
    image = np.zeros((40, 40, 3), np.uint8)
    write_shards(tmp_path / "bare", [Picture("a", "train", image, label=0)])
    with pytest.raises(FeatureError, match="must hold pictures with captions to train"):
        run(shards_dir=tmp_path / "bare")


def test_without_a_held_out_split_nothing_is_judged(run, tmp_path, caplog):
    write_shards(tmp_path / "all", pictures(8, 0))
    with caplog.at_level(logging.WARNING):
        summary, _ = run(shards_dir=tmp_path / "all", num_steps=2, batch_size=64)
    assert summary["held_out"] is None
    assert "is not judged" in caplog.text
    assert summary["batch_size"] == 8


def test_a_loss_that_is_no_number_is_one_line(run):
    with pytest.raises(ValueError, match=r"lower codec.text.learning_rate"):
        run(learning_rate=1e30, num_steps=20, log_every=1)


def test_judging_by_chance(shards, tmp_path):
    # Constant vectors tie with all others: no caption is closer.
    encoder = TextEncoder.load(write_clip(tmp_path / "clip"))
    encoder.model.visual_projection.weight.data.zero_()
    encoder.model.visual_projection.weight.data += 1
    encoder.model.text_projection.weight.data.zero_()
    encoder.model.text_projection.weight.data += 1
    scores = judge(encoder, shards)
    assert scores is not None
    assert scores["num_choices"] == 10
    for side in ("picture_to_caption", "caption_to_picture"):
        assert scores[f"{side}_matching"] <= 0.75


def test_a_class_of_ones_own_is_no_other(tmp_path):
    image = np.zeros((40, 40, 3), np.uint8)
    twins = [
        Picture(f"p{i}", "test", image, (Caption("0", f"text {i}"),), label=0) for i in range(4)
    ]
    write_shards(tmp_path / "twins", twins)
    encoder = TextEncoder.load(write_clip(tmp_path / "clip"))
    assert judge(encoder, tmp_path / "twins") is None


def test_vocabulary_is_ordered_as_that_of_clip():
    tokenizer = train_tokenizer(CAPTIONS, 540)
    vocabulary = tokenizer.get_vocab()
    size = len(vocabulary)
    assert size <= 540
    assert sorted(vocabulary.values()) == list(range(size))
    assert (vocabulary[START], vocabulary[END]) == (size - 2, size - 1)
    assert all(vocabulary[token + "</w>"] == vocabulary[token] + 256 for token in "abc")
    larger = train_tokenizer(CAPTIONS, 600)
    assert len(larger.encode(CAPTIONS[0]).ids) < len(tokenizer.encode(CAPTIONS[0]).ids)
    # Common words become one token each.
    assert len(larger.encode("A  Small RED bird").ids) == 6


def test_no_text_is_unknown():
    tokenizer = train_tokenizer(CAPTIONS, 560)
    end = tokenizer.token_to_id(END)
    for text in ("x", "Ünïcödé", "赤い鳥", "🐦", "\x07", "".join(map(chr, range(33, 1000)))):
        ids = tokenizer.encode(text).ids
        assert len(ids) > 2
        assert end not in ids[1:-1]


def test_a_vocabulary_without_room_is_one_line():
    with pytest.raises(FeatureError, match=r"codec.text.vocab_size must be at least 514.*got 513"):
        train_tokenizer(CAPTIONS, 513)
    assert train_tokenizer(CAPTIONS, 514).get_vocab_size() == 514


def test_towers_have_the_asked_sizes():
    model = build_clip(shape(width=24, depth=3, num_heads=4), train_tokenizer(CAPTIONS, 560))
    text, vision = model.config.text_config, model.config.vision_config
    assert (text.max_position_embeddings, text.hidden_size, text.num_hidden_layers) == (77, 24, 3)
    assert (vision.image_size, vision.patch_size, vision.num_attention_heads) == (32, 8, 4)


def test_loss_is_the_symmetric_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    texts = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    scale = torch.tensor(math.log(9.0), dtype=torch.float64)
    loss, _ = contrastive_loss(3 * images, texts / 2, scale, torch.ones(5, 5, dtype=torch.bool))
    cosine = F.cosine_similarity(images[:, None], texts[None], dim=-1)
    log_rows, log_columns = (9 * cosine).log_softmax(1), (9 * cosine).log_softmax(0)
    torch.testing.assert_close(loss, -(log_rows.diag().mean() + log_columns.diag().mean()) / 2)


def test_loss_of_perfect_and_of_constant_vectors():
    every = torch.ones(4, 4, dtype=torch.bool)
    loss, accuracy = contrastive_loss(torch.eye(4), torch.eye(4), torch.tensor(5.0), every)
    assert loss < 1e-3
    assert accuracy == 1
    loss, _ = contrastive_loss(torch.ones(4, 3), torch.ones(4, 3), torch.tensor(1.0), every)
    assert loss == pytest.approx(math.log(4))


def test_what_is_no_negative_is_left_out():
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(6, 4, generator=generator) for _ in range(2))
    # Pictures 0 to 2 and 3 to 5 are of one class each: within a class nothing repels.
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    is_other = groups[:, None] != groups[None]
    scale = torch.tensor(2.0)
    loss, _ = contrastive_loss(images, texts, scale, is_other)
    logits = math.exp(2) * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    terms = []
    for i in range(6):
        kept = [i, *is_other[i].nonzero()[:, 0].tolist()]
        terms += [logits[i, kept].log_softmax(0)[0], logits[kept, i].log_softmax(0)[0]]
    torch.testing.assert_close(loss, -torch.stack(terms).mean())
    alone = torch.zeros(6, 6, dtype=torch.bool)
    assert contrastive_loss(images, texts, scale, alone)[0] == 0


def test_batches_repeat_nothing_and_cover_everything():
    batches = _draw_batches(10, 4, np.random.default_rng(0))
    drawn = [next(batches) for _ in range(25)]
    assert all(len(set(batch.tolist())) == 4 for batch in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=10)
    assert (counts == 10).all()
    assert sorted(next(_draw_batches(3, 8, np.random.default_rng(0))).tolist()) == [0, 1, 2]


def test_pictures_are_seen_as_evaluation_sees_them(tmp_path):
    # The crop that is encoded into tokens and the picture that the encoder reads agree.
    encoder = TextEncoder.load(write_clip(tmp_path))
    image = pictures(1, 0)[0].image
    direct = encoder.preparation.crop(image).astype(int)
    again = encoder.preparation.crop(evaluation_crop(image, 32)).astype(int)
    assert np.abs(direct - again).mean() < 3
