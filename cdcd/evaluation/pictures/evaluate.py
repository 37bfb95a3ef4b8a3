"""The evaluate stage of pictures: look at every picture once, score all systems and controls.

The generator is not run here: pictures are read from disk, and sets that did not start from the
full mask are refused, because they have seen the picture they are compared with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cdcd.config import EvaluateImage, Params
from cdcd.data.cache import read_split
from cdcd.data.images import evaluation_crop
from cdcd.data.samples import TASKS
from cdcd.data.shards import is_embedded, iterate_pictures, read_shards_index
from cdcd.evaluation import facts as shared_facts
from cdcd.evaluation.controls import derange
from cdcd.evaluation.evaluate import MetricSink, record
from cdcd.evaluation.frechet import Gaussian
from cdcd.evaluation.pictures import facts, report, tables
from cdcd.evaluation.pictures.sets import (
    BATCH,
    Condition,
    PictureSet,
    Pixels,
    all_conditions,
    check_against,
    first_seeds,
    read_generated,
)
from cdcd.evaluation.pictures.stand_in import CLASS, fit_reader
from cdcd.evaluation.pictures.viewer import Seen, Viewer, decoded
from cdcd.evaluation.tables import Scores, add_bits, bits_per_token, bootstrap, compare

logger = logging.getLogger(__name__)

Looked = dict[str, dict[int, tuple[Seen, Mapping[str, int]]]]
"""By system and seed, what a set shows, and in it the row of each condition's picture."""


@dataclass(eq=False)
class Real:
    """The held-out pictures behind the conditions, each once, in order of their keys.

    Attributes:
        seen: what they show.
        rows: row in `seen` by picture key.
        names: of the classes, by label.
        crops: the pictures to show, by picture key.
        hits: whether the stand-in's classifier reads each known attribute right, by attribute.
    """

    seen: Seen = field(default_factory=Seen)
    rows: dict[str, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    crops: dict[str, Pixels] = field(default_factory=dict)
    hits: dict[str, list[bool]] = field(default_factory=dict)

    @property
    def accuracy(self) -> dict[str, float]:
        """Share of known attributes read right."""
        return {name: sum(hits) / len(hits) for name, hits in self.hits.items() if hits}


def evaluate_pictures(
    params: Params,
    *,
    dataset: str,
    generated_dir: str | Path,
    shards_dir: str | Path,
    codec_dir: str | Path,
    encoder_dir: str | Path,
    tokens_dir: str | Path,
    features_dir: str | Path,
    model_dir: str | Path,
    metrics_path: str | Path,
    plot_path: str | Path,
    report_dir: str | Path,
    tracker: MetricSink | None = None,
) -> dict[str, Any]:
    """Score generated pictures beside their controls.

    Args:
        params: sections `evaluate` and `generate` are read.
        dataset: its name decides how a stand-in is read.
        generated_dir: `<system>-seed<k>` sets.
        shards_dir: real pictures; those of the train split teach the stand-in's classifier.
        codec_dir: the codec, for the row `codec_reconstruction`.
        encoder_dir: the CLIP the model reads, for CLIPScore where no other is given.
        tokens_dir: the real pictures' tokens, for that row and for bits per token.
        features_dir: conditions, for bits per token.
        model_dir: the denoiser, for bits per token.
        metrics_path: JSON written last: small nested numbers.
        plot_path: PNG.
        report_dir: `index.html` with pictures, `table.md`, `scores.json` with every picture's
            score, `grids/`.
        tracker: gets every set score and the written files.

    Returns:
        What is written to `metrics_path`.

    Raises:
        ValueError: weights are missing (told before anything else is done) or of another network,
            or generated pictures are missing, damaged or have seen their target.
    """
    from tqdm import tqdm

    split, p = params.generate.split, params.evaluate
    embedded = is_embedded(shards_dir)
    check_weights(p.image, dataset, embedded=embedded)
    sets = read_generated(generated_dir, read_split(tokens_dir, split).info["keys"], split)
    conditions = all_conditions(sets)
    side = sets[0].images.shape[1]
    viewer, warnings = make_viewer(
        params, dataset, shards_dir, encoder_dir, side, conditions, embedded=embedded
    )
    for line in warnings:
        logger.warning("%s: %s", dataset, line)
    shown = report.choose(conditions)
    picture_of = {condition.key: condition.picture_key for condition in conditions}
    distinct = sorted(set(picture_of.values()))
    total = 2 * len(distinct) + sum(len(one.images) for one in sets)
    with tqdm(total=total, desc="evaluate: looking", unit="picture") as bar:
        real = _see_real(viewer, shards_dir, split, conditions, side, shown, bar)
        rows = {key: real.rows[picture] for key, picture in picture_of.items()}
        looked: Looked = {"real": {0: (real.seen, rows)}}
        decoding = decoded(codec_dir, tokens_dir, split, distinct, side)
        kept: dict[str, Pixels] = {}
        keeping = _keep(decoding, distinct, {c.picture_key for c in shown}, kept)
        seen = viewer.see(_counted(keeping, bar))
        places = {picture: row for row, picture in enumerate(distinct)}
        rows = {key: places[picture] for key, picture in picture_of.items()}
        looked["codec_reconstruction"] = {0: (seen, rows)}
        for one in sets:
            seen = viewer.see(_counted(one.batches(), bar))
            looked.setdefault(one.system, {})[one.seed] = (seen, one.rows)
    shuffled, refused = _shuffled(conditions, looked["model"], p.seed)
    warnings += refused
    if shuffled:
        looked["shuffled"] = shuffled

    asked = tables.ask(viewer, conditions, real.names)
    warnings += asked.warnings
    used = facts.networks(params, viewer, real.accuracy, encoder_dir)
    brief = {
        "classifier": {
            k: v for k, v in (used["classifier"] or {}).items() if k != "held_out_accuracy"
        },
        "clip": {k: (used["clip"] or {}).get(k) for k in ("name", "sha256", "source")},
    }
    scores: Scores = {
        system: {
            seed: tables.score(viewer, asked, seen, rows, brief)
            for seed, (seen, rows) in by_seed.items()
        }
        for system, by_seed in looked.items()
    }
    options = bootstrap(params, {condition.key: condition.group for condition in conditions})
    systems = tables.summaries(scores, options)
    gaussians: dict[str, dict[int, Gaussian]] = {
        system: {
            seed: seen.features for seed, (seen, _) in by_seed.items() if seen.features is not None
        }
        for system, by_seed in looked.items()
        # The shuffled row has the model's own pictures.
        if system != "shuffled"
    }
    if gaussians["real"]:
        warnings += tables.add_distances(systems, gaussians, viewer.score_name)
    bits, missing = bits_per_token(
        systems, model_dir, tokens_dir, features_dir, split, list(picture_of)
    )
    add_bits(systems, bits, options, tables.GROUP)
    warnings += missing
    counts = {
        "num_conditions": len(conditions),
        "num_pictures": len(distinct),
        "num_train": _count(shards_dir, "train"),
    }
    reasons = facts.why_not(dataset, viewer, used, len(conditions), side, is_embedded=embedded)
    tree: dict[str, Any] = shared_facts.rounded(
        {
            "dataset": dataset,
            "split": split,
            "systems": systems,
            "comparisons": compare(
                scores, systems, tables.PAIRS, tables.COMPARED, options, tables.GROUP
            ),
            "config": facts.config(params, scores, sets, counts) | used,
            "versions": shared_facts.versions(facts.PACKAGES)
            | shared_facts.hashes(params, model_dir, codec_dir),
            "comparable_to_paper": not reasons,
            "comparable_to_paper_why": f"{dataset}: " + "; ".join(reasons) if reasons else "",
            "warnings": warnings,
        }
    )
    samples = report.Samples(
        shown,
        _samples(shown, real.crops, kept, sets),
        {condition.key: report.title_of(condition, real.names) for condition in shown},
    )
    report.write(
        tree,
        scores,
        bits,
        sets,
        samples,
        metrics_path=Path(metrics_path),
        plot_path=Path(plot_path),
        report_dir=Path(report_dir),
    )
    if tracker is not None:
        folder = Path(report_dir)
        grids = sorted((folder / "grids").glob("*.png"))
        pages = (folder / "index.html", folder / "table.md")
        record(
            tracker, tree["systems"], scores, (Path(metrics_path), Path(plot_path), *pages, *grids)
        )
    return tree


def check_weights(image: EvaluateImage, dataset: str, *, embedded: bool) -> None:
    """Refuse weights that are given, will be used and are not there.

    That inception has weights at all is a rule of the parameters.

    Args:
        image: section `evaluate.image`.
        dataset: its task decides what is used.
        embedded: whether the pictures are the stand-in.

    Raises:
        ValueError: a path names nothing.
    """
    used = {
        "inception_weights": image.features == "inception",
        "resnet_weights": dataset == "imagenet" and not embedded,
        "clip_weights": TASKS[dataset] == "text2image",
    }
    remedies = {
        "inception_weights": "set evaluate.image.features: stand_in",
        "resnet_weights": "set it to null, for no class accuracy",
        "clip_weights": "set it to null, for the encoder that the model reads",
    }
    for name, remedy in remedies.items():
        path = getattr(image, name)
        if used[name] and path is not None and not Path(path).exists():
            raise ValueError(
                f"evaluate.image.{name} must be a path that exists: got {path}; mend it, or "
                f"{remedy}"
            )


def make_viewer(
    params: Params,
    dataset: str,
    shards_dir: str | Path,
    encoder_dir: str | Path,
    side: int,
    conditions: Sequence[Condition],
    *,
    embedded: bool,
) -> tuple[Viewer, list[str]]:
    """Load or train the networks that look at the pictures; return them and what is left out.

    Raises:
        ValueError: weights that are given are missing, damaged or of another network.
    """
    from cdcd.training.device import pick_device

    image, device = params.evaluate.image, pick_device()
    warnings: list[str] = []
    inception = resnet = encoder = reader = None
    if image.features == "inception":
        from cdcd.evaluation.networks.inception import load_inception

        inception = load_inception(str(image.inception_weights)).to(device)
    elif not embedded:
        warnings.append(
            "no Fréchet distance: the pictures are a real download and evaluate.image.features is "
            "stand_in, a network that learns the labels of a stand-in; set it to inception and "
            "give inception_weights"
        )
    if image.resnet_weights is not None and dataset == "imagenet" and not embedded:
        from cdcd.evaluation.networks.resnet import load_resnet101

        resnet = load_resnet101(image.resnet_weights).to(device)
    elif image.resnet_weights is not None:
        warnings.append(
            "resnet_weights are not used: the classes are not those of ImageNet"
            + (", but a stand-in's" if embedded else "")
        )
    elif dataset == "imagenet" and not embedded:
        warnings.append("no class accuracy: give evaluate.image.resnet_weights")
    if any(condition.caption is not None for condition in conditions):
        from cdcd.features.text import TextEncoder

        encoder = TextEncoder.load(image.clip_weights or encoder_dir, device)
    if embedded:
        pictures = iterate_pictures(shards_dir, "train")
        reader = fit_reader(dataset, pictures, side, params.evaluate.seed)
    return Viewer(reader, inception, resnet, encoder, device), warnings


def _see_real(
    viewer: Viewer,
    shards_dir: str | Path,
    split: str,
    conditions: Sequence[Condition],
    side: int,
    shown: Sequence[Condition],
    bar: Any,
) -> Real:
    wanted: dict[str, list[Condition]] = {}
    for condition in conditions:
        wanted.setdefault(condition.picture_key, []).append(condition)
    keep = {condition.picture_key for condition in shown}
    real = Real()
    truth: list[Mapping[str, str]] = []
    labels: list[int | None] = []

    def crops() -> Iterator[Pixels]:
        batch: list[Pixels] = []
        for picture in iterate_pictures(shards_dir, split):
            mine = wanted.get(picture.key)
            if mine is None:
                continue
            check_against(picture, mine, shards_dir)
            if picture.label is not None and "class" in picture.meta:
                real.names[picture.label] = str(picture.meta["class"])
            real.rows[picture.key] = len(real.rows)
            if viewer.reader is not None:
                truth.append(viewer.reader.stand_in.shown(picture))
            labels.append(picture.label)
            crop = evaluation_crop(picture.image, side)
            if picture.key in keep:
                real.crops[picture.key] = crop
            batch.append(crop)
            if len(batch) == BATCH:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)

    real.seen = viewer.see(_counted(crops(), bar))
    lost = sorted(wanted.keys() - real.rows.keys())
    if lost:
        raise ValueError(
            f"{shards_dir} must hold every picture that was generated from: got none of {lost[0]} "
            f"and {len(lost) - 1} more in split {split}; run `generate` again"
        )
    if viewer.reader is not None:
        for name in viewer.reader.attributes:
            numbers = real.seen.values[name]
            real.hits[name] = [
                viewer.reader.value(name, int(number)) == shows[name]
                for number, shows in zip(numbers, truth, strict=True)
                if name in shows
            ]
        if viewer.reader.stand_in.has_classes and real.seen.top is not None:
            real.hits[CLASS] = [
                bool(row[0] == label)
                for row, label in zip(real.seen.top, labels, strict=True)
                if label is not None
            ]
    return real


def _shuffled(
    conditions: Sequence[Condition],
    model: Mapping[int, tuple[Seen, Mapping[str, int]]],
    base_seed: int,
) -> tuple[dict[int, tuple[Seen, Mapping[str, int]]], list[str]]:
    """Give every condition the model's picture of another, of another class where there are such.

    One assignment for each of the model's seeds, so that their spread can be compared.
    """
    groups = {condition.key: condition.group for condition in conditions}
    made: dict[int, tuple[Seen, Mapping[str, int]]] = {}
    warnings: list[str] = []
    for seed, (seen, rows) in sorted(model.items()):
        if len(rows) < 2:
            return {}, ["no row shuffled: it needs at least 2 pictures"]
        mine = {key: groups[key] for key in rows}
        other = derange(list(mine), mine, base_seed + seed)
        if any(mine[key] == mine[other[key]] for key in mine):
            warnings = [
                "shuffled: one class holds most pictures, so some got one of their own class"
            ]
        made[seed] = (seen, {key: rows[other[key]] for key in mine})
    return made, warnings


def _counted(batches: Iterable[Pixels], bar: Any) -> Iterator[Pixels]:
    for batch in batches:
        yield batch
        bar.update(len(batch))


def _keep(
    batches: Iterable[Pixels], keys: Sequence[str], wanted: set[str], kept: dict[str, Pixels]
) -> Iterator[Pixels]:
    """Pass batches on, keeping the wanted pictures; `keys` names all pictures in their order."""
    names = iter(keys)
    for batch in batches:
        named = zip(batch, names, strict=False)
        kept.update({key: picture for picture, key in named if key in wanted})
        yield batch


def _samples(
    shown: Sequence[Condition],
    crops: Mapping[str, Pixels],
    reconstructed: Mapping[str, Pixels],
    sets: Sequence[PictureSet],
) -> dict[str, dict[str, Pixels]]:
    found = {
        "real": {c.key: crops[c.picture_key] for c in shown},
        "codec_reconstruction": {c.key: reconstructed[c.picture_key] for c in shown},
    }
    for system, one in first_seeds(sets).items():
        found[system] = {
            c.key: np.array(one.images[one.rows[c.key]]) for c in shown if c.key in one.rows
        }
    return found


def _count(shards_dir: str | Path, split: str) -> int:
    return sum(int(s["count"]) for s in read_shards_index(shards_dir) if s["split"] == split)
