"""dvc.yaml, params.yaml and flows/ name the same stages and everything a stage depends on."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from cdcd.data.samples import TASKS
from cdcd.evaluation.compact import SHOWN
from cdcd.reproduce import NEVER_THE_SAME
from cdcd.tracking import TELEMETRY_OFF
from cdcd.training.curves import FILES
from flows.stage import STAGES

ROOT = Path(__file__).resolve().parents[1]
DVC: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
PIPELINE: dict[str, Any] = DVC["stages"]
PLOTS: list[str | dict[str, Any]] = DVC["plots"]
PICTURES = [plot for plot in PLOTS if isinstance(plot, str)]
DRAWN = {name: plot for entry in PLOTS if isinstance(entry, dict) for name, plot in entry.items()}
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
HELPERS = {"__init__", "launch", "mapping", "stage", "summary", "pipeline"}
OPERATIONS = {"artifacts", "deployments", "notify", "refresh", "rescore", "serve"}

# Imported, but without influence on what a stage writes under its outputs.
WITHOUT_INFLUENCE = {
    "cdcd/__init__.py",
    "cdcd/compiled.py",
    "cdcd/config.py",
    "kernels/__init__.py",
    "kernels/compile.py",
    *(path.relative_to(ROOT).as_posix() for path in (ROOT / "cdcd" / "tracking").glob("*.py")),
}
# Reached only through functions that the stage does not call.
NOT_CALLED = {
    "train": {"cdcd/features", "cdcd/media.py", "cdcd/pictures.py"},
    "generate": {"cdcd/training"},
    "evaluate": {
        "cdcd/features",
        "cdcd/generation",
        "cdcd/media.py",
        "cdcd/pictures.py",
    },
    "register": {"cdcd/training", "cdcd/pictures.py"},
}


def _paths(entries: list[Any]) -> list[str]:
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def _outputs(stage: dict[str, Any]) -> list[str]:
    return _paths([*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])])


def _module_file(name: str) -> Path | None:
    path = ROOT / Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imports(file: Path) -> set[Path]:
    """Files of this repository that a file imports anywhere, except for type checking alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: set[Path] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = _module_file(name) if name.split(".")[0] in {"cdcd", "kernels"} else None
            if path is not None:
                found.add(path)
    return found


def _closure(start: Path) -> set[str]:
    seen: set[Path] = set()
    waiting = {start}
    while waiting:
        file = waiting.pop()
        seen.add(file)
        relative = file.relative_to(ROOT).as_posix()
        if relative not in WITHOUT_INFLUENCE:
            waiting |= _imports(file) - seen
    return {path.relative_to(ROOT).as_posix() for path in seen} - WITHOUT_INFLUENCE


def test_the_same_stages_in_the_same_order_everywhere() -> None:
    assert tuple(PIPELINE) == STAGES
    assert (
        tuple(key for key in PARAMS if key not in {"datasets", "overrides", "schedules"}) == STAGES
    )
    assert {path.stem for path in (ROOT / "flows").glob("*.py")} == {
        *STAGES,
        *HELPERS,
        *OPERATIONS,
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_its_own_flow_for_each_dataset(stage: str) -> None:
    entry = PIPELINE[stage]
    assert entry["matrix"] == {"dataset": "${datasets}"}
    assert entry["cmd"] == f"python -m flows.{stage} --dataset ${{item.dataset}}"
    assert f"flows/{stage}.py" in entry["deps"]
    assert any(name == stage or name.startswith(f"{stage}.") for name in entry["params"])
    if stage not in {"ingest", "shard"}:
        assert f"overrides.${{item.dataset}}.{stage}" in entry["params"]


@pytest.mark.parametrize("stage", STAGES)
def test_params_that_a_stage_names_exist(stage: str) -> None:
    for dotted in PIPELINE[stage]["params"]:
        tree = PARAMS
        for part in dotted.replace("${item.dataset}", "aist").split("."):
            assert part in tree, dotted
            tree = tree[part]


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_exist_or_are_outputs_of_earlier_stages(stage: str) -> None:
    earlier = [out for name in STAGES[: STAGES.index(stage)] for out in _outputs(PIPELINE[name])]
    for dep in PIPELINE[stage]["deps"]:
        if dep.startswith("data/"):
            assert dep in earlier, dep
        else:
            assert (ROOT / dep).exists(), dep


def test_outputs_belong_to_one_stage_and_lie_under_data() -> None:
    outputs = [out for stage in PIPELINE.values() for out in _outputs(stage)]
    assert len(outputs) == len(set(outputs))
    assert all(out.startswith("data/") and "${item.dataset}" in out for out in outputs)
    assert not any("checkpoints" in out or "mlflow" in out for out in outputs)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_code_it_imports(stage: str) -> None:
    used = _closure(ROOT / "flows" / f"{stage}.py")
    if stage == "register":  # runs inside the registered model, which holds a copy of it
        used |= _closure(ROOT / "cdcd" / "serving.py")
    allowed = [*PIPELINE[stage]["deps"], *NOT_CALLED.get(stage, ())]
    missing = {
        path
        for path in used
        if not any(path == dep or path.startswith(f"{dep}/") for dep in allowed)
    }
    assert not missing, f"{stage} imports code that dvc.yaml does not name: {sorted(missing)}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_does_not_depend_on_code_it_never_imports(stage: str) -> None:
    used = _closure(ROOT / "flows" / f"{stage}.py")
    if stage == "register":
        served = _closure(ROOT / "cdcd" / "serving.py")
        used |= {*served, "cdcd/serving.py", "cdcd/tracking/registry.py"}
    for dep in PIPELINE[stage]["deps"]:
        if not dep.startswith("data/"):
            assert any(path == dep or path.startswith(f"{dep}/") for path in used), dep


def test_only_the_metrics_are_kept_out_of_dvcs_cache() -> None:
    uncached = {
        path
        for stage in PIPELINE.values()
        for kind in ("outs", "metrics", "plots")
        for entry in stage.get(kind, [])
        if isinstance(entry, dict)
        for path, options in entry.items()
        if options.get("cache") is False
    }
    assert uncached == {
        f"data/metrics/${{item.dataset}}{end}" for end in (".json", ".png", ".csv", "-scores.json")
    }


def test_plots_are_folders_of_pictures_inside_what_a_stage_writes() -> None:
    wanted = {f"data/generated/{dataset}/previews" for dataset in TASKS} | {
        f"data/codecs/{dataset}/pictures"
        for dataset, task in TASKS.items()
        if task != "dance2music"
    }
    assert set(PICTURES) == wanted
    assert len(PICTURES) == len(wanted)
    outputs = {out for stage in PIPELINE.values() for out in _outputs(stage)}
    for plot in PICTURES:
        kind = plot.split("/")[1]
        assert f"data/{kind}/${{item.dataset}}" in outputs, plot


def test_curves_and_main_scores_of_every_dataset_are_plotted() -> None:
    columns: dict[str, set[str]] = {}
    for name, plot in DRAWN.items():
        ((path, field),) = plot["y"].items()
        dataset = name.partition("_")[0]
        assert f"/{dataset}" in path, name
        assert plot["title"].startswith(f"{dataset}: ")
        columns.setdefault(path, set()).add(plot["x"] if field == "system" else field)
    for dataset in TASKS:
        main = PARAMS["register"] | PARAMS["overrides"][dataset]["register"]
        assert main["main_score"] in columns[f"data/metrics/{dataset}.csv"]
        assert columns[f"data/metrics/{dataset}.csv"] <= set(SHOWN)
        assert columns[f"data/models/{dataset}/curves/train.csv"] == {FILES["train.csv"]}
        if dataset not in {"tiktok", "cub200"}:  # they publish no val split
            assert columns[f"data/models/{dataset}/curves/val.csv"] == {FILES["val.csv"]}


def test_what_no_two_runs_share_is_nobodys_dependency() -> None:
    deps = [dep for stage in PIPELINE.values() for dep in stage["deps"]]
    assert not any(dep.startswith(NEVER_THE_SAME) for dep in deps)


def test_dvc_shows_the_pictures_of_all_datasets(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    pictures = [f"data/metrics/{dataset}.png" for dataset in PARAMS["datasets"]]
    for number, folder in enumerate(PICTURES):
        pictures.append(f"{folder}/picture{number}.png")
    for picture in pictures:
        (tmp_path / picture).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / picture)
    (tmp_path / "data/generated/aist/previews/clip.wav").write_bytes(b"no picture")

    def dvc(*arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=tmp_path,
            env={**os.environ, **TELEMETRY_OFF},
            check=True,
            capture_output=True,
            timeout=120,
        )

    dvc("init", "--no-scm", "--quiet")
    dvc("plots", "show", "--quiet")
    page = (tmp_path / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    for picture in pictures:
        assert picture in page
        assert f"static/workspace_{picture.replace('/', '_')}" in page


def test_make_hands_down_nothing_that_misleads_python_or_makes_it_compile_again(root: Path) -> None:
    names = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    done = subprocess.run(
        ["make", "-s", "--eval", "show: ; @env", "show"],
        cwd=root,
        env=os.environ | dict.fromkeys(names, "1"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "DVC_NO_ANALYTICS=1" in done.stdout
    assert not [name for name in names if f"\n{name}=" in f"\n{done.stdout}"]
