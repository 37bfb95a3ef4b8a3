"""Says where the results of `make run` are, or that there was nothing to do."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cdcd.data.samples import TASKS
from flows.stage import DATA, STAGES, folder, guarded, write

_WIDTH = max(map(len, STAGES)) + max(map(len, TASKS)) + 2
"""Of the column of `stage@dataset`."""


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _stages(datasets: list[str], since: float) -> tuple[list[str], int]:
    """Lines on what the stages took when they last ran, and how many ran since."""
    lines, ran = [], 0
    for dataset in datasets:
        for stage in STAGES:
            took = _read(DATA / "runs" / f"{stage}@{dataset}.json")
            if took is None:
                continue
            fresh = took["finished"] >= since
            ran += fresh
            lines.append(
                f"  {stage + '@' + dataset:<{_WIDTH}}{'ran' if fresh else 'unchanged':<11}"
                f"{took['seconds']:>8.1f} s{took['peak_memory_mb'] / 1024:>7.1f} GB"
            )
    return lines, ran


def _results(dataset: str) -> list[str]:
    lines = [f"Results on {dataset}:"]
    metrics = DATA / "metrics" / f"{dataset}.json"
    report = folder("reports", dataset)
    lines.append(f"  scores table       {metrics} (figure: {metrics.with_suffix('.png')})")
    pages = sorted(report.glob("*.html"))
    if pages:
        kind = "hear" if TASKS[dataset] == "dance2music" else "see "
        lines.append(f"  report to {kind}     {pages[0]}")
    videos = sorted((folder("generated", dataset) / "previews").glob("*.mp4"))
    if videos:
        lines.append(f"  videos with music  {videos[0].parent}/*.mp4 ({len(videos)} files)")
    pictures = sorted((folder("generated", dataset) / "previews").glob("*.gif"))
    if pictures:
        where = pictures[0].parent
        lines.append(f"  pictures           {where}/ (samples.png, {pictures[0].name})")
    registered = _read(DATA / "registered" / f"{dataset}.json")
    if registered:
        aliases = ", ".join(registered["aliases"])
        lines.append(
            f"  registered model   {registered['name']} version {registered['version']} ({aliases})"
        )
        if "promotion" in registered:
            lines.append(f"  promotion          {registered['promotion']}")
    return lines


def closing(datasets: list[str], since: float) -> str:
    """The closing words of `make run` that started at `since` (seconds of the epoch)."""
    lines, ran = _stages(datasets, since)
    elapsed = time.time() - since
    if ran == 0:
        head = [f"Nothing to do: every stage is up to date ({elapsed:.0f} s)."]
    else:
        head = ["Stages (time and peak memory of the last execution):", *lines]
    for dataset in datasets:
        head += _results(dataset)
    head.append("MLflow UI:           make ui   (then open http://127.0.0.1:5000)")
    if ran:
        minutes, seconds = divmod(round(elapsed), 60)
        head.append(f"Done: {ran} stages ran, {minutes} min {seconds} s in all.")
    return "\n".join(head)


def main(arguments: Iterable[str] | None = None) -> int:
    """`python -m flows.summary --since SECONDS [--datasets a b]`."""
    parser = argparse.ArgumentParser(prog="python -m flows.summary", description=__doc__)
    parser.add_argument("--since", type=float, required=True, help="when the run began")
    parser.add_argument("--datasets", nargs="*", help="default: those of params.yaml")
    chosen = parser.parse_args(None if arguments is None else list(arguments))

    def call() -> None:
        from cdcd.config import load_params

        write(closing(chosen.datasets or list(load_params().datasets), chosen.since))

    return guarded(call, "summary")


if __name__ == "__main__":
    sys.exit(main())
