"""Registering: aliases follow the main score; broken weights or scores register nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from mlflow import MlflowClient  # noqa: TID251
from mlflow.exceptions import MlflowException  # noqa: TID251 (what a registry raises)
from safetensors.torch import load_file, save_file

from cdcd import tracking
from cdcd.config import Params
from cdcd.data.samples import TASKS
from cdcd.generation import read_sampler
from cdcd.model_card import HELD_OUT, MAKES
from cdcd.models.picture_conditioner import ClassSpec
from cdcd.registration import REQUIREMENTS, example_row, register_model, requirements
from cdcd.tracking.store import open_client
from tests.cdcd.generation import tiny_models


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
    _score(tmp_path, 0.5)
    return tmp_path


def _score(folder: Path, mean: Any, name: str = "onset_f1", control: float = 0.1) -> None:
    systems = {
        "model": {name: {"mean": mean, "sd": 0.1}, "notes": "x"},
        "shuffled": {name: {"mean": control}},
    }
    metrics = {"systems": systems}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def _register(params: Params, folder: Path, dataset: str = "aist") -> dict[str, Any]:
    return register_model(
        params,
        dataset=dataset,
        model_dir=folder / "models" / "aist",
        codec_dir=folder / "codecs" / "aist",
        metrics_path=folder / "metrics.json",
        out_path=folder / "registered.json",
        train_run_id="abc",
    )


def test_every_version_is_candidate_and_the_rule_makes_the_champion(
    inputs: Path, make_params: Callable[..., Params]
) -> None:
    changes = {"names": {"aist": "rising"}, "promotion": {"above_control": "shuffled"}}
    params = make_params({"register": changes})
    first = _register(params, inputs)
    assert first["aliases"] == ["candidate", "champion"]
    assert json.loads((inputs / "registered.json").read_text()) == first

    _score(inputs, 0.4)
    worse = _register(params, inputs)
    assert worse["aliases"] == ["candidate"]
    assert worse["champion"] == {"version": first["version"], "mean": 0.5}
    assert worse["promotion"].endswith(f"is worse than 0.500 of champion {first['version']}")

    _score(inputs, 0.9, control=0.95)
    below = _register(params, inputs)
    assert below["aliases"] == ["candidate"], "shuffled conditions score as high"

    metrics = json.loads((inputs / "metrics.json").read_text())
    del metrics["systems"]["shuffled"]
    (inputs / "metrics.json").write_text(json.dumps(metrics))
    alone = _register(params, inputs)
    assert alone["aliases"] == ["candidate"], "without the control nothing tells what it is worth"

    _score(inputs, 0.5)
    equal = _register(params, inputs)
    assert equal["aliases"] == ["candidate", "champion"]

    champion = tracking.version_by_alias("rising", "champion")
    candidate = tracking.version_by_alias("rising", "candidate")
    assert champion is not None
    assert candidate is not None
    assert champion.version == candidate.version == equal["version"]
    assert champion.tags["score.onset_f1"] == "0.5"
    assert champion.tags["train_run_id"] == "abc"
    assert champion.tags["promotion.replaced"] == first["version"]
    assert champion.tags["promotion.reason"] == equal["promotion"]

    artifacts = tracking.download_model("models:/rising@champion")
    assert (artifacts["model"] / "model.safetensors").is_file()
    assert (artifacts["codec"] / "codec.json").is_file()
    folder = next(path.parent for path in artifacts["model"].parents if path.name == "artifacts")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"code/cdcd/tasks/__init__.py", "code/kernels/__init__.py"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pyc"))]
    assert "safetensors==" in (folder / "requirements.txt").read_text()


def test_a_version_tells_what_it_is_and_how_it_may_be_used(
    inputs: Path, make_params: Callable[..., Params]
) -> None:
    params = make_params({"register": {"names": {"aist": "told"}}})
    codec = inputs / "codecs" / "aist" / "codec.json"
    codec.write_text('{"kind": "jukebox", "facts": {"source": "released"}}')
    done = _register(params, inputs)
    version = open_client().get_model_version("told", done["version"])
    assert version.tags["licence"] == "non-commercial"
    artifacts = tracking.download_model(done["uri"])
    card = artifacts["card"].read_text()
    assert artifacts["card"].name == "MODEL_CARD.md"
    assert version.description.startswith(card.rstrip())
    assert "| **model** | 0.5 |" in card
    assert "| shuffled | 0.1 |" in card
    assert "| Jukebox code and weights | OpenAI, non-commercial" in card
    folder = next(path.parent for path in artifacts["model"].parents if path.name == "artifacts")
    example = json.loads((folder / "input_example.json").read_text())
    assert dict(zip(example["columns"], example["data"][0], strict=True))["as_base64"] is True


def test_an_example_video_is_one(tmp_path: Path) -> None:
    import base64

    from cdcd.media import probe

    sent = example_row("dance2music")["video_base64"]
    (tmp_path / "video").write_bytes(base64.b64decode(sent))
    assert probe(tmp_path / "video").duration_seconds == pytest.approx(1)
    assert len(sent) < 4000


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ("format: 1", None),
        ("dataset: aist", None),  # the first ones told no format
        ("format: 2\n  cdcd: 9.9.9", "of format 2, logged by cdcd 9.9.9; use that version"),
    ],
)
def test_a_model_of_another_version_is_one_line(
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    about: str,
    words: str | None,
) -> None:
    listed = "".join(f"        {name}: {{path: {name}}}\n" for name in ("model", "codec"))
    for name in ("model", "codec"):
        (tmp_path / name).mkdir()
    (tmp_path / "MLmodel").write_text(
        f"flavors:\n  python_function:\n    artifacts:\n{listed}metadata:\n  {about}\n"
    )
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", lambda **_: str(tmp_path))
    if words is None:
        assert tracking.download_model("models:/m@champion")["model"] == tmp_path / "model"
        return
    with pytest.raises(tracking.TrackingError, match=words) as caught:
        tracking.download_model("models:/m@champion")
    assert "\n" not in str(caught.value)


def _other_codec(folder: Path) -> None:
    (folder / "models" / "aist" / "model.json").write_text('{"codec_sha256": "0123456789abcdef"}')


def _other_scores(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["versions"] = {"sha256 of model.safetensors": "0123456789abcdef"}
    (folder / "metrics.json").write_text(json.dumps(metrics))


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
        (_other_codec, "the codec must be the one that the model was trained with: its SHA-256"),
        (_other_scores, "the scores must be of this model: they are of weights 0123456789ab"),
        (lambda folder: (folder / "metrics.json").unlink(), "needs its scores"),
        (lambda folder: (folder / "metrics.json").write_text("[]"), "must hold a table `systems`"),
        (lambda folder: _score(folder, float("nan")), "register.main_score must be a finite score"),
        (lambda folder: _score(folder, None), "register.main_score must be a finite score"),
        (lambda folder: _score(folder, 0.5, "tempo"), "got onset_f1; choose one of tempo"),
    ],
)
def test_a_broken_model_is_not_registered(
    inputs: Path, make_params: Callable[..., Params], damage: Callable[[Path], Any], words: str
) -> None:
    damage(inputs)
    with pytest.raises(ValueError, match=words) as caught:
        _register(make_params({"register": {"names": {"aist": "broken"}}}), inputs)
    assert "\n" not in str(caught.value)
    assert tracking.version_by_alias("broken", "candidate") is None
    assert not (inputs / "registered.json").exists()


@pytest.mark.parametrize("task", REQUIREMENTS)
def test_requirements_are_versions_that_a_package_index_has(task: str) -> None:
    pins = requirements(task)
    assert all("==" in pin and "+" not in pin for pin in pins)
    names = {pin.partition("==")[0] for pin in pins}
    assert {"torch", "safetensors", "pillow"} <= names
    assert ("transformers" in names) == ("tokenizers" in names) == (task == "text2image")
    assert ("decord" in names) == (task == "dance2music")


def test_every_dataset_has_a_task_that_can_be_registered() -> None:
    assert set(TASKS.values()) == set(REQUIREMENTS) == set(MAKES) == set(HELD_OUT)


def test_an_unknown_alias_is_one_line(inputs: Path) -> None:
    with pytest.raises(tracking.TrackingError, match="--model must name a registered version"):
        tracking.download_model("models:/nobody@champion")


def test_a_version_whose_files_are_gone_is_told_from_one_that_is_not_registered(
    inputs: Path, shared_store: str, make_params: Callable[..., Params]
) -> None:
    made = _register(make_params({"register": {"names": {"aist": "lost"}}}), inputs)
    assert made["version"] == "1"
    with contextlib.closing(sqlite3.connect(shared_store.removeprefix("sqlite:///"))) as database:
        asked = "SELECT storage_location FROM model_versions WHERE name = 'lost'"
        ((location,),) = database.execute(asked)
    place = Path(urlsplit(location).path)
    kept = inputs / "kept"
    place.rename(kept)
    for uri in ("models:/lost/1", "models:/lost@candidate"):
        with pytest.raises(tracking.TrackingError, match="is registered, but they cannot be read"):
            tracking.download_model(uri)
    kept.rename(place)
    (weights,) = place.rglob("codec.safetensors")
    shutil.rmtree(weights.parent)
    with pytest.raises(tracking.TrackingError, match=r"lost/1 has lost .*; bring back the"):
        tracking.download_model("models:/lost/1")


def test_a_registry_that_dies_at_work_is_one_line(
    inputs: Path, make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("the server is gone")

    monkeypatch.setattr("mlflow.MlflowClient.set_model_version_tag", refuse)
    with pytest.raises(tracking.TrackingError, match=r"did not take it .the server is gone.; see"):
        _register(make_params(), inputs)


def test_an_alias_that_another_process_made_meanwhile_is_moved(
    inputs: Path, make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    _register(make_params({"register": {"names": {"aist": "raced"}}}), inputs)
    really = MlflowClient.set_registered_model_alias
    told = ["(sqlite3.IntegrityError) UNIQUE constraint failed", "the server is gone"]

    def fail_first(*arguments: Any) -> None:
        if told:
            raise MlflowException(told.pop(0))
        really(*arguments)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", fail_first)
    with pytest.raises(tracking.TrackingError, match="the server is gone"):
        tracking.set_alias("raced", "mine", "1")
    told.append("(sqlite3.IntegrityError) UNIQUE constraint failed")
    tracking.set_alias("raced", "mine", "1")
    found = tracking.version_by_alias("raced", "mine")
    assert found is not None
    assert found.version == "1"


# Pictures


@pytest.fixture
def pictures(tmp_path: Path, shared_store: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data/ with tiny models of both tasks, and their scores."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_store)
    data = tiny_models.write_models(tmp_path / "data", "cub200")
    tiny_models.write_models(data, "imagenet", ClassSpec(len(tiny_models.CLASS_NAMES), 8))
    for name, score in (("cub200", "attribute_accuracy"), ("imagenet", "class_accuracy")):
        systems = {"model": {score: {"mean": 0.5}}, "shuffled": {score: {"mean": 0.1}}}
        metrics = {"systems": systems}
        (data / f"{name}.json").write_text(json.dumps(metrics))
    return data


def _register_pictures(params: Params, data: Path, name: str, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"encoder_dir": data / "encoders" / name} | changes
    return register_model(
        params.of(name),
        dataset=name,
        model_dir=data / "models" / name,
        codec_dir=data / "codecs" / name,
        metrics_path=data / f"{name}.json",
        out_path=data / "registered.json",
        **options,
    )


CLIENT = """
import json, sys
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
wishes = json.loads(sys.argv[2])
made = model.predict(pd.DataFrame(wishes))
assert model.predict(wishes).equals(made), "a mapping of lists is as good"
print(json.dumps({
    "inputs": model.metadata.get_input_schema().input_names(),
    "outputs": model.metadata.get_output_schema().input_names(),
    "columns": list(made.columns), "rows": made.to_dict("records"),
}))
"""


@pytest.mark.parametrize(
    ("name", "column", "cells"),
    [("cub200", "text", ["a red bird", "a blue bird"]), ("imagenet", "class", [2, "tench"])],
)
def test_a_registered_model_serves_pictures_elsewhere(
    pictures: Path,
    tmp_path: Path,
    make_params: Callable[..., Params],
    name: str,
    column: str,
    cells: list[Any],
) -> None:
    params = make_params({"register": {"names": {name: f"served-{name}"}}})
    done = _register_pictures(params, pictures, name)
    assert done["aliases"] == ["candidate", "champion"]
    artifacts = tracking.download_model(done["uri"])
    assert set(artifacts) == {
        "model", "codec", "sampler", "card", *(["encoder"] if name == "cub200" else []),
    }  # fmt: skip
    assert read_sampler(artifacts["sampler"]) == {
        key: getattr(params.of(name).generate, key)
        for key in ("truncation", "guidance", "stride", "window_overlap_seconds")
    }
    shutil.rmtree(pictures / "models")  # a registered model needs nothing else
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    asked = {column: cells, "out": ["a.png", "b"], "num": [1, 2]}
    served = subprocess.run(
        [sys.executable, "-c", CLIENT, f"models:/{done['name']}@champion", json.dumps(asked)],
        cwd=elsewhere,
        env=os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert served.returncode == 0, served.stderr
    told = json.loads(served.stdout.splitlines()[-1])
    settings = ["num", "out", "as_base64", "seed", "guidance", "truncation"]
    assert told["inputs"] == [column, *settings]
    assert told["outputs"] == told["columns"]
    assert [row["image_paths"] for row in told["rows"]] == [["a.png"], ["b/0.png", "b/1.png"]]
    assert all((elsewhere / path).is_file() for path in ("a.png", "b/0.png", "b/1.png"))


def _no_encoder(data: Path) -> dict[str, Any]:
    return {"encoder_dir": None}


def _empty_encoder(data: Path) -> None:
    shutil.rmtree(data / "encoders" / "cub200" / "text")


def _nan_encoder(data: Path) -> None:
    path = data / "encoders" / "cub200" / "text" / "model.safetensors"
    state = load_file(path)
    next(value for value in state.values() if value.is_floating_point()).view(-1)[0] = float("nan")
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_encoder, "a registered model of cub200 needs its text encoder: got none"),
        (_empty_encoder, "a registered model needs its text encoder: "),
        (_nan_encoder, "finite"),
    ],
)
def test_a_text_model_without_its_encoder_is_not_registered(
    pictures: Path,
    make_params: Callable[..., Params],
    damage: Callable[[Path], dict[str, Any] | None],
    words: str,
) -> None:
    changes = damage(pictures) or {}
    params = make_params({"register": {"names": {"cub200": "blind"}}})
    with pytest.raises(ValueError, match=words) as caught:
        _register_pictures(params, pictures, "cub200", **changes)
    assert "\n" not in str(caught.value)
    assert tracking.version_by_alias("blind", "candidate") is None
