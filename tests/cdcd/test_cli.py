"""The `cdcd` command: quick help, one line per error, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cdcd import cli, tasks
from cdcd.data.files import atomic_path


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, cdcd.cli\n"
        "try: cdcd.cli.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'mlflow', 'pydantic', 'av'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("generate", "doctor", "presets", "models:/"):
        assert word in done.stdout


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A video, a model's folders and a generator that only remembers."""
    monkeypatch.chdir(tmp_path)
    Path("dance.mp4").write_bytes(b"x")
    Path("data/models/aist").mkdir(parents=True)
    Path("data/codecs/aist").mkdir(parents=True)
    seen: list[dict[str, Any]] = []

    class Recorder:
        def generate_for_video(self, video: Path, out: Path, **options: Any) -> dict[str, Any]:
            seen[-1] |= {"video": video, "out": out, **options}
            return {"duration_seconds": 2.0, "sample_rate_hz": 22050}

    def load(model_dir: Path, codec_dir: Path) -> Recorder:
        seen.append({"model": model_dir, "codec": codec_dir})
        return Recorder()

    monkeypatch.setattr(tasks, "load_generator", load)
    return seen


def test_generate_passes_everything_on(
    calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "generate --video dance.mp4 --out o.wav --seed 4 --guidance 2 --no-progress"
    assert cli.main(arguments.split()) == 0
    assert calls == [
        {
            "model": Path("data/models/aist"),
            "codec": Path("data/codecs/aist"),
            "video": Path("dance.mp4"),
            "out": Path("o.wav"),
            "seed": 4,
            "guidance": 2.0,
            "truncation": None,
            "progress": False,
        }
    ]
    assert capsys.readouterr().out == "o.wav: 2.00 s of music, seed 4\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--video no.mp4 --out o.mp4", "--video must be a file: got no.mp4"),
        ("--video dance.mp4 --out o.mp3", "--out must end in .wav or .mp4: got o.mp3"),
        ("--video dance.mp4 --out dance.mp4", "--out must differ from --video"),
        ("--video dance.mp4 --out o.wav --truncation 0", "--truncation must lie in (0, 1]"),
        ("--video dance.mp4 --out o.wav --truncation nan", "--truncation must lie in (0, 1]"),
        ("--video dance.mp4 --out o.wav --guidance inf", "--guidance must be a finite number"),
        ("--video dance.mp4 --out o.wav --seed -1", "--seed must lie in"),
        (
            "--video dance.mp4 --out o.wav --model no",
            "--model must be the folder of a trained model",
        ),
    ],
)
def test_a_wrong_argument_is_one_line(
    calls: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    words: str,
) -> None:
    assert cli.main(["generate", *arguments.split()]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"cdcd: {words}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert calls == []


def test_a_registered_model_is_fetched(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from cdcd import tracking

    fetched = {"model": tmp_path / "0" / "aist", "codec": tmp_path / "1" / "aist"}
    for path in fetched.values():
        path.mkdir(parents=True)
    monkeypatch.setattr(tracking, "download_model", lambda uri: fetched)
    arguments = "generate --video dance.mp4 --out o.wav --model models:/m@champion"
    assert cli.main(arguments.split()) == 0
    assert calls[0]["model"] == fetched["model"]
    assert calls[0]["codec"] == fetched["codec"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("a rule\nover two lines"), 1, "cdcd: a rule over two lines\n"),
        (OSError(28, "No space left on device"), 1, "cdcd: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "cdcd: interrupted\n"),
        (
            ModuleNotFoundError("x", name="av"),
            1,
            "cdcd: generate needs the package av, which is not installed; install everything with "
            "`make run` or `pip install 'cdcd[all]'`\n",
        ),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    calls: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(tasks, "load_generator", fail)
    assert cli.main(["generate", "--video", "dance.mp4", "--out", "o.wav"]) == code
    assert capsys.readouterr().err == line


def test_a_wrong_command_line_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["generate", "--video", "x.mp4"])
    assert end.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_presets_list_and_show(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    assert cli.main(["presets", "list"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == [
        "fixed",
        "official",
        "paper",
        "aist/demo",
        "aist/paper",
    ]
    assert cli.main(["presets", "show", "paper"]) == 0
    assert capsys.readouterr().out == (root / "presets" / "paper.yaml").read_text()
    assert cli.main(["presets", "show", "papr"]) == 1
    assert capsys.readouterr().err.startswith("cdcd: preset must be one of")


def test_a_terminated_command_leaves_nothing_behind(
    calls: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "folder" / "o.wav"

    def killed(chosen: Any) -> int:
        with atomic_path(chosen.out) as part:
            part.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "run", killed)
    assert cli.main(["generate", "--video", "dance.mp4", "--out", str(out)]) == 143
    assert capsys.readouterr().err == "cdcd: terminated\n"
    assert list(out.parent.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before
