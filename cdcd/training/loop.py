"""The training loop: what happens, in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from cdcd.diffusion.losses import LossTerms
from cdcd.models.model import ConditionalDenoiser
from cdcd.training.objective import Batch, Objective
from cdcd.training.state import TrainState


class Batches(Protocol):
    """An endless stream of batches that knows where it is."""

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Hooks:
    """What the loop calls besides the mathematics; each receives the step (1-based).

    Attributes:
        track: metrics to record.
        validate: held-out loss of a model in evaluation mode; must change no training state.
        preview: generated audio and pictures.
        save: write a checkpoint.
        advance: one step is done (progress bar), with the last logged loss.
    """

    track: Callable[[int, dict[str, float]], None]
    validate: Callable[[ConditionalDenoiser], dict[str, float]]
    preview: Callable[[int, ConditionalDenoiser], None]
    save: Callable[[int], None]
    advance: Callable[[int, float], None]


@dataclass(frozen=True)
class Cadence:
    """Every how many steps something happens."""

    log: int
    validate: int
    save: int
    preview: int


def train(
    state: TrainState,
    objective: Objective,
    batches: Batches,
    hooks: Hooks,
    cadence: Cadence,
    autocast: Callable[[], AbstractContextManager[object]],
    until: int,
) -> None:
    """Train from `state.step` to step `until`.

    The host waits for the device only where it logs. Resuming needs `batches` at the position that
    belongs to `state.step`.
    """
    shown, tokens, started = float("nan"), 0, time.perf_counter()
    if state.step >= until:
        return
    for step, batch in enumerate(batches, start=state.step + 1):
        last = step == until
        state.model.train()
        state.ranks.seed_dropout(state.generator.initial_seed(), step)
        with autocast():
            loss = objective(state.model, batch, state.steps, state.generator)
        state.update(loss)
        tokens += batch.z_0.numel() * state.ranks.size
        if last or step % cadence.log == 0:
            metrics = _scalars(loss, state)
            metrics["tokens_per_second"] = tokens / (time.perf_counter() - started)
            shown, tokens, started = metrics["loss"], 0, time.perf_counter()
            hooks.track(step, metrics)
        if last or step % cadence.validate == 0:
            hooks.track(step, hooks.validate(state.ema.model))
        if last or step % cadence.preview == 0:
            hooks.preview(step, state.ema.model)
        if last or step % cadence.save == 0:
            hooks.save(step)
        hooks.advance(step, shown)
        if last:
            break


def _scalars(loss: LossTerms, state: TrainState) -> dict[str, float]:
    names = ("loss", "bound", "auxiliary", "contrast", "gradient_norm")
    values = (loss.total, loss.bound, loss.auxiliary, loss.contrast, state.grad_norm)
    # One transfer for all of them, hence one wait.
    scalars = torch.stack([value.detach().float().to(loss.total.device) for value in values])
    numbers = state.ranks.average(scalars).tolist()
    return dict(zip(names, numbers, strict=True)) | {"learning_rate": state.learning_rate}
