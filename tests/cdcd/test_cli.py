"""The `cdcd` command: quick help, one line per error, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdcd import cli, tasks
from cdcd.data.files import atomic_path
from cdcd.models.picture_conditioner import ClassSpec
from tests.cdcd.data import tiny_aist, tiny_pictures, tiny_tiktok
from tests.cdcd.generation import tiny_models


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
    Path("data/models/aist/model.json").write_text('{"task": "dance2music"}')
    Path("data/codecs/aist").mkdir(parents=True)
    seen: list[dict[str, Any]] = []

    class Recorder:
        def generate_for_video(self, video: Path, out: Path, **options: Any) -> dict[str, Any]:
            seen[-1] |= {"video": video, "out": out, **options}
            return {"duration_seconds": 2.0, "sample_rate_hz": 22050}

    def load(model_dir: Path, codec_dir: Path, encoder_dir: None, sampler: None) -> Recorder:
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
        ("--video dance.mp4 --out o.wav --guidance inf", "--guidance must lie in 0 .. 100: got"),
        ("--video dance.mp4 --out o.wav --guidance 1e300", "--guidance must lie in 0 .. 100: got"),
        ("--video dance.mp4 --out o.wav --guidance -1", "--guidance must lie in 0 .. 100: got -1"),
        ("--video dance.mp4 --out o.wav --format wav", "--format is of --videos: got wav; leave"),
        ("--videos nowhere --out o", "--videos must be a folder or a .csv: got nowhere; check"),
        ("--videos data --out o", "data must hold at least one video: got none"),
        ("--videos . --out .", "--out must differ from --videos: got ."),
        ("--videos . --out dance.mp4", "--out must be a folder here: dance.mp4 is a file"),
        ("--videos . --out o --num 2", "--num is for pictures: got 2 with --videos; leave it out"),
        (
            "--video dance.mp4 --out o.wav --encoder data",
            "--encoder is of models that read texts: data/models/aist is one of dance2music; leave",
        ),
        ("--video dance.mp4 --out o.wav --seed -1", "--seed must lie in"),
        ("--video dance.mp4 --out o.wav --num 2", "--num is for pictures: got 2 with --video"),
        (
            "--video dance.mp4 --out o.wav --model no",
            "--model must be the folder of a trained model: got no; train it with `make run`",
        ),
        (
            "--video dance.mp4 --out o.wav --codec no",
            "--codec must be the folder of the model's codec: got no; train it with `make run`",
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
    (fetched["model"] / "model.json").write_text('{"task": "dance2music"}')
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


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--num 2.5", "cdcd generate: --num must be a whole number: got 2.5; use 2\n"),
        ("--seed x", "cdcd generate: --seed must be a whole number: got x; use 2\n"),
        ("--guidance much", "cdcd generate: --guidance must be a number: got much; use 0.9\n"),
        (
            "--class 3",
            "cdcd generate: --class not allowed with argument --text; see `cdcd generate --help`\n",
        ),
        (
            "--frob",
            "cdcd: unrecognized arguments: --frob; see `cdcd --help`\n",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: str, line: str
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["generate", "--text", "x", "--out", "o.png", *arguments.split()])
    assert end.value.code == 2
    assert capsys.readouterr().err == line


def test_guidance_has_one_bound(make_params: Any) -> None:
    from cdcd.config import MAX_GUIDANCE, ConfigError

    assert make_params({"generate": {"guidance": MAX_GUIDANCE}}).generate.guidance == MAX_GUIDANCE
    with pytest.raises(ConfigError, match="guidance"):
        make_params({"generate": {"guidance": MAX_GUIDANCE + 1}})


def test_presets_list_and_show(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    assert cli.main(["presets", "list"]) == 0
    listed = capsys.readouterr().out
    folder = root / "presets"
    scaled = sorted(path.relative_to(folder).as_posix()[:-5] for path in folder.glob("*/*.yaml"))
    names = [line.split()[0] for line in listed.splitlines()]
    assert names == ["fixed", "official", "paper", *scaled]
    assert {"aist/demo", "cub200/demo", "coco/demo", "imagenet/demo"} <= set(names)
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


# generate pictures

RED = "a small red bird with black wings"


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tiny_models.write_models(tmp_path_factory.mktemp("tiny") / "data", "cub200")
    return tiny_models.write_models(data, "imagenet", ClassSpec(len(tiny_models.CLASS_NAMES), 8))


@pytest.fixture
def pictures(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with trained models in data/."""
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(tiny_data)
    Path("dance.mp4").write_bytes(b"x")
    return tmp_path


def _generate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["generate", *arguments, "--no-progress"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _image(path: str) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_text_becomes_a_picture(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = _generate(capsys, "--text", RED, "--out", "new/bird.png", "--seed", "2")
    assert done == (0, "new/bird.png: a picture of 16 x 16 pixels, seed 2\n", "")
    first = _image("new/bird.png")
    assert first.shape == (16, 16, 3)
    _generate(capsys, "--text", RED, "--out", "again.PNG", "--seed", "2")
    np.testing.assert_array_equal(_image("again.PNG"), first)
    _generate(capsys, "--text", RED, "--out", "other.png", "--seed", "3")
    assert not np.array_equal(_image("other.png"), first)


def test_a_class_becomes_a_grid(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = _generate(capsys, "--class", "3", "--num", "16", "--out", "grid.png")
    assert done == (0, "grid.png: 16 pictures of 16 x 16 pixels, seed 0\n", "")
    assert _image("grid.png").shape == (4 * 18 - 2, 4 * 18 - 2, 3)
    assert _generate(capsys, "--class", "Tinca tinca", "--out", "a.png")[0] == 0
    assert _generate(capsys, "--class", "0", "--out", "b.png")[0] == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_a_gif_shows_how_a_picture_appears(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    done = _generate(capsys, "--text", RED, "--out", "bird.gif")
    assert done == (0, "bird.gif: out of the mask in 5 steps, seed 0\n", "")
    with Image.open("bird.gif") as moving:
        assert moving.n_frames == 6
        assert moving.info["loop"] == 0


@pytest.mark.parametrize("out", ["birds/", "birds"])
def test_a_folder_gets_single_pictures_with_an_index(
    pictures: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    arguments = ("--text", RED, "--num", "2", "--out", out)
    done = _generate(capsys, *arguments)
    assert done == (0, "birds: pictures written: 2; index.json lists them\n", "")
    listed = json.loads(Path("birds/index.json").read_text())["pictures"]
    assert [(e["text"], e["seed"], (Path("birds") / e["file"]).is_file()) for e in listed] == [
        (RED, 0, True)
    ] * 2
    done = _generate(capsys, *arguments)
    assert done[1] == "birds: pictures written: 0, there already: 2; index.json lists them\n"


def test_a_file_of_prompts_is_drawn_and_continued(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("p.txt").write_text(f"{RED}\n\n{'a blue bird ' * 800}\n")
    code, out, err = _generate(capsys, "--prompts", "p.txt", "--out", "made")
    assert code == 0
    assert out == "made: pictures written: 2, blank lines skipped: 1; index.json lists them\n"
    assert err.startswith("cdcd: line 3: the model reads 77 of ")
    assert err.count("\n") == 1
    with Path("p.txt").open("a") as file:
        file.write("a green bird\n")
    code, out, _ = _generate(capsys, "--prompts", "p.txt", "--out", "made")
    assert out.startswith("made: pictures written: 1, there already: 2")
    # A line gives the picture that its prompt gives alone.
    _generate(capsys, "--text", RED, "--out", "alone.png")
    assert Path("alone.png").read_bytes() == next(Path("made").glob("00001*")).read_bytes()


def test_a_csv_of_classes_finds_its_model(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("p.csv").write_text("class,num,seed,name\ngreat grey owl,2,4,owl\n0,,,\n")
    assert _generate(capsys, "--prompts", "p.csv", "--out", "made/")[0] == 0
    assert {path.name for path in Path("made").iterdir()} == {
        "index.json", "owl-0.png", "owl-1.png", "00003-class-0-tench-tinca-tinca.png",
    }  # fmt: skip
    Path("p.txt").write_text("0\ngreat grey owl\n")
    arguments = ("--prompts", "p.txt", "--model", "data/models/imagenet", "--out", "other")
    assert _generate(capsys, *arguments)[1].startswith("other: pictures written: 2")


def test_what_is_cut_of_a_prompt_is_told(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = _generate(capsys, "--text", ("a red bird " * 1000)[:10_000], "--out", "o.png")
    assert (code, out) == (0, "o.png: a picture of 16 x 16 pixels, seed 0\n")
    assert err.startswith("cdcd: the prompt: the model reads 77 of ")
    assert err.count("\n") == 1
    assert len(err) < 200


def test_many_cut_prompts_are_counted(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("p.txt").write_text(("a blue bird " * 80 + "\n") * 5)
    err = _generate(capsys, "--prompts", "p.txt", "--out", "made")[2]
    assert err.splitlines()[3] == "cdcd: 2 more prompts were cut; the index says how much"
    assert err.count("\n") == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "", "--out", "o.png"], "a prompt must say something: got ''"),
        (["--text", "  \t", "--out", "o.png"], "a prompt must say something"),
        (["--text", "a\nbird", "--out", "o.png"], "a prompt must be one line without control"),
        (["--text", "a \x1b[31m bird", "--out", "o/"], "a prompt must be one line without control"),
        (["--class", "4", "--out", "o.png"], "class must lie in 0 .. 3: got 4"),
        (["--class", "-1", "--out", "o.png"], "class must lie in 0 .. 3: got -1"),
        (["--class", "owl", "--out", "o.png"], "class must be a number in 0 .. 3 or a name"),
        (["--class", "crane", "--out", "o.png"], "class must be one: 'crane' names 1, 3"),
        (["--text", RED, "--num", "0", "--out", "o.png"], "--num must lie in 1 .. 10000: got 0"),
        (["--text", RED, "--num", "-2", "--out", "o/"], "--num must lie in 1 .. 10000: got -2"),
        (["--text", RED, "--num", "10001", "--out", "o/"], "--num must lie in 1 .. 10000: got 100"),
        (["--text", RED, "--num", "2", "--out", "o.gif"], "--num must be 1 for a .gif"),
        (["--text", RED, "--out", "o.jpg"], "--out must end in .png or .gif, or be a folder: got"),
        (["--text", RED, "--out", ""], "--out must name a file or folder: got nothing"),
        (["--text", RED, "--out", "a_file"], "--out must be a folder here: a_file is a file"),
        (["--text", RED, "--seed", "-1", "--out", "o.png"], "--seed must lie in"),
        (["--text", RED, "--guidance", "nan", "--out", "o.png"], "--guidance must lie in 0 .. 1"),
        (
            ["--class", "1", "--out", "o.png", "--encoder", "data/encoders/cub200"],
            "--encoder is of models that read texts: data/models/imagenet is one of class2image; ",
        ),
        (
            ["--videos", ".", "--out", "o", "--model", "data/models/cub200"],
            "--videos needs a model of dance2music: data/models/cub200 is one of text2image",
        ),
        (["--text", RED, "--truncation", "2", "--out", "o.png"], "--truncation must lie in (0, 1]"),
        (
            ["--text", RED, "--out", "o.png", "--model", "data/models/imagenet"],
            "--text needs a model of text2image: data/models/imagenet is one of class2image, which "
            "takes --class; name another with --model",
        ),
        (
            ["--class", "1", "--out", "o.png", "--model", "data/models/cub200"],
            "--class needs a model of class2image: data/models/cub200 is one of text2image",
        ),
        (
            ["--video", "dance.mp4", "--out", "o.wav", "--model", "data/models/cub200"],
            "--video needs a model of dance2music: data/models/cub200 is one of text2image",
        ),
        (
            ["--prompts", "classes.csv", "--out", "o/", "--model", "data/models/cub200"],
            "--prompts needs a model of class2image: data/models/cub200 is one of text2image",
        ),
        (
            ["--text", RED, "--out", "o.png", "--encoder", "no"],
            "--encoder must be the folder of the model's encoder: got no; train it with `make run`",
        ),
        (["--prompts", "no.txt", "--out", "o/"], "no.txt must be a file of prompts: there is none"),
        (["--prompts", "classes.csv", "--out", "o.png"], "--out must be a folder for --prompts"),
        (["--prompts", "classes.csv", "--out", "o/"], "classes.csv, line 3: class must lie in"),
    ],
)
def test_a_wrong_wish_is_one_line(
    pictures: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    Path("a_file").touch()
    Path("classes.csv").write_text("class\n1\n9\n")
    before = {path.name for path in pictures.iterdir()}
    code, out, err = _generate(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"cdcd: {words}"), err
    assert err.count("\n") == 1
    assert {path.name for path in pictures.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "dataset"),
    [(["--text", RED], "cub200"), (["--class", "3"], "imagenet"), (["--video", "d.mp4"], "aist")],
)
def test_a_model_that_was_never_trained_is_one_line_with_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    dataset: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d.mp4").touch()
    out = "o.wav" if dataset == "aist" else "o.png"
    _, _, err = _generate(capsys, *arguments, "--out", out)
    assert err == (
        f"cdcd: --model must be the folder of a trained model: got data/models/{dataset}; train it "
        f'with `make run DATASETS="{dataset}"`, run from the repository\'s root, or name another\n'
    )


def test_a_grid_that_nobody_could_open_is_refused_before_it_is_drawn(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdcd import pictures as drawings

    monkeypatch.setattr(drawings, "MAX_PIXELS", 1000)
    code, _, err = _generate(capsys, "--text", RED, "--num", "9", "--out", "o.png")
    assert code == 1
    assert err.startswith("cdcd: a grid must have at most 1000 pixels: 9 pictures of 16 x 16 are")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--out", "o.png"], ["--text", "a", "--class", "1", "--out", "o.png"]]
)
def test_exactly_one_thing_is_asked_for(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["generate", *arguments])
    assert end.value.code == 2
    assert "--text" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", " \t", "two\nlines"])
def test_a_text_that_is_none_is_told_before_a_model_is_loaded(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(tasks, "load_generator", lambda *_: pytest.fail("a model was loaded"))
    code, _, err = _generate(capsys, "--text", text, "--out", "o.png")
    assert code == 1
    assert err.startswith("cdcd: a prompt must ")


@pytest.mark.parametrize("out", ["file/x.png", "/proc/x/y.png", "n" * 300 + ".png", "/proc/x.gif"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_drawn(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    Path("file").touch()
    before = {path.name for path in Path().iterdir()}
    monkeypatch.setattr(tasks, "load_generator", lambda *_: pytest.fail("a model was loaded"))
    code, _, err = _generate(capsys, "--text", RED, "--out", out)
    assert code == 1
    assert "--out must be a place that can be written: got" in err
    assert "choose another" in err
    assert {path.name for path in Path().iterdir()} == before


def test_only_the_place_itself_must_be_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Path] = []

    class Trying(cli.tempfile.TemporaryDirectory):  # type: ignore[type-arg]
        def __init__(self, dir: Path, prefix: str) -> None:
            tried.append(dir)
            super().__init__(dir=dir, prefix=prefix)

    monkeypatch.setattr(cli.tempfile, "TemporaryDirectory", Trying)
    (tmp_path / "there").mkdir()
    (tmp_path / "old.png").touch()
    for out in ("there", "old.png", "new.png", "there/new/deep.png"):
        cli._check_place(tmp_path / out)
    assert tried == [tmp_path / "there", tmp_path, tmp_path, tmp_path / "there"]


def test_a_model_samples_as_it_was_scored(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data").unlink()
    tiny_models.write_models(Path("data"), "imagenet", ClassSpec(4, 8))
    _generate(capsys, "--class", "1", "--out", "default")
    summary = Path("data/generated/imagenet/summary.json")
    summary.parent.mkdir(parents=True)
    summary.write_text('{"sampler": {"truncation": 0.5, "guidance": 4.0, "stride": 2}}')
    _generate(capsys, "--class", "1", "--out", "scored")
    _generate(capsys, "--class", "1", "--out", "asked", "--guidance", "2")
    settings = {}
    for name in ("default", "scored", "asked"):
        (entry,) = json.loads((Path(name) / "index.json").read_text())["pictures"]
        settings[name] = entry["truncation"], entry["guidance"], entry["stride"]
    default = tasks.DEFAULT_SAMPLER
    assert settings == {
        "default": (default["truncation"], default["guidance"], default["stride"]),
        "scored": (0.5, 4.0, 2),
        "asked": (0.5, 2.0, 2),
    }
    summary.write_text("{}")
    code, _, err = _generate(capsys, "--class", "1", "--out", "broken")
    assert code == 1
    assert err.endswith(
        "summary.json must hold the settings of the sampler: it does not; run "
        "`dvc repro generate`\n"
    )


def test_a_registered_text_model_brings_its_encoder(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdcd import tracking

    folders = {"model": "models", "codec": "codecs", "encoder": "encoders"}
    fetched = {key: Path("data") / kind / "cub200" for key, kind in folders.items()}
    monkeypatch.setattr(tracking, "download_model", lambda uri: fetched)
    arguments = ("--text", RED, "--model", "models:/m@champion", "--out", "o.png")
    assert _generate(capsys, *arguments)[0] == 0
    assert Path("o.png").is_file()


# generate for many videos


def test_a_folder_of_videos_becomes_a_folder_of_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_models.write_music_model(Path("data"))
    Path("dances").mkdir()
    tiny_aist.write_video(Path("dances/a.mp4"), 0.4, has_sound=False)
    tiny_aist.write_video(Path("dances/b.mp4"), 0.4, has_sound=False)
    done = _generate(capsys, "--videos", "dances", "--out", "new/made", "--format", "wav")
    assert done == (0, "new/made: results written: 2; index.json lists them\n", "")
    Path("dances/c.mp4").write_bytes(b"no video")
    code, out, err = _generate(capsys, "--videos", "dances", "--out", "new/made", "--format", "wav")
    assert code == 1
    assert out == (
        "new/made: results written: 0, there already: 2, skipped: 1; index.json lists them\n"
    )
    assert err.startswith("cdcd: c.mp4 is skipped: dances/c.mp4: ")
    assert err.count("\n") == 1
    Path("list.csv").write_text("video,seed,out\ndances/a.mp4,4,four.wav\n,,\n")
    code, out, _ = _generate(capsys, "--videos", "list.csv", "--out", "new/made")
    assert (code, out) == (
        0,
        "new/made: results written: 1, blank lines: 1; index.json lists them\n",
    )
    _generate(capsys, "--video", "dances/a.mp4", "--seed", "4", "--out", "alone.wav")
    assert Path("alone.wav").read_bytes() == Path("new/made/four.wav").read_bytes()
    listed = json.loads(Path("new/made/index.json").read_text())["videos"]
    assert [entry["status"] for entry in listed] == ["ok", "ok", "skipped", "ok"]


def test_many_skipped_videos_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_models.write_music_model(Path("data"))
    Path("dances").mkdir()
    for number in range(5):
        Path(f"dances/{number}.mp4").write_bytes(b"no video")
    code, _, err = _generate(capsys, "--videos", "dances", "--out", "made")
    assert code == 1
    assert err.splitlines()[3] == "cdcd: 2 more are skipped; the index says why"
    assert err.count("\n") == 4


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
