"""The featurize stage of pictures: every caption as a sequence of the text encoder, or classes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cdcd.data.cache import new_split
from cdcd.data.files import atomic_directory, write_json
from cdcd.data.samples import SPLITS, Picture
from cdcd.data.shards import iterate_pictures, read_shards_index
from cdcd.features.base import FeatureError
from cdcd.features.text import TextEncoder, Tokens, shortened

if TYPE_CHECKING:
    from cdcd.config import Params

logger = logging.getLogger(__name__)

_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class _Captions:
    """The captions of one split, without their pictures, sorted by pair key.

    Attributes:
        keys: `<picture key>_<caption name>`.
        texts: of each.
        pictures: row of each caption's picture in `picture_keys`.
        picture_keys: sorted.
        tokens: of the texts.
    """

    keys: list[str]
    texts: list[str]
    pictures: list[int]
    picture_keys: list[str]
    tokens: Tokens


def featurize_captions(
    params: Params, shards_dir: str | Path, encoder_dir: str | Path, out_dir: str | Path
) -> dict[str, Any]:
    """Write the sequence of every caption, sorted by pair key, and replace `out_dir` when done.

    Each split gets `text` float16 `[m, s, d]` (last hidden states after the final norm, zero behind
    the end token), `length` int32 `[m]` and `picture` int32 `[m]`, the row of the caption's picture
    in `info["picture_keys"]`; `s` is the longest caption of all splits.

    Args:
        params: `featurize.text_batch_size` is used.
        shards_dir: pictures with captions, as the shard stage left them.
        encoder_dir: as `train_clip` left it, or any CLIP in the hub's layout.
        out_dir: replaced when everything in it is written.

    Returns:
        The summary that is also in `summary.json`: captions and pictures per split, how many were
        cut, with examples, and how long they are.

    Raises:
        ValueError: damaged shards or encoder, or no captions.
    """
    shards_dir = Path(shards_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = TextEncoder.load(encoder_dir, device)
    splits = {
        split: _read_captions(encoder, shards_dir, split, count)
        for split, count in _counts(shards_dir).items()
    }
    longest = max(int(own.tokens.lengths.max()) for own in splits.values())
    summary: dict[str, Any] = {
        "kind": "text",
        "encoder": encoder.identity(),
        "num_captions": {split: len(own.keys) for split, own in splits.items()},
        "num_pictures": {split: len(own.picture_keys) for split, own in splits.items()},
        "longest_tokens": longest,
        **_length_facts(encoder, splits),
    }
    with atomic_directory(out_dir) as folder:
        for split, own in splits.items():
            count = len(own.keys)
            layout: dict[str, tuple[tuple[int, ...], Any]] = {
                "text": ((count, longest, encoder.width), np.float16),
                "length": ((count,), np.int32),
                "picture": ((count,), np.int32),
            }
            with new_split(folder, split, layout) as opened:
                _fill(params, encoder, own, split, opened.arrays)
                opened.info.update(
                    kind="text",
                    keys=own.keys,
                    captions=own.texts,
                    picture_keys=own.picture_keys,
                    encoder=encoder.identity(),
                    num_truncated=int(own.tokens.truncated.sum()),
                )
        write_json(folder / "summary.json", summary)
    _report(encoder, summary)
    return summary


def featurize_classes(
    params: Params, shards_dir: str | Path, out_dir: str | Path
) -> dict[str, Any]:
    """Write the class of every picture, sorted by key, and replace `out_dir` when done.

    Each split gets `label` int32 `[n]`; its info holds the names of all classes by label.

    Args:
        params: the dataset's own.
        shards_dir: pictures with classes, as the shard stage left them.
        out_dir: replaced when everything in it is written.

    Returns:
        The summary that is also in `summary.json`: pictures per split, classes, and which of them
        the train split lacks.

    Raises:
        ValueError: damaged shards, a picture without a class, or one class with two names.
    """
    shards_dir = Path(shards_dir)
    names: dict[int, str] = {}
    keys: dict[str, list[str]] = {}
    labels: dict[str, list[int]] = {}
    for split, count in _counts(shards_dir).items():
        keys[split], labels[split] = [], []
        for picture in _progress(iterate_pictures(shards_dir, split), split, count):
            label = _label(picture, names)
            keys[split].append(picture.key)
            labels[split].append(label)
    num_classes = max(names) + 1
    class_names = [names.get(label, f"class {label}") for label in range(num_classes)]
    trained = Counter(labels.get("train", ()))
    untrained = sorted(set(names) - set(trained))
    summary: dict[str, Any] = {
        "kind": "class",
        "num_classes": num_classes,
        "num_pictures": {split: len(own) for split, own in keys.items()},
        "pictures_per_class": {
            split: [min(found := Counter(own).values()), max(found)]
            for split, own in labels.items()
        },
        "classes_without_training": [class_names[label] for label in untrained[:_NUM_EXAMPLES]],
        "num_without_training": len(untrained),
    }
    with atomic_directory(out_dir) as folder:
        for split, own in keys.items():
            with new_split(folder, split, {"label": ((len(own),), np.int32)}) as opened:
                opened.arrays["label"][:] = labels[split]
                opened.info.update(
                    kind="class", keys=own, class_names=class_names, num_classes=num_classes
                )
        write_json(folder / "summary.json", summary)
    if untrained:
        logger.warning(
            "%d classes have no picture to train on, the first: %s",
            len(untrained),
            class_names[untrained[0]],
        )
    logger.info("%s: %d classes, pictures %s", out_dir, num_classes, summary["num_pictures"])
    return summary


def _counts(shards_dir: Path) -> dict[str, int]:
    """Pictures of each split that has any, in the order train, val, test."""
    counts: Counter[str] = Counter()
    for shard in read_shards_index(shards_dir):
        counts[shard["split"]] += shard["count"]
    found = {split: counts[split] for split in SPLITS if counts[split]}
    if not found:
        raise FeatureError(
            f"{shards_dir} must hold pictures: got none; see the reasons for skipping in its "
            "manifest.jsonl"
        )
    return found


def _progress(pictures: Iterator[Picture], split: str, count: int) -> Iterator[Picture]:
    from tqdm import tqdm

    return iter(
        tqdm(pictures, desc=f"featurize {split}", unit="picture", total=count, mininterval=1.0)
    )


def _read_captions(encoder: TextEncoder, shards_dir: Path, split: str, count: int) -> _Captions:
    pairs: list[tuple[str, str, int]] = []
    picture_keys: list[str] = []
    for picture in _progress(iterate_pictures(shards_dir, split), split, count):
        own = picture.pairs()
        if own:
            pairs += [(key, text, len(picture_keys)) for key, text in own]
            picture_keys.append(picture.key)
    if not pairs:
        raise FeatureError(
            f"split {split} of {shards_dir} must hold captions: got {count} pictures without any; "
            "shard a dataset with captions"
        )
    pairs.sort()
    keys, texts, pictures = (list(column) for column in zip(*pairs, strict=True))
    return _Captions(keys, texts, pictures, picture_keys, encoder.tokenize(texts))


def _fill(
    params: Params,
    encoder: TextEncoder,
    own: _Captions,
    split: str,
    arrays: Mapping[str, np.ndarray],
) -> None:
    from tqdm import tqdm

    arrays["length"][:] = own.tokens.lengths.numpy()
    arrays["picture"][:] = own.pictures
    # Captions of one length together: none is padded for the sake of another.
    order = torch.argsort(own.tokens.lengths, stable=True)
    bar = tqdm(total=len(order), desc=f"featurize {split}", unit="caption", mininterval=1.0)
    with bar:
        for rows in order.split(params.featurize.text_batch_size):
            length = int(own.tokens.lengths[rows].max())
            batch = Tokens(*(values[rows] for values in own.tokens))
            encoded = encoder.encode_tokens(batch._replace(ids=batch.ids[:, :length]))
            states = _as_float16(encoded.sequence, encoder)
            arrays["text"][rows.numpy(), :length] = states.numpy()
            bar.update(len(rows))


def _as_float16(states: Tensor, encoder: TextEncoder) -> Tensor:
    largest = float(states.abs().max())
    if not largest <= torch.finfo(torch.float16).max:
        raise FeatureError(
            f"hidden states of {encoder.identity()['name']} must fit into 16 bits: got {largest}; "
            "use other weights"
        )
    return states.half()


def _length_facts(encoder: TextEncoder, splits: Mapping[str, _Captions]) -> dict[str, Any]:
    """How long the captions are, how many were cut, and of some where."""
    lengths = torch.cat([own.tokens.lengths for own in splits.values()])
    cut = [
        (key, text)
        for own in splits.values()
        for key, text, is_cut in zip(own.keys, own.texts, own.tokens.truncated, strict=True)
        if is_cut
    ]
    examples = []
    for key, text in cut[:_NUM_EXAMPLES]:
        found = encoder.cut(text)
        assert found is not None
        examples.append(
            {"key": key, "dropped_tokens": found.num_dropped, "kept_end": found.kept[-60:]}
        )
    meaningless = [
        text
        for own in splits.values()
        for text, num_known in zip(own.texts, own.tokens.num_known, strict=True)
        if num_known == 0
    ]
    return {
        "mean_tokens": round(float(lengths.float().mean()), 2),
        "num_truncated": {s: int(own.tokens.truncated.sum()) for s, own in splits.items()},
        "truncated_examples": examples,
        "num_unknown": len(meaningless),
        "unknown_examples": [shortened(text) for text in meaningless[:_NUM_EXAMPLES]],
    }


def _report(encoder: TextEncoder, summary: Mapping[str, Any]) -> None:
    logger.info(
        "captions %s, at most %d tokens", summary["num_captions"], summary["longest_tokens"]
    )
    if any(summary["num_truncated"].values()):
        logger.warning(
            "captions longer than %d tokens were cut: %s; the first: %s",
            encoder.context_length,
            summary["num_truncated"],
            summary["truncated_examples"][0],
        )
    if summary["num_unknown"]:
        logger.warning(
            "%d captions mean nothing to the text encoder, the first: %s",
            summary["num_unknown"],
            summary["unknown_examples"][0],
        )


def _label(picture: Picture, names: dict[int, str]) -> int:
    """A picture's class; its name is noted and must be the same for all pictures of the class."""
    if picture.label is None:
        raise FeatureError(
            f"every picture must have a class: {picture.key} has none; shard a dataset with classes"
        )
    name = str(picture.meta.get("class") or f"class {picture.label}")
    known = names.setdefault(picture.label, name)
    if known != name:
        raise FeatureError(
            f"a class must have one name: class {picture.label} is {known!r} and, of "
            f"{picture.key}, {name!r}; run ingest and shard again"
        )
    return picture.label
