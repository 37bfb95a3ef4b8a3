"""Pictures composed: what is asked for shows in the tokens, and which conditions are chosen."""

import numpy as np
import pytest
import torch
import yaml

from cdcd.config import parse_params
from cdcd.data.cache import write_split
from cdcd.data.picture_batches import PictureConditions
from cdcd.models.store import load_model
from cdcd.tasks import bits_per_token, train_model
from cdcd.tasks.pictures import choose_conditions

CLASSES, LENGTH = 3, 16


@pytest.fixture(scope="module", params=["text2image", "class2image"])
def caches(request, tmp_path_factory):
    """Pictures whose tokens follow their class, which captions and labels tell."""
    root = tmp_path_factory.mktemp(request.param)
    random = np.random.default_rng(0)
    for split, n in (("train", 48), ("val", 6)):
        labels = np.arange(n) % CLASSES
        keys = [f"{split}{i:03d}" for i in range(n)]
        tokens = labels[:, None, None] * 10 + random.integers(0, 2, (n, 2, LENGTH))
        write_split(
            root / "tokens", split, {"tokens": tokens.astype(np.int32)},
            {"kind": "picture", "keys": keys, "labels": labels.tolist(), "label_sets": None,
             "num_codes": 32, "grid": [4, 4], "image_size": 32, "codec_sha256": "x"},
        )  # fmt: skip
        if request.param == "class2image":
            arrays = {"label": labels.astype(np.int32)}
            info = {"kind": "class", "keys": keys, "num_classes": CLASSES,
                    "class_names": ["a", "b", "c"]}  # fmt: skip
        else:
            text = np.tile(np.eye(CLASSES, 8, dtype=np.float16)[labels][:, None], (1, 5, 1))
            arrays = {
                "text": text, "length": np.full(n, 5, np.int32),
                "picture": np.arange(n, dtype=np.int32),
            }  # fmt: skip
            info = {
                "kind": "text", "keys": [f"{key}_0" for key in keys], "picture_keys": keys,
                "captions": [f"class {label}" for label in labels],
                "encoder": {"width": 8, "context_length": 77},
            }  # fmt: skip
        write_split(root / "features", split, arrays, info)
    return request.param, root


def make_params(mode="sample", negatives="inter", **changes):
    tree = yaml.safe_load(open("params.yaml").read())  # noqa: PTH123, SIM115
    params = parse_params(tree)
    tree = params.of("cub200").model_dump(by_alias=True)
    tree["train"].update(num_steps=60, batch_size=8, log_every=30, validate_every=60, save_every=25,
                         preview_every=1000, precision="float32", drop_all=0.2)  # fmt: skip
    tree["train"]["denoiser"].update(width=32, depth=1, num_heads=2)
    tree["train"]["diffusion"].update(num_steps=6)
    tree["train"]["contrast"].update(
        mode=mode, negatives=negatives, num_negatives=3, num_chunks=4, **changes
    )
    tree["train"]["optimizer"].update(warmup_steps=5, learning_rate=3e-3)
    return parse_params(tree | {"datasets": ["aist"]})


def run(caches, out, params, **options):
    task, root = caches
    return train_model(
        params, dataset={"text2image": "cub200", "class2image": "imagenet"}[task],
        tokens_dir=root / "tokens", features_dir=root / "features", codec_dir=root / "codec",
        out_dir=out / "model", checkpoint_dir=out / "checkpoint", **options,
    )  # fmt: skip


def test_the_condition_is_learnt(caches, tmp_path):
    run(caches, tmp_path, make_params())
    _, facts = load_model(tmp_path / "model")
    assert facts["task"] == caches[0]
    bits = {
        system: bits_per_token(
            tmp_path / "model", caches[1] / "tokens", caches[1] / "features", "val", system, 6
        )
        for system in ("model", "unconditioned")
    }
    assert bits["model"]["mean"] < bits["unconditioned"]["mean"] - 0.3
    few = bits["model"]["keys"][1:3]
    part = bits_per_token(
        tmp_path / "model", caches[1] / "tokens", caches[1] / "features", "val", "model", 6, few
    )
    assert part["keys"] == few


def test_killed_and_resumed_equals_uninterrupted(caches, tmp_path):
    params = make_params()
    run(caches, tmp_path / "a", params)
    run(caches, tmp_path / "b", params, stop_after=35)
    run(caches, tmp_path / "b", params)
    one, two = ((tmp_path / x / "model" / "model.safetensors").read_bytes() for x in "ab")
    assert one == two


@pytest.mark.parametrize(
    ("mode", "negatives", "changes"),
    [
        ("off", "inter", {}),
        ("step", "intra", {"intra_unit": "patches", "form": "linear"}),
        ("step", "intra", {"intra_unit": "tokens", "chains": "parallel"}),
        ("sample", "inter", {"form": "linear"}),
    ],
)
def test_every_contrastive_setting_trains(caches, tmp_path, mode, negatives, changes):
    params = make_params(mode, negatives, **changes)
    params = params.model_copy(update={"train": params.train.model_copy(update={"num_steps": 3})})
    summary = run(caches, tmp_path, params)
    assert np.isfinite(summary["final"]["loss"])


def test_waveforms_are_no_negatives_of_pictures(caches, tmp_path):
    params = make_params("step", "intra")
    contrast = params.train.contrast.model_copy(update={"intra_unit": "waveform"})
    train = params.train.model_copy(update={"contrast": contrast})
    with pytest.raises(ValueError, match="intra_unit must be tokens or patches for pictures"):
        run(caches, tmp_path, params.model_copy(update={"train": train}))


def conditions(picture, label=None):
    m = len(picture)
    keys = [f"k{i:03d}" for i in range(m)]
    return PictureConditions(
        keys, {}, sorted({f"p{p}" for p in picture}), np.array(picture), None, None,
        None if label is None else np.array(label),
    )  # fmt: skip


def test_chosen_conditions_favour_no_picture_and_no_class():
    captions = conditions(np.repeat(np.arange(20), 10))
    rows = choose_conditions(captions, 20, 0)
    assert sorted(captions.picture[rows]) == list(range(20))
    assert (np.bincount(captions.picture[choose_conditions(captions, 50, 0)]) >= 2).all()
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, choose_conditions(captions, 20, 0))
    assert rows.tolist() != choose_conditions(captions, 20, 1).tolist()
    classes = conditions(np.arange(40), np.arange(40) % 4)
    assert np.bincount(classes.label[choose_conditions(classes, 12, 0)]).tolist() == [3] * 4
    for num in (None, 40, 41):
        np.testing.assert_array_equal(choose_conditions(classes, num, 0), np.arange(40))
    assert torch.equal(
        classes.inputs(np.array([3, 1]), torch.device("cpu")).label, torch.tensor([3, 1])
    )
