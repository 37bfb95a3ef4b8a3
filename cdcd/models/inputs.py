"""What a network is given of a batch: features of dances, or texts and classes of pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from cdcd.diffusion.share import Share


@dataclass(frozen=True)
class DropRates:
    """Probabilities of training a sample without something, so that it can be left out later.

    Attributes:
        motion: without its motion; `video` likewise.
        video: see `motion`; a task without these modalities ignores both.
        all: without any condition, which guidance needs.
    """

    motion: float
    video: float
    all: float


class Inputs(Protocol):
    """The condition of a batch, before it is encoded."""

    def __len__(self) -> int:
        """Samples in the batch."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        ...

    @property
    def is_given(self) -> bool:
        """Whether any sample has any condition; the host waits for the device here."""
        ...

    def without(self) -> Self:
        """The same batch with everything dropped: the unconditional case of guidance."""
        ...

    def repeat(self, times: int) -> Self:
        """Each sample `times` times in a row."""
        ...

    def dropped(
        self, rates: DropRates, generator: torch.Generator, share: Share | None = None
    ) -> Self:
        """Conditions dropped at random, as training does.

        Args:
            rates: how often.
            generator: source of the numbers.
            share: which samples of a larger batch these are; None for a whole one.
        """
        ...


def _uniform(rows: int, inputs: Inputs, generator: torch.Generator, share: Share | None) -> Tensor:
    """Numbers in [0, 1), float [rows, b]; a share's are those it has in the whole batch."""
    num = len(inputs) if share is None else share.total
    u = torch.rand(rows, num, generator=generator, device=inputs.device)
    return u if share is None else share.cut(u, dim=1)


def _again(x: Tensor | None, times: int) -> Tensor | None:
    return None if x is None else x.repeat_interleave(times, dim=0)


@dataclass(frozen=True)
class ConditionInputs:
    """What is known of a batch of dances; a modality that is absent everywhere may be None.

    Attributes:
        motion: float [b, s, motion_dim] at `motion_rate_hz`, or None.
        video: float [b, r, video_dim] at `video_rate_hz`, or None.
        genre: int64 [b], or None.
        has_motion: bool [b]; where False the motion is replaced by a learned vector.
        has_video: bool [b], likewise.
    """

    motion: Tensor | None
    video: Tensor | None
    genre: Tensor | None
    has_motion: Tensor
    has_video: Tensor

    def __len__(self) -> int:
        """Samples in the batch."""
        return len(self.has_motion)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.has_motion.device

    @property
    def is_given(self) -> bool:
        """Whether any sample has motion or video."""
        return bool((self.has_motion | self.has_video).any())

    def without(self) -> ConditionInputs:
        """The same batch with every modality dropped: the unconditional case of guidance."""
        none = torch.zeros_like(self.has_motion)
        return ConditionInputs(self.motion, self.video, None, none, none)

    def repeat(self, times: int) -> ConditionInputs:
        """Each sample `times` times in a row."""
        return ConditionInputs(
            _again(self.motion, times),
            _again(self.video, times),
            _again(self.genre, times),
            self.has_motion.repeat_interleave(times, dim=0),
            self.has_video.repeat_interleave(times, dim=0),
        )

    def dropped(
        self, rates: DropRates, generator: torch.Generator, share: Share | None = None
    ) -> ConditionInputs:
        """Each modality dropped at random, so that every subset of them can be asked for later."""
        u = _uniform(3, self, generator, share)
        keep_any = u[0] >= rates.all
        # One number for both modalities: they are dropped in turn, never together by chance.
        motion = keep_any & (u[1] >= rates.motion)
        video = keep_any & ((u[1] < rates.motion) | (u[2] >= rates.video))
        return replace(self, has_motion=self.has_motion & motion, has_video=self.has_video & video)


@dataclass(frozen=True)
class PictureInputs:
    """What is asked of a batch of pictures: a text or a class each.

    Attributes:
        text: encoded captions, float [b, s, dim]; None in tasks without text.
        length: valid entries of each caption, int64 [b] in 1..s; what lies beyond is never read.
        label: class, int64 [b] in 0..num_classes-1; None in tasks without classes.
        has_condition: bool [b]; where False a learned null replaces text and class.
    """

    text: Tensor | None
    length: Tensor | None
    label: Tensor | None
    has_condition: Tensor

    def __len__(self) -> int:
        """Samples in the batch."""
        return len(self.has_condition)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.has_condition.device

    @property
    def is_given(self) -> bool:
        """Whether any sample has a text or a class."""
        return bool(self.has_condition.any())

    def without(self) -> PictureInputs:
        """The same batch with every condition dropped: the unconditional case of guidance."""
        return replace(self, has_condition=torch.zeros_like(self.has_condition))

    def repeat(self, times: int) -> PictureInputs:
        """Each sample `times` times in a row."""
        return PictureInputs(
            _again(self.text, times),
            _again(self.length, times),
            _again(self.label, times),
            self.has_condition.repeat_interleave(times, dim=0),
        )

    def dropped(
        self, rates: DropRates, generator: torch.Generator, share: Share | None = None
    ) -> PictureInputs:
        """The condition dropped with probability `rates.all`."""
        (u,) = _uniform(1, self, generator, share)
        return replace(self, has_condition=self.has_condition & (u >= rates.all))
