"""Licences: one table for the README and the model cards, and the strictest of all decides."""

from __future__ import annotations

from typing import Any

import pytest

from cdcd.data.samples import TASKS
from cdcd.features.clip import NAME
from cdcd.licences import KINDS, SMALL_CLIP, TERMS, of_data, of_weights, strictest
from tests.conftest import ROOT

BY_PATH = {"i3d", "clip", "vqgan", "lpips"}
"""In one row of README's."""


def test_the_readme_has_every_row() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in set(TERMS) - BY_PATH:
        one = TERMS[name]
        assert f"| {one.what} | {one.terms} | {one.here} |" in readme, name
    (row,) = [line for line in readme.splitlines() if line.startswith("| I3D, VGGish, CLIP")]
    assert all(TERMS[name].terms in row for name in BY_PATH)


@pytest.mark.parametrize("dataset", TASKS)
def test_every_dataset_has_terms_and_its_stand_in_is_free(dataset: str) -> None:
    assert KINDS.index(strictest(of_data(dataset, False))) >= KINDS.index("publishers-terms")
    stand_in = strictest(of_data(dataset, True))
    assert stand_in == ("attribution" if dataset == "imagenet" else "apache-2.0")


@pytest.mark.parametrize(
    ("model", "codec", "names"),
    [
        ({}, {}, []),
        ({"encoder": {"name": NAME}}, {"kind": "vqgan", "facts": {"source": "trained"}}, []),
        ({}, {"kind": "jukebox", "facts": {"source": "released"}}, ["jukebox"]),
        ({}, {"kind": "vqgan", "facts": {"source": "released"}}, ["vqgan"]),
        ({"video_feature": {"name": "i3d"}}, {}, ["i3d"]),
        ({"video_feature": {"name": "cells"}}, {}, []),
        ({"encoder": {"name": "openai/clip-vit-base-patch32"}}, {}, ["clip"]),
        ({}, {"facts": {"perceptual_loss": "LPIPS with the weights given"}}, ["lpips"]),
        ({}, {"facts": {"perceptual_loss": "ssim+gradient, no LPIPS weights given"}}, []),
    ],
)
def test_weights_of_others_are_found(
    model: dict[str, Any], codec: dict[str, Any], names: list[str]
) -> None:
    assert of_weights(model, codec) == [TERMS[name] for name in names]


def test_the_small_clip_is_our_own() -> None:
    assert SMALL_CLIP == NAME


def test_one_strict_part_makes_all_strict() -> None:
    free = of_data("cub200", True)
    assert strictest([*free, TERMS["jukebox"]]) == "non-commercial"
    assert strictest([]) == "apache-2.0"
