"""What holds for all five datasets alike: manifests, randomness, shards, terms.

The layouts and traps of each have tests of their own in adapters/.
"""

import hashlib
import io
import json
import logging
import os
import random
import re
import shutil
import tarfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cdcd.config import DATASETS
from cdcd.data.arrays import npy_bytes
from cdcd.data.ingest import ingest
from cdcd.data.manifest import read_manifest
from cdcd.data.samples import sample_generator
from cdcd.data.sharding import shard
from tests.cdcd.data import tiny_aist, tiny_pictures, tiny_tiktok

TERMS = {
    "aist": ("CC BY 4.0", "AIST Dance Video Database Terms of Use", "nor clips derived"),
    "tiktok": ("without a licence", "research only", "OpenPose", "non-commercial"),
    "cub200": ("non-commercial research", "no stated licence", "neither may be passed on"),
    "coco": ("CC BY 4.0", "COCO Consortium", "own Flickr licence"),
    "imagenet": ("non-commercial research", "terms of access", "may not be passed on"),
}
MEMBERS = {"audio.npy", "motion.npy", "video.mp4", "video.npy", "image.png", "text.json"} | {
    "meta.json"
}


def write_imagenet(root: Path) -> Path:
    for seed, wnid in enumerate(("n01440764", "n01443537", "n02017213")):
        for number in (9, 10026):
            path = root / "train" / wnid / f"{wnid}_{number}.JPEG"
            tiny_pictures.write_picture(path, (120, 90), seed=seed + number)
        path = root / "val" / wnid / f"ILSVRC2012_val_{7 - seed:08d}.JPEG"
        tiny_pictures.write_picture(path, (90, 120), seed=seed)
    return root


WRITERS = {
    "aist": lambda root: shutil.copytree(tiny_aist.shared(), root),
    "tiktok": lambda root: shutil.copytree(tiny_tiktok.shared(), root),
    "cub200": tiny_pictures.write_cub,
    "coco": tiny_pictures.write_coco,
    "imagenet": write_imagenet,
}
A_FILE = {
    "aist": "annotations/motions/gPO_sBM_cAll_d11_mPO5_ch02.pkl",
    "tiktok": "videos/000001_4_11.mp4",
    "cub200": f"CUB_200_2011/images/{tiny_pictures.CUB_SHORT}.jpg",
    "coco": "train2014/COCO_train2014_000000000009.jpg",
    "imagenet": "train/n01443537/n01443537_9.JPEG",
}
"""A file that one item needs and no other."""


def params(dataset, root):
    if dataset == "aist":
        return tiny_aist.params(root)
    return tiny_aist.params(None, **{f"ingest__{dataset}__root": str(root)})


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files(folder)}


def state(folder):
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *sorted(folder.rglob("*"))]
    }


@pytest.fixture(scope="module", params=DATASETS)
def run(request, tmp_path_factory):
    """A download, ingested and sharded, with what was logged and whether it was changed."""
    dataset, home = request.param, tmp_path_factory.mktemp(request.param)
    download, messages = home / "download", []
    WRITERS[dataset](download)
    before = state(download)
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("cdcd")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    random.seed(1)
    np.random.seed(1)
    try:
        summary = ingest(params(dataset, download), dataset, home / "raw")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    shard(params(dataset, download), home / "raw", home / "shards")
    return SimpleNamespace(
        dataset=dataset,
        download=download,
        raw=home / "raw",
        shards=home / "shards",
        summary=summary,
        messages=messages,
        is_unchanged=state(download) == before,
        records=read_manifest(home / "raw" / "manifest.jsonl"),
        samples=read_manifest(home / "shards" / "manifest.jsonl"),
    )


def tar_members(run):
    for path in sorted(run.shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for item in tar.getmembers():
                yield path.name, item, tar.extractfile(item).read()


# Manifests


def test_nothing_is_written_into_the_download(run):
    assert run.is_unchanged


def test_keys_are_sorted_and_without_dots_and_slashes(run):
    for records in (run.records, run.samples):
        keys = [record.key for record in records]
        assert keys
        assert keys == sorted(keys)
        assert [key for key in keys if not re.fullmatch(r"[A-Za-z0-9_~-]+", key)] == []
    usable = [record.key for record in run.samples if record.status == "ok"]
    assert len(usable) == len(set(usable))


class _Backwards(list):
    def __enter__(self):
        return iter(self)

    def __exit__(self, *_):
        return None

    def __next__(self):
        return self.pop(0)


@contextmanager
def backwards():
    """Folders list their entries in falling order: no file system promises any other."""
    patch = pytest.MonkeyPatch()
    scan, listed = os.scandir, os.listdir

    def scandir(*arguments):
        with scan(*arguments) as entries:
            return _Backwards(sorted(entries, key=lambda entry: entry.name, reverse=True))

    patch.setattr(os, "scandir", scandir)
    patch.setattr(os, "listdir", lambda *a: sorted(listed(*a), reverse=True))
    try:
        yield
    finally:
        patch.undo()


def test_order_of_creation_and_listing_and_global_seeds_do_not_matter(run, tmp_path):
    copy = tmp_path / "elsewhere"
    for path in reversed(files(run.download)):
        target = copy / path.relative_to(run.download)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    setting = params(run.dataset, copy)
    random.seed(2)
    np.random.seed(2)
    with backwards():
        ingest(setting, run.dataset, tmp_path / "raw")
        shard(setting, tmp_path / "raw", tmp_path / "shards")
    name = "manifest.jsonl"
    assert (tmp_path / "raw" / name).read_bytes() == (run.raw / name).read_bytes()
    assert contents(tmp_path / "shards") == contents(run.shards)
    # The folder's own place is told in source.json alone.
    for path in [tmp_path / "raw" / name, *files(tmp_path / "shards")]:
        assert str(copy).encode() not in path.read_bytes(), path


def test_a_broken_item_costs_itself_alone(run, tmp_path):
    copy = tmp_path / "download"
    shutil.copytree(run.download, copy)
    file = copy / A_FILE[run.dataset]
    file.write_bytes(file.read_bytes()[:50])
    ingest(params(run.dataset, copy), run.dataset, tmp_path / "raw")
    found = read_manifest(tmp_path / "raw" / "manifest.jsonl")
    assert [record.key for record in found] == [record.key for record in run.records]
    changed = [(one, other) for one, other in zip(run.records, found, strict=True) if one != other]
    ((one, other),) = changed
    assert (one.status, other.status) == ("ok", "skipped")
    assert other.reason
    assert other.detail


def test_samples_say_what_they_were_made_of(run):
    dance = run.dataset in ("aist", "tiktok")
    roots = set(json.loads((run.raw / "source.json").read_text())["roots"])
    usable = [record for record in run.samples if record.status == "ok"]
    assert usable
    for record in usable:
        assert record.split in ("train", "val", "test")
        assert record.licence
        assert record.sources
        for path, checksum in record.sources.items():
            root, _, below = path.partition("/")
            assert root in roots
            assert not Path(below).is_absolute()
            assert ".." not in below.split("/")
            file = next(p for p in (run.download / path, run.download / below) if p.exists())
            if file.is_file():
                assert hashlib.sha256(file.read_bytes()).hexdigest() == checksum
            else:  # a folder of key points
                assert file.is_dir()
                assert re.fullmatch("[0-9a-f]{64}", checksum)
        decoders = record.facts["decoders"]
        assert set(decoders) >= ({"av"} if dance else {"pillow"})
        assert all(re.match(r"\d", version) for version in decoders.values())
        if dance:
            for pad in ("motion_pad_frames", "audio_pad_samples", "video_pad_frames"):
                assert type(record.facts[pad]) is int
            assert 0 < record.facts["valid_seconds"] <= 2
            assert record.song
        if run.dataset == "aist":
            assert record.genre in range(10)
        if run.dataset == "tiktok":
            assert record.genre is None
            assert "genre" not in record.facts
        if run.dataset in ("cub200", "imagenet"):
            assert type(record.label) is int


def test_skipped_samples_have_licence_and_words(run):
    for record in run.records:
        assert record.licence
        assert (record.status == "skipped") == bool(record.detail)


# Randomness


def test_draws_are_a_function_of_seed_epoch_and_key():
    def draw(*which):
        return sample_generator(*which).integers(0, 2**32, 4).tolist()

    assert draw(0, 0, "a") == draw(0, 0, "a")
    drawn = [draw(seed, epoch, key) for seed in (0, 1) for epoch in (0, 1) for key in ("a", "b")]
    assert len({tuple(numbers) for numbers in drawn}) == 8
    # Strings hash otherwise in every process: these must stay as they are.
    assert draw(3, 5, "gBR_sBM_c01_d04_mBR0_ch02_seg1") == GOLDEN_DRAW


GOLDEN_DRAW = [3369459782, 105893148, 905570227, 2267330275]


def test_adapters_draw_nothing_at_random(run, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("an adapter must not draw at random")

    for name in ("default_rng", "rand", "randn", "random", "randint", "choice", "permutation"):
        monkeypatch.setattr(np.random, name, refuse)
    for name in ("random", "randint", "choice", "shuffle", "sample", "uniform"):
        monkeypatch.setattr(random, name, refuse)
    from cdcd.data.adapters import Options
    from cdcd.data.ingest import read_source

    _, source = read_source(run.raw)
    options = Options(segment_seconds=2, video_fps=30, video_height=36, image_size=96)
    record = next(record for record in run.records if record.status == "ok")
    assert any(sample is not None for _, sample in source.load(record, options))
    assert [source.inspect(item).key for item in source.items()]


# Shards


def test_tars_have_fixed_times_owners_and_order(run):
    seen: dict[str, list[str]] = {}
    for tar, item, _ in tar_members(run):
        key, _, extension = item.name.partition(".")
        assert extension in MEMBERS
        assert "/" not in item.name
        assert item.isreg()
        assert (item.mtime, item.uid, item.gid) == (0, 0, 0)
        assert (item.uname, item.gname) == ("cdcd", "cdcd")
        assert not item.pax_headers
        seen.setdefault(tar, []).append(key)
    listed = [record.key for record in run.samples if record.status == "ok"]
    assert sorted({key for keys in seen.values() for key in keys}) == sorted(listed)
    for keys in seen.values():
        assert keys == sorted(keys)


def test_arrays_are_little_endian_and_of_the_stated_kind(run):
    kinds = {"audio.npy": "<i2", "motion.npy": "<f4", "video.npy": "<f4"}
    found = set()
    for _, item, data in tar_members(run):
        extension = item.name.partition(".")[2]
        if extension.endswith(".npy"):
            array = np.load(io.BytesIO(data), allow_pickle=False)
            assert array.dtype.str == kinds[extension]
            assert b"fortran_order': False" in data[:128]
            found.add(extension)
        if extension == "meta.json" and run.dataset in ("aist", "tiktok"):
            assert json.loads(data)["audio_scale"] == pytest.approx(1 / 32767)
    if run.dataset in ("aist", "tiktok"):
        assert found == {"audio.npy", "motion.npy"}


@pytest.mark.parametrize("order", ["<", ">", "="])
def test_arrays_of_any_byte_order_are_stored_little_endian(order):
    numbers = np.arange(6.0, dtype=f"{order}f4").reshape(2, 3)
    stored = npy_bytes(numbers)
    assert b"'<f4'" in stored[:128]
    np.testing.assert_array_equal(np.load(io.BytesIO(stored)), numbers)
    assert stored == npy_bytes(np.asfortranarray(numbers))


# Terms


def test_the_terms_are_told_once_and_kept(run):
    told = [line for line in run.messages if line.startswith(f"terms of {run.dataset}: ")]
    assert len(told) == 1
    terms = told[0].partition(": ")[2]
    for words in TERMS[run.dataset]:
        assert words in terms
    assert not [line for line in run.messages if terms in line and line != told[0]]
    assert run.summary["licence"] == terms
    for name in ("summary.json", "source.json"):
        assert json.loads((run.raw / name).read_text())["licence"] == terms


def test_every_sample_carries_its_licence_into_the_tar(run):
    metas = [json.loads(data) for _, item, data in tar_members(run) if "meta.json" in item.name]
    assert {meta["licence"] for meta in metas} == {
        record.licence for record in run.samples if record.status == "ok"
    }
    assert all(meta["licence"] for meta in metas)
    if run.dataset == "coco":  # each picture has its own
        assert {meta["licence"] for meta in metas} == {"CC BY", "CC BY-NC"}


def test_a_stage_shows_what_ingest_tells(monkeypatch):
    from flows.stage import prepare_environment

    loggers = [logging.getLogger(name) for name in ("cdcd", "flows")]
    levels = [logger.level for logger in loggers]
    before = dict(os.environ)
    try:
        for logger in loggers:
            logger.setLevel(logging.NOTSET)
        prepare_environment()
        assert logging.getLogger("cdcd.data.ingest").isEnabledFor(logging.INFO)
    finally:
        os.environ.clear()
        os.environ.update(before)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
