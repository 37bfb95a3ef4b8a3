"""The whole row of stages: `dvc repro --single-item` for each, one pipeline at a time.

Runs plainly, or as a Prefect flow with a task per stage where `PREFECT_API_URL` names a server that
answers. DVC alone decides what is stale; a stage is reported as ran, unchanged or restored.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cdcd.config import load_params
from flows.stage import DATA, STAGES, guarded, prefect_url, prepare_environment, write

Outcome = Literal["ran", "unchanged", "restored"]
LOCK = Path(".dvc") / "tmp" / "cdcd-pipeline.lock"
BUSY = 75  # EX_TEMPFAIL: try again later
DVC = (sys.executable, "-m", "dvc")


class BusyError(RuntimeError):
    """Another pipeline or DVC command works in this folder; try again later."""


class StageFailedError(ValueError):
    """A stage ended with an error; its own line says which."""


@dataclass(frozen=True)
class Done:
    """What happened to one stage."""

    stage: str
    outcome: Outcome
    seconds: float


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Hold the pipeline's lock; it is freed by the system even if this process is killed.

    Raises:
        BusyError: another process holds it.
    """
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"one pipeline at a time: {LOCK} is held; try again later") from None
        yield


def classify(lines: Iterable[str]) -> Outcome:
    """What DVC's lines say about a stage."""
    text = "\n".join(lines)
    if "Running stage" in text:
        return "ran"
    if "is cached - skipping run" in text or "Checking out" in text:
        return "restored"
    return "unchanged"


def is_clean() -> bool:
    """Whether `dvc status` finds every stage up to date.

    Raises:
        BusyError: another DVC command is at work.
        StageFailedError: DVC cannot read the pipeline.
    """
    found = subprocess.run([*DVC, "status", "--json"], capture_output=True, text=True, check=False)
    _raise_on_failure("status", found.returncode, found.stderr.splitlines())
    return json.loads(found.stdout or "{}") == {}


def _raise_on_failure(what: str, code: int, lines: list[str]) -> None:
    if code == 0:
        return
    text = " ".join(" ".join(lines[-5:]).split())
    if "is busy" in text or "Unable to acquire lock" in text:
        raise BusyError(f"{what}: DVC is busy here; try again later")
    raise StageFailedError(f"{what}: DVC ended with {code}: {text[-300:]}")


def _interrupt_tree(process: subprocess.Popen[str]) -> None:
    # Killing DVC alone would leave the stage writing. A command that ignores Ctrl-C, as what was
    # started in a shell's background does, is told by SIGTERM, and at last not asked.
    import psutil  # type: ignore[import-untyped]

    me = psutil.Process(process.pid)
    alive = [*me.children(recursive=True), me]
    for number, seconds in ((signal.SIGINT, 10), (signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        for one in alive:
            with contextlib.suppress(psutil.Error):
                one.send_signal(number)
        _, alive = psutil.wait_procs(alive, timeout=seconds)
        if not alive:
            break
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)


def run_one(stage: str, say: Callable[[str], None] = write) -> Done:
    """Bring one stage up to date, streaming DVC's and the stage's lines.

    Args:
        stage: `name@dataset`.
        say: receives each line.

    Raises:
        BusyError: another DVC command is at work.
        StageFailedError: the stage failed.
    """
    started = time.monotonic()
    # In this process's own session, so that Ctrl-C reaches the stage as well.
    process = subprocess.Popen(
        [*DVC, "repro", "--single-item", stage],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            say(lines[-1])
        _raise_on_failure(stage, process.wait(), lines)
    except BaseException:
        if process.poll() is None:
            _interrupt_tree(process)
        raise
    return Done(stage, classify(lines), time.monotonic() - started)


def table(done: list[Done]) -> str:
    """What happened, as a Markdown table."""
    rows = [f"| {d.stage} | {d.outcome} | {d.seconds:.1f} |" for d in done]
    return "\n".join(["| stage | outcome | seconds |", "|---|---|---:|", *rows])


def stages_in_order(datasets: Iterable[str]) -> list[str]:
    """Every `stage@dataset`, stage by stage."""
    wanted = list(datasets)
    return [f"{stage}@{dataset}" for stage in STAGES for dataset in wanted]


def _plain(stages: list[str]) -> list[Done]:
    return [run_one(stage) for stage in stages]


def _as_flow(stages: list[str]) -> list[Done]:
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "cdcd,flows")
    from prefect import flow, get_run_logger, task
    from prefect.artifacts import create_markdown_artifact
    from prefect.cache_policies import NO_CACHE

    @task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{stage}")
    def one(stage: str) -> Done:
        return run_one(stage, get_run_logger().info)

    @flow(name="cdcd-pipeline", persist_result=False)
    def pipeline() -> None:
        results.extend(one(stage) for stage in stages)
        create_markdown_artifact(table(results), key="cdcd-pipeline")

    results: list[Done] = []
    pipeline()
    return results


def run_pipeline(datasets: Iterable[str]) -> list[Done]:
    """Bring every stage of the datasets up to date.

    Returns:
        What happened to each stage; empty when nothing had changed.

    Raises:
        BusyError: another pipeline or DVC command is at work.
        StageFailedError: a stage failed; the ones after it did not run.
    """
    with only_one():
        if is_clean():
            return []
        stages = stages_in_order(datasets)
        return _as_flow(stages) if prefect_url() else _plain(stages)


def main(arguments: Iterable[str] | None = None) -> int:
    """`python -m flows.pipeline [--datasets a b]`: 0, 1 after a failure, 75 when busy."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=__doc__)
    parser.add_argument("--datasets", nargs="*", help="default: those of params.yaml")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    prepare_environment()

    def call() -> int:
        DATA.mkdir(exist_ok=True)
        try:
            done = run_pipeline(chosen.datasets or load_params().datasets)
        except BusyError as error:
            sys.stderr.write(f"pipeline: {error}\n")
            return BUSY
        write(table(done) if done else "Nothing to do: every stage is up to date.")
        return 0

    return guarded(call, "pipeline")


if __name__ == "__main__":
    sys.exit(main())
