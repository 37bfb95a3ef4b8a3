"""The codebook: nearest code, exponential moving averages of its uses, restart of dead codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.nearest_code import Assignment, nearest_code


@dataclass(frozen=True)
class Quantized:
    """What the codebook makes of a batch.

    Attributes:
        vectors: `[b, d, l]` codes; their gradient goes straight to the encoder's output.
        tokens: int64 `[b, l]`.
        commitment: mean squared distance of the encoder's output to its codes (a scalar).
    """

    vectors: Tensor
    tokens: Tensor
    commitment: Tensor


class Codebook(nn.Module):
    """`num_codes` vectors that follow the encoder's outputs instead of a gradient.

    In training mode each call updates, with decay m,

        count_k <- m count_k + (1 - m) n_k          n_k: outputs nearest to code k in this batch
        sum_k   <- m sum_k + (1 - m) sum of those outputs
        e_k     <- sum_k / count_k

    and a code whose count has fallen under `restart_threshold` moves onto a random output of the
    batch. Its averages start again at the mean use of a code: Jukebox keeps the old averages, so
    that a restarted code hardly ever survives its next update when batches are small.
    """

    codes: Tensor
    sums: Tensor
    counts: Tensor
    is_ready: Tensor

    def __init__(
        self,
        num_codes: int,
        width: int,
        *,
        decay: float = 0.99,
        restart_threshold: float = 1.0,
    ) -> None:
        super().__init__()
        self.decay = decay
        self.restart_threshold = restart_threshold
        self.register_buffer("codes", torch.zeros(num_codes, width))
        # The averages matter to training alone and are not part of a saved codec.
        self.register_buffer("sums", torch.zeros(num_codes, width), persistent=False)
        self.register_buffer("counts", torch.zeros(num_codes), persistent=False)
        self.register_buffer("is_ready", torch.tensor(False), persistent=False)

    def forward(self, x: Tensor) -> Quantized:
        """Quantise `[b, d, l]`; in training mode also move the codes."""
        b, _, length = x.shape
        rows = x.float().transpose(1, 2).reshape(b * length, -1)  # (b l) d
        if self.training and not self.is_ready:
            self.start(rows.detach())
        assignment = nearest_code(rows, self.codes, has_statistics=self.training)
        tokens = assignment.codes
        chosen = F.embedding(tokens, self.codes)  # (b l) d
        if self.training:
            self.update(rows.detach(), assignment)
        commitment = (chosen - rows).square().mean()
        passed = rows + (chosen - rows).detach()
        return Quantized(
            vectors=passed.reshape(b, length, -1).transpose(1, 2),
            tokens=tokens.reshape(b, length),
            commitment=commitment,
        )

    @torch.no_grad()
    def start(self, rows: Tensor) -> None:
        """Set the codes to random rows of `[n, d]` and the averages to their mean use."""
        self.codes.copy_(self._draw(rows))
        self.adopt(self._mean_use(rows))

    @torch.no_grad()
    def adopt(self, mean_use: float = 1.0) -> None:
        """Start from the present codes, e.g. loaded ones, each as if used `mean_use` times."""
        self.counts.fill_(mean_use)
        self.sums.copy_(self.codes * mean_use)
        self.is_ready.fill_(True)

    @torch.no_grad()
    def update(self, rows: Tensor, assignment: Assignment) -> None:
        """One step of the moving averages for rows `[n, d]` and their assignment's statistics."""
        assert assignment.counts is not None
        assert assignment.sums is not None
        self.counts.lerp_(assignment.counts, 1 - self.decay)
        self.sums.lerp_(assignment.sums, 1 - self.decay)
        is_dead = (self.counts < self.restart_threshold)[:, None]
        mean_use = self._mean_use(rows)
        fresh = self._draw(rows)
        self.sums.copy_(torch.where(is_dead, fresh * mean_use, self.sums))
        self.counts.copy_(torch.where(is_dead[:, 0], mean_use, self.counts))
        self.codes.copy_(torch.where(is_dead, fresh, self.sums / self.counts[:, None]))

    def look_up(self, tokens: Tensor) -> Tensor:
        """Codes `[b, d, l]` of tokens `[b, l]`."""
        return F.embedding(tokens.long(), self.codes).transpose(1, 2)

    def _mean_use(self, rows: Tensor) -> float:
        # Not under the threshold, or a fresh code would be dead on arrival.
        return max(len(rows) / len(self.codes), self.restart_threshold, 1e-6)

    def _draw(self, rows: Tensor) -> Tensor:
        """`[num_codes, d]` of the rows in random order; too few rows repeat with a little noise."""
        num_codes = len(self.codes)
        if len(rows) < num_codes:
            rows = rows.repeat(-(-num_codes // len(rows)), 1)
            rows = rows + torch.randn_like(rows) * (0.01 / rows.shape[1] ** 0.5)
        return rows[torch.randperm(len(rows), device=rows.device)[:num_codes]]
