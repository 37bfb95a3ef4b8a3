"""The text side of the codec stage: train a small CLIP on the train split, or take a released one.

The loss is the symmetric InfoNCE of Radford et al. 2021 (`Learning Transferable Visual Models From
Natural Language Supervision`, Fig. 3) with a learnt temperature. A few hundred pictures teach it
colours and sizes, and the states of a text forget the other words, which a generator is to be
conditioned on. So the end token's state is also asked which tokens the caption has; that head is
thrown away after training.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cdcd.data.files import write_json
from cdcd.data.samples import Picture
from cdcd.data.shards import iterate_pictures, read_shards_index
from cdcd.features.base import FeatureError
from cdcd.features.text import (
    CONFIG,
    END,
    LAYOUT,
    MERGES,
    PREPROCESSOR,
    SAFETENSORS,
    START,
    TOKENIZER,
    VOCABULARY,
    Preparation,
    TextEncoder,
    clip_folder,
    clip_tokenizer,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from cdcd.config import Params, TextEncoderParams

logger = logging.getLogger(__name__)

NAME = "cdcd-small-clip"
CONTEXT_LENGTH = 77
NUM_CHOICES = 10
"""Captions that a held-out picture chooses among, its own included."""

_SUFFIX = "</w>"
_NUM_JUDGED = 500
_NUM_WARMUP_STEPS = 50
_MAX_LOG_SCALE = math.log(100.0)
_WORD_WEIGHT = 4.0
_HEAD_RATE = 10.0  # a head that lags behind teaches the states nothing
_SHIFT_SHARE = 16  # pictures move by up to a sixteenth of their side


class MetricSink(Protocol):
    """The part of a tracked run that training writes to."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> Any:
        """Record several values of one step at once."""
        ...


def train_clip(
    params: Params, shards_dir: str | Path, folder: str | Path, tracker: MetricSink | None = None
) -> dict[str, Any]:
    """Put a CLIP in the hub's layout into a folder, trained here or given by `codec.text.weights`.

    The same params, shards, thread count and machine give the same weights.

    Args:
        params: section `codec.text` is used.
        shards_dir: pictures with captions, as the shard stage left them.
        folder: exists; the caller makes its writing atomic.
        tracker: receives loss, temperature and accuracy within the batch every
            `codec.text.log_every` steps.

    Returns:
        JSON-able summary: where the encoder is from, its identity, how well held-out captions are
        told from those of other pictures (with the chance level).

    Raises:
        ValueError: no pictures with captions to train on, a given folder that is no CLIP, or a
            loss that is no longer a number.
    """
    text, folder, shards_dir = params.codec.text, Path(folder), Path(shards_dir)
    if text.weights is not None:
        facts = _take(Path(text.weights), folder)
    else:
        facts = _train(text, shards_dir, folder, tracker)
    encoder = TextEncoder.load(folder, _device())
    identity = encoder.identity()
    if text.weights is not None:
        facts["note"] = f"given CLIP {identity['name']}, weights {identity['sha256']}"
    summary: dict[str, Any] = {
        "encoder": identity,
        **facts,
        "num_parameters": sum(p.numel() for p in encoder.model.parameters()),
        "image_size": encoder.preparation.size,
        "held_out": judge(encoder, shards_dir, text.seed),
    }
    if tracker is not None and summary["held_out"] is not None:
        scores = {k: v for k, v in summary["held_out"].items() if isinstance(v, float)}
        step = int(facts.get("num_steps", 0))
        tracker.log_metrics({f"text/held_out/{name}": v for name, v in scores.items()}, step)
    logger.info("%s: %s", folder, summary["note"])
    return summary


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn CLIP's byte-level pairs from captions.

    The vocabulary is ordered as CLIP's: 256 bytes, the same at a word's end, learnt pairs, start,
    end. Every byte is in it, so no text is unknown.

    Args:
        captions: of the train split.
        vocab_size: at most this many tokens, at least 514.

    Raises:
        FeatureError: `vocab_size` leaves no room for the bytes.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + _SUFFIX for letter in alphabet)]
    if vocab_size < len(tokens) + 2:
        raise FeatureError(
            f"codec.text.vocab_size must be at least {len(tokens) + 2}, for all bytes within and "
            f"at the end of words: got {vocab_size}; use 1000"
        )
    template = clip_tokenizer(_numbered([*tokens, START, END]), [])
    learnt = Tokenizer(models.BPE(end_of_word_suffix=_SUFFIX))
    learnt.normalizer = template.normalizer
    learnt.pre_tokenizer = template.pre_tokenizer
    # The trainer counts only those byte tokens that occur; whoever asks gets exactly what fits.
    trainer = trainers.BpeTrainer(  # type: ignore[call-arg]
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        end_of_word_suffix=_SUFFIX,
        show_progress=False,
    )
    learnt.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(learnt.to_str())["model"]["merges"]]
    merges = merges[: vocab_size - len(tokens) - 2]
    joined = dict.fromkeys("".join(pair) for pair in merges)  # two pairs can make one token
    return clip_tokenizer(_numbered([*tokens, *joined, START, END]), merges)


def build_clip(params: TextEncoderParams, tokenizer: Tokenizer) -> Any:
    """The untrained `transformers.CLIPModel` that a `codec.text` section describes."""
    from transformers import CLIPConfig, CLIPModel

    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    tower = {
        "hidden_size": params.width,
        "intermediate_size": 4 * params.width,
        "num_hidden_layers": params.depth,
        "num_attention_heads": params.num_heads,
        "projection_dim": params.embed_width,
    }
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        vision_config={
            **tower,
            "image_size": params.image_size,
            "patch_size": params.patch_size,
        },
        projection_dim=params.embed_width,
    )
    return CLIPModel(config)


def save_clip(
    folder: str | Path, model: Any, tokenizer: Tokenizer, preparation: Preparation
) -> None:
    """Write a CLIP into a folder in the hub's layout; equal networks give equal bytes."""
    from safetensors.torch import save_file

    folder = Path(folder)
    config = model.config.to_dict()
    for facts in (config, config["text_config"], config["vision_config"]):
        facts.pop("transformers_version", None)
    config |= {"architectures": ["CLIPModel"], "_name_or_path": NAME, "torch_dtype": "float32"}
    config.pop("dtype", None)
    write_json(folder / CONFIG, config)
    state = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    save_file(state, folder / SAFETENSORS, metadata={"format": "pt"})
    tokenizer.save(str(folder / TOKENIZER))
    tree = json.loads(tokenizer.to_str())["model"]
    write_json(folder / VOCABULARY, tree["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in tree["merges"])]
    (folder / MERGES).write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": CONTEXT_LENGTH,
            "bos_token": START,
            "eos_token": END,
            "pad_token": END,
            "unk_token": END,
        },
    )
    write_json(
        folder / PREPROCESSOR,
        {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": preparation.shorter_side},
            "resample": preparation.resample,
            "do_center_crop": True,
            "crop_size": {"height": preparation.size, "width": preparation.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "do_convert_rgb": True,
            "image_mean": list(preparation.mean),
            "image_std": list(preparation.std),
        },
    )


def contrastive_loss(
    images: Tensor, texts: Tensor, log_scale: Tensor, is_other: Tensor
) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE over a batch of pairs.

    `-1/2 mean_i [log softmax_j(s <x_i, y_j>)_i + log softmax_j(s <x_j, y_i>)_i]`, `s` the exponent
    of `log_scale`; pairs that are no negatives are left out of the sums.

    Args:
        images: `[b, e]`, of any length.
        texts: `[b, e]`, of any length.
        log_scale: of the temperature's inverse, a number.
        is_other: bool `[b, b]`, False where a caption may describe the picture although it is
            another's; its diagonal does not matter.

    Returns:
        The loss, and the share of pictures whose own caption scores highest.
    """
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    logits = log_scale.exp() * images @ texts.T  # b b
    own = torch.eye(len(images), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(~(is_other | own), -torch.inf)
    labels = torch.arange(len(images), device=logits.device)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    return loss, (logits.argmax(dim=1) == labels).float().mean()


def word_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with the even distribution over what a text has.

    Args:
        logits: `[b, v]`.
        targets: int64 `[b, n]` in `0 .. v - 1`, padded with -1; at least one in each row.

    Returns:
        `-mean_i mean_{v in text i} log softmax(logits_i)_v`, at least the entropy of the target.
    """
    is_there = targets >= 0
    log_shares = F.log_softmax(logits, dim=1).gather(1, targets.clamp_min(0))
    return -((log_shares * is_there).sum(dim=1) / is_there.sum(dim=1)).mean()


@torch.no_grad()
def judge(encoder: TextEncoder, shards_dir: str | Path, seed: int = 0) -> dict[str, Any] | None:
    """How often a held-out picture is closest to its own caption.

    Others are captions of pictures of another class, or, where there are no classes, of other
    pictures; so what they tell may still be true, and 1 is out of reach.

    Args:
        encoder: frozen.
        shards_dir: `val` is used where there is one, else `test`, else nothing.
        seed: of the choice of captions.

    Returns:
        `matching`: of two captions the own one is closer (chance 0.5); `retrieval`: of
        `NUM_CHOICES` (chance 0.1); the same for captions that choose pictures; how many pictures.
    """
    split = _held_out_split(shards_dir)
    if split is None:
        logger.warning("%s has no val and no test split: the encoder is not judged", shards_dir)
        return None
    rng = np.random.default_rng(seed)
    crops, texts, groups = [], [], []
    total = sum(s["count"] for s in read_shards_index(shards_dir) if s["split"] == split)
    stride = -(-total // _NUM_JUDGED)
    for index, picture in enumerate(iterate_pictures(shards_dir, split)):
        if index % stride == 0 and picture.captions:
            crops.append(encoder.preparation.crop(picture.image))
            texts.append(picture.captions[int(rng.integers(len(picture.captions)))].text)
            groups.append(_group(picture))
    others = [
        [j for j, group in enumerate(groups) if group != own and texts[j] != text]
        for own, text in zip(groups, texts, strict=True)
    ]
    fewest = min((len(found) for found in others), default=0)
    if fewest == 0:
        logger.warning("split %s of %s has too few captions to judge by", split, shards_dir)
        return None
    tokens = [texts[i : i + 256] for i in range(0, len(texts), 256)]
    text_rows = torch.cat([encoder.text_features(part) for part in tokens]).numpy()
    cosines = encoder.image_features(crops).numpy() @ text_rows.T  # picture, caption
    num_others = min(NUM_CHOICES - 1, fewest)
    drawn = np.array([rng.choice(found, num_others, replace=False) for found in others])
    own = np.diag(cosines)
    rows = np.arange(len(own))[:, None]
    scores: dict[str, Any] = {}
    for side, other in (
        ("picture_to_caption", cosines[rows, drawn]),
        ("caption_to_picture", cosines[drawn, rows]),
    ):
        scores[f"{side}_matching"] = round(float((own > other[:, 0]).mean()), 4)
        scores[f"{side}_retrieval"] = round(float((own[:, None] > other).all(axis=1).mean()), 4)
    return {
        "split": split,
        "num_pictures": len(own),
        "num_choices": num_others + 1,
        **scores,
        "matching_chance": 0.5,
        "retrieval_chance": round(1 / (num_others + 1), 4),
    }


def _take(source: Path, folder: Path) -> dict[str, Any]:
    """Copy the files of a given folder that are read, once it is sure that they are a CLIP."""
    source = clip_folder(source)
    TextEncoder.load(source)
    for name in LAYOUT:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return {"source": "given"}


@dataclass(frozen=True)
class _Pairs:
    """The train split in memory, but for its pictures, which lie in a file.

    Attributes:
        pictures: uint8 `[n, size + 2 m, size + 2 m, 3]`, edges continued by m pixels.
        captions: rows of each picture in `tokens`.
        tokens: ids of each distinct caption.
        groups: class of each picture, or a number of its own.
    """

    pictures: np.ndarray
    captions: list[list[int]]
    tokens: list[list[int]]
    groups: np.ndarray


def _train(
    params: TextEncoderParams, shards_dir: Path, folder: Path, tracker: MetricSink | None
) -> dict[str, Any]:
    preparation = Preparation(params.image_size, params.image_size)
    with _spooled(shards_dir, preparation) as (pictures, texts, groups):
        distinct = list(dict.fromkeys(text for own in texts for text in own))
        tokenizer = train_tokenizer(distinct, params.vocab_size)
        numbers = {text: row for row, text in enumerate(distinct)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(params.seed)
            model = build_clip(params, tokenizer)
        encoder = TextEncoder(model, tokenizer, preparation, {})
        tokens = encoder.tokenize(distinct)
        rows = [
            row[:length].tolist() for row, length in zip(tokens.ids, tokens.lengths, strict=True)
        ]
        captions = [[numbers[text] for text in own] for own in texts]
        pairs = _Pairs(pictures, captions, rows, groups)
        facts = _fit(params, model, preparation, pairs, tracker)
    with torch.no_grad():
        table = model.text_model.embeddings.token_embedding.weight
        seen = torch.zeros(len(table), dtype=torch.bool)
        seen[tokens.ids.flatten()] = True
        table[~seen.to(table.device)] = 0  # by which the encoder knows what was never trained
    save_clip(folder, model, tokenizer, preparation)
    num_pairs = sum(len(own) for own in captions)
    return {
        "source": "trained",
        "note": f"own small CLIP trained on {num_pairs} pairs; not comparable with the paper",
        "num_pictures": len(pictures),
        "num_pairs": num_pairs,
        "num_distinct_captions": len(distinct),
        "num_truncated": int(tokens.truncated.sum()),
        "longest_caption_tokens": int(tokens.lengths.max()),
        "vocab_size": tokenizer.get_vocab_size(),
        "num_steps": params.num_steps,
        **facts,
    }


def _fit(
    params: TextEncoderParams,
    model: Any,
    preparation: Preparation,
    pairs: _Pairs,
    tracker: MetricSink | None,
) -> dict[str, Any]:
    from tqdm import tqdm

    device = _device()
    model.to(device).train().requires_grad_(True)
    vocab_size = model.config.text_config.vocab_size
    head = torch.nn.utils.skip_init(torch.nn.Linear, params.width, vocab_size, device=device)
    for value in head.parameters():
        torch.nn.init.zeros_(value)  # no numbers are drawn for what is thrown away
    groups = _groups(model, head)
    optimizer = torch.optim.AdamW(groups, params.learning_rate, betas=(0.9, 0.98))
    rng = np.random.default_rng(params.seed)
    batches = _draw_batches(len(pairs.pictures), params.batch_size, rng)
    use_bfloat16 = _use_bfloat16(device)
    first = last = 0.0
    bar = tqdm(range(1, params.num_steps + 1), desc="text encoder", unit="step", mininterval=1.0)
    for step in bar:
        rate = params.learning_rate * _rate_share(step, params.num_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate_share"]
        rows = next(batches)
        chosen = [int(rng.choice(pairs.captions[row])) for row in rows]
        pixels = preparation.normalised(_draw_crops(pairs.pictures, rows, preparation.size, rng))
        ids, ends = _padded([pairs.tokens[row] for row in chosen], pairs.tokens[0][-1])
        is_other = _differ(pairs.groups[rows]) & _differ(np.array(chosen))
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16):
            images = model.visual_projection(
                model.vision_model(pixel_values=pixels.to(device)).pooler_output
            )
            states = model.text_model(input_ids=ids.to(device)).last_hidden_state
            states = states[torch.arange(len(ids)), ends]
            texts, told = model.text_projection(states), head(states)
        loss, accuracy = contrastive_loss(
            images.float(), texts.float(), model.logit_scale, is_other.to(device)
        )
        targets, _ = _padded([sorted(set(pairs.tokens[row])) for row in chosen], -1)
        words = word_loss(told.float(), targets.to(device))
        optimizer.zero_grad(set_to_none=True)
        (loss + _WORD_WEIGHT * words).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, _MAX_LOG_SCALE)
        if step == 1 or step % params.log_every == 0 or step == params.num_steps:
            last = float(loss.detach())
            first = last if step == 1 else first
            if not math.isfinite(last):
                raise ValueError(
                    f"the text encoder's loss must stay finite: got {last} at step {step}; "
                    "lower codec.text.learning_rate"
                )
            bar.set_postfix_str(f"loss {last:.3f}")
            if tracker is not None:
                metrics = {
                    "text/loss": last,
                    "text/word_loss": float(words.detach()),
                    "text/batch_accuracy": float(accuracy),
                    "text/scale": float(model.logit_scale.detach().exp()),
                    "text/gradient_norm": float(norm),
                    "text/learning_rate": rate,
                }
                tracker.log_metrics(metrics, step)
    model.eval().requires_grad_(False)
    return {
        "batch_size": min(params.batch_size, len(pairs.pictures)),
        "precision": "bfloat16" if use_bfloat16 else "float32",
        "first_loss": round(first, 4),
        "last_loss": round(last, 4),
        "temperature": round(1 / float(model.logit_scale.exp()), 4),
    }


@contextmanager
def _spooled(
    shards_dir: Path, preparation: Preparation
) -> Iterator[tuple[np.ndarray, list[list[str]], np.ndarray]]:
    """The train split: pictures, prepared, in a temporary file; their captions; their groups."""
    margin = _margin(preparation.size)
    side = preparation.size + 2 * margin
    texts: list[list[str]] = []
    groups: dict[Any, int] = {}
    numbers = []
    with tempfile.TemporaryFile() as file:
        for picture in iterate_pictures(shards_dir, "train"):
            if not picture.captions:
                continue
            crop = preparation.crop(picture.image)
            edges = ((margin, margin), (margin, margin), (0, 0))
            file.write(np.pad(crop, edges, mode="edge").tobytes())
            texts.append([caption.text for caption in picture.captions])
            numbers.append(groups.setdefault(_group(picture), len(groups)))
        if len(texts) < 2:
            raise FeatureError(
                f"split train of {shards_dir} must hold pictures with captions to train the text "
                f"encoder on: got {len(texts)}; give codec.text.weights, or see the reasons for "
                "skipping in its manifest.jsonl"
            )
        file.flush()
        shape = (len(texts), side, side, 3)
        yield np.memmap(file, np.uint8, mode="r", shape=shape), texts, np.array(numbers)


def _group(picture: Picture) -> Any:
    """What pictures share that may not be told apart: their class, or nothing."""
    return picture.key if picture.label is None else picture.label


def _margin(size: int) -> int:
    return max(1, size // _SHIFT_SHARE)


def _draw_batches(count: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows without repetition within an epoch; what is left of an epoch begins the next batch."""
    size = min(batch_size, count)
    left = np.empty(0, dtype=np.int64)
    while True:
        if len(left) < size:
            fresh = rng.permutation(count)
            # Rows that wait already must not come twice in the batch they begin.
            late = np.isin(fresh, left)
            left = np.concatenate([left, fresh[~late], fresh[late]])
        yield left[:size]
        left = left[size:]


def _draw_crops(
    pictures: np.ndarray, rows: np.ndarray, size: int, rng: np.random.Generator
) -> Tensor:
    places = rng.integers(0, pictures.shape[1] - size + 1, (len(rows), 2))
    crops = [
        pictures[row, top : top + size, left : left + size]
        for row, (top, left) in zip(rows, places, strict=True)
    ]
    return torch.from_numpy(np.stack(crops))


def _padded(rows: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Numbers `[b, s]`, padded to the longest row, and the place of each row's last one `[b]`."""
    ends = torch.tensor([len(row) - 1 for row in rows])
    padded = torch.full((len(rows), int(ends.max()) + 1), filler)
    for own, row in zip(padded, rows, strict=True):
        own[: len(row)] = torch.tensor(row)
    return padded, ends


def _differ(numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(numbers[:, None] != numbers[None])


def _groups(model: Any, head: torch.nn.Module) -> list[dict[str, Any]]:
    """Matrices, with decay; everything else, without; the head, faster."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim >= 2 and "embedding" not in name]
    others = [p for name, p in named if p.ndim < 2 or "embedding" in name]
    return [
        {"params": matrices, "weight_decay": 0.1, "rate_share": 1.0},
        {"params": others, "weight_decay": 0.0, "rate_share": 1.0},
        {"params": list(head.parameters()), "weight_decay": 0.0, "rate_share": _HEAD_RATE},
    ]


def _rate_share(step: int, num_steps: int) -> float:
    """Linear warm-up, then a cosine to a fiftieth; `step` counts from 1."""
    warm = min(1.0, step / min(_NUM_WARMUP_STEPS, num_steps))
    return warm * (0.02 + 0.49 * (1 + math.cos(math.pi * (step - 1) / num_steps)))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _use_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # Where the processor only emulates it, bfloat16 is slower than float32.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _held_out_split(shards_dir: str | Path) -> str | None:
    counts = Counter(shard["split"] for shard in read_shards_index(shards_dir))
    return next((split for split in ("val", "test") if counts[split]), None)


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}
