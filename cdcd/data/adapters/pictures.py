"""What the three picture datasets share: one file, its header, its pixels, its captions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from cdcd.data.adapters.base import (
    Options,
    Source,
    decoders,
    read_bytes,
    sha256_bytes,
)
from cdcd.data.images import ImageError, decode_image, probe_image
from cdcd.data.manifest import Record, SkipItem
from cdcd.data.samples import Caption, Picture, Sample, safe_key

MAX_CAPTION = 10_000
"""Characters of one caption that are kept; real ones have less than 500."""


@dataclass(frozen=True)
class Item:
    """One listed picture.

    Attributes:
        name: of the sample before it is made a key, e.g. `n01440764/n01440764_10026`.
        split: `train`, `val` or `test`.
        path: manifest path of the file, or None where there is none.
        label: class from 0 on, or None.
        class_name: for people to read.
        captions: as listed, or None where they lie in files of their own.
        facts: anything else for the record.
        reason: why it is out already, or None.
        detail: the same in words.
    """

    name: str
    split: str
    path: str | None
    label: int | None = None
    class_name: str | None = None
    captions: tuple[tuple[str, str], ...] | None = None
    facts: tuple[tuple[str, Any], ...] = ()
    licence: str = ""
    reason: str | None = None
    detail: str = ""


def clean_caption(text: str) -> str:
    """Return a caption on one line: lower case, blanks and line breaks collapsed, ends stripped."""
    return re.sub(r"\s+", " ", text).strip().lower()[:MAX_CAPTION].strip()


def decode_text(data: bytes) -> str:
    """Decode a text file of unknown care: UTF-8, what is not becomes a replacement character."""
    return data.decode("utf-8-sig", errors="replace")


class PictureSource(Source):
    """A download of pictures: each usable record becomes exactly one sample."""

    needs_captions: ClassVar[bool] = False
    """Whether a picture without a caption is of no use."""

    def captions_of(self, item: Item) -> tuple[dict[str, str], tuple[tuple[str, str], ...]]:
        """Return checksums of caption files and the captions as (name, text); cleaned by others."""
        return {}, item.captions or ()

    def inspect(self, item: Item) -> Record:
        """See `Source`: reads the file once, for its checksum and its header."""
        known: dict[str, Any] = {
            "key": safe_key(item.name),
            "split": item.split,
            "label": item.label,
            "licence": item.licence or self.licence,
        }
        try:
            sources, facts = self._inspect(item)
        except SkipItem as skip:
            return Record(**known, status="skipped", reason=skip.reason, detail=skip.detail)
        return Record(**known, sources=sources, facts=facts)

    def _inspect(self, item: Item) -> tuple[dict[str, str], dict[str, Any]]:
        if item.reason is not None:
            raise SkipItem(item.reason, item.detail)
        assert item.path is not None
        data = read_bytes(self.resolve(item.path))
        try:
            info = probe_image(data)
        except ImageError as error:
            raise SkipItem("unreadable_image", f"{item.path}: {error}") from None
        sources = {item.path: sha256_bytes(data)}
        facts: dict[str, Any] = {
            "image": item.path,
            "width": info.width,
            "height": info.height,
            "mode": info.mode,
            "format": info.format,
            **dict(item.facts),
        }
        if item.class_name is not None:
            facts["class"] = item.class_name
        files, captions = self.captions_of(item)
        cleaned = [[name, text] for name, raw in captions if (text := clean_caption(raw))]
        if self.needs_captions and not cleaned:
            raise SkipItem("missing_caption", f"{item.path} has no caption that is not empty")
        if cleaned:
            facts["captions"] = cleaned
        return sources | files, facts

    def planned_keys(self, record: Record, options: Options) -> list[str]:
        """See `Source`: the record's own."""
        return [record.key]

    def load(
        self, record: Record, options: Options
    ) -> Iterator[tuple[Record, Sample | Picture | None]]:
        """See `Source`."""
        path = record.facts["image"]
        data = read_bytes(self.resolve(path))
        if sha256_bytes(data) != record.sources[path]:
            raise SkipItem("changed_source", f"{path} is not the file that ingest saw")
        try:
            image = decode_image(data, options.image_size)
        except ImageError as error:
            raise SkipItem("unreadable_image", f"{path}: {error}") from None
        facts = {k: v for k, v in record.facts.items() if k not in ("captions", "image")}
        facts |= {"decoders": {"pillow": decoders()["pillow"]}}
        meta = {**facts, "sources": record.sources, "licence": record.licence}
        captions = tuple(Caption(name, text) for name, text in record.facts.get("captions", ()))
        listed = Record(
            key=record.key,
            split=record.split,
            label=record.label,
            licence=record.licence,
            sources=record.sources,
            facts={**facts, "num_captions": len(captions)},
        )
        yield listed, Picture(record.key, record.split, image, captions, record.label, meta)
