"""params.yaml parsed once into one frozen, typed `Params`; unknown or mistyped keys are errors.

The models of all stages live here rather than beside their classes, because the core packages
(`kernels`, `cdcd.diffusion`, `cdcd.models`, `cdcd.training`) must import without pydantic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Folder = Annotated[str, Field(min_length=1)]
Dataset = Literal["aist", "tiktok", "cub200", "coco", "imagenet"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)


class ConfigError(ValueError):
    """A params file that breaks a rule; the message is one line per broken rule."""


class Section(BaseModel):
    """A frozen part of the parameters that refuses unknown keys and silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class AistEmbedded(Section):
    """Size of the AIST++ stand-in."""

    songs_per_genre: Annotated[int, Field(ge=3, le=6)]
    choreographies_per_song: Annotated[int, Field(ge=1, le=10)]
    video_height: Annotated[int, Field(ge=48, multiple_of=4)]


class AistSource(Section):
    """Where an AIST++ download lies and which of its lists to follow."""

    annotations_dir: Folder | None
    videos_dir: Folder | None
    music_dir: Folder | None
    clips_dir: Folder | None
    clip_seconds: Literal[2, 6]
    camera: Annotated[str, Field(pattern=r"^c0[1-9]$")]
    apply_ignore_list: bool
    drop_partial_6s: bool
    embedded: AistEmbedded


class TiktokEmbedded(Section):
    """Size of the TikTok stand-in."""

    num_songs: Annotated[int, Field(ge=4, le=60)]
    videos_per_song: Annotated[int, Field(ge=1, le=20)]
    video_height: Annotated[int, Field(ge=48, multiple_of=4)]


class TiktokSource(Section):
    """Where a TikTok Dance-Music download lies and how its key points are read."""

    root: Folder | None
    clip_seconds: Literal[2, 6]
    normalise_motion: bool
    embedded: TiktokEmbedded


class Cub200Embedded(Section):
    """Size of the CUB-200-2011 stand-in."""

    num_species: Annotated[int, Field(ge=11, le=200)]
    images_per_species: Annotated[int, Field(ge=2, le=60)]
    image_height: Annotated[int, Field(ge=64)]


class Cub200Source(Section):
    """Where CUB-200-2011 with its captions lies and which split to follow."""

    root: Folder | None
    split: Literal["stackgan", "official"]
    embedded: Cub200Embedded


class CocoEmbedded(Section):
    """Size of the MS COCO stand-in."""

    num_train: Annotated[int, Field(ge=2)]
    num_val: Annotated[int, Field(ge=2)]
    image_height: Annotated[int, Field(ge=64)]


class CocoSource(Section):
    """Where MS COCO 2014 lies."""

    root: Folder | None
    embedded: CocoEmbedded


class ImagenetEmbedded(Section):
    """Size of the ImageNet stand-in."""

    train_per_class: Annotated[int, Field(ge=2)]
    val_per_class: Annotated[int, Field(ge=1)]
    image_height: Annotated[int, Field(ge=64)]


class ImagenetSource(Section):
    """Where ImageNet (ILSVRC2012) lies; lists of files, where its folders do not say the split."""

    root: Folder | None
    train_list: str | None
    val_list: str | None
    embedded: ImagenetEmbedded

    @model_validator(mode="after")
    def _both_lists(self) -> Self:
        if (self.train_list is None) != (self.val_list is None):
            raise ValueError(
                "train_list and val_list must be given together: got "
                f"{self.train_list!r} and {self.val_list!r}; give both, or null for both"
            )
        return self


class Ingest(Section):
    """From a download, or the embedded stand-in, to a manifest."""

    seed: NonNegative
    num_workers: Positive
    max_skipped_share: Share
    aist: AistSource
    tiktok: TiktokSource
    cub200: Cub200Source
    coco: CocoSource
    imagenet: ImagenetSource


class Shard(Section):
    """Segments and the tars they travel in."""

    segment_seconds: Literal[2, 4, 6]
    samples_per_shard: Positive
    video_fps: Annotated[int, Field(ge=5, le=60)]
    video_height: Annotated[int, Field(ge=32, multiple_of=2)]
    image_size: Annotated[int, Field(ge=32, le=2048)]
    num_workers: Positive
    cluster: Annotated[str, Field(pattern=r"^(local|(tcp|tls|ws|wss|ucx)://\S+)$")] | None
    max_skipped_share: Share


class ImageCodec(Section):
    """The picture codec: its shape and its training."""

    weights: Folder | None
    mapping: Folder | None
    seed: NonNegative
    image_size: Annotated[int, Field(ge=8, le=1024)]
    channels: Positive
    multiples: list[Positive] = Field(min_length=1)
    num_res_blocks: Positive
    attention_sizes: list[Positive]
    latent_width: Positive
    code_width: Positive
    num_codes: Annotated[int, Field(ge=2, le=16384)]
    num_steps: Positive
    batch_size: Positive
    learning_rate: PositiveFloat
    precision: Literal["auto", "float32", "bfloat16"]
    commit_weight: Annotated[float, Field(ge=0)]
    pixel_weight: Annotated[float, Field(ge=0)]
    perceptual_weight: Annotated[float, Field(ge=0)]
    lpips_vgg: Folder | None
    lpips_linear: Folder | None
    adversarial_weight: Annotated[float, Field(ge=0)]
    adversarial_start: NonNegative
    discriminator_channels: Positive
    ema_decay: Annotated[float, Field(gt=0, lt=1)]
    restart_threshold: Annotated[float, Field(ge=0)]
    log_every: Positive

    @model_validator(mode="after")
    def _relations(self) -> Self:
        factor = 2 ** (len(self.multiples) - 1)
        if self.image_size % factor:
            raise ValueError(
                f"image_size must be a multiple of {factor}, the factor of {len(self.multiples)} "
                f"multiples: got {self.image_size}; change one of them"
            )
        sides = [self.image_size >> level for level in range(len(self.multiples))]
        if not set(self.attention_sizes) <= set(sides):
            raise ValueError(
                f"attention_sizes must be sides of feature maps, {sides} for image_size "
                f"{self.image_size}: got {self.attention_sizes}; use some of those, or []"
            )
        if (self.lpips_vgg is None) != (self.lpips_linear is None):
            raise ValueError(
                "lpips_vgg and lpips_linear must be given together: got "
                f"{self.lpips_vgg!r} and {self.lpips_linear!r}; give both, or null for both"
            )
        if self.mapping is not None and self.weights is None:
            raise ValueError(
                f"mapping must go with weights: got {self.mapping!r} without; name the checkpoint "
                "whose codes it maps, or set mapping: null"
            )
        return self


class TextEncoderParams(Section):
    """The text encoder of captions: a released CLIP by path, or the shape of our own."""

    weights: Folder | None
    seed: NonNegative
    vocab_size: Annotated[int, Field(ge=514, le=65536)]
    width: Positive
    depth: Positive
    num_heads: Positive
    embed_width: Positive
    patch_size: Positive
    image_size: Positive
    num_steps: Positive
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: PositiveFloat
    log_every: Positive

    @model_validator(mode="after")
    def _relations(self) -> Self:
        for rule, whole, part in (
            ("width must be a multiple of num_heads", self.width, self.num_heads),
            ("image_size must be a multiple of patch_size", self.image_size, self.patch_size),
        ):
            if whole % part:
                raise ValueError(f"{rule}: got {whole} and {part}; change one of them")
        return self


class Codec(Section):
    """The codecs: of music, and in their own sections of pictures and captions."""

    weights: str | None
    seed: NonNegative
    sample_rate_hz: Literal[22050]
    hop: Literal[32, 64, 128, 256, 512]
    num_codes: Annotated[int, Field(ge=2, le=16384)]
    code_width: Positive
    groups: list[Positive] | None
    width: Positive
    max_width: Positive
    edge_width: Positive
    depth: NonNegative
    num_plain: NonNegative
    dilation_growth: Positive
    precision: Literal["auto", "float32", "bfloat16"]
    crop_seconds: PositiveFloat
    num_steps: Positive
    batch_size: Positive
    learning_rate: PositiveFloat
    commit_weight: Annotated[float, Field(ge=0)]
    waveform_weight: Annotated[float, Field(ge=0)]
    spectral_weight: Annotated[float, Field(ge=0)]
    log_spectral_share: Annotated[float, Field(ge=0)]
    spectral_windows: list[Annotated[int, Field(ge=64, multiple_of=4)]] = Field(min_length=1)
    ema_decay: Annotated[float, Field(gt=0, lt=1)]
    restart_threshold: Annotated[float, Field(ge=0)]
    log_every: Positive
    image: ImageCodec
    text: TextEncoderParams

    @model_validator(mode="after")
    def _hop_of_groups(self) -> Self:
        if self.groups is not None and 2 ** sum(self.groups) != self.hop:
            raise ValueError(
                f"groups must add up to the {self.hop.bit_length() - 1} halvings of hop "
                f"{self.hop}: got {self.groups}; mend them or set groups: null"
            )
        if self.max_width < self.width:
            raise ValueError(
                f"max_width must be at least width: got {self.max_width} for {self.width}"
            )
        return self


class Encode(Section):
    """Tokenising the shards."""

    batch_size: Positive
    num_waveform_negatives: NonNegative
    num_chunks: Annotated[int, Field(ge=2)]
    crops: Positive


class Featurize(Section):
    """Condition features."""

    video: Literal["motion_energy", "cells", "i3d"]
    grid: Annotated[int, Field(ge=1, le=32)]
    i3d_weights: str | None
    i3d_output: Literal["steps", "segment"]
    text_batch_size: Positive
    num_workers: Positive

    @model_validator(mode="after")
    def _weights_given(self) -> Self:
        if self.video == "i3d" and self.i3d_weights is None:
            raise ValueError(
                "i3d_weights must name a pytorch-i3d state dict when video is i3d: got null; "
                "give the path, or set video: motion_energy"
            )
        return self


class Diffusion(Section):
    """The chain, its schedule and what the loss weighs over t."""

    num_steps: Annotated[int, Field(ge=2)]
    schedule: Literal["absorbing_uniform", "alpha1", "official"]
    uniform_mass: Annotated[float, Field(ge=0, lt=1)]
    t_sampling: Literal["importance", "uniform"]
    auxiliary_weight: Annotated[float, Field(ge=0)]
    adaptive: Literal["increasing", "decreasing", "opposed", "none"]


class Contrast(Section):
    """The contrastive term: mode, negatives, form and weight."""

    mode: Literal["off", "step", "sample"]
    negatives: Literal["intra", "inter"]
    form: Literal["linear", "infonce"]
    chains: Literal["shared", "parallel"]
    weight: Annotated[float, Field(ge=0)]
    num_negatives: NonNegative
    num_chunks: Annotated[int, Field(ge=2)]
    intra_unit: Literal["tokens", "waveform", "patches"]

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.mode != "off" and self.num_negatives == 0:
            raise ValueError(
                "num_negatives must be at least 1 while mode is not off: got 0; "
                "raise it or set mode: off"
            )
        if self.mode == "sample" and self.chains == "parallel":
            raise ValueError(
                "chains must be shared when mode is sample (Eq. 4 contrasts z_0^j given the "
                "positive z_t): got parallel; set chains: shared"
            )
        if self.intra_unit == "patches" and math.isqrt(self.num_chunks) ** 2 != self.num_chunks:
            raise ValueError(
                "num_chunks must be a square number when intra_unit is patches: got "
                f"{self.num_chunks}; use 4 or 16"
            )
        return self


class DenoiserParams(Section):
    """Size of the denoising network."""

    width: Positive
    depth: Positive
    num_heads: Positive
    feedforward_multiple: Positive
    feedforward: Literal["linear", "conv"]
    modulation: Literal["shared", "tables"]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    checkpoint_blocks: bool

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.width % (2 * self.num_heads):
            raise ValueError(
                f"width must be a multiple of 2 * num_heads: got width {self.width} and "
                f"num_heads {self.num_heads}; change one of them"
            )
        return self


class ConditionerParams(Section):
    """Which conditions are read and how."""

    kind: Literal["sequence", "single_token"]
    use_motion: bool
    use_video: bool
    use_genre: bool
    frozen: bool
    width: Positive
    depth: Positive
    class_input: Literal["adaln", "cross_attention"]
    class_width: Positive


class Optimizer(Section):
    """AdamW, warm-up, decay and clipping."""

    learning_rate: PositiveFloat
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(min_length=2, max_length=2)
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_steps: NonNegative
    decay: Literal["constant", "cosine"]
    clip_norm: PositiveFloat


class Train(Section):
    """Everything about training the denoiser."""

    seed: NonNegative
    num_steps: Positive
    batch_size: Positive
    diffusion: Diffusion
    contrast: Contrast
    denoiser: DenoiserParams
    conditioner: ConditionerParams
    chunk_logits: bool
    drop_motion: Share
    drop_video: Share
    drop_all: Share
    optimizer: Optimizer
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    precision: Literal["auto", "float32", "bfloat16"]
    log_every: Positive
    validate_every: Positive
    save_every: Positive
    preview_every: Positive


MAX_GUIDANCE = 100.0
"""Far beyond what changes a picture; from about 1e30 on numbers overflow."""


class Generate(Section):
    """How held-out music and pictures are sampled."""

    seeds: list[NonNegative] = Field(min_length=1)
    split: Literal["val", "test"]
    num_conditions: Positive | None
    conditions_seed: NonNegative
    truncation: Annotated[float, Field(gt=0, le=1)]
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]
    stride: Positive
    batch_size: Positive
    window_overlap_seconds: Annotated[float, Field(ge=0)]
    num_previews: NonNegative


class EvaluateImage(Section):
    """What pictures are scored with; all weights by path."""

    features: Literal["stand_in", "inception"]
    inception_weights: Folder | None
    clip_weights: Folder | None
    resnet_weights: Folder | None

    @model_validator(mode="after")
    def _weights_given(self) -> Self:
        if self.features == "inception" and self.inception_weights is None:
            raise ValueError(
                "inception_weights must name the FID Inception's state dict when features is "
                "inception: got null; give the path, or set features: stand_in"
            )
        return self


class Evaluate(Section):
    """How generated music and pictures are scored."""

    denoise: Literal["none", "noisereduce"]
    genre_feature: Literal["mfcc40", "vggish"]
    vggish_weights: str | None
    num_bootstrap: Positive
    seed: NonNegative
    num_workers: Positive
    image: EvaluateImage


ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class RegisterNames(Section):
    """The registered model of each dataset: aliases of one never move to another's model."""

    aist: ModelName
    tiktok: ModelName
    cub200: ModelName
    coco: ModelName
    imagenet: ModelName


class Promotion(Section):
    """When a candidate becomes champion."""

    above_control: Literal["shuffled", "unconditioned"] | None
    within_interval: bool


class Register(Section):
    """The registered models and the score they are promoted by."""

    names: RegisterNames
    promotion: Promotion
    main_score: Literal[
        "onset_f1", "beat_f1", "genre_accuracy", "attribute_accuracy", "class_accuracy", "clip_s"
    ]


class Schedules(Section):
    """When `python -m flows.serve` runs what, and how patient an unwatched run is."""

    timezone: Annotated[str, Field(min_length=1)]
    nightly: Annotated[str, Field(min_length=1)] | None
    evaluate: Annotated[str, Field(min_length=1)] | None
    refresh_data: Annotated[str, Field(min_length=1)] | None
    push: bool
    retries: NonNegative
    retry_delay_seconds: Annotated[float, Field(ge=0)]
    busy_patience_seconds: Annotated[float, Field(ge=0)]


class DatasetOverrides(Section):
    """What one dataset sets otherwise, stage by stage; empty where it sets nothing."""

    codec: dict[str, Any]
    encode: dict[str, Any]
    featurize: dict[str, Any]
    train: dict[str, Any]
    generate: dict[str, Any]
    evaluate: dict[str, Any]
    register_: dict[str, Any] = Field(alias="register")


class Overrides(Section):
    """What each dataset sets otherwise than the sections of the stages."""

    aist: DatasetOverrides
    tiktok: DatasetOverrides
    cub200: DatasetOverrides
    coco: DatasetOverrides
    imagenet: DatasetOverrides


class Params(Section):
    """All parameters of the pipeline, one field per stage."""

    datasets: list[Dataset] = Field(min_length=1)
    ingest: Ingest
    shard: Shard
    codec: Codec
    encode: Encode
    featurize: Featurize
    train: Train
    generate: Generate
    evaluate: Evaluate
    register_: Register = Field(alias="register")
    schedules: Schedules
    overrides: Overrides

    def of(self, dataset: str) -> Params:
        """These parameters with a dataset's own laid over the sections of the stages.

        Raises:
            ValidationError: they do not fit; `parse_params` has made sure that they do.
        """
        tree = self.model_dump(by_alias=True)
        return Params.model_validate(lay_over(tree, tree["overrides"][dataset]))

    @model_validator(mode="after")
    def _across_stages(self) -> Self:
        contrast = self.train.contrast
        waveform = contrast.mode != "off" and contrast.negatives == "intra"
        if waveform and contrast.intra_unit == "waveform":
            stored = self.encode.num_waveform_negatives
            if stored < contrast.num_negatives:
                raise ValueError(
                    "encode.num_waveform_negatives must be at least train.contrast.num_negatives "
                    f"when train.contrast.intra_unit is waveform: got {stored} for "
                    f"{contrast.num_negatives}; raise it or set intra_unit: tokens"
                )
        if self.generate.window_overlap_seconds >= self.shard.segment_seconds:
            raise ValueError(
                "generate.window_overlap_seconds must be shorter than shard.segment_seconds: got "
                f"{self.generate.window_overlap_seconds} for {self.shard.segment_seconds}"
            )
        return self


def lay_over(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A tree with changes laid over it: mappings are merged, everything else is replaced."""
    merged = dict(tree)
    for key, value in changes.items():
        below = merged.get(key)
        is_branch = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = lay_over(below, value) if is_branch else value  # type: ignore[arg-type]
    return merged


def parse_params(tree: Any, source: str = "params.yaml") -> Params:
    """Check a tree of plain values, with the overrides of each of its datasets, and freeze it.

    Raises:
        ConfigError: one line per broken rule, with the dotted key, the value and the rule.
    """
    try:
        params = Params.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_told(issue, source) for issue in error.errors())) from None
    for dataset in params.datasets:
        try:
            params.of(dataset)
        except ValidationError as error:
            where = f"{source}: overrides.{dataset}"
            raise ConfigError("; ".join(_told(issue, where) for issue in error.errors())) from None
    return params


def _told(issue: Any, source: str) -> str:
    key = ".".join(str(part) for part in issue["loc"])
    match issue["type"]:
        case "extra_forbidden":
            return f"{source}: {key} is not a known key; remove it or mend its spelling"
        case "missing":
            return f"{source}: {key} is missing; add it (see `cdcd presets show`)"
        case "value_error":
            return f"{source}: {key + '.' if key else ''}{issue['ctx']['error']}"
    rule = issue["msg"][0].lower() + issue["msg"][1:]
    return (
        f"{source}: {key}: {rule}: got {issue['input']!r}; "
        "change it (`cdcd presets show fixed` and aist/demo hold values that work)"
    )


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check a params file.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or breaks a rule.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run from the repository's root") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: must hold sections such as ingest and train: got "
            f"{'nothing' if tree is None else type(tree).__name__}; bring it back with "
            "`git checkout params.yaml`"
        )
    return parse_params(tree, str(path))
