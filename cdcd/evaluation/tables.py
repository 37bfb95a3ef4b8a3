"""From scores of each clip or picture to the table: summaries, comparisons, genre variants."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcd.config import Params
from cdcd.evaluation import genre, scoring, statistics
from cdcd.evaluation.features import GenreFeatures
from cdcd.evaluation.result import Metric
from cdcd.evaluation.systems import Originals, reading_order

COMPARED = ("onset_f1", "beat_f1", "genre_accuracy")
NUM_DRAWS = 10  # diffusion steps drawn per clip or picture for the bound on bits per token

_SEES_DANCE = ("model", "motion_only", "video_only")

Scores = dict[str, dict[int, dict[str, Metric]]]
"""Metric by system, seed and name."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Originals with a genre: feature (or the reason for none), genre code and song by key."""

    features: dict[str, NDArray[np.floating] | str]
    genres: dict[str, str]
    songs: dict[str, str]


def bootstrap(params: Params, clusters: Mapping[str, str]) -> dict[str, Any]:
    """Return the options of the bootstrap; `clusters` is what each key belongs to, e.g. a song."""
    p = params.evaluate
    return {"num_resamples": p.num_bootstrap, "seed": p.seed, "clusters": clusters}


def summarise(
    scores: Scores, options: Mapping[str, Any], group: str = "song"
) -> dict[str, dict[str, dict[str, Any] | None]]:
    """Summarise every score of every system over seeds, keys and groups.

    Args:
        scores: by system and seed, the same scores for all seeds of a system.
        options: of `bootstrap`.
        group: what the clusters are, as in `ci_song_low`.

    Returns:
        By system and score, a summary with `n_skipped`; None where no key was scored.
    """
    runs = {system: [of for _, of in sorted(by_seed.items())] for system, by_seed in scores.items()}
    places = [(system, name) for system, mine in runs.items() for name in mine[0]]
    # All at once: scores of the same keys share their draws.
    found = statistics.summarise(
        [[run[name].per_sample for run in runs[system]] for system, name in places], **options
    )
    rows: dict[str, dict[str, dict[str, Any] | None]] = {system: {} for system in runs}
    for (system, name), summary in zip(places, found, strict=True):
        value = None if summary is None else summary.as_dict(group)
        if value is not None:
            value["n_skipped"] = sum(len(run[name].skipped) for run in runs[system])
        rows[system][name] = value
    return rows


def summaries(scores: Scores, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return one row per system, in reading order: every score over seeds, clips and songs."""
    found = summarise(scores, options)
    systems: dict[str, dict[str, Any]] = {}
    for system in reading_order(scores):
        runs = [metrics for _, metrics in sorted(scores[system].items())]
        row: dict[str, Any] = {"beats": {"d2m": {}, "loris": {}}, "num_seeds": len(runs)}
        for name, value in found[system].items():
            family, _, score = name.partition(".")
            (row["beats"][family] if score else row)[score or name] = value
        for family, score in (("d2m", "hit"), ("loris", "bhs")):
            extras = [run[f"{family}.{score}"].extra for run in runs]
            renamed = {"coverage_std": "csd", "hit_std": "hsd"} if family == "loris" else {}
            for name in ("f1", "coverage_std", "hit_std", "coverage_abs_dev"):
                if name in extras[0]:
                    row["beats"][family][renamed.get(name, name)] = _mean(e[name] for e in extras)
            row["beats"][family]["n_no_reference_beats"] = extras[0]["n_no_reference_beats"]
        if "genre_accuracy" in runs[0]:
            genres = [run["genre_accuracy"].extra for run in runs]
            low, high = _mean_wilson([run["genre_accuracy"] for run in runs])
            row["genre"] = {
                "macro": _mean(e.get("macro") for e in genres),
                "majority_5": _mean(e["majority_5"] for e in genres),
                "wilson_low": low,
                "wilson_high": high,
            }
        row["n"] = max(len(run["onset_f1"].per_sample) for run in runs)
        systems[system] = row
    return systems


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _mean_wilson(runs: Sequence[Metric]) -> tuple[float | None, float | None]:
    # Seeds repeat the same clips, so n stays the number of clips.
    share, n = _mean(run.value for run in runs), max(run.n for run in runs)
    return (None, None) if share is None else statistics.wilson_interval(share, n)


def bits_per_token(
    systems: Iterable[str],
    model_dir: str | Path,
    tokens_dir: str | Path,
    features_dir: str | Path,
    split: str,
    keys: Sequence[str] | None = None,
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return the bound on the originals' bits per token by system and key, and warnings.

    Args:
        systems: rows; those that no model stands behind are left out.
        model_dir: the denoiser.
        tokens_dir: the originals' tokens.
        features_dir: their conditions.
        split: which split.
        keys: the conditions; None for all of the split. There is a warning of those not found.
    """
    from tqdm import tqdm

    try:
        from cdcd import tasks
    except ImportError as error:
        return {}, [f"no bits per token: {error}"]
    folders = (Path(model_dir), Path(tokens_dir), Path(features_dir))
    asked = [system for system in systems if system in tasks.SYSTEMS]
    found: dict[str, dict[str, float]] = {}
    warnings = []
    for system in tqdm(asked, desc="evaluate: bits per token", unit="system"):
        bits = tasks.bits_per_token(*folders, split, system, NUM_DRAWS, keys)
        found[system] = dict(zip(bits["keys"], bits["per_sample"], strict=True))
        if keys is not None and (num_lost := len(keys) - len(found[system])):
            warnings.append(
                f"bits per token of {system}: {num_lost} conditions are not in {features_dir}"
            )
    return found, warnings


def add_bits(
    systems: Mapping[str, dict[str, Any]],
    bits: Mapping[str, Mapping[str, float]],
    options: Mapping[str, Any],
    group: str = "song",
) -> None:
    """Put the summary of `bits_per_token` into the systems' rows; see `summarise`."""
    found = statistics.summarise([[by_key] for by_key in bits.values()], **options)
    for system, summary in zip(bits, found, strict=True):
        systems[system]["bits_per_token"] = None if summary is None else summary.as_dict(group)


def add_fad(systems: Mapping[str, dict[str, Any]], features: GenreFeatures) -> None:
    """Put the Fréchet audio distance, averaged over seeds, into the systems' rows."""
    from cdcd.evaluation.fad import audio_distance

    reference = features.patches["ground_truth"][0]
    for system, row in systems.items():
        by_seed = features.patches[system].values()
        row["fad"] = _mean(audio_distance(reference, mine).value for mine in by_seed)


def comparisons(
    scores: Scores, systems: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return paired differences of systems that see the dance from controls that do not."""
    pairs = itertools.product(_SEES_DANCE, ("shuffled", "unconditioned"))
    return compare(scores, systems, pairs, COMPARED, options)


def compare(
    scores: Scores,
    systems: Mapping[str, Mapping[str, Any]],
    pairs: Iterable[tuple[str, str]],
    names: Iterable[str],
    options: Mapping[str, Any],
    group: str = "song",
) -> dict[str, dict[str, Any]]:
    """Return paired differences of pairs of systems, `<first>_vs_<second>`, by score.

    Args:
        scores: metrics by system and seed.
        systems: their rows, with the summary of each score.
        pairs: what is compared; pairs with a system that was not scored, or without a key that
            both were scored on, are left out.
        names: the scores.
        options: of `bootstrap`.
        group: what the clusters are, as in `ci_song_low`.
    """
    differences: dict[tuple[str, str, str], dict[str, float]] = {}
    for (first, second), name in itertools.product(pairs, tuple(names)):
        if not all(one in scores and systems[one].get(name) for one in (first, second)):
            continue
        means = [
            statistics.mean_over_seeds([run[name].per_sample for run in scores[one].values()])
            for one in (first, second)
        ]
        if common := statistics.paired_differences(*means):
            differences[first, second, name] = common
    # All at once: differences of the same keys share their draws.
    columns = list(differences.values())
    over_keys = statistics.bootstrap_intervals(columns, **{**options, "clusters": None})
    over_groups = statistics.bootstrap_intervals(columns, **options)
    found: dict[str, dict[str, Any]] = {}
    for (first, second, name), narrow, wide in zip(
        differences, over_keys, over_groups, strict=True
    ):
        rows = systems[first][name], systems[second][name]
        found.setdefault(f"{first}_vs_{second}", {})[name] = {
            "difference": narrow.mean,
            "ci_low": narrow.low,
            "ci_high": narrow.high,
            f"ci_{group}_low": wide.low,
            f"ci_{group}_high": wide.high,
            "intervals_overlap": _overlap(*rows, "ci"),
            f"intervals_overlap_by_{group}": _overlap(*rows, f"ci_{group}"),
        }
    return found


def _overlap(first: Mapping[str, float], second: Mapping[str, float], kind: str) -> bool:
    low, high = f"{kind}_low", f"{kind}_high"
    return first[low] <= second[high] and second[low] <= first[high]


def genre_variants(
    features: scoring.Feature,
    originals: Originals,
    database: genre.Database | None,
    classifier: genre.Classifier | None,
    val: Labelled | None,
) -> dict[str, Any]:
    """Return what the other genre protocols say about the originals.

    Args:
        features: of the split's originals.
        originals: their genres and songs.
        database: train originals; None where genre accuracy was refused.
        classifier: fitted on them.
        val: val originals.
    """
    if database is None or classifier is None:
        return {}
    variants: dict[str, Any] = {"leave_song_out": None}
    known = {key: code for key, code in originals.genres.items() if code is not None}
    mine = {k: f for k, f in features.items() if not isinstance(f, str) and k in known}
    try:
        variants["leave_song_out"] = genre.retrieval_accuracy(
            mine,
            known,
            genre.Database.build(mine, known, originals.songs),
            feature="originals",
            query_songs=originals.songs,
            leave_song_out=True,
        ).value
    except genre.GenreError as error:
        variants["leave_song_out_refused"] = str(error)
    hits = [
        found == true
        for found, true in zip(classifier.predict(database.features), database.genres, strict=True)
    ]
    variants["classifier_train_accuracy"] = sum(hits) / len(hits)
    if val is not None and val.features:
        variants["classifier_val_accuracy"] = genre.classifier_accuracy(
            val.features, val.genres, classifier, feature="originals"
        ).value
    return variants
