"""How fast and how large are the data stages: decoding, sharding, reading, growth?

    python -m benchmarks.data [--videos DIR] [--parts PART ...] [--json FILE]

Prints Markdown tables. Compared loops take turns within one run, so that ratios hold on a noisy
machine; a ratio is the median of the rounds. Nothing is left behind.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("decoding", "sharding", "reading", "growth")
HEIGHT = 96  # shorter side of decoded frames, as `shard.video_height`
NUM_ROUNDS = 5
DEMO_CLIPS_PER_SECOND = 500 * 16 / 371
"""What the default training consumes on two CPU cores (README: 500 steps of 16 in 371 s)."""


def write(line: str = "") -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def timed(function: Callable[[], Any]) -> float:
    """Return how many seconds a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def memory(field: str) -> float:
    """Return a field of this process's memory in MiB: VmRSS, RssAnon."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def parameters(**changes: Any) -> Any:
    """Return params.yaml with `section__key=value` changes."""
    from cdcd.config import parse_params

    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for path, value in changes.items():
        *sections, key = path.split("__")
        branch = tree
        for section in sections:
            branch = branch[section]
        branch[key] = value
    return parse_params(tree)


# Decoding


def _bare(path: Path, size: tuple[int, int]) -> int:
    import decord

    reader = decord.VideoReader(
        str(path), decord.cpu(0), width=size[0], height=size[1], num_threads=1
    )
    return sum(frame.asnumpy().shape[0] > 0 for frame in reader)


def _ours(path: Path, fps: float) -> int:
    from cdcd import media

    return sum(1 for _ in media.iterate_frames(path, fps, HEIGHT))


def decoding(videos: list[Path]) -> dict[str, Any]:
    """Compare `media.iterate_frames` with a bare loop over decord's frames."""
    import decord

    from cdcd import media

    decord.logging.set_level(decord.logging.QUIET)
    write("| video | frames | read by | bare decord, frames/s | this project, frames/s | ratio |")
    write("|---|---:|---|---:|---:|---:|")
    found: dict[str, Any] = {}
    rounds = [[0.0, 0.0] for _ in range(NUM_ROUNDS)]
    for path in videos:
        info = media.probe(path).video
        assert info is not None
        scale = HEIGHT / min(info.width, info.height)
        size = tuple(2 * round(side * scale / 2) for side in (info.width, info.height))
        _bare(path, size), _ours(path, info.fps)
        pairs = []
        for _ in range(NUM_ROUNDS):
            bare = timed(lambda: _bare(path, size))  # noqa: B023 - called at once
            media._scan.cache_clear()  # every file is opened for the first time in a stage
            pairs.append((bare, timed(lambda: _ours(path, info.fps))))  # noqa: B023
        ratio = statistics.median(bare / ours for bare, ours in pairs)
        for total, pair in zip(rounds, pairs, strict=True):
            total[0] += pair[0]
            total[1] += pair[1]
        bare, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        frames = info.num_frames or 0
        reader = "decord" if media.uses_decord(path, HEIGHT) else "PyAV"
        write(
            f"| {path.name} | {frames} | {reader} | {frames / bare:.0f} | {frames / ours:.0f} | "
            f"{ratio:.2f} |"
        )
        found[path.name] = {"frames": frames, "reader": reader, "ratio": ratio}
    ratio = statistics.median(bare / ours for bare, ours in rounds)
    write(f"| all files, one after the other | | | | | {ratio:.2f} |")
    return found | {"all": {"ratio": ratio}}


# Sharding


def _linked(download: Path, target: Path, copies: int) -> None:
    """Lay out the stand-in several times over under other choreographies, as links."""
    for name in ("annotations/motions", "annotations/splits", "videos"):
        (target / name).mkdir(parents=True)
    (target / "music").symlink_to(download / "music")
    (target / "annotations" / "ignore_list.txt").write_text("")
    for split in ("train", "val", "test"):
        listed = (download / "annotations" / "splits" / f"crossmodal_{split}.txt").read_text()
        names = []
        for line in listed.split():
            stem, _, number = line.rpartition("_ch")
            for copy in range(copies if split == "train" else 1):
                name = f"{stem}_ch{int(number) + 20 * copy:02d}"
                names.append(name)
                for kind, ending, camera in (
                    ("annotations/motions", "pkl", "cAll"),
                    ("videos", "mp4", "c01"),
                ):
                    old, new = (n.replace("cAll", camera) + f".{ending}" for n in (line, name))
                    (target / kind / new).symlink_to(download / kind / old)
        path = target / "annotations" / "splits" / f"crossmodal_{split}.txt"
        path.write_text("\n".join(names))


def sharding(folder: Path) -> dict[str, Any]:
    """Shard the AIST++ stand-in, four times over, with one and with two processes."""
    from cdcd.data.ingest import ingest
    from cdcd.data.sharding import shard

    ingest(parameters(), "aist", folder / "once")
    _linked(folder / "once" / "download", folder / "links", copies=4)
    raw, source = folder / "raw", folder / "links"
    paths = {
        f"ingest__aist__{name}_dir": str(source / name)
        for name in ("annotations", "videos", "music")
    }
    ingest(parameters(**paths), "aist", raw)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    summary: dict[str, Any] = {}
    for _ in range(3):
        for workers, column in seconds.items():
            params = parameters(shard__num_workers=workers)
            started = time.perf_counter()
            summary = shard(params, raw, folder / "shards")
            column.append(time.perf_counter() - started)
    ratio = statistics.median(a / b for a, b in zip(seconds[1], seconds[2], strict=True))
    write("| processes | seconds | samples/s |")
    write("|---|---:|---:|")
    for workers, column in seconds.items():
        median = statistics.median(column)
        write(f"| {workers} | {median:.1f} | {summary['num_samples'] / median:.1f} |")
    write(
        f"\nTwo processes are {ratio:.2f} times as fast as one ({summary['num_samples']} samples)."
    )
    return {"seconds": seconds, "ratio": ratio, "samples": summary["num_samples"]}


# Reading


def _write_cache(folder: Path, num: int) -> None:
    from cdcd.data.cache import new_split

    rng = np.random.default_rng(0)
    keys = [f"k{i:06d}" for i in range(num)]
    labels = {
        "keys": keys,
        "genres": [i % 10 for i in range(num)],
        "songs": [f"m{i % 50}" for i in range(num)],
        "sequences": keys,
    }
    layout = {"tokens": ((num, 172), np.int32)}
    with new_split(folder / "tokens", "train", layout) as opened:
        opened.info.update(labels)
        opened.arrays["tokens"][...] = rng.integers(0, 512, (num, 172))
    features = {
        "motion": ((num, 120, 219), np.float32),
        "has_motion": ((num,), np.uint8),
        "video": ((num, 60, 202), np.float32),
        "has_video": ((num,), np.uint8),
    }
    with new_split(folder / "features", "train", features) as opened:
        opened.info.update(labels)
        for row in range(num):
            opened.arrays["motion"][row] = rng.standard_normal((120, 219), np.float32)
            opened.arrays["video"][row] = rng.standard_normal((60, 202), np.float32)
        opened.arrays["has_motion"][:] = opened.arrays["has_video"][:] = 1


def _write_loose(folder: Path) -> None:
    from cdcd.data.batches import read_pairs

    pairs = read_pairs(folder / "tokens", folder / "features", "train")
    (folder / "loose").mkdir()
    for row, key in enumerate(pairs.features.keys):
        np.save(folder / "loose" / f"{key}.tokens.npy", pairs.tokens[row])
        np.save(folder / "loose" / f"{key}.motion.npy", pairs.features.motion[row])
        np.save(folder / "loose" / f"{key}.video.npy", pairs.features.video[row])


def _loose_epoch(folder: Path, keys: list[str], batch_size: int) -> int:
    order = np.random.default_rng(0).permutation(len(keys))
    num = 0
    for rows in np.split(order, range(batch_size, len(order), batch_size)):
        for name in ("tokens", "motion", "video"):
            np.stack([np.load(folder / "loose" / f"{keys[row]}.{name}.npy") for row in rows])
        num += len(rows)
    return num


def reading(folder: Path, num: int) -> dict[str, Any]:
    """Read an epoch of cached tokens and features in random order, and the same as loose files."""
    import torch

    from cdcd.data.batches import ShuffledBatches, read_pairs

    _write_cache(folder, num)
    _write_loose(folder)
    started = time.perf_counter()
    pairs = read_pairs(folder / "tokens", folder / "features", "train")
    batches = iter(ShuffledBatches(pairs, 16, 0, 0, torch.device("cpu")))
    next(batches)
    first = time.perf_counter() - started
    keys = pairs.features.keys
    resident: list[float] = []
    steps = num // 16
    rates, loose_rates = [], []
    for epoch in range(3):
        seconds = 0.0
        for _ in range(steps):
            seconds += timed(lambda: next(batches))
            if epoch == 0:
                resident.append(memory("VmRSS"))
        rates.append(steps * 16 / seconds)
        loose_rates.append(num / timed(lambda: _loose_epoch(folder, keys, 16)))
    rate, loose = statistics.median(rates), statistics.median(loose_rates)
    ratio = statistics.median(a / b for a, b in zip(rates, loose_rates, strict=True))
    growth = max(resident[steps // 10 :]) / resident[steps // 10] - 1
    write("| what | value |")
    write("|---|---:|")
    write(f"| clips of tokens, motion and video features | {num} |")
    write(f"| first batch after opening | {first * 1000:.0f} ms |")
    write(f"| clips/s, cached splits, random order | {rate:.0f} |")
    write(f"| clips/s, the same arrays as loose files | {loose:.0f} |")
    write(f"| cached over loose | {ratio:.1f} |")
    write(
        f"| over what the demo training consumes ({DEMO_CLIPS_PER_SECOND:.0f}/s) | "
        f"{rate / DEMO_CLIPS_PER_SECOND:.0f} |"
    )
    write(
        f"| resident memory after the first tenth of the epoch | {resident[steps // 10]:.0f} MiB |"
    )
    write(f"| its growth over the rest | {100 * growth:.1f} % |")
    return {
        "num": num, "first_batch_seconds": first, "clips_per_second": rate,
        "loose_clips_per_second": loose, "ratio": ratio, "growth": growth,
    }  # fmt: skip


# Growth


def _records(num: int) -> Iterator[Any]:
    from cdcd.data.manifest import Record

    for number in range(num):
        key = f"s{(number * 7919) % num:09d}"  # not in order
        yield Record(key, "train", label=number % 1000, sources={f"root/{key}.png": "0" * 64})


def growth(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """Write and read manifests, shards and cached splits of more and more small samples."""
    from cdcd.data.cache import new_split, read_split
    from cdcd.data.manifest import iterate_manifest, write_manifest
    from cdcd.data.samples import Sample
    from cdcd.data.shards import (
        describe_shard,
        encode_sample,
        iterate_shards,
        shard_name,
        write_index,
        write_tar,
    )

    write("| samples | manifest write | manifest read | shards write | shards read | "
          "cache write | random row | resident MiB |")  # fmt: skip
    write("|---:|---:|---:|---:|---:|---:|---:|---:|")
    rng = np.random.default_rng(0)
    audio = rng.uniform(-1, 1, 512).astype(np.float32)
    motion = rng.standard_normal((2, 219)).astype(np.float32)
    rows = []
    for num in sizes:
        here = folder / str(num)
        here.mkdir()
        times = {"manifest write": timed(lambda: write_manifest(here / "m", _records(num)))}  # noqa: B023
        times["manifest read"] = timed(lambda: sum(1 for _ in iterate_manifest(here / "m")))  # noqa: B023

        def shards() -> None:
            entries = []
            for number, start in enumerate(range(0, num, 1000)):  # noqa: B023
                part = (
                    (f"s{i:09d}", encode_sample(Sample(f"s{i:09d}", "train", audio, motion, None)))
                    for i in range(start, min(start + 1000, num))  # noqa: B023
                )
                path = here / shard_name("train", number)  # noqa: B023
                entries.append(describe_shard(path, "train", write_tar(path, part)))
            write_index(here, entries)  # noqa: B023

        times["shards write"] = timed(shards)
        times["shards read"] = timed(lambda: sum(1 for _ in iterate_shards(here, "train")))  # noqa: B023

        def cache() -> None:
            layout = {"tokens": ((num, 172), np.int32)}  # noqa: B023
            with new_split(here / "c", "train", layout) as opened:  # noqa: B023
                opened.info["keys"] = [f"s{i:09d}" for i in range(num)]  # noqa: B023
                for row in range(num):  # noqa: B023
                    opened.arrays["tokens"][row] = row

        times["cache write"] = timed(cache)
        tokens = read_split(here / "c", "train").arrays["tokens"]
        order = rng.permutation(num)
        times["random row"] = timed(lambda: [tokens[row].sum() for row in order])  # noqa: B023
        each = {name: 1e6 * seconds / num for name, seconds in times.items()}
        cells = " | ".join(f"{value:.1f}" for value in each.values())
        write(f"| {num} | {cells} | {memory('VmRSS'):.0f} |")
        size = sum(path.stat().st_size for path in here.glob("*.tar"))
        rows.append({"samples": num, "microseconds": each, "bytes_per_sample": size / num})
    write("\nMicroseconds for each sample.")
    return rows


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--videos", type=Path, help="folder of .mp4 files to decode")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--clips", type=int, default=2000, help="cached clips that are read")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    found: dict[str, Any] = {"cores": os.cpu_count()}
    for part in options.parts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(f"\n## {part}\n")
            match part:
                case "decoding":
                    videos = sorted(options.videos.glob("*.mp4")) if options.videos else []
                    if not videos:
                        write("skipped: --videos must name a folder of .mp4 files")
                        continue
                    found[part] = decoding(videos)
                case "sharding":
                    found[part] = sharding(folder)
                case "reading":
                    found[part] = reading(folder, options.clips)
                case "growth":
                    found[part] = growth(folder, options.sizes)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
