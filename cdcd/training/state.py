"""All that changes while training, and its checkpoint: one file, one rename, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cdcd.data.files import atomic_path
from cdcd.diffusion.losses import LossTerms
from cdcd.diffusion.timesteps import StepSampler
from cdcd.models.model import ConditionalDenoiser
from cdcd.training.ema import Ema
from cdcd.training.optim import rate_factor
from cdcd.training.ranks import ALONE, Ranks

CHECKPOINT = "checkpoint.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed from; the message is one line."""


class TrainState:
    """Model, average, optimiser, step sampler, random state and position, saved and resumed as one.

    Attributes:
        step: optimiser steps taken.
        ranks: this process among those that train together; the state is the same in all of them.
        grad_norm: gradient norm of the last step before clipping, a tensor on the device.
    """

    def __init__(
        self,
        model: ConditionalDenoiser,
        optimizer: torch.optim.Optimizer,
        steps: StepSampler,
        generator: torch.Generator,
        *,
        num_steps: int,
        warmup_steps: int,
        decay: Any,
        clip_norm: float,
        ema_decay: float,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.model = model
        self.optimizer = optimizer
        self.steps = steps
        self.generator = generator
        self.ema = Ema(model, ema_decay)
        self.num_steps = num_steps
        self.warmup_steps = warmup_steps
        self.decay = decay
        self.clip_norm = clip_norm
        self.step = 0
        self.grad_norm = torch.zeros(())
        self._base_rates = [group["lr"] for group in optimizer.param_groups]

    @property
    def learning_rate(self) -> float:
        """Of the last optimiser step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def update(self, loss: LossTerms) -> None:
        """Backward, clip, optimiser step, moving average, loss history of the step sampler.

        Gradients are in true units here (bfloat16 needs no loss scaling), so clipping means what
        it says; the released code clips scaled gradients (paper_vs_code D22).
        """
        self.step += 1
        factor = rate_factor(self.step, self.num_steps, self.warmup_steps, self.decay)
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base * factor
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        self.ranks.average_gradients(self.model.parameters())
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.ema.update(self.model, self.step)
        if self.steps.kind == "importance":
            self.steps.update(self.ranks.gather(loss.t), self.ranks.gather(loss.per_sample))

    def align(self) -> None:
        """Start all processes from the first one's weights.

        Raises:
            CheckpointError: they go on from different steps.
        """
        here = torch.tensor([self.step], device=next(self.model.parameters()).device)
        steps = self.ranks.gather(here).tolist()
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"all training processes must find the same checkpoint: got steps {steps}; give "
                "the machines one file system"
            )
        self.ranks.align(self.model)
        self.ranks.align(self.ema.model)

    def save(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write the checkpoint; the earlier one stays until the new one is whole.

        Args:
            folder: of this run's checkpoint.
            facts: JSON-able; returned by `resume` (the run's identity, the data position).
        """
        tensors: dict[str, Tensor] = {}
        for part, module in (("model", self.model), ("ema", self.ema.model), ("steps", self.steps)):
            for name, value in module.state_dict().items():
                tensors[f"{part}/{name}"] = value
        for index, state in self.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer/{index}/{name}"] = value
        tensors["random/generator"] = self.generator.get_state()
        tensors["random/torch"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        metadata = {"step": str(self.step), "facts": json.dumps(facts, sort_keys=True)}
        # Tied or sliced storage would be refused or doubled: each tensor travels on its own.
        tensors = {
            name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()
        }
        with atomic_path(folder / CHECKPOINT) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    def resume(self, folder: Path, tensors: dict[str, Tensor], step: int) -> None:
        """Continue where `read_checkpoint` says a run stopped.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = value
        try:
            self.model.load_state_dict(parts["model"])
            self.ema.model.load_state_dict(parts["ema"])
            self.steps.load_state_dict(parts["steps"])
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in parts.get("optimizer", {}).items():
                index, _, field = name.partition("/")
                state.setdefault(int(index), {})[field] = value
            whole = self.optimizer.state_dict()
            self.optimizer.load_state_dict({**whole, "state": state})
            self.generator.set_state(parts["random"]["generator"])
            torch.set_rng_state(parts["random"]["torch"])
            if torch.cuda.is_available() and "cuda" in parts["random"]:
                torch.cuda.set_rng_state(parts["random"]["cuda"])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{folder / CHECKPOINT} must fit the model it resumes: {reason}; "
                "delete it to start anew"
            ) from None
        self.step = step


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], int, dict[str, Any]] | None:
    """Tensors, step and facts of the checkpoint in `folder`, or None when there is none.

    Raises:
        CheckpointError: the file is cut short or no checkpoint.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors, int(metadata["step"]), json.loads(metadata["facts"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} must be a whole checkpoint: {reason}; delete it to start anew"
        ) from None
