from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cdcd.data.cache import read_split, write_split
from cdcd.data.files import write_json
from cdcd.data.samples import Caption, Picture
from cdcd.data.shards import write_shards
from cdcd.evaluation.pictures import evaluate_pictures, stand_in
from cdcd.evaluation.pictures.evaluate import make_viewer
from cdcd.evaluation.systems import GeneratedError

SIDE, CELL = 32, 8
RGB = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
PAIRS = [(a, b) for a in RGB for b in RGB if a != b]


def paint(body: str, wing: str, rng: np.random.Generator) -> np.ndarray:
    """A bird of two halves: body above, wing below; wings are dark, so that they are told apart."""
    image = np.empty((SIDE, SIDE, 3))
    image[: SIDE // 2], image[SIDE // 2 :] = RGB[body], np.array(RGB[wing]) / 2
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def tokens_of(image: np.ndarray) -> np.ndarray:
    """The mean colour of each cell as one number: what the fake codec decodes."""
    cells = image.reshape(SIDE // CELL, CELL, SIDE // CELL, CELL, 3).mean(axis=(1, 3)).astype(int)
    return (cells @ np.array([65536, 256, 1])).reshape(-1).astype(np.int32)


def decode(tokens: torch.Tensor) -> torch.Tensor:
    side = round(tokens.shape[1] ** 0.5)
    cells = torch.stack([tokens >> 16, (tokens >> 8) & 255, tokens & 255], 1).to(torch.uint8)
    grid = cells.view(len(tokens), 3, side, side)
    return grid.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)


class Encoder:
    """Mean colour of the picture against the colours that a caption names."""

    context_length = 77
    model = SimpleNamespace(
        config=SimpleNamespace(
            vision_config=SimpleNamespace(patch_size=8, hidden_size=3, num_hidden_layers=1),
            text_config=SimpleNamespace(hidden_size=3),
        )
    )

    @classmethod
    def load(cls, folder, device="cpu"):
        return cls()

    def identity(self):
        return {"name": "colours", "sha256": "0"}

    def tokenize(self, texts):
        return SimpleNamespace(truncated=torch.tensor([len(text) > 200 for text in texts]))

    def text_features(self, texts):
        rows = [np.sum([RGB[c] for c in RGB if c in text], axis=0) for text in texts]
        return torch.tensor(np.stack(rows), dtype=torch.float32)

    def image_features(self, images):
        return torch.tensor(np.asarray(images, np.float32).mean(axis=(1, 2)) + 1)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch, bits_without_model):
    monkeypatch.setattr(
        "cdcd.codecs.store.load_picture_codec", lambda folder: SimpleNamespace(decode=decode)
    )
    monkeypatch.setattr("cdcd.features.text.TextEncoder", Encoder)
    training = {"num_epochs": 12, "batch_size": 16, "learning_rate": 6e-3, "width": 8}
    quick = {
        name: dataclasses.replace(one, training=training)
        for name, one in stand_in.STAND_INS.items()
    }
    monkeypatch.setattr(stand_in, "STAND_INS", quick)


def write_inputs(folder: Path, dataset: str = "cub200", num_test: int = 24) -> dict[str, Path]:
    """Shards, tokens and generated sets; the model obeys most of the time."""
    names = ("generated", "shards", "codec", "encoder", "tokens", "features", "model", "report")
    paths = {f"{name}_dir": folder / name for name in names}
    paths |= {"metrics_path": folder / "metrics.json", "plot_path": folder / "metrics.png"}
    rng = np.random.default_rng(0)
    pictures = []
    for split, count in (("train", 60), ("test", num_test)):
        for i in range(count):
            label = i % len(PAIRS)
            body, wing = PAIRS[label]
            texts = (f"a {body} bird with {wing} wings", f"this {body} bird has {wing} wings")
            captions = tuple(Caption(str(j), text) for j, text in enumerate(texts))
            key, meta = f"{split}{i:03d}", {"class": f"{body} {wing}"}
            image = paint(body, wing, rng)
            own = captions if dataset == "cub200" else ()
            pictures.append(Picture(key, split, image, own, label, meta))
    write_shards(paths["shards_dir"], pictures)
    test = [picture for picture in pictures if picture.split == "test"]
    tokens = np.stack([tokens_of(picture.image) for picture in test])
    info = {"keys": [p.key for p in test], "labels": [p.label for p in test]}
    write_split(paths["tokens_dir"], "test", {"tokens": tokens[:, None]}, info)
    if dataset == "cub200":
        asked = [(*pair, p) for p in test for pair in p.pairs()]
    else:
        asked = [(p.key, None, p) for p in test]
    for system in ("model", "unconditioned"):
        for seed in (0, 1):
            rng = np.random.default_rng(10 + seed)
            images = []
            for _, _, picture in asked:
                obeys = system == "model" and rng.random() < 0.9
                label = picture.label if obeys else rng.integers(len(PAIRS))
                images.append(paint(*PAIRS[label], rng))
            info = {
                "keys": [key for key, _, _ in asked],
                "picture_keys": [picture.key for _, _, picture in asked],
                "captions": [text for _, text, _ in asked] if dataset == "cub200" else None,
                "labels": [picture.label for _, _, picture in asked],
                **{"system": system, "seed": seed, "init": "mask", "guidance": 3.0},
                **{"truncation": 0.86, "stride": 2, "image_size": SIDE},
            }
            arrays = {"images": np.stack(images), "tokens": np.zeros((len(asked), 16), np.int32)}
            write_split(paths["generated_dir"], f"{system}-seed{seed}", arrays, info)
    return paths


@pytest.fixture
def params(make_params):
    return make_params({"evaluate": {"num_bootstrap": 300}})


def test_whole_table_of_captions(tmp_path, params, recorder, links_of):
    paths = write_inputs(tmp_path)
    found = evaluate_pictures(params, dataset="cub200", **paths, tracker=recorder)
    assert json.loads(paths["metrics_path"].read_text()) == found
    systems = found["systems"]
    assert list(systems) == ["real", "codec_reconstruction", "model", "unconditioned", "shuffled"]
    accuracy = {name: row["attribute_accuracy"]["mean"] for name, row in systems.items()}
    assert accuracy["real"] > 0.95
    assert accuracy["codec_reconstruction"] > 0.9
    assert 0.85 < accuracy["model"] < 1
    assert max(accuracy["unconditioned"], accuracy["shuffled"]) < 0.6
    model = systems["model"]
    assert set(model["attributes"]) == {"body", "wing"}  # what no caption tells has no head
    assert model["all_attributes"]["mean"] <= model["attribute_accuracy"]["mean"]
    score = model["attribute_accuracy"]
    assert score["ci_low"] < score["mean"] < score["ci_high"]
    assert (score["n"], score["n_skipped"], score["num_seeds"]) == (48, 0, 2)
    assert score["std_seeds"] is not None
    assert score["ci_cluster_low"] is not None
    assert systems["shuffled"]["num_seeds"] == 2
    assert "class_accuracy" not in model  # held-out species are not those of training
    assert "fid" not in model
    distance = model["fid_stand_in"]
    assert (distance["n_real"], distance["n_gen"], distance["ci_low"]) == (24, 48, None)
    assert abs(systems["real"]["fid_stand_in"]["mean"]) < 1e-4
    assert 0 < distance["mean"] < systems["codec_reconstruction"]["fid_stand_in"]["mean"] * 100
    assert "fid_stand_in" not in systems["shuffled"]
    assert model["clip_s"]["mean"] > systems["shuffled"]["clip_s"]["mean"]
    ratio = model["clip_s"]["mean"] / model["clip_cos100"]["mean"]
    assert ratio == pytest.approx(0.025, rel=1e-4)
    assert model["bits_per_token"]["mean"] == 5.0
    assert systems["unconditioned"]["bits_per_token"]["mean"] == 6.0
    for control in ("shuffled", "unconditioned"):
        versus = found["comparisons"][f"model_vs_{control}"]["attribute_accuracy"]
        assert versus["ci_low"] > 0
        assert versus["ci_cluster_low"] > 0
        assert versus["intervals_overlap"] is versus["intervals_overlap_by_cluster"] is False
    held_out = found["config"]["classifier"]["held_out_accuracy"]
    assert set(held_out) == {"body", "wing"}
    assert min(held_out.values()) > 0.9
    assert found["config"]["features"]["what"] == "stand-in features, not comparable with the paper"
    assert found["config"]["clip"]["name"] == "colours"
    assert found["config"]["num_conditions"] == 48
    assert found["comparable_to_paper"] is False
    for reason in ("embedded stand-in", "not of ViT-B/32", "32 pixels", "48 conditions"):
        assert reason in found["comparable_to_paper_why"]
    assert any("fewer than 2048 pictures" in line for line in found["warnings"])
    assert any("rank_deficient" in line for line in found["warnings"])
    key = "model.attribute_accuracy.mean"
    assert recorder.metrics[key] == pytest.approx(accuracy["model"])
    assert recorder.files[:4] == ["metrics.json", "metrics.png", "index.html", "table.md"]
    assert set(recorder.files[4:]) == {
        *("rows.png", "model-seed0.png", "unconditioned-seed0.png"),
    }
    assert paths["plot_path"].read_bytes().startswith(b"\x89PNG")
    table = (paths["report_dir"] / "table.md").read_text()
    assert "| codec reconstruction |" in table
    assert "attributes told, % (classifier right on real: " in table
    details = json.loads((paths["report_dir"] / "scores.json").read_text())["systems"]
    metric = details["model"]["seed1"]["attribute_accuracy"]
    assert metric["n"] + metric["n_skipped"] == metric["n_total"] == 48
    page = (paths["report_dir"] / "index.html").read_text()
    links = links_of(page)
    assert len(links) == 1 + 10 * 4  # the figure; ten conditions in four rows
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "bird" in page
    for text in (page, table):
        assert "Not to be set beside published numbers: cub200: the pictures are the" in text
    assert evaluate_pictures(params, dataset="cub200", **paths) == found


def test_whole_table_of_classes(tmp_path, params):
    paths = write_inputs(tmp_path, "imagenet")
    found = evaluate_pictures(params, dataset="imagenet", **paths)
    systems = found["systems"]
    assert systems["real"]["class_accuracy"]["mean"] > 0.95
    assert systems["model"]["class_accuracy"]["mean"] > 0.75
    assert systems["shuffled"]["class_accuracy"]["mean"] < 0.3
    assert systems["model"]["top5_accuracy"]["mean"] >= systems["model"]["class_accuracy"]["mean"]
    for name in ("attribute_accuracy", "attributes", "clip_s", "fid"):
        assert name not in systems["model"]
    versus = found["comparisons"]["model_vs_shuffled"]["class_accuracy"]
    assert versus["intervals_overlap"] is False
    assert found["config"]["clip"] is None
    assert found["config"]["classifier"]["held_out_accuracy"]["class"] > 0.95
    table = (paths["report_dir"] / "table.md").read_text()
    assert "## Accuracy by class" in table
    assert "| 0 red green | 100.0 |" in table
    assert "class 0: red green" in (paths["report_dir"] / "index.html").read_text()


def test_conditions_that_a_system_lacks_are_counted(tmp_path, params):
    paths = write_inputs(tmp_path, "imagenet")
    for seed in (0, 1):
        stored = read_split(paths["generated_dir"], f"unconditioned-seed{seed}")
        lists = ("keys", "picture_keys", "labels")
        info = stored.info | {name: stored.info[name][:20] for name in lists}
        arrays = {name: np.array(rows[:20]) for name, rows in stored.arrays.items()}
        write_split(paths["generated_dir"], f"unconditioned-seed{seed}", arrays, info)
    found = evaluate_pictures(params, dataset="imagenet", **paths)["systems"]
    score = found["unconditioned"]["class_accuracy"]
    assert (score["n"], score["n_skipped"]) == (20, 8)
    assert found["model"]["class_accuracy"]["n_skipped"] == 0


def test_a_real_download_has_no_columns_that_only_a_stand_in_can_have(tmp_path, params, caplog):
    paths = write_inputs(tmp_path)
    write_json(paths["shards_dir"] / "summary.json", {"embedded": False})
    found = evaluate_pictures(params, dataset="cub200", **paths)
    assert set(found["systems"]["model"]) == {
        *("num_seeds", "n", "clip_s", "clip_cos100", "bits_per_token"),
    }
    assert found["config"]["classifier"] is found["config"]["features"] is None
    for name in ("table.md", "index.html"):
        text = (paths["report_dir"] / name).read_text()
        assert "No Fréchet distance could be computed; the warnings say why." in text
        assert "no Fréchet distance: the pictures are a real download" in text
    assert "no Fréchet distance" in caplog.text  # told at once, not only at the end
    assert any("give inception_weights" in line for line in found["warnings"])
    assert "embedded" not in found["comparable_to_paper_why"]


def test_given_networks_are_used_for_a_real_download(tmp_path, make_params, monkeypatch):
    paths = write_inputs(tmp_path, "imagenet")
    write_json(paths["shards_dir"] / "summary.json", {"embedded": False})
    for name in ("inception", "resnet"):
        (tmp_path / name).write_bytes(b"")

    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.float().mean(dim=(2, 3)).repeat(1, 2)

    loaders = ("inception.load_inception", "resnet.load_resnet101")
    for loader in loaders:
        monkeypatch.setattr(f"cdcd.evaluation.networks.{loader}", lambda path: Mean())
    image = {"features": "inception", "inception_weights": str(tmp_path / "inception")}
    image["resnet_weights"] = str(tmp_path / "resnet")
    params = make_params({"evaluate": {"num_bootstrap": 50, "image": image}})
    found = evaluate_pictures(params, dataset="imagenet", **paths)
    model = found["systems"]["model"]
    assert "fid_stand_in" not in model
    assert model["fid"]["mean"] > 0
    assert {"class_accuracy", "top5_accuracy"} <= set(model)
    features, classifier = found["config"]["features"], found["config"]["classifier"]
    assert features["preset"] == "fid/torch-fidelity-compatible"
    assert len(features["sha256"]) == len(classifier["sha256"]) == 64
    assert classifier["preset"] == "resnet101/IMAGENET1K_V1"
    assert "the Inception weights are not the public file" in found["comparable_to_paper_why"]


def test_inception_without_weights_is_no_parameter(make_params):
    with pytest.raises(ValueError, match=r"evaluate\.image\.inception_weights must") as error:
        make_params({"evaluate": {"image": {"features": "inception"}}})
    assert "got null; give the path, or set features: stand_in" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("dataset", "name", "remedy"),
    [
        ("cub200", "inception_weights", "or set evaluate.image.features: stand_in"),
        ("cub200", "clip_weights", "for the encoder that the model reads"),
        ("imagenet", "resnet_weights", "for no class accuracy"),
    ],
)
def test_weights_that_are_not_there_are_told_before_anything_is_read(
    tmp_path, make_params, dataset, name, remedy
):
    paths = write_inputs(tmp_path, dataset)
    write_json(paths["shards_dir"] / "summary.json", {"embedded": False})
    for path in (*paths["generated_dir"].glob("*"), *paths["tokens_dir"].glob("*")):
        path.write_bytes(b"damaged")
    image = {name: str(tmp_path / "none.pth")}
    if name == "inception_weights":
        image["features"] = "inception"
    params = make_params({"evaluate": {"image": image}})
    with pytest.raises(ValueError, match=f"evaluate.image.{name} must be .*none.pth") as error:
        evaluate_pictures(params, dataset=dataset, **paths)
    assert remedy in str(error.value)
    assert "\n" not in str(error.value)


def test_the_report_says_where_its_clip_is_from(tmp_path, params):
    paths = write_inputs(tmp_path)
    paths["encoder_dir"].mkdir()
    note = "own small CLIP trained on 10 pairs; not comparable with the paper"
    write_json(paths["encoder_dir"] / "summary.json", {"source": "trained", "note": note})
    found = evaluate_pictures(params, dataset="cub200", **paths)
    assert found["config"]["clip"]["facts"] == note


def test_weights_of_imagenet_classes_are_not_used_for_a_stand_in(tmp_path, make_params):
    paths = write_inputs(tmp_path, "imagenet")
    params = make_params({"evaluate": {"image": {"resnet_weights": "none"}}})
    viewer, warnings = make_viewer(
        params, "imagenet", paths["shards_dir"], tmp_path, SIDE, [], embedded=True
    )
    assert viewer.resnet is None
    assert "resnet_weights are not used" in warnings[0]
    given = {"features": "inception", "inception_weights": str(tmp_path / "none.pth")}
    params = make_params({"evaluate": {"image": given}})
    with pytest.raises(ValueError, match=r"none.pth must hold the FID Inception.*no such file"):
        make_viewer(params, "imagenet", paths["shards_dir"], tmp_path, SIDE, [], embedded=True)


def test_refused_inputs_leave_earlier_outputs_alone(tmp_path, params):
    paths = write_inputs(tmp_path, "imagenet")
    paths["metrics_path"].write_text("earlier")
    stored = read_split(paths["generated_dir"], "model-seed0")
    arrays = {name: np.array(rows) for name, rows in stored.arrays.items()}

    def refused(match, info=None):
        write_split(paths["generated_dir"], "model-seed0", arrays, stored.info | (info or {}))
        with pytest.raises(ValueError, match=match) as error:
            evaluate_pictures(params, dataset="imagenet", **paths)
        assert "\n" not in str(error.value)
        assert paths["metrics_path"].read_text() == "earlier"
        assert not paths["report_dir"].exists()

    refused("cannot enter the main table", {"init": "reference"})
    strangers = [f"x{i}" for i in range(len(stored.info["keys"]))]
    refused("must belong to split test: got x0 and 23 more", {"picture_keys": strangers})
    labels = stored.info["labels"]
    refused("test000 differs; run `generate` again", {"labels": labels[::-1]})
    tokens = read_split(paths["tokens_dir"], "test")
    shorter = {"tokens": np.zeros((24, 1, 4), np.int32)}
    write_split(paths["tokens_dir"], "test", shorter, tokens.info)
    refused("must draw pictures of 32 x 32 pixels, as generated: got 16 x 16")
    for path in paths["generated_dir"].glob("*"):
        path.unlink()
    with pytest.raises(GeneratedError, match="got no set"):
        evaluate_pictures(params, dataset="imagenet", **paths)


def test_one_picture_has_no_shuffled_row(tmp_path, params):
    paths = write_inputs(tmp_path, "imagenet")
    for path in list(paths["generated_dir"].glob("*.safetensors")):
        stored = read_split(paths["generated_dir"], path.stem)
        info = {k: v[:1] if isinstance(v, list) else v for k, v in stored.info.items()}
        arrays = {name: np.array(rows[:1]) for name, rows in stored.arrays.items()}
        write_split(paths["generated_dir"], path.stem, arrays, info)
    found = evaluate_pictures(params, dataset="imagenet", **paths)
    assert "shuffled" not in found["systems"]
    assert found["systems"]["model"]["class_accuracy"]["n"] == 1
    assert any("no row shuffled" in line for line in found["warnings"])
    assert any("at least 2 pictures a side" in line for line in found["warnings"])
