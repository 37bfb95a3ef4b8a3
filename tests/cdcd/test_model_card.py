"""Model cards: everything a stranger asks is in them, and what is not known is not claimed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdcd.config import load_params
from cdcd.model_card import (
    MAX_DESCRIPTION,
    Origin,
    behaviour_of,
    description,
    read_origin,
    write_card,
)
from cdcd.tracking import flatten
from tests.conftest import ROOT

METRICS = {
    "systems": {
        "shuffled": {"onset_f1": {"mean": 0.33}},
        "model": {
            "notes": "no score",
            "beat_f1": {"mean": 0.742, "ci_low": 0.65, "ci_high": 0.82},
            "onset_f1": {"mean": 0.9, "ci_low": 0.88, "ci_high": 0.93},
            "fid": {"mean": -0.0},
        },
        "n": 3,
    },
    "comparable_to_paper_why": "other data",
}
SAMPLER = {"truncation": 0.86, "window_overlap_seconds": 0.5}


def _card(origin: Origin, task: str = "dance2music", metrics: Any = METRICS) -> str:
    return write_card("m", task, origin, metrics, "onset_f1", SAMPLER)


def test_scores_stand_beside_their_controls() -> None:
    card = _card(Origin("aist", {"video_feature": {}}, {}))
    assert "| | onset_f1 | beat_f1 | fid |" in card
    assert "| **model** | 0.9 [0.88, 0.93] | 0.742 [0.65, 0.82] | 0 |" in card
    assert "| shuffled | 0.33 | – | – |" in card
    assert "Not the paper's numbers: other data." in card
    assert 'load_model("models:/m@champion")' in card
    assert "window_overlap_seconds" in card
    assert "window_overlap_seconds" not in _card(Origin("cub200", {}, {}), "text2image")


def test_data_of_unknown_origin_counts_as_the_real_one() -> None:
    unknown = Origin("cub200", {}, {})
    assert "not recorded" in _card(unknown, "text2image")
    assert "non-commercial" in _card(unknown, "text2image")
    counts = {"num_samples_by_split": {"train": 720, "val": 0, "test": 240}, "num_skipped": 2}
    embedded = Origin("cub200", {}, {}, {"embedded": True, **counts})
    card = _card(embedded, "text2image")
    assert "the embedded stand-in: train 720, test 240 samples; 2 were skipped" in card
    assert "(tag `licence`: apache-2.0)" in card
    real = Origin("cub200", {}, {}, {"embedded": False, **counts})
    assert "a real download" in _card(real, "text2image")
    assert "(tag `licence`: non-commercial)" in _card(real, "text2image")


def test_hashes_settings_and_commit_are_told() -> None:
    origin = Origin(
        "aist",
        {},
        {},
        hashes={"weights of the model": "ab12"},
        settings={"train.contrast.mode": "step"},
        state={"git_commit": "f00"},
    )
    card = _card(origin)
    for words in ("weights of the model: `ab12`", "train.contrast.mode: step", "git commit: f00"):
        assert words in card


def test_what_is_at_hand_is_looked_up(tmp_path: Path) -> None:
    for name in ("model", "codec"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
        (tmp_path / f"{name}.json").write_text(json.dumps({"is": name}))
    (tmp_path / "summary.json").write_text('{"embedded": true}')
    found = read_origin("aist", tmp_path, tmp_path, tmp_path)
    assert (found.model, found.codec) == ({"is": "model"}, {"is": "codec"})
    assert found.is_embedded
    assert set(found.hashes) == {"weights of the model", "weights of the codec"}
    (tmp_path / "summary.json").write_text("broken")
    assert not read_origin("aist", tmp_path, tmp_path, tmp_path).is_embedded


def test_a_long_card_is_cut_at_a_section() -> None:
    assert description("short") == "short"
    long = "# m\n\n" + "".join(f"## {i}\n\n{'x' * 900}\n\n" for i in range(9))
    told = description(long)
    assert len(told) <= MAX_DESCRIPTION
    assert told.endswith("x\n\nMore in `MODEL_CARD.md` among the model's artifacts.\n")


@pytest.mark.parametrize("dataset", ["aist", "cub200", "imagenet"])
def test_the_behaviour_is_told_by_its_name(dataset: str) -> None:
    params = load_params(ROOT / "params.yaml").of(dataset).model_dump(by_alias=True)
    settings = {name: str(value) for name, value in flatten(params).items()}
    assert behaviour_of(settings, dataset, ROOT / "presets") == "fixed"
    changed = settings | {"train.contrast.form": "other"}
    assert behaviour_of(changed, dataset, ROOT / "presets") is None
    assert behaviour_of({}, dataset, ROOT / "presets") is None
    tree = yaml.safe_load((ROOT / "presets" / "official.yaml").read_text())
    own = (tree.get("overrides", {}).get(dataset) or {}).get("train", {})
    official = flatten({"train": tree["train"]}) | flatten({"train": own})
    laid = settings | {name: str(value) for name, value in official.items()}
    assert behaviour_of(laid, dataset, ROOT / "presets") == "official"
