"""Presets: every combination is valid, the default is one of them, comments survive."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from cdcd import presets
from cdcd.config import ConfigError, load_params
from cdcd.models import paper

ROOT = Path(__file__).resolve().parents[2]
NAMES = presets.list_presets(ROOT / "presets")
BEHAVIOURS = [name for name in NAMES if "/" not in name]
SCALES = [name for name in NAMES if "/" in name]
DATASETS = ("aist", "cub200", "coco", "imagenet")
DEMOS = [f"{name}/demo" for name in DATASETS]


def _is_rate(key: str) -> bool:
    # The scale's, unless a behaviour claims one.
    return key.endswith(".train.optimizer.learning_rate")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _keys(tree: object, prefix: str = "") -> set[str]:
    if not isinstance(tree, dict):
        return {prefix}
    return {key for name, value in tree.items() for key in _keys(value, f"{prefix}.{name}")}


def _preset_keys(name: str) -> set[str]:
    return _keys(yaml.safe_load(presets.show(name, ROOT / "presets")))


def test_the_named_sets_exist() -> None:
    assert set(BEHAVIOURS) == {"official", "paper", "fixed"}
    assert set(SCALES) == {
        *(f"{name}/{scale}" for name in DATASETS for scale in ("demo", "paper")),
        "imagenet/released",
    }
    assert all(NAMES.values())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_every_behaviour_at_every_scale_is_valid(here: Path, behaviour: str, scale: str) -> None:
    given = presets.apply([behaviour, scale])
    assert load_params("params.yaml") == given


def test_the_default_is_fixed_at_the_demo_scale(here: Path) -> None:
    before = Path("params.yaml").read_text(encoding="utf-8")
    presets.apply([*(name for name in SCALES if name not in DEMOS), "paper"])
    assert Path("params.yaml").read_text(encoding="utf-8") != before
    presets.apply([*DEMOS, "fixed"])
    assert yaml.safe_load(Path("params.yaml").read_text()) == yaml.safe_load(before)


def test_presets_of_a_kind_set_the_same_keys() -> None:
    # Otherwise going from one to another would leave values of the first behind.
    def fixed_keys(name: str) -> frozenset[str]:
        return frozenset(key for key in _preset_keys(name) if not _is_rate(key))

    assert len({fixed_keys(name) for name in BEHAVIOURS}) == 1
    for dataset in DATASETS:
        mine = [name for name in SCALES if name.startswith(f"{dataset}/")]
        assert len({frozenset(_preset_keys(name)) for name in mine}) == 1


def test_behaviours_and_scales_touch_different_keys() -> None:
    for behaviour in BEHAVIOURS:
        for scale in SCALES:
            shared = _preset_keys(behaviour) & _preset_keys(scale)
            assert all(map(_is_rate, shared))


def test_the_order_of_names_does_not_matter(here: Path) -> None:
    one = presets.apply(["paper", "aist/demo"])
    two = presets.apply(["aist/demo", "paper"])
    assert one == two
    assert one.train.optimizer.learning_rate == 4.5e-4


def test_behaviours_say_what_paper_vs_code_says(here: Path) -> None:
    official = presets.apply(["official"]).train
    assert official.contrast.chains == "shared"
    assert official.contrast.form == "linear"
    assert official.diffusion.schedule == "official"
    assert official.diffusion.adaptive == "increasing"
    assert official.diffusion.auxiliary_weight == 5e-4
    assert official.conditioner.kind == "single_token"
    assert official.conditioner.frozen
    assert official.conditioner.use_genre
    paper = presets.apply(["paper"]).train
    assert paper.contrast.chains == "parallel"
    assert paper.contrast.intra_unit == "waveform"
    assert paper.contrast.weight == 5e-5
    assert paper.diffusion.num_steps == 80
    assert paper.diffusion.t_sampling == "uniform"
    assert paper.diffusion.adaptive == "decreasing"
    assert paper.diffusion.auxiliary_weight == 0
    assert not paper.conditioner.use_genre
    assert not paper.conditioner.frozen


def test_the_paper_scale_has_the_papers_sizes(here: Path) -> None:
    params = presets.apply(["aist/paper"])
    assert (params.codec.hop, params.codec.num_codes) == (128, 2048)
    assert 22050 * params.shard.segment_seconds // params.codec.hop == 344
    denoiser = params.train.denoiser
    assert (denoiser.depth, denoiser.width, denoiser.num_heads) == (19, 1024, 16)


def test_behaviours_hold_for_pictures_too(here: Path) -> None:
    """paper_vs_code D6, D8, D9, D10, D42; tables 3 and 4 of the paper."""
    official = presets.apply(["official"])
    for dataset, mode, negatives, weight, truncation in (
        ("cub200", "sample", "inter", 5e-6, 0.85),
        ("coco", "step", "intra", 5e-5, 0.85),
        ("imagenet", "step", "intra", 5e-5, 0.86),
    ):
        mine = official.of(dataset)
        contrast = mine.train.contrast
        assert (contrast.mode, contrast.negatives, contrast.weight) == (mode, negatives, weight)
        assert mine.train.diffusion.adaptive == "opposed"
        assert mine.generate.truncation == truncation
    params = presets.apply(["paper"])
    for dataset in ("cub200", "coco", "imagenet"):
        mine = params.of(dataset)
        contrast = mine.train.contrast
        assert (contrast.mode, contrast.negatives, contrast.weight) == ("sample", "inter", 5e-5)
        assert mine.train.diffusion.num_steps == 80
        assert mine.train.optimizer.learning_rate == 4.5e-4
        assert mine.generate.truncation == 0.86


@pytest.mark.parametrize(
    ("scale", "network"),
    [
        ("cub200/paper", "text2image"),
        ("coco/paper", "text2image"),
        ("imagenet/released", "class2image"),
        ("imagenet/paper", "class2image_370m"),
    ],
)
def test_paper_scales_of_pictures_are_the_published_networks(
    here: Path, scale: str, network: paper.PaperNetwork
) -> None:
    params = presets.apply([scale]).of(scale.partition("/")[0])
    spec, denoiser, image = paper.paper_spec(network), params.train.denoiser, params.codec.image
    assert (denoiser.width, denoiser.depth, denoiser.num_heads) == (
        spec.width, spec.depth, spec.num_heads
    )  # fmt: skip
    assert denoiser.feedforward_multiple == spec.feedforward_multiple
    assert (denoiser.feedforward, denoiser.modulation) == (spec.feedforward, spec.modulation)
    side = image.image_size // 2 ** (len(image.multiples) - 1)
    assert spec.grid == (side, side)


def test_comments_stay(here: Path) -> None:
    def comments() -> list[str]:
        lines = Path("params.yaml").read_text(encoding="utf-8").splitlines()
        return [line.partition("#")[2] for line in lines]

    before = comments()
    presets.apply(["official", "aist/paper", "cub200/paper"])
    assert comments() == before


def test_unknown_names_are_refused(here: Path) -> None:
    before = Path("params.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"preset must be one of .*official.*: got offical"):
        presets.apply(["offical"])
    with pytest.raises(ConfigError, match="preset must be one of"):
        presets.show("../params")
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ("train: {nm_steps: 3}", "train.nm_steps is not a key"),
        ("train: 3", "train must be a section in both"),
        ("train: {num_steps: -3}", r"train.num_steps: .*greater than 0.*got -3"),
        ("train: {num_steps: '3'}", r"train.num_steps: .*got '3'"),
        ("- train", "must be a mapping"),
        ("train: [", "not YAML"),
        ("train: {contrast: {num_negatives: 0}}", "num_negatives must be at least 1"),
    ],
)
def test_a_bad_preset_changes_nothing(here: Path, overlay: str, words: str) -> None:
    (here / "presets" / "mine.yaml").write_text(overlay)
    before = Path("params.yaml").read_bytes()
    with pytest.raises(ConfigError, match=words) as caught:
        presets.apply(["mine"])
    assert "\n" not in str(caught.value)
    assert Path("params.yaml").read_bytes() == before
    assert not list(here.glob(".*partial"))
