"""Training the denoiser on any task: what differs between tasks is told by a `Task`."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cdcd.config import Params
from cdcd.data.batches import Pairs, ShuffledBatches
from cdcd.data.files import atomic_directory, write_json
from cdcd.diffusion.contrast import Contrast
from cdcd.diffusion.schedule import Schedule, make_schedule
from cdcd.diffusion.timesteps import StepSampler
from cdcd.models.inputs import DropRates, Inputs
from cdcd.models.model import ConditionalDenoiser, ModelSpec
from cdcd.models.store import save_model
from cdcd.tracking import NullTracker, Tracker
from cdcd.training.curves import Curves
from cdcd.training.device import make_autocast, pick_device
from cdcd.training.loop import Cadence, Hooks, train
from cdcd.training.objective import Objective, bound_per_clip
from cdcd.training.optim import make_optimizer
from cdcd.training.ranks import ALONE, Ranks
from cdcd.training.state import TrainState, read_checkpoint

log = logging.getLogger(__name__)

NUM_WATCHED = 256
"""Held-out samples at most that the loss is watched on while training."""


class Task(Protocol):
    """What one task adds to the training that all share."""

    name: str

    def read(self, split: str) -> Pairs | None:
        """Tokens and conditions of a split; None where the dataset has no such split."""
        ...

    def spec(self, pairs: Any) -> ModelSpec:
        """Shape of the network."""
        ...

    def prepare(self, model: ConditionalDenoiser, pairs: Any) -> None:
        """Give the untrained network what it must know of the data."""
        ...

    def facts(self, pairs: Any) -> dict[str, Any]:
        """JSON-able facts to keep with the trained network."""
        ...

    def preview(
        self,
        model: ConditionalDenoiser,
        held_out: Any,
        schedule: Schedule,
        tracker: Tracker,
        step: int,
    ) -> None:
        """Record something generated."""
        ...


def make_train_schedule(params: Params, num_codes: int) -> Schedule:
    """The noise schedule of a training run."""
    diffusion = params.train.diffusion
    return make_schedule(diffusion.schedule, num_codes, diffusion.num_steps, diffusion.uniform_mass)


def make_objective(params: Params, schedule: Schedule, spec: ModelSpec, pairs: Pairs) -> Objective:
    """The loss of a training run on `pairs`, the train split."""
    p = params.train
    contrast = None
    if p.contrast.mode != "off" and p.contrast.weight > 0:
        contrast = Contrast(p.contrast.mode, p.contrast.form, p.contrast.weight)
    if contrast and p.contrast.negatives == "intra":
        _check_intra(params, spec, pairs)
    return Objective(
        schedule=schedule,
        contrast=contrast,
        negatives=p.contrast.negatives,
        num_negatives=p.contrast.num_negatives,
        num_chunks=p.contrast.num_chunks,
        intra_unit=p.contrast.intra_unit,
        has_parallel_chains=p.contrast.chains == "parallel",
        auxiliary_weight=p.diffusion.auxiliary_weight,
        adaptive=p.diffusion.adaptive,
        chunks_logits=p.chunk_logits,
        drop=DropRates(p.drop_motion, p.drop_video, p.drop_all),
        grid=spec.grid,
    )


def _check_intra(params: Params, spec: ModelSpec, pairs: Pairs) -> None:
    contrast = params.train.contrast
    if contrast.intra_unit == "patches" and spec.grid is None:
        raise ValueError(
            "train.contrast.intra_unit must be tokens or waveform for music, which has no patches: "
            "got patches"
        )
    if contrast.intra_unit != "waveform":
        return
    if spec.grid is not None:
        raise ValueError(
            "train.contrast.intra_unit must be tokens or patches for pictures: got waveform"
        )
    stored = pairs.waveform_negatives
    if stored is None or stored.shape[1] < contrast.num_negatives:
        have = 0 if stored is None else stored.shape[1]
        raise ValueError(
            f"train.contrast.num_negatives must not exceed the waveform negatives in the "
            f"tokens: got {contrast.num_negatives} for {have}; run `dvc repro encode`"
        )


def _identity(params: Params, spec: ModelSpec, task: Task, pairs: Pairs) -> str:
    """What a checkpoint belongs to: parameters, shapes and data."""
    parts = (params.train.model_dump(), spec.to_dict(), pairs.info, task.facts(pairs))
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def run_training(
    params: Params,
    task: Task,
    *,
    out_dir: Path,
    checkpoint_dir: Path,
    tracker: Tracker | None = None,
    stop_after: int | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Train the denoiser and its condition encoders on cached tokens and features.

    Continues from `checkpoint_dir` when that belongs to the same parameters and data; a killed and
    continued run gives the same files, bit for bit, as an uninterrupted one.

    Args:
        params: all parameters; `train` is used.
        task: what differs between tasks.
        out_dir: receives the moving average of the weights, `summary.json` and `curves/`; replaced
            as a whole at the end.
        checkpoint_dir: where the run saves itself; removed when it is done.
        tracker: where metrics, audio and pictures go.
        stop_after: leave after this many steps with a checkpoint and no model (for tests).
        ranks: this process among those that train together. The first one validates, tracks and
            writes; any number of them may go on from a checkpoint.

    Returns:
        The summary that is also written to `out_dir/summary.json`; empty but for the first process.

    Raises:
        ValueError: parameters and data do not fit, or a checkpoint cannot be read.
    """
    p, device = params.train, pick_device()
    tracker = tracker or NullTracker()
    pairs = task.read("train")
    if pairs is None:
        raise ValueError("training needs a train split: the tokens hold none; shard one")
    # TikTok and CUB publish no val split: nothing is then watched, and test stays unseen.
    held_out = task.read("val")
    spec = task.spec(pairs)
    schedule = make_train_schedule(params, spec.num_codes)
    objective = make_objective(params, schedule, spec, pairs)
    if objective.contrast is not None and objective.negatives == "inter":
        pairs = pairs.with_inter_negatives(p.seed, p.contrast.num_negatives)
    torch.manual_seed(p.seed)
    model = ConditionalDenoiser(spec)
    task.prepare(model, pairs)
    model.to(device)
    o = p.optimizer
    state = TrainState(
        model,
        make_optimizer(model, o.learning_rate, o.betas, o.weight_decay),
        StepSampler(schedule.num_steps, p.diffusion.t_sampling).to(device),
        torch.Generator(device).manual_seed(p.seed),
        num_steps=p.num_steps,
        warmup_steps=o.warmup_steps,
        decay=o.decay,
        clip_norm=o.clip_norm,
        ema_decay=p.ema_decay,
        ranks=ranks,
    )
    identity = _identity(params, spec, task, pairs)
    found = read_checkpoint(checkpoint_dir)
    if found is not None:
        tensors, step, facts = found
        if facts.get("identity") == identity:
            state.resume(checkpoint_dir, tensors, step)
            log.info("continuing from step %d of %d", step, p.num_steps)
        else:
            log.info("the checkpoint in %s is of another run; starting anew", checkpoint_dir)
    state.align()
    autocast = make_autocast(device, p.precision)
    batches = ShuffledBatches(pairs, p.batch_size, p.seed, state.step, device, ranks)
    cadence = Cadence(p.log_every, p.validate_every, p.save_every, p.preview_every)
    until = min(p.num_steps, stop_after or p.num_steps)
    if not ranks.is_first:
        train(state, objective, batches, _follow(), cadence, autocast, until)
        return {}
    curves = Curves(checkpoint_dir, state.step)

    def track(step: int, metrics: dict[str, float]) -> None:
        _check_finite(step, metrics)
        curves.add(step, metrics)
        tracker.log_metrics(metrics, step)

    def validate(ema: ConditionalDenoiser) -> dict[str, float]:
        if held_out is None:
            return {}
        rows = spread(NUM_WATCHED, len(held_out))
        bits = bits_of(ema, held_out, rows, schedule, autocast, min(8, spec.num_steps))
        return {"val_bits_per_token": float(np.mean(bits))}

    def preview(step: int, ema: ConditionalDenoiser) -> None:
        if not isinstance(tracker, NullTracker):
            was_training = ema.training
            task.preview(
                ema.eval(), pairs if held_out is None else held_out, schedule, tracker, step
            )
            ema.train(was_training)

    def save(step: int) -> None:
        run_id = tracker.run_id
        state.save(checkpoint_dir, {"identity": identity, "run_id": run_id})

    from tqdm import tqdm

    with tqdm(total=p.num_steps, initial=state.step, desc="train", unit="step") as bar:

        def advance(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        hooks = Hooks(track, validate, preview, save, advance)
        train(state, objective, batches, hooks, cadence, autocast, until)

    summary = {
        "num_parameters": sum(x.numel() for x in model.parameters()),
        "num_trained_parameters": sum(x.numel() for x in model.parameters() if x.requires_grad),
        "num_steps": state.step,
        "num_samples": len(pairs),
        "final": {name: round(value, 6) for name, value in curves.last().items()},
    }
    if state.step < p.num_steps:
        return summary
    facts = {
        "task": task.name,
        "diffusion": p.diffusion.model_dump(),
        "training": summary,
        **task.facts(pairs),
    }
    with atomic_directory(out_dir) as folder:
        save_model(folder, state.ema.model, facts)
        write_json(folder / "summary.json", summary)
        (folder / "curves").mkdir()
        curves.write(folder / "curves")
    shutil.rmtree(checkpoint_dir, ignore_errors=True)
    return summary


def _check_finite(step: int, metrics: dict[str, float]) -> None:
    if not all(math.isfinite(value) for value in metrics.values()):
        raise ValueError(
            f"the loss must stay finite: step {step} gave {metrics}; lower "
            "train.optimizer.learning_rate"
        )


def _follow() -> Hooks:
    """Hooks of a process that only computes its share."""
    return Hooks(
        track=_check_finite,
        validate=lambda _: {},
        preview=lambda *_: None,
        save=lambda _: None,
        advance=lambda *_: None,
    )


def spread(num: int, of: int) -> np.ndarray:
    """At most `num` indices spread evenly over 0..of-1, int64."""
    return np.unique(np.linspace(0, of - 1, min(num, of)).astype(np.int64))


def bits_of(
    model: ConditionalDenoiser,
    pairs: Pairs,
    rows: np.ndarray,
    schedule: Schedule,
    autocast: Any,
    num_draws: int,
    restrict: Any = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Bound in bits per token of the given samples.

    It has a generator of its own, so no training state changes.

    Args:
        model: in any mode.
        pairs: where the samples come from.
        rows: which of them.
        schedule: the model's.
        autocast: as `make_autocast` gives it.
        num_draws: strata of steps per sample.
        restrict: what the network may see of the inputs; None for all.
        batch_size: samples at a time.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    values = []
    with torch.no_grad(), autocast():
        for some in np.array_split(rows, math.ceil(len(rows) / batch_size)):
            batch = pairs.batch(some, device)
            inputs: Inputs = batch.inputs if restrict is None else restrict(batch.inputs)
            bound: Tensor = bound_per_clip(model, batch.z_0, inputs, schedule, generator, num_draws)
            values.append(bound.cpu().numpy() / batch.z_0.shape[1] / math.log(2))
    return np.concatenate(values)
