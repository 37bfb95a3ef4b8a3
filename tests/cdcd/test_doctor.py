"""The doctor's screen: short, complete, and right about what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cdcd import doctor


@pytest.mark.parametrize(
    ("installed", "rule", "holds"),
    [
        ("2.13.0+cpu", ">=2.13", True),
        ("2.12.9", ">=2.13", False),
        ("0.151.0", "<0.151", False),
        ("0.150.3", "<0.151", True),
        ("2.1", ">=2.0,<2.1", False),
        ("2.0.58", "<2.1,>=2.0", True),
        ("3.9.0", "", True),
    ],
)
def test_version_rules(installed: str, rule: str, holds: bool) -> None:
    assert doctor.satisfies(installed, rule) is holds


def test_the_screen_of_the_repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    text = doctor.report()
    assert len(text.splitlines()) <= 60
    assert max(map(len, text.splitlines())) <= 110
    words = (
        "python torch triton device: threads precision kernels: params: dvc: mlflow: model: disk:"
    )
    for word in words.split():
        assert word in text, word
    for key in (
        "codec.weights",
        "featurize.i3d_weights",
        "evaluate.vggish_weights",
        "codec.image.weights",
        "codec.text.weights",
        "evaluate.image.inception_weights",
        "evaluate.image.resnet_weights",
    ):
        assert f"{key}: not set; would enable" in text


def test_what_is_wrong_is_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = yaml.safe_load((root / "params.yaml").read_text())
    tree["codec"]["weights"] = "nowhere/vqvae.pth.tar"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    text = doctor.report()
    assert "codec.weights: nowhere/vqvae.pth.tar is MISSING" in text
    assert "no pipeline here" in text
    assert "none trained on aist" in text
    (tmp_path / "params.yaml").write_text("train: 3")
    assert "params: params.yaml: " in doctor.report()


def test_a_trained_model_is_found(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text((root / "params.yaml").read_text())
    for folder, name in (("models", "model"), ("codecs", "codec")):
        (tmp_path / "data" / folder / "aist").mkdir(parents=True)
        (tmp_path / "data" / folder / "aist" / f"{name}.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert "data/models/aist and data/codecs/aist" in doctor.report()
