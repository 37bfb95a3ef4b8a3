"""The whole row of stages: `dvc repro --single-item` for each, one pipeline at a time.

Runs plainly, or as a Prefect flow with a task per stage where `PREFECT_API_URL` names a server that
answers. DVC alone decides what is stale; a stage is reported as ran, unchanged or restored.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from cdcd.config import lay_over, load_params, parse_params
from cdcd.data.files import atomic_path
from flows.stage import DATA, PIPELINE_RUN, STAGES, guarded, prefect_url, write

Result = TypeVar("Result")
Outcome = Literal["ran", "unchanged", "restored"]
LOCK = Path(".dvc") / "tmp" / "cdcd-pipeline.lock"
PARAMS = Path("params.yaml")
BEFORE = LOCK.with_name("params-before.yaml")
DURING = LOCK.with_name("params-during.yaml")
"""The params.yaml that comes back after a run with changes, and what stood there meanwhile."""
BUSY = 75  # EX_TEMPFAIL: try again later
BUSY_SIGNS = ("is busy, it is being blocked by", "Unable to acquire lock")
BUSY_POLL_SECONDS = 15.0
PROGRESS_SECONDS = 30.0
DVC = (sys.executable, "-m", "dvc")
logger = logging.getLogger(__name__)


class BusyError(RuntimeError):
    """Another pipeline or DVC command works in this folder; try again later."""


class StageFailedError(ValueError):
    """A stage ended with an error; its own line says which.

    Attributes:
        stage: `name@dataset`, or DVC's command where no stage was at work.
        lines: what it printed.
    """

    def __init__(self, message: str, stage: str, lines: list[str]) -> None:
        super().__init__(message)
        self.stage = stage
        self.lines = lines


@dataclass(frozen=True)
class Done:
    """What happened to one stage."""

    stage: str
    outcome: Outcome
    seconds: float


@contextlib.contextmanager
def held(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock; it is freed by the system even if this process is killed.

    Raises:
        BusyError: another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"one {what} at a time: {lock} is held; try again later") from None
        yield


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Hold the pipeline's lock, with the params.yaml that belongs here.

    Raises:
        BusyError: another process holds it.
    """
    with held(LOCK, "pipeline"):
        restore_params()
        yield


def patiently(call: Callable[[], Result], patience_seconds: float) -> Result:
    """Call again while DVC or another pipeline is busy, for as long as the patience lasts.

    Raises:
        BusyError: it is still busy then.
    """
    until = time.monotonic() + patience_seconds
    while True:
        try:
            return call()
        except BusyError as error:
            left = until - time.monotonic()
            if left <= 0:
                raise
            wait = min(BUSY_POLL_SECONDS, left)
            logger.info("%s; waiting %.0f s of the %.0f s left", error, wait, left)
            time.sleep(wait)


@contextlib.contextmanager
def changed_params(changes: Mapping[str, Any]) -> Iterator[None]:
    """Run with other values in params.yaml; the file comes back byte for byte.

    DVC takes its parameters from that file alone. What is changed is kept in its run cache, so
    coming back to the former values restores the former outputs. A run that is killed leaves the
    former file beside the lock, where the next pipeline finds it.

    Args:
        changes: values by dotted key, such as {"train.num_steps": 2000}.

    Raises:
        ConfigError: an unknown parameter or a value that breaks a rule; nothing is changed.
    """
    if not changes:
        yield
        return
    tree = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    for key, value in changes.items():
        tree = lay_over(tree, _nested(key, value))
    parse_params(tree, "the run's changes")
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    written = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode()
    # In this order, so that a kill at any moment leaves enough to tell what came from whom.
    for path, content in ((DURING, written), (BEFORE, PARAMS.read_bytes()), (PARAMS, written)):
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    try:
        yield
    finally:
        restore_params()


def restore_params() -> None:
    """Bring back the params.yaml of before a run with changes, unless a person edited it since."""
    if not BEFORE.is_file():
        return
    if not PARAMS.is_file() or PARAMS.read_bytes() == DURING.read_bytes():
        with atomic_path(PARAMS) as temporary:
            temporary.write_bytes(BEFORE.read_bytes())
    elif PARAMS.read_bytes() != BEFORE.read_bytes():
        logger.warning("%s was edited during a run with changes and stays as it is", PARAMS)
    BEFORE.unlink()
    DURING.unlink(missing_ok=True)


def _nested(key: str, value: Any) -> dict[str, Any]:
    """`a.b` and a value -> {"a": {"b": value}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def classify(lines: Iterable[str]) -> Outcome:
    """What DVC's lines say about a stage."""
    text = "\n".join(lines)
    if "Running stage" in text:
        return "ran"
    if "is cached - skipping run" in text or "Checking out" in text:
        return "restored"
    return "unchanged"


def stale_stages() -> set[str]:
    """Every `stage@dataset` that `dvc status` finds out of date by itself.

    A stage that only follows one of them is not among them yet.

    Raises:
        BusyError: another DVC command is at work.
        StageFailedError: DVC cannot read the pipeline.
    """
    found = subprocess.run([*DVC, "status", "--json"], capture_output=True, text=True, check=False)
    _raise_on_failure("status", found.returncode, found.stderr.splitlines())
    return set(json.loads(found.stdout or "{}"))


def _raise_on_failure(what: str, code: int, lines: list[str]) -> None:
    if code == 0:
        return
    text = " ".join(" ".join(lines[-5:]).split())
    # A line for each process that is in the way may follow.
    if any(sign in line for line in lines for sign in BUSY_SIGNS):
        raise BusyError(f"{what}: DVC is busy here; try again later")
    raise StageFailedError(f"{what}: DVC ended with {code}: {text[-300:]}", what, lines)


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


def _without_most_progress(lines: Iterable[str]) -> Iterator[str]:
    """All lines, but of the many states of a progress bar one in a while: a log keeps each."""
    shown = -PROGRESS_SECONDS
    for line in lines:
        if "%|" in line:
            if time.monotonic() - shown < PROGRESS_SECONDS:
                continue
            shown = time.monotonic()
        yield line


def run_one(stage: str, say: Callable[[str], None] = write, *, force: bool = False) -> Done:
    """Bring one stage up to date, streaming DVC's and the stage's lines.

    Args:
        stage: `name@dataset`.
        say: receives each line.
        force: run it even if nothing it depends on has changed.

    Raises:
        BusyError: another DVC command is at work.
        StageFailedError: the stage failed.
    """
    started = time.monotonic()
    # In this process's own session, so that Ctrl-C reaches the stage as well.
    process = subprocess.Popen(
        [*DVC, "repro", "--single-item", *(["--force"] if force else []), stage],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in _without_most_progress(process.stdout):
            lines.append(line.rstrip("\n"))
            if lines[-1].strip():
                say(lines[-1])
        _raise_on_failure(stage, process.wait(), lines)
    except BaseException:
        if process.poll() is None:
            _interrupt_tree(process)
        raise
    return Done(stage, classify(lines), time.monotonic() - started)


def push(say: Callable[[str], None] = write) -> bool:
    """Send what dvc.lock names to the default remote; whether there is one.

    Raises:
        BusyError: another DVC command is at work.
        StageFailedError: the remote did not take it.
    """
    named = subprocess.run(
        [*DVC, "config", "core.remote"], capture_output=True, text=True, check=False
    )
    if not named.stdout.strip():
        return False
    with only_one():
        done = subprocess.run(
            [*DVC, "push", "--quiet"], capture_output=True, text=True, check=False
        )
    _raise_on_failure(
        "push", done.returncode, [*done.stdout.splitlines(), *done.stderr.splitlines()]
    )
    say(f"pushed to the remote {named.stdout.strip()}")
    return True


def table(done: list[Done]) -> str:
    """What happened, as a Markdown table."""
    rows = [f"| {d.stage} | {d.outcome} | {d.seconds:.1f} |" for d in done]
    return "\n".join(["| stage | outcome | seconds |", "|---|---|---:|", *rows])


@dataclass(frozen=True)
class Step:
    """A stage of the plan.

    Attributes:
        stage: `name@dataset`.
        is_settled: known to be up to date, so that DVC, at seconds a stage, need not be asked.
    """

    stage: str
    is_settled: bool = False

    def take(self, say: Callable[[str], None] = write) -> Done:
        """Bring the stage up to date; see `run_one`."""
        if self.is_settled:
            return Done(self.stage, "unchanged", 0.0)
        return run_one(self.stage, say)


def plan(datasets: Iterable[str], stale: set[str]) -> list[Step]:
    """Every stage of the datasets in reading order; empty when none of them is out of date.

    The stages before the first one of a dataset that is out of date are settled: nothing that they
    depend on comes after them.
    """
    wanted = list(datasets)
    first = {
        dataset: next((i for i, s in enumerate(STAGES) if f"{s}@{dataset}" in stale), len(STAGES))
        for dataset in wanted
    }
    if all(index == len(STAGES) for index in first.values()):
        return []
    return [
        Step(f"{stage}@{dataset}", index < first[dataset])
        for index, stage in enumerate(STAGES)
        for dataset in wanted
    ]


def _plain(steps: list[Step]) -> list[Done]:
    return [step.take() for step in steps]


@dataclass(frozen=True)
class Patience:
    """How a run without anybody watching deals with trouble."""

    retries: int = 0
    retry_delay_seconds: float = 0.0
    busy_seconds: float = 0.0


def run_as_tasks(steps: list[Step], patience: Patience = Patience()) -> list[Done]:
    """Bring stages up to date as tasks of the Prefect flow that this is called in.

    A task that is tried again goes on from the stage's checkpoint and finished shards, because DVC
    calls the stage again and the stage finds them.

    Args:
        steps: from `plan`.
        patience: with failures and with a busy DVC.
    """
    from prefect import get_run_logger, task
    from prefect.cache_policies import NO_CACHE
    from prefect.runtime import flow_run
    from prefect.states import Completed

    @task(
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=patience.retries,
        retry_delay_seconds=patience.retry_delay_seconds,
        retry_condition_fn=_failed_in_a_stage,
    )
    def one(step: Step) -> Any:
        say = get_run_logger().info
        os.environ[PIPELINE_RUN] = flow_run.name or ""
        done.append(patiently(lambda: step.take(say), patience.busy_seconds))
        # The state's name is what the UI shows of a task at first sight.
        return Completed(name=done[-1].outcome.capitalize())

    done: list[Done] = []
    for step in steps:
        one.with_options(task_run_name=step.stage)(step)
    return done


def _failed_in_a_stage(task: Any, run: Any, state: Any) -> bool:
    try:
        state.result()
    except StageFailedError:
        return True
    except BaseException:
        return False
    return False


def _as_flow(steps: list[Step]) -> list[Done]:
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "cdcd,flows")
    from prefect import flow
    from prefect.artifacts import create_markdown_artifact

    @flow(name="cdcd-pipeline", persist_result=False)
    def pipeline() -> None:
        results.extend(run_as_tasks(steps))
        create_markdown_artifact(table(results), key="cdcd-pipeline")

    results: list[Done] = []
    pipeline()
    return results


def run_pipeline(
    datasets: Iterable[str],
    changes: Mapping[str, Any] | None = None,
    run: Callable[[list[Step]], list[Done]] | None = None,
) -> list[Done]:
    """Bring every stage of the datasets up to date.

    Args:
        datasets: their names.
        changes: see `changed_params`.
        run: brings stages up to date; None for plainly, or as a flow where a server answers.

    Returns:
        What happened to each stage; empty when nothing had changed.

    Raises:
        BusyError: another pipeline or DVC command is at work.
        ConfigError: see `changed_params`.
        StageFailedError: a stage failed; the ones after it did not run.
    """
    with only_one(), changed_params(changes or {}):
        steps = plan(datasets, stale_stages())
        if not steps:
            return []
        run = run or (_as_flow if prefect_url() else _plain)
        return run(steps)


def main(arguments: Iterable[str] | None = None) -> int:
    """`python -m flows.pipeline [--datasets a b]`: 0, 1 after a failure, 75 when busy."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=__doc__)
    parser.add_argument("--datasets", nargs="*", help="default: those of params.yaml")
    chosen = parser.parse_args(None if arguments is None else list(arguments))

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
