import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cdcd.codecs.openai import WeightsError
from cdcd.codecs.pictures import build_picture_codec, judge_pictures, train_picture_codec
from cdcd.codecs.store import load_picture_codec, read_facts
from cdcd.codecs.taming import taming_names
from cdcd.config import parse_params
from cdcd.data.samples import Picture, Sample
from cdcd.data.shards import write_shards

ROOT = Path(__file__).parents[3]
SPLITS = ["train"] * 6 + ["test"] * 3


def make_params(**image):
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    tree["codec"]["image"] |= {
        "image_size": 16,
        "channels": 8,
        "multiples": [1, 2],
        "num_res_blocks": 1,
        "attention_sizes": [],
        "latent_width": 8,
        "code_width": 8,
        "num_codes": 16,
        "num_steps": 24,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "precision": "float32",
        "adversarial_start": 12,
        "discriminator_channels": 4,
        "log_every": 6,
    } | image
    tree["overrides"] = {name: {key: {} for key in own} for name, own in tree["overrides"].items()}
    return parse_params(tree)


def make_picture(index, split):
    rng = np.random.default_rng(index)
    image = np.zeros((20, 24, 3), np.uint8) + rng.integers(0, 255, 3).astype(np.uint8)
    image[5:15, 6:18] = rng.integers(0, 255, 3)
    return Picture(f"picture{index}", split, image)


def write(folder, splits=SPLITS):
    write_shards(folder, [make_picture(i, split) for i, split in enumerate(splits)])
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "shards")


class Sink:
    def __init__(self):
        self.rows, self.files = [], []

    def log_metrics(self, metrics, step):
        self.rows.append((step, dict(metrics)))

    def log_artifact(self, path, folder=None):
        self.files.append((Path(path).name, folder))


def train(shards, folder, sink=None, **image):
    folder.mkdir()
    return train_picture_codec(make_params(**image), shards, folder, sink)


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    sink, out = Sink(), tmp_path_factory.mktemp("out") / "codec"
    return out, train(shards, out, sink), sink


def test_training_reduces_the_loss_and_reports_it(trained):
    _, summary, sink = trained
    assert summary["last_loss"] < summary["first_loss"]
    rows = dict(sink.rows[:-1])
    assert list(rows) == [1, 6, 12, 18, 24]
    losses = ("pixel", "perceptual", "commitment", "adversarial", "discriminator")
    names = ("loss", *losses, "adversarial_weight", "gradient_norm", "learning_rate")
    for row in rows.values():
        assert {f"codec/{name}" for name in names} <= row.keys()
        assert all(np.isfinite(value) for value in row.values())
    assert rows[24]["codec/pixel"] < rows[1]["codec/pixel"]


def test_the_adversarial_loss_is_switched_on_after_its_start(trained):
    rows = dict(trained[2].rows[:-1])
    for step, row in rows.items():
        for name in ("adversarial", "adversarial_weight", "discriminator"):
            assert (row[f"codec/{name}"] != 0) == (step > 12), (step, name)
    assert rows[18]["codec/adversarial_weight"] > 0


def test_the_summary_says_what_was_done_and_how_well(trained):
    out, summary, sink = trained
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["perceptual_loss"] == "ssim+gradient, no LPIPS weights given"
    assert (summary["source"], summary["precision"]) == ("trained", "float32")
    assert (summary["factor"], summary["num_codes"], summary["grid"]) == (2, 16, [8, 8])
    assert summary["judged_split"] == "test"
    scores = summary["held_out"]
    assert set(scores) == {"l1", "psnr", "ssim", "code_usage", "perplexity"}
    assert 1 / 16 <= scores["code_usage"] <= 1
    assert 1 <= scores["perplexity"] <= 16
    assert sink.rows[-1] == (24, {f"codec/held_out/{name}": v for name, v in scores.items()})


def test_pictures_are_drawn_and_kept(trained):
    out, _, sink = trained
    files = ["reconstructions.png", "codebook_use.png"]
    assert sink.files == [(name, "codec") for name in files]
    for name in files:
        assert (out / "pictures" / name).read_bytes().startswith(b"\x89PNG")


def test_the_written_codec_is_the_judged_one(trained, shards):
    out, _, _ = trained
    codec = load_picture_codec(out)
    assert read_facts(out)["facts"]["seed"] == 0
    pictures = np.stack([make_picture(i, "test").image[2:18, 4:20] for i in range(6, 9)])
    assert pictures.shape == (3, 16, 16, 3)
    scores, counts, decoded = judge_pictures(codec, pictures)
    assert decoded.shape == pictures.shape
    assert counts.sum() == 3 * 64
    expected = np.abs(decoded.astype(float) - pictures).mean() / 255
    assert scores["l1"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_equal_params_and_shards_give_equal_weights(shards, tmp_path, precision):
    options = {"num_steps": 6, "adversarial_start": 3}
    torch.manual_seed(1)
    for name in ("one", "two"):
        summary = train(shards, tmp_path / name, precision=precision, **options)
        assert summary["precision"] == precision
        torch.rand(3)
    first, second = (load_picture_codec(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    train(shards, tmp_path / "other", seed=1, **options)
    other = load_picture_codec(tmp_path / "other").state_dict()
    assert not torch.equal(other["codebook.codes"], first["codebook.codes"])


def test_the_gradient_is_that_of_the_weighted_sum_of_all_losses(shards):
    from contextlib import nullcontext

    from cdcd.codecs.pictures import _Trainer
    from cdcd.codecs.vqgan import to_unit

    params = make_params(adversarial_weight=0.5).codec.image
    torch.manual_seed(0)
    trainer = _Trainer(params, torch.device("cpu"))
    target = to_unit(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    trainer.codec(target)
    trainer.codec.eval()  # the codebook stays
    output = trainer.codec(target)
    terms, _ = trainer.backward(output, target, nullcontext, True)
    found = {name: p.grad.clone() for name, p in trainer.codec.named_parameters()}
    trainer.codec.zero_grad()
    output = trainer.codec(target)
    total = (
        params.pixel_weight * (output.pictures - target).abs().mean()
        + params.perceptual_weight * trainer.perceptual(output.pictures, target)
        - terms.adversarial_weight * trainer.discriminator(output.pictures).mean()
        + params.commit_weight * output.commitment
    )
    torch.testing.assert_close(total.detach(), terms.total)
    total.backward()
    for name, parameter in trainer.codec.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_a_loss_that_is_no_number_stops_in_one_line(shards, tmp_path):
    with pytest.raises(
        ValueError, match=r"loss must stay finite: got nan at step \d+; lower codec\.image\.learn"
    ):
        train(shards, tmp_path / "out", learning_rate=1e30, log_every=1, adversarial_weight=0.0)


def test_val_is_judged_where_there_is_one_and_nothing_where_no_picture_is_held_out(tmp_path):
    both = write(tmp_path / "both", ["train", "val", "test"])
    assert train(both, tmp_path / "a", num_steps=2)["judged_split"] == "val"
    alone = write(tmp_path / "alone", ["train"])
    summary = train(alone, tmp_path / "b", num_steps=2)
    assert summary["judged_split"] is None
    assert "held_out" not in summary
    with pytest.raises(ValueError, match=r"must hold shards of split train: got none"):
        train(write(tmp_path / "none", ["test"]), tmp_path / "c")


def test_shards_of_music_are_refused(tmp_path):
    sound = Sample("a", "train", np.zeros(64, np.float32), None, None)
    write_shards(tmp_path / "music", [sound])
    with pytest.raises(ValueError, match=r"must hold pictures: got dance and music"):
        train(tmp_path / "music", tmp_path / "out")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    codec = build_picture_codec(make_params().codec.image)
    codec.codebook.codes.normal_()
    state = codec.state_dict()
    path = tmp_path_factory.mktemp("weights") / "last.ckpt"
    torch.save({"state_dict": {b: state[a] for a, b in taming_names(codec).items()}}, path)
    return path


def test_released_weights_are_read_and_judged_instead(shards, tmp_path, checkpoint):
    torch.save(torch.arange(16) % 5, tmp_path / "map.pt")
    mapping = str(tmp_path / "map.pt")
    summary = train(shards, tmp_path / "out", weights=str(checkpoint), mapping=mapping, num_codes=5)
    assert (summary["source"], summary["num_codes"]) == ("released", 5)
    assert {"released_sha256", "mapping_sha256", "held_out"} <= summary.keys()
    assert "perceptual_loss" not in summary
    assert load_picture_codec(tmp_path / "out").num_codes == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_codes": 5}, r"num_codes must be 16 with these .*: got 5; set it to 16, or weights"),
        (
            {"multiples": [1, 2, 2]},
            r"multiples must have 2 entries .* of factor 2: got 3; give",
        ),
    ],
)
def test_released_weights_of_another_size_than_asked_are_refused(
    shards, tmp_path, checkpoint, change, message
):
    with pytest.raises(WeightsError, match=message):
        train(shards, tmp_path / "out", weights=str(checkpoint), **change)
