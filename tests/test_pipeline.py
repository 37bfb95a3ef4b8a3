"""Toy data through all nine stages by `dvc repro` in a clone; then what came out is used.

The scores mean nothing at this size. What is checked is that the stages fit together, that nothing
runs twice, and that what comes out works where the repository has never been.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import typing
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from cdcd.config import Params, Section
from flows.pipeline import BUSY
from flows.stage import STAGES
from tests.browser import Browser

# One fixture runs all stages of all datasets.
pytestmark = pytest.mark.timeout(1800)
ROOT = Path(__file__).resolve().parents[1]
COPIED = ("cdcd", "kernels", "flows", "presets", "dvc.yaml", ".dvcignore", ".gitignore")
DVC = (sys.executable, "-m", "dvc")
# One dataset of each task: TikTok's dances and COCO's captions go through the same code after
# their adapters.
PICTURES = ("cub200", "imagenet")
DATASETS = ("aist", *PICTURES)
TWICE = "imagenet"
"""Run a second time on "another machine"; the quickest."""
# Read for previews in MLflow, which are no output of the stage.
PREVIEWED = {"train": {"generate.truncation", "generate.guidance", "generate.stride"}}
# Run by Python at start-up: notes which parameters each stage reads, for the check on dvc.yaml.
SPY = """
import atexit, json, os, sys

arguments = " ".join(sys.orig_argv)
if "-m flows." in arguments:
    from cdcd import config
    from cdcd.config import Section

    read = set()
    original = Section.__getattribute__
    parse = config.parse_params

    def parse_and_forget(*args, **kwargs):
        params = parse(*args, **kwargs)
        read.clear()  # the checks between fields read much and depend on nothing
        return params

    def of_and_forget(self, dataset):
        params = of(self, dataset)
        read.clear()
        return params

    config.parse_params = parse_and_forget
    of = config.Params.of
    config.Params.of = of_and_forget

    def spy(self, name):
        if name in type(self).model_fields:
            read.add(f"{type(self).__name__}.{name}")
        return original(self, name)

    def save(process=os.getpid()):
        if os.getpid() == process:
            stage, _, dataset = arguments.partition("-m flows.")[2].split()[:3]
            name = f"{stage}@{dataset}.json"
            with open(os.path.join(os.environ["SPY_FOLDER"], name), "w") as file:
                json.dump(sorted(read), file)

    Section.__getattribute__ = spy
    atexit.register(save)
"""


class Clone(typing.NamedTuple):
    """A folder in which the toy pipeline ran."""

    folder: Path
    environment: dict[str, str]
    seconds: float

    def run(self, *command: str, code: int = 0) -> str:
        """Run a command in it and return its output."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=1700,
        )
        assert done.returncode == code, done.stdout[-6000:]
        return done.stdout

    def dvc(self, *arguments: str, code: int = 0) -> str:
        """Run DVC in it and return its output."""
        return self.run(*DVC, *arguments, code=code)

    def at(self, folder: Path) -> Clone:
        """The same in another folder, whose code is used there."""
        path = self.environment["PYTHONPATH"].replace(str(self.folder), str(folder))
        return Clone(folder, self.environment | {"PYTHONPATH": path}, 0.0)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, toy_text: str) -> Clone:
    """A Git clone with toy parameters after one `dvc repro`."""
    folder = tmp_path_factory.mktemp("clone")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, folder / ".dvc")
    tree = yaml.safe_load(toy_text) | {"datasets": list(DATASETS)}
    text = yaml.safe_dump(tree, sort_keys=False)
    (folder / "params.yaml").write_text(text)
    spy = tmp_path_factory.mktemp("spy")
    (spy / "sitecustomize.py").write_text(SPY)
    binaries = str(Path(sys.executable).parent)
    environment = {
        **{k: v for k, v in os.environ.items() if k not in {"MLFLOW_TRACKING_URI", "CDCD_DEBUG"}},
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{spy}{os.pathsep}{folder}",
        "SPY_FOLDER": str(spy),
        "CDCD_DEBUG": "1",
    }
    clone = Clone(folder, environment, 0.0)
    clone.run("git", "init", "-q")
    started = time.monotonic()
    clone.dvc("repro")
    return clone._replace(seconds=time.monotonic() - started)


@pytest.fixture(scope="module")
def commit(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Git repository with a commit of all that Git keeps of the clone, which stays as it is."""
    repository = tmp_path_factory.mktemp("commit")
    clone.run("git", "init", "-q", str(repository))
    git = ("git", f"--git-dir={repository / '.git'}", f"--work-tree={clone.folder}")
    clone.run(*git, "add", "-A")
    names = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
    clone.run(*git, *names, "commit", "-qm", "a run")
    return repository


def _another_machine(clone: Clone, commit: Path, folder: Path) -> Clone:
    """A Git clone of the commit without what DVC and MLflow keep beside it."""
    clone.run("git", "clone", "-q", str(commit), str(folder))
    assert (folder / "dvc.lock").is_file()
    return clone.at(folder)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_stage_left_its_outputs(clone: Clone, dataset: str) -> None:
    data = clone.folder / "data"
    for path in (
        f"raw/{dataset}/manifest.jsonl",
        f"shards/{dataset}/shards.json",
        f"datasheets/{dataset}/index.html",
        f"codecs/{dataset}/codec.safetensors",
        f"tokens/{dataset}/train.safetensors",
        f"features/{dataset}/train.safetensors",
        f"encoders/{dataset}/summary.json",
        f"models/{dataset}/model.safetensors",
        f"generated/{dataset}/summary.json",
        f"metrics/{dataset}.json",
        f"metrics/{dataset}.png",
        f"metrics/{dataset}.csv",
        f"metrics/{dataset}-scores.json",
        f"models/{dataset}/curves/train.csv",
        f"registered/{dataset}.json",
        f"run_ids/train/{dataset}.json",
        f"run_ids/codec/{dataset}.json",
    ):
        assert (data / path).is_file(), path
    kinds = {path.suffix for path in (data / "generated" / dataset / "previews").iterdir()}
    assert kinds >= ({".png", ".gif"} if dataset in PICTURES else {".mp4", ".wav", ".png"})
    assert list((data / "reports" / dataset).glob("*.html"))
    assert not list(data.rglob("*partial*"))


def test_the_table_has_every_control(clone: Clone) -> None:
    systems = _read(clone.folder / "data" / "metrics" / "aist.json")["systems"]
    assert set(systems) >= {
        "model",
        "video_only",
        "unconditioned",
        "ground_truth",
        "codec_reconstruction",
        "shuffled",
        "white_noise",
    }


@pytest.mark.parametrize("dataset", PICTURES)
def test_pictures_are_scored_beside_their_controls(clone: Clone, dataset: str) -> None:
    tree = _read(clone.folder / "data" / "metrics" / f"{dataset}.json")
    rows = tree["systems"]
    assert set(rows) >= {"real", "codec_reconstruction", "model", "unconditioned", "shuffled"}
    score = "class_accuracy" if dataset == "imagenet" else "attribute_accuracy"
    assert all(score in rows[name] for name in rows)
    assert tree["comparable_to_paper"] is False


def test_a_second_run_does_nothing_and_says_so(clone: Clone) -> None:
    started = time.time()
    assert "up to date" in clone.run(sys.executable, "-m", "dvc", "repro")
    assert clone.run(sys.executable, "-m", "dvc", "status", "--json").strip() in {"", "{}"}
    said = clone.run(sys.executable, "-m", "flows.summary", "--since", str(started))
    assert said.startswith("Nothing to do")
    assert "cdcd-dance2music version 1 (candidate, champion)" in said
    assert "Nothing to do" in clone.run(sys.executable, "-m", "flows.pipeline")


def test_git_sees_the_metrics_and_no_other_output(clone: Clone) -> None:
    status = clone.run("git", "status", "--porcelain", "--untracked-files=all", "data")
    assert {line[3:] for line in status.splitlines()} == {
        f"data/metrics/{dataset}{end}"
        for dataset in DATASETS
        for end in (".json", ".png", ".csv", "-scores.json")
    }


@pytest.mark.services
def test_killed_in_each_stage_another_run_has_the_same_hashes(
    clone: Clone, commit: Path, tmp_path: Path
) -> None:
    other = _another_machine(clone, commit, tmp_path / "other")
    random, hits = Random(0), 0
    for stage in STAGES:
        label = f"{stage}@{TWICE}"
        seconds = _read(clone.folder / "data" / "runs" / f"{label}.json")["seconds"]
        hits += _kill_in(other, label, random.uniform(0.0, seconds))
    assert hits > len(STAGES) // 2, "most stages were still at work"
    other.run(sys.executable, "-m", "flows.pipeline", "--datasets", TWICE)

    told = (sys.executable, "-m", "cdcd.cli", "reproduced")
    said = other.run(*told, "--datasets", TWICE).splitlines()
    assert said[-1] == f"reproduced: all {len(STAGES)} stages have the hashes of HEAD"
    # What is left out of the comparison had to be.
    mine, theirs = (
        _read(one.folder / "data" / "run_ids" / "train" / f"{TWICE}.json") for one in (other, clone)
    )
    assert mine["run_id"] != theirs["run_id"]
    # The rest is in the lock as well, but only as it was committed.
    assert "ingest@aist: not run" in other.run(*told, code=1)


def _kill_in(clone: Clone, stage: str, seconds: float) -> bool:
    """Start the pipeline, and kill all of it some time after a stage has begun.

    Returns:
        Whether the stage was still at work.
    """
    while True:
        with subprocess.Popen(
            [sys.executable, "-m", "flows.pipeline", "--datasets", TWICE],
            cwd=clone.folder,
            env=clone.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as runner:
            assert runner.stdout is not None
            lines: list[str] = []
            for line in runner.stdout:
                lines.append(line)
                if f"Running stage '{stage}'" in line:
                    return _kill_before_the_next(runner, runner.stdout, seconds)
        # What was killed a moment ago counts as at work until the system has buried it.
        assert runner.returncode == BUSY, f"{stage} never began:\n{''.join(lines[-40:])}"
        time.sleep(1)


def _kill_before_the_next(
    runner: subprocess.Popen[str], lines: Iterable[str], seconds: float
) -> bool:
    """Kill a process group after a time, or at once when another stage begins."""
    timer = threading.Timer(seconds, os.killpg, (runner.pid, signal.SIGKILL))
    timer.start()
    another = any("Running stage" in line for line in lines)
    timer.cancel()
    if another:
        os.killpg(runner.pid, signal.SIGKILL)
    return not another and runner.wait() == -signal.SIGKILL


@pytest.mark.services
def test_the_champion_is_scored_again_beside_the_pipeline(clone: Clone) -> None:
    said = clone.run(
        sys.executable,
        "-c",
        "from cdcd.config import load_params; from flows.rescore import rescore; import json\n"
        "print(json.dumps(rescore(load_params().of('imagenet'), 'imagenet', [11])))",
    )
    found = json.loads(said.splitlines()[-1])
    assert found["model"] == "cdcd-class2image"
    assert found["score"]["low"] <= found["score"]["mean"] <= found["score"]["high"]
    assert found["promoted_with"] is not None
    assert clone.dvc("status", "--json").strip() in {"", "{}"}, "no output was touched"


@pytest.fixture(scope="module")
def mlflow_ui(clone: Clone) -> Iterator[str]:
    """What `make ui` starts, on the clone's store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    store = f"sqlite:///{clone.folder / 'data' / 'mlflow' / 'mlflow.db'}"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store]
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", port, "--workers", "1"],
        cwd=clone.folder,
        env=clone.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as server:
        try:
            yield _when_it_answers(f"http://127.0.0.1:{port}")
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def _when_it_answers(url: str) -> str:
    until = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except OSError:
            assert time.monotonic() < until, "MLflow's UI does not answer"
            time.sleep(0.5)
        else:
            return url


@pytest.mark.services
def test_mlflows_pages_show_numbers_players_and_the_card(
    clone: Clone, mlflow_ui: str, browser: Browser
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{clone.folder / 'data' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cdcd/aist").experiment_id
    [run] = client.search_runs([experiment], "tags.mlflow.runName = 'evaluate@aist'")
    page = f"{mlflow_ui}/#/experiments/{experiment}/runs/{run.info.run_id}"
    scores = _read(clone.folder / "data" / "metrics" / "aist.json")["systems"]
    mean = scores["model"]["onset_f1"]["mean"]

    browser.open(page)
    browser.wait_for("evaluate@aist", "aist/shards (", "registered.version", "seed 0", "dep.data/")
    browser.shoot("mlflow-run")
    browser.open(f"{page}/artifacts/evaluation/index.html")
    browser.enter_frame()
    browser.wait_for(f"{100 * mean:.1f} ±", "shuffled")
    # They load when they are played.
    browser.driver.execute_script("document.querySelector('audio').preload = 'auto'")
    browser.ask("document.querySelector('audio').duration > 1")
    browser.driver.switch_to.default_content()
    browser.shoot("mlflow-players")
    browser.open(f"{mlflow_ui}/#/models/cdcd-dance2music/versions/1")
    browser.wait_for("@ champion", "Apache-2.0", "promotion.reason")
    browser.shoot("mlflow-model")


@pytest.mark.services
def test_another_machine_gets_everything_from_a_remote(
    clone: Clone, commit: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    clone.dvc("remote", "add", "--local", "--default", "store", str(store))
    clone.dvc("push", "--quiet")
    other = _another_machine(clone, commit, tmp_path / "other")

    # Without a remote, or with one that cannot be: an error, and nothing is changed.
    assert "no default remote" in other.dvc("pull", code=1)
    (tmp_path / "file").write_text("no folder")
    other.dvc("remote", "add", "--local", "--default", "store", str(tmp_path / "file" / "store"))
    assert "Not a directory" in other.dvc("pull", code=255)
    other.dvc("remote", "modify", "--local", "store", "url", str(tmp_path / "nowhere"))
    assert "failed to pull data" in other.dvc("pull", code=1)
    assert other.run("git", "status", "--porcelain") == ""

    other.dvc("remote", "modify", "--local", "store", "url", str(store))
    other.dvc("pull", "--quiet")
    assert other.dvc("status", "--json").strip() in {"", "{}"}
    assert "up to date" in other.dvc("repro")
    assert not (other.folder / "data" / "mlflow").exists(), "nothing was computed"
    for path in ("models/aist/model.safetensors", "tokens/cub200/train.safetensors"):
        assert (other.folder / "data" / path).read_bytes() == (
            clone.folder / "data" / path
        ).read_bytes()
    # The run that trained a model stays known with it.
    path = Path("data") / "run_ids" / "train" / "aist.json"
    assert (other.folder / path).read_bytes() == (clone.folder / path).read_bytes()
    assert other.run("git", "status", "--porcelain") == ""
    metrics = json.loads(other.dvc("metrics", "show", "--json"))[""]["data"]
    assert metrics["data/metrics/aist-scores.json"]["data"]["model"]["onset_f1"] > 0


def _dotted_names() -> dict[str, str]:
    """`Class.field` of every parameter to its dotted key, e.g. `Contrast.mode`."""
    names: dict[str, str] = {}

    def walk(model: type[Section], prefix: str) -> None:
        for name, field in model.model_fields.items():
            dotted = f"{prefix}{field.alias or name}"
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                walk(kind, f"{dotted}.")
            else:
                names[f"{model.__name__}.{name}"] = dotted

    walk(Params, "")
    return names


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_only_parameters_that_dvc_knows_of(
    clone: Clone, stage: str, dataset: str
) -> None:
    read = _read(Path(clone.environment["SPY_FOLDER"]) / f"{stage}@{dataset}.json")
    names = _dotted_names()
    keys = {names[name] for name in read if name in names} - {"datasets"}
    # A class needs no parameter to be a feature.
    is_silent = stage == "train" or (stage, dataset) == ("featurize", "imagenet")
    assert keys or is_silent, "the spy saw nothing"
    text = (ROOT / "dvc.yaml").read_text().replace("${item.dataset}", dataset)
    declared = yaml.safe_load(text)["stages"][stage]["params"]
    keys -= PREVIEWED.get(stage, set())
    hidden = {k for k in keys if not any(k == d or k.startswith(f"{d}.") for d in declared)}
    # Which of the two is stale would stay unnoticed.
    assert not hidden, f"{stage} reads {sorted(hidden)} without naming them in dvc.yaml"


def _video(clone: Clone) -> Path:
    """Any video of the embedded download: nothing prepared it for generation."""
    return sorted((clone.folder / "data" / "raw" / "aist").rglob("*.mp4"))[0]


def _seconds(path: Path) -> float:
    from cdcd.media import probe

    return probe(path).duration_seconds


def test_cdcd_generate_puts_music_on_a_video(clone: Clone) -> None:
    video = _video(clone)
    command = (sys.executable, "-m", "cdcd.cli", "generate", "--video", str(video), "--no-progress")
    clone.run(*command, "--out", "with_music.mp4")
    made = clone.folder / "with_music.mp4"
    assert abs(_seconds(made) - _seconds(video)) < 1 / 50
    clone.run(*command, "--out", "a.wav", "--seed", "1")
    clone.run(*command, "--out", "b.wav", "--seed", "1")
    assert (clone.folder / "a.wav").read_bytes() == (clone.folder / "b.wav").read_bytes()
    said = clone.run(*command, "--out", "c.wav", "--model", "models:/cdcd-dance2music@champion")
    assert said.splitlines()[-1].startswith("c.wav: ")


def test_the_registered_model_works_where_the_repository_is_unknown(
    clone: Clone, tmp_path: Path
) -> None:
    import numpy

    packages = Path(numpy.__file__).parents[1]
    code = (
        "import importlib.util, sys\n"
        f"sys.path.append({str(packages)!r})\n"  # without its .pth files: no editable install
        "assert importlib.util.find_spec('cdcd') is None\n"
        "import mlflow\n"
        "model = mlflow.pyfunc.load_model('models:/cdcd-dance2music@champion')\n"
        f"rows = {{'video': [{str(_video(clone))!r}], 'out': ['o.wav'], 'seed': [1]}}\n"
        "import pandas\n"
        "print(model.predict(pandas.DataFrame(rows)).to_json(orient='records'))\n"
    )
    store = clone.folder / "data" / "mlflow" / "mlflow.db"
    environment = {k: v for k, v in clone.environment.items() if k not in {"PYTHONPATH"}} | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (row,) = json.loads(done.stdout.splitlines()[-1])
    assert row["sample_rate_hz"] == 22050
    assert abs(row["duration_seconds"] - _seconds(_video(clone))) < 1 / 50
    assert abs(_seconds_of_wav(tmp_path / "o.wav") - row["duration_seconds"]) < 1e-3


def _seconds_of_wav(path: Path) -> float:
    import soundfile

    return float(soundfile.info(path).duration)
