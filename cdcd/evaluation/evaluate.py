"""The evaluate stage: listen to every clip once, score all systems and controls, write the report.

The generator is not run here: music is read from disk, and sets that did not start from the full
mask are refused, because they have seen the music they are compared with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cdcd.config import Params
from cdcd.data.samples import Sample
from cdcd.data.shards import is_embedded, iterate_shards, read_shards_index
from cdcd.evaluation import controls, facts, genre, report, scoring, tables
from cdcd.evaluation.features import GenreFeatures
from cdcd.evaluation.listening import Clip, Heard, Listen, check_denoise, listeners
from cdcd.evaluation.systems import (
    GeneratedSet,
    Originals,
    genre_of,
    read_generated,
    song_of,
)


class MetricSink(Protocol):
    """What the stage needs of a tracker."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record numbers."""
        ...

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Keep a copy of a file."""
        ...

    def log_child(
        self, name: str, metrics: Mapping[str, Any], tags: Mapping[str, str] | None = None
    ) -> None:
        """Record numbers of a part of the run."""
        ...


def record(
    tracker: MetricSink, systems: Mapping[str, Any], scores: tables.Scores, files: Iterable[Path]
) -> None:
    """Give a tracker what an evaluation found.

    Args:
        tracker: gets the numbers; those of each seed as a child, where there are several.
        systems: rows of the table.
        scores: by system and seed.
        files: what the run shows; those of `spectrograms` and `grids` in a folder of that name.
    """
    tracker.log_metrics(facts.flatten(systems))
    for seed, found in facts.by_seed(scores).items():
        tracker.log_child(f"seed {seed}", found, {"seed": str(seed)})
    for path in files:
        inner = path.parent.name
        is_apart = inner in ("spectrograms", "grids")
        tracker.log_artifact(path, f"evaluation/{inner}" if is_apart else "evaluation")


def evaluate(
    params: Params,
    *,
    dataset: str,
    generated_dir: str | Path,
    shards_dir: str | Path,
    codec_dir: str | Path,
    tokens_dir: str | Path,
    features_dir: str | Path,
    model_dir: str | Path,
    metrics_path: str | Path,
    plot_path: str | Path,
    report_dir: str | Path,
    tracker: MetricSink | None = None,
) -> dict[str, Any]:
    """Score generated music beside its controls.

    Args:
        params: sections `evaluate`, `generate` and `shard` are read.
        dataset: name for titles.
        generated_dir: `<system>-seed<k>` sets.
        shards_dir: originals; the train split is the genre database.
        codec_dir: the codec, for the row `codec_reconstruction`.
        tokens_dir: the originals' tokens, for that row and for bits per token.
        features_dir: conditions, for bits per token.
        model_dir: the denoiser, for bits per token.
        metrics_path: JSON written last: small nested numbers.
        plot_path: PNG.
        report_dir: `index.html` with players, `table.md`, `scores.json` with every clip's score,
            `spectrograms/`.
        tracker: gets every set score and the written files.

    Returns:
        What is written to `metrics_path`.

    Raises:
        ValueError: generated music is missing or has seen its target, or an input is damaged.
    """
    from tqdm import tqdm

    p, split = params.evaluate, params.generate.split
    check_denoise(p.denoise)
    seconds = params.shard.segment_seconds
    features = GenreFeatures(p.genre_feature, p.vggish_weights)
    counts = _count_samples(shards_dir)
    with (
        listeners(p.num_workers) as listen,
        tqdm(desc="evaluate: listening", unit="clip") as bar,
    ):
        originals = Originals.collect(iterate_shards(shards_dir, split))
        sets = read_generated(generated_dir, originals.audio, split)
        made, warnings = _controls(params, originals, sets, codec_dir, tokens_dir)
        sets += made
        ear = _Ear(listen, seconds, bar, denoise=p.denoise == "noisereduce")
        labelled = [name for name in ("train", "val") if name != split and counts.get(name)]
        heard = ear.hear(sets, num_more=sum(counts[name] for name in labelled))
        known = {name: ear.label(iterate_shards(shards_dir, name), features) for name in labelled}

    database, refusals = _database(known.get("train"), originals, split)
    warnings += refusals
    classifier = genre.fit_classifier(database) if database else None
    reference = heard["ground_truth"][0]
    bpm, unknown = _tempi(originals, reference)
    warnings += unknown
    scores: tables.Scores = {}
    set_features: dict[str, scoring.Feature] = {}
    for one in sets:
        found = heard[one.system][one.seed]
        own = features.of_set(one.system, one.seed, ear.clips(one), found)
        mine = {key: own.get(key, "not_generated") for key in originals.audio}
        set_features.setdefault(one.system, mine)
        metrics = scoring.rhythm_scores(reference, found, bpm)
        if database:
            more, refused = scoring.genre_scores(
                mine, originals.genres, database, classifier, p.genre_feature
            )
            metrics |= more
            warnings += [line for line in refused if line not in warnings]
        scores.setdefault(one.system, {})[one.seed] = metrics
    for system, by_seed in heard.items():
        warnings += scoring.listening_warnings(system, by_seed[min(by_seed)])

    options = tables.bootstrap(params, originals.songs)
    systems = tables.summaries(scores, options)
    bits, missing = tables.bits_per_token(systems, model_dir, tokens_dir, features_dir, split)
    tables.add_bits(systems, bits, options)
    warnings += missing
    if features.network is not None:
        tables.add_fad(systems, features)
    tree: dict[str, Any] = facts.rounded(
        {
            "dataset": dataset,
            "split": split,
            "systems": systems,
            "comparisons": tables.comparisons(scores, systems, options),
            "genre_protocols": tables.genre_variants(
                set_features["ground_truth"], originals, database, classifier, known.get("val")
            ),
            "config": facts.config(params, scores, sets, counts),
            "versions": facts.versions() | facts.hashes(params, model_dir, codec_dir),
            "comparable_to_paper": False,
            "comparable_to_paper_why": facts.why_not(
                params, dataset, is_embedded=is_embedded(shards_dir)
            ),
            "warnings": warnings,
        }
    )
    report.write(
        tree,
        scores,
        bits,
        sets,
        metrics_path=Path(metrics_path),
        plot_path=Path(plot_path),
        report_dir=Path(report_dir),
    )
    if tracker is not None:
        folder = Path(report_dir)
        drawn = sorted((folder / "spectrograms").glob("*.png"))
        pages = (folder / "index.html", folder / "table.md")
        record(
            tracker, tree["systems"], scores, (Path(metrics_path), Path(plot_path), *pages, *drawn)
        )
    return tree


def _count_samples(shards_dir: str | Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for shard in read_shards_index(shards_dir):
        counts[shard["split"]] = counts.get(shard["split"], 0) + int(shard["count"])
    return counts


def _database(
    known: tables.Labelled | None, originals: Originals, split: str
) -> tuple[genre.Database | None, list[str]]:
    try:
        if known is None:
            raise genre.GenreError("the shards hold no train split to retrieve from; shard one")
        if not any(originals.genres.values()) and not known.genres:
            raise genre.GenreError("this dataset has no genre labels, and none are made up")
        features = {key: one for key, one in known.features.items() if not isinstance(one, str)}
        database = genre.Database.build(features, known.genres, known.songs)
    except genre.GenreError as error:
        return None, [f"genre accuracy refused: {error}"]
    shared = set(known.songs.values()) & set(originals.songs.values())
    if shared:
        return database, [
            f"the genre database shares {len(shared)} songs with split {split}, e.g. "
            f"{min(shared)}; genre accuracy is too high"
        ]
    return database, []


def _tempi(
    originals: Originals, reference: Mapping[str, Heard | str]
) -> tuple[dict[str, float | None], list[str]]:
    bpm = dict(originals.bpm)
    for key, found in reference.items():
        if bpm[key] is None and not isinstance(found, str):
            bpm[key] = found.bpm
    if None in originals.bpm.values():
        return bpm, ["some clips have no annotated tempo; the original's estimate stands in"]
    return bpm, []


def _controls(
    params: Params,
    originals: Originals,
    sets: Sequence[GeneratedSet],
    codec_dir: str | Path,
    tokens_dir: str | Path,
) -> tuple[list[GeneratedSet], list[str]]:
    p, split = params.evaluate, params.generate.split
    keys, seconds = list(originals.audio), params.shard.segment_seconds
    made = [
        GeneratedSet("ground_truth", 0, originals.audio),
        GeneratedSet(
            "codec_reconstruction", 0, controls.codec_reconstruction(codec_dir, tokens_dir, split)
        ),
        GeneratedSet("white_noise", p.seed, controls.white_noise(keys, seconds, p.seed)),
        GeneratedSet("silence", 0, controls.silence(keys, seconds)),
    ]
    if len(keys) < 2:
        return made, ["no row shuffled: it needs at least 2 clips"]
    warnings: list[str] = []
    # As many assignments as the model has seeds, so that their spread can be compared.
    for seed in sorted({one.seed for one in sets if one.system == "model"}):
        other = controls.derange(keys, originals.songs, p.seed + seed)
        if any(originals.songs[key] == originals.songs[other[key]] for key in keys):
            warnings = ["shuffled: one song holds most clips, so some got music of their own song"]
        audio = {key: originals.audio[other[key]] for key in keys}
        made.append(GeneratedSet("shuffled", seed, audio))
    return made, warnings


class _Ear:
    """Listens to each distinct sound once, however many rows use it."""

    def __init__(self, listen: Listen, seconds: int, bar: Any, *, denoise: bool) -> None:
        self._listen, self._seconds, self._bar, self._denoise = listen, seconds, bar, denoise

    def clips(self, one: GeneratedSet) -> dict[str, Clip]:
        """Return a set's clips by key, named by content; only generated ones are denoised."""
        denoise = self._denoise and one.is_generated
        clips = {}
        for key, audio in one.audio.items():
            content = hashlib.blake2b(audio.tobytes(), digest_size=16).hexdigest()
            clips[key] = Clip(f"{denoise}-{content}", audio, self._seconds, denoise=denoise)
        return clips

    def hear(
        self, sets: Sequence[GeneratedSet], *, num_more: int
    ) -> dict[str, dict[int, dict[str, Heard | str]]]:
        """Return what was heard by system, seed and key; `num_more` clips will follow."""
        clips = [(one, self.clips(one)) for one in sets]
        distinct = {clip.name: clip for _, mine in clips for clip in mine.values()}
        self._bar.reset(total=len(distinct) + num_more)
        found = dict(self._stream(distinct.values()))
        heard: dict[str, dict[int, dict[str, Heard | str]]] = {}
        for one, mine in clips:
            by_key = {key: found[clip.name] for key, clip in mine.items()}
            heard.setdefault(one.system, {})[one.seed] = by_key
        return heard

    def label(self, samples: Iterable[Sample], features: GenreFeatures) -> tables.Labelled:
        """Return the genre features of originals that have a genre; sound is not kept."""
        known = tables.Labelled({}, {}, {})
        pending: dict[str, Clip] = {}

        def clips() -> Iterator[Clip]:
            for sample in samples:
                if (code := genre_of(sample)) is None:
                    self._bar.update()
                    continue
                known.genres[sample.key], known.songs[sample.key] = code, song_of(sample)
                clip = Clip(sample.key, sample.audio, self._seconds, with_rhythm=False)
                pending[sample.key] = clip
                yield clip

        for key, found in self._stream(clips()):
            known.features[key] = features.of_clip(pending.pop(key), found)
        return known

    def _stream(self, clips: Iterable[Clip]) -> Iterator[tuple[str, Heard | str]]:
        for found in self._listen(clips):
            self._bar.update()
            yield found
