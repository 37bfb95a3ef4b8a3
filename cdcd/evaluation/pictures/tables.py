"""From pictures seen to the table: metrics of a set, summaries over seeds, distances, bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcd.evaluation.clip_score import PREFIX, clip_cos100, clip_s
from cdcd.evaluation.frechet import Gaussian, frechet_between
from cdcd.evaluation.pictures.accuracy import (
    NOT_GENERATED,
    attribute_scores,
    class_accuracy,
)
from cdcd.evaluation.pictures.sets import ORDER, Condition
from cdcd.evaluation.pictures.viewer import NUM_TOP, STAND_IN_FEATURES, Seen, Viewer
from cdcd.evaluation.result import Metric, mean_metric
from cdcd.evaluation.systems import reading_order
from cdcd.evaluation.tables import Scores, summarise

COMPARED = (
    *("attribute_accuracy", "all_attributes", "class_accuracy", "top5_accuracy"),
    *("clip_s", "clip_cos100"),
)
PAIRS = (("model", "shuffled"), ("model", "unconditioned"))
GROUP = "cluster"
FEW_PICTURES = 2048
"""Below this many pictures a Fréchet inception distance mostly measures how many there are."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What every condition asks for.

    Attributes:
        conditions: sorted by key.
        told: attributes told, by condition; empty without a stand-in.
        names: of the classes, by label.
        texts: vectors float32 `[captions, e]` by prefix; empty without a CLIP.
        rows: row of a caption in `texts`.
        warnings: captions that the CLIP cut.
    """

    conditions: Sequence[Condition]
    told: Mapping[str, Mapping[str, str]]
    names: Mapping[int, str]
    texts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def ask(viewer: Viewer, conditions: Sequence[Condition], names: Mapping[int, str]) -> Asked:
    """Read the captions once, as attributes and as vectors."""
    captions = sorted({c.caption for c in conditions if c.caption is not None})
    told: dict[str, Mapping[str, str]] = {}
    if viewer.reader is not None and viewer.reader.attributes:
        read = {caption: viewer.reader.stand_in.told(caption) for caption in captions}
        told = {c.key: read[c.caption] for c in conditions if c.caption is not None}
    texts: dict[str, NDArray[np.float32]] = {}
    warnings = []
    if viewer.encoder is not None and captions:
        for prefix in (PREFIX, ""):
            lines = [prefix + caption for caption in captions]
            texts[prefix] = viewer.encoder.text_features(lines).numpy()
            if num_cut := int(viewer.encoder.tokenize(lines).truncated.sum()):
                warnings.append(
                    f"{'clip_s' if prefix else 'clip_cos100'}: {num_cut} of {len(lines)} captions "
                    f"were cut to {viewer.encoder.context_length} tokens"
                )
    rows = {caption: row for row, caption in enumerate(captions)}
    return Asked(conditions, told, names, texts, rows, tuple(warnings))


def score(
    viewer: Viewer, asked: Asked, seen: Seen, rows: Mapping[str, int], config: Mapping[str, Any]
) -> dict[str, Metric]:
    """Score one set.

    Args:
        viewer: what looked at it.
        asked: what its pictures were to show.
        seen: what they show.
        rows: row of the picture in `seen`, by condition; conditions without one are skipped.
        config: what the scores rest on, by kind: `classifier`, `clip`.

    Returns:
        `attribute_accuracy`, `all_attributes`, `attributes.<family>`, `class_accuracy`,
        `top5_accuracy`, `clip_s`, `clip_cos100`: those that can be scored.
    """
    metrics: dict[str, Metric] = {}
    reader = viewer.reader
    if asked.told and reader is not None:
        values: dict[str, Mapping[str, str] | str] = {
            key: {
                name: reader.value(name, int(seen.values[name][row])) for name in reader.attributes
            }
            for key, row in rows.items()
        }
        families = {name: reader.stand_in.family(name) for name in reader.attributes}
        metrics |= attribute_scores(asked.told, values, families, config["classifier"])
    if seen.top is not None:
        top: dict[str, NDArray[np.int64] | str] = {k: seen.top[row] for k, row in rows.items()}
        labels = {condition.key: condition.label for condition in asked.conditions}
        for name, k in (("class_accuracy", 1), ("top5_accuracy", NUM_TOP)):
            if k <= seen.top.shape[1]:
                metrics[name] = class_accuracy(top, labels, k, asked.names, config["classifier"])
    if seen.clip is not None and asked.texts:
        with_caption = [c for c in asked.conditions if c.caption is not None]
        scored = [c for c in with_caption if c.key in rows]
        places = [asked.rows[str(c.caption)] for c in scored]
        pictures = seen.clip[[rows[c.key] for c in scored]]
        lost: dict[str, float | str] = {
            c.key: NOT_GENERATED for c in with_caption if c.key not in rows
        }
        for name, one, prefix in (("clip_s", clip_s, PREFIX), ("clip_cos100", clip_cos100, "")):
            settings = {"encoder": config["clip"], "prefix": prefix}
            found = one(pictures, asked.texts[prefix][places], [c.key for c in scored], settings)
            metrics[name] = mean_metric({**found.per_sample, **lost}, found.config, found.warnings)
    return metrics


def summaries(scores: Scores, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return one row per system, in reading order: every score over seeds, pictures and groups."""
    found = summarise(scores, options, GROUP)
    systems: dict[str, dict[str, Any]] = {}
    for system in reading_order(scores, ORDER):
        row: dict[str, Any] = {"num_seeds": len(scores[system]), "n": 0}
        for name, value in found[system].items():
            if value is not None:
                row["n"] = max(row["n"], value["n"])
            family, _, part = name.partition(".")
            if part:
                row.setdefault(family, {})[part] = value
            else:
                row[name] = value
        systems[system] = row
    return systems


def add_distances(
    systems: Mapping[str, dict[str, Any]],
    features: Mapping[str, Mapping[int, Gaussian]],
    name: str,
) -> list[str]:
    """Put the Fréchet distance to the real pictures, over seeds, into the systems' rows.

    Args:
        systems: rows.
        features: Gaussians by system and seed; `real` holds the real pictures, each once.
        name: of the score.

    Returns:
        Warnings.
    """
    real = features["real"][0]
    warnings: list[str] = []
    few: dict[str, int] = {}
    for system, by_seed in features.items():
        values, counts = [], []
        for one in by_seed.values():
            if min(one.n, real.n) < 2:
                warnings.append(
                    f"{name} of {system} refused: it needs at least 2 pictures a side: got {one.n} "
                    f"and {real.n}"
                )
                continue
            found = frechet_between(one, real)
            assert found.value is not None
            values.append(found.value)
            counts.append(one.n)
            warnings += [f"{name} of {system}: {line}" for line in found.warnings]
        if not values:
            continue
        systems[system][name] = {
            "mean": float(np.mean(values)),
            "std_seeds": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            **dict.fromkeys(("ci_low", "ci_high", f"ci_{GROUP}_low", f"ci_{GROUP}_high")),
            "n_real": real.n,
            "n_gen": min(counts),
            "num_seeds": len(values),
        }
        if min(*counts, real.n) < FEW_PICTURES:
            few[system] = min(counts)
    if few:
        listed = ", ".join(f"{system} {num}" for system, num in few.items())
        warnings.append(
            f"{name}: fewer than {FEW_PICTURES} pictures ({listed}; against {real.n} real ones): "
            "compare only runs with the same numbers"
        )
    if name != "fid":
        warnings.append(f"{name}: {STAND_IN_FEATURES}")
    return list(dict.fromkeys(warnings))
