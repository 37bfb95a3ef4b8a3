"""A dataset's download, or the embedded stand-in, turned into a checked manifest: `data/raw`."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cdcd.config import Params
from cdcd.data.adapters import aist
from cdcd.data.files import atomic_directory, write_json
from cdcd.data.manifest import (
    CHOSEN_REASONS,
    Record,
    count_reasons,
    describe_reasons,
    enforce_share,
    write_manifest,
)
from cdcd.data.parallel import ordered_map
from cdcd.data.samples import SPLITS

_log = logging.getLogger(__name__)

EMBEDDED_LICENCE = (
    "the embedded data are synthesised by this project and free of other people's rights "
    "(Apache-2.0, like the code); they only have the layout of AIST++"
)
_FOLDERS = ("annotations", "videos", "music")


def ingest(params: Params, dataset: str, out_dir: str | Path) -> dict[str, Any]:
    """Find, check and hash the files of a dataset.

    Writes `manifest.jsonl` (one record per listed sequence), `source.json` (where the files are)
    and `summary.json`; with `ingest.aist.annotations_dir: null` also `download/`, a stand-in in
    the publisher's layout. `out_dir` is replaced as a whole at the end: after an error it is as it
    was before.

    Args:
        params: sections `ingest` and, for the stand-in, `ingest.embedded`.
        dataset: `aist`.
        out_dir: normally `data/raw/<dataset>`.

    Returns:
        The summary: counts by split, reasons for skipping, songs, terms of use.

    Raises:
        ValueError: a folder is missing or in another layout, or more than
            `ingest.max_skipped_share` of the sequences are unusable.
    """
    if dataset != "aist":
        raise ValueError(f"datasets must name a known dataset: got {dataset!r}; use aist")
    out_dir = Path(out_dir)
    with atomic_directory(out_dir) as folder:
        source, roots = _prepare_aist(params, folder)
        _log.info("terms of %s: %s", dataset, source["licence"])
        records = _inspect_aist(params, roots)
        summary = _summarise(records, source)
        _warn(records)
        counted = [record for record in records if record.reason not in CHOSEN_REASONS]
        num_broken = sum(record.is_broken for record in counted)
        enforce_share(
            num_broken,
            len(counted),
            params.ingest.max_skipped_share,
            "ingest",
            count_reasons(counted),
        )
        write_manifest(folder / "manifest.jsonl", records)
        write_json(folder / "source.json", source)
        write_json(folder / "summary.json", summary)
    return summary


def _prepare_aist(params: Params, folder: Path) -> tuple[dict[str, Any], aist.Roots]:
    """Return what `source.json` says, and the folders to read now."""
    setting = params.ingest.aist
    source: dict[str, Any] = {
        "dataset": "aist",
        "camera": setting.camera,
        "apply_ignore_list": setting.apply_ignore_list,
        "drop_partial_6s": setting.drop_partial_6s,
    }
    given = {name: getattr(setting, f"{name}_dir") for name in _FOLDERS}
    if given["annotations"] is None:
        for name in _FOLDERS[1:]:
            if given[name] is not None:
                raise ValueError(
                    f"ingest.aist.{name}_dir must be null while annotations_dir is null (embedded "
                    f"data): got {given[name]!r}; give annotations_dir as well"
                )
        _write_embedded(params, folder / "download")
        # Relative, so that the folder can be moved, cached and restored elsewhere.
        source |= {f"{name}_dir": f"download/{name}" for name in _FOLDERS}
        source |= {"embedded": True, "licence": EMBEDDED_LICENCE}
    else:
        for name in _FOLDERS:
            path = given[name]
            source[f"{name}_dir"] = path and str(Path(path).expanduser().resolve())
        source |= {"embedded": False, "licence": aist.LICENCE}
    roots = _roots(source, folder)
    aist.check_layout(roots, setting.apply_ignore_list)
    return source, roots


def _write_embedded(params: Params, folder: Path) -> None:
    from cdcd.data.embedded.aist import write_download

    embedded = params.ingest.embedded
    write_download(
        folder,
        seed=params.ingest.seed,
        songs_per_genre=embedded.songs_per_genre,
        choreographies_per_song=embedded.choreographies_per_song,
        video_height=embedded.video_height,
        num_workers=params.ingest.num_workers,
    )


def _roots(source: dict[str, Any], raw_dir: Path) -> aist.Roots:
    folders = [
        None if source[f"{name}_dir"] is None else raw_dir / source[f"{name}_dir"]
        for name in _FOLDERS
    ]
    annotations, videos, music = folders
    assert annotations is not None
    return aist.Roots(annotations, videos, music)


def read_source(raw_dir: str | Path) -> tuple[dict[str, Any], aist.Roots]:
    """Return `source.json` of a raw folder and the folders it names, resolved.

    Raises:
        ValueError: it is missing, damaged, or a folder is no longer there.
    """
    raw_dir = Path(raw_dir)
    path = raw_dir / "source.json"
    try:
        source = json.loads(path.read_text(encoding="utf-8"))
        roots = _roots(source, raw_dir)
    except FileNotFoundError:
        raise ValueError(f"{path} must exist: no such file; run `dvc repro ingest`") from None
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must say where the data are: {error!r}; write it again with "
            "`dvc repro --force ingest`"
        ) from None
    for folder in (roots.annotations, roots.videos, roots.music):
        if folder is not None and not folder.is_dir():
            raise ValueError(
                f"{path} must name existing folders: {str(folder)!r} is gone; bring it back, or "
                "mend params.yaml and run `dvc repro ingest`"
            )
    return source, roots


def _inspect_aist(params: Params, roots: aist.Roots) -> list[Record]:
    setting = params.ingest.aist
    listed = aist.list_sequences(roots.annotations, setting.apply_ignore_list)
    tasks = [aist.Inspection(item, roots, setting.camera) for item in listed]
    results: Iterator[Record] = ordered_map(aist.inspect_sequence, tasks, params.ingest.num_workers)
    return list(tqdm(results, total=len(tasks), desc="ingest: checking", unit="sequence"))


def _summarise(records: list[Record], source: dict[str, Any]) -> dict[str, Any]:
    used = [record for record in records if record.status == "ok"]
    return {
        "dataset": source["dataset"],
        "embedded": source["embedded"],
        "licence": source["licence"],
        "num_listed": len(records),
        "num_ok": len(used),
        "num_skipped": len(records) - len(used),
        "skipped": count_reasons(records),
        "num_ok_by_split": {split: sum(r.split == split for r in used) for split in SPLITS},
        "num_songs_by_split": {
            split: len({r.song for r in used if r.split == split}) for split in SPLITS
        },
        "num_without_video": sum(record.facts["video"] is None for record in used),
        "audio_sources": dict(sorted(Counter(r.facts["audio_source"] for r in used).items())),
        "minutes": round(sum(r.facts["num_frames"] for r in used) / 60 / 60, 3),
    }


def _warn(records: list[Record]) -> None:
    reasons = count_reasons(records)
    if reasons:
        _log.warning("sequences left out (manifest.jsonl says why): %s", describe_reasons(reasons))
    used = [record for record in records if record.status == "ok"]
    songs = {split: {r.song for r in used if r.split == split} for split in SPLITS}
    for split in SPLITS:
        if not songs[split]:
            _log.warning("split %s has no usable sequence", split)
    leaked = sorted(str(song) for song in songs["train"] & (songs["val"] | songs["test"]))
    if leaked:
        _log.warning("songs in train and in a held-out split: %s", ", ".join(leaked))
