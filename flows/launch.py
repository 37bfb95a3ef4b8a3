"""Starts a stage as several processes of this machine with torchrun, and ends them together.

How many is a setting of the machine, CDCD_TRAIN_PROCESSES, not a parameter: results are the same up
to the order of summation, so it makes nothing stale and any number goes on from any checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROCESSES = "CDCD_TRAIN_PROCESSES"
LOST = 74  # EX_IOERR: another process ended first; what it says is what matters


class ProcessesFailedError(ValueError):
    """One of the processes ended with an error; all others were ended too."""


def num_processes() -> int:
    """`CDCD_TRAIN_PROCESSES`, 1 where it is unset.

    Raises:
        ValueError: it is no whole number from 1 on.
    """
    text = os.environ.get(PROCESSES) or "1"
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise ValueError(
            f"{PROCESSES} must be a whole number of processes, 1 or more: got {text!r}; mend or "
            "unset it"
        )
    return int(text)


def is_rank() -> bool:
    """Whether torchrun, or what speaks its language, started this process as one of several."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def launch(module: str, arguments: Sequence[str], num: int) -> None:
    """Run `python -m module arguments` as `num` processes that find each other, until all ended.

    An interruption of this process interrupts all of them; each looks itself whether this one is
    still alive. On a CPU they share its cores, unless OMP_NUM_THREADS is set.

    Raises:
        KeyboardInterrupt: this process was interrupted.
        ProcessesFailedError: what the first process to fail said.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # Its reports say in thirty lines what we say in one.
    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addHandler(logging.NullHandler())
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // num)))
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # they never leave this machine
    with tempfile.TemporaryDirectory(prefix="cdcd-torchrun-") as logs:
        options = ["--standalone", "--nproc-per-node", str(num), "--log-dir", logs]
        try:
            run(parse_args([*options, "-m", module, *arguments]))
        except SignalException:
            raise KeyboardInterrupt from None
        except ChildFailedError as error:
            raise ProcessesFailedError(_first_cause(error.failures, num)) from None


def _first_cause(failures: Mapping[int, Any], num: int) -> str:
    """What ended first, in one line: by a signal, by its own error, else as a consequence."""

    def order(item: tuple[int, Any]) -> tuple[bool, bool, int]:
        failure = item[1]
        return failure.exitcode >= 0, failure.exitcode == LOST, failure.timestamp

    rank, failure = min(failures.items(), key=order)
    if failure.exitcode < 0:
        return (
            f"all {num} processes must stay alive: process {rank} was ended by "
            f"{failure.signal_name()}; run again to go on from the last checkpoint"
        )
    found = failure.error_file_data.get("message")
    if isinstance(found, Mapping) and isinstance(found.get("message"), str):
        return str(found["message"])
    return (
        f"process {rank} of {num} ended with {failure.exitcode}; what it wrote above says why, or "
        "CDCD_DEBUG=1 does"
    )


def tell(line: str) -> None:
    """Say why this process ends: to the one that started it, and nowhere twice."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        sys.stderr.write(f"{line}\n")
        return
    told = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({"message": told}), encoding="utf-8")


def hurry_no_more() -> None:
    """Let an ending process end: a second signal now would only interrupt the tidying up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_with_parent(interval_seconds: float = 1.0) -> None:
    """End this process when the one that started it is gone, however that happened."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval_seconds)
        os._exit(LOST)  # the main thread may wait for a process that is gone as well

    threading.Thread(target=watch, daemon=True).start()
