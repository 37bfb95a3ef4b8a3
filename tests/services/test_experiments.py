"""DVC on small repositories: scores and curves of two commits beside each other, and sweeps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from cdcd.tracking import TELEMETRY_OFF

pytestmark = pytest.mark.services

ROOT = Path(__file__).resolve().parents[2]
# Writes what the stages write, with their own functions, from one parameter.
STAGE = """
from pathlib import Path
import yaml
from cdcd.evaluation.compact import write_compact
from cdcd.tracking import open_run
from cdcd.training.curves import Curves

rate = yaml.safe_load(Path("params.yaml").read_text())["train"]["rate"]
with open_run("train", "aist", {"rate": rate}) as tracker:
    curves = Curves(Path("data/checkpoints/aist"))
    for step in range(1, 6):
        curves.add(step, {"loss": 1 / (rate * step)})
        curves.add(step, {"val_bits_per_token": 2 / (rate * step)})
    folder = Path("data/models/aist/curves")
    folder.mkdir(parents=True)
    curves.write(folder)
    tracker.log_metrics(curves.last())
score = {"mean": rate / 10, "ci_low": rate / 20, "ci_high": rate / 5}
row = {"onset_f1": score, "beat_f1": score, "genre_accuracy": score}
metrics = Path("data/metrics")
metrics.mkdir(parents=True, exist_ok=True)
write_compact(
    {"systems": {"model": row, "white_noise": row}},
    metrics / "aist-scores.json",
    metrics / "aist.csv",
)
"""


class Repository(NamedTuple):
    """A Git and DVC repository with one stage."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        """Run a command in it and return what it says."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def dvc(self, *arguments: str) -> str:
        """Run DVC in it."""
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def commit(self, rate: int) -> None:
        """Run the stage with this rate and commit all there is."""
        (self.folder / "params.yaml").write_text(yaml.safe_dump({"train": {"rate": rate}}))
        self.dvc("repro")
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", f"rate {rate}")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Two commits, with rates 1 and 2; the second has twice the score and half the loss."""
    folder = tmp_path_factory.mktemp("repository")
    drawn = [
        plot
        for plot in yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
        if isinstance(plot, dict) and next(iter(plot)).startswith("aist_")
    ]
    stage = {
        "cmd": "python stage.py",
        "params": ["train.rate"],
        "deps": ["stage.py"],
        "outs": ["data/models/aist", {"data/metrics/aist.csv": {"cache": False}}],
        "metrics": [{"data/metrics/aist-scores.json": {"cache": False}}],
    }
    pipeline = {"stages": {"train": stage}, "plots": drawn}
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    (folder / "stage.py").write_text(STAGE)
    shutil.copy(ROOT / ".gitignore", folder)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"},
        **TELEMETRY_OFF,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DVC_NO_ANALYTICS": "1",
        **{f"GIT_{who}_NAME": "someone" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "someone@example.org" for who in ("AUTHOR", "COMMITTER")},
    }
    made = Repository(folder, environment)
    made.run("git", "init", "-q")
    made.dvc("init", "-q")
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc")
    for rate in (1, 2):
        made.commit(rate)
    return made


def test_the_main_score_of_two_commits_is_compared(repository: Repository) -> None:
    found = json.loads(repository.dvc("metrics", "diff", "HEAD~1", "HEAD", "--json"))
    scores = found["data/metrics/aist-scores.json"]
    assert scores["model.onset_f1"] == pytest.approx({"old": 0.1, "new": 0.2, "diff": 0.1})
    assert {"model.onset_f1_low", "model.onset_f1_high", "white_noise.onset_f1"} <= set(scores)


def test_curves_and_bars_of_two_commits_are_drawn_together(repository: Repository) -> None:
    repository.dvc("plots", "diff", "HEAD~1", "HEAD", "-o", "dvc_plots")
    page = (repository.folder / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    for title in ("aist: training loss", "bits per token", "aist: onset f1", "aist: beat f1"):
        assert title in page, title
    told = json.loads(repository.dvc("plots", "diff", "HEAD~1", "HEAD", "--json"))
    assert not told.get("errors"), told["errors"]
    drawn = told["data"]
    for name in ("aist_training", "aist_held_out", "aist_onset_f1", "aist_genre_accuracy"):
        (plot,) = drawn[name]
        assert set(plot["revisions"]) == {"HEAD~1", "HEAD"}
    points = json.dumps(drawn["aist_training"])
    assert '"loss": "0.2"' in points, "the last loss at rate 1"
    assert '"loss": "0.1"' in points, "... and at rate 2"


def test_a_queued_sweep_leaves_its_runs_in_the_store_of_the_repository(
    repository: Repository,
) -> None:
    store = repository.folder / "data" / "mlflow" / "mlflow.db"
    repository.dvc("exp", "run", "--queue", "-S", "train.rate=3,4")
    repository.dvc("exp", "run", "--run-all", "-j", "1")
    shown = json.loads(repository.dvc("exp", "show", "--json"))
    scores = {}
    for group in shown:
        for experiment in group["experiments"] or []:
            (one,) = experiment["revs"]
            params = one["data"]["params"]["params.yaml"]["data"]
            metrics = one["data"]["metrics"]["data/metrics/aist-scores.json"]["data"]
            scores[params["train"]["rate"]] = metrics["model"]["onset_f1"]
    assert scores == pytest.approx({3: 0.3, 4: 0.4})

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("cdcd/aist")
    runs = client.search_runs([experiment.experiment_id])
    rates = [run.data.params["rate"] for run in runs if "rate" in run.data.params]
    assert sorted(rates) == ["1", "2", "3", "4"], "the others hold the runs of a sweep together"
    left = list((repository.folder / ".dvc" / "tmp" / "exps").rglob("mlflow.db"))
    assert not left, "a copy that is thrown away is no place for a store"
    # The tree here is as it was committed.
    assert yaml.safe_load((repository.folder / "params.yaml").read_text())["train"]["rate"] == 2
