"""params.yaml parsed once into one frozen, typed `Params`; unknown or mistyped keys are errors.

The models of all stages live here rather than beside their classes, because the core packages
(`kernels`, `cdcd.diffusion`, `cdcd.models`, `cdcd.training`) must import without pydantic.
"""

from __future__ import annotations

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


class Codec(Section):
    """The music codec: its shape and its training."""

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


class Featurize(Section):
    """Condition features."""

    video: Literal["motion_energy", "cells", "i3d"]
    grid: Annotated[int, Field(ge=1, le=32)]
    i3d_weights: str | None
    i3d_output: Literal["steps", "segment"]
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
    adaptive: Literal["increasing", "decreasing", "none"]


class Contrast(Section):
    """The contrastive term: mode, negatives, form and weight."""

    mode: Literal["off", "step", "sample"]
    negatives: Literal["intra", "inter"]
    form: Literal["linear", "infonce"]
    chains: Literal["shared", "parallel"]
    weight: Annotated[float, Field(ge=0)]
    num_negatives: NonNegative
    num_chunks: Annotated[int, Field(ge=2)]
    intra_unit: Literal["tokens", "waveform"]

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
        return self


class DenoiserParams(Section):
    """Size of the denoising network."""

    width: Positive
    depth: Positive
    num_heads: Positive
    feedforward_multiple: Positive
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


class Generate(Section):
    """How held-out music is sampled."""

    seeds: list[NonNegative] = Field(min_length=1)
    split: Literal["val", "test"]
    truncation: Annotated[float, Field(gt=0, le=1)]
    guidance: Annotated[float, Field(ge=0)]
    stride: Positive
    batch_size: Positive
    window_overlap_seconds: Annotated[float, Field(ge=0)]
    num_previews: NonNegative


class Evaluate(Section):
    """How generated music is scored."""

    denoise: Literal["none", "noisereduce"]
    genre_feature: Literal["mfcc40", "vggish"]
    vggish_weights: str | None
    num_bootstrap: Positive
    seed: NonNegative
    num_workers: Positive


ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class RegisterNames(Section):
    """The registered model of each dataset: aliases of one never move to another's model."""

    aist: ModelName
    tiktok: ModelName
    cub200: ModelName
    coco: ModelName
    imagenet: ModelName


class Register(Section):
    """The registered models and the score they are promoted by."""

    names: RegisterNames
    main_score: Literal["onset_f1", "beat_f1", "genre_accuracy"]


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


def parse_params(tree: Any, source: str = "params.yaml") -> Params:
    """Check a tree of plain values and freeze it.

    Raises:
        ConfigError: one line per broken rule, with the dotted key, the value and the rule.
    """
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        lines = []
        for issue in error.errors():
            key = ".".join(str(part) for part in issue["loc"])
            if issue["type"] == "extra_forbidden":
                lines.append(f"{source}: {key} is not a known key; remove it or mend its spelling")
            elif issue["type"] == "missing":
                lines.append(f"{source}: {key} is missing; add it (see `cdcd presets show`)")
            elif issue["type"] == "value_error":
                lines.append(f"{source}: {key + '.' if key else ''}{issue['ctx']['error']}")
            else:
                rule = issue["msg"][0].lower() + issue["msg"][1:]
                lines.append(
                    f"{source}: {key}: {rule}: got {issue['input']!r}; "
                    "change it (`cdcd presets show fixed` and aist/demo hold values that work)"
                )
        raise ConfigError("; ".join(lines)) from None


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
