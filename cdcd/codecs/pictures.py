"""The codec stage of pictures: train the VQ-GAN on the train split, or read released weights."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdcd.codecs.base import PictureCodec
from cdcd.codecs.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss
from cdcd.codecs.openai import WeightsError
from cdcd.codecs.perceptual import LPIPS, StructuralLoss, make_perceptual, ssim
from cdcd.codecs.store import save_codec
from cdcd.codecs.taming import load_taming
from cdcd.codecs.train import MetricSink, perplexity
from cdcd.codecs.vqgan import VQGAN, to_unit
from cdcd.data.files import sha256_file, write_json
from cdcd.data.images import evaluation_crop, training_crop
from cdcd.data.samples import sample_generator
from cdcd.data.shards import iterate_pictures, read_shards_index
from cdcd.training.device import make_autocast, pick_device

if TYPE_CHECKING:
    from cdcd.config import ImageCodec, Params

logger = logging.getLogger(__name__)

_NUM_WARMUP_STEPS = 50
_CONTINUOUS_SHARE = 0.2
"""Of the steps, before the codebook joins: codes drawn from an untrained encoder's latents hold it
to the few directions in which those differ."""
_MOST_CROPS = 4
"""Random crops kept of a training picture; together with mirroring enough for a few epochs."""
_NUM_JUDGED = 256
_NUM_SHOWN = 8


class PictureSink(MetricSink, Protocol):
    """The part of a tracked run that training writes to."""

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a file into the run."""
        ...


def train_picture_codec(
    params: Params, shards_dir: str | Path, folder: str | Path, tracker: PictureSink | None = None
) -> dict[str, Any]:
    """Make a picture codec and write it into a folder that its caller renames when whole.

    It learns from random crops of the train split and is judged on centre crops of the val split,
    or of the test split where there is no val; nothing is selected by that score. With
    `codec.image.weights` a released checkpoint is read instead and only judged.
    The same params, shards, thread count and machine give the same weights.

    Args:
        params: section `codec.image` is used.
        shards_dir: as the shard stage left it.
        folder: must exist; receives the codec, `summary.json` and `pictures/`.
        tracker: receives losses every `codec.image.log_every` steps, and the pictures.

    Returns:
        The summary that is also in `summary.json`.

    Raises:
        ValueError: no usable train split, a checkpoint or table of another layout, or a loss that
            is no longer a number.
    """
    own, shards_dir, folder = params.codec.image, Path(shards_dir), Path(folder)
    device = pick_device()
    if own.weights is not None:
        codec = load_taming(own.weights, own.mapping, own.image_size).to(device)
        _check_released(codec, own)
        facts: dict[str, Any] = {
            "source": "released",
            "released_sha256": sha256_file(own.weights),
            "mapping_sha256": None if own.mapping is None else sha256_file(own.mapping),
        }
    else:
        with _spooled_crops(own, shards_dir) as crops:
            codec, facts = _train(own, crops, device, tracker)
    codec.eval().requires_grad_(False)

    summary = dict(facts)
    summary["num_parameters"] = sum(p.numel() for p in codec.parameters())
    summary["factor"], summary["num_codes"] = codec.factor, codec.num_codes
    summary["grid"] = [own.image_size // codec.factor] * 2
    split, held_out = _read_held_out(shards_dir, own.image_size)
    summary["judged_split"] = split
    if split is None:
        logger.warning("%s has no val or test split: the codec is not judged", shards_dir)
    else:
        scores, counts, decoded = judge_pictures(codec, held_out)
        summary["held_out"] = scores
        drawn = _draw(folder / "pictures", held_out, decoded, counts, f"{split} pictures")
        if tracker is not None:
            step = int(facts.get("num_steps", 0))
            named = {f"codec/held_out/{name}": value for name, value in scores.items()}
            tracker.log_metrics(named, step)
            for path in drawn:
                tracker.log_artifact(path, "codec")
    save_codec(codec, folder, facts | {"seed": own.seed})
    write_json(folder / "summary.json", summary)
    return summary


def build_picture_codec(params: ImageCodec) -> VQGAN:
    """The untrained codec that a `codec.image` section describes."""
    return VQGAN(
        image_size=params.image_size,
        channels=params.channels,
        multiples=params.multiples,
        num_res_blocks=params.num_res_blocks,
        attention_sizes=params.attention_sizes,
        latent_width=params.latent_width,
        code_width=params.code_width,
        num_codes=params.num_codes,
        ema_decay=params.ema_decay,
        restart_threshold=params.restart_threshold,
    )


@torch.no_grad()
def judge_pictures(
    codec: PictureCodec, pictures: NDArray[np.uint8], batch_size: int = 32
) -> tuple[dict[str, float], NDArray[np.int64], NDArray[np.uint8]]:
    """Score what is left of pictures after encoding and decoding.

    Args:
        codec: frozen.
        pictures: uint8 `[n, h, w, 3]`, square.
        batch_size: pictures at a time.

    Returns:
        `l1` on values in 0 .. 1, `psnr` in dB and `ssim` (1 is perfect), means over the pictures,
        `code_usage` (share of the codebook) and `perplexity`; the uses of each code `[k]`; and the
        reconstructions uint8 `[n, h, w, 3]`.
    """
    device = next(iter(codec.parameters())).device if isinstance(codec, VQGAN) else "cpu"
    counts = torch.zeros(codec.num_codes, dtype=torch.int64)
    decoded: list[Tensor] = []
    scores: dict[str, list[Tensor]] = {"l1": [], "psnr": [], "ssim": []}
    for rows in torch.from_numpy(pictures).permute(0, 3, 1, 2).split(batch_size):
        tokens = codec.encode(rows.contiguous().to(device))
        counts += torch.bincount(tokens.flatten().cpu(), minlength=codec.num_codes)
        made = codec.decode(tokens).cpu()
        decoded.append(made.permute(0, 2, 3, 1))
        x, y = made.float() / 255, rows.float() / 255
        squared = (x - y).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
        scores["l1"].append((x - y).abs().mean(dim=(1, 2, 3)))
        scores["psnr"].append(-10 * squared.log10())
        scores["ssim"].append(ssim(x, y).mean(dim=(1, 2, 3)))
    means = {name: float(torch.cat(values).mean()) for name, values in scores.items()}
    means |= {"code_usage": float((counts > 0).float().mean()), "perplexity": perplexity(counts)}
    return means, counts.numpy(), torch.cat(decoded).numpy()


@dataclass(frozen=True)
class _Terms:
    """Losses of one step, each a scalar without gradient; the last three are 0 before the start."""

    total: Tensor
    pixel: Tensor
    perceptual: Tensor
    commitment: Tensor
    adversarial: Tensor
    adversarial_weight: Tensor
    discriminator: Tensor


def _train(
    params: ImageCodec,
    crops: NDArray[np.uint8],
    device: torch.device,
    tracker: PictureSink | None,
) -> tuple[VQGAN, dict[str, Any]]:
    from tqdm import tqdm

    rng = np.random.default_rng(params.seed)
    autocast = make_autocast(device, params.precision)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(params.seed)
        trainer = _Trainer(params, device)
        first = last = 0.0
        bar = tqdm(range(1, params.num_steps + 1), desc="codec", unit="step", mininterval=1.0)
        for step in bar:
            rate = params.learning_rate * _rate_share(step, params.num_steps)
            target = to_unit(_draw_batch(crops, params.batch_size, rng).to(device))
            with autocast():
                output = trainer.codec(target, step > _CONTINUOUS_SHARE * params.num_steps)
            is_adversarial = params.adversarial_weight > 0 and step > params.adversarial_start
            terms, surface = trainer.backward(output, target, autocast, is_adversarial)
            norm = trainer.update(rate)
            if is_adversarial:
                terms = trainer.teach(terms, surface, target, autocast, rate)
            if step == 1 or step % params.log_every == 0 or step == params.num_steps:
                counts = torch.bincount(output.tokens.flatten(), minlength=params.num_codes)
                metrics = {f"codec/{name}": float(value) for name, value in vars(terms).items()}
                metrics["codec/loss"] = last = metrics.pop("codec/total")
                metrics |= {
                    "codec/gradient_norm": float(norm),
                    "codec/learning_rate": rate,
                    "codec/batch_codes": float((counts > 0).sum()),
                    "codec/batch_perplexity": perplexity(counts),
                }
                first = last if step == 1 else first
                if not math.isfinite(last):
                    raise ValueError(
                        f"the picture codec's loss must stay finite: got {last} at step {step}; "
                        "lower codec.image.learning_rate"
                    )
                bar.set_postfix_str(f"loss {last:.3f}")
                if tracker is not None:
                    tracker.log_metrics(metrics, step)
    return trainer.codec, {
        "source": "trained",
        "num_steps": params.num_steps,
        "pictures_seen": params.num_steps * params.batch_size,
        "perceptual_loss": trainer.perceptual.title,
        "precision": str(_dtype_of(autocast, device)).removeprefix("torch."),
        "first_loss": first,
        "last_loss": last,
    }


class _Trainer:
    """The codec, its discriminator and their optimisers."""

    def __init__(self, params: ImageCodec, device: torch.device) -> None:
        self.params = params
        self.codec = build_picture_codec(params).to(device).train()
        self.perceptual: LPIPS | StructuralLoss = make_perceptual(
            params.lpips_vgg, params.lpips_linear
        ).to(device)
        self.discriminator = PatchDiscriminator(params.discriminator_channels, params.image_size)
        self.discriminator.to(device)
        self.optimizer = torch.optim.AdamW(
            self.codec.parameters(), params.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
        )
        self.teacher = torch.optim.AdamW(
            self.discriminator.parameters(), params.learning_rate, betas=(0.5, 0.9)
        )

    def backward(
        self, output: Any, target: Tensor, autocast: Any, is_adversarial: bool
    ) -> tuple[_Terms, Tensor]:
        """Leave the gradient of all losses in the codec's parameters.

        The losses are differentiated by the pictures once; the decoder's last layer then tells how
        the adversarial one is to be scaled, and what comes of both goes back through the codec.

        Returns:
            The losses, and the reconstructions `[b, 3, h, w]` without gradient.
        """
        params = self.params
        surface = output.pictures.detach().requires_grad_()
        pixel = (surface - target).abs().mean()
        perceptual = self.perceptual(surface, target)
        loss = params.pixel_weight * pixel + params.perceptual_weight * perceptual
        (gradient,) = torch.autograd.grad(loss, surface)
        adversarial = weight = loss.new_zeros(())
        if is_adversarial:
            with autocast():
                adversarial = -self.discriminator(surface).float().mean()
            (by_pictures,) = torch.autograd.grad(adversarial, surface)
            last = self.codec.decoder.conv_out.weight
            ours, theirs = (
                torch.autograd.grad(output.pictures, last, part, retain_graph=True)[0]
                for part in (gradient, by_pictures)
            )
            weight = params.adversarial_weight * adaptive_weight(ours, theirs)
            gradient = gradient + weight * by_pictures
        commitment = params.commit_weight * output.commitment
        self.optimizer.zero_grad(set_to_none=True)
        # One product whose gradient by the pictures is the one found above.
        ((output.pictures * gradient).sum() + commitment).backward()
        total = loss + weight * adversarial + commitment
        terms = (total, pixel, perceptual, output.commitment, adversarial, weight, weight * 0)
        return _Terms(*(term.detach() for term in terms)), surface.detach()

    def update(self, rate: float) -> Tensor:
        """Step the codec at a learning rate; return the norm of its gradient before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.codec.parameters(), 1.0)
        _step(self.optimizer, rate)
        return norm

    def teach(
        self, terms: _Terms, made: Tensor, target: Tensor, autocast: Any, rate: float
    ) -> _Terms:
        """Step the discriminator on `[b, 3, h, w]`; return the losses with its own filled in."""
        with autocast():
            real, unreal = self.discriminator(torch.cat([target, made])).float().chunk(2)
        loss = hinge_loss(real, unreal)
        self.teacher.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        _step(self.teacher, rate)
        return _Terms(**(vars(terms) | {"discriminator": loss.detach()}))


def _step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _rate_share(step: int, num_steps: int) -> float:
    """Linear warm-up, then a cosine to a fiftieth; `step` counts from 1."""
    warm = min(1.0, step / min(_NUM_WARMUP_STEPS, num_steps))
    return warm * (0.02 + 0.49 * (1 + math.cos(math.pi * (step - 1) / num_steps)))


def _dtype_of(autocast: Any, device: torch.device) -> torch.dtype:
    with autocast():
        is_on = torch.is_autocast_enabled(device.type)
    return torch.bfloat16 if is_on else torch.float32


def _draw_batch(crops: NDArray[np.uint8], batch_size: int, rng: np.random.Generator) -> Tensor:
    """uint8 `[b, 3, h, w]`, each drawn anew and mirrored half of the time."""
    rows = rng.integers(0, len(crops), batch_size)
    mirrored = rng.random(batch_size) < 0.5
    drawn = crops[rows]
    drawn[mirrored] = drawn[mirrored, :, ::-1]
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()


@contextmanager
def _spooled_crops(params: ImageCodec, shards_dir: Path) -> Iterator[NDArray[np.uint8]]:
    """Random crops of the train split as uint8 `[n, h, w, 3]`, in a temporary file.

    No more than training will draw: of a large set evenly spread pictures, of a small one several
    crops of each.
    """
    from tqdm import tqdm

    num_pictures = _count(shards_dir).get("train", 0)
    num_drawn, size = params.num_steps * params.batch_size, params.image_size
    stride = max(1, num_pictures // num_drawn)
    crops_each = min(_MOST_CROPS, max(1, -(-num_drawn // max(1, num_pictures))))
    with tempfile.TemporaryFile() as file:
        num_crops = 0
        pictures = iterate_pictures(shards_dir, "train")
        bar = tqdm(pictures, "codec: reading", num_pictures, unit="picture", mininterval=1.0)
        for index, picture in enumerate(bar):
            if index % stride:
                continue
            for crop in range(crops_each):
                generator = sample_generator(params.seed, crop, picture.key)
                file.write(training_crop(picture.image, size, generator).tobytes())
                num_crops += 1
        file.flush()
        yield np.memmap(file, np.uint8, mode="r", shape=(num_crops, size, size, 3))


def _count(shards_dir: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for shard in read_shards_index(shards_dir):
        counts[shard["split"]] = counts.get(shard["split"], 0) + shard["count"]
    return counts


def _read_held_out(shards_dir: Path, size: int) -> tuple[str | None, NDArray[np.uint8]]:
    """Centre crops uint8 `[n, size, size, 3]` of val or else test, evenly spread, and which."""
    counts = _count(shards_dir)
    split = next((name for name in ("val", "test") if counts.get(name)), None)
    if split is None:
        return None, np.empty((0, size, size, 3), np.uint8)
    stride = -(-counts[split] // _NUM_JUDGED)
    crops = [
        evaluation_crop(picture.image, size)
        for index, picture in enumerate(iterate_pictures(shards_dir, split))
        if index % stride == 0
    ]
    return split, np.stack(crops)


def _draw(
    folder: Path,
    pictures: NDArray[np.uint8],
    decoded: NDArray[np.uint8],
    counts: NDArray[np.int64],
    title: str,
) -> list[Path]:
    from cdcd.pictures import codebook_use, rows

    folder.mkdir(exist_ok=True)
    paths = [folder / "reconstructions.png", folder / "codebook_use.png"]
    chosen = np.linspace(0, len(pictures) - 1, min(_NUM_SHOWN, len(pictures))).round().astype(int)
    rows({"original": pictures[chosen], "reconstructed": decoded[chosen]}, paths[0])
    codebook_use(counts, paths[1], f"codebook on {len(pictures)} held-out {title}")
    return paths


def _check_released(codec: VQGAN, params: ImageCodec) -> None:
    asked = 2 ** (len(params.multiples) - 1)
    if codec.factor != asked:
        raise WeightsError(
            f"codec.image.multiples must have {codec.factor.bit_length()} entries with these "
            f"codec.image.weights, of factor {codec.factor}: got {len(params.multiples)}; give "
            f"{codec.arguments['multiples']}, or weights: null"
        )
    if codec.num_codes != params.num_codes:
        raise WeightsError(
            f"codec.image.num_codes must be {codec.num_codes} with these codec.image.weights and "
            f"mapping: got {params.num_codes}; set it to {codec.num_codes}, or weights: null"
        )
