"""Training: killed and resumed equals uninterrupted, validation disturbs nothing, losses fall."""

import json
import sys

import numpy as np
import pytest
import torch

from cdcd.data.files import StorageError
from cdcd.tasks import bits_per_token
from cdcd.tracking import NullTracker
from cdcd.training.optim import make_optimizer, rate_factor
from cdcd.training.state import CHECKPOINT, CheckpointError, read_checkpoint
from tests.cdcd.training.tiny import Losses, make_params, run, weights, write_caches


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    root = tmp_path_factory.mktemp("caches")
    write_caches(root)
    return root


def test_killed_and_resumed_equals_uninterrupted(caches, tmp_path):
    params = make_params()
    run(caches, tmp_path / "a", params)
    run(caches, tmp_path / "b", params, stop_after=7)
    assert not (tmp_path / "b" / "model").exists()
    torch.manual_seed(99)  # another process has another global state
    assert read_checkpoint(tmp_path / "b" / "checkpoint")[1] == 7
    run(caches, tmp_path / "b", params)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert not (tmp_path / "b" / "checkpoint").exists()


def test_killed_between_two_checkpoints_still_leaves_the_same_files(caches, tmp_path):
    class Kill(NullTracker):
        def log_metrics(self, metrics, step):
            if step == 8:
                raise KeyboardInterrupt

    run(caches, tmp_path / "a", make_params())
    with pytest.raises(KeyboardInterrupt):
        run(caches, tmp_path / "b", make_params(), Kill())
    assert read_checkpoint(tmp_path / "b" / "checkpoint")[1] == 5
    run(caches, tmp_path / "b", make_params())
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_killed_with_all_steps_done_still_leaves_every_file(caches, tmp_path, monkeypatch):
    run(caches, tmp_path / "a", make_params())
    with monkeypatch.context() as patch:
        patch.setattr("cdcd.tasks.training.save_model", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(caches, tmp_path / "b", make_params())
    run(caches, tmp_path / "b", make_params())
    assert files(tmp_path / "a") == files(tmp_path / "b")


def interrupt(*_args, **_kwargs):
    raise KeyboardInterrupt


def files(out):
    """The content of every file that the training left, by name."""
    model = out / "model"
    return {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*.*")}


def test_validation_and_logging_change_nothing(caches, tmp_path):
    run(caches, tmp_path / "a", make_params())
    run(caches, tmp_path / "b", make_params(validate_every=1, log_every=1, save_every=1))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_a_checkpoint_of_other_parameters_is_not_resumed(caches, tmp_path):
    run(caches, tmp_path, make_params(seed=1), stop_after=3)
    run(caches, tmp_path, make_params())
    run(caches, tmp_path / "fresh", make_params())
    assert weights(tmp_path) == weights(tmp_path / "fresh")


def test_a_cut_checkpoint_is_one_clear_error(caches, tmp_path):
    run(caches, tmp_path, make_params(), stop_after=3)
    file = tmp_path / "checkpoint" / CHECKPOINT
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="delete it to start anew"):
        run(caches, tmp_path, make_params())


def test_a_full_disk_keeps_the_earlier_checkpoint(caches, tmp_path, monkeypatch):
    run(caches, tmp_path, make_params(), stop_after=5)
    before = (tmp_path / "checkpoint" / CHECKPOINT).read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cdcd.training.state.save_file", full)
    with pytest.raises(StorageError, match="no space left"):
        run(caches, tmp_path, make_params())
    assert (tmp_path / "checkpoint" / CHECKPOINT).read_bytes() == before
    left = {path.name for path in (tmp_path / "checkpoint").iterdir()}
    assert left == {CHECKPOINT, "curves.jsonl"}


CHOICES = [
    {"mode": "off"},
    *(
        {"mode": mode, "negatives": negatives, "form": form}
        for mode in ("step", "sample")
        for negatives in ("intra", "inter")
        for form in ("linear", "infonce")
    ),
    {"mode": "step", "chains": "parallel", "form": "linear"},
    {"mode": "step", "intra_unit": "waveform"},
]


@pytest.mark.parametrize("contrast", CHOICES, ids=lambda c: "-".join(c.values()))
def test_every_contrastive_setting_trains(caches, tmp_path, contrast):
    class Record(NullTracker):
        def __init__(self):
            self.seen = {}

        def log_metrics(self, metrics, step):
            self.seen.update(metrics)

    tracker = Record()
    run(caches, tmp_path, make_params(contrast={**contrast, "weight": 0.1}, num_steps=4), tracker)
    value = tracker.seen["contrast"]
    if contrast["mode"] == "off":
        assert value == 0
    elif contrast.get("form") == "linear":
        assert value < 0
    else:
        assert value > 0


@pytest.mark.parametrize("schedule", ["absorbing_uniform", "alpha1", "official"])
def test_training_learns_what_the_condition_tells(caches, tmp_path, schedule):
    params = make_params(
        num_steps=150, diffusion={"schedule": schedule}, optimizer={"learning_rate": 3e-3},
        save_every=1000, validate_every=1000, ema_decay=0.9,
    )  # fmt: skip
    run(caches, tmp_path, params)
    score = {
        name: bits_per_token(
            tmp_path / "model", caches / "tokens", caches / "features", "val", name
        )["mean"]
        for name in ("model", "video_only", "unconditioned")
    }
    # Two of 32 codes are possible given the class: 1 bit a token, 2.6 without the class.
    assert score["model"] < 2.2
    assert score["video_only"] < 2.6
    assert score["model"] < score["unconditioned"]


def test_summary_and_run_identity_are_written(caches, tmp_path):
    summary = run(caches, tmp_path, make_params())
    stored = json.loads((tmp_path / "model" / "summary.json").read_text())
    assert stored["num_steps"] == 12
    assert summary["num_parameters"] == stored["num_parameters"]
    assert "seconds" not in stored, "what differs from run to run is no output"
    assert "tokens_per_second" not in stored["final"]


def test_without_genres_training_works_and_conditions_on_none(tmp_path):
    write_caches(tmp_path, has_genres=False)
    run(tmp_path, tmp_path / "out", make_params())
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="use_genre must be false where clips have no genre"):
        run(tmp_path, tmp_path / "genre", make_params(conditioner={"use_genre": True}))


def test_rate_warms_up_and_decays():
    assert rate_factor(1, 100, 10, "cosine") == pytest.approx(0.1)
    assert rate_factor(10, 100, 10, "cosine") == 1
    assert rate_factor(100, 100, 10, "cosine") == pytest.approx(0.02)
    assert rate_factor(100, 100, 10, "constant") == 1


def test_vectors_are_not_decayed():
    model = torch.nn.Linear(3, 3)
    groups = make_optimizer(model, 1.0, (0.9, 0.96), 0.5).param_groups
    assert [g["weight_decay"] for g in groups] == [0.5, 0.0]
    assert groups[0]["params"][0] is model.weight


def losses(caches, out, **train):
    tracker = Losses()
    options = {"num_steps": 20, "log_every": 1, "batch_size": 3, "save_every": 100}
    options |= {"validate_every": 100, "optimizer": {"learning_rate": 3e-3, "warmup_steps": 1}}
    run(caches, out, make_params(**(options | train)), tracker)
    assert len(tracker.totals) == 20
    return tracker.totals


FORMS = [{"form": "linear", "weight": 0.01}, {"form": "infonce", "weight": 0.01},
         {"form": "linear", "chains": "parallel", "weight": 0.01}]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="there is no Triton here")
@pytest.mark.parametrize("contrast", FORMS[:2], ids=lambda c: c["form"])
def test_twenty_steps_with_reference_and_triton(caches, tmp_path, monkeypatch, contrast):
    got = []
    for name in ("reference", "triton"):
        monkeypatch.setenv("CDCD_KERNELS", name)
        got.append(losses(caches, tmp_path / name, contrast=contrast))
    np.testing.assert_allclose(got[1], got[0], rtol=1e-4)


@pytest.mark.parametrize("contrast", FORMS, ids=lambda c: "-".join(map(str, c.values())))
def test_chunked_logits_train_alike(caches, tmp_path, contrast):
    got = [
        losses(caches, tmp_path / str(flag), contrast=contrast, chunk_logits=flag)
        for flag in (False, True)
    ]
    np.testing.assert_allclose(got[1], got[0], rtol=1e-4)
