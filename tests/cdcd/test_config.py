"""params.yaml: valid as committed; every wrong value is one line with key, value and rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cdcd.config import ConfigError, load_params, parse_params


def test_the_committed_file_is_valid(root: Path) -> None:
    params = load_params(root / "params.yaml")
    assert params.register_.names.aist == "cdcd-dance2music"


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for part in parents:
        tree = tree[part]
    tree[last] = value


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.nm_steps", 3, "train.nm_steps is not a known key"),
        ("train.num_steps", "700", "train.num_steps: .*integer.*got '700'"),
        ("train.num_steps", 1.5, "train.num_steps: .*got 1.5"),
        ("train.num_steps", True, "train.num_steps: .*got True"),
        ("shard.segment_seconds", -2, "shard.segment_seconds: .*got -2"),
        ("generate.window_overlap_seconds", -0.5, "window_overlap_seconds: .*got -0.5"),
        ("generate.window_overlap_seconds", 2.0, "window_overlap_seconds must be shorter"),
        ("train.contrast.num_negatives", 0, "num_negatives must be at least 1 while mode"),
        ("train.contrast.intra_unit", "waveform", "encode.num_waveform_negatives must be at least"),
        ("train.denoiser.num_heads", 5, "train.denoiser.width must be a multiple"),
        ("featurize.video", "i3d", "featurize.i3d_weights must name"),
        ("datasets", [], "datasets: .*at least 1"),
        ("datasets", ["aits"], "datasets.0: .*'aist'.*got 'aits'"),
        ("evaluate.num_bootstrap", None, "evaluate.num_bootstrap: .*got None"),
    ],
)
def test_a_wrong_value_is_one_clear_line(
    params_tree: dict[str, Any], key: str, value: Any, words: str
) -> None:
    _set(params_tree, key, value)
    with pytest.raises(ConfigError, match=words) as caught:
        parse_params(params_tree)
    assert "\n" not in str(caught.value)


def test_contrast_off_needs_no_negatives(params_tree: dict[str, Any]) -> None:
    params_tree["train"]["contrast"] |= {"mode": "off", "num_negatives": 0}
    assert parse_params(params_tree).train.contrast.num_negatives == 0


def test_parallel_chains_belong_to_the_step_mode(params_tree: dict[str, Any]) -> None:
    params_tree["train"]["contrast"] |= {"mode": "sample", "chains": "parallel"}
    with pytest.raises(ConfigError, match="chains must be shared"):
        parse_params(params_tree)


def test_a_missing_key_is_named(params_tree: dict[str, Any]) -> None:
    del params_tree["train"]["contrast"]["weight"]
    with pytest.raises(ConfigError, match=r"train\.contrast\.weight is missing"):
        parse_params(params_tree)


@pytest.mark.parametrize("text", ["train: [", "", "- 1", "\x00"])
def test_what_is_no_params_file_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_params(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_params(tmp_path / "params.yaml")


def test_params_are_frozen(root: Path) -> None:
    params = load_params(root / "params.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        params.train.num_steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(("text", "words"), [("", "got nothing"), ("- a", "got list")])
def test_a_params_file_without_sections(tmp_path, text, words):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"must hold sections.*{words}.*git checkout"):
        load_params(path)


def test_an_empty_folder_name_is_refused(params_tree):
    params_tree["ingest"]["coco"]["root"] = ""
    with pytest.raises(ConfigError, match=r"ingest\.coco\.root.*at least 1 character"):
        parse_params(params_tree)
