"""The `cdcd` command: `generate` music and pictures, `ingest --check`, `doctor`, `presets`.

Everything heavy is imported by the subcommand that needs it, so `cdcd --help` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn, cast

from cdcd.settings import load_env

if TYPE_CHECKING:
    from cdcd.diffusion.sampler import SamplerConfig
    from cdcd.generation import MusicGenerator, PictureGenerator
    from cdcd.generation.prompts import Planned

MAX_NOTES = 3
"""Lines on single prompts and videos; the rest is counted."""

EPILOG = """examples:
  cdcd generate --video dance.mp4 --out with_music.mp4
  cdcd generate --video dance.mp4 --out music.wav --seed 3 --model models:/cdcd-dance2music@champion
  cdcd generate --text "a small red bird with black wings" --out bird.png
  cdcd generate --class 3 --num 16 --out grid.png
  cdcd generate --text "a blue bird" --out how_it_appears.gif
  cdcd generate --prompts prompts.txt --out pictures/
  cdcd generate --videos dances/ --out with_music/
  cdcd ingest --check downloads/aist --dataset aist
  cdcd presets apply aist/demo paper
  cdcd rollback cdcd-dance2music
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line, as every other error is said."""

    def error(self, message: str) -> NoReturn:
        told = re.sub(r"^argument ([^ :]+): ", r"\1 ", " ".join(message.split()))
        remedy = "" if "; use " in told else f"; see `{self.prog} --help`"
        self.exit(2, f"{self.prog}: {told}{remedy}\n")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        near = re.fullmatch(r"\s*(-?[0-9]+)[.,][0-9]*\s*", text[:40])
        use = near[1] if near else "2"
        raise argparse.ArgumentTypeError(
            f"must be a whole number: got {text[:40]}; use {use}"
        ) from None


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number: got {text[:40]}; use 0.9") from None


def build_parser() -> argparse.ArgumentParser:
    """The command line, without importing anything heavy."""
    parser = _Parser(
        prog="cdcd",
        description="Discrete contrastive diffusion: music for dance videos, pictures from text "
        "and of classes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    generate = commands.add_parser(
        "generate", help="music for a dance video, pictures from text or of a class"
    )
    wanted = generate.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--video", type=Path, help="any dance video, to be given music")
    wanted.add_argument(
        "--videos",
        type=Path,
        metavar="DIR_OR_CSV",
        help="a folder of videos, or .csv with a column video and any of out, seed, guidance and "
        "truncation; started again, it continues",
    )
    wanted.add_argument("--text", help="what the pictures shall show, on one line")
    wanted.add_argument(
        "--class", dest="label", metavar="CLASS", help="number or name of the pictures' class"
    )
    wanted.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a prompt on each line; or .csv with a column text or class, and any of seed, num and "
        "name; started again, it continues",
    )
    generate.add_argument(
        "--out",
        required=True,
        help="of a video: .mp4 (the video with music) or .wav; of pictures: .png (several make a "
        "grid), .gif (how one comes out of the mask), or a folder for single pictures and "
        "index.json; of --videos and --prompts: such a folder; missing folders are made",
    )
    generate.add_argument(
        "--format", choices=("mp4", "wav"), help="of the results of --videos (default: mp4)"
    )
    generate.add_argument("--num", type=_whole, help="pictures of each prompt (default: 1)")
    generate.add_argument(
        "--model",
        help="folder of a trained model, or models:/NAME@ALIAS of the registry (default: "
        "data/models/ with aist for videos, cub200 for text, imagenet for classes)",
    )
    generate.add_argument(
        "--codec",
        type=Path,
        help="folder of its codec (default: data/codecs/ with the name of the model's folder)",
    )
    generate.add_argument(
        "--encoder",
        type=Path,
        help="folder of its text encoder (default: data/encoders/ with that name)",
    )
    generate.add_argument(
        "--seed", type=_whole, default=0, help="same seed, same output (default: 0)"
    )
    generate.add_argument(
        "--guidance",
        type=_real,
        help="weight of the condition, 0 to 100; 1 is no guidance (default: as scored)",
    )
    generate.add_argument(
        "--truncation", type=_real, help="kept probability mass, 0 to 1 (default: as scored)"
    )
    generate.add_argument("--no-progress", action="store_true", help="no progress bar")

    ingest = commands.add_parser(
        "ingest", help="look at a download: what is there, what is missing, where to get it"
    )
    ingest.add_argument(
        "--check", required=True, type=Path, metavar="DIR", help="folder; nothing in it is changed"
    )
    ingest.add_argument("--dataset", required=True, help="aist, tiktok, cub200, coco or imagenet")

    commands.add_parser("doctor", help="what is installed, what will run where, what is missing")

    presets = commands.add_parser("presets", help="named parameter sets over params.yaml")
    actions = presets.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="all names with what they are")
    show = actions.add_parser("show", help="print a preset")
    show.add_argument("name")
    apply = actions.add_parser("apply", help="write presets into params.yaml, keeping its comments")
    apply.add_argument("names", nargs="+", metavar="NAME")
    apply.add_argument("--params", default="params.yaml", help="file to change (default: it)")
    commands.add_parser("sync", help="send runs to MLflow that it could not take (data/spool)")
    back = commands.add_parser(
        "rollback", help="give the alias `champion` back to the version that it replaced"
    )
    back.add_argument("name", metavar="NAME", help="of the registered model")
    back.add_argument("--to", metavar="VERSION", help="this version instead")
    reproduced = commands.add_parser(
        "reproduced", help="whether the outputs here have the hashes that a commit records"
    )
    reproduced.add_argument(
        "--against", default="HEAD", metavar="REV", help="commit with a dvc.lock (default: HEAD)"
    )
    reproduced.add_argument(
        "--datasets", nargs="+", default=[], metavar="NAME", help="of these alone (default: all)"
    )
    return parser


def _write(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def _note(text: str) -> None:
    sys.stderr.write(f"cdcd: {text}\n")


class _Folders(NamedTuple):
    """Where a model and what it needs lie; the encoder is of models that read text alone."""

    model: Path
    codec: Path
    encoder: Path | None
    sampler: Path | None
    is_registered: bool = False


OPTIONS = {"dance2music": "--video", "text2image": "--text", "class2image": "--class"}
"""What each task is given."""
DATASETS = {"dance2music": "aist", "text2image": "cub200", "class2image": "imagenet"}
"""Whose model is used where none is named."""


def _folders(chosen: argparse.Namespace, task: str | None) -> _Folders:
    """The chosen model's folders, checked: they are there, and the model is one of the task.

    Args:
        chosen: the command line.
        task: what is asked for; None for pictures that only the model can tell the kind of.
    """
    dataset = DATASETS[task or "text2image"]
    name = chosen.model or f"data/models/{dataset}"
    codec: Path | None = chosen.codec
    encoder: Path | None = chosen.encoder
    if name.startswith("models:"):
        from cdcd.tracking import download_model

        artifacts = download_model(name)
        model = artifacts["model"]
        codec, encoder = codec or artifacts["codec"], encoder or artifacts.get("encoder")
        sampler = artifacts.get("sampler")
    else:
        model = Path(name)
        data = model.parent.parent
        codec = codec or data / "codecs" / model.name
        encoder = encoder or data / "encoders" / model.name
        sampler = data / "generated" / model.name / "summary.json"
    if not model.is_dir():
        command = "`make run`" if chosen.model else f'`make run DATASETS="{dataset}"`'
        raise ValueError(
            f"--model must be the folder of a trained model: got {model}; train it with {command}, "
            "run from the repository's root, or name another"
        )
    from cdcd.generation.base import read_task

    found = read_task(model)
    if found != task and (task is not None or found == "dance2music"):
        asked = OPTIONS[task or "text2image"]
        asked = "--prompts" if chosen.prompts is not None else asked
        asked = "--videos" if chosen.videos is not None else asked
        wants = "pictures" if task is None else task
        raise ValueError(
            f"{asked} needs a model of {wants}: {name} is one of {found}, which takes "
            f"{OPTIONS[found]}; name another with --model"
        )
    if found != "text2image":
        if chosen.encoder is not None:
            raise ValueError(
                f"--encoder is of models that read texts: {name} is one of {found}; leave it out"
            )
        encoder = None
    for option, folder in (("--codec", codec), ("--encoder", encoder)):
        if folder is not None and not folder.is_dir():
            raise ValueError(
                f"{option} must be the folder of the model's {option[2:]}: got {folder}; train it "
                "with `make run`, run from the repository's root, or name another"
            )
    return _Folders(model, codec, encoder, sampler, name.startswith("models:"))


def _load(folders: _Folders) -> MusicGenerator | PictureGenerator:
    if folders.is_registered:
        from cdcd.serving import ServedModel  # what MLflow loads, so that both make the same

        artifacts = {name: getattr(folders, name) for name in ("model", "codec", "encoder")}
        served = ServedModel.of({**artifacts, "sampler": folders.sampler})
        return cast("MusicGenerator | PictureGenerator", served.generator)
    from cdcd.generation.base import read_sampler
    from cdcd.tasks import load_generator

    sampler = read_sampler(folders.sampler)
    return load_generator(folders.model, folders.codec, folders.encoder, sampler)


def _generate(chosen: argparse.Namespace) -> int:
    if not chosen.out.strip():
        raise ValueError("--out must name a file or folder: got nothing; give it a name")
    if chosen.video is not None:
        _check_video(chosen)
    if chosen.format is not None and chosen.videos is None:
        raise ValueError(f"--format is of --videos: got {chosen.format}; leave it out")
    _check_numbers(chosen)
    _check_place(Path(chosen.out))
    if chosen.video is not None:
        _generate_music(chosen)
    elif chosen.videos is not None:
        return _generate_for_videos(chosen)
    else:
        _generate_pictures(chosen)
    return 0


def _check_place(out: Path) -> None:
    """Refuse an output that could not be written, before minutes go into it."""
    place = out.absolute()
    try:
        # A folder that is there is written into; its parent need not be anybody's to write.
        around = place if place.is_dir() else next(at for at in place.parents if at.exists())
        # Only writing tells: permissions say yes to root, and some file systems no to everybody.
        with tempfile.TemporaryDirectory(dir=around, prefix=".cdcd-") as folder:
            (Path(folder) / out.name).touch()
    except OSError as error:
        raise ValueError(
            f"--out must be a place that can be written: got {str(out)[:200]} "
            f"({error.strerror or type(error).__name__}); choose another"
        ) from None


def _check_numbers(chosen: argparse.Namespace) -> None:
    if chosen.truncation is not None and not 0 < chosen.truncation <= 1:
        raise ValueError(f"--truncation must lie in (0, 1]: got {chosen.truncation}; use 0.86")
    if chosen.guidance is not None:
        from cdcd.config import MAX_GUIDANCE

        if not 0 <= chosen.guidance <= MAX_GUIDANCE:
            raise ValueError(
                f"--guidance must lie in 0 .. {MAX_GUIDANCE:g}: got {chosen.guidance}; use 1.5"
            )
    if not 0 <= chosen.seed < 2**63:
        raise ValueError(f"--seed must lie in 0 .. 2**63 - 1: got {chosen.seed}; use 0")
    if chosen.num is not None:
        if chosen.videos is not None:
            raise ValueError(f"--num is for pictures: got {chosen.num} with --videos; leave it out")
        from cdcd.generation.pictures import check_num

        check_num(chosen.num, "--num")


def _check_video(chosen: argparse.Namespace) -> None:
    out = Path(chosen.out)
    if out.suffix.lower() not in {".wav", ".mp4"}:
        raise ValueError(f"--out must end in .wav or .mp4: got {out}; rename it")
    if not chosen.video.is_file():
        raise ValueError(f"--video must be a file: got {chosen.video}; check the path")
    if out.resolve() == chosen.video.resolve():
        raise ValueError(f"--out must differ from --video: got {out}; choose another name")
    if chosen.num is not None:
        raise ValueError(f"--num is for pictures: got {chosen.num} with --video; leave it out")


def _generate_music(chosen: argparse.Namespace) -> None:
    generator = cast("MusicGenerator", _load(_folders(chosen, "dance2music")))
    summary = generator.generate_for_video(
        chosen.video,
        Path(chosen.out),
        seed=chosen.seed,
        guidance=chosen.guidance,
        truncation=chosen.truncation,
        progress=not chosen.no_progress,
    )
    _write(f"{chosen.out}: {summary['duration_seconds']:.2f} s of music, seed {chosen.seed}")


def _generate_for_videos(chosen: argparse.Namespace) -> int:
    from cdcd.data.files import sha256_file
    from cdcd.generation.lists import INDEX
    from cdcd.generation.videos import VideoFolder, fill_videos, read_clips

    folder = VideoFolder.open(chosen.out)
    found = read_clips(chosen.videos, chosen.out, chosen.format or "mp4")
    folders = _folders(chosen, "dance2music")
    generator = cast("MusicGenerator", _load(folders))
    identity = {
        "model_sha256": sha256_file(folders.model / "model.safetensors"),
        "codec_sha256": sha256_file(folders.codec / "codec.safetensors"),
    }
    done = fill_videos(
        generator,
        found,
        folder,
        identity,
        seed=chosen.seed,
        guidance=chosen.guidance,
        truncation=chosen.truncation,
        progress=not chosen.no_progress,
    )
    for name, reason in done.skipped[:MAX_NOTES]:
        _note(f"{name} is skipped: {reason}")
    if len(done.skipped) > MAX_NOTES:
        _note(f"{len(done.skipped) - MAX_NOTES} more are skipped; the index says why")
    parts = [f"results written: {done.num_written}"]
    counts = (("there already", done.num_kept), ("skipped", len(done.skipped)))
    parts += [f"{what}: {number}" for what, number in counts if number]
    if found.num_blank:
        parts.append(f"blank lines: {found.num_blank}")
    _write(f"{folder.path}: {', '.join(parts)}; {INDEX} lists them")
    return 1 if done.skipped else 0


def _picture_kind(chosen: argparse.Namespace) -> Literal["png", "gif", "folder"]:
    """What --out asks for."""
    out = Path(chosen.out)
    suffix = out.suffix.lower()
    if chosen.out.endswith(("/", os.sep)) or out.is_dir() or not suffix:
        return "folder"
    if chosen.prompts is not None:
        raise ValueError(
            f"--out must be a folder for --prompts: got {out}; put a slash behind its name"
        )
    if suffix == ".gif":
        if chosen.num not in (None, 1):
            raise ValueError(f"--num must be 1 for a .gif, which shows one: got {chosen.num}")
        return "gif"
    if suffix != ".png":
        raise ValueError(
            f"--out must end in .png or .gif, or be a folder: got {out}; rename it, or put a slash "
            "behind the name of a folder"
        )
    return "png"


def _generate_pictures(chosen: argparse.Namespace) -> None:
    kind = _picture_kind(chosen)
    from cdcd.generation.prompts import PromptFile, Wish, plan, read_prompts

    if chosen.prompts is not None:
        asked = read_prompts(chosen.prompts)
    elif chosen.text is not None:
        from cdcd.features.text import check_prompt

        check_prompt(chosen.text)
        asked = PromptFile("text", [Wish(chosen.text)], 0)
    else:
        asked = PromptFile("class", [Wish(chosen.label)], 0)
    folders = _folders(chosen, f"{asked.kind}2image" if asked.kind else None)
    generator = cast("PictureGenerator", _load(folders))
    config = generator.sampler(chosen.guidance, chosen.truncation)
    planned = plan(generator, asked.wishes, chosen.num or 1, chosen.seed, chosen.prompts)
    cut = [one for one in planned if one.cut is not None]
    for one in cut[:MAX_NOTES]:
        _note(f"{'the prompt' if one.line is None else f'line {one.line}'}: {one.cut}")
    if len(cut) > MAX_NOTES:
        _note(f"{len(cut) - MAX_NOTES} more prompts were cut; the index says how much")
    if kind == "folder":
        _fill_folder(chosen, generator, planned, config, folders.model, asked.num_blank)
        return
    (one,) = planned
    _draw_file(chosen, kind, generator, one, config)


def _fill_folder(
    chosen: argparse.Namespace,
    generator: PictureGenerator,
    planned: list[Planned],
    config: SamplerConfig,
    model_dir: Path,
    num_blank: int,
) -> None:
    from cdcd.data.files import sha256_file
    from cdcd.generation.lists import INDEX
    from cdcd.generation.prompts import PictureFolder, fill_folder

    folder = PictureFolder.open(chosen.out)
    weights = sha256_file(model_dir / "model.safetensors")
    done = fill_folder(generator, planned, folder, config, weights, not chosen.no_progress)
    parts = [f"pictures written: {done.num_written}"]
    if done.num_kept:
        parts.append(f"there already: {done.num_kept}")
    if num_blank:
        parts.append(f"blank lines skipped: {num_blank}")
    _write(f"{folder.path}: {', '.join(parts)}; {INDEX} lists them")


def _draw_file(
    chosen: argparse.Namespace,
    kind: Literal["png", "gif"],
    generator: PictureGenerator,
    one: Planned,
    config: SamplerConfig,
) -> None:
    import numpy as np

    from cdcd import pictures
    from cdcd.generation.base import step_bar

    is_shown = not chosen.no_progress
    if kind == "gif":
        frames = generator.denoising_frames(
            one.condition, one.seed, chosen.guidance, chosen.truncation, is_shown
        )
        pictures.gif(frames, chosen.out)
        _write(f"{chosen.out}: out of the mask in {len(frames) - 1} steps, seed {one.seed}")
        return
    side = generator.image_size
    pictures.check_grid(one.num, side, side)
    with step_bar(generator.num_calls(one.num, config), is_shown) as advance:
        parts = list(generator.draw(one.condition, one.num, one.seed, config, advance))
    pictures.grid(np.concatenate(parts), chosen.out)
    many = f"{one.num} pictures of" if one.num > 1 else "a picture of"
    _write(f"{chosen.out}: {many} {side} x {side} pixels, seed {one.seed}")


def _check(chosen: argparse.Namespace) -> int:
    from cdcd.data.adapters import check_download

    findings = check_download(chosen.dataset, chosen.check)
    for finding in findings:
        _write(f"{'ok     ' if finding.is_fine else 'MISSING'} {finding.text}")
    num_missing = sum(not finding.is_fine for finding in findings)
    if num_missing:
        _write(f"{chosen.check}: {num_missing} of {len(findings)} parts need attention")
        return 1
    _write(f"{chosen.check}: complete as far as a look at its files can tell")
    return 0


def _presets(chosen: argparse.Namespace) -> None:
    from cdcd import presets

    match chosen.action:
        case "list":
            known = presets.list_presets()
            width = max(map(len, known), default=0)
            for name, comment in known.items():
                _write(f"{name:<{width}}  {comment.partition('. ')[0].rstrip('.')}")
        case "show":
            _write(presets.show(chosen.name))
        case "apply":
            presets.apply(chosen.names, chosen.params)
            _write(f"{chosen.params}: now {' + '.join(chosen.names)}")


def _reproduced(chosen: argparse.Namespace) -> int:
    from cdcd.reproduce import reproduced

    found, closing = reproduced(Path(), chosen.against, chosen.datasets)
    for one in found:
        _write(str(one))
    _write(closing)
    return 0 if all(one.verdict == "same" for one in found) else 1


def run(chosen: argparse.Namespace) -> int:
    """Run the chosen subcommand and return its exit code."""
    match chosen.command:
        case "generate":
            return _generate(chosen)
        case "ingest":
            return _check(chosen)
        case "doctor":
            from cdcd.doctor import report

            _write(report())
        case "presets":
            _presets(chosen)
        case "sync":
            from cdcd.tracking import sync

            sent = sync()
            _write(f"sent {len(sent)} runs" if sent else "nothing is waiting in data/spool")
        case "rollback":
            from cdcd.promotion import rollback

            done = rollback(chosen.name, chosen.to)
            before = f", before: {done['replaced']}" if done["replaced"] else ""
            _write(f"{done['name']}: champion is version {done['version']}{before}")
        case "reproduced":
            return _reproduced(chosen)
    return 0


class _TerminatedError(BaseException):
    """SIGTERM; like an interruption no error to be handled on the way."""


@contextmanager
def _terminating_cleanly() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that no half-written file stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `cdcd`: 0, or 1 with one line on stderr, 2 for a wrong command line.

    `CDCD_DEBUG=1` shows the traceback as well.
    """
    chosen = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        with _terminating_cleanly():
            if chosen.command != "doctor":  # which tells what is wrong with them
                load_env()
            return run(chosen)
    except KeyboardInterrupt:
        sys.stderr.write("cdcd: interrupted\n")
        return 130
    except _TerminatedError:
        sys.stderr.write("cdcd: terminated\n")
        return 143
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"cdcd: {chosen.command} needs the package {error.name}, which is not installed; "
            "install everything with `make run` or `pip install 'cdcd[all]'`\n"
        )
        return 1
    except (ValueError, OSError) as error:
        if os.environ.get("CDCD_DEBUG") == "1":
            traceback.print_exc()
        sys.stderr.write(f"cdcd: {' '.join(str(error).split()) or type(error).__name__}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
