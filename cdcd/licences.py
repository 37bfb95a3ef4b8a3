"""Terms of all data and weights that a model can be made from; README's table is this one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["apache-2.0", "attribution", "publishers-terms", "unstated", "non-commercial"]
KINDS: tuple[Kind, ...] = (
    "apache-2.0",
    "attribution",
    "publishers-terms",
    "unstated",
    "non-commercial",
)
"""From the freest to the strictest; a model has the strictest of all that it was made from."""


@dataclass(frozen=True)
class Terms:
    """What somebody's data or weights may be used for.

    Attributes:
        what: the data or the weights.
        terms: in one line; no legal advice.
        kind: the same in a word.
        here: what of it this project ships, or who gets it.
    """

    what: str
    terms: str
    kind: Kind
    here: str


_WEIGHTS = "their publishers' terms"
TERMS = {
    "embedded": Terms(
        "embedded data",
        "synthesised by this project",
        "apache-2.0",
        "Apache-2.0, like the code",
    ),
    "aist_annotations": Terms(
        "AIST++ annotations",
        "CC BY 4.0, Google LLC",
        "attribution",
        "you download them, with attribution",
    ),
    "aist": Terms(
        "AIST videos and music",
        "AIST Dance Video Database terms of use",
        "publishers-terms",
        "you accept them and download; never shipped, nor clips made from them",
    ),
    "tiktok": Terms(
        "TikTok Dance-Music",
        "no licence stated; videos belong to their creators and platforms",
        "unstated",
        "research only, from you; nothing shipped",
    ),
    "openpose": Terms(
        "OpenPose", "academic, non-commercial", "non-commercial", "you run it; its JSON is read"
    ),
    "cub200": Terms(
        "CUB-200-2011 images",
        "non-commercial research and education (wording unverified)",
        "non-commercial",
        "from you; nothing shipped",
    ),
    "cub_captions": Terms(
        "CUB captions, StackGAN's splits",
        "no explicit licence found",
        "unstated",
        "from you; nothing shipped",
    ),
    "coco_annotations": Terms(
        "COCO annotations", "CC BY 4.0, COCO Consortium", "attribution", "from you"
    ),
    "coco": Terms(
        "COCO images",
        "each under its own Flickr licence",
        "publishers-terms",
        "from you; each record names its licence",
    ),
    "imagenet": Terms(
        "ImageNet",
        "terms of access: non-commercial research, no redistribution",
        "non-commercial",
        "from you; nothing shipped, not even thumbnails",
    ),
    "digits": Terms(
        "scikit-learn's digits",
        "BSD-3-Clause package, data by E. Alpaydin and C. Kaynak (UCI, CC BY 4.0)",
        "attribution",
        "drawn into the ImageNet stand-in",
    ),
    "jukebox": Terms(
        "Jukebox code and weights",
        "OpenAI, non-commercial",
        "non-commercial",
        "by path; outputs are non-commercial too",
    ),
    "i3d": Terms("I3D weights", _WEIGHTS, "publishers-terms", "by path"),
    "clip": Terms("CLIP weights", _WEIGHTS, "publishers-terms", "by path"),
    "vqgan": Terms("VQ-GAN weights (taming-transformers)", _WEIGHTS, "publishers-terms", "by path"),
    "lpips": Terms("LPIPS and VGG16 weights", _WEIGHTS, "publishers-terms", "by path"),
}
"""By what a model is made from."""
_OF_DATASETS = {
    "aist": ("aist_annotations", "aist"),
    "tiktok": ("tiktok", "openpose"),
    "cub200": ("cub200", "cub_captions"),
    "coco": ("coco_annotations", "coco"),
    "imagenet": ("imagenet",),
}


def of_data(dataset: str, is_embedded: bool) -> list[Terms]:
    """The terms of a dataset, or of its stand-in."""
    if is_embedded:
        return [
            TERMS[name] for name in ("embedded", *(["digits"] if dataset == "imagenet" else []))
        ]
    return [TERMS[name] for name in _OF_DATASETS[dataset]]


def of_weights(model: Mapping[str, Any], codec: Mapping[str, Any]) -> list[Terms]:
    """The terms of weights of others that a model holds, needs or was trained with.

    Args:
        model: content of model.json.
        codec: content of codec.json.
    """
    facts = codec.get("facts") or {}
    names = []
    if facts.get("source") == "released":
        names.append("jukebox" if codec.get("kind") == "jukebox" else "vqgan")
    if "no LPIPS" not in str(facts.get("perceptual_loss", "no LPIPS")):
        names.append("lpips")
    if (model.get("video_feature") or {}).get("name") == "i3d":
        names.append("i3d")
    if (model.get("encoder") or {}).get("name", SMALL_CLIP) != SMALL_CLIP:
        names.append("clip")
    return [TERMS[name] for name in names]


SMALL_CLIP = "cdcd-small-clip"
"""The text encoder that the pipeline trains itself."""


def strictest(terms: Iterable[Terms]) -> Kind:
    """The kind that a model made from all of these has."""
    return max((one.kind for one in terms), key=KINDS.index, default="apache-2.0")
