import dataclasses

import numpy as np
import pytest

from cdcd.data.embedded import coco, cub200
from cdcd.data.samples import Caption, Picture
from cdcd.evaluation.pictures import stand_in
from cdcd.evaluation.pictures.stand_in import STAND_INS, fit_reader, small

BLANK = np.zeros((8, 8, 3), np.uint8)


def test_what_captions_of_birds_tell_is_what_their_pictures_show():
    for species in cub200.plan(20):
        captions = cub200.make_captions(species, np.random.default_rng(species.class_id))
        listed = [f"{cub200.OFFICIAL_NAMES[a]}::{v}" for a, v in species.attributes.items()]
        named = tuple(Caption(str(i), text.lower()) for i, text in enumerate(captions))
        for meta in ({"attributes": listed}, {}):
            picture = Picture("a", "test", BLANK, named, 0, meta)
            assert STAND_INS["cub200"].shown(picture) == species.attributes
        for caption in named:
            told = STAND_INS["cub200"].told(caption.text)
            assert told.items() <= species.attributes.items()
            assert {"body", "wing"} <= set(told)


def test_what_captions_of_scenes_tell_is_what_their_pictures_show():
    read = STAND_INS["coco"]
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scene = coco.draw_scene(rng)
        objects = [
            {"category": g.kind, "attributes": {"color": g.colour}, "bbox": [0, 0, 1, 1]}
            for g in scene.groups
            for _ in range(g.count)
        ]
        shown = read.shown(Picture("a", "val", BLANK, (), None, {"objects": objects}))
        assert set(shown) == set(read.values)
        assert all(value in read.values[name] for name, value in shown.items())
        for caption in coco.write_captions(scene, rng):
            told = read.told(" ".join(caption.lower().split()))
            assert len(told) == 2 * len(scene.groups)
            assert told.items() <= shown.items()
    assert read.shown(Picture("a", "val", BLANK)) == {}
    assert read.told("three purple cars left of an orange box") == {
        "count of car": "3",
        "colour of car": "purple",
        "count of box": "1",
        "colour of box": "orange",
    }
    assert {read.family(name) for name in read.values} == {"count", "colour"}


def test_classes_are_read_and_unknown_labels_are_left_out(monkeypatch):
    training = {"num_epochs": 6, "batch_size": 16, "learning_rate": 6e-3, "width": 8}
    changed = dataclasses.replace(STAND_INS["imagenet"], training=training)
    monkeypatch.setattr(stand_in, "STAND_INS", {"imagenet": changed})

    def pictures(split, seed):
        rng = np.random.default_rng(seed)
        for i in range(60):
            colour = np.eye(3)[i % 3] * 200
            image = (colour + rng.integers(0, 50, (32, 40, 3))).astype(np.uint8)
            yield Picture(f"k{i:03d}", split, image, (), i % 3 if i != 5 else None)

    reader = fit_reader("imagenet", pictures("train", 0), 32, 0)
    assert (reader.num_train, reader.attributes) == (60, [])
    squares = np.stack([small(p.image[None, :, 4:36])[0] for p in pictures("val", 1)])
    features, logits = reader.classifier.look(squares)
    assert features.shape == (60, 8 * 8)
    assert np.mean(logits["class"].argmax(1) == np.arange(60) % 3) > 0.95
    found = reader.classifier.predict(squares)["class"]
    np.testing.assert_array_equal(logits["class"].argmax(1), found)

    with pytest.raises(ValueError, match="got 1 pictures and no label"):
        fit_reader("imagenet", [Picture("a", "train", BLANK)], 32, 0)
