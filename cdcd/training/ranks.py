"""Several processes that train one model: who computes what, and how their results become one.

Every process holds the whole model, draws the random numbers of the whole batch and computes its
share of the samples; gradients are averaged before they are clipped. What is optimised is therefore
what a single process would optimise, up to the order of summation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cdcd.diffusion.share import Share

Result = TypeVar("Result")

WAIT = timedelta(hours=2)
"""The others wait so long while the first one validates, previews or saves."""


class PeerLostError(OSError):
    """Another process of the training ended, so that this one cannot go on."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; the default is one that trains alone.

    Attributes:
        rank: number of this process.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process validates, tracks and writes."""
        return self.rank == 0

    def share(self, total: int, name: str) -> Share | None:
        """This process's samples of a batch of `total`; None where it trains alone.

        Args:
            total: samples of the whole batch.
            name: what the user calls their number.

        Raises:
            ValueError: the processes would get unequal shares.
        """
        if self.size == 1:
            return None
        each, rest = divmod(total, self.size)
        if rest:
            below, above = each * self.size, (each + 1) * self.size
            remedy = f"use {below} or {above}" if below else f"use {above}"
            raise ValueError(
                f"{name} must be a multiple of the number of training processes: got {total} for "
                f"{self.size}; {remedy}, or another CDCD_TRAIN_PROCESSES"
            )
        return Share(self.rank * each, (self.rank + 1) * each, total)

    def seed_dropout(self, seed: int, step: int) -> None:
        """Give each process masks of its own; alone, the random state goes on as it is."""
        if self.size > 1:
            torch.manual_seed((seed * 1_000_003 + step) * self.size + self.rank)

    def align(self, model: nn.Module) -> None:
        """Take over the first process's weights and buffers."""
        if self.size > 1:
            for value in (*model.parameters(), *model.buffers()):
                data = value.detach()
                _together(lambda data=data: dist.broadcast(data, 0))  # type: ignore[misc]

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes, in one exchange for each type.

        A parameter without a gradient counts as zero where another process has one, and stays
        without where none has, as it would in a single process.
        """
        if self.size == 1:
            return
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                by_dtype.setdefault(parameter.dtype, []).append(parameter)
        for some in by_dtype.values():
            self._average_some(some)

    def _average_some(self, parameters: list[nn.Parameter]) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        has = grads[0].new_tensor([float(p.grad is not None) for p in parameters])
        flat = torch.cat([*(grad.flatten() for grad in grads), has])
        _together(lambda: dist.all_reduce(flat))
        flat /= self.size
        *pieces, has = flat.split([*(p.numel() for p in parameters), len(parameters)])
        # Only a gradient that is missing here makes the host ask what the others have.
        if any(p.grad is None for p in parameters):
            given = [number > 0 for number in has.tolist()]
        else:
            given = [True] * len(parameters)
        for parameter, piece, is_given in zip(parameters, pieces, given, strict=True):
            parameter.grad = piece.view_as(parameter) if is_given else None

    def average(self, values: Tensor) -> Tensor:
        """Mean of `values` over the processes."""
        if self.size == 1:
            return values
        values = values.clone()
        _together(lambda: dist.all_reduce(values))
        return values / self.size

    def gather(self, values: Tensor) -> Tensor:
        """The values [b] of all processes in the order of the whole batch, [size * b]."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        _together(lambda: dist.all_gather(parts, values.contiguous()))
        return torch.cat(parts)

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            _together(lambda: dist.barrier())


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that `torchrun` started together with this one; alone without it.

    They talk by NCCL where there are GPUs, one for each process of a machine, else by gloo.

    Raises:
        PeerLostError: another process ended.
        ValueError: there are fewer GPUs than processes on this machine.
    """
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size == 1:
        yield ALONE
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(_own_gpu())
    _together(lambda: dist.init_process_group(backend, timeout=WAIT))
    try:
        ranks = Ranks(dist.get_rank(), dist.get_world_size())
        yield ranks
        ranks.wait()  # nobody leaves while the first one still writes
    finally:
        dist.destroy_process_group()


def _own_gpu() -> int:
    local, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= num_gpus:
        have = os.environ.get("LOCAL_WORLD_SIZE", str(local + 1))
        raise ValueError(
            f"CDCD_TRAIN_PROCESSES must not exceed the GPUs of a machine: got {have} for "
            f"{num_gpus}; lower it"
        )
    return local


def _together(call: Callable[[], Result]) -> Result:
    """Call what needs all processes.

    Raises:
        PeerLostError: one of them is gone.
    """
    try:
        return call()
    except RuntimeError as error:  # what gloo and NCCL raise
        reason = " ".join(str(error).split())[:120]
        raise PeerLostError(
            f"the processes of a training must all stay alive: one ended ({reason}); run again to "
            "go on from the last checkpoint"
        ) from None
