"""Registering: aliases follow the main score; broken weights or scores register nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cdcd import tracking
from cdcd.config import Params
from cdcd.registration import RegistrationError, register_model, requirements


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def inputs(tmp_path: Path, shared_store: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of a model that holds one weight, and its scores."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_store)
    for kind, name in (("models", "model"), ("codecs", "codec")):
        folder = tmp_path / kind / "aist"  # one name twice, as in data/
        folder.mkdir(parents=True)
        save_file({"w": torch.ones(3)}, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text("{}")
    (tmp_path / "models" / "aist" / "run.json").write_text('{"run_id": "abc"}')
    _score(tmp_path, 0.5)
    return tmp_path


def _score(folder: Path, mean: Any, name: str = "onset_f1") -> None:
    metrics = {"systems": {"model": {name: {"mean": mean, "sd": 0.1}, "notes": "x"}}}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def _register(params: Params, folder: Path, dataset: str = "aist") -> dict[str, Any]:
    return register_model(
        params,
        dataset=dataset,
        model_dir=folder / "models" / "aist",
        codec_dir=folder / "codecs" / "aist",
        metrics_path=folder / "metrics.json",
        out_path=folder / "registered.json",
    )


def test_the_champion_is_never_worse_than_before(
    inputs: Path, make_params: Callable[..., Params]
) -> None:
    params = make_params({"register": {"names": {"aist": "rising", "tiktok": "rising"}}})
    first = _register(params, inputs)
    assert first["aliases"] == ["candidate", "champion"]
    assert json.loads((inputs / "registered.json").read_text()) == first

    _score(inputs, 0.4)
    worse = _register(params, inputs)
    assert worse["aliases"] == ["candidate"]
    assert worse["champion"] == {"version": first["version"], "mean": 0.5}

    _score(inputs, 0.5)
    equal = _register(params, inputs)
    assert equal["aliases"] == ["candidate", "champion"]

    _score(inputs, 0.9)
    other = _register(params, inputs, dataset="tiktok")
    assert other["aliases"] == ["candidate"], "scores on two datasets cannot be compared"

    champion = tracking.version_by_alias("rising", "champion")
    candidate = tracking.version_by_alias("rising", "candidate")
    assert champion is not None
    assert candidate is not None
    assert (champion.version, candidate.version) == (equal["version"], other["version"])
    assert champion.tags["score.onset_f1"] == "0.5"
    assert champion.tags["train_run_id"] == "abc"

    artifacts = tracking.download_model("models:/rising@champion")
    assert (artifacts["model"] / "model.safetensors").is_file()
    assert (artifacts["codec"] / "codec.json").is_file()
    folder = next(path.parent for path in artifacts["model"].parents if path.name == "artifacts")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"code/cdcd/tasks.py", "code/kernels/__init__.py"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pyc"))]
    assert "safetensors==" in (folder / "requirements.txt").read_text()


def _nan_weight(folder: Path) -> None:
    save_file(
        {"w": torch.tensor([1.0, float("nan")])}, folder / "models" / "aist" / "model.safetensors"
    )


def _no_codec(folder: Path) -> None:
    (folder / "codecs" / "aist" / "codec.safetensors").unlink()


def _cut_weights(folder: Path) -> None:
    path = folder / "models" / "aist" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_nan_weight, "weights must be finite: w of"),
        (_no_codec, r"needs .*codec\.safetensors"),
        (_cut_weights, "must be a safetensors file"),
        (lambda folder: (folder / "metrics.json").unlink(), "needs its scores"),
        (lambda folder: (folder / "metrics.json").write_text("[]"), r"must hold systems\.model"),
        (lambda folder: _score(folder, float("nan")), "register.main_score must be a finite score"),
        (lambda folder: _score(folder, None), "register.main_score must be a finite score"),
        (lambda folder: _score(folder, 0.5, "tempo"), "got onset_f1; choose one of tempo"),
    ],
)
def test_a_broken_model_is_not_registered(
    inputs: Path, make_params: Callable[..., Params], damage: Callable[[Path], Any], words: str
) -> None:
    damage(inputs)
    with pytest.raises(RegistrationError, match=words) as caught:
        _register(make_params({"register": {"names": {"aist": "broken"}}}), inputs)
    assert "\n" not in str(caught.value)
    assert tracking.version_by_alias("broken", "candidate") is None
    assert not (inputs / "registered.json").exists()


def test_requirements_are_versions_that_a_package_index_has() -> None:
    pins = requirements()
    assert all("==" in pin and "+" not in pin for pin in pins)
    assert {"torch", "safetensors"} <= {pin.partition("==")[0] for pin in pins}


def test_an_unknown_alias_is_one_line(inputs: Path) -> None:
    with pytest.raises(tracking.TrackingError, match="--model must name a registered version"):
        tracking.download_model("models:/nobody@champion")
