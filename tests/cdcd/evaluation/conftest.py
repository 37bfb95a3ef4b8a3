"""What the evaluations of music and of pictures are tested with."""

from __future__ import annotations

import html.parser
from collections.abc import Callable
from pathlib import Path

import pytest


class Recorder:
    """A tracker that remembers numbers and names of files."""

    def __init__(self):
        self.metrics, self.files, self.children = {}, [], {}

    def log_metrics(self, metrics, step=0):
        self.metrics |= metrics

    def log_child(self, name, metrics, tags=None):
        self.children[name] = metrics

    def log_artifact(self, path, folder=None):
        self.files.append(Path(path).name)


@pytest.fixture
def recorder() -> Recorder:
    """A fresh tracker."""
    return Recorder()


@pytest.fixture
def bits_without_model(monkeypatch) -> None:
    """A bound of 5 bits for the model and of 6 for others; by default of twelve test clips."""

    def bits(model_dir, tokens_dir, features_dir, split, condition, num_draws, keys=None):
        keys = [f"test{i:03d}" for i in range(12)] if keys is None else list(keys)
        value = 5.0 + (condition != "model")
        return {"mean": value, "keys": keys, "per_sample": [value] * len(keys)}

    monkeypatch.setattr("cdcd.tasks.bits_per_token", bits)


@pytest.fixture
def links_of() -> Callable[[str], list[str]]:
    """`links_of(page)`: everything a page embeds or points to; nothing may lie outside it."""

    def find(page: str) -> list[str]:
        found: list[str] = []

        class Links(html.parser.HTMLParser):
            def handle_starttag(self, tag, attrs):
                found.extend(value for name, value in attrs if name in ("src", "href"))

        Links().feed(page)
        assert all(link.startswith("data:") for link in found)
        assert "http" not in page
        return found

    return find
