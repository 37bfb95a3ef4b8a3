import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from cdcd.data import pickles
from cdcd.data.embedded import cub200
from cdcd.data.embedded.cub200 import (
    COLOURS,
    OFFICIAL_NAMES,
    PHRASES,
    VALUES,
    make_captions,
    plan,
    told_attributes,
)
from cdcd.evaluation.attributes import SIZE, fit_classifier

NUM_SPECIES, NUM_IMAGES, HEIGHT = 12, 3, 40
LISTS = (
    "images.txt",
    "image_class_labels.txt",
    "classes.txt",
    "train_test_split.txt",
    "bounding_boxes.txt",
)


def _write(root: Path, *, seed: int = 3, num_workers: int = 1) -> Path:
    cub200.write_download(
        root,
        seed=seed,
        num_species=NUM_SPECIES,
        images_per_species=NUM_IMAGES,
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


def _rows(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text(encoding="utf-8").splitlines()]


def _species_of(name: str) -> cub200.Species:
    return plan(NUM_SPECIES)[int(name[:3]) - 1]


@pytest.mark.parametrize("num_species", [11, 12, 13, 20, 40, 111, 160, 200])
def test_test_species_are_new_combinations_of_values_that_occur_in_training(num_species):
    species = plan(num_species)
    assert [s.class_id for s in species] == list(range(1, num_species + 1))
    assert len({s.name for s in species}) == num_species
    assert len({tuple(s.attributes.values()) for s in species}) == num_species
    assert all(s.body != s.wing for s in species)
    train = [s for s in species if s.split == "train"]
    assert len(train) == pytest.approx(0.75 * num_species, abs=1)
    for attribute, values in VALUES.items():
        assert {s.attributes[attribute] for s in train} == set(values)


def test_values_are_balanced_and_training_species_have_a_twin_of_swapped_colours():
    species = plan(40)
    train = [s for s in species if s.split == "train"]
    for attribute, values in VALUES.items():
        counts = [sum(s.attributes[attribute] == v for s in train) for v in values]
        assert max(counts) <= 1.5 * min(counts)
    tuples = {tuple(s.attributes.values()) for s in train}
    assert {(wing, body, *rest) for body, wing, *rest in tuples} == tuples
    assert len({(s.body, s.wing) for s in species}) == 40


@pytest.mark.parametrize("num_species", [10, 201])
def test_a_number_of_species_out_of_range_is_refused(num_species):
    with pytest.raises(ValueError, match=rf"num_species must be 11 to 200.*got {num_species}"):
        plan(num_species)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images_per_species": 1}, r"images_per_species must be at least 2.*got 1; use 24"),
        ({"image_height": 16}, r"image_height must be at least 32.*got 16; use 96"),
    ],
)
def test_a_refused_download_leaves_the_earlier_one(tmp_path, change, message):
    (tmp_path / "kept").write_text("")
    sizes = {"num_species": 12, "images_per_species": 2, "image_height": 32} | change
    with pytest.raises(ValueError, match=message):
        cub200.write_download(tmp_path, seed=0, **sizes)
    assert (tmp_path / "kept").exists()


def test_layout(download):
    folder = download / "CUB_200_2011"
    images = _rows(folder / "images.txt")
    count = NUM_SPECIES * NUM_IMAGES
    assert [row[0] for row in images] == [str(i) for i in range(1, count + 1)]
    written = sorted(p.relative_to(folder / "images").as_posix() for p in folder.rglob("*.jpg"))
    assert sorted(row[1] for row in images) == written
    captions = sorted(
        p.relative_to(download / "text" / "text").as_posix() for p in download.rglob("text/*/*.txt")
    )
    assert captions == [re.sub(r"jpg$", "txt", name) for name in written]
    classes = _rows(folder / "classes.txt")
    assert [name for _, name in classes] == [s.folder for s in plan(NUM_SPECIES)]
    for image_id, class_id in _rows(folder / "image_class_labels.txt"):
        assert images[int(image_id) - 1][1].split("/")[0] == classes[int(class_id) - 1][1]
    for number, (image_id, name) in enumerate(images):
        assert re.fullmatch(
            rf"\d{{3}}\.\w+/[A-Z]\w+_{number % NUM_IMAGES + 1:04d}_{image_id}\.jpg", name
        )
    files = {p.relative_to(download).as_posix() for p in download.rglob("*") if p.is_file()}
    rest = {f for f in files if not f.endswith(".jpg") and not f.startswith("text/")}
    assert rest == {
        "attributes.txt",
        "CUB_200_2011/attributes/image_attribute_labels.txt",
        *(f"CUB_200_2011/{name}" for name in LISTS),
        *(f"{s}/{n}.pickle" for s in ("train", "test") for n in ("filenames", "class_info")),
    }


def test_letter_case_differs_between_some_folders_and_their_files(download):
    names = [row[1] for row in _rows(download / "CUB_200_2011" / "images.txt")]
    pairs = [(name[4:].split("/")[0], name.split("/")[1].rsplit("_", 2)[0]) for name in names]
    assert all(folder.lower() == file.lower() for folder, file in pairs)
    assert 0 < sum(folder != file for folder, file in pairs) < len(pairs) / 2


def test_the_official_split_divides_every_class(download):
    flags = [int(flag) for _, flag in _rows(download / "CUB_200_2011" / "train_test_split.txt")]
    assert set(np.reshape(flags, (NUM_SPECIES, NUM_IMAGES)).sum(axis=1)) == {2}
    assert len({tuple(row) for row in np.reshape(flags, (NUM_SPECIES, NUM_IMAGES))}) > 1


def test_pickles_are_of_protocol_0_and_their_classes_disjoint(download):
    names = {}
    for split in ("train", "test"):
        for name in ("filenames", "class_info"):
            assert (download / split / f"{name}.pickle").read_bytes()[:1] != b"\x80"
        names[split] = pickles.load(download / split / "filenames.pickle")
        ids = pickles.load(download / split / "class_info.pickle")
        assert ids == [int(name[:3]) for name in names[split]]
        assert {_species_of(name).split for name in names[split]} == {split}
    everything = [row[1] for row in _rows(download / "CUB_200_2011" / "images.txt")]
    assert sorted(names["train"] + names["test"]) == sorted(n[: -len(".jpg")] for n in everything)
    assert len(names["train"]) == 3 * len(names["test"])


def test_captions_are_distinct_and_tell_the_species(download):
    files = sorted(download.rglob("text/*/*.txt"))
    assert len(files) == NUM_SPECIES * NUM_IMAGES
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len({line.lower().rstrip(".") for line in lines}) == len(lines) == 10
        true = _species_of(path.parent.name).attributes
        told = [told_attributes(line) for line in lines]
        assert all(found.items() <= true.items() for found in told)
        for line, found in zip(lines, told, strict=True):
            assert {"body", "wing"} <= set(found)
            # Read by eye rather than by the module: the two colours and no third.
            words = set(re.findall(r"[a-z]+", line.lower()))
            assert words & set(COLOURS) == {true["body"], true["wing"]}
        for attribute in VALUES:
            assert sum(attribute in found for found in told) >= 4


def test_captions_have_a_fixed_vocabulary_and_varied_words():
    species = plan(40)
    lines = [
        line
        for s in species
        for i in range(10)
        for line in make_captions(s, np.random.default_rng(i))
    ]
    words = {word for line in lines for word in re.findall(r"[a-z]+", line.lower())}
    assert len(words) < 70
    for values in PHRASES.values():
        for phrases in values.values():
            for phrase in phrases:
                assert any(phrase in line for line in lines)
    assert 0.1 < np.mean([line[0].isupper() for line in lines]) < 0.3
    assert 0.5 < np.mean([line.endswith(".") for line in lines]) < 0.7
    assert len(set(lines)) > 0.5 * len(lines)


def test_attributes_agree_with_the_captions(download):
    names = dict(_rows(download / "attributes.txt"))
    assert list(names) == [str(i) for i in range(1, len(names) + 1)]
    official = {name: attribute for attribute, name in OFFICIAL_NAMES.items()}
    images = dict(_rows(download / "CUB_200_2011" / "images.txt"))
    present: dict[str, dict[str, str]] = {image_id: {} for image_id in images}
    labels = _rows(download / "CUB_200_2011" / "attributes" / "image_attribute_labels.txt")
    assert len(labels) == len(images) * len(names)
    for image_id, number, is_present, certainty, seconds in labels:
        assert int(certainty) in (1, 2, 3, 4)
        assert float(seconds) > 0
        if is_present == "1":
            name, value = names[number].split("::")
            assert official[name] not in present[image_id]
            present[image_id][official[name]] = value
    for image_id, image in images.items():
        path = download / "text" / "text" / image.replace(".jpg", ".txt")
        told: dict[str, str] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            told |= told_attributes(line)
        assert told == present[image_id]


def test_pictures_vary_in_shape_and_hold_their_boxes(download):
    from PIL import Image

    folder = download / "CUB_200_2011"
    images = _rows(folder / "images.txt")
    boxes = _rows(folder / "bounding_boxes.txt")
    sizes = set()
    for (image_id, name), (box_id, *numbers) in zip(images, boxes, strict=True):
        assert image_id == box_id
        with Image.open(folder / "images" / name) as picture:
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            width, height = picture.size
        sizes.add((width, height))
        assert min(width, height) == HEIGHT
        assert max(width, height) <= 1.5 * HEIGHT
        x, y, w, h = map(float, numbers)
        left, top = (width - HEIGHT) // 2, (height - HEIGHT) // 2
        assert left <= x < x + w <= left + HEIGHT + 1
        assert top <= y < y + h <= top + HEIGHT + 1
        assert w * h > 0.03 * HEIGHT**2
    assert {w > h for w, h in sizes} == {True, False}
    assert len(sizes) > 10


def test_a_box_is_where_the_bird_is(monkeypatch):
    # On a plain ground of no bird's colour, whatever differs from it is the bird.
    from PIL import Image

    monkeypatch.setattr(
        cub200, "_draw_scene", lambda size, *_: Image.new("RGB", size, (255, 0, 255))
    )
    for species in plan(12):
        picture, box = cub200.draw_picture(species, 96, np.random.default_rng(species.class_id))
        pixels = np.asarray(picture).astype(int)
        rows, columns = np.nonzero(np.abs(pixels - pixels[0, 0]).sum(axis=2) > 30)
        found = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        np.testing.assert_allclose(found, box, atol=2)


def test_bytes_depend_on_the_seed_and_not_on_the_workers(download, tmp_path):
    first = _digests(download)
    assert _digests(_write(tmp_path / "two", num_workers=2)) == first
    assert _digests(_write(tmp_path / "two")) == first
    other = _digests(_write(tmp_path / "other", seed=4))
    assert set(other) == set(first)
    pictures = [name for name in first if name.endswith(".jpg")]
    assert all(other[name] != first[name] for name in pictures)
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def _squares(root: Path, split: str) -> np.ndarray:
    from PIL import Image

    squares = []
    for name in pickles.load(root / split / "filenames.pickle"):
        with Image.open(root / "CUB_200_2011" / "images" / f"{name}.jpg") as picture:
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            square = picture.crop((left, top, left + side, top + side))
            squares.append(np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))
    return np.stack(squares)


def _labels(root: Path, split: str, species: list[cub200.Species]) -> dict[str, np.ndarray]:
    ids = pickles.load(root / split / "class_info.pickle")
    return {
        attribute: np.array([values.index(species[i - 1].attributes[attribute]) for i in ids])
        for attribute, values in VALUES.items()
    }


def test_attributes_are_read_off_pictures_of_species_never_seen(tmp_path):
    # Many species of few pictures: of few species, a network learns which one it sees instead.
    root, num_species = tmp_path / "download", 160
    cub200.write_download(
        root, seed=0, num_species=num_species, images_per_species=5, image_height=96
    )
    species = plan(num_species)
    (pictures, labels), (new, true) = (
        (_squares(root, split), _labels(root, split, species)) for split in ("train", "test")
    )
    model = fit_classifier(
        pictures, labels, num_epochs=13, batch_size=48, learning_rate=6e-3, width=16
    )
    accuracy = model.accuracy(new, true)
    assert min(accuracy.values()) >= 0.95, accuracy

    order = np.random.default_rng(0).permutation(len(pictures))
    shuffled = {attribute: values[order] for attribute, values in labels.items()}
    control = fit_classifier(pictures, shuffled, num_epochs=2, width=8)
    for attribute, share in control.accuracy(new, true).items():
        assert share < 1 / len(VALUES[attribute]) + 0.2
