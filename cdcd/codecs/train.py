"""The codec stage: train the VQ-VAE on the train split, or read released weights."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cdcd.codecs.base import decode_batches
from cdcd.codecs.jukebox import JukeboxVQVAE, groups_of_hop
from cdcd.codecs.openai import WeightsError, load_released
from cdcd.codecs.spectral import spectral_convergence, spectral_loss
from cdcd.codecs.store import save_codec
from cdcd.compiled import load_librosa
from cdcd.data.files import atomic_directory, sha256_file, write_json
from cdcd.data.shards import iterate_shards, read_shards_index

if TYPE_CHECKING:
    from cdcd.config import Codec, Params

logger = logging.getLogger(__name__)

_NUM_WARMUP_STEPS = 50
_NUM_JUDGED_CLIPS = 64


class MetricSink(Protocol):
    """The part of a tracked run that training writes to."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> Any:
        """Record several values of one step at once."""
        ...

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Keep a copy of a file."""
        ...

    def log_audio(self, name: str, audio: np.ndarray, sample_rate_hz: int) -> None:
        """Keep a sound."""
        ...


def train_codec(
    params: Params, shards_dir: str | Path, out_dir: str | Path, tracker: MetricSink | None = None
) -> dict[str, Any]:
    """Make a codec and write it, as a whole folder, to `out_dir`.

    The sound of the train split is cut at random places; the codec that comes out is judged on the
    val split. With `codec.weights` the released weights are read instead and only judged.
    The same params, shards, thread count and machine give the same weights.

    Args:
        params: section `codec` is used.
        shards_dir: as the shard stage left it.
        out_dir: replaced when everything in it is written.
        tracker: receives losses and codebook use every `codec.log_every` steps, and at the end a
            held-out clip as it was and as it comes back.

    Returns:
        The summary that is also in `summary.json`.

    Raises:
        ValueError: no usable train split, a weights file of another layout, or a loss that is no
            longer a number.
    """
    codec_params, shards_dir = params.codec, Path(shards_dir)
    if codec_params.weights is not None:
        codec = load_released(codec_params.weights)
        _check_released(codec, codec_params)
        facts: dict[str, Any] = {
            "source": "released",
            "released_sha256": sha256_file(codec_params.weights),
        }
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with _spooled_audio(shards_dir, "train") as clips:
            codec, facts = _train(codec_params, clips, device, tracker)
    codec.eval().requires_grad_(False)

    summary = dict(facts)
    summary["num_parameters"] = sum(p.numel() for p in codec.parameters())
    summary["context_tokens"] = codec.context_tokens
    summary["hop"], summary["num_codes"] = codec.hop, codec.num_codes
    held_out = _read_clips(shards_dir, "val", _NUM_JUDGED_CLIPS)
    if held_out:
        scores = judge(codec, held_out)
        summary["val"] = scores
        if tracker is not None:
            step = int(facts.get("num_steps", 0))
            tracker.log_metrics({f"codec/val/{name}": v for name, v in scores.items()}, step)
            _show(codec, held_out[0], tracker)
    else:
        logger.warning("%s has no val split: the codec is not judged", shards_dir)
    with atomic_directory(out_dir) as folder:
        save_codec(codec, folder, facts | {"seed": codec_params.seed})
        write_json(folder / "summary.json", summary)
    return summary


def build_codec(params: Codec) -> JukeboxVQVAE:
    """The untrained codec that a `codec` section describes."""
    return JukeboxVQVAE(
        groups=params.groups or groups_of_hop(params.hop),
        width=params.width,
        max_width=params.max_width,
        depth=params.depth,
        num_plain=params.num_plain,
        dilation_growth=params.dilation_growth,
        code_width=params.code_width,
        edge_width=params.edge_width,
        num_codes=params.num_codes,
        sample_rate_hz=params.sample_rate_hz,
        ema_decay=params.ema_decay,
        restart_threshold=params.restart_threshold,
    )


@torch.no_grad()
def judge(codec: JukeboxVQVAE, clips: list[np.ndarray], batch_size: int = 16) -> dict[str, float]:
    """Score what is left of clips after encoding and decoding.

    Args:
        codec: frozen.
        clips: float32 sounds of one length each.
        batch_size: clips at a time.

    Returns:
        `spectral_convergence` (0 is perfect), `code_usage` (share of the codebook), `perplexity`
        and, where librosa and mir_eval are installed, `onset_f1` within 50 ms of the original's.
    """
    device = next(codec.parameters()).device
    whole = len(clips[0]) // codec.hop * codec.hop
    audio = torch.from_numpy(np.stack(clips))[:, :whole]
    tokens = torch.cat([codec.encode(rows.to(device)) for rows in audio.split(batch_size)])
    decoded = torch.cat([rows.cpu() for rows in decode_batches(codec, tokens, batch_size)])
    counts = torch.bincount(tokens.flatten().cpu(), minlength=codec.num_codes)
    scores = {
        "spectral_convergence": float(spectral_convergence(decoded, audio).mean()),
        "code_usage": float((counts > 0).float().mean()),
        "perplexity": perplexity(counts),
    }
    onset_f1 = _onset_f1(audio.numpy(), decoded.numpy(), codec.sample_rate_hz)
    return scores if onset_f1 is None else scores | {"onset_f1": onset_f1}


def _show(codec: JukeboxVQVAE, clip: np.ndarray, tracker: MetricSink) -> None:
    from cdcd.pictures import compare_spectrograms

    device, rate = next(codec.parameters()).device, codec.sample_rate_hz
    original = clip[: len(clip) // codec.hop * codec.hop]
    tokens = codec.encode(torch.from_numpy(original)[None].to(device))
    decoded = next(iter(decode_batches(codec, tokens, 1)))[0].cpu().numpy()
    sounds = {"original": original, "reconstruction": decoded}
    for name, sound in sounds.items():
        tracker.log_audio(f"codec/{name}", sound, rate)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spectrograms.png"
        compare_spectrograms(sounds, rate, path, "a held-out clip")
        tracker.log_artifact(path, "codec")


def perplexity(counts: Tensor) -> float:
    """How many equally likely codes would be as uncertain as these counts `[k]`."""
    shares = counts.double() / counts.sum().clamp_min(1)
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))


@dataclass(frozen=True)
class _Terms:
    total: Tensor
    waveform: Tensor
    spectral: Tensor
    commitment: Tensor


def _train(
    params: Codec, clips: np.ndarray, device: torch.device, tracker: MetricSink | None
) -> tuple[JukeboxVQVAE, dict[str, Any]]:
    from tqdm import tqdm

    rng = np.random.default_rng(params.seed)
    crop = _crop_samples(params, clips.shape[1])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(params.seed)
        codec = build_codec(params).to(device).train()
        optimizer = torch.optim.AdamW(
            codec.parameters(), params.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
        )
        # Losses are relative to the music's own power, so their weights fit any loudness.
        power = _mean_power(clips)
        use_bfloat16 = _use_bfloat16(params.precision, device)
        first = last = 0.0
        bar = tqdm(range(1, params.num_steps + 1), desc="codec", unit="step", mininterval=1.0)
        for step in bar:
            rate = params.learning_rate * _rate_share(step, params.num_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            target = _draw_crops(clips, params.batch_size, crop, rng).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16):
                output = codec(target)
            terms = _loss(params, output.audio, target, output.commitment, power)
            optimizer.zero_grad(set_to_none=True)
            terms.total.backward()
            norm = torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
            optimizer.step()
            if step == 1 or step % params.log_every == 0 or step == params.num_steps:
                counts = torch.bincount(output.tokens.flatten(), minlength=params.num_codes)
                metrics = {
                    "codec/loss": float(terms.total.detach()),
                    "codec/waveform": float(terms.waveform),
                    "codec/spectral": float(terms.spectral),
                    "codec/commitment": float(terms.commitment),
                    "codec/gradient_norm": float(norm),
                    "codec/learning_rate": rate,
                    "codec/batch_codes": float((counts > 0).sum()),
                    "codec/batch_perplexity": perplexity(counts),
                }
                last = metrics["codec/loss"]
                first = last if step == 1 else first
                if not math.isfinite(last):
                    raise ValueError(
                        f"the codec's loss must stay finite: got {last} at step {step}; "
                        "lower codec.learning_rate"
                    )
                bar.set_postfix_str(f"loss {last:.3f}")
                if tracker is not None:
                    tracker.log_metrics(metrics, step)
    facts = {
        "source": "trained",
        "num_steps": params.num_steps,
        "crop_samples": crop,
        "hours_seen": round(
            params.num_steps * params.batch_size * crop / params.sample_rate_hz / 3600, 3
        ),
        "precision": "bfloat16" if use_bfloat16 else "float32",
        "first_loss": first,
        "last_loss": last,
    }
    return codec, facts


def _loss(params: Codec, audio: Tensor, target: Tensor, commitment: Tensor, power: float) -> _Terms:
    waveform = (audio - target).square().mean() / power
    spectral = spectral_loss(
        audio,
        target,
        log_share=params.log_spectral_share,
        sample_rate_hz=params.sample_rate_hz,
        windows=params.spectral_windows,
    )
    total = (
        params.waveform_weight * waveform
        + params.spectral_weight * spectral
        + params.commit_weight * commitment
    )
    return _Terms(total, waveform.detach(), spectral.detach(), commitment.detach())


def _rate_share(step: int, num_steps: int) -> float:
    """Linear warm-up, then a cosine to a fiftieth; `step` counts from 1."""
    warm = min(1.0, step / min(_NUM_WARMUP_STEPS, num_steps))
    return warm * (0.02 + 0.49 * (1 + math.cos(math.pi * (step - 1) / num_steps)))


def _use_bfloat16(precision: str, device: torch.device) -> bool:
    if precision == "auto":
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported()
        # Where the processor only emulates it, bfloat16 is slower than float32.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return precision == "bfloat16"


def _crop_samples(params: Codec, clip_samples: int) -> int:
    wanted = round(params.crop_seconds * params.sample_rate_hz / params.hop) * params.hop
    longest = clip_samples // params.hop * params.hop
    if longest == 0:
        raise ValueError(
            f"a clip must be at least codec.hop long: got {clip_samples} samples for "
            f"{params.hop}; lower codec.hop or raise shard.segment_seconds"
        )
    return min(max(wanted, params.hop), longest)


def _draw_crops(clips: np.ndarray, batch_size: int, crop: int, rng: np.random.Generator) -> Tensor:
    rows = rng.integers(0, len(clips), batch_size)
    starts = rng.integers(0, clips.shape[1] - crop + 1, batch_size)
    cut = np.stack([clips[i, j : j + crop] for i, j in zip(rows, starts, strict=True)])
    return torch.from_numpy(cut.astype(np.float32) / 32767)


def _mean_power(clips: np.ndarray) -> float:
    total = sum(float(np.square(clip.astype(np.float64) / 32767).mean()) for clip in clips)
    return max(total / len(clips), 1e-6)


@contextmanager
def _spooled_audio(shards_dir: Path, split: str) -> Iterator[np.ndarray]:
    """The sound of a split as int16 `[n, samples]`, in a temporary file rather than in memory."""
    with tempfile.TemporaryFile() as file:
        num_clips, num_samples = 0, 0
        for sample in iterate_shards(shards_dir, split):
            if num_clips and len(sample.audio) != num_samples:
                raise ValueError(
                    f"all clips of {shards_dir} must be equally long: {sample.key} has "
                    f"{len(sample.audio)} samples, not {num_samples}; run the shard stage again"
                )
            num_samples = len(sample.audio)
            file.write(np.rint(sample.audio * 32767).astype(np.int16).tobytes())
            num_clips += 1
        if num_clips == 0:
            raise ValueError(
                f"split {split} of {shards_dir} must hold clips to train the codec on: got none; "
                "see the reasons for skipping in its manifest.jsonl"
            )
        file.flush()
        yield np.memmap(file, np.int16, mode="r", shape=(num_clips, num_samples))


def _read_clips(shards_dir: Path, split: str, limit: int) -> list[np.ndarray]:
    """At most `limit` clips, spread evenly over the split."""
    total = sum(s["count"] for s in read_shards_index(shards_dir) if s["split"] == split)
    if total == 0:
        return []
    stride = -(-total // limit)
    return [
        sample.audio
        for index, sample in enumerate(iterate_shards(shards_dir, split))
        if index % stride == 0
    ]


def _check_released(codec: JukeboxVQVAE, params: Codec) -> None:
    for name in ("hop", "num_codes"):
        fixed, asked = getattr(codec, name), getattr(params, name)
        if fixed != asked:
            raise WeightsError(
                f"codec.{name} must be {fixed} with the released codec.weights: got {asked}; "
                f"set it to {fixed}, or weights to null"
            )


def _onset_f1(original: np.ndarray, decoded: np.ndarray, rate: int) -> float | None:
    try:
        load_librosa()
        import librosa
        import mir_eval
    except ImportError:
        return None

    def onsets(audio: np.ndarray) -> np.ndarray:
        return librosa.onset.onset_detect(y=audio, sr=rate, units="time")  # type: ignore[attr-defined,unused-ignore]

    scores = [
        mir_eval.onset.f_measure(onsets(one), onsets(other), window=0.05)[0]
        for one, other in zip(original, decoded, strict=True)
    ]
    return float(np.mean(scores))
