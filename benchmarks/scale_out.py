"""What two training processes gain on one machine's cores: with one and with two, in turn.

`python -m benchmarks.scale_out --dataset imagenet --steps 40 --rounds 6`, run where the pipeline
ran up to `featurize`, trains that dataset's denoiser with its parameters from params.yaml: in one
process with all threads, then in `--processes` that share the threads and the batch. The time of a
step is taken between two logged steps; the first ones, which warm up, are left out. Prints one line
of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.training import train_in_vain
from cdcd.config import Params, load_params
from cdcd.tasks import training
from cdcd.tracking import NullTracker
from cdcd.training.ranks import ALONE, Ranks, joined

NEVER = 10**9
LOG_EVERY = 10


class Speed(NullTracker):
    """Keeps the tokens per second of every logged step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Keep the speed."""
        if "tokens_per_second" in metrics:
            self.seen.append(metrics["tokens_per_second"])


def one_round(params: Params, dataset: str, ranks: Ranks, threads: int) -> float:
    """Train once with so many threads in this process; median tokens per second, nan elsewhere."""
    torch.set_num_threads(threads)
    speed = Speed()
    before_the_end = params.train.num_steps - 1  # neither a model nor pictures
    train_in_vain(params, dataset, speed, stop_after=before_the_end, ranks=ranks)
    return statistics.median(speed.seen[1:]) if ranks.is_first else float("nan")


def play(rank: int, chosen: argparse.Namespace, port: int, path: Path) -> None:
    """The part of one process; the first one trains alone while the others wait."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(chosen.processes))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    params = load_params().of(chosen.dataset)
    rare = {"validate_every": NEVER, "save_every": NEVER, "preview_every": NEVER}
    settings = {"num_steps": chosen.steps + 1, "log_every": LOG_EVERY, **rare}
    params = params.model_copy(update={"train": params.train.model_copy(update=settings)})
    training.NUM_WATCHED = 1  # the last step always validates
    threads, found = os.cpu_count() or 1, []
    with joined() as ranks:
        for _ in range(chosen.rounds):
            ranks.wait()
            alone = one_round(params, chosen.dataset, ALONE, threads) if ranks.is_first else 0.0
            ranks.wait()
            each = max(1, threads // chosen.processes)
            together = one_round(params, chosen.dataset, ranks, each)
            found.append((alone, together))
    if rank == 0:
        path.write_text(json.dumps(found))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_out")
    parser.add_argument("--dataset", default="imagenet")
    parser.add_argument("--steps", type=int, default=40, help="of training in each round")
    parser.add_argument("--rounds", type=int, default=6, help="pairs of rounds, at least 2")
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        torch.multiprocessing.spawn(play, (chosen, port, path), nprocs=chosen.processes)
        found = json.loads(path.read_text())
    alone, together = ([round(x) for x in column] for column in zip(*found, strict=True))
    ratios = sorted(b / a for a, b in found)
    result = {
        "dataset": chosen.dataset,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "tokens_per_second_alone": alone,
        "tokens_per_second_together": together,
        "ratio": {
            "median": round(statistics.median(ratios), 3),
            "low": round(ratios[0], 3),
            "high": round(ratios[-1], 3),
        },
    }
    sys.stdout.write(f"{json.dumps(result)}\n")


if __name__ == "__main__":
    main()
