"""Text and classes to pictures, composed: from cached tokens and conditions to a model and back."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdcd.config import Params
from cdcd.data.cache import list_splits, read_split, write_split
from cdcd.data.files import atomic_directory, write_json
from cdcd.data.images import evaluation_crop
from cdcd.data.picture_batches import (
    PictureConditions,
    PicturePairs,
    read_conditions,
    read_picture_pairs,
)
from cdcd.diffusion.sampler import SamplerConfig
from cdcd.diffusion.schedule import Schedule
from cdcd.generation import PictureGenerator
from cdcd.models.model import ConditionalDenoiser, ModelSpec
from cdcd.models.picture_conditioner import ClassSpec, TextSpec
from cdcd.tasks.training import spread
from cdcd.tracking import NullTracker, Tracker

SYSTEMS = {"model": True, "unconditioned": False}
"""What each generated system may see of its condition."""


class ConditionToImage:
    """What training on pictures adds.

    Args:
        name: `text2image` or `class2image`.
        params: sections `train` and `generate` are used.
        tokens_dir: cached tokens.
        features_dir: captions or classes of the same pictures.
        codec_dir: the codec, only to look at previews.
    """

    def __init__(
        self, name: str, params: Params, tokens_dir: Path, features_dir: Path, codec_dir: Path
    ) -> None:
        self.name = name
        self.params = params
        self.tokens_dir = tokens_dir
        self.features_dir = features_dir
        self.codec_dir = codec_dir

    def read(self, split: str) -> PicturePairs | None:
        """Tokens and conditions of a split; None where the dataset has no such split."""
        if split not in list_splits(self.tokens_dir):
            return None
        return read_picture_pairs(self.tokens_dir, self.features_dir, split)

    def spec(self, pairs: PicturePairs) -> ModelSpec:
        """The network's shape, from the parameters and from what was cached."""
        p, info = self.params.train, pairs.features.info
        rows, columns = pairs.info["grid"]
        conditioner: TextSpec | ClassSpec
        if pairs.features.text is not None:
            encoder = info["encoder"]
            conditioner = TextSpec(int(encoder["width"]), int(encoder["context_length"]))
        else:
            conditioner = ClassSpec(
                int(info["num_classes"]), p.conditioner.class_width, p.conditioner.class_input
            )
        denoiser = p.denoiser
        return ModelSpec(
            num_codes=int(pairs.info["num_codes"]),
            num_steps=p.diffusion.num_steps,
            num_tokens=int(pairs.tokens.shape[2]),
            grid=(int(rows), int(columns)),
            width=denoiser.width,
            depth=denoiser.depth,
            num_heads=denoiser.num_heads,
            feedforward_multiple=denoiser.feedforward_multiple,
            feedforward=denoiser.feedforward,
            modulation=denoiser.modulation,
            dropout=denoiser.dropout,
            checkpoint_blocks=denoiser.checkpoint_blocks,
            conditioner=conditioner,
        )

    def prepare(self, model: ConditionalDenoiser, pairs: PicturePairs) -> None:
        """Nothing: texts come normalised and classes are learned."""

    def facts(self, pairs: PicturePairs) -> dict[str, Any]:
        """Codec and encoder that the model belongs to."""
        info = pairs.features.info
        return {
            "codec": {name: pairs.info[name] for name in ("image_size", "grid", "num_codes")},
            "codec_sha256": pairs.info["codec_sha256"],
            "encoder": info.get("encoder"),
            "class_names": info.get("class_names"),
        }

    def preview(
        self,
        model: ConditionalDenoiser,
        held_out: PicturePairs,
        schedule: Schedule,
        tracker: Tracker,
        step: int,
    ) -> None:
        """Eight pictures, generated beside the codec's reconstruction of the asked ones."""
        from cdcd.codecs.store import load_picture_codec
        from cdcd.pictures import rows as draw_rows

        device = next(model.parameters()).device
        codec = load_picture_codec(self.codec_dir, device)
        g = self.params.generate
        generator = PictureGenerator(model, codec, schedule, {}, device)
        batch = held_out.batch(spread(8, len(held_out)), device)
        random = torch.Generator(device).manual_seed(0)
        config = SamplerConfig(g.truncation, g.guidance, g.stride)
        made = generator.decode(generator.sample_tokens(batch.inputs, config, random))
        truth = generator.decode(batch.z_0)
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / f"step{step:06d}.png"
            draw_rows({"codec reconstruction": truth, "generated": made}, path)
            tracker.log_artifact(path, "previews")


def choose_conditions(conditions: PictureConditions, num: int | None, seed: int) -> np.ndarray:
    """Rows of `num` conditions, ascending, int64: a seeded choice that favours nothing.

    Each picture, or each class where classes are asked for, has its turn before any has a second.

    Args:
        conditions: of a split.
        num: how many; None or more than there are: all.
        seed: of the choice.
    """
    total = len(conditions)
    if num is None or num >= total:
        return np.arange(total)
    groups = conditions.picture if conditions.label is None else conditions.label
    order = np.random.default_rng(seed).permutation(total)
    seen: dict[int, int] = {}
    turns = np.empty(total, dtype=np.int64)
    for row in order.tolist():
        group = int(groups[row])
        turns[row] = seen.get(group, 0)
        seen[group] = int(turns[row]) + 1
    chosen = order[np.argsort(turns[order], kind="stable")][:num]
    return np.sort(chosen)


def generate_pictures(
    params: Params,
    generator: PictureGenerator,
    *,
    features_dir: Path,
    tokens_dir: Path,
    shards_dir: Path,
    out_dir: Path,
    tracker: Tracker | None = None,
) -> dict[str, Any]:
    """A picture for every held-out caption or class, for each system and seed, from the full mask.

    The generator is handed conditions alone; originals are read only for the pictures that show
    both.

    Returns:
        The summary that is also written to `out_dir/summary.json`.
    """
    from tqdm import tqdm

    tracker = tracker or NullTracker()
    g = params.generate
    conditions = read_conditions(features_dir, g.split)
    if not conditions.keys:
        raise ValueError(
            f"generate.split must name a split with pictures: {g.split} of {features_dir} is empty"
        )
    _check_encoder(generator, conditions)
    rows = choose_conditions(conditions, g.num_conditions, g.conditions_seed)
    config = SamplerConfig(g.truncation, g.guidance, g.stride)
    chunks = np.array_split(rows, math.ceil(len(rows) / g.batch_size))
    calls = math.ceil(generator.schedule.num_steps / g.stride)
    picture_keys = [conditions.picture_keys[conditions.picture[row]] for row in rows]
    captions = conditions.captions
    labels = _labels(tokens_dir, g.split, picture_keys)
    summary: dict[str, Any] = {
        "split": g.split,
        "num_conditions": len(rows),
        "num_available": len(conditions),
        "systems": {},
    }
    with (
        atomic_directory(out_dir) as folder,
        tqdm(
            total=len(SYSTEMS) * len(g.seeds) * len(chunks) * calls, desc="generate", unit="step"
        ) as bar,
    ):

        def advance(*_: int) -> None:
            bar.update()

        for name, is_given in SYSTEMS.items():
            for seed in g.seeds:
                random = torch.Generator(generator.device).manual_seed(seed)
                drawn = []
                for chunk in chunks:
                    inputs = conditions.inputs(chunk, generator.device)
                    drawn.append(
                        generator.sample_tokens(
                            inputs if is_given else inputs.without(),
                            config,
                            random,
                            advance,
                        )
                    )
                tokens = torch.cat(drawn)
                info = {
                    "keys": [conditions.keys[row] for row in rows],
                    "picture_keys": picture_keys,
                    "captions": None if captions is None else [captions[row] for row in rows],
                    "labels": labels,
                    "system": name,
                    "seed": seed,
                    "init": "mask",
                    "sees_condition": is_given,
                    "truncation": g.truncation,
                    "guidance": g.guidance if is_given else 1.0,
                    "stride": g.stride,
                    "image_size": generator.codec.image_size,
                }
                arrays: dict[str, np.ndarray] = {
                    "tokens": tokens.cpu().numpy().astype(np.int32),
                    "images": generator.decode(tokens),
                }
                write_split(folder, f"{name}-seed{seed}", arrays, info)
                summary["systems"].setdefault(name, []).append(seed)
        summary["sampler"] = dict(generator.facts["sampler"])
        _write_previews(params, generator, folder, shards_dir, conditions, rows, tracker)
        write_json(folder / "summary.json", summary)
    return summary


def _check_encoder(generator: PictureGenerator, conditions: PictureConditions) -> None:
    mine, theirs = generator.facts["encoder"], conditions.info.get("encoder")
    if mine != theirs:
        raise ValueError(
            f"captions must come from the encoder the model was trained with: got {theirs} for "
            f"{mine}; run `dvc repro featurize train`"
        )


def _labels(tokens_dir: Path, split: str, picture_keys: list[str]) -> list[int]:
    """Class of each picture, -1 where there is none."""
    info = read_split(tokens_dir, split).info
    by_key = dict(zip(info["keys"], info["labels"], strict=True))
    return [int(by_key[key]) for key in picture_keys]


def _write_previews(
    params: Params,
    generator: PictureGenerator,
    folder: Path,
    shards_dir: Path,
    conditions: PictureConditions,
    rows: np.ndarray,
    tracker: Tracker,
) -> None:
    """Grids of samples, originals beside generated, and how one picture comes out of the mask."""
    from cdcd import pictures
    from cdcd.data.shards import iterate_pictures

    g = params.generate
    if not g.num_previews:
        return
    stored = read_split(folder, f"model-seed{g.seeds[0]}")
    images, info = np.asarray(stored.arrays["images"]), stored.info
    previews = folder / "previews"
    previews.mkdir()
    names = generator.class_names
    asked = info["captions"] or [names[label] for label in info["labels"]]
    shown = spread(4 * g.num_previews, len(rows))
    samples = [asked[i] for i in shown]
    pictures.grid(images[shown], previews / "samples.png", columns=4, captions=samples)
    few = spread(2 * g.num_previews, len(rows))
    wanted = {info["picture_keys"][i] for i in few}
    originals = {
        picture.key: evaluation_crop(picture.image, generator.codec.image_size)
        for picture in iterate_pictures(shards_dir, g.split, verify=False)
        if picture.key in wanted
    }
    real = np.stack([originals[info["picture_keys"][i]] for i in few])
    sent = torch.from_numpy(real).permute(0, 3, 1, 2).to(generator.device)
    rebuilt = generator.decode(generator.codec.encode(sent))
    pictures.rows(
        {"real": real, "reconstructed": rebuilt, "generated": images[few]},
        previews / "real_reconstructed_generated.png",
        captions=[asked[i] for i in few],
    )
    first = few[0]
    condition = info["labels"][first] if info["captions"] is None else asked[first]
    frames = generator.denoising_frames(
        condition, g.seeds[0], g.guidance, g.truncation, progress=False
    )
    pictures.strip(frames, previews / "denoising.png")
    pictures.gif(frames, previews / "denoising.gif")
    for path in sorted(previews.iterdir()):
        tracker.log_artifact(path, "generated")
