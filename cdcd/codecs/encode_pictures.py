"""The encode stage of pictures: every picture as a grid of tokens, once, in one or more crops."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdcd.codecs.base import PictureCodec
from cdcd.codecs.encode import count_clips
from cdcd.codecs.store import load_picture_codec, read_facts
from cdcd.data.cache import OpenSplit, new_split
from cdcd.data.files import atomic_directory, write_json
from cdcd.data.images import evaluation_crop, training_crop
from cdcd.data.samples import Picture, sample_generator
from cdcd.data.shards import iterate_pictures

if TYPE_CHECKING:
    from cdcd.config import Params

logger = logging.getLogger(__name__)

UNLABELLED = -1


def encode_pictures(
    params: Params, shards_dir: str | Path, codec_dir: str | Path, out_dir: str | Path
) -> dict[str, Any]:
    """Write the tokens of each split, sorted by key, to `out_dir`.

    Each split gets `tokens` int32 `[n, c, l]`, the grids row by row. A training picture has
    `encode.crops` of them: crop j is the published loader's random one, drawn from the seed of the
    codec, j and the key; 1 is the centre crop alone, which the other splits always have.

    Args:
        params: section `encode` is used.
        shards_dir: as the shard stage left it.
        codec_dir: as the codec stage left it.
        out_dir: replaced when everything in it is written.

    Returns:
        The summary that is also in `summary.json`.

    Raises:
        ValueError: damaged shards or codec, or a codec of sound.
    """
    shards_dir = Path(shards_dir)
    facts = read_facts(codec_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec = load_picture_codec(codec_dir, device)
    size = codec.image_size
    # The codec alone decides size and crops, so that a parameter cannot disagree with it.
    seed = int(facts["facts"].get("seed", 0))
    grid = [size // codec.factor] * 2
    common = {
        "kind": "picture",
        "num_codes": codec.num_codes,
        "grid": grid,
        "image_size": size,
        "codec_sha256": facts["weights_sha256"],
    }
    counts = count_clips(shards_dir)
    used = np.zeros(codec.num_codes, dtype=np.bool_)
    with atomic_directory(out_dir) as folder:
        for split, num_pictures in counts.items():
            crops = params.encode.crops if split == "train" else 1
            layout = {"tokens": ((num_pictures, crops, grid[0] * grid[1]), np.int32)}
            with new_split(folder, split, layout) as opened:
                opened.info.update(common)
                pictures = iterate_pictures(shards_dir, split)
                for tokens in _encode_split(params, codec, seed, device, pictures, opened, split):
                    used[tokens] = True
        summary = {
            "num_pictures": counts,
            "num_tokens_per_picture": grid[0] * grid[1],
            "grid": grid,
            "crops": params.encode.crops,
            "code_usage": round(float(used.mean()), 4),
            "codec_sha256": facts["weights_sha256"],
        }
        write_json(folder / "summary.json", summary)
    return summary


def cut(picture: Picture, size: int, crops: int, seed: int) -> NDArray[np.uint8]:
    """The crops of a picture that are encoded: uint8 `[crops, size, size, 3]`.

    Args:
        picture: of any size.
        size: pixels per side.
        crops: how many; 1 is the centre crop.
        seed: with the crop's number and the picture's key the only source of randomness.
    """
    if crops == 1:
        return evaluation_crop(picture.image, size)[None]
    generators = (sample_generator(seed, crop, picture.key) for crop in range(crops))
    return np.stack([training_crop(picture.image, size, generator) for generator in generators])


def _encode_split(
    params: Params,
    codec: PictureCodec,
    seed: int,
    device: torch.device,
    pictures: Iterable[Picture],
    opened: OpenSplit,
    split: str,
) -> Iterator[NDArray[np.int32]]:
    """Fill the tokens and labels of a split and yield the tokens of each batch."""
    from tqdm import tqdm

    tokens = opened.arrays["tokens"]
    num_pictures, crops, _ = tokens.shape
    size = codec.image_size
    bar = tqdm(pictures, f"encode {split}", num_pictures, unit="picture", mininterval=1.0)
    keys: list[str] = []
    labels: list[int] = []
    sets: list[list[str] | None] = []
    for batch in _batched(bar, max(1, params.encode.batch_size // crops)):
        images = np.concatenate([cut(picture, size, crops, seed) for picture in batch])
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # (b c) rgb h w
        found = codec.encode(torch.from_numpy(images).to(device)).to(torch.int32).cpu().numpy()
        tokens[len(keys) : len(keys) + len(batch)] = found.reshape(len(batch), crops, -1)
        keys += [picture.key for picture in batch]
        labels += [UNLABELLED if picture.label is None else picture.label for picture in batch]
        sets += [picture.meta.get("categories") for picture in batch]
        yield found
    has_sets = any(own is not None for own in sets)
    opened.info.update(keys=keys, labels=labels, label_sets=sets if has_sets else None)


def _batched(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    remaining = iter(pictures)
    while batch := list(itertools.islice(remaining, size)):
        yield batch
