"""Registered models answered by real scoring servers, and loaded where this project is unknown."""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cdcd import cli
from cdcd.config import parse_params
from cdcd.media import encode_clip, probe
from cdcd.models.picture_conditioner import ClassSpec
from cdcd.registration import register_model
from tests.cdcd.generation import tiny_models
from tests.conftest import ROOT, TOY, _lay

pytestmark = pytest.mark.services
SEED = 3


class Served(NamedTuple):
    """A registered model: whose, how it is asked, and where its answer holds the file."""

    dataset: str
    score: str
    options: tuple[str, ...]
    row: dict[str, Any]
    suffix: str
    answer: str


@dataclass
class Registry:
    """A store with a champion of each task, a video, and what `cdcd generate` makes of them."""

    folder: Path
    env: dict[str, str]
    models: dict[str, Served]
    expected: dict[str, bytes]
    files: list[Path]

    @property
    def root(self) -> Path:
        """The folder whose files the server of music takes and writes."""
        return self.folder / "root"


def _dance(num_frames: int = 30) -> bytes:
    frames = np.zeros((num_frames, 48, 64, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        frame[8:32, index % 40 : index % 40 + 16] = 255
    return encode_clip(frames, fps=15)


def _served(video: bytes) -> dict[str, Served]:
    sent = base64.b64encode(video).decode()
    return {
        "cdcd-dance2music": Served(
            "aist", "onset_f1", ("--video", "dance.mp4"), {"video_base64": sent}, ".wav",
            "audio_base64",
        ),
        "cdcd-text2image": Served(
            "cub200", "attribute_accuracy", ("--text", "a red bird"), {"text": "a red bird"},
            ".png", "images_base64",
        ),
        "cdcd-class2image": Served(
            "imagenet", "class_accuracy", ("--class", "tench"), {"class": "tench"}, ".png",
            "images_base64",
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    data, root = folder / "data", folder / "root"
    root.mkdir()
    video = _dance()
    for path in (root / "dance.mp4", folder / "dance.mp4"):
        path.write_bytes(video)
    tiny_models.write_music_model(data)
    tiny_models.write_models(data, "cub200")
    tiny_models.write_models(data, "imagenet", ClassSpec(len(tiny_models.CLASS_NAMES), 8))
    params = parse_params(_lay(yaml.safe_load((ROOT / "params.yaml").read_text()), TOY))
    settings = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    models, expected = _served(video), {}
    with pytest.MonkeyPatch.context() as patch:
        for key, value in settings.items():
            patch.setenv(key, value)
        patch.chdir(folder)
        for name, model in models.items():
            table = {"model": {model.score: {"mean": 0.5}}, "shuffled": {model.score: {"mean": 0}}}
            metrics = folder / f"{name}.json"
            metrics.write_text(json.dumps({"systems": table}))
            register_model(
                params.of(model.dataset),
                dataset=model.dataset,
                model_dir=data / "models" / model.dataset,
                codec_dir=data / "codecs" / model.dataset,
                encoder_dir=data / "encoders" / model.dataset,
                metrics_path=metrics,
                out_path=folder / "registered.json",
            )
        # Before any is loaded: Python keeps what it compiles beside the code.
        files = [path for path in folder.glob("artifacts/**/*") if path.is_file()]
        for name, model in models.items():
            out = folder / f"{name}{model.suffix}"
            asked = ["generate", *model.options, "--model", f"models:/{name}@champion"]
            assert cli.main([*asked, "--out", str(out), "--seed", str(SEED), "--no-progress"]) == 0
            expected[name] = out.read_bytes()
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        yield Registry(folder, env, models, expected, files)


def _file(model: Served, row: Mapping[str, Any]) -> bytes:
    sent = row[model.answer]
    return base64.b64decode(sent if isinstance(sent, str) else sent[0])


# Servers


@dataclass
class Server:
    """`mlflow models serve` of one model."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"{self.url}/ping", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def post(self, body: Any) -> tuple[int, dict[str, Any]]:
        """Status and JSON of an answer; a text is sent as it is, rows as records."""
        text = body if isinstance(body, str) else json.dumps({"dataframe_records": body})
        request = urllib.request.Request(
            f"{self.url}/invocations", text.encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of a good answer."""
        status, answer = self.post(rows)
        assert status == 200, answer
        found: list[dict[str, Any]] = answer["predictions"]
        return found


def _start(registry: Registry, name: str, **settings: str) -> Server:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    log = registry.folder / f"{name}.log"
    command = (
        *(sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{name}@champion"),
        *("--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)),
    )
    elsewhere = registry.folder / f"elsewhere-{name}"  # not the repository, which Python would see
    elsewhere.mkdir()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=elsewhere, env=registry.env | settings, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    return Server(f"http://127.0.0.1:{port}", process, log)


@pytest.fixture(scope="module")
def servers(registry: Registry) -> Iterator[dict[str, Server]]:
    """One of each task: music with a folder for paths, pictures without."""
    settings = {
        "cdcd-dance2music": {
            "CDCD_SERVE_ROOT": str(registry.root),
            "CDCD_MAX_SECONDS": "5",
            "CDCD_MAX_UPLOAD_MB": "0.5",
        }
    }
    started: dict[str, Server] = {}
    try:
        for name in registry.models:
            started[name] = _start(registry, name, **settings.get(name, {}))
        for server in started.values():
            until = time.monotonic() + 180
            while not server.is_up():
                assert time.monotonic() < until, server.log.read_text()[-3000:]
                time.sleep(0.25)
        yield started
    finally:
        for server in started.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait(timeout=30)


NAMES = ("cdcd-dance2music", "cdcd-text2image", "cdcd-class2image")


@pytest.mark.parametrize("name", NAMES)
def test_a_server_makes_what_the_command_makes(
    registry: Registry, servers: dict[str, Server], name: str
) -> None:
    model = registry.models[name]
    (row,) = servers[name].rows([model.row | {"seed": SEED, "as_base64": True}])
    assert _file(model, row) == registry.expected[name]
    # What the UI shows as an example is as good.
    example = next(registry.folder.glob(f"artifacts/{model.dataset}/**/serving_input_example.json"))
    status, answer = servers[name].post(example.read_text())
    assert status == 200, answer
    assert _file(model, answer["predictions"][0])


def test_paths_below_the_folder_go_in_and_out(
    registry: Registry, servers: dict[str, Server]
) -> None:
    asked = {"video": "dance.mp4", "seed": SEED}
    server = servers["cdcd-dance2music"]
    rows = server.rows([asked | {"out": "a.wav"}, asked | {"out": "b.mp4"}]) + server.rows([asked])
    expected = registry.expected["cdcd-dance2music"]
    assert (registry.root / "a.wav").read_bytes() == expected
    assert probe(registry.root / "b.mp4").audio is not None
    assert rows[1]["audio_path"] == str(registry.root / "b.mp4")
    assert Path(rows[2]["audio_path"]).is_relative_to(registry.root)
    assert Path(rows[2]["audio_path"]).read_bytes() == expected
    assert rows[2]["audio_base64"] is None


def test_requests_at_once_are_answered_as_one_by_one(
    registry: Registry, servers: dict[str, Server]
) -> None:
    name = "cdcd-class2image"
    model = registry.models[name]
    with ThreadPoolExecutor(6) as pool:
        answers = [*pool.map(servers[name].rows, [[model.row | {"seed": SEED}]] * 6)]
    assert {_file(model, row) for (row,) in answers} == {registry.expected[name]}


_SENT = base64.b64encode(b"no video at all" * 40).decode()
_LONG = base64.b64encode(_dance(90)).decode()
BAD: list[tuple[str, Any, str]] = [
    ("cdcd-dance2music", "not JSON", "valid JSON"),
    ("cdcd-dance2music", '{"rows": []}', "dataframe_records"),
    ("cdcd-dance2music", [{"clip": "a.mp4"}], "must have a column video or video_base64"),
    ("cdcd-dance2music", [{"video": 3}], "video must be the path of a file: got '3'"),
    ("cdcd-dance2music", [{"video": "no.mp4"}], "video must be a readable file: no such file"),
    ("cdcd-dance2music", [{"video": "/etc/passwd"}], "video must lie below CDCD_SERVE_ROOT"),
    ("cdcd-dance2music", [{"video": "dance.mp4", "out": "../a.wav"}], "out must lie below"),
    ("cdcd-dance2music", [{"video_base64": "%%%"}], "must be the base64 of a file's bytes"),
    ("cdcd-dance2music", [{"video_base64": _SENT}], "video_base64 must be a video file"),
    ("cdcd-dance2music", [{"video_base64": "A" * 800_000}], "0.5 MB of files (CDCD_MAX_UPLOAD_MB)"),
    ("cdcd-dance2music", [{"video_base64": _LONG}], "5 seconds of video (CDCD_MAX_SECONDS): got 6"),
    ("cdcd-dance2music", [{"video": "dance.mp4", "seed": 2.0**70}], "seed must lie in 0"),
    ("cdcd-text2image", [{"text": "a bird", "seed": -1}], "seed must lie in 0 .. 2**63 - 1"),
    ("cdcd-text2image", [{"text": 3}], "a prompt must be a text"),
    ("cdcd-text2image", [{"text": "a bird", "out": "a.png"}], "out must be no path: this server"),
    ("cdcd-text2image", [{"text": "a bird", "num": 65}], "64 pictures (CDCD_MAX_PICTURES)"),
    ("cdcd-text2image", [{"text": "a bird"}] * 65, "64 rows (CDCD_MAX_ROWS): got 65"),
    ("cdcd-class2image", [{"class": "tensch"}], "nearest: tench"),
    ("cdcd-class2image", [{"class": 4}], "class must lie in 0 .. 3: got 4"),
    ("cdcd-class2image", [{"class": 1, "guidance": "much"}], "guidance must be a number"),
]  # fmt: skip


def test_bad_requests_are_answered_by_one_clear_json(servers: dict[str, Server]) -> None:
    for name, body, words in BAD:
        status, answer = servers[name].post(body)
        told = (str(body)[:80], status, answer)
        assert status == 400, told
        assert words in answer["message"], told
        assert "stack_trace" not in answer, told
        if not isinstance(body, str):  # before it is parsed, the message is MLflow's
            assert set(answer) == {"error_code", "message"}, told
            assert "\n" not in answer["message"], told
            assert len(answer["message"]) < 300, told
    for server in servers.values():
        assert server.is_up()


# Elsewhere


def _closure(requirements: list[str]) -> set[str]:
    """Names of the declared distributions and of what they require themselves."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if (wanted.marker is None or wanted.marker.evaluate({"extra": ""})) and name not in found:
            found.add(name)
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                told = importlib.metadata.distribution(name).requires or []
                waiting += [Requirement(line) for line in told]
    return found


def _link(names: set[str], farm: Path) -> None:
    """A folder for sys.path that holds these distributions and nothing else."""
    owners: dict[str, set[str]] = {}
    files: dict[str, list[importlib.metadata.PackagePath]] = {}
    for found in importlib.metadata.distributions():
        name = canonicalize_name(found.metadata["Name"])
        if name in files:
            continue
        files[name] = [path for path in found.files or [] if path.parts[0] != ".."]
        for path in files[name]:
            owners.setdefault(path.parts[0], set()).add(name)
    for name in names & set(files):
        for path in files[name]:
            top = path.parts[0]
            is_whole = len(owners[top]) == 1
            here = farm / (top if is_whole else path)
            source = Path(str(path.locate()))
            if is_whole:
                source = Path(*source.parts[: len(source.parts) - len(path.parts) + 1])
            here.parent.mkdir(parents=True, exist_ok=True)
            if not here.is_symlink() and source.exists():
                here.symlink_to(source)


CLIENT = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])
for name in ("cdcd", "kernels", "flows", "prefect", "dvc", "webdataset", "librosa", "pytest"):
    assert importlib.util.find_spec(name) is None, name
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[2])
import cdcd, kernels
row = json.loads(sys.argv[3])
made = model.predict({key: [value] for key, value in row.items()})
code = [cdcd.__file__, kernels.__file__]
print(json.dumps({"code": code, "row": made.to_dict("records")[0]}))
"""


def test_a_clean_environment_makes_the_same(registry: Registry, tmp_path: Path) -> None:
    children = {}
    for name, model in registry.models.items():
        (logged,) = registry.folder.glob(f"artifacts/{model.dataset}/models/*/artifacts")
        declared = (logged / "requirements.txt").read_text().splitlines()
        farm = tmp_path / f"packages-{name}"
        _link(_closure(declared), farm)
        row = model.row | {"seed": SEED, "as_base64": True}
        command = ("-I", "-S", "-c", CLIENT, farm, f"models:/{name}@champion", json.dumps(row))
        children[name] = subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=tmp_path, env=registry.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    for name, child in children.items():
        said, errors = child.communicate(timeout=240)
        assert child.returncode == 0, errors[-3000:]
        told = json.loads(said.splitlines()[-1])
        assert all("/artifacts/" in path and str(ROOT) not in path for path in told["code"])
        assert _file(registry.models[name], told["row"]) == registry.expected[name], name


def test_a_logged_model_holds_no_pickle(registry: Registry) -> None:
    kinds = {path.suffix for path in registry.files}
    assert ".safetensors" in kinds
    assert not kinds & {".pkl", ".pickle", ".pth", ".pt", ".bin", ".joblib", ".pyc"}
    cards = [path for path in registry.files if path.name == "MODEL_CARD.md"]
    assert len(cards) == len(NAMES)
