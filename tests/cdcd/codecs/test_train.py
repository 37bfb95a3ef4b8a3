from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cdcd.codecs.store import load_codec, read_facts
from cdcd.codecs.train import build_codec, judge, perplexity, train_codec
from cdcd.config import parse_params
from cdcd.data.samples import Sample
from cdcd.data.shards import write_shards

ROOT = Path(__file__).parents[3]


def make_params(**codec):
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    tree["codec"] |= {
        "hop": 32,
        "num_codes": 24,
        "code_width": 8,
        "groups": None,
        "width": 8,
        "max_width": 16,
        "edge_width": 8,
        "depth": 1,
        "num_plain": 1,
        "crop_seconds": 0.05,
        "num_steps": 60,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "log_every": 10,
        "precision": "float32",
    } | codec
    return parse_params(tree)


def make_audio(seed, num_samples=8820):
    rng = np.random.default_rng(seed)
    time = np.arange(num_samples) / 22050
    beat = (time * (3 + seed % 3)) % 1
    hits = rng.standard_normal(num_samples) * np.exp(-beat * 30)
    return (0.3 * hits + 0.3 * np.sin(2 * np.pi * 110 * time)).clip(-1, 1).astype(np.float32)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    splits = ["train"] * 4 + ["val"] * 2
    write_shards(
        folder,
        [Sample(f"clip{i}", split, make_audio(i), None, None) for i, split in enumerate(splits)],
    )
    return folder


class Sink:
    def __init__(self):
        self.rows, self.files, self.sounds = [], [], {}

    def log_metrics(self, metrics, step):
        self.rows.append((step, dict(metrics)))

    def log_artifact(self, path, folder=None):
        self.files.append(path.name)

    def log_audio(self, name, audio, sample_rate_hz):
        self.sounds[name] = audio


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    sink, out = Sink(), tmp_path_factory.mktemp("out") / "codec"
    return out, train_codec(make_params(), shards, out, sink), sink


def test_a_held_out_clip_can_be_compared_by_ear_and_eye(trained):
    _, _, sink = trained
    original, decoded = sink.sounds["codec/original"], sink.sounds["codec/reconstruction"]
    assert original.shape == decoded.shape
    assert not np.array_equal(original, decoded)
    assert sink.files == ["spectrograms.png"]


def test_training_reduces_the_loss_and_reports_it(trained):
    _, summary, sink = trained
    assert summary["last_loss"] < 0.7 * summary["first_loss"]
    assert [step for step, _ in sink.rows] == [1, *range(10, 61, 10), 60]
    assert {"codec/waveform", "codec/spectral", "codec/commitment", "codec/batch_perplexity"} <= (
        sink.rows[0][1].keys()
    )
    assert "codec/val/spectral_convergence" in sink.rows[-1][1]


def test_the_folder_holds_a_codec_that_scores_as_reported(trained):
    out, summary, _ = trained
    assert sorted(path.name for path in out.iterdir()) == [
        "codec.json",
        "codec.safetensors",
        "summary.json",
    ]
    steps = [np.rint(make_audio(i) * 32767) / 32767 for i in (4, 5)]
    scores = judge(load_codec(out), [audio.astype(np.float32) for audio in steps])
    assert scores == pytest.approx(summary["val"], rel=1e-3)
    assert scores["spectral_convergence"] < 0.95


def test_same_seed_same_weights_other_seed_others(shards, trained, tmp_path):
    out, _, _ = trained
    for seed in (0, 1):
        train_codec(make_params(seed=seed), shards, tmp_path / str(seed))
    same, other = (read_facts(tmp_path / seed)["weights_sha256"] for seed in "01")
    assert same == read_facts(out)["weights_sha256"]
    assert other != same


def test_training_leaves_the_global_generator_alone(shards, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_codec(make_params(num_steps=1), shards, tmp_path / "codec")
    assert torch.equal(torch.rand(3), expected)


def test_a_broken_run_leaves_the_earlier_codec(shards, tmp_path):
    out = tmp_path / "codec"
    train_codec(make_params(num_steps=1), shards, out)
    before = (out / "codec.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"must stay finite.*lower codec\.learning_rate"):
        train_codec(make_params(learning_rate=1e20, num_steps=10, log_every=1), shards, out)
    assert (out / "codec.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["codec"]


def test_released_weights_skip_training(shards, tmp_path):
    from cdcd.codecs.openai import released_shapes

    weights = tmp_path / "vqvae.pth.tar"
    state = {name: torch.randn(shape) * 0.02 for name, shape in released_shapes().items()}
    torch.save({"model": state}, weights)
    params = make_params(weights=str(weights), hop=128, num_codes=2048, groups=None)
    summary = train_codec(params, shards, tmp_path / "codec")
    assert summary["source"] == "released"
    codec = load_codec(tmp_path / "codec")
    assert torch.equal(codec.codebook.codes, state["bottleneck.level_blocks.2.k"])
    with pytest.raises(ValueError, match=r"codec\.hop must be 128 .*: got 256"):
        train_codec(
            make_params(weights=str(weights), hop=256, num_codes=2048), shards, tmp_path / "other"
        )


def test_clips_shorter_than_a_token_are_refused(tmp_path):
    folder = tmp_path / "shards"
    write_shards(folder, [Sample("a", "train", np.zeros(20, np.float32), None, None)])
    with pytest.raises(ValueError, match=r"at least codec\.hop long: got 20 samples for 32"):
        train_codec(make_params(), folder, tmp_path / "codec")


@pytest.mark.parametrize("name", ["demo", "paper"])
def test_the_described_codec_has_the_described_rates(name):
    changes = {"hop": 256, "groups": [8]} if name == "demo" else {"hop": 128, "num_codes": 2048}
    codec = build_codec(make_params(**changes).codec)
    assert codec.hop == changes["hop"]
    assert codec.num_codes == changes.get("num_codes", 24)


def test_perplexity_counts_equally_likely_codes():
    assert perplexity(torch.tensor([5, 5, 0, 5, 5])) == pytest.approx(4)
    assert perplexity(torch.tensor([9, 0])) == pytest.approx(1)
