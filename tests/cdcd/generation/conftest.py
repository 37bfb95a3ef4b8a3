"""One tiny pipeline for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdcd.generation import PictureGenerator
from cdcd.models.picture_conditioner import ClassSpec
from tests.cdcd.generation import tiny_models


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ with a text model `cub200` and a class model `imagenet`."""
    data = tiny_models.write_models(tmp_path_factory.mktemp("tiny") / "data", "cub200")
    return tiny_models.write_models(data, "imagenet", ClassSpec(len(tiny_models.CLASS_NAMES), 8))


@pytest.fixture(scope="session")
def of_text(tiny_data: Path) -> PictureGenerator:
    return tiny_models.load(tiny_data, "cub200")


@pytest.fixture(scope="session")
def of_class(tiny_data: Path) -> PictureGenerator:
    return tiny_models.load(tiny_data, "imagenet")
