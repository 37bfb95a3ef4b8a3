"""The encode stage: every clip's sound as tokens, once, so that training never runs the codec."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cdcd.codecs.base import Codec
from cdcd.codecs.store import load_codec, read_facts
from cdcd.data.cache import OpenSplit, new_split
from cdcd.data.files import atomic_directory, write_json
from cdcd.data.samples import SPLITS, Sample, genre_label
from cdcd.data.shards import iterate_shards, read_shards_index

if TYPE_CHECKING:
    from cdcd.config import Params

logger = logging.getLogger(__name__)


def encode_dataset(
    params: Params, shards_dir: str | Path, codec_dir: str | Path, out_dir: str | Path
) -> dict[str, Any]:
    """Write the tokens of each split, sorted by key, to `out_dir`.

    Each split gets `tokens` int32 `[n, l]` and, when `encode.num_waveform_negatives` is positive,
    `intra` int32 `[n, negatives, l]`: tokens of the same sound with its chunks shuffled before
    encoding, as the paper's intra-negatives are (its released code shuffles tokens instead).

    Args:
        params: sections `encode` and `shard` are used.
        shards_dir: as the shard stage left it.
        codec_dir: as the codec stage left it.
        out_dir: replaced when everything in it is written.

    Returns:
        The summary that is also in `summary.json`.

    Raises:
        ValueError: damaged shards or codec, clips of different lengths, or chunks that do not fit.
    """
    shards_dir = Path(shards_dir)
    facts = read_facts(codec_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec = load_codec(codec_dir, device)
    common = {
        "segment_seconds": params.shard.segment_seconds,
        "sample_rate_hz": codec.sample_rate_hz,
        "hop": codec.hop,
        "num_codes": codec.num_codes,
        "codec_sha256": facts["weights_sha256"],
        "num_chunks": params.encode.num_chunks,
    }
    counts: dict[str, int] = {}
    used = torch.zeros(codec.num_codes, dtype=torch.bool)
    with atomic_directory(out_dir) as folder:
        for split, num_clips in count_clips(shards_dir).items():
            counts[split] = num_clips
            layout = _layout(params, codec, num_clips)
            with new_split(folder, split, layout) as opened:
                opened.info.update(common)
                for tokens in _encode_split(params, codec, device, shards_dir, opened, split):
                    used[torch.from_numpy(tokens).flatten().long()] = True
        summary = {
            "num_clips": counts,
            "num_tokens_per_clip": params.shard.segment_seconds * codec.sample_rate_hz // codec.hop,
            "num_waveform_negatives": params.encode.num_waveform_negatives,
            "code_usage": round(float(used.float().mean()), 4),
            "codec_sha256": facts["weights_sha256"],
        }
        write_json(folder / "summary.json", summary)
    return summary


def count_clips(shards_dir: str | Path) -> dict[str, int]:
    """Clips of each split that has any, in the order train, val, test."""
    counts: dict[str, int] = {}
    for shard in read_shards_index(shards_dir):
        counts[shard["split"]] = counts.get(shard["split"], 0) + shard["count"]
    return {split: counts[split] for split in SPLITS if counts.get(split)}


def derangement(num_chunks: int, generator: np.random.Generator) -> np.ndarray:
    """A random order of `0 .. num_chunks - 1` that leaves no chunk in place, all equally likely."""
    while True:  # a fraction 1/e of all orders qualifies
        order = generator.permutation(num_chunks)
        if not (order == np.arange(num_chunks)).any():
            return order


def shuffle_waveform(
    audio: np.ndarray, key: str, num_negatives: int, num_chunks: int
) -> np.ndarray:
    """Shuffled copies of a sound, the same for the same key.

    Args:
        audio: float32 `[n]`.
        key: names the clip and seeds the orders.
        num_negatives: how many copies.
        num_chunks: equal chunks; the samples left over stay at the end.

    Returns:
        float32 `[num_negatives, n]`.

    Raises:
        ValueError: fewer than two samples' worth of chunks.
    """
    size = len(audio) // num_chunks
    if num_chunks < 2 or size == 0:
        raise ValueError(
            f"encode.num_chunks must lie between 2 and the clip's {len(audio)} samples: "
            f"got {num_chunks}"
        )
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    generator = np.random.default_rng(seed)
    chunks, rest = audio[: size * num_chunks].reshape(num_chunks, size), audio[size * num_chunks :]
    return np.stack(
        [
            np.concatenate([chunks[derangement(num_chunks, generator)].ravel(), rest])
            for _ in range(num_negatives)
        ]
    )


def _layout(
    params: Params, codec: Codec, num_clips: int
) -> dict[str, tuple[tuple[int, ...], type[np.int32]]]:
    """Shape and dtype of the arrays of a split."""
    length = params.shard.segment_seconds * codec.sample_rate_hz // codec.hop
    layout: dict[str, tuple[tuple[int, ...], type[np.int32]]] = {
        "tokens": ((num_clips, length), np.int32)
    }
    num_negatives = params.encode.num_waveform_negatives
    if num_negatives:
        layout["intra"] = ((num_clips, num_negatives, length), np.int32)
    return layout


def _encode_split(
    params: Params,
    codec: Codec,
    device: torch.device,
    shards_dir: Path,
    opened: OpenSplit,
    split: str,
) -> Iterator[np.ndarray]:
    """Fill the arrays and labels of a split and yield the tokens of each batch."""
    from tqdm import tqdm

    arrays, num_negatives = opened.arrays, params.encode.num_waveform_negatives
    samples = tqdm(
        iterate_shards(shards_dir, split),
        desc=f"encode {split}",
        unit="clip",
        total=len(arrays["tokens"]),
        mininterval=1.0,
    )
    labels: dict[str, list[Any]] = {"keys": [], "genres": [], "songs": [], "sequences": []}
    for batch in _batched(samples, params.encode.batch_size):
        tokens = _tokens(codec, np.stack([sample.audio for sample in batch]), device)
        for sample, own in zip(batch, tokens, strict=True):
            row = len(labels["keys"])
            if own.shape != arrays["tokens"].shape[1:]:
                raise ValueError(
                    f"{sample.key} must have {arrays['tokens'].shape[1]} tokens for "
                    f"shard.segment_seconds: got {len(own)}; run the shard stage again"
                )
            arrays["tokens"][row] = own
            if num_negatives:
                shuffled = shuffle_waveform(
                    sample.audio, sample.key, num_negatives, params.encode.num_chunks
                )
                arrays["intra"][row] = _tokens(codec, shuffled, device)
            labels["keys"].append(sample.key)
            labels["genres"].append(genre_label(sample.meta))
            labels["songs"].append(sample.meta["song"])
            labels["sequences"].append(sample.meta["sequence"])
        yield tokens
    opened.info.update(labels)


def _tokens(codec: Codec, audio: np.ndarray, device: torch.device) -> np.ndarray:
    return codec.encode(torch.from_numpy(audio).to(device)).to(torch.int32).cpu().numpy()


def _batched(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    for sample in samples:
        if batch and len(sample.audio) != len(batch[0].audio):
            raise ValueError(
                f"all clips must be equally long: {sample.key} has {len(sample.audio)} samples, "
                f"{batch[0].key} {len(batch[0].audio)}; run the shard stage again"
            )
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
