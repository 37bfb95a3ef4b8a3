import hashlib
import json
import re
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cdcd.data.embedded import coco
from cdcd.evaluation.attributes import SIZE, fit_classifier

IMAGE_KEYS = {
    "license", "file_name", "coco_url", "height", "width", "date_captured", "flickr_url", "id",
}  # fmt: skip
INSTANCE_KEYS = {
    "id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "attributes",
}  # fmt: skip
COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
SINGULAR = {plural: kind for kind, plural in coco.PLURALS.items()}
NOUNS = "|".join([*coco.PLURALS.values(), *coco.PLURALS])
GROUP = rf"\b(an?|one|two|three) ({'|'.join(coco.COLOURS)}) ({NOUNS})\b"
VERB = r"(?: is| are)?"
FOUND_RELATIONS = {
    "left": rf"{GROUP}{VERB} (?:to the )?left of {GROUP}|{GROUP} on the left and {GROUP} on the r",
    "right": rf"{GROUP}{VERB} (?:to the )?right of {GROUP}|{GROUP} on the right and {GROUP} on the",
    "above": rf"{GROUP}{VERB} above {GROUP}|{GROUP} at the top and {GROUP} at the bottom",
    "below": rf"{GROUP}{VERB} below {GROUP}|{GROUP} at the bottom and {GROUP} at the top",
}
VOCABULARY = {
    "a", "above", "an", "and", "are", "at", "beach", "below", "bottom", "by", "field",
    "floor", "grass", "in", "inside", "is", "lawn", "left", "meadow", "of", "on", "one",
    "picture", "right", "room", "sand", "scene", "sea", "see", "seen", "snow", "snowy", "the",
    "there", "three", "to", "together", "top", "two", "we", "winter", "with",
}  # fmt: skip


def write(root, *, seed=0, num_train=1200, num_val=200, image_height=96, num_workers=1):
    coco.write_download(
        root,
        seed=seed,
        num_train=num_train,
        num_val=num_val,
        image_height=image_height,
        num_workers=num_workers,
    )
    return root


def digests(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    """The stand-in at its usual size."""
    return write(tmp_path_factory.mktemp("a") / "download")


@pytest.fixture(scope="module")
def files(download):
    """The annotation files by name and split."""
    return {
        (name, split): json.loads(
            (download / "annotations" / f"{name}_{split}2014.json").read_text(encoding="utf-8")
        )
        for name in ("captions", "instances")
        for split in coco.SPLITS
    }


@pytest.fixture(scope="module")
def images(files):
    """Entry of every picture by its id, of both splits."""
    return {i["id"]: i for split in coco.SPLITS for i in files["captions", split]["images"]}


@pytest.fixture(scope="module")
def instances(files):
    """Instances by picture."""
    found = defaultdict(list)
    for split in coco.SPLITS:
        for entry in files["instances", split]["annotations"]:
            found[entry["image_id"]].append(entry)
    return found


@pytest.fixture(scope="module")
def captions(files):
    """Captions by picture, as written."""
    found = defaultdict(list)
    for split in coco.SPLITS:
        for entry in files["captions", split]["annotations"]:
            found[entry["image_id"]].append(entry["caption"])
    return found


KIND_OF = {number: kind for kind, number in coco.CATEGORY_IDS.items()}


def groups_of(entries):
    """Boxes by kind and colour."""
    boxes = defaultdict(list)
    for entry in entries:
        boxes[KIND_OF[entry["category_id"]], entry["attributes"]["color"]].append(entry["bbox"])
    return boxes


def plain(caption):
    return " ".join(caption.split()).rstrip(".").lower()


def test_layout_and_keys_are_the_official_ones(download, files):
    assert sorted(p.name for p in download.iterdir()) == ["annotations", "train2014", "val2014"]
    for split, num in {"train": 1200, "val": 200}.items():
        captions, instances = files["captions", split], files["instances", split]
        assert set(captions) == {"info", "images", "licenses", "annotations"}
        assert set(instances) == {*captions, "categories"}
        assert captions["images"] == instances["images"]
        assert len(captions["images"]) == num
        names = {path.name for path in (download / f"{split}2014").iterdir()}
        assert names == {image["file_name"] for image in captions["images"]}
        for image in captions["images"]:
            assert set(image) == IMAGE_KEYS
            assert image["file_name"] == f"COCO_{split}2014_{image['id']:012d}.jpg"
            assert image["coco_url"] == image["flickr_url"] == ""
        assert all(set(a) == {"image_id", "id", "caption"} for a in captions["annotations"])
        assert all(set(a) == INSTANCE_KEYS for a in instances["annotations"])
        assert {c["name"]: c["id"] for c in instances["categories"]} == coco.CATEGORY_IDS
        assert all(set(c) == {"id", "name", "supercategory"} for c in instances["categories"])
        (licence,) = captions["licenses"]
        assert "synthesised by this project" in licence["name"].lower()
        assert {image["license"] for image in captions["images"]} == {licence["id"]}
    assert "http" not in json.dumps(list(files.values()))


def test_numbers_are_unique_over_both_splits_and_have_gaps(files):
    for name in ("captions", "instances"):
        both = [files[name, split] for split in coco.SPLITS]
        for key in ("images", "annotations"):
            numbers = [entry["id"] for content in both for entry in content[key]]
            assert len(set(numbers)) == len(numbers)
            assert max(numbers) > len(numbers)
        for content in both:
            described = {entry["image_id"] for entry in content["annotations"]}
            assert described == {image["id"] for image in content["images"]}


def test_pictures_have_the_sizes_that_are_written_down(download, images):
    ratios = set()
    for image in images.values():
        split = image["file_name"].split("_")[1]
        with Image.open(download / split / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
        assert min(picture.size) == 96
        assert max(picture.size) <= 128
        ratios.add(round(image["width"] / image["height"], 2))
    assert min(ratios) == 0.75
    assert max(ratios) == 1.33
    assert len(ratios) > 20


def test_five_to_seven_distinct_captions(captions, images):
    assert set(captions) == set(images)
    counts = [len(texts) for texts in captions.values()]
    assert set(counts) == {5, 6, 7}
    assert 5 < np.mean(counts) < 5.5
    for texts in captions.values():
        assert len({plain(text) for text in texts}) == len(texts)


def test_captions_vary_as_people_type(captions):
    texts = [text for found in captions.values() for text in found]
    shares = [
        np.mean([text.strip()[0].isupper() for text in texts]),
        np.mean([text.strip().endswith(".") for text in texts]),
    ]
    assert all(0.6 < share < 0.9 for share in shares)
    assert any(text.startswith(" ") for text in texts)
    assert any(text.endswith("\n") for text in texts)
    assert any("\n" in text.strip() for text in texts)
    words = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    assert words == VOCABULARY | {*coco.COLOURS, *coco.PLURALS, *SINGULAR}
    assert len({plain(text) for text in texts}) > 3000


def test_every_caption_agrees_with_the_instances(captions, instances):
    for number, texts in captions.items():
        groups = groups_of(instances[number])
        expected = sorted((len(boxes), colour, kind) for (kind, colour), boxes in groups.items())
        for text in texts:
            found = re.findall(GROUP, plain(text))
            stated = sorted((COUNTS[n], c, SINGULAR.get(noun, noun)) for n, c, noun in found)
            assert stated == expected
            for count, colour, noun in found:
                assert (noun in SINGULAR) == (COUNTS[count] > 1)
                assert count not in ("a", "an") or (count == "an") == (colour[0] in "aeiou")


def is_placed(relation, first, second):
    """Whether every box of the first group is on its side of every box of the second."""
    axis = 0 if relation in ("left", "right") else 1
    if relation in ("right", "below"):
        first, second = second, first
    return max(b[axis] + b[axis + 2] for b in first) <= min(b[axis] for b in second)


def test_relations_agree_with_the_boxes(captions, instances):
    seen, num_of_two = Counter(), 0
    for number, texts in captions.items():
        groups = groups_of(instances[number])
        num_of_two += len(texts) * (len(groups) == 2)
        for text in texts:
            hits = [(r, m) for r, p in FOUND_RELATIONS.items() if (m := re.search(p, plain(text)))]
            assert len(hits) == bool(
                re.search(r"left|right|above|below|\btop\b|\bbottom\b", plain(text))
            )
            for relation, match in hits:
                first, second = (
                    groups[SINGULAR.get(noun, noun), colour]
                    for _, colour, noun in re.findall(GROUP, match[0])
                )
                assert is_placed(relation, first, second)
                assert not is_placed(coco.RELATIONS[relation], first, second)
                seen[relation] += 1
    assert set(seen) == set(coco.RELATIONS)
    assert 0.5 * num_of_two < seen.total() < 0.8 * num_of_two


def test_objects_lie_in_the_central_square_and_apart(instances, images):
    for number, entries in instances.items():
        width, height = images[number]["width"], images[number]["height"]
        left, top = (width - 96) / 2, (height - 96) / 2
        for entry in entries:
            x, y, w, h = entry["bbox"]
            assert left < x < x + w < left + 96
            assert top < y < y + h < top + 96
            assert 0.3 * w * h < entry["area"] <= w * h + 0.02
            (polygon,) = (np.reshape(flat, (-1, 2)) for flat in entry["segmentation"])
            np.testing.assert_allclose(polygon.min(axis=0), (x, y), atol=0.02)
            np.testing.assert_allclose(polygon.max(axis=0), (x + w, y + h), atol=0.02)
            # Small enough to fit, large enough to be told apart at 64 x 64.
            assert max(w, h) * 64 / 96 > 14
        for one, two in combinations([entry["bbox"] for entry in entries], 2):
            assert any(
                a[axis] + a[axis + 2] < b[axis]
                for axis in (0, 1)
                for a, b in ((one, two), (two, one))
            )


def test_two_groups_differ_in_kind_and_colour(instances):
    num_groups, totals, seen = Counter(), set(), Counter()
    for entries in instances.values():
        groups = groups_of(entries)
        num_groups[len(groups)] += 1
        totals.add(len(entries))
        seen.update((kind, colour, len(boxes)) for (kind, colour), boxes in groups.items())
        assert len({kind for kind, _ in groups}) == len({c for _, c in groups}) == len(groups)
    assert set(num_groups) == {1, 2}
    assert totals == {1, 2, 3, 4, 5, 6}
    assert len(seen) == len(coco.KINDS) * len(coco.COLOURS) * coco.MAX_COUNT


def test_an_object_has_the_colour_that_is_written_down(download, files):
    hues = {"red": 355, "orange": 26, "yellow": 54, "green": 140, "blue": 223, "purple": 284}
    for image in files["instances", "val"]["images"]:
        picture = Image.open(download / "val2014" / image["file_name"])
        hsv = np.asarray(picture.convert("HSV")).astype(float)
        for entry in files["instances", "val"]["annotations"]:
            if entry["image_id"] != image["id"]:
                continue
            inside = Image.new("1", picture.size)
            ImageDraw.Draw(inside).polygon(entry["segmentation"][0], fill=1)
            pixels = hsv[np.asarray(inside)]
            strong = pixels[(pixels[:, 1] > 140) & (pixels[:, 2] > 70)][:, 0] * 360 / 255
            assert len(strong) > 0.15 * len(pixels)
            angle = np.deg2rad(strong)
            hue = np.rad2deg(np.arctan2(np.sin(angle).mean(), np.cos(angle).mean()))
            nearest = min(hues, key=lambda c: abs((hue - hues[c] + 180) % 360 - 180))
            assert nearest == entry["attributes"]["color"]


def test_equal_arguments_give_equal_bytes_and_another_seed_does_not(tmp_path):
    small = {"num_train": 10, "num_val": 3, "image_height": 64}
    first = digests(write(tmp_path / "a", **small))
    assert len(first) == 4 + 13
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "earlier").write_text("")
    assert digests(write(tmp_path / "b", num_workers=2, **small)) == first
    assert digests(write(tmp_path / "a", **small)) == first
    assert not set(first.values()) & set(digests(write(tmp_path / "c", seed=1, **small)).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, r"num_train must be at least 1.*got 0; use"),
        ({"num_val": 0}, r"num_val must be at least 1.*got 0; use"),
        ({"image_height": 32}, r"image_height must be at least 64.*got 32; use 96"),
    ],
)
def test_refused_arguments_leave_the_earlier_download(tmp_path, arguments, message):
    (tmp_path / "kept").write_text("")
    with pytest.raises(ValueError, match=message):
        write(tmp_path, **arguments)
    assert (tmp_path / "kept").exists()


def read_split(download, content, instances, split):
    """Central squares uint8 `[n, 64, 64, 3]`, and counts of kinds and presence of colours."""
    pictures, labels = [], defaultdict(list)
    for image in content["images"]:
        width, height = image["width"], image["height"]
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        with Image.open(download / f"{split}2014" / image["file_name"]) as picture:
            square = picture.crop((left, top, left + side, top + side))
            pictures.append(np.asarray(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS)))
        groups = groups_of(instances[image["id"]])
        counts = {kind: len(boxes) for (kind, _), boxes in groups.items()}
        for kind in coco.KINDS:
            labels[f"num_{coco.PLURALS[kind]}"].append(counts.get(kind, 0))
        for colour in coco.COLOURS:
            labels[f"has_{colour}"].append(int(any(c == colour for _, c in groups)))
    return np.stack(pictures), {name: np.asarray(values) for name, values in labels.items()}


def test_counts_and_colours_are_read_back_on_held_out_pictures(download, files, instances):
    train, val = (
        read_split(download, files["instances", split], instances, split) for split in coco.SPLITS
    )
    # A small network and small batches: within a minute it is steps that count, not width.
    model = fit_classifier(*train, num_epochs=24, batch_size=24, learning_rate=1e-2, width=12)
    accuracy = model.accuracy(*val)
    assert len(accuracy) == len(coco.KINDS) + len(coco.COLOURS)
    mean, lowest = np.mean(list(accuracy.values())), min(accuracy.values())
    assert lowest >= 0.95, f"mean {mean:.3f}, lowest {lowest:.3f}: {accuracy}"
    order = np.random.default_rng(0).permutation(len(val[0]))
    shuffled = model.accuracy(val[0], {name: values[order] for name, values in val[1].items()})
    for name, values in val[1].items():
        majority = np.bincount(values).max() / len(values)
        assert shuffled[name] < majority + 0.03, name
