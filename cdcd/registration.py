"""A trained pipeline becomes a version of a registered model, and perhaps its champion.

Every new version gets the alias `candidate`; `cdcd.promotion` decides about `champion`. A version
with broken weights is never registered.
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdcd import licences, model_card, tracking
from cdcd.config import Params
from cdcd.data.files import write_json
from cdcd.data.samples import TASKS
from cdcd.promotion import CANDIDATE, CHAMPION, Score, judge, read_scores, record

PACKAGE = Path(__file__).resolve().parent
# What loading a model and generating with it import, beside MLflow itself.
_COMMON = ("torch", "numpy", "safetensors", "pandas", "tqdm", "pillow")
REQUIREMENTS = {
    "dance2music": (*_COMMON, "av", "decord", "soundfile", "soxr"),
    "text2image": (*_COMMON, "transformers", "tokenizers"),
    "class2image": _COMMON,
}


class RegistrationError(ValueError):
    """A model that must not be registered; the message says why and what to run."""


def requirements(task: str) -> list[str]:
    """The versions installed here, pinned; a local suffix such as `+cpu` is no version of PyPI."""
    return [
        f"{name}=={importlib.metadata.version(name).partition('+')[0]}"
        for name in REQUIREMENTS[task]
    ]


def check_weights(folder: Path, name: str) -> None:
    """Check that `<name>.safetensors` and `<name>.json` are there and every number is finite.

    Raises:
        RegistrationError: a file is missing or unreadable, or a tensor holds NaN or infinity.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    for path in (folder / f"{name}.safetensors", folder / f"{name}.json"):
        if not path.is_file():
            raise RegistrationError(
                f"a registered model needs {path}: no such file; run the pipeline up to `train`"
            )
    weights = folder / f"{name}.safetensors"
    try:
        with safe_open(weights, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                tensor = file.get_tensor(key)
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise RegistrationError(
                        f"weights must be finite: {key} of {weights} holds NaN or infinity; "
                        "train again, with a lower train.optimizer.learning_rate"
                    )
    except SafetensorError as error:
        raise RegistrationError(
            f"{weights} must be a safetensors file: {' '.join(str(error).split())}; train again"
        ) from None


def check_encoder(folder: Path) -> None:
    """Check that a folder holds a text encoder whose every number is finite.

    Raises:
        RegistrationError: as said.
    """
    from cdcd.features.text import TextEncoder

    try:
        encoder = TextEncoder.load(folder)
    except ValueError as error:
        raise RegistrationError(f"a registered model needs its text encoder: {error}") from None
    for name, weights in encoder.model.named_parameters():
        if not bool(weights.isfinite().all()):
            raise RegistrationError(
                f"weights must be finite: {name} of {folder} holds NaN or infinity; run the codec "
                "stage again, with a lower codec.text.learning_rate"
            )


def check_partners(origin: model_card.Origin, metrics: Mapping[str, Any]) -> None:
    """Check that codec and scores are those of the model, as far as they say whose they are.

    Raises:
        RegistrationError: one is of another model.
    """
    codec, told = origin.hashes.get("weights of the codec"), origin.model.get("codec_sha256")
    if told is not None and told != codec:
        raise RegistrationError(
            f"the codec must be the one that the model was trained with: its SHA-256 is "
            f"{str(codec)[:12]}…, the model's {str(told)[:12]}…; run `dvc repro train`"
        )
    scored = (metrics.get("versions") or {}).get("sha256 of model.safetensors")
    own = origin.hashes.get("weights of the model")
    if scored is not None and scored != own:
        raise RegistrationError(
            f"the scores must be of this model: they are of weights {str(scored)[:12]}…, these "
            f"are {str(own)[:12]}…; run `evaluate` again"
        )


def example_row(task: str) -> dict[str, Any]:
    """What a model of a task can be asked; small enough to be kept with it."""
    shared = {"seed": 0, "as_base64": True}
    match task:
        case "dance2music":
            return {"video_base64": _example_video(), "format": "wav", **shared}
        case "text2image":
            return {"text": "a small red bird with black wings", "num": 1, **shared}
        case _:
            return {"class": 0, "num": 1, **shared}


def _example_video() -> str:
    """One second of a square that jumps, mp4 in base64; two kilobytes."""
    import base64

    import numpy as np

    from cdcd.media import encode_clip

    frames = np.zeros((10, 48, 64, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        frame[16:32, 8 + 32 * (index % 2) : 24 + 32 * (index % 2)] = 255
    return base64.b64encode(encode_clip(frames, fps=10, crf=35)).decode("ascii")


def register_model(
    params: Params,
    *,
    dataset: str,
    model_dir: str | Path,
    codec_dir: str | Path,
    metrics_path: str | Path,
    out_path: str | Path,
    encoder_dir: str | Path | None = None,
    train_run_id: str | None = None,
    shards_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Register a trained model with what it needs under its dataset's name, and set the aliases.

    Args:
        params: `register.names` names the model, `register.main_score` the score that decides
            (of the dataset's own view), `generate` how the model samples where nobody says.
        dataset: what it was trained on.
        model_dir: with model.safetensors and model.json.
        codec_dir: with codec.safetensors and codec.json.
        metrics_path: the table that `evaluate` wrote.
        out_path: JSON that receives what is returned.
        encoder_dir: with the text encoder in `text/`; only used, and needed, by models of texts.
        train_run_id: the run that trained the model, if it is known.
        shards_dir: the data it was trained on, for the model card; None where it is not at hand.

    Returns:
        name, version, aliases, uri, score (name and mean), promotion (why, or why not) and champion
        (version and mean, or None).

    Raises:
        RegistrationError: weights or scores are missing or not finite; nothing is registered.
        TrackingError: the registry cannot be opened.
    """
    from cdcd.tasks import sampler_of

    model_dir, codec_dir, metrics_path = Path(model_dir), Path(codec_dir), Path(metrics_path)
    name = str(getattr(params.register_.names, dataset))
    main = params.register_.main_score
    check_weights(model_dir, "model")
    check_weights(codec_dir, "codec")
    task = TASKS[dataset]
    artifacts = {"model": model_dir, "codec": codec_dir}
    if task == "text2image":
        if encoder_dir is None:
            raise RegistrationError(
                f"a registered model of {dataset} needs its text encoder: got none; give "
                f"encoder_dir, such as data/encoders/{dataset}"
            )
        artifacts["encoder"] = Path(encoder_dir)
        check_encoder(Path(encoder_dir))
    scores = read_scores(metrics_path, "model")
    if main not in scores:
        raise RegistrationError(
            f"register.main_score must be a finite score of systems.model in {metrics_path}: got "
            f"{main}; choose one of {', '.join(sorted(scores)) or 'none'}, or run `evaluate` again"
        )
    metrics = json.loads(metrics_path.read_text(encoding="utf-8"))
    origin = model_card.read_origin(
        dataset,
        model_dir,
        codec_dir,
        None if shards_dir is None else Path(shards_dir),
        tracking.run_settings(train_run_id),
        tracking.git_state(),
    )
    check_partners(origin, metrics)
    champion = tracking.version_by_alias(name, CHAMPION)
    tags = {
        "dataset": dataset,
        "licence": licences.strictest(origin.terms),
        **origin.state,
        **{key: tag for label, score in scores.items() for key, tag in score.tags(label).items()},
    }
    if train_run_id is not None:
        tags["train_run_id"] = train_run_id
    means = {label: score.mean for label, score in scores.items()}
    sampler = sampler_of(params)
    card = model_card.write_card(name, task, origin, metrics, main, sampler)
    with tempfile.TemporaryDirectory() as temporary:
        artifacts["sampler"] = Path(temporary) / "sampler.json"
        write_json(artifacts["sampler"], {"sampler": sampler})
        artifacts["card"] = Path(temporary) / "MODEL_CARD.md"
        artifacts["card"].write_text(card, encoding="utf-8")
        version = tracking.log_model_version(
            name,
            dataset=dataset,
            task=task,
            python_model=PACKAGE / "serving.py",
            artifacts=artifacts,
            code_paths=[PACKAGE, PACKAGE.parent / "kernels"],
            requirements=requirements(task),
            tags=tags,
            description=model_card.description(card),
            metadata={
                "dataset": dataset,
                "task": task,
                "main_score": main,
                "scores": means,
                "licence": tags["licence"],
            },
            input_example=example_row(task),
        )
    tracking.set_alias(name, CANDIDATE, version.version)
    tracking.link_version(name, version.version, dataset, [train_run_id, version.run_id])
    rule = params.register_.promotion
    control = None
    if rule.above_control is not None:
        control = read_scores(metrics_path, rule.above_control).get(main)
    verdict = judge(rule, main, scores[main], control, champion, dataset)
    record(version, verdict, champion)
    holder = version if verdict.is_promoted else champion
    theirs = None if holder is None else Score.of_tags(main, holder.tags)
    result = {
        "name": name,
        "version": version.version,
        "aliases": [CANDIDATE, CHAMPION] if verdict.is_promoted else [CANDIDATE],
        "uri": version.uri,
        "score": {"name": main, "mean": scores[main].mean},
        "promotion": verdict.reason,
        "champion": None
        if holder is None
        else {"version": holder.version, "mean": None if theirs is None else theirs.mean},
    }
    write_json(out_path, result)
    return result
