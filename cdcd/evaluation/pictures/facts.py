"""What a metrics file of pictures says about its own making."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdcd.config import Params
from cdcd.data.files import sha256_file
from cdcd.evaluation.clip_score import PREFIX
from cdcd.evaluation.facts import shared_config
from cdcd.evaluation.networks import inception, resnet
from cdcd.evaluation.pictures.sets import PictureSet
from cdcd.evaluation.pictures.viewer import STAND_IN_FEATURES, Viewer
from cdcd.evaluation.tables import Scores

PACKAGES = ("numpy", "scipy", "torch", "torchvision", "transformers", "tokenizers", "Pillow")
NUM_PAPER = {"cub200": 29_000, "coco": 30_000, "imagenet": 50_000}
"""Generated pictures behind a published number: about all pairs of CUB, 30,000 of COCO."""

PAPER_SIZE = 256


def networks(
    params: Params, viewer: Viewer, held_out: Mapping[str, float], encoder_dir: str | Path
) -> dict[str, Any]:
    """Return what looked at the pictures: `features`, `classifier` and `clip`, None where unused.

    Args:
        params: `evaluate.image` names the weights.
        viewer: the networks.
        held_out: the stand-in classifier's accuracy on real held-out pictures.
        encoder_dir: of the CLIP that the model reads.
    """
    image, reader = params.evaluate.image, viewer.reader
    features: dict[str, Any] | None = None
    if viewer.inception is not None:
        features = {
            "kind": "inception",
            "preset": inception.PRESET,
            "sha256": sha256_file(str(image.inception_weights)),
            "dimensions": inception.WIDTH,
        }
    elif reader is not None:
        width = next(iter(reader.classifier.net.heads.values())).in_features
        features = {"kind": "stand_in", "what": STAND_IN_FEATURES, "dimensions": width}
    classifier: dict[str, Any] | None = None
    if viewer.resnet is not None:
        classifier = {
            "kind": "resnet101",
            "preset": resnet.PRESET,
            "sha256": sha256_file(str(image.resnet_weights)),
        }
    elif reader is not None:
        classifier = {
            "kind": "stand_in",
            "what": "trained on the stand-in's real train pictures",
            "num_train": reader.num_train,
            "held_out_accuracy": dict(held_out),
        }
    clip: dict[str, Any] | None = None
    if viewer.encoder is not None:
        own = image.clip_weights is None
        clip = {
            **viewer.encoder.identity(),
            "source": "the encoder the model reads" if own else str(image.clip_weights),
            "prefix_of_clip_s": PREFIX,
        }
        if own:
            clip["facts"] = _encoder_note(encoder_dir)
    return {"features": features, "classifier": classifier, "clip": clip}


def _encoder_note(encoder_dir: str | Path) -> str | None:
    """Say where the encoder is from, where its summary tells."""
    try:
        summary = json.loads((Path(encoder_dir) / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    note = summary.get("note") if isinstance(summary, dict) else None
    return None if note is None else str(note)


def config(
    params: Params, scores: Scores, sets: Sequence[PictureSet], counts: Mapping[str, int]
) -> dict[str, Any]:
    """Return every choice behind the numbers; `counts` are of conditions and pictures."""
    first = next(one for one in sets if one.system == "model")
    return {
        **shared_config(params, scores, first.info),
        **counts,
        "image_size": first.images.shape[1],
        "real": "the distinct held-out pictures of the conditions, evaluation crop",
    }


def why_not(
    dataset: str, viewer: Viewer, used: Mapping[str, Any], num: int, side: int, *, is_embedded: bool
) -> list[str]:
    """List why the numbers must not be set beside the published ones; empty where they may.

    Args:
        dataset: name.
        viewer: the networks.
        used: what `networks` returned.
        num: conditions scored.
        side: pixels per side of the pictures.
        is_embedded: whether the pictures are the stand-in.
    """
    reasons = []
    if is_embedded:
        reasons.append("the pictures are the embedded stand-in")
    features = used["features"]
    if features is None:
        reasons.append("there is no Fréchet distance")
    elif features["kind"] != "inception":
        reasons.append(f"the Fréchet distance is of {STAND_IN_FEATURES}")
    elif not features["sha256"].startswith(inception.PUBLIC_SHA256_PREFIX):
        reasons.append("the Inception weights are not the public file")
    if dataset == "imagenet":
        if viewer.resnet is None:
            reasons.append("classes are not told by ResNet-101")
    elif viewer.encoder is None:
        reasons.append("there is no CLIPScore")
    elif not _is_vit_b_32(viewer.encoder.model.config):
        reasons.append(f"CLIPScore is of {used['clip']['name']}, not of ViT-B/32")
    if side != PAPER_SIZE:
        reasons.append(f"pictures have {side} pixels per side, not {PAPER_SIZE}")
    least = NUM_PAPER.get(dataset, 0)
    if num < least:
        reasons.append(f"{num} conditions were scored, not {least} or more")
    return reasons


def _is_vit_b_32(config: Any) -> bool:
    vision, text = config.vision_config, config.text_config
    return (vision.patch_size, vision.hidden_size, vision.num_hidden_layers, text.hidden_size) == (
        *(32, 768, 12),
        512,
    )
