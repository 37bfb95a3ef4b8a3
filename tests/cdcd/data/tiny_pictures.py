"""Tiny CUB and COCO downloads with the defects that real ones have."""

import hashlib
import json
import pickle
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((120, 90), (500, 333), (333, 500))
CUB_CLASSES = {
    "001.Black_footed_Albatross": "test",
    "002.Laysan_Albatross": "train",
    "003.Sooty_Albatross": "train",
    "004.Groove_billed_Ani": "test",
}
"""Class folders and their part of StackGAN's split."""
CUB_NAMES = {
    # As in the real set, the file's letter case is not the folder's.
    folder: [f"{folder}/{folder[4:].title()}_{number:04d}_{i}{number}" for number in range(1, 4)]
    for i, folder in enumerate(CUB_CLASSES, start=1)
}
CUB_MISSING = "003.Sooty_Albatross/Sooty_Albatross_0009_99"
"""In train's pickle; there is no such picture."""
CUB_SHORT = CUB_NAMES["002.Laysan_Albatross"][0]
"""Nine captions and a blank line."""
CUB_LATIN = CUB_NAMES["002.Laysan_Albatross"][1]
"""A caption with a byte that is no UTF-8."""
CUB_ATTRIBUTES = ("has_bill_shape::curved_(up_or_down)", "has_wing_color::blue", "has_size::small")


def write_picture(path: Path, size: tuple[int, int], is_grey: bool = False, seed: int = 0) -> None:
    """Write a JPEG of a colour gradient."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)[:, None]
    channels = [across + 0 * down, down + 0 * across, 0 * (across + down) + 40 * seed % 256]
    picture = Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))
    (picture.convert("L") if is_grey else picture).save(path, quality=90)


def cub_captions(name: str) -> bytes:
    """Return the caption file of a picture."""
    count = 9 if name == CUB_SHORT else 10
    lines = [f"This bird is  number {number} of {name[4:7]}.".encode() for number in range(count)]
    if name == CUB_SHORT:
        lines.append(b"  ")
    if name == CUB_LATIN:
        lines[3] = b"a bird on a caf\xe9 chair"
    return b"\n".join(lines) + b"\n"


def write_cub(
    root: Path,
    *,
    images: str = "CUB_200_2011/images",
    captions: str = "text/text",
    pickles: str | None = "",
    crlf: bool = False,
    has_lists: bool = True,
    has_attributes: bool = False,
) -> Path:
    """Write four classes of three pictures.

    Args:
        root: where to.
        images: the folder of class folders; lists lie beside it.
        captions: the folder of caption folders.
        pickles: the folder of train/ and test/ with StackGAN's lists, or None for none.
        crlf: whether pickles and lists came through a conversion of line ends.
        has_lists: images.txt and its like.
        has_attributes: what people saw in each picture.
    """
    end = "\r\n" if crlf else "\n"
    names = [name for group in CUB_NAMES.values() for name in group]
    for number, name in enumerate(names):
        size = (256, 256) if number == 3 else SIZES[number % 3]
        write_picture(root / images / f"{name}.jpg", size, is_grey=number % 3 == 1, seed=number)
        path = root / captions / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cub_captions(name))
    base = (root / images).parent
    if has_lists:
        rows = list(enumerate(names, start=1))
        lists = {
            "images.txt": [f"{i} {name}.jpg" for i, name in rows],
            # Across all classes, unlike StackGAN's split.
            "train_test_split.txt": [f"{i} {int(i % 3 != 0)}" for i, _ in rows],
            "classes.txt": [f"{int(folder[:3])} {folder}" for folder in CUB_CLASSES],
        }
        for file, lines in lists.items():
            (base / file).write_bytes("".join(f"{line} {end}" for line in lines).encode())
    if has_attributes:
        labels = base / "attributes" / "image_attribute_labels.txt"
        labels.parent.mkdir()
        lines = [
            # The published file has such lines with columns too many.
            f"{i} {a} {int(i % (a + 1) == 0)} 3 {'0 ' if i == 2 else ''}1.509"
            for i in range(1, len(names) + 1)
            for a in range(1, len(CUB_ATTRIBUTES) + 1)
        ]
        labels.write_bytes("".join(f"{line}{end}" for line in [*lines, "damaged"]).encode())
        rows = [f"{a} {name}{end}" for a, name in enumerate(CUB_ATTRIBUTES, start=1)]
        (base.parent / "attributes.txt").write_bytes("".join(rows).encode())
    if pickles is not None:
        write_cub_pickles(root / pickles, crlf)
    return root


def write_cub_pickles(folder: Path, crlf: bool = False) -> None:
    """Write filenames.pickle and class_info.pickle of both parts as Python 2 did: protocol 0."""
    for split in ("train", "test"):
        names = [n for f, part in CUB_CLASSES.items() if part == split for n in CUB_NAMES[f]]
        names += [CUB_MISSING] if split == "train" else []
        lines = [f"S'{name}'\np{number}\na" for number, name in enumerate(names, start=1)]
        numbers = [np.int64(int(name[:3])) for name in names]
        files = {
            "filenames.pickle": f"(lp0\n{''.join(lines)}.".encode(),
            "class_info.pickle": pickle.dumps(numbers, protocol=0),
        }
        for file, data in files.items():
            path = folder / split / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.replace(b"\n", b"\r\n") if crlf else data)


COCO_TRAIN = {9: 5, 25: 6, 30: 5}
"""Numbers of captions by picture id; 25 is grey."""
COCO_MISSING, COCO_BLANK = 34, 36
"""Listed without a file; with captions of blanks only."""
COCO_VAL = {26: 5}


def coco_json(split: str, counts: dict[int, int]) -> dict:
    """Return the captions json of pictures with so many captions each."""
    images = [
        {
            "license": 1 + number % 2,
            "file_name": f"COCO_{split}2014_{number:012d}.jpg",
            "coco_url": "",
            "height": 90,
            "width": 120,
            "id": number,
        }
        for number in reversed(counts)
    ]
    annotations = [
        {"image_id": number, "id": 1000 * number + 7 * i, "caption": f" A Cat\n of {number}, {i}. "}
        for i in reversed(range(max(counts.values())))
        for number, count in counts.items()
        if i < count
    ]
    annotations.append({"image_id": next(iter(counts)), "id": 999_000, "caption": "\n"})
    licenses = [{"url": "u", "id": 1, "name": "CC BY"}, {"url": "u", "id": 2, "name": "CC BY-NC"}]
    info = {"description": "tiny", "year": 2014, "nested": [[1.5], None]}
    return {"info": info, "images": images, "licenses": licenses, "annotations": annotations}


def coco_instances(split: str, counts: dict[int, int]) -> dict:
    """Return the instances json: in picture n, n mod 3 objects."""
    tree = coco_json(split, counts)
    annotations = [
        {
            "segmentation": [[1.0, 2.5, 3.0, 4.0]] if i else {"counts": [3, 4], "size": [90, 120]},
            "area": 12.5,
            "iscrowd": 1 - min(i, 1),
            "image_id": number,
            "bbox": [1.5, 2.0, 30.25, 40],
            "category_id": (18, 17)[i],
            "id": 10 * number + i,
            **({"attributes": {"color": "red"}} if i else {}),
        }
        for number in counts
        for i in range(number % 3)
    ]
    categories = [
        {"supercategory": "animal", "id": 17, "name": "cat"},
        {"supercategory": "animal", "id": 18, "name": "dog"},
    ]
    return {**tree, "annotations": annotations, "categories": categories}


def write_coco(
    root: Path,
    *,
    is_nested: bool = False,
    has_instances: bool = False,
    splits: Iterable[str] = ("train", "val"),
) -> Path:
    """Write five pictures of train, of which three are usable, and one of val."""
    (root / "annotations").mkdir(parents=True)
    for split in splits:
        counts = COCO_TRAIN if split == "train" else COCO_VAL
        listed = dict(counts)
        if split == "train":
            listed |= {COCO_MISSING: 1, COCO_BLANK: 0}
        tree = coco_json(split, listed)
        if split == "train":
            tree["annotations"].append({"image_id": COCO_BLANK, "id": 5, "caption": " \n "})
        write_json(root, "captions", split, tree)
        if has_instances:
            write_json(root, "instances", split, coco_instances(split, listed))
        folder = root / f"{split}2014"
        for number in listed:
            if number != COCO_MISSING:
                path = folder / (folder.name if is_nested else "")
                file = path / f"COCO_{split}2014_{number:012d}.jpg"
                write_picture(file, (120, 90), is_grey=number == 25, seed=number)
    return root


def write_json(root: Path, kind: str, split: str, tree: object) -> Path:
    """Write one annotation file."""
    path = root / "annotations" / f"{kind}_{split}2014.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def contents(root: Path) -> dict[str, tuple[str, int]]:
    """Return checksum and time of every file below a folder."""
    return {
        str(path.relative_to(root)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
        )
        for path in sorted(root.rglob("*"))
    }
