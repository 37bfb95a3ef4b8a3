from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cdcd.data.cache import write_split
from cdcd.data.samples import Sample
from cdcd.data.shards import write_shards
from cdcd.evaluation.evaluate import evaluate
from cdcd.evaluation.systems import GeneratedError, read_generated

RATE = 22050
GENRES = {0: (85, 200.0), 3: (104, 900.0), 5: (123, 3000.0)}  # tempo, colour
SONGS = [(genre, f"m{genre}x{number}") for genre in GENRES for number in (0, 1)]


def music(genre: int, start: float, seed: int) -> np.ndarray:
    """Bursts on the genre's beat, coloured by a tone."""
    bpm, hertz = GENRES[genre]
    generator = np.random.default_rng(seed)
    audio = np.zeros(3 * RATE)
    n = np.arange(3500)
    burst = np.sin(2 * np.pi * hertz * n / RATE) + 0.3 * generator.standard_normal(len(n))
    for time in np.arange(start, 2, 60 / bpm):
        audio[int(time * RATE) :][: len(n)] += 0.3 * burst * np.exp(-n / 500)
    return audio[: 2 * RATE].clip(-1, 1).astype(np.float32)


def write_inputs(
    folder: Path, num_train: int = 12, num_test: int = 12, *, has_genres: bool = True
) -> dict[str, Path]:
    paths = {
        f"{name}_dir": folder / name
        for name in ("generated", "shards", "codec", "tokens", "features", "model", "report")
    }
    paths |= {"metrics_path": folder / "metrics.json", "plot_path": folder / "metrics.png"}
    for name in ("shards", "codec", "model"):
        paths[f"{name}_dir"].mkdir(parents=True)
    originals = {}
    samples = []
    for split, count in (("train", num_train), ("val", 3), ("test", num_test)):
        for i in range(count):
            genre, song = SONGS[i % len(SONGS)]
            start = 0.05 + 0.37 * ((i * 7) % 10) / 10
            audio = music(genre, start, i)
            key = f"{split}{i:03d}"
            meta = {"song": f"{song}{split}", "bpm": GENRES[genre][0]}
            meta |= {"genre": genre} if has_genres else {}
            samples.append(Sample(key, split, audio, None, None, meta))
            if split == "test":
                originals[key] = audio
    write_shards(paths["shards_dir"], samples, 8)
    keys = sorted(originals)
    tokens = np.stack([np.round(originals[k][:44032] * 32767) for k in keys]).astype(np.int32)
    write_split(paths["tokens_dir"], "test", {"tokens": tokens}, {"keys": keys})
    for system, seeds in (("model", (0, 1)), ("unconditioned", (0, 1))):
        for seed in seeds:
            generator = np.random.default_rng(seed)
            rows = []
            for i, key in enumerate(keys):
                clip = (
                    originals[key] if system == "model" else music(0, 0.3 * generator.random(), i)
                )
                noisy = clip[:44032] + 0.002 * generator.standard_normal(44032)
                rows.append(np.clip(np.round(noisy * 32767), -32768, 32767).astype(np.int16))
            arrays = {"audio": np.stack(rows), "tokens": tokens[:, :4]}
            info = {"keys": keys, "init": "mask", "sample_rate_hz": RATE, "seed": seed}
            write_split(paths["generated_dir"], f"{system}-seed{seed}", arrays, info)
    return paths


@pytest.fixture
def stand_ins(monkeypatch, bits_without_model):
    """A codec whose tokens are the samples themselves, and a bound without a model."""
    codec = SimpleNamespace(decode=lambda tokens: tokens.to(torch.float32) / 32767)
    monkeypatch.setattr("cdcd.codecs.store.load_codec", lambda folder: codec)


@pytest.fixture
def params(make_params):
    return make_params({"evaluate": {"num_bootstrap": 300, "num_workers": 2}})


def test_whole_table(tmp_path, params, stand_ins, make_params, recorder, links_of):
    paths = write_inputs(tmp_path)
    found = evaluate(params, dataset="aist", **paths, tracker=recorder)
    assert json.loads(paths["metrics_path"].read_text()) == found
    systems = found["systems"]
    assert list(systems) == [
        "ground_truth",
        "codec_reconstruction",
        "model",
        "unconditioned",
        "shuffled",
        "white_noise",
        "silence",
    ]
    for name in ("onset_f1", "beat_f1"):
        assert systems["ground_truth"][name]["mean"] == 1.0
        assert systems["silence"][name]["mean"] == 0.0
        assert systems["model"][name]["mean"] > systems["shuffled"][name]["mean"]
    assert systems["codec_reconstruction"]["onset_f1"]["mean"] > 0.9
    assert systems["ground_truth"]["genre_accuracy"]["mean"] == 1.0
    assert systems["unconditioned"]["genre_accuracy"]["mean"] == pytest.approx(1 / 3, abs=0.1)
    assert systems["ground_truth"]["beats"]["d2m"]["hit"]["mean"] == 1.0
    assert systems["white_noise"]["beats"]["d2m"]["hit"]["mean"] <= 0.75
    assert systems["silence"]["tempo_error_bpm"] is None
    assert systems["model"]["onset_f1"]["num_seeds"] == 2
    assert systems["model"]["onset_f1"]["std_seeds"] is not None
    assert systems["shuffled"]["num_seeds"] == 2
    assert systems["model"]["bits_per_token"]["mean"] == 5.0
    assert systems["unconditioned"]["bits_per_token"]["mean"] == 6.0
    versus = found["comparisons"]["model_vs_shuffled"]["onset_f1"]
    assert versus["difference"] == pytest.approx(
        systems["model"]["onset_f1"]["mean"] - systems["shuffled"]["onset_f1"]["mean"], abs=1e-5
    )
    assert versus["ci_low"] > 0
    assert versus["intervals_overlap"] is False
    assert found["comparable_to_paper"] is False
    assert any("silence: 12 of 12 clips are silent" in line for line in found["warnings"])
    assert found["genre_protocols"]["classifier_val_accuracy"] == 1.0
    assert found["versions"]["librosa"]
    assert recorder.metrics["model.onset_f1.mean"] == systems["model"]["onset_f1"]["mean"]
    seeds = [recorder.children[f"seed {seed}"] for seed in (0, 1)]
    assert sum(one["model.onset_f1"] for one in seeds) / 2 == pytest.approx(
        systems["model"]["onset_f1"]["mean"], abs=1e-5
    )
    assert not any(name.startswith("ground_truth") for name in seeds[0])
    assert recorder.files[:4] == ["metrics.json", "metrics.png", "index.html", "table.md"]
    spectrograms = sorted(path.name for path in (paths["report_dir"] / "spectrograms").iterdir())
    assert recorder.files[4:] == spectrograms
    assert len(spectrograms) == 6
    assert paths["plot_path"].read_bytes().startswith(b"\x89PNG")
    page = (paths["report_dir"] / "index.html").read_text()
    assert len(links_of(page)) == 1 + 6 * 6  # the figure; 6 clips of every row but silence
    table = (paths["report_dir"] / "table.md").read_text()
    assert "| white noise |" in table
    for text in (page, table):
        assert "Not to be set beside published numbers: aist: the music and dances are" in text
    details = json.loads((paths["report_dir"] / "scores.json").read_text())["systems"]
    hit = details["model"]["seed1"]["d2m.hit"]
    assert hit["n"] + hit["n_skipped"] == hit["n_total"] == 12

    alone = make_params({"evaluate": {"num_bootstrap": 300, "num_workers": 1}})
    again = evaluate(alone, dataset="aist", **paths)
    assert again == found  # neither the number of workers nor a second run changes anything


def test_a_dataset_without_genres_is_not_scored_by_genre(tmp_path, make_params, stand_ins):
    paths = write_inputs(tmp_path, num_train=6, has_genres=False)
    params = make_params({"evaluate": {"num_bootstrap": 50, "num_workers": 1}})
    found = evaluate(params, dataset="tiktok", **paths)
    assert not any("genre_accuracy" in row for row in found["systems"].values())
    assert found["systems"]["ground_truth"]["onset_f1"]["mean"] == 1.0
    assert any("no genre labels, and none are made up" in line for line in found["warnings"])


def test_generated_music_that_saw_its_target_is_refused(tmp_path):
    arrays = {"audio": np.zeros((1, 44032), np.int16)}
    info = {"keys": ["a"], "sample_rate_hz": RATE}
    for init in ("reference", None):
        write_split(tmp_path, "model-seed0", arrays, info | {"init": init})
        with pytest.raises(GeneratedError, match="cannot enter the main table"):
            read_generated(tmp_path, ["a"], "test")
    write_split(tmp_path, "model-seed0", arrays, info | {"init": "mask"})
    assert read_generated(tmp_path, ["a"], "test")[0].audio["a"].shape == (44032,)
    with pytest.raises(GeneratedError, match="keys must belong to split test: got a"):
        read_generated(tmp_path, ["b"], "test")
    write_split(tmp_path, "model-seed0", arrays, info | {"init": "mask", "sample_rate_hz": 8000})
    with pytest.raises(GeneratedError, match="sample_rate_hz must be 22050: got 8000"):
        read_generated(tmp_path, ["a"], "test")


def test_without_model_music_the_stage_says_what_to_run(tmp_path):
    with pytest.raises(GeneratedError, match="got no set; run `generate` again"):
        read_generated(tmp_path, ["a"], "test")


def test_a_failure_leaves_earlier_outputs_alone(tmp_path, params, stand_ins, monkeypatch):
    paths = write_inputs(tmp_path, num_train=6, num_test=12)
    paths["metrics_path"].write_text("earlier")
    paths["report_dir"].mkdir()
    (paths["report_dir"] / "index.html").write_text("earlier")

    def broken(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("cdcd.evaluation.report.markdown", broken)
    with pytest.raises((OSError, ValueError), match="no space left"):
        evaluate(params, dataset="aist", **paths)
    assert paths["metrics_path"].read_text() == "earlier"
    assert (paths["report_dir"] / "index.html").read_text() == "earlier"


def test_missing_clips_are_counted(tmp_path, make_params, stand_ins):
    paths = write_inputs(tmp_path)
    for seed in (0, 1):
        path = paths["generated_dir"] / f"model-seed{seed}"
        from cdcd.data.cache import read_split

        stored = read_split(paths["generated_dir"], path.name)
        arrays = {name: np.array(rows[:9]) for name, rows in stored.arrays.items()}
        info = stored.info | {"keys": stored.info["keys"][:9]}
        write_split(paths["generated_dir"], path.name, arrays, info)
    params = make_params({"evaluate": {"num_bootstrap": 50, "num_workers": 1}})
    row = evaluate(params, dataset="aist", **paths)["systems"]["model"]
    assert (row["onset_f1"]["n"], row["onset_f1"]["n_skipped"]) == (9, 6)  # 3 clips, 2 seeds
    assert (row["genre_accuracy"]["n"], row["genre_accuracy"]["n_skipped"]) == (9, 6)


def test_missing_noisereduce_is_one_line(tmp_path, make_params, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    params = make_params({"evaluate": {"denoise": "noisereduce"}})
    names = ("generated_dir", "shards_dir", "codec_dir", "tokens_dir", "features_dir")
    paths = dict.fromkeys(names, tmp_path)
    with pytest.raises(ValueError, match="pip install noisereduce"):
        evaluate(
            params,
            dataset="aist",
            **paths,
            model_dir=tmp_path,
            metrics_path=tmp_path / "m.json",
            plot_path=tmp_path / "m.png",
            report_dir=tmp_path / "r",
        )


def test_only_generated_music_is_denoised(tmp_path, make_params, stand_ins, monkeypatch):
    gate = SimpleNamespace(reduce_noise=lambda y, sr: 0 * y)
    monkeypatch.setitem(sys.modules, "noisereduce", gate)
    monkeypatch.setattr("cdcd.evaluation.evaluate.check_denoise", lambda choice: None)
    changes = {"num_bootstrap": 50, "num_workers": 1, "denoise": "noisereduce"}
    params = make_params({"evaluate": changes})
    found = evaluate(params, dataset="aist", **write_inputs(tmp_path))
    scores = {name: row["onset_f1"]["mean"] for name, row in found["systems"].items()}
    assert scores["model"] == scores["unconditioned"] == 0.0
    assert scores["ground_truth"] == 1.0
    assert min(scores[name] for name in ("codec_reconstruction", "shuffled", "white_noise")) > 0
    assert found["config"]["denoise"] == "noisereduce"
