"""Rows beside the model that show what its scores are worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cdcd.data.samples import SAMPLE_RATE_HZ

NOISE_STD = 0.1


def derange(keys: Sequence[str], songs: Mapping[str, str], seed: int) -> dict[str, str]:
    """Give every clip another clip, of a different song, each used once.

    Args:
        keys: distinct keys of the clips.
        songs: song by key.
        seed: of the draw; the order of `keys` does not matter.

    Returns:
        The other clip's key by key. Where one song holds more than half of the clips no such
        assignment exists; then the clips differ but songs may not.

    Raises:
        ValueError: fewer than two clips.
    """
    keys = sorted(keys)
    num = len(keys)
    if num < 2:
        raise ValueError(f"shuffling music needs at least 2 clips: got {num}; generate more clips")
    group = {key: songs[key] for key in keys}
    if max(Counter(group.values()).values()) > num // 2:
        group = {key: key for key in keys}
    generator = np.random.default_rng(seed)
    order = [keys[i] for i in generator.permutation(num)]
    rank = {name: i for i, name in enumerate(dict.fromkeys(group[key] for key in order))}
    order.sort(key=lambda key: rank[group[key]])
    # Groups lie side by side and none is longer than the shift or the rest, so a rotation by the
    # longest never stays within a group. Valid swaps then make the assignment random.
    shift = max(Counter(group.values()).values())
    partner = order[shift:] + order[:shift]
    for first, second in generator.integers(0, num, size=(20 * num, 2)):
        if (
            group[order[first]] != group[partner[second]]
            and group[order[second]] != group[partner[first]]
        ):
            partner[first], partner[second] = partner[second], partner[first]
    return dict(sorted(zip(order, partner, strict=True)))


def white_noise(keys: Sequence[str], seconds: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """Return Gaussian noise for every clip, float32 `[seconds * 22050]`, different in each."""
    generator = np.random.default_rng(seed)
    num_samples = seconds * SAMPLE_RATE_HZ
    return {
        key: (NOISE_STD * generator.standard_normal(num_samples)).clip(-1, 1).astype(np.float32)
        for key in sorted(keys)
    }


def silence(keys: Sequence[str], seconds: int) -> dict[str, NDArray[np.float32]]:
    """Return digital silence for every clip, float32 `[seconds * 22050]`."""
    return {key: np.zeros(seconds * SAMPLE_RATE_HZ, np.float32) for key in keys}


def codec_reconstruction(
    codec_dir: str | Path, tokens_dir: str | Path, split: str, batch_size: int = 16
) -> dict[str, NDArray[np.float32]]:
    """Decode the cached tokens of the originals: the best a model of these tokens can sound.

    Returns:
        float32 `[l * hop]` by key.
    """
    import torch

    from cdcd.codecs.store import load_codec
    from cdcd.data.cache import read_split

    codec = load_codec(Path(codec_dir))
    tokens = read_split(tokens_dir, split)
    keys: list[str] = tokens.info["keys"]
    sounds: dict[str, NDArray[np.float32]] = {}
    with torch.no_grad():
        for start in range(0, len(keys), batch_size):
            rows = np.array(tokens.arrays["tokens"][start : start + batch_size], dtype=np.int64)
            decoded = codec.decode(torch.from_numpy(rows)).float().clamp(-1, 1).cpu().numpy()
            sounds.update(zip(keys[start : start + batch_size], decoded, strict=True))
    return sounds
