"""The `cdcd` command: `generate` music for a video, `ingest --check`, `doctor`, `presets`.

Everything heavy is imported by the subcommand that needs it, so `cdcd --help` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

EPILOG = """examples:
  cdcd generate --video dance.mp4 --out with_music.mp4
  cdcd generate --video dance.mp4 --out music.wav --seed 3 --model models:/cdcd-dance2music@champion
  cdcd ingest --check downloads/aist --dataset aist
  cdcd presets apply aist/demo paper
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line, without importing anything heavy."""
    parser = argparse.ArgumentParser(
        prog="cdcd",
        description="Discrete contrastive diffusion: music for dance videos.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="put generated music on a dance video")
    generate.add_argument("--video", required=True, type=Path, help="any dance video")
    generate.add_argument(
        "--out",
        required=True,
        type=Path,
        help="file to write: .mp4 (the video with music) or .wav; missing folders are made",
    )
    generate.add_argument(
        "--model",
        default="data/models/aist",
        help="folder of a trained model, or models:/NAME@ALIAS of the registry "
        "(default: %(default)s under the current folder)",
    )
    generate.add_argument(
        "--codec",
        type=Path,
        help="folder of its codec (default: data/codecs/ with the name of the model's folder)",
    )
    generate.add_argument("--seed", type=int, default=0, help="same seed, same music (default: 0)")
    generate.add_argument(
        "--guidance", type=float, help="weight of the dance, 1 is none (default: the model's)"
    )
    generate.add_argument(
        "--truncation", type=float, help="kept probability mass, 0 to 1 (default: the model's)"
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
    return parser


def _write(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def _model_folders(model: str, codec: Path | None) -> tuple[Path, Path]:
    if model.startswith("models:"):
        from cdcd.tracking import download_model

        artifacts = download_model(model)
        return artifacts["model"], codec or artifacts["codec"]
    folder = Path(model)
    return folder, codec or folder.parent.parent / "codecs" / folder.name


def _generate(chosen: argparse.Namespace) -> None:
    if chosen.out.suffix.lower() not in {".wav", ".mp4"}:
        raise ValueError(f"--out must end in .wav or .mp4: got {chosen.out}; rename it")
    if not chosen.video.is_file():
        raise ValueError(f"--video must be a file: got {chosen.video}; check the path")
    if chosen.out.resolve() == chosen.video.resolve():
        raise ValueError(f"--out must differ from --video: got {chosen.out}; choose another name")
    if chosen.truncation is not None and not 0 < chosen.truncation <= 1:
        raise ValueError(f"--truncation must lie in (0, 1]: got {chosen.truncation}; use 0.86")
    if chosen.guidance is not None and not 0 <= chosen.guidance < float("inf"):
        raise ValueError(
            f"--guidance must be a finite number from 0 on: got {chosen.guidance}; use 1.5"
        )
    if not 0 <= chosen.seed < 2**63:
        raise ValueError(f"--seed must lie in 0 .. 2**63 - 1: got {chosen.seed}; use 0")
    model_dir, codec_dir = _model_folders(chosen.model, chosen.codec)
    for option, folder in (("--model", model_dir), ("--codec", codec_dir)):
        if not folder.is_dir():
            raise ValueError(
                f"{option} must be the folder of a trained {option[2:]}: got {folder}; train it "
                "with `make run`, run from the repository's root, or name another"
            )
    from cdcd.tasks import load_generator

    summary = load_generator(model_dir, codec_dir).generate_for_video(
        chosen.video,
        chosen.out,
        seed=chosen.seed,
        guidance=chosen.guidance,
        truncation=chosen.truncation,
        progress=not chosen.no_progress,
    )
    _write(f"{chosen.out}: {summary['duration_seconds']:.2f} s of music, seed {chosen.seed}")


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


def run(chosen: argparse.Namespace) -> int:
    """Run the chosen subcommand and return its exit code."""
    match chosen.command:
        case "generate":
            _generate(chosen)
        case "ingest":
            return _check(chosen)
        case "doctor":
            from cdcd.doctor import report

            _write(report())
        case "presets":
            _presets(chosen)
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
