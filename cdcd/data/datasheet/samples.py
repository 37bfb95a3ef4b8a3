"""The few samples on the page: chosen from all over a split, read and drawn.

Only the shards that hold them are opened.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cdcd.data.datasheet import figures
from cdcd.data.datasheet.counts import Tree, printable
from cdcd.data.negatives import NegativePool
from cdcd.data.samples import GENRE_NAMES, GENRES, MOTIONS, SPLITS, Picture, Sample
from cdcd.data.shards import Members, check_size, decode_sample

NUM_CLIPS = 3
NUM_PICTURES = 24
NUM_NEGATIVES = 5


@dataclass(frozen=True)
class Tile:
    """A picture on the page with its words."""

    key: str
    image: bytes
    words: str


@dataclass
class Shown:
    """What of the samples is on the page.

    Attributes:
        split: the samples are from; None without shards.
        keys: of the samples.
        tiles: the samples, where they are pictures.
        negatives: a picture and negatives for it.
        clips: titles of the samples, where they are clips, by file name.
    """

    split: str | None
    keys: list[str] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    negatives: list[Tile] = field(default_factory=list)
    clips: dict[str, str] = field(default_factory=dict)

    def chosen(self) -> Tree:
        """Return split and keys, for `datasheet.json`."""
        negatives = [tile.key for tile in self.negatives]
        return {"split": self.split, "keys": self.keys, "negatives": negatives}


def draw_samples(shards_dir: Path, shards: Sequence[Tree], dataset: str, folder: Path) -> Shown:
    """Draw a few samples of the first split that has any.

    Args:
        shards_dir: where the shards are.
        shards: their index; empty without shards.
        dataset: its name.
        folder: where the pictures go.

    Raises:
        ValueError: a shard that holds one of the samples is missing or damaged.
    """
    split = next((split for split in SPLITS if any(s["split"] == split for s in shards)), None)
    shown = Shown(split)
    if split is None:
        return shown
    num = NUM_CLIPS if dataset in MOTIONS else NUM_PICTURES
    samples = list(_spread_samples(shards_dir, shards, split, num))
    shown.keys = [sample.key for sample in samples]
    clips = [sample for sample in samples if isinstance(sample, Sample)]
    for number, sample in enumerate(clips, start=1):
        name = f"clip_{number}.png"
        shown.clips[name] = _describe_clip(sample)
        figures.draw_clip(sample, folder / name, f"{sample.key}\n{shown.clips[name]}")
    pictures = [sample for sample in samples if isinstance(sample, Picture)]
    if pictures:
        title = f"{dataset}, {len(pictures)} pictures spread over {split}"
        path = folder / "contact_sheet.png"
        shown.tiles = _draw_tiles([(p, _words(p)) for p in pictures], path, title, 4)
        shown.negatives = _draw_negatives(pictures, folder / "negatives.png")
    return shown


def _describe_clip(sample: Sample) -> str:
    meta = sample.meta
    parts = []
    if meta.get("genre") is not None:
        parts.append(GENRE_NAMES[GENRES[meta["genre"]]])
    if meta.get("song") is not None:
        parts.append(f"song {printable(str(meta['song']))}")
    if meta.get("bpm") is not None:
        parts.append(f"{meta['bpm']:g} BPM")
    return ", ".join(parts)


def _words(picture: Picture) -> str:
    if picture.captions:
        return printable(picture.captions[0].text)
    return printable(str(picture.meta.get("class", "")))


def _label(picture: Picture) -> int | frozenset[str] | None:
    if picture.label is not None:
        return picture.label
    categories = picture.meta.get("categories")
    return frozenset(categories) if categories else None


def _draw_tiles(
    pictures: Sequence[tuple[Picture, str]], path: Path, title: str, columns: int
) -> list[Tile]:
    squares = [(figures.thumbnail(picture.image), words) for picture, words in pictures]
    figures.draw_sheet(squares, path, title, columns)
    return [
        Tile(picture.key, figures.jpeg_bytes(image), words)
        for (picture, _), (image, words) in zip(pictures, squares, strict=True)
    ]


def _draw_negatives(pictures: Sequence[Picture], path: Path) -> list[Tile]:
    """Draw a picture and negatives for it, by the rule of training, from the pictures shown."""
    labelled = {picture.key: picture for picture in pictures if _label(picture) is not None}
    if not labelled:
        return []
    anchor = next(iter(labelled.values()))
    num = min(NUM_NEGATIVES, sum(_label(p) != _label(anchor) for p in labelled.values()))
    if not num:
        return []
    pool = NegativePool(list(labelled), [_label(picture) for picture in labelled.values()])
    drawn = pool.draw(0, anchor.key, _label(anchor), num)
    chosen = []
    for place, key in enumerate([anchor.key, *drawn]):
        picture = labelled[key]
        told = str(picture.meta.get("class", "")) or ", ".join(picture.meta.get("categories", ()))
        words = f"{'negative' if place else 'anchor'}: {told or picture.label}"
        chosen.append((picture, printable(words)))
    return _draw_tiles(chosen, path, "a picture and negatives of another class", num + 1)


def _spread_samples(
    shards_dir: Path, shards: Sequence[Tree], split: str, num: int
) -> Iterator[Sample | Picture]:
    """Yield samples from all over a split, opening only the shards that hold them."""
    mine = [shard for shard in shards if shard["split"] == split]
    total = sum(shard["count"] for shard in mine)
    places = {(2 * i + 1) * total // (2 * num) for i in range(num)}
    start = 0
    for shard in mine:
        wanted = {place - start for place in places if 0 <= place - start < shard["count"]}
        start += shard["count"]
        if wanted:
            path = check_size(shards_dir, shard)
            try:
                yield from _read_places(path, wanted)
            except (tarfile.TarError, KeyError, ValueError, TypeError, EOFError) as error:
                raise ValueError(
                    f"{path} must be readable: {error!r}; write it again with "
                    "`dvc repro --force shard`"
                ) from error


def _read_places(path: Path, wanted: set[int]) -> Iterator[Sample | Picture]:
    """Decode the samples at some places of a tar; the contents of others are passed over."""
    found: dict[int, tuple[str, Members]] = {}
    place, current = -1, ""
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if key != current:
                place, current = place + 1, key
            file = tar.extractfile(member) if place in wanted else None
            if file is not None:
                found.setdefault(place, (key, {}))[1][extension] = file.read()
            if place > max(wanted):
                break
    for _, (key, members) in sorted(found.items()):
        yield decode_sample(key, members)
