"""The `cdcd` command: quick help, one line per error, exit codes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cdcd import cli, tasks
from cdcd.data.files import atomic_path
from tests.cdcd.data import tiny_pictures, tiny_tiktok


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


# ingest --check


def _aist(root: Path) -> None:
    names = {"train": "gBR_sBM_cAll_d04_mBR0_ch01", "val": "gHO_sBM_cAll_d20_mHO5_ch01"}
    names["test"] = names["val"].replace("ch01", "ch02")
    for folder in ("annotations/motions", "annotations/splits", "music", "videos"):
        (root / folder).mkdir(parents=True)
    for split, name in names.items():
        (root / "annotations/motions" / f"{name}.pkl").write_bytes(b"a motion")
        (root / "annotations/splits" / f"crossmodal_{split}.txt").write_text(name)
    (root / "annotations/ignore_list.txt").write_text("")
    (root / "music/mBR0.wav").write_bytes(b"a song")
    (root / "videos/gBR_sBM_c01_d04_mBR0_ch01.mp4").write_bytes(b"a video")


def _tiktok(root: Path) -> None:
    shutil.copytree(tiny_tiktok.shared(), root, dirs_exist_ok=True)


def _cub200(root: Path) -> None:
    tiny_pictures.write_cub(root)


def _coco(root: Path) -> None:
    tiny_pictures.write_coco(root)
    name = f"COCO_train2014_{tiny_pictures.COCO_MISSING:012d}.jpg"
    tiny_pictures.write_picture(root / "train2014" / name, (32, 24))


def _imagenet(root: Path) -> None:
    for wnid in ("n01440764", "n01443537"):
        tiny_pictures.write_picture(root / "train" / wnid / f"{wnid}_1.JPEG", (32, 24))
        tiny_pictures.write_picture(root / "val" / wnid / f"val_{wnid}.JPEG", (32, 24))


DOWNLOADS = {
    "aist": _aist,
    "tiktok": _tiktok,
    "cub200": _cub200,
    "coco": _coco,
    "imagenet": _imagenet,
}


def _official_counts_are(monkeypatch: pytest.MonkeyPatch, dataset: str) -> None:
    """Pictures are counted against the publisher's numbers; here the tiny ones are official."""
    from cdcd.data.adapters import coco, cub200, imagenet

    match dataset:
        case "cub200":
            monkeypatch.setattr(cub200, "NUM_IMAGES", 12)
            monkeypatch.setattr(cub200, "NUM_CLASSES", 4)
            monkeypatch.setattr(cub200, "STACKGAN_ITEMS", {"train": 7, "test": 6})
            monkeypatch.setattr(cub200, "OFFICIAL_ITEMS", {"train": 8, "test": 4})
        case "coco":
            monkeypatch.setattr(coco, "NUM_IMAGES", {"train": 5, "val": 1})
            monkeypatch.setattr(coco, "NUM_CAPTIONS", {"train": 19, "val": 6})
        case "imagenet":
            monkeypatch.setattr(imagenet, "NUM_PICTURES", {"train": 2, "val": 2})
            monkeypatch.setattr(imagenet, "NUM_CLASSES", 2)
            monkeypatch.setattr(imagenet, "VAL_PER_CLASS", 1)


def _state(root: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in [root, *sorted(root.rglob("*"))]
    }


def _complete(monkeypatch: pytest.MonkeyPatch, dataset: str, root: Path) -> None:
    DOWNLOADS[dataset](root)
    _official_counts_are(monkeypatch, dataset)


@pytest.mark.parametrize("dataset", DOWNLOADS)
def test_check_of_a_complete_download_exits_with_0(
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "download"
    _complete(monkeypatch, dataset, root)
    before = _state(root)
    code = cli.main(["ingest", "--check", str(root), "--dataset", dataset])
    captured = capsys.readouterr()
    assert code == 0, captured.out
    *lines, last = captured.out.splitlines()
    assert lines
    assert all(line.startswith("ok      ") for line in lines)
    assert last == f"{root}: complete as far as a look at its files can tell"
    assert captured.err == ""
    assert _state(root) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["download"]


BROKEN = {
    "aist": ("annotations/motions", "unzip motions.zip from google.github.io/aistplusplus_dataset"),
    "tiktok": ("videos", "fetch the videos from the links in the annotation file"),
    "cub200": ("text", "unpack the birds metadata archive of StackGAN / DF-GAN"),
    "coco": ("val2014", "unzip val2014.zip of cocodataset.org"),
    "imagenet": ("val", "ILSVRC2012_img_val.tar"),
}
"""A folder that is gone, and what must be said of where to get it."""


@pytest.mark.parametrize("dataset", DOWNLOADS)
def test_check_of_a_broken_download_exits_with_1_and_says_where_to_get_it(
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "download"
    _complete(monkeypatch, dataset, root)
    gone, words = BROKEN[dataset]
    shutil.rmtree(root / gone)
    before = _state(root)
    assert cli.main(["ingest", "--check", str(root), "--dataset", dataset]) == 1
    captured = capsys.readouterr()
    *lines, last = captured.out.splitlines()
    missing = [line for line in lines if line.startswith("MISSING ")]
    assert any(words in line for line in missing), captured.out
    assert all(line.startswith(("ok      ", "MISSING ")) for line in lines)
    assert last == f"{root}: {len(missing)} of {len(lines)} parts need attention"
    assert captured.err == ""
    assert _state(root) == before


@pytest.mark.parametrize("dataset", DOWNLOADS)
def test_check_of_an_empty_folder_is_no_crash(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "empty"
    root.mkdir()
    assert cli.main(["ingest", "--check", str(root), "--dataset", dataset]) == 1
    captured = capsys.readouterr()
    assert "MISSING" in captured.out
    assert captured.err == ""
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    ("folder", "dataset", "words"),
    [
        ("there", "mnist", "datasets must name a known dataset: got 'mnist'; use aist, tiktok"),
        ("there", "Aist", "datasets must name a known dataset: got 'Aist'"),
        ("not there", "aist", "--check must name a folder: got '"),
        ("a file", "coco", "--check must name a folder: got '"),
    ],
)
def test_check_of_what_is_no_folder_or_dataset_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    folder: str,
    dataset: str,
    words: str,
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "a file").touch()
    arguments = ["ingest", "--check", str(tmp_path / folder), "--dataset", dataset]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"cdcd: {words}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("arguments", ["--check x", "--dataset aist", ""])
def test_check_needs_a_folder_and_a_dataset(
    capsys: pytest.CaptureFixture[str], arguments: str
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["ingest", *arguments.split()])
    assert end.value.code == 2
    assert "required" in capsys.readouterr().err


def test_the_readme_shows_the_check_as_it_is(root: Path) -> None:
    for path in ("README.md", "docs/data.md"):
        text = (root / path).read_text(encoding="utf-8")
        assert "cdcd ingest --check" in text
        assert "where to get it" in text
    example = "ingest --check downloads/aist --dataset aist"
    chosen = cli.build_parser().parse_args(example.split())
    assert (chosen.check, chosen.dataset) == (Path("downloads/aist"), "aist")
    assert f"cdcd {example}" in cli.EPILOG
