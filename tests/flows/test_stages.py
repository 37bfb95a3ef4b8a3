"""Each stage's flow calls its functions with the folders of dvc.yaml and nothing else."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdcd.config import Params
from flows.stage import STAGES

CALLED = {
    "ingest": ["cdcd.data.ingest.ingest"],
    "shard": ["cdcd.data.sharding.shard", "cdcd.data.datasheet.write_datasheet"],
    "codec": [
        "cdcd.codecs.train.train_codec",
        "cdcd.codecs.pictures.train_picture_codec",
        "cdcd.features.clip.train_clip",
    ],
    "encode": [
        "cdcd.codecs.encode.encode_dataset",
        "cdcd.codecs.encode_pictures.encode_pictures",
    ],
    "featurize": [
        "cdcd.features.extract.featurize",
        "cdcd.features.captions.featurize_captions",
        "cdcd.features.captions.featurize_classes",
    ],
    "train": ["cdcd.tasks.train_model"],
    "generate": ["cdcd.tasks.generate_split"],
    "evaluate": [
        "cdcd.evaluation.evaluate.evaluate",
        "cdcd.evaluation.pictures.evaluate_pictures",
        "cdcd.evaluation.compact.write_compact",
    ],
    "register": ["cdcd.registration.register_model"],
}

ENCODERS = "data/encoders/${item.dataset}"


@pytest.mark.parametrize("stage", STAGES)
def test_the_paths_are_those_of_dvc_yaml(
    stage: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_params: Callable[..., Params],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CDCD_TRACKING", "off")
    paths: set[str] = set()

    def replace(dotted: str) -> None:
        module_name, _, name = dotted.rpartition(".")
        module = importlib.import_module(module_name)
        signature = inspect.signature(getattr(module, name))

        def record(*args: Any, **kwargs: Any) -> dict[str, Any]:
            bound = signature.bind(*args, **kwargs)  # the real function would accept this call
            values = [*bound.arguments.values()]
            paths.update(v.as_posix() for v in values if isinstance(v, Path))
            return {"done": True}

        monkeypatch.setattr(module, name, record)

    @contextmanager
    def at_once(path: Path) -> Iterator[Path]:
        path.mkdir(parents=True, exist_ok=True)
        paths.add(path.as_posix())
        yield path

    for dotted in CALLED[stage]:
        replace(dotted)
    module = importlib.import_module(f"flows.{stage}")
    monkeypatch.setattr(module, "atomic_directory", at_once, raising=False)
    remember = lambda path, _: paths.add(path.as_posix())  # noqa: E731
    monkeypatch.setattr(module, "remember_run", remember, raising=False)
    found: dict[str, set[str]] = {}
    for dataset in ("aist", "cub200", "imagenet"):
        paths.clear()
        summary = getattr(module, stage)(make_params().of(dataset), dataset)
        assert summary["done"] is True
        found[dataset] = {path.replace(dataset, "${item.dataset}") for path in paths}

    entry = yaml.safe_load((root / "dvc.yaml").read_text())["stages"][stage]
    listed: list[Any] = [
        *entry["deps"],
        *entry.get("outs", []),
        *entry.get("metrics", []),
        *entry.get("plots", []),
    ]
    texts = [next(iter(item)) if isinstance(item, dict) else item for item in listed]
    data = {text for text in texts if text.startswith("data/")}
    used = set().union(*found.values())
    assert used - {"data/checkpoints/${item.dataset}", f"{ENCODERS}/text"} == data


def test_an_interrupted_training_keeps_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_params: Callable[..., Params]
) -> None:
    from cdcd import tasks
    from flows.train import train

    monkeypatch.chdir(tmp_path)
    runs: list[str | None] = []
    is_cut = True

    def fake(params: Params, *, tracker: Any, **_: Any) -> dict[str, Any]:
        runs.append(tracker.run_id)
        if is_cut:
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(tasks, "train_model", fake)
    params, other = make_params(), make_params({"train": {"seed": 5}})
    for chosen in (params, params, other):
        with pytest.raises(KeyboardInterrupt):
            train(chosen, "aist")
    is_cut = False
    train(other, "aist")
    train(other, "aist")
    assert runs[0] == runs[1], "the same training goes on in its run"
    assert runs[2] != runs[1], "other parameters are another run"
    assert runs[3] == runs[2]
    assert runs[4] != runs[3], "a finished training is not continued"


def test_the_codecs_run_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_params: Callable[..., Params]
) -> None:
    train = pytest.importorskip("cdcd.codecs.train")
    from flows.codec import codec

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train_codec", lambda *_, **__: {})
    codec(make_params(), "aist")
    run_id = json.loads(Path("data/run_ids/codec/aist.json").read_text())["run_id"]
    assert len(run_id) == 32
