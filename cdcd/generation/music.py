"""Dances to sound: whole batches of clips, or one video of any length as a stream."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cdcd.codecs.base import Codec, decode_batches, decode_stream
from cdcd.diffusion.sampler import SamplerConfig
from cdcd.diffusion.schedule import Schedule
from cdcd.generation.base import Generator
from cdcd.models.conditioner import DanceSpec
from cdcd.models.inputs import ConditionInputs
from cdcd.models.model import ConditionalDenoiser

if TYPE_CHECKING:
    from cdcd.features.base import VideoFeature


class MusicGenerator(Generator):
    """A model trained on dances and its codec; sees conditions, never the music it should make."""

    def __init__(
        self,
        model: ConditionalDenoiser,
        codec: Codec,
        schedule: Schedule,
        facts: dict[str, Any],
        device: torch.device,
    ) -> None:
        super().__init__(model, schedule, facts, device)
        self.codec = codec

    @property
    def dance(self) -> DanceSpec:
        """The shape of the model's conditioner.

        Raises:
            ValueError: the model makes no music.
        """
        spec = self.model.spec.conditioner
        if not isinstance(spec, DanceSpec):
            raise ValueError(
                f"music needs a model trained on dances: this one reads {spec.kind} conditions"
            )
        return spec

    def video_feature(self) -> VideoFeature:
        """The extractor that turns a video into what the model reads.

        Raises:
            ValueError: the model reads no videos, or the extractor's weights are missing.
        """
        from cdcd.features import make_video_feature

        if self.dance.video_dim is None:
            raise ValueError(
                "a video needs a model with a video encoder: this one was trained with "
                "train.conditioner.use_video false"
            )
        return make_video_feature(self.facts["video_feature"])

    def check_features(self, info: dict[str, Any]) -> None:
        """Refuse features of another extractor than the model was trained with.

        Raises:
            ValueError: names both extractors.
        """
        mine, theirs = self.facts["video_feature"], info["video_feature"]
        if mine != theirs:
            raise ValueError(
                f"features must come from the extractor the model was trained with: got {theirs} "
                f"for {mine}; run `dvc repro featurize train`"
            )

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> np.ndarray:
        """Tokens [n, l] to sound, float32 [n, l * hop]."""
        parts = [part.cpu().numpy() for part in decode_batches(self.codec, tokens.cpu(), 16)]
        return np.concatenate(parts).astype(np.float32)

    @torch.no_grad()
    def stream_tokens(
        self,
        video_features: Iterator[np.ndarray],
        num_tokens: int,
        config: SamplerConfig,
        seed: int,
        on_window: Callable[[int, int], None] | None = None,
    ) -> Iterator[Tensor]:
        """Tokens for a video of any length, as they are made; memory does not grow with it.

        The trained window slides over the video. What a window shares with the one before is given
        to it as kept tokens, which never change, so pieces join without a seam.

        Args:
            video_features: one vector [dim] per 1 / video_rate_hz seconds, from the video's start.
            num_tokens: tokens in all; the last window is cut.
            config: sampler settings.
            seed: of all draws.
            on_window: called with (windows done, windows in all).

        Yields:
            New tokens, int64 [1, m]; together [1, num_tokens].
        """
        spec = self.dance
        length = self.model.spec.num_tokens
        overlap = round(self.facts["sampler"]["window_overlap_seconds"] * spec.token_rate_hz)
        overlap = min(overlap, length - 1)
        advance = length - overlap
        num_windows = 1 + max(0, math.ceil((num_tokens - length) / advance))
        frames = round(length / spec.token_rate_hz * spec.video_rate_hz)
        random = torch.Generator(self.device).manual_seed(seed)
        reader = _Reader(video_features)
        kept = torch.full((1, length), -1, dtype=torch.long, device=self.device)
        done = 0
        for window in range(num_windows):
            start = window * advance * spec.video_rate_hz / spec.token_rate_hz
            video = torch.from_numpy(reader.window(start, frames))[None].to(self.device)
            yes = torch.ones(1, dtype=torch.bool, device=self.device)
            inputs = ConditionInputs(None, video, None, ~yes, yes)
            tokens = self.sample_tokens(inputs, config, random, kept=kept)
            fresh = tokens[:, overlap if window else 0 :]
            fresh = fresh[:, : num_tokens - done]
            done += fresh.shape[1]
            kept = torch.full_like(kept, -1)
            if overlap:
                kept[:, :overlap] = tokens[:, -overlap:]
            if on_window is not None:
                on_window(window + 1, num_windows)
            yield fresh

    def generate_for_video(
        self,
        video_path: str | Path,
        out_path: str | Path,
        seed: int = 0,
        guidance: float | None = None,
        truncation: float | None = None,
        progress: bool = True,
        on_window: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Music of exactly a video's length, written as .wav, or as .mp4 with the dance.

        Args:
            video_path: any dance video, of any length, size and frame rate, with or without sound.
            out_path: ends in .wav or .mp4; written under a temporary name, then renamed.
            seed: the same seed gives the same music.
            guidance: classifier-free guidance scale; None for the model's own.
            truncation: truncation rate in (0, 1]; None for the model's own.
            progress: show a bar with the time left.
            on_window: called with (windows done, windows in all).

        Returns:
            `duration_seconds`, `num_samples`, `sample_rate_hz`, `num_tokens`, `out`.

        Raises:
            ValueError: the video cannot be used, or an argument breaks its rule; one line.
        """
        from tqdm import tqdm

        from cdcd import media
        from cdcd.features import stream_video_features

        video_path, out_path = Path(video_path), Path(out_path)
        if out_path.suffix.lower() not in {".wav", ".mp4"}:
            raise ValueError(f"out must end in .wav or .mp4: got {out_path.name}")
        feature = self.video_feature()
        config = self.sampler(guidance, truncation)
        info = media.probe(video_path)
        rate, hop = self.codec.sample_rate_hz, self.codec.hop
        num_samples = max(1, round(info.duration_seconds * rate))
        num_tokens = math.ceil(num_samples / hop)
        with tqdm(desc="generate", unit="window", disable=not progress) as bar:

            def advance(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)
                if on_window is not None:
                    on_window(done, total)

            tokens = self.stream_tokens(
                stream_video_features(video_path, feature), num_tokens, config, seed, advance
            )
            audio = _trim(decode_stream(self.codec, (t.cpu() for t in tokens)), num_samples)
            if out_path.suffix.lower() == ".wav":
                media.write_wav(out_path, audio, rate)
            else:
                media.mux(video_path, audio, rate, out_path)
        return {
            "out": str(out_path),
            "duration_seconds": num_samples / rate,
            "num_samples": num_samples,
            "sample_rate_hz": rate,
            "num_tokens": num_tokens,
        }


def _trim(chunks: Iterator[Tensor], num_samples: int) -> Iterator[np.ndarray]:
    """Chunks [1, n] of sound as numpy [n], cut after `num_samples`."""
    left = num_samples
    for chunk in chunks:
        piece = chunk[0, :left].numpy()
        left -= len(piece)
        if len(piece):
            yield piece


class _Reader:
    """Windows of a feature stream by fractional start, holding only what the next one can need."""

    def __init__(self, features: Iterator[np.ndarray]) -> None:
        self._features = features
        self._held: deque[np.ndarray] = deque()
        self._first = 0
        self._is_over = False

    def window(self, start: float, num: int) -> np.ndarray:
        """Features at start, start + 1, ... by linear interpolation, float32 [num, dim].

        `start` must not decrease between calls. Past the end the last vector is repeated.
        """
        low = math.floor(start)
        while self._first < low and len(self._held) > 1:
            self._held.popleft()
            self._first += 1
        while not self._is_over and self._first + len(self._held) < low + num + 1:
            item = next(self._features, None)
            if item is None:
                self._is_over = True
                break
            self._held.append(item)
            if self._first < low and len(self._held) > 1:
                self._held.popleft()
                self._first += 1
        if not self._held:
            raise ValueError("a video needs at least one frame: its features are empty")
        stack = np.stack(self._held)
        index = np.clip(low + np.arange(num + 1) - self._first, 0, len(stack) - 1)
        values = stack[index]
        share = np.float32(start - low)
        return (values[:-1] * (1 - share) + values[1:] * share).astype(np.float32)
