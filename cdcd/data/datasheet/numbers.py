"""All numbers of a data sheet, from the counters: `datasheet.json`, and the histograms of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cdcd.data.datasheet.counts import MAX_LETTERS, PADS, Items, Samples, Spread, Tree, printable
from cdcd.data.datasheet.figures import Panel, draw_histograms
from cdcd.data.datasheet.leaks import Leaks
from cdcd.data.samples import MOTIONS, SPLITS

MAX_GROUPS = 40
"""Classes that are listed one by one; of more, the smallest and the largest."""
PLURALS = {"genre": "genres", "class": "classes", "category": "categories"}
"""Of what samples belong to."""


def read_source(path: Path) -> Tree:
    """Read what `ingest` wrote on the download.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return {**tree, "dataset": str(tree["dataset"]), "embedded": bool(tree["embedded"])}
    except FileNotFoundError:
        raise ValueError(f"{path} must exist: no such file; run `dvc repro ingest`") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must say where the data are: {error!r}; write it again with "
            "`dvc repro --force ingest`"
        ) from None


def disagreements(
    raw_dir: Path, shards_dir: Path, items: Items, samples: Samples | None
) -> list[str]:
    """Return notes on summaries that do not fit their manifests, which are believed."""
    counted = [(raw_dir, "num_listed", items.listed.total(), "items")]
    if samples is not None:
        counted.append((shards_dir, "num_samples", samples.counts.total(), "samples"))
    notes = []
    for folder, name, count, unit in counted:
        try:
            told = json.loads((folder / "summary.json").read_text(encoding="utf-8"))[name]
        except (OSError, KeyError, TypeError, ValueError):
            continue
        if told != count:
            notes.append(
                f"the summary of the {unit} says {printable(str(told))}, their manifest has "
                f"{count:,}: run the stage again"
            )
    return notes


def all_numbers(
    source: Tree, items: Items, samples: Samples, shards: Sequence[Tree], leaks: Leaks
) -> Tree:
    """Return the contents of `datasheet.json` but for what is drawn.

    Args:
        source: of `read_source`.
        items: all records of data/raw, counted.
        samples: all records of data/shards, counted; none without shards.
        shards: the index of data/shards; empty without shards.
        leaks: both passes made.
    """
    dataset = source["dataset"]
    notes = []
    splits, remarks = _splits(source, items, samples, shards)
    if source["embedded"]:
        notes.append(
            "these are the embedded stand-in: it has the layout of the published dataset and "
            "neither its contents nor its size, so counts differ from the official ones"
        )
    notes += remarks
    if not shards:
        notes.append("there are no shards yet: run `dvc repro shard` for samples and pictures")
    is_dance = dataset in MOTIONS
    return {
        "dataset": printable(dataset),
        "kind": printable(str(source.get("kind", ""))),
        "unit": printable(str(source.get("unit", "item"))),
        "embedded": source["embedded"],
        "licence": printable(str(source.get("licence", "")), 10 * MAX_LETTERS),
        "roots": {
            printable(name): printable(str(folder))
            for name, folder in source.get("roots", {}).items()
        },
        "decoders": {name: sorted(found) for name, found in sorted(samples.decoders.items())},
        "official_source": printable(str(source.get("expected", {}).get("source", ""))),
        "item_licences": _by_count(items.licences),
        "splits": splits,
        "groups": _group_rows(items, samples),
        "captions": {"per_picture": items.captions.summary(), "words": items.words.summary()},
        "dance": _dance(items, samples) if is_dance else None,
        "pictures": None if is_dance else _pictures(items),
        "skipped": {
            "ingest": items.skipped.rows(items.listed.total()),
            "shard": samples.skipped.rows(samples.counts.total() + samples.skipped.counts.total()),
        },
        "checks": leaks.checks(),
        "notes": notes,
    }


def _splits(
    source: Tree, items: Items, samples: Samples, shards: Sequence[Tree]
) -> tuple[Tree, list[str]]:
    """Return the counts of each split that has any beside the official ones, and remarks."""
    expected = source.get("expected", {})
    official_items, official_samples = expected.get("items", {}), expected.get("samples", {})
    remarks = []
    lengths = samples.lengths - {2}
    if source.get("kind") in ("Aist", "Tiktok") and lengths:
        remarks.append(
            f"the official counts of samples are for segments of 2 s; these are of "
            f"{', '.join(f'{length:g}' for length in sorted(lengths))} s"
        )
        official_samples = {}
    # With captions, a sample of the publisher is a pair of picture and caption.
    in_pairs = bool(samples.pairs.total())
    rows = {}
    for split in SPLITS:
        mine = [shard for shard in shards if shard["split"] == split]
        count = sum(shard["count"] for shard in mine)
        comparable = samples.pairs[split] if in_pairs else count
        listed, usable = items.listed[split], items.usable[split]
        rows[split] = {
            "listed": listed,
            "usable": usable,
            "skipped": listed - usable,
            "official_items": official_items.get(split),
            "difference_items": _difference(listed, official_items.get(split)),
            "samples": count if shards else None,
            "pairs": samples.pairs[split] if in_pairs else None,
            "official_samples": official_samples.get(split),
            "difference_samples": (
                _difference(comparable, official_samples.get(split)) if shards else None
            ),
            "shards": len(mine),
            "bytes": sum(shard["bytes"] for shard in mine),
        }
    differs = any(row["difference_items"] for row in rows.values())
    if differs and not source["embedded"]:
        remarks.append(
            "the items listed are not as many as officially: the download is incomplete or another "
            "edition, or a list was changed"
        )
    return {
        split: row for split, row in rows.items() if row["listed"] or row["official_items"]
    }, remarks


def _difference(count: int, official: int | None) -> int | None:
    return None if official is None else count - official


def _by_count(counts: Counter[str]) -> Tree:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return {printable(name): count for name, count in ordered}


def _group_rows(items: Items, samples: Samples) -> list[Tree]:
    return [
        {
            "kind": kind,
            "number": None if number < 0 else number,
            "name": printable(name),
            **{split: counts[split] for split in SPLITS},
            "total": counts.total(),
            "samples": samples.groups[kind, number, name],
        }
        for (kind, number, name), counts in sorted(items.groups.items())
    ]


def _dance(items: Items, samples: Samples) -> Tree:
    everything = Spread()
    for spread in items.seconds.values():
        everything.counts.update(spread.counts)
    seconds = {split: items.seconds[split].summary() for split in SPLITS if split in items.seconds}
    return {
        "seconds": {**seconds, "all": everything.summary()},
        "tempi": {
            f"{bpm:g}": {split: counts[split] for split in SPLITS}
            for bpm, counts in sorted(items.tempi.items())
        },
        "songs": {split: len(items.songs[split]) for split in SPLITS if split in items.songs},
        "audio_sources": _by_count(items.audio_sources),
        "videos": _by_count(items.videos),
        "segment_seconds": sorted(samples.lengths),
        "padded": {name: samples.pads[name].summary() for name in PADS if name in samples.pads},
        "num_partial": samples.num_partial,
    }


def _pictures(items: Items) -> Tree:
    count = items.widths.counts.total()
    return {
        "width": items.widths.summary(),
        "height": items.heights.summary(),
        "num_small": items.num_small,
        "share_small": round(items.num_small / count, 6) if count else None,
        "modes": _by_count(items.modes),
        "formats": _by_count(items.formats),
    }


def write_histograms(dataset: str, items: Items, folder: Path) -> list[str]:
    """Draw durations and tempi, or lengths of captions and sizes of classes; return file names."""
    panels = []
    if dataset in MOTIONS:
        seconds: Counter[float] = Counter()
        for spread in items.seconds.values():
            seconds.update(spread.counts)
        tempi = {bpm: counts.total() for bpm, counts in items.tempi.items()}
        panels += [
            Panel("items by duration", "seconds", seconds),
            Panel("items by tempo", "beats per minute", tempi),
        ]
    else:
        panels.append(Panel("captions by length", "words", items.words.counts))
        # Few groups are a table already.
        if items.groups and (len(items.groups) > MAX_GROUPS or not items.words.counts):
            sizes = Counter(float(counts.total()) for counts in items.groups.values())
            kind = next(iter(items.groups))[0]
            panels.append(Panel(f"{PLURALS[kind]} by size", "usable items", sizes))
    panels = [panel for panel in panels if panel.counts]
    if not panels:
        return []
    draw_histograms(panels, folder / "histograms.png")
    return ["histograms.png"]
