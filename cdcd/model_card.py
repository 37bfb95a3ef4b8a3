"""What a registered model tells about itself: data, behaviour, scores with controls, licences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cdcd import licences
from cdcd.data.files import sha256_file
from cdcd.tracking import flatten, is_number

PRESETS = Path("presets")
MAX_DESCRIPTION = 4500
"""Letters of a version's description; MLflow's store holds 5000, and links to runs are added."""
NUM_SCORES = 5
"""Columns of the table; the metrics file has all."""
MAKES = {
    "dance2music": "Music for dance videos",
    "text2image": "Pictures from text",
    "class2image": "Pictures of classes",
}
HELD_OUT = {"dance2music": "songs", "text2image": "captions", "class2image": "pictures"}
_IN_AND_OUT = {
    "dance2music": (
        "a video of any length (`video`, a path, or `video_base64`)",
        "music of exactly its length, as wav, or as mp4 with the dance",
        '{"video": ["dance.mp4"], "out": ["with_music.mp4"]}',
    ),
    "text2image": (
        "an English description (`text`)",
        "one or more PNG pictures",
        '{"text": ["a small red bird with black wings"], "out": ["bird.png"]}',
    ),
    "class2image": (
        "a class by number or name (`class`)",
        "one or more PNG pictures",
        '{"class": [3], "num": [4], "out": ["folder"]}',
    ),
}
_KINDS = {
    "apache-2.0": "may be used like the code, under Apache-2.0",
    "attribution": "may be used with attribution of the sources below",
    "publishers-terms": "may be used as far as the publishers' terms below allow",
    "unstated": "research only: no licence is stated for part of what it was made from",
    "non-commercial": "non-commercial use only, and so is what it makes",
}
_BEHAVIOUR = (
    "contrast.mode",
    "contrast.negatives",
    "contrast.form",
    "contrast.weight",
    "contrast.num_negatives",
    "conditioner.kind",
    "diffusion.schedule",
    "diffusion.num_steps",
    "num_steps",
    "seed",
)


@dataclass(frozen=True)
class Origin:
    """What a model was made from.

    Attributes:
        dataset: its name.
        model: content of model.json.
        codec: content of codec.json.
        shards: `summary.json` of the shards; None where they are not at hand.
        hashes: SHA-256 by what it is of.
        settings: of the training run, by dotted name; empty where its run is not at hand.
        state: commit and whether the tree was dirty, as `tracking.git_state` tells.
    """

    dataset: str
    model: Mapping[str, Any]
    codec: Mapping[str, Any]
    shards: Mapping[str, Any] | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_embedded(self) -> bool:
        """Whether the data is known to be the stand-in; what is unknown counts as the real one."""
        return bool((self.shards or {}).get("embedded", False))

    @property
    def terms(self) -> list[licences.Terms]:
        """Of all data and weights."""
        data = licences.of_data(self.dataset, self.is_embedded)
        return [*data, *licences.of_weights(self.model, self.codec)]


def read_origin(
    dataset: str,
    model_dir: Path,
    codec_dir: Path,
    shards_dir: Path | None = None,
    settings: Mapping[str, str] | None = None,
    state: Mapping[str, str] | None = None,
) -> Origin:
    """Look up what a model was made from; what is missing is left out, never guessed."""
    files = {
        "weights of the model": model_dir / "model.safetensors",
        "weights of the codec": codec_dir / "codec.safetensors",
    }
    if shards_dir is not None:
        files["list of the data's shards"] = shards_dir / "shards.json"
    return Origin(
        dataset,
        _read(model_dir / "model.json") or {},
        _read(codec_dir / "codec.json") or {},
        None if shards_dir is None else _read(shards_dir / "summary.json"),
        {what: sha256_file(path) for what, path in files.items() if path.is_file()},
        settings or {},
        state or {},
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def behaviour_of(settings: Mapping[str, str], dataset: str, folder: Path = PRESETS) -> str | None:
    """The preset whose training values these all are, or None.

    Args:
        settings: of the training run, by dotted name.
        dataset: whose own values the preset may hold.
        folder: with the presets.
    """
    for path in sorted(folder.glob("*.yaml")):
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        own = ((tree.get("overrides") or {}).get(dataset) or {}).get("train") or {}
        values = flatten({"train": tree.get("train") or {}}) | flatten({"train": own})
        if settings and all(settings.get(name) == str(value) for name, value in values.items()):
            return path.stem
    return None


def write_card(
    name: str,
    task: str,
    origin: Origin,
    metrics: Mapping[str, Any],
    main_score: str,
    sampler: Mapping[str, Any],
) -> str:
    """The model card, Markdown.

    Args:
        name: of the registered model.
        task: what it does.
        origin: what it was made from.
        metrics: the table that `evaluate` wrote.
        main_score: the score that decides about promotion.
        sampler: its settings where nobody asks for others.
    """
    given, made, example = _IN_AND_OUT[task]
    parts = [
        f"# {name}",
        f"{MAKES[task]}, by discrete contrastive diffusion; trained on {origin.dataset}.",
        f"**In**: {given}. **Out**: {made}.",
        "## Licence",
        _licences(origin),
        f"## Scores on held-out {HELD_OUT[task]}",
        _scores(metrics, main_score),
        "## Data",
        _data(origin),
        "## Behaviour",
        _behaviour(origin, sampler),
        "## Use",
        "For research and play on the kind of data it was trained on; for other videos, words or "
        "classes nothing is promised, and it may repeat what it was trained on. Not for decisions "
        "about people. Say of what it makes that a machine made it.",
        f'```\nmodel = mlflow.pyfunc.load_model("models:/{name}@champion")\n'
        f"model.predict({example})\n```",
        "Loading it runs the code it holds. `mlflow models serve` answers the same rows; settings "
        "and limits: SECURITY.md of the code.",
        "## Made by",
        _made_by(origin),
    ]
    return "\n\n".join(parts) + "\n"


def description(card: str) -> str:
    """The card as a version's description, cut at a section where it is too long."""
    if len(card) <= MAX_DESCRIPTION:
        return card
    note = "\n\nMore in `MODEL_CARD.md` among the model's artifacts.\n"
    room = MAX_DESCRIPTION - len(note)
    cut = card.rfind("\n\n## ", 0, room)
    return card[: cut if cut > 0 else room] + note


def _licences(origin: Origin) -> str:
    kind = licences.strictest(origin.terms)
    rows = [f"| {one.what} | {one.terms}; {one.here} |" for one in origin.terms]
    head = f"**{_KINDS[kind].capitalize()}** (tag `licence`: {kind}). Made from:"
    table = ["| what | terms |", "|---|---|", *rows, "| code | Apache-2.0 |"]
    return "\n".join([head, "", *table])


def _cell(value: Any) -> str:
    if not isinstance(value, Mapping) or not is_number(value.get("mean")):
        return "–"
    low, high = value.get("ci_low"), value.get("ci_high")
    interval = f" [{low:.3g}, {high:.3g}]" if is_number(low) and is_number(high) else ""
    return f"{value['mean'] + 0.0:.3g}{interval}"  # no -0


def _scores(metrics: Mapping[str, Any], main_score: str) -> str:
    systems = metrics["systems"]
    own = [name for name, value in systems["model"].items() if _cell(value) != "–"]
    names = [main_score, *(name for name in own if name != main_score)][:NUM_SCORES]
    rows = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label in sorted(systems, key=lambda label: label != "model"):
        values = systems[label]
        if isinstance(values, Mapping):
            told = f"**{label}**" if label == "model" else label.replace("_", " ")
            rows.append(f"| {told} | " + " | ".join(_cell(values.get(n)) for n in names) + " |")
    notes = [f"`{main_score}` decides about promotion. In brackets: 95 % bootstrap intervals."]
    if metrics.get("comparable_to_paper_why"):
        notes.append(f"Not the paper's numbers: {metrics['comparable_to_paper_why']}.")
    return "\n".join([*rows, "", " ".join(notes)])


def _data(origin: Origin) -> str:
    if origin.shards is None:
        return f"{origin.dataset}; not recorded whether a real download or the stand-in."
    kind = "the embedded stand-in" if origin.is_embedded else "a real download"
    counts = origin.shards.get("num_samples_by_split") or {}
    told = ", ".join(f"{split} {num}" for split, num in counts.items() if num)
    skipped = origin.shards.get("num_skipped", 0)
    return f"{origin.dataset}, {kind}: {told or 'not counted'} samples; {skipped} were skipped."


def _behaviour(origin: Origin, sampler: Mapping[str, Any]) -> str:
    settings = origin.settings
    preset = behaviour_of(settings, origin.dataset)
    lines = [f"- preset: {preset or 'none as it stands'}"] if settings else []
    shown = {name: settings.get(f"train.{name}") for name in _BEHAVIOUR}
    lines += [f"- train.{name}: {value}" for name, value in shown.items() if value is not None]
    is_music = "video_feature" in origin.model
    lines += [
        f"- sampler.{name}: {value}"
        for name, value in sampler.items()
        if is_music or name != "window_overlap_seconds"
    ]
    return "\n".join(lines)


def _made_by(origin: Origin) -> str:
    lines = [f"- {key.replace('_', ' ')}: {value}" for key, value in origin.state.items()]
    lines += [f"- SHA-256 of the {what}: `{value}`" for what, value in origin.hashes.items()]
    return "\n".join(lines)
