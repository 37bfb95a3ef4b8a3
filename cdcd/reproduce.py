"""Whether the outputs made here have the hashes that another run's dvc.lock records."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

LOCK = "dvc.lock"
NEVER_THE_SAME = ("data/run_ids/", "data/registered/")
"""Outputs that name runs and versions of one tracking store; all others are compared."""
WHY = (
    "the same code, parameters and package versions give the same hashes on the same machine; "
    "another type of CPU or another number of threads (OMP_NUM_THREADS) rounds differently"
)
Verdict = Literal["same", "differs", "not run"]


@dataclass(frozen=True)
class Compared:
    """What became of one stage.

    Attributes:
        stage: `name@dataset`.
        verdict: `not run` where the reference knows a stage that was not run here.
        outputs: paths of those that differ.
        inputs: files and parameters, no data, that differ.
    """

    stage: str
    verdict: Verdict
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()

    def __str__(self) -> str:
        line = f"{self.stage}: {self.verdict}"
        if self.outputs:
            line += f" ({', '.join(self.outputs)})"
        if self.inputs:
            line += f"; so do its inputs ({', '.join(self.inputs)})"
        return line


def read_lock(text: str, name: str) -> dict[str, Any]:
    """The stages of a dvc.lock.

    Args:
        text: its content.
        name: for the message.

    Raises:
        ValueError: it is none.
    """
    try:
        stages = yaml.safe_load(text)["stages"]
    except (yaml.YAMLError, KeyError, TypeError):
        stages = None
    if not isinstance(stages, dict):
        raise ValueError(f"{name} must be a lock file of DVC: got something else; restore it")
    return stages


def committed_lock(root: Path, revision: str) -> dict[str, Any]:
    """The stages of the dvc.lock in a commit.

    Raises:
        ValueError: there is no such commit, or it holds none.
    """
    done = subprocess.run(
        ["git", "show", f"{revision}:./{LOCK}"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = " ".join(done.stderr.split())[:200]
        raise ValueError(
            f"--against must name a commit with a {LOCK}: got {revision} ({reason}); commit the "
            f"{LOCK} of a run, or name another"
        )
    return read_lock(done.stdout, f"{revision}:{LOCK}")


def compare(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], has_run: Mapping[str, bool]
) -> Iterator[Compared]:
    """Compare each stage that the reference knows.

    Args:
        mine: stages of the lock here.
        theirs: stages of the reference.
        has_run: whether a stage ran here. Its entry in a lock may be the reference's own, as after
            a `git clone`, and then proves nothing.
    """
    for stage, reference in theirs.items():
        if stage not in mine or not has_run.get(stage):
            yield Compared(stage, "not run")
            continue
        inputs = tuple(_changed(_inputs(mine[stage]), _inputs(reference)))
        outputs = tuple(_changed(_outputs(mine[stage]), _outputs(reference)))
        yield Compared(stage, "differs" if outputs else "same", outputs, inputs)


def _changed(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    return (name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name))


def _outputs(stage: Mapping[str, Any]) -> dict[str, str]:
    found = {entry["path"]: entry.get("md5") for entry in stage.get("outs", [])}
    return {path: md5 for path, md5 in found.items() if not path.startswith(NEVER_THE_SAME)}


def _inputs(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Code and parameters; data comes from other stages and is compared there."""
    found = {
        entry["path"]: entry.get("md5")
        for entry in stage.get("deps", [])
        if not entry["path"].startswith("data/")
    }
    return found | stage.get("params", {}).get("params.yaml", {})


def reproduced(
    root: Path, revision: str = "HEAD", datasets: Iterable[str] = ()
) -> tuple[list[Compared], str]:
    """Compare the pipeline's run in a repository with the one that a commit records.

    Args:
        root: of the repository.
        revision: the commit.
        datasets: of these alone; none for all that the commit records.

    Returns:
        What became of each stage, and a closing line.

    Raises:
        ValueError: a lock is missing or no lock.
    """
    theirs = committed_lock(root, revision)
    path = root / LOCK
    if not path.is_file():
        raise ValueError(f"{path} must be there to be compared: got none; run `dvc repro` first")
    mine = read_lock(path.read_text(encoding="utf-8"), str(path))
    wanted = set(datasets) or {stage.partition("@")[2] for stage in theirs}
    theirs = {name: one for name, one in theirs.items() if name.partition("@")[2] in wanted}
    if not theirs:
        raise ValueError(
            f"--datasets must name what {revision}:{LOCK} records: got {' '.join(sorted(wanted))}"
        )
    # A stage leaves this note where it runs; DVC does not carry it elsewhere.
    has_run = {name: (root / "data" / "runs" / f"{name}.json").is_file() for name in theirs}
    found = list(compare(mine, theirs, has_run))
    return found, _closing(found, revision)


def _closing(found: list[Compared], revision: str) -> str:
    different = [one for one in found if one.verdict == "differs"]
    missing = sum(one.verdict == "not run" for one in found)
    if different:
        first = next((one for one in different if not one.inputs), None)
        reason = "code or parameters are others" if first is None else WHY
        return f"not reproduced: {len(different)} stages differ from {revision}; {reason}"
    if missing:
        return f"not reproduced: {missing} stages were not run here; run `dvc repro`"
    return f"reproduced: all {len(found)} stages have the hashes of {revision}"
