"""The stage runner: one summary line, one line per error, exit codes, with and without Prefect."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cdcd.config import ConfigError, Params, load_params
from flows import stage


@pytest.fixture
def here(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(root / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _fine(params: Params, dataset: str) -> Mapping[str, Any]:
    return {"num_clips": 3, "loss": 0.123456, "splits": {"train": 2, "val": 1}, "all": [1, 2]}


def test_a_stage_prints_one_line_and_notes_what_it_took(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.stage_main("train", _fine, ["--dataset", "aist"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(
        "train@aist: num clips 3, loss 0.1235, splits (train 2, val 1) ["
    )
    assert captured.out.count("\n") == 1
    assert captured.err == ""
    took = json.loads((here / "data" / "runs" / "train@aist.json").read_text())
    assert took["peak_memory_mb"] > 10
    assert took["seconds"] >= 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("clips must be\n  short: got 9"), "clips must be short: got 9"),
        (ConfigError("params.yaml: x"), "params.yaml: x"),
        (FileNotFoundError(2, "No such file or directory", "a.tar"), "a.tar"),
        (OSError(28, "No space left on device"), "free some space and run again"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_error_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], error: Exception, words: str
) -> None:
    def fail(params: Params, dataset: str) -> Mapping[str, Any]:
        raise error

    assert stage.stage_main("train", fail, ["--dataset", "aist"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("train@aist: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert not (here / "data" / "runs").exists()


def test_the_traceback_is_there_when_asked_for(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(params: Params, dataset: str) -> Mapping[str, Any]:
        raise ValueError("x")

    monkeypatch.setenv("CDCD_DEBUG", "1")
    assert stage.stage_main("train", fail, ["--dataset", "aist"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_ours_in_the_code_is_not_hidden(here: Path) -> None:
    def fail(params: Params, dataset: str) -> Mapping[str, Any]:
        raise KeyError("a mistake in the program")

    with pytest.raises(KeyError):
        stage.stage_main("train", fail, ["--dataset", "aist"])


def test_a_broken_params_file_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = here / "params.yaml"
    path.write_text(path.read_text().replace("hop: 256", "hpo: 256"))
    assert stage.stage_main("train", _fine, ["--dataset", "aist"]) == 1
    error = capsys.readouterr().err
    assert "codec.hpo is not a known key" in error
    assert error.count("\n") == 1


def test_an_unknown_dataset_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.stage_main("train", _fine, ["--dataset", "aits"]) == 1
    assert "--dataset must be one of datasets in params.yaml: got aits" in capsys.readouterr().err


def test_a_stage_is_handed_the_parameters_of_its_dataset(here: Path) -> None:
    seen: dict[str, Params] = {}

    def note(params: Params, dataset: str) -> dict[str, Any]:
        seen[dataset] = params
        return {}

    for dataset in ("aist", "cub200"):
        assert stage.stage_main("train", note, ["--dataset", dataset]) == 0
    assert seen["aist"] == load_params()
    assert seen["cub200"].train.contrast.negatives == "inter"
    assert seen["cub200"].register_.main_score == "attribute_accuracy"


@pytest.mark.parametrize("is_ignored", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_with_130(
    here: Path, root: Path, number: signal.Signals, is_ignored: bool
) -> None:
    # Whatever a shell's `command &` hands down: there SIGINT is ignored.
    inherited = "signal.SIG_IGN" if is_ignored else "signal.default_int_handler"
    # Short sleeps: a signal that comes between Python's last look and a long one waits for its end.
    code = (
        f"import signal; signal.signal(signal.SIGINT, {inherited})\n"
        "import sys, time\n"
        "from flows.stage import stage_main\n"
        "def wait(params, dataset):\n"
        "    print('ready', flush=True)\n"
        "    for _ in range(600):\n"
        "        time.sleep(0.1)\n"
        "sys.exit(stage_main('train', wait, ['--dataset', 'aist']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "train@aist: interrupted; earlier outputs are intact\n"


def test_a_server_that_does_not_answer_is_not_waited_for(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert stage.prefect_url() is None
    assert "does not answer" in caplog.text
    assert stage.run_stage("train", _fine, "aist")["num_clips"] == 3


def test_a_server_that_refuses_the_login_is_left_out(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Guarded(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            login = self.headers.get("Authorization") == "Basic bWU6c2VjcmV0"
            self.send_response(200 if login or self.path == "/api/health" else 401)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/api"
        monkeypatch.setenv("PREFECT_API_URL", url)
        assert stage.prefect_url() is None
        assert "does not answer (HTTP Error 401" in caplog.text
        assert stage.run_stage("train", _fine, "aist")["num_clips"] == 3
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:secret")
        assert stage.prefect_url() == url
        server.shutdown()


def test_without_a_server_prefect_is_not_even_imported(here: Path, root: Path) -> None:
    code = (
        "import sys\n"
        "from flows.stage import run_stage\n"
        "run_stage('train', lambda params, dataset: {}, 'aist')\n"
        "sys.exit('prefect' in sys.modules or 'mlflow' in sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == 0


def test_with_a_server_a_stage_is_a_flow_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    def fail(params: Params, dataset: str) -> Mapping[str, Any]:
        raise ValueError("got 3")

    with prefect_test_harness(server_startup_timeout=90):
        monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
        assert stage.run_stage("encode", _fine, "aist") == _fine(None, "aist")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="got 3"):
            stage.run_stage("train", fail, "aist")
        with get_client(sync_client=True) as client:
            runs = {run.name: run for run in client.read_flow_runs()}
    assert runs["encode@aist"].state_name == "Completed"
    assert set(runs["encode@aist"].tags) >= {"dvc-stage", "encode"}
    assert runs["train@aist"].state_name == "Failed"


def test_peak_memory_sees_children() -> None:
    with stage.PeakMemory(interval_seconds=0.02) as memory:
        code = "import time; block = bytearray(200 * 2**20); time.sleep(0.5)"
        subprocess.run([sys.executable, "-c", code], check=True)
    assert memory.peak_bytes > 200 * 2**20
