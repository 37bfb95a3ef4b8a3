"""Manifests and shards of a few pictures, and what a browser would make of their data sheet."""

import json
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np

from cdcd.data.datasheet import write_datasheet
from cdcd.data.manifest import Record, write_manifest
from cdcd.data.samples import Caption, Picture
from cdcd.data.shards import write_shards


def source(dataset, **changes):
    facts = {
        "dataset": dataset,
        "kind": dataset.capitalize(),
        "roots": {"root": "download"},
        "settings": {"split": "stackgan"} if dataset == "cub200" else {},
        "embedded": False,
        "licence": "for <research> only",
        "unit": "picture",
        "expected": {"items": {"train": 8855, "test": 2933}, "samples": {}, "source": "a list"},
    }
    return {**facts, **changes}


def record(number, split="train", label=0, **changes):
    path = f"root/images/{number:06d}.jpg"
    facts = {
        "image": path,
        "width": 200 + number,
        "height": 300,
        "mode": "RGB" if number % 2 else "L",
        "format": "JPEG",
        "class": f"bird {label}",
        "captions": [["0", f"bird number {number}"], ["1", "a bird"]],
    }
    known = {
        "key": f"p{number:06d}",
        "split": split,
        "label": label,
        "licence": "research",
        "sources": {path: f"{number:064x}"},
        "facts": facts,
    }
    return Record(**{**known, **changes})


def birds():
    """Eight classes in train, two in test, of three pictures each."""
    return [record(i, "train" if i < 24 else "test", label=i // 3) for i in range(30)]


HOSTILE = "</td><script>alert(1)</script><img src=x onerror=y>\"'&\n\x00\x1b[31m\u202eabc\ud800"


def write(folder, facts, records, *, with_shards=True):
    """Write data/raw and data/shards of pictures as ingest and shard would."""
    raw, shards = folder / "raw", folder / "shards"
    raw.mkdir(parents=True)
    (raw / "source.json").write_text(json.dumps(facts))
    write_manifest(raw / "manifest.jsonl", records)
    num_listed = len(records)
    (raw / "summary.json").write_text(json.dumps({"num_listed": num_listed}))
    if not with_shards:
        return raw, shards
    pictures, listed = [], []
    for r in records:
        if r.status == "skipped":
            continue
        grey = np.full((40, 60, 3), 8 * r.label if r.label is not None else 99, dtype=np.uint8)
        captions = tuple(Caption(*pair) for pair in r.facts.get("captions", ()))
        meta = {k: v for k, v in r.facts.items() if k not in ("captions", "image")}
        pictures.append(Picture(r.key, r.split, grey, captions, r.label, meta))
        meta |= {"num_captions": len(captions), "decoders": {"pillow": "1"}}
        listed.append(replace(r, facts=meta))
    write_shards(shards, pictures, samples_per_shard=4)
    write_manifest(shards / "manifest.jsonl", listed)
    (shards / "summary.json").write_text(json.dumps({"num_samples": len(pictures)}))
    return raw, shards


def sheet(folder, facts, records, **options):
    page = write_datasheet(*write(folder, facts, records, **options), folder / "sheet")
    return json.loads((page.parent / "datasheet.json").read_text()), page.read_text("utf-8")


def verdicts(tree):
    return {check["name"]: check["verdict"] for check in tree["checks"]}


class Page(HTMLParser):
    """What a browser would make of it: text, and whatever it would load or run."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.words = Counter(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        names = ("src", "href", "srcset", "data", "action", "poster")
        self.loads += [value for name, value in attrs if name in names]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.words.append(data)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
