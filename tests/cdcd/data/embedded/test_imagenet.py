import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdcd.data.embedded import imagenet
from cdcd.data.embedded.music import generator

HEIGHT = 48
DEFAULT = imagenet.plan(0, 80, 16)


def _write(root: Path, *, seed: int = 3, num_workers: int = 1) -> Path:
    imagenet.write_download(
        root,
        seed=seed,
        train_per_class=3,
        val_per_class=2,
        image_height=HEIGHT,
        num_workers=num_workers,
    )
    return root


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("a") / "download")


def _digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def _scans(pictures, split):
    return [p.scan for p in pictures if p.split == split and p.scan is not None]


def _readable(pictures):
    """Central squares at 64 x 64, and the indices of their classes."""
    wnids = list(imagenet.CLASSES)
    squares = np.empty((len(pictures), 64, 64, 3), np.uint8)
    for square, picture in zip(squares, pictures, strict=True):
        rng = generator(0, picture.path)
        image = imagenet.draw(imagenet.CLASSES[picture.wnid], picture.scan, 96, rng)
        if picture.is_grey:
            image = image.convert("L").convert("RGB")
        left, top = ((n - 96) // 2 for n in image.size)
        box = (left, top, left + 96, top + 96)
        square[:] = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC, box))
    return squares, np.array([wnids.index(p.wnid) for p in pictures])


def test_twenty_sorted_classes_half_of_them_digits():
    assert len(imagenet.CLASSES) == len(set(imagenet.CLASSES.values())) == 20
    assert list(imagenet.CLASSES) == sorted(imagenet.CLASSES)
    assert all(re.fullmatch(r"n900000\d\d", wnid) for wnid in imagenet.CLASSES)
    assert set(imagenet.DIGITS) < set(imagenet.CLASSES.values())


@pytest.mark.parametrize(("train", "val"), [(3, 2), (80, 16), (160, 50)])
def test_no_scan_is_in_two_splits(train, val):
    pictures = imagenet.plan(0, train, val)
    used = {split: _scans(pictures, split) for split in ("train", "val")}
    assert not set(used["train"]) & set(used["val"])
    assert len(used["train"]) == 10 * train
    assert len(set(used["train"])) == 10 * min(train, 140)
    assert len(set(used["val"])) >= 10 * min(val, 34)


def test_a_scan_shows_the_digit_of_its_class():
    digits = imagenet._scans()[1]
    for picture in DEFAULT:
        name = imagenet.CLASSES[picture.wnid]
        assert (picture.scan is not None) == (name in imagenet.DIGITS)
        if picture.scan is not None:
            assert imagenet.DIGITS[digits[picture.scan]] == name


def test_the_plan_depends_on_the_seed_alone():
    assert imagenet.plan(0, 80, 16) == DEFAULT
    assert set(_scans(imagenet.plan(1, 80, 16), "train")) != set(_scans(DEFAULT, "train"))


def test_numbers_are_distinct_and_have_gaps():
    assert len({p.path for p in DEFAULT}) == len(DEFAULT) == 20 * 96
    val = [p.number for p in DEFAULT if p.split == "val"]
    assert len(set(val)) == len(val)
    assert max(val) <= 50_000
    for wnid in imagenet.CLASSES:
        train = [p.number for p in DEFAULT if p.split == "train" and p.wnid == wnid]
        assert max(train) - min(train) > len(train)


def test_every_class_has_grey_pictures_and_few():
    assert 0.03 < np.mean([p.is_grey for p in DEFAULT]) < 0.1
    assert {p.wnid for p in DEFAULT if p.is_grey} == set(imagenet.CLASSES)
    assert {p.split for p in DEFAULT if p.is_grey} == {"train", "val"}


def test_splits_without_pictures_are_refused_and_leave_the_earlier_download(tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(ValueError, match=r"val_per_class must be at least 1: got 3 and 0; use"):
        imagenet.write_download(
            tmp_path, seed=0, train_per_class=3, val_per_class=0, image_height=HEIGHT
        )
    assert (tmp_path / "kept").exists()


def test_layout(download):
    assert {path.name for path in download.iterdir()} == {"train", "val", "class_index.json"}
    index = json.loads((download / "class_index.json").read_text())
    assert list(index) == [str(i) for i in range(20)]
    wnids = sorted(path.name for path in (download / "train").iterdir())
    assert [wnid for wnid, _ in index.values()] == wnids
    assert dict(index.values()) == imagenet.CLASSES
    assert sorted(path.name for path in (download / "val").iterdir()) == wnids
    for wnid in wnids:
        train = [path.name for path in (download / "train" / wnid).iterdir()]
        val = [path.name for path in (download / "val" / wnid).iterdir()]
        assert (len(train), len(val)) == (3, 2)
        assert all(re.fullmatch(rf"{wnid}_\d+\.JPEG", name) for name in train)
        assert all(re.fullmatch(r"ILSVRC2012_val_\d{8}\.JPEG", name) for name in val)


def test_pictures_are_jpegs_of_many_shapes(download):
    shapes, modes = [], []
    for picture in imagenet.plan(3, 3, 2):
        with Image.open(download / picture.path) as image:
            assert image.format == "JPEG"
            assert image.mode == ("L" if picture.is_grey else "RGB")
            shapes.append(image.size)
            modes.append(image.mode)
    assert {min(shape) for shape in shapes} == {HEIGHT}
    assert max(max(shape) for shape in shapes) <= HEIGHT * imagenet.LONGEST
    assert len(set(shapes)) > 10
    assert {width > height for width, height in shapes} == {True, False}
    assert 0 < modes.count("L") < 12


def test_bytes_depend_on_the_seed_and_not_on_the_workers(download, tmp_path):
    digests = _digests(download)
    assert _digests(_write(tmp_path / "two", num_workers=2)) == digests
    assert _digests(_write(tmp_path / "two")) == digests
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())
    other = _digests(_write(tmp_path / "other", seed=4))
    assert not set(other.values()) - {digests["class_index.json"]} & set(digests.values())


def test_classes_are_read_back_on_held_out_pictures():
    from cdcd.evaluation.attributes import fit_classifier

    plan = imagenet.plan(0, 140, 34)
    train = [p for p in plan if p.split == "train"]
    # Drawn forms are learnt from half; handwriting takes every scan there is.
    chosen = [p for i, p in enumerate(train) if p.scan is not None or i % 2 == 0]
    pictures, classes = _readable(chosen)
    model = fit_classifier(
        pictures,
        {"class": classes},
        mirror=False,
        num_epochs=7,
        batch_size=32,
        learning_rate=6e-3,
        width=16,
    )
    pictures, classes = _readable([p for p in plan if p.split == "val"])
    found = model.predict(pictures)["class"]
    assert np.mean(found == classes) >= 0.95
    assert min(np.mean(found[classes == c] == c) for c in range(20)) >= 0.9
    shuffled = np.random.default_rng(0).permutation(classes)
    assert np.mean(found == shuffled) < 0.1
