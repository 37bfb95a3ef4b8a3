"""A dataset on one page: what is in it, what was left out, and whether its splits are apart.

Numbers come from the manifests, which are streamed (`counts`, `leaks`, `numbers`); the few samples
shown from the shards that hold them (`samples`, `figures`); `page` puts them together.
"""

from __future__ import annotations

from pathlib import Path

from cdcd.data.datasheet.counts import Items, Samples
from cdcd.data.datasheet.leaks import Leaks
from cdcd.data.datasheet.numbers import all_numbers, disagreements, read_source, write_histograms
from cdcd.data.datasheet.page import render
from cdcd.data.datasheet.samples import draw_samples
from cdcd.data.files import atomic_directory, write_json
from cdcd.data.ingest import MANIFEST
from cdcd.data.manifest import iterate_manifest
from cdcd.data.shards import INDEX, read_shards_index

__all__ = ["write_datasheet"]


def write_datasheet(raw_dir: str | Path, shards_dir: str | Path, out_dir: str | Path) -> Path:
    """Describe an ingested and sharded dataset on a web page that needs no other file.

    Writes `index.html`, `datasheet.json` (all numbers) and the pictures as PNG. Equal input gives
    equal bytes. `out_dir` is replaced as a whole at the end.

    Args:
        raw_dir: folder written by `ingest`; the download itself is not opened.
        shards_dir: folder written by `shard`; without shards the page says so.
        out_dir: where the page goes.

    Returns:
        The path of `index.html`.

    Raises:
        ValueError: a manifest, `source.json` or a listed shard is missing or damaged.
    """
    raw_dir, shards_dir, out_dir = Path(raw_dir), Path(shards_dir), Path(out_dir)
    source = read_source(raw_dir / "source.json")
    items, leaks = Items(), Leaks(source)
    for record in iterate_manifest(raw_dir / MANIFEST):
        items.add(record)
        leaks.add_held_out(record)
    if leaks.held_splits:
        for record in iterate_manifest(raw_dir / MANIFEST):
            leaks.compare_train(record)
    shards = read_shards_index(shards_dir) if (shards_dir / INDEX).is_file() else []
    samples = Samples()
    if shards and (shards_dir / MANIFEST).is_file():
        for record in iterate_manifest(shards_dir / MANIFEST):
            samples.add(record)
    tree = all_numbers(source, items, samples, shards, leaks)
    tree["notes"] += disagreements(raw_dir, shards_dir, items, samples if shards else None)
    with atomic_directory(out_dir) as folder:
        tree["figures"] = write_histograms(tree["dataset"], items, folder)
        shown = draw_samples(shards_dir, shards, tree["dataset"], folder)
        tree["shown"] = shown.chosen()
        write_json(folder / "datasheet.json", tree)
        (folder / "index.html").write_text(render(tree, shown, folder), encoding="utf-8")
    return out_dir / "index.html"
