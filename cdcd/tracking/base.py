"""What a stage may record, and how it reads what another one recorded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class DataInput:
    """Data that a run read, as MLflow's page of the run shows it under Datasets.

    Attributes:
        name: such as `aist/tokens`.
        digest: of its content, at most 36 characters.
        source: its path, relative to the repository's root.
        profile: counts, JSON-able.
        context: what it was read for: training, evaluation or another stage.
    """

    name: str
    digest: str
    source: str
    profile: Mapping[str, Any] = field(default_factory=dict)
    context: str = "training"


class Tracker(Protocol):
    """What a stage may record. `NullTracker` records nothing."""

    run_id: str | None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; nested mappings become dotted names."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record numbers at a step; buffered, so cheap enough for every step."""
        ...

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a file into the run."""
        ...

    def log_artifacts(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a folder's content into the run."""
        ...

    def log_audio(self, name: str, audio: np.ndarray, sample_rate_hz: int) -> None:
        """Keep mono float sound `[n]` in [-1, 1] as `<name>.wav`, which MLflow's UI plays."""
        ...

    def log_figure(self, name: str, figure: Any) -> None:
        """Keep a matplotlib figure as `<name>.png`."""
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add or replace tags of the run."""
        ...

    def log_inputs(self, inputs: Sequence[DataInput]) -> None:
        """Name the data that the run read."""
        ...

    def log_child(
        self, name: str, metrics: Mapping[str, Any], tags: Mapping[str, str] | None = None
    ) -> None:
        """Record numbers of a part of the run, such as one seed, as a run of its own below it."""
        ...

    def flush(self) -> None:
        """Send what is buffered."""
        ...


class NullTracker:
    """A tracker that records nothing, for tests and runs without MLflow."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Do nothing."""

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Do nothing."""

    def log_artifacts(self, path: str | Path, folder: str | None = None) -> None:
        """Do nothing."""

    def log_audio(self, name: str, audio: np.ndarray, sample_rate_hz: int) -> None:
        """Do nothing."""

    def log_figure(self, name: str, figure: Any) -> None:
        """Do nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing."""

    def log_inputs(self, inputs: Sequence[DataInput]) -> None:
        """Do nothing."""

    def log_child(
        self, name: str, metrics: Mapping[str, Any], tags: Mapping[str, str] | None = None
    ) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one level with dotted keys; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def read_run_id(path: Path) -> str | None:
    """The `run_id` in a run.json, or None where the file is missing or unreadable."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["run_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
