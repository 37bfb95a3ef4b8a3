"""Texts and classes to pictures, and how a picture comes out of the mask."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdcd.codecs.base import PictureCodec
from cdcd.diffusion.sampler import SamplerConfig, step_pairs
from cdcd.diffusion.schedule import Schedule
from cdcd.features.text import PromptError, TextEncoder, check_prompt, shortened
from cdcd.generation.base import Generator, step_bar
from cdcd.models.inputs import PictureInputs
from cdcd.models.model import ConditionalDenoiser
from cdcd.models.picture_conditioner import ClassSpec, TextSpec
from cdcd.pictures import veiled

Pictures = NDArray[np.uint8]

MAX_NUM = 10_000
"""Pictures of one prompt in one call."""
MAX_BATCH = 64
MAX_BATCH_CPU = 8
"""More rows make a CPU no faster, and let the first picture wait."""
BATCH_LOGITS = 16_000_000
"""Logits of a batch, K for each token; a batch holds a few tensors of this size."""
DECODED_PIXELS = 4_000_000
"""Pixels that the codec decodes at a time; its widest layer holds some hundred numbers for each."""


@dataclass(frozen=True)
class Cut:
    """A prompt that is longer than what the model reads.

    Attributes:
        num_read: tokens that are read, start and end included.
        num_dropped: tokens that are not.
        end: the last words that are read.
    """

    num_read: int
    num_dropped: int
    end: str

    def __str__(self) -> str:
        total = self.num_read + self.num_dropped
        return (
            f"the model reads {self.num_read} of {total} tokens: "
            f"all after {shortened(self.end)} was cut"
        )


@dataclass(frozen=True)
class Ask:
    """One picture: of a condition that was checked, and which of the seed's pictures, from 0 on."""

    condition: str | int
    seed: int
    index: int


@dataclass(frozen=True)
class Prompt:
    """A text that can be asked for, without blanks around it, and what of it is not read."""

    text: str
    cut: Cut | None


@dataclass(frozen=True)
class Generated:
    """Pictures and what of their prompts was not read.

    Attributes:
        images: uint8 `[conditions * num_each, h, w, 3]`; those of one condition follow each other.
        cuts: by the condition's place in the list.
    """

    images: Pictures
    cuts: dict[int, Cut]


class PictureGenerator(Generator):
    """A trained model, its picture codec and, for texts, the encoder it was trained with.

    Every picture has draws of its own, so what comes out depends on model, condition, seed, its
    index and the sampler settings, never on what else is asked for: pictures of many prompts share
    a batch, and are the same alone, in another order or in a second run.

    Args:
        model: conditioned on texts or classes.
        codec: decodes the tokens.
        schedule: the chain.
        facts: of model.json: `sampler`, for classes `class_names`.
        device: of model and codec.
        encoder: of texts; None for classes, or where conditions come encoded.
    """

    def __init__(
        self,
        model: ConditionalDenoiser,
        codec: PictureCodec,
        schedule: Schedule,
        facts: dict[str, Any],
        device: torch.device,
        encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__(model, schedule, facts, device)
        self.codec = codec.to(device) if isinstance(codec, torch.nn.Module) else codec
        self.encoder = encoder

    @property
    def reads_text(self) -> bool:
        """Whether conditions are texts; otherwise they are classes."""
        return isinstance(self.model.spec.conditioner, TextSpec)

    @property
    def num_classes(self) -> int:
        """Classes are 0 .. num_classes - 1.

        Raises:
            ValueError: the model reads no classes.
        """
        spec = self.model.spec.conditioner
        if not isinstance(spec, ClassSpec):
            raise ValueError(
                f"a class needs a model trained on classes: this one reads {spec.kind} conditions"
            )
        return spec.num_classes

    @property
    def class_names(self) -> list[str]:
        """For people to read, by class; empty where the dataset gave none."""
        return list(self.facts.get("class_names") or [])

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Pictures:
        """Tokens [n, l] to pictures, uint8 [n, h, w, 3]."""
        pixels = tokens.shape[1] * self.codec.factor**2
        rows = tokens.to(self.device).split(max(1, DECODED_PIXELS // pixels))
        parts = [self.codec.decode(part).permute(0, 2, 3, 1).cpu().numpy() for part in rows]
        return np.concatenate(parts)

    def check_text(self, text: str) -> Prompt:
        """Look at a text before anything is generated from it.

        Raises:
            PromptError: it cannot be a prompt, or nothing of it means anything to the encoder.
            ValueError: the model reads no texts.
        """
        encoder, spec = self._text_encoder()
        text = check_prompt(text)
        tokens = encoder.tokenize([text])
        num_dropped = int(tokens.num_dropped)
        if int(tokens.num_unknown) == int(tokens.lengths) + num_dropped - 2:
            raise PromptError(
                f"a prompt must have words that the text encoder was trained on: got "
                f"{shortened(text)}; use words such as those of the dataset's captions"
            )
        num_read = min(int(tokens.lengths), spec.num_positions)
        num_dropped += int(tokens.lengths) - num_read
        if not num_dropped:
            return Prompt(text, None)
        cut = encoder.cut(text)
        return Prompt(text, Cut(num_read, num_dropped, (cut.kept if cut else text)[-60:].strip()))

    def find_class(self, wanted: str | int) -> int:
        """The class of a number or a name.

        A name is found whatever its capitals; where names hold several words for one thing, split
        by commas, each of them is found.

        Raises:
            ValueError: out of range, unknown or the name of several classes.
        """
        num, names = self.num_classes, self.class_names
        told = str(wanted).strip()
        if re.fullmatch(r"[+-]?[0-9]+", told):
            label = int(told) if len(told) < 20 else num
            if not 0 <= label < num:
                shown = told if len(told) < 20 else f"{told[:17]}…"
                raise ValueError(
                    f"class must lie in 0 .. {num - 1}: got {shown}; choose one of these"
                    + (f", such as 0 ({names[0]})" if names else "")
                )
            return label
        if not names:
            raise ValueError(
                f"class must be a number in 0 .. {num - 1}, because this model knows no names: "
                f"got {shortened(told)}; give the number"
            )
        labels: dict[str, list[int]] = {}
        for label, name in enumerate(names):
            for word in {name, *name.split(",")}:
                labels.setdefault(" ".join(word.casefold().split()), []).append(label)
        found = labels.get(" ".join(told.casefold().split()), [])
        if len(found) > 1:
            raise ValueError(
                f"class must be one: {shortened(told)} names {', '.join(map(str, found))}; "
                "give the number"
            )
        if not found:
            near = difflib.get_close_matches(told.casefold()[:100], labels, n=3, cutoff=0.4)
            near = near or sorted(labels)[:3]
            raise ValueError(
                f"class must be a number in 0 .. {num - 1} or a name the model knows: got "
                f"{shortened(told)}; nearest: {', '.join(near)}"
            )
        return found[0]

    def encode(self, conditions: Sequence[str] | Sequence[int]) -> PictureInputs:
        """Texts or classes that were checked to what the network is given.

        Texts are encoded one by one and padded to the longest that the model reads: neighbours of
        another length would change how sums over a text are rounded.
        """
        b = len(conditions)
        has = torch.ones(b, dtype=torch.bool, device=self.device)
        if not self.reads_text:
            label = torch.tensor([int(c) for c in conditions], device=self.device)
            return PictureInputs(None, None, label, has)
        encoder, spec = self._text_encoder()
        text = torch.zeros(b, spec.num_positions, encoder.width)
        length = torch.zeros(b, dtype=torch.long)
        known: dict[str, Tensor] = {}
        for row, condition in enumerate(map(str, conditions)):
            if condition not in known:
                encoded = encoder.encode_tokens(encoder.tokenize([condition]))
                known[condition] = encoded.sequence[0, : min(int(encoded.lengths), text.shape[1])]
            states = known[condition]
            text[row, : len(states)], length[row] = states, len(states)
        return PictureInputs(text.to(self.device), length.to(self.device), None, has)

    def draw(
        self,
        condition: str | int,
        num: int = 1,
        seed: int = 0,
        config: SamplerConfig | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Iterator[Pictures]:
        """Pictures of one condition that was checked, batch by batch, so that memory is bounded.

        Args:
            condition: a text or a class.
            num: how many.
            seed: the same seed gives the same pictures, the first of them whatever the number.
            config: sampler settings; None for the model's own.
            on_step: called after every network call with (calls done, calls in all) of its batch.

        Yields:
            uint8 [m, h, w, 3]; together [num, h, w, 3].
        """
        asked = [Ask(condition, seed, index) for index in range(num)]
        yield from self._drawn(asked, config or self.default_sampler(), on_step)

    def draw_batch(
        self,
        asked: Sequence[Ask],
        config: SamplerConfig,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Pictures:
        """Pictures of any conditions and seeds, all at once.

        Args:
            asked: at least one, and at most `batch_size` where memory is to be bounded.
            config: sampler settings.
            on_step: called after every network call with (calls done, calls in all).

        Returns:
            uint8 [b, h, w, 3], in the order of `asked`.
        """
        inputs = self.encode([one.condition for one in asked])  # type: ignore[arg-type]
        randoms = [self._random(one) for one in asked]
        tokens = self.sample_tokens(inputs, config, randoms, on_step)
        # One by one: a codec rounds otherwise for other numbers of pictures.
        return np.concatenate([self.decode(row) for row in tokens.split(1)])

    def _drawn(
        self,
        asked: Sequence[Ask],
        config: SamplerConfig,
        on_step: Callable[[int, int], None] | None,
    ) -> Iterator[Pictures]:
        for start in range(0, len(asked), self.batch_size):
            yield self.draw_batch(asked[start : start + self.batch_size], config, on_step)

    def _random(self, one: Ask) -> torch.Generator:
        state = np.random.SeedSequence([one.seed, one.index]).generate_state(1, np.uint64)[0]
        return torch.Generator(self.device).manual_seed(int(state >> np.uint64(1)))

    @property
    def image_size(self) -> int:
        """Pixels per side of what is generated."""
        return math.isqrt(self.model.spec.num_tokens) * self.codec.factor

    @property
    def batch_size(self) -> int:
        """Pictures at a time, by the size of the model and the device; draws are the same."""
        spec = self.model.spec
        most = min(MAX_BATCH, MAX_BATCH_CPU) if self.device.type == "cpu" else MAX_BATCH
        return max(1, min(most, BATCH_LOGITS // (spec.num_tokens * spec.num_codes)))

    def num_calls(self, num: int, config: SamplerConfig) -> int:
        """Network calls that `num` pictures take, of one condition or of several."""
        return math.ceil(num / self.batch_size) * len(
            step_pairs(self.schedule.num_steps, config.stride)
        )

    def generate_for_texts(
        self,
        prompts: Sequence[str],
        num_each: int = 1,
        seed: int = 0,
        guidance: float | None = None,
        truncation: float | None = None,
        progress: bool = True,
    ) -> Generated:
        """Pictures of texts.

        Args:
            prompts: at least one.
            num_each: pictures of each.
            seed: of every prompt; the same seed gives the same pictures of it, whatever else is
                asked for.
            guidance: classifier-free guidance scale; None for the model's own.
            truncation: truncation rate in (0, 1]; None for the model's own.
            progress: show a bar with the time left.

        Raises:
            ValueError: a prompt cannot be used, or an argument breaks its rule; one line.
        """
        checked = [self.check_text(prompt) for prompt in prompts]
        config = self.sampler(guidance, truncation)
        images = self._generate([p.text for p in checked], num_each, seed, config, progress)
        cuts = {index: p.cut for index, p in enumerate(checked) if p.cut is not None}
        return Generated(images, cuts)

    def generate_for_classes(
        self,
        labels: Sequence[int | str],
        num_each: int = 1,
        seed: int = 0,
        guidance: float | None = None,
        truncation: float | None = None,
        progress: bool = True,
    ) -> Generated:
        """Pictures of classes, given by number or name; see `generate_for_texts`."""
        found = [self.find_class(label) for label in labels]
        config = self.sampler(guidance, truncation)
        return Generated(self._generate(found, num_each, seed, config, progress), {})

    def denoising_frames(
        self,
        condition: str | int,
        seed: int = 0,
        guidance: float | None = None,
        truncation: float | None = None,
        progress: bool = True,
    ) -> Pictures:
        """How the picture of one condition comes out of the mask.

        Tokens that are still masked show what the network deems likeliest by then, under grey; the
        others are as they stand, so nothing looks decided that is not.

        Args:
            condition: a text or a class.
            seed: as for one picture, which is the last frame.
            guidance: see `generate_for_texts`.
            truncation: likewise.
            progress: likewise.

        Returns:
            uint8 [calls + 1, h, w, 3]: at each network call, and at the end.
        """
        checked = self.check_text(str(condition)).text if self.reads_text else None
        wanted = self.find_class(condition) if checked is None else checked
        config = self.sampler(guidance, truncation)
        mask = self.schedule.num_codes
        states: list[tuple[Tensor, Tensor]] = []

        def keep(z_t: Tensor, likeliest: Tensor) -> None:
            is_open = z_t == mask
            states.append((torch.where(is_open, likeliest, z_t), is_open))

        inputs = self.encode([wanted])  # type: ignore[arg-type]
        total = self.num_calls(1, config)
        with step_bar(total, progress) as advance:
            randoms = [self._random(Ask(wanted, seed, 0))]
            last = self.sample_tokens(inputs, config, randoms, advance, on_tokens=keep)
        before = self.decode(torch.cat([tokens for tokens, _ in states]))
        side = before.shape[1] // self.codec.factor
        grids = [is_open.cpu().numpy().reshape(side, -1) for _, is_open in states]
        shown = [veiled(image, grid) for image, grid in zip(before, grids, strict=True)]
        # Decoded by itself, as any other single picture, so that both agree to the last bit.
        return np.stack([*shown, *self.decode(last)])

    def _generate(
        self,
        conditions: Sequence[str] | Sequence[int],
        num_each: int,
        seed: int,
        config: SamplerConfig,
        progress: bool,
    ) -> Pictures:
        if not conditions:
            raise ValueError("at least one condition must be given: got none")
        check_num(num_each)
        asked = [Ask(c, seed, index) for c in conditions for index in range(num_each)]
        with step_bar(self.num_calls(len(asked), config), progress) as advance:
            return np.concatenate(list(self._drawn(asked, config, advance)))

    def _text_encoder(self) -> tuple[TextEncoder, TextSpec]:
        spec = self.model.spec.conditioner
        if not isinstance(spec, TextSpec):
            raise ValueError(
                f"a text needs a model trained on captions: this one reads {spec.kind} conditions"
            )
        if self.encoder is None:
            raise ValueError(
                "a text needs the encoder the model was trained with: none is loaded; give its "
                "folder"
            )
        return self.encoder, spec


def check_num(num: int, name: str = "num") -> None:
    """Refuse a number of pictures of one condition that is out of range, as the user named it.

    Raises:
        ValueError: out of range.
    """
    if not 1 <= num <= MAX_NUM:
        raise ValueError(f"{name} must lie in 1 .. {MAX_NUM}: got {num}; use 1")
