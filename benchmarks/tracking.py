"""What tracking costs a training: with it and without it, in alternating rounds.

`python -m benchmarks.tracking --dataset imagenet --steps 100 --rounds 20`, run where the pipeline
ran up to `featurize`, trains that dataset's denoiser with its parameters from params.yaml: once
without tracking, once into a sqlite store of its own with losses every `train.log_every` steps and
system metrics, in turn. Validation, checkpoints and previews are left out: they are work of the
training. Two numbers come out: the share of the time that passes inside the tracker, which another
process on the machine hardly changes, and the ratio of whole rounds, which it does. Prints one line
of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from benchmarks.training import train_in_vain
from cdcd.config import Params, load_params
from cdcd.tasks import training
from cdcd.tracking import MlflowTracker, NullTracker, open_run

NEVER = 10**9


class Timed(NullTracker):
    """Passes numbers on to a tracker and adds up what that takes; nothing is previewed for it."""

    def __init__(self, tracker: MlflowTracker | NullTracker) -> None:
        self._tracker = tracker
        self.run_id = tracker.run_id
        self.wall = self.cpu = 0.0

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Pass on."""
        with self._timed():
            self._tracker.log_metrics(metrics, step)

    def flush(self) -> None:
        """Pass on."""
        with self._timed():
            self._tracker.flush()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


def one_round(params: Params, dataset: str, *, is_tracked: bool) -> dict[str, float]:
    """Train once; seconds of the whole, on the clock and of the processor, and inside the tracker.

    Opening and ending a run happen once however long it is and are told apart, as `open`.
    """
    begun = time.perf_counter()
    run = (
        open_run("train", dataset, {"train": params.train.model_dump()}, has_system_metrics=True)
        if is_tracked
        else nullcontext(NullTracker())
    )
    with run as opened:
        tracker = Timed(opened)
        opening = time.perf_counter() - begun
        wall, cpu = time.perf_counter(), time.process_time()
        train_in_vain(params, dataset, tracker)
        tracker.flush()
        return {
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "inside_wall": tracker.wall,
            "inside_cpu": tracker.cpu,
            "open": opening,
        }


def compare(params: Params, dataset: str, rounds: int) -> dict[str, Any]:
    """Medians over pairs of rounds; which of a pair comes first alternates."""
    shares: list[Mapping[str, float]] = []
    one_round(params, dataset, is_tracked=True)  # creates the store, warms everything
    for index in range(rounds):
        kinds = (True, False) if index % 2 else (False, True)
        found = {kind: one_round(params, dataset, is_tracked=kind) for kind in kinds}
        on, off = found[True], found[False]
        shares.append(
            {
                "inside_share": on["inside_wall"] / on["wall"],
                "inside_share_cpu": on["inside_cpu"] / on["cpu"],
                "ratio_wall": on["wall"] / off["wall"],
                "ratio_cpu": on["cpu"] / off["cpu"],
                "seconds": on["wall"],
                "open_seconds": on["open"],
            }
        )
    return {name: spread([one[name] for one in shares]) for name in shares[0]}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": round(median, 4), "low": round(low, 4), "high": round(high, 4)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracking")
    parser.add_argument("--dataset", default="imagenet")
    parser.add_argument("--steps", type=int, default=100, help="of training in each round")
    parser.add_argument("--rounds", type=int, default=20, help="pairs of rounds, at least 2")
    chosen = parser.parse_args()
    params = load_params().of(chosen.dataset)
    rare = {"validate_every": NEVER, "save_every": NEVER, "preview_every": NEVER}
    train = params.train.model_copy(update={"num_steps": chosen.steps, **rare})
    params = params.model_copy(update={"train": train})
    training.NUM_WATCHED = 1  # the last step always validates
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        found = compare(params, chosen.dataset, chosen.rounds)
    about = {"dataset": chosen.dataset, "steps": chosen.steps, "log_every": train.log_every}
    sys.stdout.write(json.dumps({**about, "rounds": chosen.rounds, **found}) + "\n")


if __name__ == "__main__":
    main()
