"""Looks at pictures batch by batch and keeps only what scores need of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdcd.evaluation.frechet import Gaussian
from cdcd.evaluation.pictures.accuracy import top_classes
from cdcd.evaluation.pictures.sets import BATCH, Pixels
from cdcd.evaluation.pictures.stand_in import CLASS, Reader, small

if TYPE_CHECKING:
    from cdcd.evaluation.networks.inception import Inception
    from cdcd.evaluation.networks.resnet import ResNet
    from cdcd.features.text import TextEncoder

NUM_TOP = 5
STAND_IN_FEATURES = "stand-in features, not comparable with the paper"


@dataclass(eq=False)
class Seen:
    """What is kept of a set of n pictures.

    Attributes:
        num: n.
        features: mean and covariance of the features of the Fréchet distance; None without them.
        values: number of the value seen, int64 `[n]` by attribute.
        top: the likeliest classes, best first, int64 `[n, up to 5]`; None without a classifier.
        clip: picture vectors float32 `[n, e]`; None without a CLIP.
    """

    num: int = 0
    features: Gaussian | None = None
    values: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    top: NDArray[np.int64] | None = None
    clip: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Viewer:
    """The networks that look at pictures; those that are None look at nothing.

    Attributes:
        reader: the stand-in's classifier.
        inception: of the Fréchet distance; without it the reader's features are compared.
        resnet: of the classes; without it the reader's are taken.
        encoder: the CLIP of CLIPScore.
        device: of inception and resnet.
    """

    reader: Reader | None
    inception: Inception | None
    resnet: ResNet | None
    encoder: TextEncoder | None
    device: torch.device

    @property
    def score_name(self) -> str:
        """Name of the Fréchet distance: only that of Inception's features is the FID."""
        return "fid" if self.inception is not None else "fid_stand_in"

    def see(self, batches: Iterable[Pixels]) -> Seen:
        """Look at a set, batch by batch: each uint8 `[b, s, s, 3]`."""
        seen = Seen()
        parts: dict[str, list[NDArray[Any]]] = {}
        for batch in batches:
            seen.num += len(batch)
            features, found = self._look(batch)
            if features is not None:
                if seen.features is None:
                    seen.features = Gaussian(features.shape[1])
                seen.features.add(features)
            for name, values in found.items():
                parts.setdefault(name, []).append(values)
        joined = {name: np.concatenate(values) for name, values in parts.items()}
        seen.top, seen.clip = joined.pop("top", None), joined.pop("clip", None)
        seen.values = {name.removeprefix("value."): values for name, values in joined.items()}
        return seen

    def _look(self, batch: Pixels) -> tuple[NDArray[np.float32] | None, dict[str, NDArray[Any]]]:
        features: NDArray[np.float32] | None = None
        found: dict[str, NDArray[Any]] = {}
        if self.reader is not None:
            features, logits = self.reader.classifier.look(small(batch))
            for name, values in logits.items():
                if name == CLASS:
                    found["top"] = top_classes(values, min(NUM_TOP, values.shape[1]))
                else:
                    found[f"value.{name}"] = values.argmax(axis=1)
        if self.inception is not None:
            pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).to(self.device)
            with torch.inference_mode():
                features = self.inception(pixels).float().cpu().numpy()
        if self.resnet is not None:
            from cdcd.evaluation.networks.resnet import preprocess

            with torch.inference_mode():
                logits_1000 = self.resnet(preprocess(batch).to(self.device)).float().cpu().numpy()
            found["top"] = top_classes(logits_1000, NUM_TOP)
        if self.encoder is not None:
            found["clip"] = self.encoder.image_features(batch).numpy()
        return features, found


def decoded(
    codec_dir: str | Path, tokens_dir: str | Path, split: str, picture_keys: list[str], side: int
) -> Iterator[Pixels]:
    """Decode the cached tokens of held-out pictures: the best a model of these tokens can draw.

    Args:
        codec_dir: the codec.
        tokens_dir: tokens int32 `[n, crops, l]`; those of the first crop are decoded.
        split: which split.
        picture_keys: which pictures, in which order.
        side: pixels per side that they must have.

    Yields:
        uint8 `[b, s, s, 3]`.

    Raises:
        ValueError: a picture has no tokens, or the codec draws pictures of another size.
    """
    from cdcd.codecs.store import load_picture_codec
    from cdcd.data.cache import read_split

    codec = load_picture_codec(Path(codec_dir))
    stored = read_split(tokens_dir, split)
    rows = {key: i for i, key in enumerate(stored.info["keys"])}
    missing = [key for key in picture_keys if key not in rows]
    if missing:
        raise ValueError(
            f"{tokens_dir} must hold the tokens of every picture of split {split}: got none of "
            f"{missing[0]} and {len(missing) - 1} more; run `encode` again"
        )
    tokens = stored.arrays["tokens"]
    with torch.inference_mode():
        for start in range(0, len(picture_keys), BATCH):
            chosen = [rows[key] for key in picture_keys[start : start + BATCH]]
            found = np.array(tokens[chosen, 0] if tokens.ndim == 3 else tokens[chosen], np.int64)
            pictures = codec.decode(torch.from_numpy(found)).permute(0, 2, 3, 1).cpu().numpy()
            if pictures.shape[1:] != (side, side, 3):
                raise ValueError(
                    f"{codec_dir} must draw pictures of {side} x {side} pixels, as generated: got "
                    f"{pictures.shape[2]} x {pictures.shape[1]}; run `generate` again"
                )
            yield np.ascontiguousarray(pictures)
