"""What two processes do together in test_ranks.py; started once for all cases."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

import torch

from cdcd.tracking import NullTracker
from cdcd.training.ranks import PeerLostError, joined
from tests.cdcd.training.tiny import Losses, make_params, run

SIZE = 2
PLAIN = {"num_steps": 5, "log_every": 1, "denoiser": {"dropout": 0.0}}
# Every way of drawing negatives, and each place where processes could come to differ.
CASES = {
    "vanilla": {"contrast": {"mode": "off"}},
    "intra": {"contrast": {"negatives": "intra", "form": "infonce", "weight": 0.1}},
    "inter": {"contrast": {"negatives": "inter", "form": "linear", "weight": 0.01}},
    "waveform": {"contrast": {"intra_unit": "waveform", "weight": 0.1}},
    "chains": {"contrast": {"chains": "parallel", "form": "linear", "weight": 0.01}},
    "chunked": {"chunk_logits": True, "denoiser": {"dropout": 0.0, "checkpoint_blocks": True}},
    # Long enough for the history of losses to decide which steps are drawn.
    "importance": {"num_steps": 24, "batch_size": 16, "diffusion": {"t_sampling": "importance"}},
    "never dropped": {"drop_motion": 0.0, "drop_video": 0.0, "drop_all": 0.0},
    "always dropped": {"drop_all": 1.0},
    "uniform": {"diffusion": {"t_sampling": "uniform"}},
    "bfloat16": {"precision": "bfloat16"},
}


def params_of(case):
    return make_params(**{**PLAIN, **CASES[case]})


def play(rank: int, port: int, folder: Path) -> None:
    """Everything that process `rank` does; results lie in the folder."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(SIZE), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    caches = folder / "caches"
    with suppress(PeerLostError), joined() as ranks:
        for case in CASES:
            tracker = Losses() if rank == 0 else NullTracker()
            run(caches, folder / case, params_of(case), tracker, ranks=ranks)
            if rank == 0:
                (folder / case / "losses.json").write_text(json.dumps(tracker.totals))
        _resume(folder, ranks)
        _differ(folder, ranks)
        _refuse(folder, ranks)
        _lose(folder, ranks)


def _resume(folder, ranks):
    run(folder / "caches", folder / "one-two", params_of("importance"), ranks=ranks)
    run(folder / "caches", folder / "two-one", params_of("importance"), stop_after=7, ranks=ranks)
    ranks.wait()


def _differ(folder, ranks):
    """Parameters without a gradient here, there, and in both."""
    p, q, r = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    p.grad = torch.tensor([1.0, 2.0]) * (ranks.rank + 1)
    if ranks.rank == 1:
        q.grad = torch.tensor([4.0, 6.0])
    ranks.average_gradients([p, q, r])
    assert r.grad is None, "no process had a gradient"
    found = {"p": p.grad.tolist(), "q": q.grad.tolist()}
    # Masks of dropout are each process's own.
    ranks.seed_dropout(3, 5)
    found["random"] = float(torch.rand(()))
    (folder / f"differ-{ranks.rank}.json").write_text(json.dumps(found))


def _refuse(folder, ranks):
    """Each of these is the same error in every process, so none waits for another."""
    errors = []
    for case in ({"batch_size": 7}, {"optimizer": {"learning_rate": 1e30}}):
        try:
            run(folder / "caches", folder / "refused", make_params(**case), ranks=ranks)
        except ValueError as error:
            errors.append(str(error))
    (folder / f"refused-{ranks.rank}.json").write_text(json.dumps(errors))


def _lose(folder, ranks):
    """Process 1 dies; the other one learns it where it next needs it."""
    ranks.wait()
    if ranks.rank == 1:
        os._exit(9)
    started = time.monotonic()
    try:
        for _ in range(1000):
            ranks.average(torch.ones(1))
    except PeerLostError as error:
        told = {"line": str(error), "seconds": time.monotonic() - started}
        (folder / "lost.json").write_text(json.dumps(told))
        raise
